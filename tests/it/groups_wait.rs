//! Waiting: who is woken by what, how soon, and what it costs Redis.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    app::{Answer, TestApp, TestRedis, eventually},
    groups::{Taken, TestGroup, append},
};

/// What INFO tells, as a number.
async fn info(redis: &TestRedis, section: &str, from: &str) -> u64 {
    let mut connection = redis.connection().await;
    let text: String = redis::cmd("INFO").arg(section).query_async(&mut connection).await.unwrap();
    let found = text.split(from).nth(1).unwrap_or("0");
    found.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

/// Function calls so far.
async fn calls(app: &TestApp) -> u64 {
    info(&app.redis, "commandstats", "cmdstat_fcall:calls=").await
}

/// Asks for an event in the background, and returns once the question has reached Redis.
async fn waiting(app: &TestApp, path: &str) -> JoinHandle<(Instant, Answer)> {
    let before = calls(app).await;
    let request = app.request(reqwest::Method::GET, path);
    let waiting = tokio::spawn(async move {
        let answer = Answer::of(request).await;
        (Instant::now(), answer)
    });
    eventually("the first look", async || calls(app).await > before).await;
    waiting
}

fn taken(answer: Answer) -> Vec<Taken> {
    answer.expect(200).json()["deliveries"].as_array().unwrap().iter().map(Taken::of).collect()
}

async fn two(partitions: u16) -> (TestApp, TestApp) {
    let app = TestApp::start(partitions).await;
    let other = TestApp::start_on(app.redis.clone(), partitions).await;
    (app, other)
}

test_app! {
    async fn a_wait_ends_empty(app) {
        TestGroup::create(&app, "g", json!({})).await;
        let began = Instant::now();
        let answer = app.get("/groups/g/next?wait=1").await.expect(200);
        assert_eq!(answer.json(), json!({"deliveries": []}));
        assert!((1_000..2_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    }
}

test_app! {
    async fn a_drain_ends_waits_as_empty(app) {
        TestGroup::create(&app, "g", json!({})).await;
        let cursor = append(&app, "a-1", "x", 1).await["cursor"].as_str().unwrap().to_owned();
        let taken = app.get("/groups/g/next").await.expect(200);
        let mut waits = vec![waiting(&app, "/groups/g/next?wait=60").await, waiting(&app, "/groups/g/next?wait=60").await];
        waits.push(waiting(&app, &format!("/groups/g?acked={cursor}&wait=60")).await);
        app.shutdown.cancel();
        let began = Instant::now();
        for (wait, expected) in waits.into_iter().zip([json!([]), json!([]), Value::Null]) {
            assert_eq!(wait.await.unwrap().1.expect(200).json()["deliveries"], expected);
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        drop(taken);
    }
}

test_app! {
    async fn a_group_that_is_deleted_ends_waits(app) {
        TestGroup::create(&app, "g", json!({})).await;
        let wait = waiting(&app, "/groups/g/next?wait=60").await;
        app.delete("/groups/g").await.expect(204);
        wait.await.unwrap().1.expect_problem(404, "group-not-found");
    }
}

test_app! {
    async fn of_ten_who_wait_one_gets_it(app) {
        let other = TestApp::start_on(app.redis.clone(), app.store.partitions().count()).await;
        TestGroup::create(&app, "g", json!({})).await;
        let mut waits = Vec::new();
        for number in 0..10 {
            let path = format!("/groups/g/next?consumer=c{number}&wait=2");
            waits.push(waiting(if number % 2 == 0 { &app } else { &other }, &path).await);
        }
        append(&app, "a-1", "x", 1).await;
        let mut got = Vec::new();
        for wait in waits {
            got.extend(taken(wait.await.unwrap().1));
        }
        assert_eq!(got.iter().map(|one| (one.name(), one.count)).collect::<Vec<_>>(), [("a-1@1".to_owned(), 1)]);
    }
}

test_app! {
    async fn all_who_wait_share_a_batch(app) {
        TestGroup::create(&app, "g", json!({})).await;
        let mut waits = Vec::new();
        for _ in 0..10 {
            waits.push(waiting(&app, "/groups/g/next?wait=20").await);
        }
        append(&app, "a-1", "x", 10).await;
        let mut versions = Vec::new();
        for wait in waits {
            versions.extend(taken(wait.await.unwrap().1).iter().map(|one| one.version));
        }
        versions.sort_unstable();
        assert_eq!(versions, (1..=10).collect::<Vec<u64>>());
    }
}

// Room in a full group is something to be woken by.
test_app! {
    async fn an_ack_wakes_those_who_wait_for_room(app) {
        let group = TestGroup::create(&app, "g", json!({"max_in_flight": 1})).await;
        append(&app, "a-1", "x", 3).await;
        for action in ["ack", "skip", "park"] {
            let first = group.one().await;
            let wait = waiting(&app, "/groups/g/next?wait=20").await;
            let began = Instant::now();
            match action {
                "ack" => group.ack(&[first]).await.expect(200),
                action => group.nack(&[first], action).await.expect(200),
            };
            let (at, answer) = wait.await.unwrap();
            let came = taken(answer);
            assert_eq!(came.len(), usize::from(action != "park"), "{action}");
            assert!(action == "park" || at - began < Duration::from_secs(5), "{action}: {:?}", at - began);
            if action != "park" {
                group.post("nack", json!({"leases": [came[0].lease], "action": "retry", "delay_ms": 0})).await.expect(200);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_who_wait_cost_two_calls_an_instance() {
    for partitions in [1, 4] {
        let (app, other) = two(partitions).await;
        TestGroup::create(&app, "g", json!({})).await;
        let connections = info(&app.redis, "clients", "connected_clients:").await;
        let mut waits = JoinSet::new();
        for number in 0..200 {
            let of = if number % 2 == 0 { &app } else { &other };
            let request = of.request(reqwest::Method::GET, &format!("/groups/g/next?consumer=c{number}&wait=8"));
            waits.spawn(async move { taken(Answer::of(request).await).len() });
        }
        let mut last = 0;
        eventually("all have looked, and the readers too", async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = calls(&app).await;
            now == std::mem::replace(&mut last, now) && now >= 200
        })
        .await;
        let more = info(&app.redis, "clients", "connected_clients:").await - connections;
        // One reader a partition and instance; shared connections that were not needed before.
        assert!(more <= 2 * u64::from(partitions) + 8, "{more} connections more");
        append(&app, "a-1", "x", 1).await;
        let got: usize = waits.join_all().await.into_iter().sum();
        let cost = calls(&app).await - last - 1;
        println!("{partitions} partitions: {cost} calls of es_next for one append, {more} connections more");
        assert_eq!(got, 1);
        assert!(cost <= 4, "{cost} calls");
    }
}

/// Repeats of each wake-up.
const REPEATS: usize = 30;

async fn measure(what: &str, app: &TestApp, waiter: &TestGroup<'_>, mut wake: impl AsyncFnMut(Option<Taken>)) {
    measure_from(what, app, waiter, async || {}, &mut wake).await;
}

/// As `measure`; `before` each wait something is to be done.
async fn measure_from(
    what: &str,
    app: &TestApp,
    waiter: &TestGroup<'_>,
    before: impl AsyncFn(),
    wake: &mut impl AsyncFnMut(Option<Taken>),
) {
    let mut took = Vec::new();
    let mut last = None;
    for _ in 0..REPEATS {
        before().await;
        let wait = waiting(waiter.app, &format!("{}/next?wait=20", waiter.path)).await;
        let began = Instant::now();
        wake(last.take()).await;
        let (at, answer) = wait.await.unwrap();
        took.push(at - began);
        let mut came = taken(answer);
        assert_eq!(came.len(), 1, "{what}");
        last = came.pop();
    }
    took.sort();
    let (middle, p99) = (took[REPEATS / 2], took[REPEATS * 99 / 100]);
    println!("{what}, {} partitions: median {middle:?}, p99 {p99:?}", app.store.partitions().count());
    assert!(p99 < Duration::from_millis(250), "{what}: {p99:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_at_the_other_instance_are_woken_at_once() {
    for partitions in [1, 4] {
        let (app, other) = two(partitions).await;
        let here = TestGroup::create(&app, "plain", json!({"max_deliveries": 1_000})).await;
        let there = TestGroup::at(&other, "plain");
        measure("append", &app, &there, async |last| {
            append(&app, "a-1", "x", 1).await;
            if let Some(last) = last {
                here.ack(&[last]).await.expect(200);
            }
        })
        .await;
        here.post("seek", json!({"to": "beginning"})).await.expect(200);
        let mut held = Some(here.next("limit=1000").await.remove(0));
        measure("nack", &app, &there, async |last| {
            let given = last.or_else(|| held.take()).unwrap();
            here.post("nack", json!({"leases": [given.lease], "action": "retry", "delay_ms": 0})).await.expect(200);
        })
        .await;
        let mut held = Some(TestGroup::create(&app, "replay", json!({"stream": "a-1"})).await.next("").await.remove(0));
        let (here, there) = (TestGroup::at(&app, "replay"), TestGroup::at(&other, "replay"));
        here.next("limit=1000").await;
        measure("replay", &app, &there, async |last| {
            here.nack(&[last.or_else(|| held.take()).unwrap()], "park").await.expect(200);
            here.post("parked/replay", json!({})).await.expect(200);
        })
        .await;
        let here = TestGroup::create(&app, "ordered", json!({"ordering": "stream"})).await;
        let there = TestGroup::at(&other, "ordered");
        append(&app, "a-1", "x", REPEATS).await;
        let mut held = Some(here.next("limit=1000").await.remove(0));
        measure("ordered release", &app, &there, async |last| {
            here.ack(&[last.or_else(|| held.take()).unwrap()]).await.expect(200);
        })
        .await;
        let here = TestGroup::create(&app, "paused", json!({})).await;
        let there = TestGroup::at(&other, "paused");
        let pause = async || drop(here.post("pause", json!({})).await.expect(200));
        let mut resume = async |_| drop(here.post("resume", json!({})).await.expect(200));
        measure_from("resume", &app, &there, pause, &mut resume).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_retry_comes_when_it_is_due() {
    let (app, other) = two(1).await;
    let here = TestGroup::create(&app, "g", json!({"max_deliveries": 1_000})).await;
    append(&app, "a-1", "x", 1).await;
    let mut held = here.one().await;
    let mut took = Vec::new();
    for _ in 0..10 {
        let wait = waiting(&other, "/groups/g/next?wait=20").await;
        let began = Instant::now();
        here.post("nack", json!({"leases": [held.lease], "action": "retry", "delay_ms": 200})).await.expect(200);
        let (at, answer) = wait.await.unwrap();
        took.push(at - began);
        held = taken(answer).remove(0);
    }
    took.sort();
    println!("a retry after 200 ms: {:?} to {:?}", took[0], took[9]);
    assert!(took[0] >= Duration::from_millis(199) && took[9] < Duration::from_millis(450), "{took:?}");
}

test_app! {
    async fn a_projection_is_waited_for(app) {
        let other = TestApp::start_on(app.redis.clone(), app.store.partitions().count()).await;
        let group = TestGroup::create(&app, "g", json!({})).await;
        let one_stream = TestGroup::create(&app, "one", json!({"stream": "a-1"})).await;
        let cursor = append(&app, "a-1", "x", 2).await["cursor"].as_str().unwrap().to_owned();
        let path = format!("/groups/g?acked={cursor}");
        assert_eq!(app.get(&path).await.expect(200).json()["acked"], false);
        let taken = group.next("limit=2").await;
        assert_eq!(app.get(&path).await.expect(200).json()["acked"], false, "delivered is not acked");
        let wait = waiting(&other, &format!("{path}&wait=20")).await;
        group.ack(&taken[..1]).await.expect(200);
        assert_eq!(app.get(&path).await.expect(200).json()["acked"], false);
        append(&app, "b-1", "x", 1).await;
        group.ack(&taken[1..]).await.expect(200);
        assert_eq!(wait.await.unwrap().1.expect(200).json()["acked"], true);
        assert_eq!(group.status().await.get("acked"), None);
        // A group of one stream counts in versions.
        let path = format!("/groups/one?acked={cursor}");
        let taken = one_stream.next("limit=2").await;
        assert_eq!(app.get(&path).await.expect(200).json()["acked"], false);
        append(&app, "a-1", "x", 1).await;
        one_stream.ack(&taken).await.expect(200);
        assert_eq!(app.get(&format!("{path}&wait=5")).await.expect(200).json()["acked"], true);
        for query in ["acked=x", "acked=", "wait=1", "acked=MDo&wait=61"] {
            app.get(&format!("/groups/g?{query}")).await.expect_problem(400, "invalid-parameter");
        }
    }
}

test_app! {
    async fn what_is_held_or_parked_is_not_settled(app) {
        let group = TestGroup::create(&app, "g", json!({"ordering": "stream"})).await;
        let cursor = append(&app, "a-1", "x", 3).await["cursor"].as_str().unwrap().to_owned();
        let acked = async || app.get(&format!("/groups/g?acked={cursor}&wait=1")).await.expect(200).json()["acked"] == true;
        let first = group.one().await;
        assert!(!acked().await);
        group.nack(&[first], "park").await.expect(200);
        for _ in 0..2 {
            group.ack(&[group.one().await]).await.expect(200);
        }
        assert!(!acked().await, "one is parked");
        group.post("parked/replay", json!({})).await.expect(200);
        assert!(!acked().await, "it is replayed");
        group.ack(&[group.one().await]).await.expect(200);
        assert!(acked().await);
    }
}
