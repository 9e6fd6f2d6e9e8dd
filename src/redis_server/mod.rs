//! `RedisServer`: a `redis-server` or `valkey-server` of our own, supervised. The embedded default of the service, and
//! the fixture of the tests.

mod guard;

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::{
        fs::{DirBuilderExt as _, PermissionsExt as _, symlink},
        net::UnixStream,
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use redis::{ConnectionInfo, IntoConnectionInfo as _};
use rustix::{
    io::FdFlags,
    process::{Pid, Signal, WaitId, WaitIdOptions},
};
use tempfile::TempDir;
use tracing::{info, warn};

use guard::Guard;

/// The servers that are looked for on PATH, in this order.
const BINARIES: [&str; 2] = ["valkey-server", "redis-server"];
/// A unix socket's path has at most 107 bytes (`unix(7)`).
const SOCKET_PATH_MAX: usize = 107;
/// How long a data folder may still be held: the server of a killed service needs a moment to end.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How long the server may take to end when asked to, before it is killed.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// How often a condition of another process is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Pause before a server is started again that ended within this time.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// When the append-only file is synced to disk (Redis' `appendfsync`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AppendFsync {
    /// Before every reply: what is acknowledged is on disk.
    #[default]
    Always,
    /// Once a second: faster, and about two seconds may be lost.
    Everysec,
}

/// How the server is run.
#[derive(Clone, Debug)]
pub struct RedisServerConfig {
    /// The program; `None`: the first of `valkey-server` and `redis-server` on PATH.
    pub binary: Option<PathBuf>,
    /// Data folder; made if absent, and held for this service alone.
    pub data: PathBuf,
    /// When to sync.
    pub append_fsync: AppendFsync,
    /// Redis' `stream-node-max-bytes`: less memory for many short streams where it is small, for long ones where large.
    pub stream_node_max_bytes: u32,
    /// Whether a process of its own ends the server when the service is killed, and not the kernel. Only Linux' kernel
    /// does that.
    pub guarded: bool,
    /// Further settings of Redis, name and value.
    pub settings: Vec<(String, String)>,
}

impl RedisServerConfig {
    /// The defaults, with this data folder.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        let (data, append_fsync) = (data.into(), AppendFsync::default());
        let guarded = !cfg!(target_os = "linux");
        Self { binary: None, data, append_fsync, stream_node_max_bytes: 3072, guarded, settings: Vec::new() }
    }
}

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum RedisServerError {
    /// No program.
    #[error("neither valkey-server nor redis-server is on PATH; install one, or name it with --redis-server")]
    NotFound,
    /// Too old, or not a Redis at all.
    #[error("{0} is not Redis or Valkey 7.0 or newer")]
    WrongVersion(PathBuf),
    /// Another service holds the data folder.
    #[error("the data folder {0} is in use by another service")]
    DataInUse(PathBuf),
    /// The server ended before it answered.
    #[error("the server ended with {status} before it answered; its log {log} says:\n{tail}")]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// Where its log is.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        source: io::Error,
    },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> RedisServerError {
    let what = what.into();
    move |source| RedisServerError::Io { what, source }
}

/// A running server. Started again when it dies; ended when this is dropped, and also when this process is killed.
#[derive(Debug)]
pub struct RedisServer {
    state: Arc<State>,
    socket: PathBuf,
    supervisor: Option<JoinHandle<()>>,
    /// Holds the socket; goes with this.
    _runtime: TempDir,
}

#[derive(Debug, Default)]
struct State {
    /// Of the running child. Cleared under the lock before the child is reaped, so that no other process is signalled.
    pid: Mutex<Option<Pid>>,
    ready: AtomicBool,
    stopping: AtomicBool,
}

