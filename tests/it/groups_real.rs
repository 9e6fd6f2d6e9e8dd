//! A real log, drained by many consumers of which some forget what they took, on two instances; and Redis killed in the
//! middle.

use std::time::Instant;

use redis::Value;
use serde_json::json;
use streamkeep::store::Keys;

use crate::{
    app::{TestApp, TestRedis, eventually},
    consumers::{Consumers, names_of, real_log},
    groups::TestGroup,
    import_export::import,
};

/// Drains the real log with eight consumers on two instances; meanwhile `disturb` does its worst.
async fn drain(partitions: u16, ordering: &str, disturb: impl AsyncFnOnce(&TestRedis, &Consumers)) {
    let redis = TestRedis::start().await;
    let app = TestApp::start_on(redis.clone(), partitions).await;
    let other = TestApp::start_on(redis.clone(), partitions).await;
    let body = json!({"ordering": ordering, "lease_ms": 1000, "max_deliveries": 1_000});
    let group = TestGroup::create(&app, "g", body).await;
    let log = real_log();
    let names = names_of(&log);
    assert!(names.len() > 8_500, "{} events", names.len());
    let began = Instant::now();
    let consumers = Consumers::start(&[&app.url, &other.url], ordering == "stream");
    tokio::join!(import(&app.url, &log), disturb(&redis, &consumers));
    consumers.finish(&names).await;
    println!("{ordering}, {partitions} partitions: {:?}", began.elapsed());
    let counts = group.numbers(&["lag", "in_flight", "waiting", "held", "stopped_streams", "parked"]).await;
    assert_eq!(counts, [0; 6]);
    let (mut plain, keys) = (redis.connection().await, Keys::new("", app.store.partitions()));
    for partition in app.store.partitions().all() {
        let mut command = redis::cmd("XPENDING");
        let pending: (u64, Value, Value, Value) =
            command.arg(keys.log(partition)).arg("g").query_async(&mut plain).await.unwrap();
        assert_eq!(pending.0, 0);
    }
}

async fn nothing(_: &TestRedis, _: &Consumers) {}

/// Kills Redis several times, each time while acks are under way.
async fn kill(redis: &TestRedis, consumers: &Consumers) {
    for _ in 0..5 {
        consumers.settle_more(500).await;
        let pid = redis.server.pid();
        redis.signal("KILL");
        eventually("Redis runs again", async || redis.server.pid().is_some_and(|new| Some(new) != pid)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_log_is_drained_in_the_order_of_its_streams() {
    drain(1, "stream", nothing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_log_is_drained_in_the_order_of_its_streams_from_4_partitions() {
    drain(4, "stream", nothing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_log_is_drained_by_whoever_is_free() {
    drain(4, "none", nothing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_acked_comes_again_when_redis_is_killed() {
    drain(1, "stream", kill).await;
}
