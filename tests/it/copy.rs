//! `streamkeep copy`: into another layout, beside writers, broken off, and with groups at work.

use std::{collections::BTreeSet, path::Path};

use rustix::process::Signal;
use serde_json::json;
use streamkeep::{
    model::StreamId,
    store::{Copier, Keys, StoreConfig},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Child,
};

use crate::{
    app::{TestApp, TestRedis, eventually},
    cluster_set::Cluster,
    feed::name,
    groups::{TestGroup, append, names},
    import_export::import,
    load::Load,
    log::read_all,
    program::{Run, finish, program, signal},
    proxy::{Fault, Proxy},
    verify::verify,
};

/// What writers have appended when a copy beside them is ended.
const APPENDED: usize = 1_000;

pub fn copying(from: &str, to: &str, partitions: u16, arguments: &[&str]) -> Child {
    let partitions = partitions.to_string();
    let fixed = ["copy", "--from", from, "--to", to, "--partitions", &partitions];
    program(&[&fixed, arguments].concat()).spawn().unwrap()
}

pub async fn copy(from: &TestApp, to: &TestRedis, partitions: u16) -> Run {
    finish(copying(&from.redis.url(), &to.url(), partitions, &[])).await
}

/// Waits until a copy that follows says that it has caught up.
pub async fn caught_up(follows: &mut Child) {
    let mut lines = BufReader::new(follows.stderr.as_mut().unwrap()).lines();
    while !lines.next_line().await.unwrap().expect("it ended before").starts_with("caught up") {}
}

/// All events, without their places in the log.
async fn events(app: &TestApp) -> BTreeSet<String> {
    let mut events = BTreeSet::new();
    for mut event in read_all(app, "limit=1000").await.0 {
        assert!(event.as_object_mut().unwrap().remove("position").is_some());
        assert!(events.insert(event.to_string()), "{event} stands there twice");
    }
    events
}

/// That a store is sound, and holds what `from` holds.
pub async fn expect_copy(from: &TestApp, to: &TestApp) {
    assert_eq!(events(to).await, events(from).await);
    let report = verify(&to.redis, to.store.partitions().count()).await;
    assert_eq!(report.findings, Vec::<String>::new());
}

/// Another number of partitions.
fn other_layout(app: &TestApp) -> u16 {
    if app.store.partitions().count() == 1 { 4 } else { 1 }
}

test_app! {
    async fn a_store_is_copied_while_it_takes_writes(app) {
        let (to, partitions) = (TestRedis::start().await, other_layout(&app));
        let load = Load::new(8, vec![app.url.clone()]);
        let writers = load.start();
        let mut follows = copying(&app.redis.url(), &to.url(), partitions, &["--follow"]);
        eventually("events are appended", async || load.recorder.acked() >= APPENDED).await;
        load.stop.cancel();
        writers.join_all().await;
        caught_up(&mut follows).await;
        signal(&follows, Signal::INT);
        finish(follows).await.expect_success();
        let target = TestApp::start_on(to, partitions).await;
        expect_copy(&app, &target).await;
        // Ids are known as before; versions go on.
        let body = json!({"events": [{"id": "known", "type": "t", "data": 1}]}).to_string();
        let first = app.append("more-1", &body).await.expect(201).json();
        let run = copy(&app, &target.redis, partitions).await.expect_success();
        assert!(run.stdout.starts_with("1 events copied, "), "{run:?}");
        let again = target.append("more-1", &body).await.expect(200).json();
        assert_eq!((&again["version"], &again["duplicate"]), (&first["version"], &json!(true)));
        append(&target, "more-1", "t", 1).await;
        assert_eq!(target.get("/streams/more-1").await.expect(200).json()["version"], 2);
    }
}

test_app! {
    async fn a_copy_that_has_caught_up_ends_beside_writers(app) {
        let (to, partitions) = (TestRedis::start().await, other_layout(&app));
        TestGroup::create(&app, "g", json!({})).await;
        let mut follows = copying(&app.redis.url(), &to.url(), partitions, &["--follow"]);
        caught_up(&mut follows).await;
        let load = Load::new(8, vec![app.url.clone()]);
        let writers = load.start();
        eventually("events are appended", async || load.recorder.acked() >= APPENDED).await;
        signal(&follows, Signal::INT);
        let run = finish(follows).await.expect_success();
        assert!(run.stdout.starts_with("group g: "), "{run:?}");
        load.stop.cancel();
        writers.join_all().await;
    }
}

