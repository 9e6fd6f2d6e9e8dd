//! Backups, made and restored as docs/operations.md says: while events come, of the service's own Redis and of any other.

use std::{
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{
    app::{TestApp, TestRedis, eventually},
    groups::TestGroup,
    program::finish,
    readme::is_there,
    tidy::root,
};

const ONE: &str = r#"{"events":[{"type":"placed","data":{"total":42}}]}"#;

fn socket(redis: &TestRedis) -> String {
    redis.data.path().join("redis.sock").display().to_string()
}

#[track_caller]
fn expect_success(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

/// Appends to `stream` until it is told to stop; how many were acknowledged.
async fn append_until(app: Arc<TestApp>, stop: CancellationToken) -> u64 {
    let mut acknowledged = 0;
    while !stop.is_cancelled() {
        app.append("order-1", ONE).await.expect(201);
        acknowledged += 1;
    }
    acknowledged
}

/// Events before the backup, and some while it is made; an event of the group `mailer` acked before. What was acknowledged
/// before it began, the cursor of the last event before it, and that of an event after it.
async fn backed_up<F: Future<Output = Output>>(
    app: &Arc<TestApp>,
    back_up: impl FnOnce() -> F,
) -> (u64, String, String) {
    let group = TestGroup::create(app, "mailer", json!({})).await;
    for _ in 0..50 {
        app.append("order-1", ONE).await.expect(201);
    }
    group.ack(&group.next("limit=1").await).await.expect(200);
    let cursor = |answer: Value| answer["cursor"].as_str().unwrap().to_owned();
    let before = cursor(app.append("order-2", ONE).await.expect(201).json());
    let stop = CancellationToken::new();
    let writer = tokio::spawn(append_until(Arc::clone(app), stop.clone()));
    expect_success(&back_up().await);
    // The backup knows nothing of this.
    group.ack(&group.next("limit=1").await).await.expect(200);
    stop.cancel();
    writer.await.unwrap();
    (50, before, cursor(app.append("order-3", ONE).await.expect(201).json()))
}

/// That a store has what was there before the backup, whole, and nothing that came after it.
async fn expect_restored(app: &TestApp, kept: u64, before: &str, after: &str) {
    let verify = tokio::process::Command::new(env!("CARGO_BIN_EXE_streamkeep"))
        .args(["verify", "--redis-url", &format!("redis+unix://{}", socket(&app.redis))])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    finish(verify.unwrap()).await.expect_success();
    let version = app.get("/streams/order-1?limit=1").await.expect(200).json()["version"].as_u64().unwrap();
    assert!(version >= kept, "{version} of at least {kept}");
    app.get("/streams/order-2").await.expect(200);
    app.get("/streams/order-3").await.expect_problem(404, "stream-not-found");
    app.get(&format!("/events?after={before}")).await.expect(200);
    app.get(&format!("/events?after={after}")).await.expect_problem(409, "history-diverged");
    // The group goes on behind what was acked before; what was acked since comes again.
    let next = app.get("/groups/mailer/next").await.expect(200).json();
    assert_eq!(next["deliveries"][0]["event"]["version"], 2, "{next}");
    app.append("order-1", ONE).await.expect(201);
}

/// A service on a Redis that begins with what is in `data`.
async fn restored(data: &Path, settings: &[(&str, &str)]) -> TestApp {
    let redis = TestRedis::start_with(|config| {
        expect_success(
            &Command::new("cp").arg("-R").arg(format!("{}/.", data.display())).arg(&config.data).output().unwrap(),
        );
        config.settings.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    })
    .await;
    TestApp::start_on(redis, 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_append_only_file_is_copied_while_events_come() {
    if !is_there("redis-cli") {
        return;
    }
    let (app, folder) = (Arc::new(TestApp::start(1).await), TempDir::new().unwrap());
    let target = folder.path().join("backup");
    let mut redis = app.redis.connection().await;
    // A rewrite is under way: the files that the copy is to have are about to change.
    let _: () = redis::cmd("BGREWRITEAOF").query_async(&mut redis).await.unwrap();
    let script = root().join("deploy/backup.sh");
    let back_up = || {
        let mut command = tokio::process::Command::new(&script);
        command.arg(app.redis.data.path()).arg(&target).args(["-s", &socket(&app.redis)]);
        async move { command.output().await.unwrap() }
    };
    let (kept, before, after) = backed_up(&app, back_up).await;
    let setting: Vec<String> =
        redis::cmd("CONFIG").arg("GET").arg("auto-aof-rewrite-percentage").query_async(&mut redis).await.unwrap();
    assert_ne!(setting[1], "0", "rewrites go on as before");
    expect_restored(&restored(&target, &[]).await, kept, &before, &after).await;
    // A backup is never written over another.
    let again =
        Command::new(&script).arg(app.redis.data.path()).arg(&target).args(["-s", &socket(&app.redis)]).output();
    assert!(!again.unwrap().status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_fetched_from_a_redis_that_is_elsewhere() {
    if !is_there("redis-cli") {
        return;
    }
    let (app, folder) = (Arc::new(TestApp::start(1).await), TempDir::new().unwrap());
    let snapshot = folder.path().join("dump.rdb");
    let back_up = || {
        let mut command = tokio::process::Command::new("redis-cli");
        command.args(["-s", &socket(&app.redis), "--rdb"]).arg(&snapshot);
        async move { command.output().await.unwrap() }
    };
    let (kept, before, after) = backed_up(&app, back_up).await;
    // For a snapshot's sake Redis takes another replication id, and yet nobody is to be told of a failover.
    app.get("/readyz").await.expect(200);
    let metrics = app.get("/metrics").await.expect(200).text;
    let failovers: Vec<_> = metrics.lines().filter(|line| line.starts_with("streamkeep_failovers_total")).collect();
    assert!(!failovers.is_empty() && failovers.iter().all(|line| line.ends_with(" 0")), "{failovers:?}");
    // With an append-only file that is not there yet, Redis would begin empty: it is switched on once the snapshot is read.
    let restored = restored(folder.path(), &[("appendonly", "no")]).await;
    let mut redis = restored.redis.connection().await;
    let _: () = redis::cmd("CONFIG").arg("SET").arg("appendonly").arg("yes").query_async(&mut redis).await.unwrap();
    eventually("all of it is in the append-only file", async || {
        let info: String = redis::cmd("INFO").arg("persistence").query_async(&mut redis.clone()).await.unwrap();
        info.contains("aof_rewrite_in_progress:0") && info.contains("aof_enabled:1")
    })
    .await;
    expect_restored(&restored, kept, &before, &after).await;
    restored.redis.signal("KILL");
    tokio::time::timeout(Duration::from_secs(20), async {
        eventually("it is there again", async || restored.get("/readyz").await.status == 200).await;
    })
    .await
    .unwrap();
    app.get("/streams/order-2").await.expect(200);
}
