//! Redis servers that nobody starts again, as they stand behind Sentinel and in clusters.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use redis::{Cmd, FromRedisValue, aio::MultiplexedConnection};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::app::free_address;

/// How long a server may take to answer before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Runs a server and tells its process id; ends it when the input ends, which it does however this process ends.
const WRAPPER: &str = r#""$@" & echo $!; read -r _; kill -9 $! 2>/dev/null"#;

/// A server of one's own at an address of its own, with a folder of its own. Killed when dropped.
pub struct Node {
    pub address: SocketAddr,
    folder: TempDir,
    program: Vec<String>,
    running: Option<(u32, tokio::process::Child)>,
}

impl Node {
    /// Starts `redis-server` with these settings, and waits until it answers.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_at(free_address(), settings).await
    }

    /// The same, at an address that is free.
    pub async fn start_at(address: SocketAddr, settings: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let fixed = [
            ("bind", ip.as_str()),
            ("port", &port),
            ("dir", folder.path().to_str().unwrap()),
            ("logfile", "log"),
            ("save", ""),
            ("appendonly", "yes"),
            ("appendfsync", "everysec"),
            // As if each were on a machine of its own.
            ("replica-announce-ip", &ip),
            ("cluster-announce-ip", &ip),
            ("repl-diskless-sync-delay", "0"),
            ("protected-mode", "no"),
        ];
        let mut program = vec![redis_server()];
        for (name, value) in fixed.iter().chain(settings) {
            program.extend([format!("--{name}"), (*value).to_owned()]);
        }
        let mut node = Self { address, folder, program, running: None };
        node.run().await;
        node
    }

    /// Starts a sentinel with the lines of its file.
    pub async fn start_sentinel(address: SocketAddr, lines: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("sentinel.conf");
        let fixed = format!("bind {}\nport {}\nprotected-mode no\nlogfile log\n", address.ip(), address.port());
        std::fs::write(&file, format!("{fixed}dir {}\n{lines}", folder.path().display())).unwrap();
        let program = vec![redis_server(), file.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
        let mut node = Self { address, folder, program, running: None };
        node.run().await;
        node
    }

    /// Gives it a setting for when it is started the next time.
    pub fn set(&mut self, name: &str, value: &str) {
        self.program.extend([format!("--{name}"), value.to_owned()]);
    }

    /// Starts it, again where it was killed.
    pub async fn run(&mut self) {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", WRAPPER, "sh"]).args(&self.program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).await.unwrap();
        self.running = Some((line.trim().parse().unwrap(), child));
        let answers = async {
            while self.try_ask::<String>("PING").await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, answers).await.is_err() {
            let log = std::fs::read_to_string(self.folder.path().join("log"));
            panic!("a server does not answer: {log:?}");
        }
    }

    /// Sends a signal, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let (pid, _) = self.running.as_ref().expect("it runs");
        let killed = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// Kills it, and waits for its end.
    pub async fn kill(&mut self) {
        self.signal("KILL");
        let (_, mut child) = self.running.take().expect("it runs");
        drop(child.stdin.take());
        child.wait().await.unwrap();
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub async fn connection(&self) -> MultiplexedConnection {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let client = redis::Client::open(self.url()).unwrap();
        client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
    }

    /// Sends one command, words between spaces.
    pub async fn ask<T: FromRedisValue>(&self, line: &str) -> T {
        self.try_ask(line).await.unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// The same, of a server that may be away.
    pub async fn try_ask<T: FromRedisValue>(&self, line: &str) -> redis::RedisResult<T> {
        let mut command = Cmd::new();
        for word in line.split(' ') {
            command.arg(word);
        }
        let mut connection = redis::Client::open(self.url())?.get_multiplexed_async_connection().await?;
        command.query_async(&mut connection).await
    }

    /// A field of `INFO`; empty where there is none.
    pub async fn info(&self, field: &str) -> String {
        let info: redis::RedisResult<redis::InfoDict> = self.try_ask("INFO").await;
        info.ok().and_then(|info| info.get(field)).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.running.is_some() {
            // The wrapper ends too, for its input does.
            self.signal("KILL");
        }
    }
}

/// The program to test on.
fn redis_server() -> String {
    std::env::var("STREAMKEEP_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}
