//! The program itself, run on a service.

use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::app::TestApp;

/// How a run of the program ended.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    #[track_caller]
    pub fn expect_failure(self, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {self:?}");
        }
        self
    }

    /// That an import's summary tells these numbers.
    #[track_caller]
    pub fn expect_summary(self, read: usize, appended: usize, already: usize) -> Self {
        let run = self.expect_success();
        let summary = format!("{read} events read, {appended} appended, {already} already there, ");
        assert!(run.stdout.starts_with(&summary), "{summary:?}: {run:?}");
        run
    }
}

pub fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamkeep"));
    command.args(arguments).args(["--url", url]).env("NO_PROXY", "*").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for its end.
pub async fn finish(child: Child) -> Run {
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

pub async fn streamkeep(app: &TestApp, arguments: &[&str]) -> Run {
    finish(command(&app.url, arguments).spawn().unwrap()).await
}

/// Sends a signal to it.
pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