test_app! {
    async fn a_copy_that_was_killed_goes_on(app) {
        const STREAMS: usize = 150;
        const EVENTS: usize = 30;
        for stream in 0..STREAMS {
            append(&app, &format!("many-{stream}"), "t", EVENTS).await;
        }
        let (to, partitions) = (TestRedis::start().await, other_layout(&app));
        let killed = copying(&app.redis.url(), &to.url(), partitions, &[]);
        let mut redis = to.connection().await;
        eventually("some events are copied", async || {
            let keys: Vec<String> = redis::cmd("KEYS").arg("*events:*").query_async(&mut redis).await.unwrap();
            keys.len() > STREAMS / 4
        })
        .await;
        signal(&killed, Signal::KILL);
        finish(killed).await;
        let run = copy(&app, &to, partitions).await.expect_success();
        assert!(!run.stdout.starts_with(&format!("{} events copied", STREAMS * EVENTS)), "it began anew: {run:?}");
        let run = copy(&app, &to, partitions).await.expect_success();
        assert!(run.stdout.starts_with("0 events copied, "), "{run:?}");
        expect_copy(&app, &TestApp::start_on(to, partitions).await).await;
    }
}

/// Takes so many one by one, and settles all but the fourth, which stays leased, and the seventh, which is parked.
async fn consume(group: &TestGroup<'_>, count: usize) -> BTreeSet<String> {
    let mut settled = BTreeSet::new();
    for number in 1..=count {
        let taken = group.next("").await;
        match number {
            4 => {}
            7 => drop(group.nack(&taken, "park").await.expect(200)),
            _ => {
                group.ack(&taken).await.expect(200);
                settled.extend(names(&taken));
            }
        }
    }
    settled
}

