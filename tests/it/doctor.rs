//! `streamkeep doctor`: each thing that is wrong is named, on a real Redis that has it.

use std::{
    net::{IpAddr, UdpSocket},
    process::Output,
    sync::Arc,
    time::Duration,
};

use streamkeep::store::Library;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixStream},
};
use tokio_util::task::AbortOnDropHandle;

use crate::app::{TestApp, TestRedis, eventually};

async fn doctor_at(url: &str, partitions: u16) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_streamkeep"));
    command.args(["doctor", "--redis-url", url, "--partitions", &partitions.to_string()]);
    let Output { status, stdout, .. } = command.output().await.unwrap();
    (status.code(), String::from_utf8(stdout).unwrap())
}

async fn doctor(redis: &TestRedis, partitions: u16) -> (Option<i32>, String) {
    doctor_at(&redis.url(), partitions).await
}

/// The line of a check: its status, and what was seen.
fn line<'a>(lines: &'a str, name: &str) -> (&'a str, &'a str) {
    let is_it = |line: &&str| line.split_whitespace().nth(1) == Some(name);
    let line = lines.lines().find(is_it).unwrap_or_else(|| panic!("no {name}: {lines}"));
    let (status, rest) = line.split_once(char::is_whitespace).unwrap();
    (status, rest.trim_start().strip_prefix(name).unwrap().trim_start())
}

/// A floor that would stop the start.
#[tokio::test]
async fn a_level_that_cannot_be_reached_is_told() {
    let app = TestApp::start(1).await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_streamkeep"));
    command.args(["doctor", "--redis-url", &app.redis.url(), "--durability", "replicated"]);
    let Output { status, stdout, .. } = command.output().await.unwrap();
    let lines = String::from_utf8(stdout).unwrap();
    assert_eq!(status.code(), Some(1), "{lines}");
    let (status, detail) = line(&lines, "durability");
    assert_eq!(status, "fail", "{lines}");
    assert!(detail.contains("0 of the 1 replica(s)") && detail.ends_with("the service does not start"), "{lines}");
}

async fn run(redis: &TestRedis, line: &str) {
    let mut command = redis::Cmd::new();
    for word in line.split(' ') {
        command.arg(word);
    }
    command.exec_async(&mut redis.connection().await).await.unwrap();
}

#[tokio::test]
async fn a_sound_deployment_is_well() {
    let app = TestApp::start(4).await;
    let (code, lines) = doctor(&app.redis, 4).await;
    assert_eq!(code, Some(0), "{lines}");
    let names = [
        "redis",
        "role",
        "functions",
        "append-only-file",
        "durability",
        "maxmemory-policy",
        "memory",
        "replicas",
        "layout",
        "other-libraries",
        "stream-node-max-bytes",
        "latency",
        "clock",
    ];
    assert_eq!(lines.lines().count(), names.len(), "{lines}");
    // How busy this machine is, is no matter of the deployment.
    for name in names.into_iter().filter(|name| *name != "latency") {
        assert_eq!(line(&lines, name).0, "ok", "{lines}");
    }
}

/// What is done to Redis, and what is then said: exit status, check, its status, and a part of its text.
const WRONG: &[(&str, i32, &str, &str, &str)] = &[
    ("CONFIG SET appendonly no", 0, "append-only-file", "warn", "set appendonly yes"),
    ("CONFIG SET appendfsync no", 0, "append-only-file", "warn", "set everysec or always"),
    ("CONFIG SET maxmemory-policy allkeys-lru", 0, "maxmemory-policy", "warn", "set maxmemory-policy noeviction"),
    ("CONFIG SET maxmemory 1000", 1, "memory", "fail", "appends are refused; raise maxmemory"),
    ("CONFIG SET stream-node-max-bytes 4096", 0, "stream-node-max-bytes", "warn", "set 3072"),
    ("FUNCTION FLUSH", 0, "functions", "warn", "is not loaded"),
    ("REPLICAOF 127.0.0.1 1", 1, "role", "fail", "a replica: takes no writes"),
    ("DEL streamkeep:migrations", 0, "layout", "warn", "the store needs 1 migration(s) first"),
    ("HSET streamkeep:migrations 1 other", 1, "layout", "fail", "this is not the service that made the store"),
    ("HSET streamkeep:migrations 9 other", 1, "layout", "fail", "use a newer service"),
    ("XADD log * msg hello", 1, "layout", "fail", "the key log in Redis is not a log of Streamkeep"),
];

#[tokio::test]
async fn each_thing_that_is_wrong_is_named() {
    for (command, expected, check, status, part) in WRONG {
        let app = TestApp::start(1).await;
        assert_eq!(line(&doctor(&app.redis, 1).await.1, check).0, "ok", "before {command}");
        // Nobody else looks at it, and mends it.
        let redis = Arc::clone(&app.redis);
        drop(app);
        run(&redis, command).await;
        let (code, lines) = doctor(&redis, 1).await;
        let (said, detail) = line(&lines, check);
        assert_eq!((code, said), (Some(*expected), *status), "{command}: {lines}");
        assert!(detail.contains(part), "{command}: {lines}");
    }
}

#[tokio::test]
async fn another_number_of_partitions_fails() {
    let app = TestApp::start(1).await;
    let (code, lines) = doctor(&app.redis, 4).await;
    assert_eq!((code, line(&lines, "layout").0), (Some(1), "fail"), "{lines}");
    assert!(line(&lines, "layout").1.contains("the store has 1 partition(s)"), "{lines}");
}

