//! The Redis of one's own: durable, private, alone in its folder, and never left behind.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use streamkeep::redis_server::{RedisServer, RedisServerConfig, RedisServerError};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::app::{TestRedis, eventually, free_address};

const ONE: &str = r#"{"events":[{"type":"t","data":1}]}"#;

fn alive(pid: &str) -> bool {
    // A zombie has ended; nobody has asked how.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The service as users run it.
struct Service {
    child: Child,
    url: String,
}

impl Service {
    async fn start(data: &Path) -> Self {
        let address = free_address();
        let child = Command::new(env!("CARGO_BIN_EXE_streamkeep"))
            .args(["serve", "--listen", &address.to_string(), "--data"])
            .arg(data)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let service = Self { child, url: format!("http://{address}") };
        let ready = format!("{}/readyz", service.url);
        eventually("the service is ready", async || {
            reqwest::get(&ready).await.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        service
    }

    async fn append(&self) -> u16 {
        let request = reqwest::Client::new().post(format!("{}/streams/order-1/events", self.url));
        let request = request.header("content-type", "application/json").body(ONE);
        request.send().await.unwrap().status().as_u16()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }
}

/// The process id of the Redis behind a data folder, by its own word.
async fn redis_pid(data: &Path) -> String {
    let url = format!("redis+unix://{}", data.join("redis.sock").display());
    let mut redis = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let info: redis::InfoDict = redis::cmd("INFO").arg("server").query_async(&mut redis).await.unwrap();
    info.get("process_id").unwrap()
}

#[tokio::test]
async fn it_is_durable_and_private() {
    let redis = TestRedis::start().await;
    let mut plain = redis.connection().await;
    for (name, value) in [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("maxmemory-policy", "noeviction"),
        ("stream-node-max-bytes", "3072"),
        ("port", "0"),
        ("save", ""),
    ] {
        let pair: Vec<String> = redis::cmd("CONFIG").arg("GET").arg(name).query_async(&mut plain).await.unwrap();
        assert_eq!(pair, [name, value]);
    }
    let socket = std::fs::canonicalize(redis.data.path().join("redis.sock")).unwrap();
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(socket.parent().unwrap()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn a_deep_data_folder_is_no_trouble_for_the_socket() {
    let data = TempDir::new().unwrap();
    let deep: PathBuf = data.path().join("d".repeat(100)).join("e".repeat(100)).join("with a space");
    let config = RedisServerConfig::new(&deep);
    tokio::task::spawn_blocking(move || RedisServer::start(&config).unwrap()).await.unwrap();
    assert!(deep.join("appendonlydir").exists());
}

#[tokio::test]
async fn a_folder_in_use_is_refused() {
    let redis = TestRedis::start().await;
    let config = RedisServerConfig::new(redis.data.path());
    let refused = tokio::task::spawn_blocking(move || RedisServer::start(&config)).await.unwrap();
    assert!(matches!(refused, Err(RedisServerError::DataInUse(_))), "{refused:?}");
    redis::cmd("PING").exec_async(&mut redis.connection().await).await.unwrap();
}

#[tokio::test]
async fn what_is_no_redis_is_refused() {
    let data = TempDir::new().unwrap();
    let start = |binary: &str, settings: &[(&str, &str)]| {
        let mut config = RedisServerConfig::new(data.path());
        config.binary = (!binary.is_empty()).then(|| binary.into());
        config.settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        tokio::task::spawn_blocking(move || RedisServer::start(&config))
    };
    assert!(matches!(start("/bin/echo", &[]).await.unwrap(), Err(RedisServerError::WrongVersion(_))));
    assert!(matches!(start("/nowhere", &[]).await.unwrap(), Err(RedisServerError::Io { .. })));
    let died = start("", &[("no-such-setting", "1")]).await.unwrap();
    assert!(matches!(died, Err(RedisServerError::Died { .. })), "{died:?}");
    // And the folder is free again.
    assert!(start("", &[]).await.unwrap().is_ok());
}

#[tokio::test]
async fn it_is_started_again_when_it_dies() {
    let redis = TestRedis::start().await;
    for _ in 0..2 {
        let before = redis.server.pid().unwrap();
        redis.signal("KILL");
        eventually("another process", async || redis.server.pid().is_some_and(|pid| pid != before)).await;
    }
}

#[tokio::test]
async fn a_killed_service_leaves_no_redis_and_loses_nothing() {
    let data = TempDir::new().unwrap();
    for round in 1..=3 {
        let mut service = Service::start(data.path()).await;
        assert_eq!(service.append().await, 201);
        let pid = redis_pid(data.path()).await;
        service.signal("KILL");
        service.child.wait().await.unwrap();
        // The next one starts at once, and waits for the folder as long as it must.
        let next = Service::start(data.path()).await;
        assert!(!alive(&pid));
        let head = reqwest::Client::new().head(format!("{}/streams/order-1", next.url)).send().await.unwrap();
        assert_eq!(head.headers()["etag"], format!("\"{round}\""));
        next.signal("KILL");
    }
}

#[tokio::test]
async fn a_service_that_is_told_to_end_ends_in_order() {
    for signal in ["TERM", "INT"] {
        let data = TempDir::new().unwrap();
        let mut service = Service::start(data.path()).await;
        assert_eq!(service.append().await, 201);
        let pid = redis_pid(data.path()).await;
        service.signal(signal);
        let ended = tokio::time::timeout(std::time::Duration::from_secs(10), service.child.wait()).await.unwrap();
        assert!(ended.unwrap().success());
        assert!(!alive(&pid));
        let log = std::fs::read_to_string(data.path().join("redis.log")).unwrap();
        assert!(log.contains("bye bye"), "{log}");
    }
}
