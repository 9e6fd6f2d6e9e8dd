//! Handing out and settling: next, ack, nack, extend.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use streamkeep::model::StreamId;

use crate::{
    app::{Answer, TestApp, eventually},
    groups::{Taken, TestGroup, append, leases, names},
};

test_app! {
    async fn every_event_is_delivered_once_and_settled(app) {
        append(&app, "order-1", "placed", 3).await;
        append(&app, "order-2", "placed", 2).await;
        let group = TestGroup::create(&app, "g", json!({})).await;
        let answer = app.get("/groups/g/next?limit=1&consumer=ada").await.expect(200).json();
        let delivery = &answer["deliveries"][0];
        let event = &delivery["event"];
        let (stream, version) = (event["stream"].as_str().unwrap(), &event["version"]);
        let read = app.get(&format!("/streams/{stream}/events/{version}")).await.expect(200).json();
        assert_eq!((event, &delivery["delivery_count"]), (&read, &json!(1)));
        let members: Vec<_> = delivery.as_object().unwrap().keys().cloned().collect();
        assert_eq!(members, ["deadline", "delivery_count", "event", "lease"]);
        let first = Taken::of(delivery);
        let rest = group.next("limit=1000&consumer=bob").await;
        assert_eq!(rest.len(), 4);
        assert!(group.next("limit=10").await.is_empty());
        let status = group.status().await;
        assert_eq!((&status["lag"], &status["in_flight"]), (&json!(0), &json!(5)));
        let consumers: Vec<_> =
            status["consumers"].as_array().unwrap().iter().map(|one| (one["name"].clone(), one["in_flight"].clone())).collect();
        assert_eq!(consumers, [(json!("ada"), json!(1)), (json!("bob"), json!(4))]);
        let done = group.ack(&rest).await.expect(200);
        assert_eq!((done.json(), done.header("cache-control")), (json!({"acked": 4, "already": 0, "lost": []}), "no-store"));
        let both = [vec![first], rest].concat();
        assert_eq!(group.ack(&both).await.expect(200).json(), json!({"acked": 1, "already": 4, "lost": []}));
        assert_eq!(group.ack(&both).await.expect(200).json(), json!({"acked": 0, "already": 5, "lost": []}));
        assert_eq!(group.numbers(&["lag", "in_flight", "waiting", "held", "parked"]).await, [0; 5]);
    }
}

test_app! {
    async fn head_takes_nothing(app) {
        append(&app, "order-1", "placed", 1).await;
        let group = TestGroup::create(&app, "g", json!({})).await;
        let head = app.head("/groups/g/next").await;
        assert_eq!((head.status.as_u16(), head.header("allow")), (405, "GET, POST, OPTIONS"));
        let delete = app.delete("/groups/g/next").await.expect_problem(405, "method-not-allowed");
        assert_eq!(delete.header("allow"), "GET, POST, OPTIONS");
        let options = Answer::of(app.request(Method::OPTIONS, "/groups/g/next")).await.expect(204);
        assert_eq!(options.header("allow"), "GET, POST, OPTIONS");
        assert_eq!(group.numbers(&["lag", "in_flight"]).await, [1, 0]);
        let posted = app.post("/groups/g/next?limit=5", &[], "").await.expect(200);
        assert_eq!(posted.header("cache-control"), "no-store");
        assert_eq!(posted.json()["deliveries"].as_array().unwrap().len(), 1);
        for query in ["limit=0", "limit=1001", "wait=61", "wait=-1", "wait=1.5", "consumer=", "consumer=a%2Fb", "x=1", "limit=1&limit=1"] {
            app.get(&format!("/groups/g/next?{query}")).await.expect_problem(400, "invalid-parameter");
        }
        app.get("/groups/a%20b/next").await.expect_problem(400, "invalid-group-name");
    }
}

