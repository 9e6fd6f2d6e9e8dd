//! The other processes: the service, the echo, and what they cost.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long a process may take to listen.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long it may take to end: a service would wait longer for followers who are there and do not read any more.
const ENDING: Duration = Duration::from_secs(3);
/// Of `utime` and `stime`: 100 a second on every Linux, whatever the kernel's own tick (`proc(5)`, USER_HZ).
const TICK: Duration = Duration::from_millis(10);

/// A process that listens. Ended when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// Goes with it.
    folder: Option<TempDir>,
}

impl Server {
    /// Starts a program, to which `arguments` says where to listen, and waits until it does.
    ///
    /// # Errors
    /// That it does not, in one line; why, the program has said on standard error.
    pub fn start(program: &Path, arguments: impl FnOnce(SocketAddr) -> Vec<String>) -> Result<Self, String> {
        let name = program.display();
        let address = free_address();
        let mut command = Command::new(program);
        // Settings come from the arguments alone.
        command.args(arguments(address)).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(threads) = std::env::var_os("TOKIO_WORKER_THREADS") {
            command.env("TOKIO_WORKER_THREADS", threads);
        }
        let child = command.spawn().map_err(|error| format!("{name} does not start: {error}"))?;
        let mut server = Self { child, address, folder: None };
        until(&name.to_string(), || {
            if server.ended() { Err(format!("{name} has ended")) } else { Ok(TcpStream::connect(address).is_ok()) }
        })?;
        Ok(server)
    }

    /// The same, with a folder of its own that goes with it.
    pub fn with(mut self, folder: TempDir) -> Self {
        self.folder = Some(folder);
        self
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_some()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let until = Instant::now() + ENDING;
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).expect("a child has an id");
        // Not yet reaped, so the id is still that of the child.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        while !self.ended() {
            if Instant::now() > until {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Waits until a server is ready.
///
/// # Errors
/// That it never will be, or is not in time.
pub fn until(name: &str, mut ready: impl FnMut() -> Result<bool, String>) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    while !ready()? {
        if Instant::now() > until {
            return Err(format!("{name} does not get ready"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A program on PATH, or where system programs are.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    listener.local_addr().expect("it is bound")
}

/// Processor time of a process so far, its own and the kernel's for it; zero where there is no `/proc`.
pub fn cpu(pid: u32) -> Duration {
    scheduled(pid).unwrap_or_else(|| ticked(pid))
}

/// The same, with that of its children: PostgreSQL has a process a connection.
pub fn cpu_of_all(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> =
        children.flat_map(|ids| ids.split(' ').filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect();
    cpu(pid) + children.into_iter().map(cpu_of_all).sum::<Duration>()
}

/// To the nanosecond, of the threads that live; none that works ends while it is measured. `None` where the kernel does
/// not count so.
fn scheduled(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let spent = |thread: fs::DirEntry| -> Option<u64> {
        fs::read_to_string(thread.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    let nanos = threads.filter_map(|thread| spent(thread.ok()?)).sum();
    (nanos > 0).then(|| Duration::from_nanos(nanos))
}

/// In whole ticks.
fn ticked(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is a name in brackets, in which anything may stand; utime and stime are the 14th and 15th.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
    let ticks: u32 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    TICK * ticks
}

/// Memory of a process that is in use, in KiB: what the kernel holds for its connections does not count. Zero where there
/// is no `/proc`.
pub fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    resident.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

/// Lets this process open as many files as it may; says how many that are.
pub fn raise_descriptor_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where that fails, the limit stays what it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