impl RedisServer {
    /// Starts a server and waits until it has loaded its data. Blocks the thread.
    ///
    /// # Errors
    /// [`RedisServerError`]
    pub fn start(config: &RedisServerConfig) -> Result<Self, RedisServerError> {
        let binary = find(config.binary.as_deref())?;
        let data = &config.data;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(data);
        made.map_err(io_error(format!("cannot make the data folder {}", data.display())))?;
        let data = &data.canonicalize().map_err(io_error("cannot resolve the data folder"))?;
        let lock = lock(data)?;
        let runtime = runtime_dir()?;
        let socket = runtime.path().join("redis.sock");
        link_socket(data, &socket).map_err(io_error("cannot link the socket into the data folder"))?;

        let state = Arc::new(State::default());
        let (ended, ends) = mpsc::channel();
        let supervisor = Supervisor {
            binary: binary.clone(),
            arguments: arguments(config, data, &socket),
            lock,
            guarded: config.guarded,
            state: Arc::clone(&state),
            ended,
        };
        // A thread of its own, because PR_SET_PDEATHSIG fires when the *thread* ends that forked.
        let named = thread::Builder::new().name("redis-server".to_owned());
        let supervisor = named.spawn(move || supervisor.run()).map_err(io_error("cannot start a thread"))?;
        let server = Self { state, socket, supervisor: Some(supervisor), _runtime: runtime };
        server.wait_until_ready(&ends, &data.join("redis.log"))?;
        info!(binary = %binary.display(), data = %data.display(), socket = %server.socket.display(), "Redis started");
        Ok(server)
    }

    /// Where to connect.
    ///
    /// # Panics
    /// Never: the path is one of ours.
    #[must_use]
    pub fn address(&self) -> ConnectionInfo {
        format!("redis+unix://{}", self.socket.display()).into_connection_info().expect("a path of ours is an address")
    }

    /// The server's process id; `None` while it is being started again.
    ///
    /// # Panics
    /// If the supervisor panicked.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let pid = self.state.pid.lock().expect("the supervisor does not panic");
        pid.map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    fn wait_until_ready(
        &self,
        ends: &mpsc::Receiver<io::Result<ExitStatus>>,
        log: &Path,
    ) -> Result<(), RedisServerError> {
        loop {
            if answers(&self.socket) {
                self.state.ready.store(true, Ordering::Release);
                return Ok(());
            }
            match ends.recv_timeout(LOOK) {
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(Ok(status)) => {
                    return Err(RedisServerError::Died { status, log: log.to_owned(), tail: tail(log) });
                }
                Ok(Err(error)) => return Err(io_error("cannot start the server")(error)),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(io_error("cannot start the server")(io::Error::other("the supervisor ended")));
                }
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.state.pid.lock().expect("the supervisor does not panic");
        if let Some(pid) = *pid {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

impl Drop for RedisServer {
    /// Ends the server as its operators do: SIGTERM, by which it syncs its files; SIGKILL if it hangs.
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::Release);
        let Some(supervisor) = self.supervisor.take() else { return };
        self.signal(Signal::TERM);
        let until = Instant::now() + STOP_WAIT;
        while !supervisor.is_finished() {
            if Instant::now() > until {
                self.signal(Signal::KILL);
            }
            thread::sleep(LOOK);
        }
        let _ = supervisor.join();
    }
}

struct Supervisor {
    binary: PathBuf,
    arguments: Vec<OsString>,
    /// Also held by the child, so that the folder stays taken for as long as any of the two lives.
    lock: File,
    guarded: bool,
    state: Arc<State>,
    ended: mpsc::Sender<io::Result<ExitStatus>>,
}

impl Supervisor {
    fn run(self) {
        loop {
            let began = Instant::now();
            let end = self.run_once();
            if self.state.stopping.load(Ordering::Acquire) || !self.state.ready.load(Ordering::Acquire) {
                let _ = self.ended.send(end);
                return;
            }
            warn!(?end, "Redis ended; starting it again");
            if began.elapsed() < RESTART_PAUSE {
                thread::sleep(RESTART_PAUSE);
            }
        }
    }

    fn run_once(&self) -> io::Result<ExitStatus> {
        let guard = self.guarded.then(Guard::start).transpose()?;
        let mut child = {
            let mut pid = self.state.pid.lock().expect("no holder panics");
            if self.state.stopping.load(Ordering::Acquire) {
                return Ok(ExitStatus::default());
            }
            let child = self.spawn(guard.as_ref())?;
            *pid = Pid::from_raw(child.id().cast_signed());
            child
        };
        let pid = Pid::from_raw(child.id().cast_signed()).expect("a child has an id");
        // Waits without reaping: until the id is cleared, and the guard has ended, it must not go to another process.
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {}
        *self.state.pid.lock().expect("no holder panics") = None;
        drop(guard);
        child.wait()
    }

    #[expect(
        unsafe_code,
        reason = "pre_exec is the only way to act between fork and exec; only system calls happen there"
    )]
    fn spawn(&self, guard: Option<&Guard>) -> io::Result<std::process::Child> {
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C in a terminal goes to the whole group: the service must end first, and then end Redis.
        command.process_group(0);
        let lock = self.lock.try_clone()?;
        let pipe = guard.map(Guard::pipe).transpose()?;
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec only system calls are made, which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                rustix::io::fcntl_setfd(&lock, FdFlags::empty())?;
                match &pipe {
                    Some(pipe) => guard::watch(pipe, rustix::process::getpid()),
                    None => die_with(parent),
                }
            });
        }
        command.spawn()
    }
}

