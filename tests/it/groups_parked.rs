//! Parked events: listed, replayed, dropped; and what the status tells.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    app::{TestApp, TestRedis, eventually},
    groups::{TestGroup, append, names},
};

/// A group with so many events parked, of streams a-0 to a-3 in turn.
async fn with_parked(app: &TestApp, settings: Value, count: usize) -> TestGroup<'_> {
    for number in 0..count {
        append(app, &format!("a-{}", number % 4), "x", 1).await;
    }
    let group = TestGroup::create(app, "g", settings).await;
    let mut parked = 0;
    while parked < count {
        let taken = group.next("limit=100").await;
        parked += taken.len();
        let leases: Vec<_> = taken.iter().map(|one| one.lease.clone()).collect();
        let body = json!({"leases": leases, "action": "park", "reason": "bad luck"});
        group.post("nack", body).await.expect(200);
    }
    group
}

async fn page(app: &TestApp, query: &str) -> (Vec<Value>, Value) {
    let answer = app.get(&format!("/groups/g/parked?{query}")).await.expect(200);
    assert_eq!(answer.header("cache-control"), "no-store");
    let mut page = answer.json();
    (page["parked"].as_array().unwrap().clone(), page["next"].take())
}

test_app! {
    async fn parked_events_are_listed_in_pages(app) {
        let _group = with_parked(&app, json!({}), 10).await;
        let (all, next) = page(&app, "").await;
        assert_eq!((all.len(), next), (10, Value::Null));
        let one = &all[0];
        let event = &one["event"];
        let read = app.get(&format!("/streams/{}/events/{}", one["stream"].as_str().unwrap(), one["version"])).await.json();
        assert_eq!((event, &one["reason"], &one["last_error"]), (&read, &json!("nack"), &json!("bad luck")));
        assert_eq!(one["delivery_count"], 1);
        assert!(one["parked_at"].as_str().unwrap() >= event["time"].as_str().unwrap());
        let (mut paged, mut after) = (Vec::new(), String::new());
        loop {
            let (mut some, next) = page(&app, &format!("limit=3{after}")).await;
            assert!(some.len() <= 3);
            paged.append(&mut some);
            let Some(next) = next.as_str() else { break };
            after = format!("&after={next}");
        }
        assert_eq!(paged, all);
        for query in ["limit=0", "limit=1001", "after=x", "after=999-1", "after=", "x=1"] {
            app.get(&format!("/groups/g/parked?{query}")).await.expect_problem(400, "invalid-parameter");
        }
    }
}

test_app! {
    async fn parked_events_are_replayed_and_dropped_all_or_some(app) {
        let group = with_parked(&app, json!({}), 12).await;
        let parked = async || group.numbers(&["parked"]).await[0];
        let replay = async |body: Value| group.post("parked/replay", body).await.expect(200).json()["replayed"].clone();
        let drop = async |query: &str| app.delete(&format!("/groups/g/parked?{query}")).await.expect(200).json()["dropped"].clone();
        let (all, _) = page(&app, "").await;
        let ids: Vec<_> = all.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(replay(json!({"count": 1})).await, 1);
        assert_eq!(replay(json!({"ids": [ids[0], ids[1], ids[1], "0-999999"]})).await, 1, "the first is parked no more");
        assert_eq!(drop(&format!("ids={},{}", ids[2], ids[3])).await, 2);
        assert_eq!(drop("count=1").await, 1);
        assert_eq!(parked().await, 7);
        let taken = group.next("limit=10").await;
        assert_eq!((taken.len(), taken[0].count, taken[1].count), (2, 1, 1), "counts begin anew");
        group.nack(&taken[..1], "park").await.expect(200);
        assert_eq!(replay(json!({"ids": [taken[0].lease]})).await, 1, "a lease names its event");
        let left: Vec<_> = page(&app, "").await.0;
        let of_a_1 = left.iter().filter(|one| one["stream"] == "a-1").count();
        assert_eq!(replay(json!({"stream": "a-1"})).await, of_a_1);
        let of_a_2 = left.iter().filter(|one| one["stream"] == "a-2").count();
        assert_eq!(drop("stream=a-2").await, of_a_2);
        assert_eq!(replay(json!({"stream": "never"})).await, 0);
        let rest = parked().await;
        assert_eq!(replay(json!({})).await, rest);
        assert_eq!((parked().await, drop("").await), (0, json!(0)));
        for bad in [
            json!({"count": 0}), json!({"stream": "a/b"}), json!({"ids": ["x"]}), json!({"count": 1, "stream": "a"}),
            json!({"stream": "a", "ids": []}), json!({"ids": vec!["0-1"; 1_001]}),
        ] {
            group.post("parked/replay", bad).await.expect_problem(422, "invalid-group");
        }
        for bad in [json!({"count": -1}), json!({"all": true}), json!([]), json!({"ids": null})] {
            group.post("parked/replay", bad).await.expect_problem(400, "invalid-json");
        }
        for bad in ["count=0", "stream=a%2Fb", "ids=x", "count=1&stream=a", "x=1"] {
            app.delete(&format!("/groups/g/parked?{bad}")).await.expect_problem(400, "invalid-parameter");
        }
    }
}

