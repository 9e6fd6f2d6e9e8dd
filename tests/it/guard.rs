//! The guard that ends Redis where the kernel does not, on the kernel that would.

use std::{fs, path::Path, time::Duration};

use streamkeep::redis_server::{RedisServer, RedisServerConfig};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::app::eventually;

/// Names the data folder to the process of [`holds_a_guarded_server`].
const DATA: &str = "STREAMKEEP_TEST_GUARDED_DATA";

fn guarded(data: &Path) -> RedisServerConfig {
    let mut config = RedisServerConfig::new(data);
    config.binary = std::env::var_os("STREAMKEEP_REDIS_SERVER").map(Into::into);
    config.guarded = true;
    config
}

#[test]
#[ignore = "a process of its own for the tests below"]
fn holds_a_guarded_server() {
    let Some(data) = std::env::var_os(DATA) else { return };
    let _server = RedisServer::start(&guarded(Path::new(&data))).unwrap();
    loop {
        std::thread::sleep(Duration::from_mins(1));
    }
}

/// Starts a process that holds a guarded server.
fn hold(data: &TempDir) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "guard::holds_a_guarded_server", "--ignored"]).env(DATA, data.path().join("data"));
    command.env("TMPDIR", data.path()).kill_on_drop(true).spawn().unwrap()
}

/// State, parent and group of a process.
fn stat(pid: u32) -> Option<(String, u32, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, ..)| state != "Z" && state != "X")
}

/// The running children of `parent` with `text` in their command.
fn children(parent: u32, text: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_wanted = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        runs(*pid)
            && stat(*pid).is_some_and(|stat| stat.1 == parent)
            && String::from_utf8_lossy(&command).contains(text)
    };
    pids.filter(is_wanted).collect()
}

/// Waits for the Redis and the guard of `holder` that are not these.
async fn pair(data: &TempDir, holder: &Child, old: Option<(u32, u32)>) -> (u32, u32) {
    let parent = holder.id().unwrap();
    let mut pair = (0, 0);
    eventually("one Redis that answers, with one guard", async || {
        let address = format!("redis+unix://{}", data.path().join("data/redis.sock").display());
        let Ok(mut redis) = redis::Client::open(address).unwrap().get_multiplexed_async_connection().await else {
            return false;
        };
        let Ok(info) = redis::cmd("INFO").arg("server").query_async::<redis::InfoDict>(&mut redis).await else {
            return false;
        };
        let [guard] = children(parent, "streamkeep-guard")[..] else { return false };
        pair = (info.get("process_id").unwrap(), guard);
        old.is_none_or(|(redis, guard)| pair.0 != redis && pair.1 != guard)
    })
    .await;
    pair
}

/// What the descriptors of a process lead to.
fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.filter_map(|entry| Some(fs::read_link(entry.unwrap().path()).ok()?.to_str()?.to_owned())).collect()
}

fn kill(pid: u32) {
    let status = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_service_leaves_no_redis_and_no_guard() {
    let data = TempDir::new().unwrap();
    let mut holder = hold(&data);
    let first = pair(&data, &holder, None).await;
    // Another Redis gets another guard: the first must not end whoever has the id by then.
    kill(first.0);
    let (redis, guard) = pair(&data, &holder, Some(first)).await;
    assert!(!runs(first.1));

    holder.kill().await.unwrap();
    eventually("both end", async || !runs(redis) && !runs(guard)).await;
    let log = fs::read_to_string(data.path().join("data/redis.log")).unwrap();
    assert!(log.trim_end().ends_with("bye bye..."), "ended in order: {log}");
    let config = guarded(&data.path().join("data"));
    tokio::task::spawn_blocking(move || RedisServer::start(&config).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_holds_nothing_but_its_end_of_the_pipe() {
    let data = TempDir::new().unwrap();
    let holder = hold(&data);
    let (redis, guard) = pair(&data, &holder, None).await;
    assert_eq!(stat(guard).unwrap().2, guard, "a process group of its own, which Ctrl-C does not reach");
    let pipe = fs::read_link(format!("/proc/{guard}/fd/0")).unwrap().to_str().unwrap().to_owned();
    assert!(pipe.starts_with("pipe:"), "{pipe}");
    assert!(!descriptors(redis).contains(&pipe), "only the service keeps the pipe open");
    let (folder, held) = (data.path().to_str().unwrap(), descriptors(guard));
    assert!(descriptors(redis).iter().any(|path| path.starts_with(folder)));
    assert!(!held.iter().any(|path| path.starts_with(folder)), "{held:?}");
    assert_eq!(held.iter().filter(|path| **path == pipe).count(), 1, "{held:?}");
}

#[tokio::test]
async fn a_server_that_is_ended_takes_its_guard_along() {
    let data = TempDir::new().unwrap();
    let config = guarded(data.path());
    let before = children(std::process::id(), "streamkeep-guard");
    let server = tokio::task::spawn_blocking(move || RedisServer::start(&config).unwrap()).await.unwrap();
    let after = children(std::process::id(), "streamkeep-guard");
    let guards: Vec<u32> = after.into_iter().filter(|guard| !before.contains(guard)).collect();
    assert!(!guards.is_empty());
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    eventually("the guard has ended", async || !guards.iter().all(|guard| runs(*guard))).await;
}
