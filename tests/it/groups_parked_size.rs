//! Very many parked events: counts are exact all the time, also after a restart, and the first page comes quickly.
//!
//! `STREAMKEEP_MODEL_SIZE` sets the number of events; 100,000 in long runs.

use std::time::{Duration, Instant};

use serde_json::json;
use streamkeep::{
    model::GroupName,
    store::{Nack, Store},
};

use crate::{
    app::{TestApp, TestRedis, eventually},
    group_model::variable,
    group_model_size::write,
    groups::TestGroup,
};

/// Takes so many events and parks them. Returns how many came.
async fn park(store: &Store, name: &GroupName) -> u64 {
    let mut leases = Vec::new();
    while leases.len() < 1_000 {
        let next = store.next(name, name, 1_000 - leases.len(), 0).await.unwrap();
        if next.deliveries.is_empty() && !next.more {
            break;
        }
        leases.extend(next.deliveries.into_iter().map(|delivery| delivery.lease));
    }
    store.nack(name, &Nack::park("the mail server does not answer"), &leases).await.unwrap();
    leases.len() as u64
}

/// The first page, and how long it took at best: what a busy machine adds is not ours.
async fn first_page(app: &TestApp) -> (serde_json::Value, Duration) {
    let (mut page, mut best) = (serde_json::Value::Null, Duration::MAX);
    for _ in 0..5 {
        let began = Instant::now();
        page = app.get("/groups/g/parked").await.expect(200).json();
        best = best.min(began.elapsed());
    }
    (page, best)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_parked_events_are_counted_and_paged() {
    let count = variable("STREAMKEEP_MODEL_SIZE").unwrap_or(20_000);
    let redis = TestRedis::start().await;
    let app = TestApp::start_on(redis.clone(), 1).await;
    let (group, name) = (TestGroup::create(&app, "g", json!({})).await, GroupName::parse("g").unwrap());
    let began = Instant::now();
    write(&mut redis.connection().await, "s-", count, 1, 0).await;
    println!("{count} events written in {:?}", began.elapsed());
    let (mut parked, members) = (0, ["parked", "lag", "in_flight", "waiting", "held"]);
    while parked < count {
        let more = park(&app.store, &name).await;
        assert!(more > 0, "{parked} of {count}");
        parked += more;
        assert_eq!(group.numbers(&members).await, [parked, count - parked, 0, 0, 0]);
    }
    println!("parked after {:?}", began.elapsed());
    let (before, _) = first_page(&app).await;
    let pid = redis.server.pid();
    redis.signal("KILL");
    eventually("Redis runs again", async || redis.server.pid().is_some_and(|new| Some(new) != pid)).await;
    eventually("it answers", async || app.get("/groups/g").await.status == 200).await;
    let app = TestApp::start_on(redis, 1).await;
    let group = TestGroup::at(&app, "g");
    assert_eq!(group.numbers(&members).await, [count, 0, 0, 0, 0]);
    let (page, took) = first_page(&app).await;
    assert_eq!(page, before);
    assert_eq!((page["parked"].as_array().unwrap().len(), &page["next"]), (100, &json!("0-100")));
    let began = Instant::now();
    group.status().await;
    println!("the first page took {took:?}, the status {:?}", began.elapsed());
    assert!(took < Duration::from_millis(300), "the first page took {took:?}");
    let replayed = group.post("parked/replay", json!({"count": 1_000})).await.expect(200).json();
    assert_eq!(replayed, json!({"replayed": 1_000}));
    assert_eq!(group.numbers(&["parked", "held"]).await, [count - 1_000, 1_000]);
    let dropped = app.delete("/groups/g/parked?count=500").await.expect(200).json();
    assert_eq!(dropped, json!({"dropped": 500}));
    assert_eq!(group.numbers(&["parked", "held"]).await, [count - 1_500, 1_000]);
}