test_app! {
    async fn a_parked_event_stops_its_stream_until_it_is_replayed_or_dropped(app) {
        let settings = json!({"ordering": "stream", "on_exhausted": "park_stream", "max_deliveries": 1});
        append(&app, "a-1", "x", 5).await;
        append(&app, "b-2", "x", 1).await;
        let group = TestGroup::create(&app, "g", settings).await;
        let first = group.next("limit=10").await;
        assert_eq!(names(&first), ["a-1@1", "b-2@1"], "one of a stream at a time");
        let (of_a, of_b): (Vec<_>, Vec<_>) = first.into_iter().partition(|one| one.stream == "a-1");
        group.ack(&of_b).await.expect(200);
        group.nack(&of_a, "retry").await.expect(200);
        assert!(group.next("limit=10").await.is_empty(), "the last delivery parks, and the stream stands");
        assert_eq!(group.numbers(&["parked", "stopped_streams", "held"]).await, [1, 1, 4]);
        append(&app, "b-2", "x", 1).await;
        group.ack(&[group.one().await]).await.expect(200);
        group.post("parked/replay", json!({})).await.expect(200);
        let again = group.one().await;
        assert_eq!((again.name(), group.numbers(&["stopped_streams"]).await), ("a-1@1".to_owned(), vec![0]));
        group.ack(&[again]).await.expect(200);
        group.nack(&[group.one().await], "park").await.expect(200);
        assert_eq!(group.numbers(&["parked", "stopped_streams", "held"]).await, [1, 1, 3]);
        app.delete("/groups/g/parked?stream=a-1").await.expect(200);
        for version in 3..=5 {
            let next = group.one().await;
            assert_eq!(next.name(), format!("a-1@{version}"));
            group.ack(&[next]).await.expect(200);
        }
        assert_eq!(group.numbers(&["lag", "parked", "stopped_streams", "held", "in_flight"]).await, [0; 5]);
    }
}

test_app! {
    async fn the_status_tells_lag_ages_and_who_is_idle(app) {
        let other = TestApp::start_with(app.redis.clone(), app.store.partitions().count(), |config| {
            config.group_idle = Duration::ZERO;
        })
        .await;
        let group = TestGroup::create(&app, "g", json!({})).await;
        let fresh = group.status().await;
        assert_eq!((&fresh["lag_seconds"], &fresh["oldest_unacked_seconds"]), (&json!(0.0), &json!(0.0)));
        assert_eq!((&fresh["idle"], &fresh["consumers"]), (&json!(false), &json!([])));
        assert_eq!(other.get("/groups/g").await.expect(200).json()["idle"], true);
        append(&app, "a-1", "x", 2).await;
        append(&app, "b-2", "x", 1).await;
        eventually("it lags", async || group.status().await["lag_seconds"].as_f64().unwrap() > 0.05).await;
        assert_eq!(group.numbers(&["lag"]).await, [3]);
        let taken = group.next("limit=3&consumer=ada").await;
        let status = group.status().await;
        assert_eq!((&status["lag"], &status["lag_seconds"], &status["in_flight"]), (&json!(0), &json!(0.0), &json!(3)));
        assert!(status["oldest_unacked_seconds"].as_f64().unwrap() > 0.05, "{status}");
        let ada = &status["consumers"][0];
        assert_eq!((&ada["name"], &ada["in_flight"]), (&json!("ada"), &json!(3)));
        assert!(ada["last_seen"].as_str().unwrap() >= fresh["last_asked"].as_str().unwrap(), "{status}");
        group.ack(&taken).await.expect(200);
        assert_eq!(group.status().await["oldest_unacked_seconds"], 0.0);
        append(&app, "a-1", "x", 1).await;
        assert_eq!(group.numbers(&["lag", "in_flight"]).await, [1, 0]);
    }
}

test_app! {
    async fn counts_are_exact_though_nobody_asks(app) {
        append(&app, "a-1", "x", 3).await;
        let group = TestGroup::create(&app, "g", json!({"lease_ms": 1000, "max_deliveries": 1})).await;
        assert_eq!(group.next("limit=2").await.len(), 2);
        eventually("the leases run out", async || {
            group.numbers(&["in_flight", "parked", "lag"]).await == [0, 2, 1]
        })
        .await;
        assert_eq!(page(&app, "").await.0[0]["reason"], "exhausted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_a_restart() {
    let redis = TestRedis::start().await;
    let app = TestApp::start_on(redis.clone(), 4).await;
    let group = with_parked(&app, json!({"max_in_flight": 3}), 5).await;
    append(&app, "b-1", "x", 2).await;
    let held = group.next("").await;
    let before = group.numbers(&["lag", "in_flight", "parked"]).await;
    assert_eq!(before, [1, 1, 5]);
    let pid = redis.server.pid();
    redis.signal("KILL");
    eventually("Redis runs again", async || redis.server.pid().is_some_and(|new| Some(new) != pid)).await;
    eventually("it answers", async || app.get("/groups/g").await.status == 200).await;
    assert_eq!(group.numbers(&["lag", "in_flight", "parked"]).await, before);
    assert_eq!(group.ack(&held).await.expect(200).json()["acked"], 1);
    let other = TestApp::start_on(redis, 4).await;
    assert_eq!(TestGroup::at(&other, "g").one().await.name(), "b-1@2");
}