test_app! {
    async fn an_event_whose_lease_has_run_out_comes_again(app) {
        append(&app, "order-1", "placed", 2).await;
        let group = TestGroup::create(&app, "g", json!({"lease_ms": 1000})).await;
        let began = Instant::now();
        let old = group.next("limit=2&consumer=slow").await;
        let mut again: Vec<Taken> = Vec::new();
        eventually("the lease runs out", async || {
            again.extend(group.next("limit=1&consumer=fast").await);
            !again.is_empty()
        })
        .await;
        assert!(began.elapsed() >= Duration::from_secs(1));
        assert_eq!(again[0].count, 2);
        let (stale, kept): (Vec<_>, Vec<_>) = old.into_iter().partition(|taken| taken.name() == again[0].name());
        let lost = group.ack(&stale).await.expect_problem(409, "lease-lost").json();
        assert_eq!(lost["lost"], json!([{"lease": stale[0].lease, "reason": "handed-out-again"}]));
        // A deadline that has passed does not by itself end a lease.
        let mixed = json!({"leases": [stale[0].lease, kept[0].lease, kept[0].lease]});
        let answer = group.post("ack", mixed).await.expect(200).json();
        assert_eq!((&answer["acked"], answer["lost"].as_array().unwrap().len()), (&json!(1), 1));
        group.ack(&again).await.expect(200);
        let late = group.ack(&stale).await.expect(200).json();
        assert_eq!(late, json!({"acked": 0, "already": 1, "lost": []}), "its event is settled");
    }
}

test_app! {
    async fn what_is_given_back_comes_again_with_a_backoff_and_parks_in_the_end(app) {
        append(&app, "order-1", "placed", 1).await;
        let settings = json!({"max_deliveries": 3, "backoff_ms": [50, 100], "lease_ms": 60_000});
        let group = TestGroup::create(&app, "g", settings).await;
        let mut nacked = Instant::now();
        for (count, backoff) in [(1, 0), (2, 50)] {
            let taken = group.next("wait=5").await;
            assert_eq!(taken[0].count, count);
            assert!(nacked.elapsed() >= Duration::from_millis(backoff), "{:?}", nacked.elapsed());
            nacked = Instant::now();
            let answer = group.nack(&taken, "retry").await.expect(200).json();
            assert_eq!(answer, json!({"nacked": 1, "already": 0, "lost": []}));
            assert_eq!(group.numbers(&["waiting", "in_flight"]).await, [1, 0]);
            let lost = group.ack(&taken).await.expect_problem(409, "lease-lost").json();
            assert_eq!(lost["lost"][0]["reason"], "given-back");
        }
        let third = group.next("wait=5").await;
        assert_eq!(third[0].count, 3);
        assert!(nacked.elapsed() >= Duration::from_millis(100), "{:?}", nacked.elapsed());
        group.nack(&third, "retry").await.expect(200);
        assert_eq!(group.numbers(&["waiting", "in_flight", "parked"]).await, [0, 0, 1]);
        let lost = group.ack(&third).await.expect_problem(409, "lease-lost").json();
        assert_eq!(lost["lost"][0]["reason"], "parked");
    }
}

