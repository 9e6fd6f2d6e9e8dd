//! Waiting: who is woken by what, how soon, and what it costs Redis.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    app::{Answer, TestApp, eventually},
    groups::{Taken, TestGroup, append},
    metrics::Scrape,
};

/// Function calls so far.
pub async fn calls(app: &TestApp) -> u64 {
    app.redis.calls_of("fcall").await
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
        let app = TestApp::start(partitions).await;
        let other = TestApp::start_on(app.redis.clone(), partitions).await;
        TestGroup::create(&app, "g", json!({})).await;
        let connections = app.redis.clients().await;
        let mut waits = JoinSet::new();
        for number in 0..200 {
            let of = if number % 2 == 0 { &app } else { &other };
            let request = of.request(reqwest::Method::GET, &format!("/groups/g/next?consumer=c{number}&wait=8"));
            waits.spawn(async move { taken(Answer::of(request).await).len() });
        }
        for of in [&app, &other] {
            let all = async || Scrape::of(of).await.get("waiting_requests") > 99.5;
            eventually("all wait", all).await;
        }
        let mut last = 0;
        eventually("all have looked, and the readers too", async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = calls(&app).await;
            now == std::mem::replace(&mut last, now)
        })
        .await;
        let more = app.redis.clients().await - connections;
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