/// Asks the kernel for SIGTERM when the thread that forked ends; by then it may have ended already.
#[cfg(target_os = "linux")]
fn die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

#[cfg(not(target_os = "linux"))]
fn die_with(_parent: Pid) -> io::Result<()> {
    Ok(())
}

fn arguments(config: &RedisServerConfig, data: &Path, socket: &Path) -> Vec<OsString> {
    let append_fsync = match config.append_fsync {
        AppendFsync::Always => "always",
        AppendFsync::Everysec => "everysec",
    };
    let node_bytes = config.stream_node_max_bytes.to_string();
    let mut arguments: Vec<OsString> = vec!["--dir".into(), data.into(), "--unixsocket".into(), socket.into()];
    let fixed = [
        ("port", "0"),
        ("unixsocketperm", "700"),
        ("daemonize", "no"),
        ("logfile", "redis.log"),
        ("save", ""),
        ("appendonly", "yes"),
        ("appendfsync", append_fsync),
        ("aof-load-truncated", "yes"),
        ("maxmemory-policy", "noeviction"),
        ("stream-node-max-bytes", &node_bytes),
    ];
    let further = config.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in fixed.into_iter().chain(further) {
        arguments.extend([format!("--{name}").into(), value.into()]);
    }
    arguments
}

/// The program to run, once it has said that it is new enough.
fn find(binary: Option<&Path>) -> Result<PathBuf, RedisServerError> {
    let on_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let mut candidates = BINARIES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
        candidates.find(|candidate| candidate.is_file())
    };
    let binary = binary.map(Path::to_owned).or_else(on_path).ok_or(RedisServerError::NotFound)?;
    let output = Command::new(&binary).arg("--version").output();
    let text = output.map_err(io_error(format!("cannot run {}", binary.display())))?.stdout;
    let text = String::from_utf8_lossy(&text);
    let major =
        text.split_whitespace().find_map(|word| word.strip_prefix("v=")?.split('.').next()?.parse::<u32>().ok());
    if major.is_some_and(|major| major >= 7) { Ok(binary) } else { Err(RedisServerError::WrongVersion(binary)) }
}

/// Takes the data folder, waiting a moment for a server that is just ending.
fn lock(data: &Path) -> Result<File, RedisServerError> {
    let path = data.join("streamkeep.lock");
    let cannot = || io_error(format!("cannot lock {}", path.display()));
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(cannot())?;
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(LOOK),
            Err(TryLockError::WouldBlock) => return Err(RedisServerError::DataInUse(data.to_owned())),
            Err(TryLockError::Error(error)) => return Err(cannot()(error)),
        }
    }
}

/// A short-named folder for the socket, which only this user may enter.
fn runtime_dir() -> Result<TempDir, RedisServerError> {
    let private = fs::Permissions::from_mode(0o700);
    let make =
        |parent: &Path| tempfile::Builder::new().prefix("streamkeep-").permissions(private.clone()).tempdir_in(parent);
    let dir = make(&std::env::temp_dir()).map_err(io_error("cannot make a temporary folder"))?;
    if dir.path().join("redis.sock").as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok(dir);
    }
    make(Path::new("/tmp")).map_err(io_error("cannot make a temporary folder in /tmp"))
}

/// `redis-cli -s <data>/redis.sock` reaches the server, wherever its socket is.
fn link_socket(data: &Path, socket: &Path) -> io::Result<()> {
    let link = data.join("redis.sock");
    if let Ok(old) = fs::read_link(&link) {
        // A killed service could not clean up. The folder goes only if nothing else is in it.
        let _ = fs::remove_file(&old);
        let _ = old.parent().map(fs::remove_dir);
    }
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(socket, link)
}

/// Whether the server answers PING; while it loads its data it answers LOADING.
fn answers(socket: &Path) -> bool {
    let ask = || -> io::Result<bool> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut reply = [0; 5];
        stream.read_exact(&mut reply)?;
        Ok(&reply == b"+PONG")
    };
    ask().unwrap_or(false)
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