test_app! {
    async fn a_nack_parks_skips_or_sets_its_own_delay(app) {
        append(&app, "order-1", "placed", 3).await;
        let group = TestGroup::create(&app, "g", json!({"backoff_ms": [3_600_000]})).await;
        let taken = group.next("limit=3").await;
        let body = |at: usize, more: Value| {
            let mut body = json!({"leases": [taken[at].lease]});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        group.post("nack", body(0, json!({"action": "skip", "reason": "old"}))).await.expect(200);
        group.post("nack", body(1, json!({"action": "park", "reason": "bad \u{1F4A5}\n\"x\""}))).await.expect(200);
        group.post("nack", body(2, json!({"action": "retry", "delay_ms": 0}))).await.expect(200);
        let again = group.one().await;
        assert_eq!((again.name(), again.count), (taken[2].name(), 2));
        assert_eq!(group.ack(&taken[..1]).await.expect(200).json()["already"], 1, "skipped is settled");
        let parked = app.get("/groups/g/parked").await.expect(200).json();
        assert_eq!(parked["parked"][0]["last_error"], "bad \u{1F4A5}\n\"x\"");
        for (bad, status, code) in [
            (json!({"action": "retry", "delay_ms": 604_800_001}), 422, "invalid-group"),
            (json!({"action": "park", "delay_ms": 1}), 422, "invalid-group"),
            (json!({"action": "park", "reason": "x".repeat(1_001)}), 422, "invalid-group"),
            (json!({"action": "drop"}), 400, "invalid-json"),
            (json!({}), 400, "invalid-json"),
            (json!({"action": "park", "reason": null}), 400, "invalid-json"),
        ] {
            group.post("nack", body(0, bad)).await.expect_problem(status, code);
        }
    }
}

test_app! {
    async fn a_lease_is_extended(app) {
        append(&app, "order-1", "placed", 2).await;
        let group = TestGroup::create(&app, "g", json!({"lease_ms": 1000})).await;
        let (one, other) = (group.next("").await, group.next("").await);
        let body = json!({"leases": leases(&one), "lease_ms": 60_000});
        let answer = group.post("extend", body).await.expect(200).json();
        assert_eq!(answer["extended"][0]["lease"], one[0].lease.as_str());
        let mut came: Vec<Taken> = Vec::new();
        eventually("the other lease runs out", async || {
            came.extend(group.next("limit=10").await);
            !came.is_empty()
        })
        .await;
        assert_eq!(names(&came), names(&other));
        group.ack(&one).await.expect(200);
        let answer = group.post("extend", json!({"leases": [other[0].lease, one[0].lease]})).await.expect(200).json();
        let reason = json!([{"lease": other[0].lease, "reason": "handed-out-again"}]);
        assert_eq!(answer, json!({"extended": [], "already": 1, "lost": reason}));
        group.post("extend", json!({"leases": leases(&other)})).await.expect_problem(409, "lease-lost");
        group.post("extend", json!({"leases": leases(&came), "lease_ms": 999})).await.expect_problem(422, "invalid-group");
    }
}

test_app! {
    async fn tokens_are_opaque_and_of_one_group(app) {
        append(&app, "order-1", "placed", 1).await;
        let (group, other) = (TestGroup::create(&app, "g", json!({})).await, TestGroup::create(&app, "h", json!({})).await);
        let (taken, foreign) = (group.next("").await, other.next("").await);
        for what in ["ack", "extend"] {
            group.post(what, json!({"leases": leases(&foreign)})).await.expect_problem(409, "lease-lost");
            for bad in ["", "x", "MDox", "a b", &taken[0].lease[1..], &format!("{}AA", taken[0].lease)] {
                let answer = group.post(what, json!({"leases": [taken[0].lease, bad]})).await;
                let problem = answer.expect_problem(400, "invalid-lease").json();
                assert_eq!(problem["errors"][0]["pointer"], "#/leases/1", "{bad}");
            }
            group.post(what, json!({"leases": []})).await.expect_problem(422, "invalid-group");
            group.post(what, json!({"leases": [1]})).await.expect_problem(400, "invalid-json");
            group.post(what, json!({"leases": [taken[0].lease], "x": 1})).await.expect_problem(400, "invalid-json");
            group.post(what, json!([])).await.expect_problem(400, "invalid-json");
            group.post(what, json!({"leases": vec!["x"; 1_001]})).await.expect_problem(413, "payload-too-large");
        }
        assert_eq!(group.ack(&taken).await.expect(200).json()["acked"], 1, "the bad requests did nothing");
        assert_eq!(other.ack(&foreign).await.expect(200).json()["acked"], 1);
    }
}

test_app! {
    async fn a_lease_from_a_partition_that_the_group_does_not_read_is_foreign(app) {
        for number in 0..8 {
            append(&app, &format!("order-{number}"), "placed", 1).await;
        }
        let one = TestGroup::create(&app, "one", json!({"stream": "order-0"})).await;
        let all = TestGroup::create(&app, "all", json!({})).await.next("limit=100").await;
        let mut redis = app.redis.connection().await;
        let before: u64 = redis::cmd("DBSIZE").query_async(&mut redis).await.unwrap();
        for what in ["ack", "extend"] {
            let lost = one.post(what, json!({"leases": leases(&all)})).await.expect_problem(409, "lease-lost").json();
            assert!(lost["lost"].as_array().unwrap().iter().all(|one| one["reason"] == "sought"), "{lost}");
        }
        one.nack(&all, "retry").await.expect_problem(409, "lease-lost");
        let after: u64 = redis::cmd("DBSIZE").query_async(&mut redis).await.unwrap();
        assert!(after <= before + 4, "no copy of the group where it does not belong: {before} keys, then {after}");
        let keys: Vec<String> = redis::cmd("KEYS").arg("*group:one").query_async(&mut redis).await.unwrap();
        assert_eq!(keys.len(), 1, "{keys:?}");
    }
}

test_app! {
    async fn no_more_is_in_flight_than_allowed(app) {
        append(&app, "order-1", "placed", 5).await;
        let group = TestGroup::create(&app, "g", json!({"max_in_flight": 2})).await;
        let taken = group.next("limit=10").await;
        assert_eq!(taken.len(), 2);
        assert!(group.next("limit=10").await.is_empty());
        group.ack(&taken[..1]).await.expect(200);
        assert_eq!(group.next("limit=10").await.len(), 1);
    }
}

/// An instance that does not know of a change yet finds out.
#[tokio::test]
async fn two_instances_serve_one_group() {
    for partitions in [1, 4] {
        let app = TestApp::start(partitions).await;
        let other = TestApp::start_on(app.redis.clone(), partitions).await;
        append(&app, "order-1", "placed", 4).await;
        let (here, there) = (TestGroup::create(&app, "g", json!({})).await, TestGroup::at(&other, "g"));
        let (one, two) = (here.next("").await, there.next("").await);
        assert_ne!(one[0].name(), two[0].name());
        assert_eq!(there.ack(&one).await.expect(200).json()["acked"], 1);
        here.post("seek", json!({"to": "beginning"})).await.expect(200);
        assert_eq!(there.next("limit=10").await.len(), 4);
        there.ack(&two).await.expect_problem(409, "lease-lost");
        app.put("/groups/g", r#"{"max_in_flight":4}"#).await.expect(200);
        append(&app, "order-1", "placed", 1).await;
        assert!(there.next("").await.is_empty(), "the new setting holds there at once");
        app.delete("/groups/g").await.expect(204);
        other.get("/groups/g/next").await.expect_problem(404, "group-not-found");
    }
}

/// An instance that knew the group by this name which was deleted looks where the new one has its events.
#[tokio::test]
async fn a_group_made_anew_with_another_source_is_found_by_all() {
    let app = TestApp::start(4).await;
    let other = TestApp::start_on(app.redis.clone(), 4).await;
    let there = TestGroup::at(&other, "g");
    let partition = |stream: &str| app.store.partition(&StreamId::parse(stream).unwrap());
    let elsewhere = (0..).map(|number| format!("pay-{number}"));
    let elsewhere = elsewhere.into_iter().find(|stream| partition(stream) != partition("order-0")).unwrap();
    append(&app, "order-0", "placed", 1).await;
    append(&app, &elsewhere, "paid", 1).await;
    let (one, two) = (json!({"stream": "order-0"}), json!({"categories": ["pay"]}));
    for (source, wait) in [(&one, ""), (&two, ""), (&one, ""), (&two, "wait=5"), (&one, "wait=5"), (&two, "wait=5")] {
        TestGroup::create(&app, "g", source.clone()).await;
        let began = Instant::now();
        assert_eq!(there.next(wait).await.len(), 1, "{source} {wait}");
        assert!(began.elapsed() < Duration::from_secs(4), "nobody told that there was something: {source}");
        let mut redis = app.redis.connection().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("*group:g").query_async(&mut redis).await.unwrap();
        assert_eq!(keys.len(), if source == &one { 1 } else { 4 }, "{source}: {keys:?}");
        app.delete("/groups/g").await.expect(204);
    }
}
