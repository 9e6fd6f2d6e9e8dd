//! `streamkeep copy` of several partitions into one: in the order of time, so that whoever begins at a time gets just that.

use std::collections::BTreeSet;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    app::{TestApp, TestRedis, eventually},
    copy::{caught_up, copy, copying, expect_copy},
    feed::{Feed, name},
    groups::{TestGroup, append},
    load::Load,
    log::read_all,
    program::{finish, signal},
};

/// What writers have appended before a copy begins: several pages of each partition.
const BEFORE: usize = 2_500;
/// What they have appended when it ends.
const IN_ALL: usize = 4_000;

fn time(event: &Value) -> &str {
    event["time"].as_str().unwrap()
}

/// How many entries the only log of a target has.
async fn copied(to: &TestRedis) -> usize {
    redis::cmd("XLEN").arg("log").query_async(&mut to.connection().await).await.unwrap()
}

/// That times never go back in the log, and that what begins at a time has all that is not older, and nothing else.
async fn expect_order_of_time(target: &TestApp) {
    let events = read_all(target, "limit=1000").await.0;
    for (before, behind) in events.iter().zip(&events[1..]) {
        assert!(time(before) <= time(behind), "{behind} stands behind {before}");
    }
    for tenth in [1, 4, 7, 9] {
        let time = time(&events[events.len() * tenth / 10]);
        let since: BTreeSet<_> = events.iter().filter(|event| self::time(event) >= time).map(name).collect();
        let read = Feed::open(target, &format!("/events?from_time={time}"), None).await.until_caught_up().await;
        assert_eq!(read.iter().map(name).collect::<BTreeSet<_>>(), since, "from {time}");
        let group = TestGroup::create(target, &format!("since-{tenth}"), json!({ "start": time })).await;
        let came = group.drain().await;
        assert_eq!(came, since, "a group from {time}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_become_one_in_the_order_of_time() {
    let (app, to) = (TestApp::start(4).await, TestRedis::start().await);
    let load = Load::new(8, vec![app.url.clone()]);
    let writers = load.start();
    eventually("events are appended", async || load.recorder.acked() >= BEFORE).await;
    let killed = copying(&app.redis.url(), &to.url(), 1, &["--follow"]);
    eventually("some events are copied", async || copied(&to).await > BEFORE / 10).await;
    signal(&killed, Signal::KILL);
    finish(killed).await;
    let mut follows = copying(&app.redis.url(), &to.url(), 1, &["--follow"]);
    eventually("events are appended", async || load.recorder.acked() >= IN_ALL).await;
    load.stop.cancel();
    writers.join_all().await;
    caught_up(&mut follows).await;
    signal(&follows, Signal::INT);
    finish(follows).await.expect_success();
    let target = TestApp::start_on(to, 1).await;
    expect_copy(&app, &target).await;
    expect_order_of_time(&target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_does_not_follow_ends_beside_writers() {
    let (app, to) = (TestApp::start(4).await, TestRedis::start().await);
    let load = Load::new(8, vec![app.url.clone()]);
    let writers = load.start();
    eventually("events are appended", async || load.recorder.acked() >= BEFORE / 10).await;
    let before = app.get("/events?limit=1000").await.expect(200).json()["events"].as_array().unwrap().len();
    copy(&app, &to, 1).await.expect_success();
    assert!(copied(&to).await >= before, "what was there when it began is copied");
    load.stop.cancel();
    writers.join_all().await;
    copy(&app, &to, 1).await.expect_success();
    let target = TestApp::start_on(to, 1).await;
    expect_copy(&app, &target).await;
    expect_order_of_time(&target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_come_in_the_order_of_time_too() {
    const LARGE: usize = 1_000_000;
    let (app, to) = (TestApp::start(4).await, TestRedis::start().await);
    append(&app, "small-0", "t", 700).await;
    let large = json!({"events": [{"type": "t", "data": "x".repeat(LARGE)}]}).to_string();
    for number in 0..40 {
        app.append(&format!("large-{}", number % 10), &large).await.expect(201);
        append(&app, &format!("small-{}", number % 10), "t", 1).await;
    }
    copy(&app, &to, 1).await.expect_success();
    let target = TestApp::start_on(to, 1).await;
    expect_copy(&app, &target).await;
    expect_order_of_time(&target).await;
}
