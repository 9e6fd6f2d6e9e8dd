//! Ends the server of a service that was killed, where the kernel does not.

use std::{
    io::{self, PipeWriter, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use rustix::process::Pid;

/// Reads the server's process id; then nothing, until nobody holds the other end of the pipe.
const SCRIPT: &str = r#"read -r pid && ! read -r _ && kill -TERM "$pid""#;

/// A shell that waits at the end of a pipe whose other end only this process holds. When that closes, because this
/// process has ended in whatever way, the shell sends SIGTERM to the server. Dropping this ends the shell alone.
#[derive(Debug)]
pub struct Guard {
    shell: Child,
    /// Closed where another program begins (close-on-exec), so that nothing but this process keeps it open.
    held: PipeWriter,
}

impl Guard {
    /// Starts the shell. It guards nothing yet.
    ///
    /// # Errors
    /// That there is no pipe or no process to be had.
    pub fn start() -> io::Result<Self> {
        let (end, held) = io::pipe()?;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SCRIPT, "streamkeep-guard"]).current_dir("/");
        shell.stdin(end).stdout(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C in a terminal goes to the whole group: the service ends in order, and needs its guard until then.
        shell.process_group(0);
        Ok(Self { shell: shell.spawn()?, held })
    }

    /// What a server about to begin calls [`watch`] with.
    ///
    /// # Errors
    /// That there is no descriptor to be had.
    pub fn pipe(&self) -> io::Result<PipeWriter> {
        self.held.try_clone()
    }
}

impl Drop for Guard {
    /// Ends the shell while the pipe is still open: the server's id may belong to another process soon.
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Has this process guarded. Between fork and exec: from the first moment on there is no server without its guard. Only
/// system calls are made.
///
/// # Errors
/// That the guard has ended.
pub fn watch(mut pipe: &PipeWriter, process: Pid) -> io::Result<()> {
    let mut id = itoa::Buffer::new();
    pipe.write_all(id.format(process.as_raw_nonzero().get()).as_bytes())?;
    pipe.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use rustix::process::{Signal, kill_process};

    use super::*;

    /// A process that any signal ends, its id, and its guard.
    fn guarded() -> (Child, Pid, Guard) {
        let child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = Pid::from_child(&child);
        let guard = Guard::start().expect("a guard");
        watch(&guard.held, pid).expect("it reads");
        (child, pid, guard)
    }

    #[test]
    fn what_it_guards_ends_when_the_pipe_closes() {
        let (mut child, _, mut guard) = guarded();
        guard.held = io::pipe().expect("another pipe").1;
        assert_eq!(child.wait().expect("it ends").signal(), Some(Signal::TERM.as_raw()));
        assert!(guard.shell.wait().expect("the guard ends too").success());
    }

    #[test]
    fn after_its_end_it_signals_nobody() {
        let (mut child, pid, guard) = guarded();
        drop(guard);
        // Had there been another signal, that one would have ended it.
        kill_process(pid, Signal::XCPU).expect("it runs");
        assert_eq!(child.wait().expect("it ends").signal(), Some(Signal::XCPU.as_raw()));
    }
}
