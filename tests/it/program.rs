//! The program itself, run on a service.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use reqwest::Client;
use tokio::process::{Child, Command};

use crate::app::{TestApp, TestRedis, eventually};

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
    program(&[arguments, &["--url", url]].concat())
}

/// The program with these arguments, whose output is read.
pub fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamkeep"));
    command.args(arguments).env("NO_PROXY", "*").kill_on_drop(true);
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

/// `streamkeep serve` on a Redis that is there.
pub fn serve(redis: &TestRedis, listen: &str, arguments: &[&str]) -> Command {
    let mut command = serve_at(listen, &["--redis-url", &redis.url()]);
    command.args(arguments);
    command
}

/// `streamkeep serve`, wherever Redis is.
pub fn serve_at(listen: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamkeep"));
    command.args(["serve", "--listen", listen]).args(arguments);
    command.env("NO_PROXY", "*").kill_on_drop(true);
    command
}

/// The same, running.
pub struct Service {
    child: Child,
    log: PathBuf,
    pub url: String,
    pub client: Client,
}

impl Service {
    /// Starts it, and waits until it is ready. Its log goes to the folder.
    pub async fn start(mut command: Command, address: SocketAddr, folder: &Path) -> Self {
        let log = folder.join("log");
        let child = command.stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        let client = Client::builder().no_proxy().build().unwrap();
        let mut service = Self { child, log, url: format!("http://{address}"), client };
        eventually("the service is ready", async || {
            assert!(service.child.try_wait().unwrap().is_none(), "{}", service.log());
            let asked = service.client.get(format!("{}/readyz", service.url)).send();
            asked.await.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        service
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        self.child.wait().await.unwrap()
    }
}