test_app! {
    async fn groups_go_on_before_what_they_had_not_settled(app) {
        for round in 0..3 {
            for stream in 0..10 {
                append(&app, &format!("work-{stream}"), if stream % 2 == 0 { "even" } else { "odd" }, 1 + round % 2).await;
            }
        }
        let plain = TestGroup::create(&app, "plain", json!({})).await;
        let ordered = TestGroup::create(&app, "ordered", json!({"ordering": "stream"})).await;
        let even = TestGroup::create(&app, "even", json!({"types": ["even"], "lease_ms": 2000})).await;
        let one = TestGroup::create(&app, "one", json!({"stream": "work-3"})).await;
        TestGroup::create(&app, "fresh", json!({"start": "end"})).await;
        let settled = [consume(&plain, 20).await, consume(&ordered, 15).await, consume(&even, 8).await];
        one.ack(&one.next("limit=2").await).await.expect(200);
        app.post("/groups/even/pause", &[], "").await.expect(200);

        let (to, partitions) = (TestRedis::start().await, other_layout(&app));
        let run = copy(&app, &to, partitions).await.expect_success();
        let target = TestApp::start_on(to, partitions).await;
        expect_copy(&app, &target).await;
        let all: BTreeSet<String> = names_of_events(&app, "").await;
        let evens = names_of_events(&app, "type=even").await;
        target.post("/groups/even/resume", &[], "").await.expect(200);
        for (name, settled, wanted) in [("plain", &settled[0], &all), ("ordered", &settled[1], &all), ("even", &settled[2], &evens)] {
            let group = TestGroup::at(&target, name);
            let came = group.drain().await;
            let open: BTreeSet<_> = wanted.difference(settled).cloned().collect();
            assert!(came.is_superset(&open), "{name}: {:?} does not come", open.difference(&came));
            assert!(came.is_subset(wanted), "{name}: {came:?}");
            let again = came.intersection(settled).count();
            if name != "even" {
                assert!(run.stdout.contains(&format!("group {name}: {} events to come, {again} of", came.len())), "{again}: {run:?}");
            }
        }
        assert_eq!(names(&TestGroup::at(&target, "one").next("limit=10").await), ["work-3@3", "work-3@4"]);
        assert_eq!(TestGroup::at(&target, "fresh").next("").await, []);
        let [before, now] = [&app, &target].map(|app| app.get("/groups/even"));
        let (before, now) = (before.await.expect(200).json(), now.await.expect(200).json());
        for setting in ["types", "start", "lease_ms", "ordering"] {
            assert_eq!(now[setting], before[setting]);
        }
        // The application's own PUT, as at each of its starts, still fits.
        target.put("/groups/even", r#"{"types":["even"],"lease_ms":2000}"#).await.expect(200);
    }
}

async fn names_of_events(app: &TestApp, query: &str) -> BTreeSet<String> {
    read_all(app, query).await.0.iter().map(name).collect()
}

test_app! {
    async fn versions_of_removed_events_stay_taken(app) {
        append(&app, "gone-1", "t", 5).await;
        append(&app, "gone-2", "t", 1).await;
        let mut redis = app.redis.connection().await;
        for (stream, ids) in [("gone-1", &["0-1", "0-3", "0-5"][..]), ("gone-2", &["0-1"])] {
            let id = StreamId::parse(stream).unwrap();
            let key = Keys::new("", app.store.partitions()).events(app.store.partition(&id), &id);
            redis::cmd("XDEL").arg(key).arg(ids).query_async::<()>(&mut redis).await.unwrap();
        }
        let (to, partitions) = (TestRedis::start().await, other_layout(&app));
        copy(&app, &to, partitions).await.expect_success();
        let target = TestApp::start_on(to, partitions).await;
        assert_eq!(events(&target).await, events(&app).await);
        assert_eq!(append(&target, "gone-1", "t", 1).await["version"], 6);
        assert_eq!(append(&target, "gone-2", "t", 1).await["version"], 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_reply_is_lost_is_copied_once() {
    for fault in [Fault::RequestLost, Fault::ReplyLost] {
        let (app, to) = (TestApp::start(1).await, TestRedis::start().await);
        append(&app, "a-1", "t", 5).await;
        append(&app, "b-1", "t", 5).await;
        let proxy = Proxy::start(&to).await;
        let config = StoreConfig { address: proxy.address().into(), ..TestApp::store_config(&to, 4) };
        let mut copier = Copier::open(TestApp::store_config(&app.redis, 1), config).await.unwrap();
        let lost = proxy.spoil("es_copy", fault).await;
        let step = copier.step().await.unwrap();
        assert!(lost.await.is_err(), "a call was lost");
        assert!(step.all);
        copier.check().await.unwrap();
        expect_copy(&app, &TestApp::start_on(to, 4).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused() {
    let (app, other) = (TestApp::start(1).await, TestApp::start(4).await);
    let empty = TestRedis::start().await;
    finish(copying(&empty.url(), &other.redis.url(), 4, &[])).await.expect_failure(&["the source: there is no store"]);
    append(&app, "a-1", "t", 3).await;
    append(&other, "b-1", "t", 1).await;
    copy(&app, &other.redis, 4).await.expect_failure(&["copy into an empty one"]);
    copy(&app, &other.redis, 2).await.expect_failure(&["the target: the store has 4 partition(s)"]);

    copy(&app, &empty, 2).await.expect_success();
    copy(&other, &empty, 2).await.expect_failure(&["a copy of another store"]);
    let copied = TestApp::start_on(empty, 2).await;
    append(&copied, "c-1", "t", 2).await;
    copy(&app, &copied.redis, 2).await.expect_failure(&["2 event(s) that the source does not have"]);
    append(&copied, "a-1", "t", 1).await;
    append(&app, "a-1", "t", 1).await;
    let before = events(&copied).await;
    copy(&app, &copied.redis, 2).await.expect_failure(&["another event as version 4 of a-1"]);
    assert_eq!(events(&copied).await, before, "nothing was changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_moves_into_a_cluster() {
    let app = TestApp::start(1).await;
    import(
        &app.url,
        &std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/receipt.ndjson")).unwrap(),
    )
    .await;
    let cluster = Cluster::start(3, false).await;
    finish(copying(&app.redis.url(), &cluster.url(), 6, &[])).await.expect_success();
    expect_copy(&app, &cluster.app(6).await).await;
}