#[tokio::test]
async fn what_is_not_there_fails() {
    let folder = tempfile::TempDir::new().unwrap();
    let (code, lines) = doctor_at(&format!("redis+unix://{}/none.sock", folder.path().display()), 1).await;
    assert_eq!((code, lines.lines().count(), line(&lines, "redis").0), (Some(1), 1, "fail"), "{lines}");
    assert!(lines.contains("look at --redis-url"), "{lines}");
}

/// Where Redis refuses whoever connects, it says why and closes, before it has read anything.
#[tokio::test]
async fn what_redis_says_when_it_refuses_a_connection_is_told() {
    let redis = TestRedis::start().await;
    let mut held = redis.connection().await;
    let _: () = redis::cmd("CONFIG").arg(&["SET", "maxclients", "1"]).query_async(&mut held).await.unwrap();
    let (code, lines) = doctor(&redis, 1).await;
    assert_eq!((code, line(&lines, "redis").0), (Some(1), "fail"), "{lines}");
    assert!(lines.contains("max number of clients reached"), "{lines}");
}

/// An address of this machine that others could reach it by.
fn outer_address() -> Option<IpAddr> {
    // Sends nothing, but asks for a route.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("203.0.113.1:9").ok()?;
    let address = socket.local_addr().unwrap().ip();
    (!address.is_loopback()).then_some(address)
}

#[tokio::test]
async fn protected_mode_is_told() {
    let Some(address) = outer_address() else {
        eprintln!("SKIPPED: this machine has no address but loopback");
        return;
    };
    let port = TcpListener::bind((address, 0)).await.unwrap().local_addr().unwrap().port();
    let settings = [("port", port.to_string()), ("bind", address.to_string()), ("protected-mode", "yes".to_owned())];
    let settings = settings.map(|(name, value)| (name.to_owned(), value));
    let _redis = TestRedis::start_with(|config| config.settings.extend(settings)).await;
    let url = format!("redis://{address}:{port}");
    let (code, lines) = doctor_at(&url, 1).await;
    assert_eq!((code, line(&lines, "redis").0), (Some(1), "fail"), "{lines}");
    assert!(lines.contains("DENIED") && lines.contains("protected mode"), "{lines}");
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--redis-url", &url];
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_streamkeep")).args(arguments).output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("DENIED"), "{said}");
}

#[tokio::test]
async fn memory_that_is_nearly_full_is_told() {
    let app = TestApp::start(1).await;
    let info: redis::InfoDict = redis::cmd("INFO").query_async(&mut app.redis.connection().await).await.unwrap();
    let used: u64 = info.get("used_memory").unwrap();
    run(&app.redis, &format!("CONFIG SET maxmemory {}", used * 100 / 88)).await;
    let (code, lines) = doctor(&app.redis, 1).await;
    assert_eq!((code, line(&lines, "memory").0), (Some(0), "warn"), "{lines}");
}

#[tokio::test]
async fn libraries_that_were_left_over_are_named() {
    let redis = TestRedis::start().await;
    let older = Library::from_source(&format!("{}\n-- an older build", Library::source()));
    let _old = TestApp::start_with(redis.clone(), 1, |config| config.store.library = older.clone()).await;
    let _new = TestApp::start_on(redis.clone(), 1).await;
    let (code, lines) = doctor(&redis, 1).await;
    let (status, detail) = line(&lines, "other-libraries");
    assert_eq!((code, status), (Some(0), "warn"), "{lines}");
    assert!(detail.contains(&older.name()) && detail.contains("migrate --prune"), "{lines}");
}

#[tokio::test]
async fn replicas_are_counted() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = [("port", port.to_string()), ("repl-diskless-sync-delay", "0".to_owned())];
    let settings = settings.map(|(name, value)| (name.to_owned(), value));
    let primary = TestRedis::start_with(|config| config.settings.extend(settings)).await;
    let (app, replica) = (TestApp::start_on(primary, 1).await, TestRedis::start().await);
    assert_eq!(line(&doctor(&app.redis, 1).await.1, "replicas").1, "none connected: Redis is the only copy");
    run(&replica, &format!("REPLICAOF 127.0.0.1 {port}")).await;
    eventually("the replica is there", async || line(&doctor(&app.redis, 1).await.1, "replicas").1 == "1 connected")
        .await;
}

/// A network that takes 10 ms each way.
#[tokio::test]
async fn a_far_redis_is_told() {
    let app = TestApp::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let socket = app.redis.data.path().join("redis.sock");
    let _relay = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from, mut to) = client.into_split();
            let (mut back, mut there) = UnixStream::connect(&socket).await.unwrap().into_split();
            tokio::spawn(async move {
                let mut bytes = vec![0; 65_536];
                while let Ok(count @ 1..) = from.read(&mut bytes).await {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    there.write_all(&bytes[..count]).await.unwrap();
                }
            });
            tokio::spawn(async move { tokio::io::copy(&mut back, &mut to).await });
        }
    }));
    let (code, lines) = doctor_at(&url, 1).await;
    assert_eq!((code, line(&lines, "latency").0), (Some(0), "warn"), "{lines}");
    assert!(line(&lines, "latency").1.contains("run the service nearer to Redis"), "{lines}");
}
