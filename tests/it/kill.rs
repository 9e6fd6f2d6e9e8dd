//! Redis is killed, or hangs, under load: nothing acknowledged is lost, and the service recovers by itself.

use std::time::{Duration, Instant};

use fastrand::Rng;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;

use crate::{
    app::{TestApp, TestRedis, eventually},
    checker::{Violation, check},
    end::read_end,
    load::{Load, is_open},
    record::Outcome,
};

/// Fewest appends that are acknowledged between two kills.
const ACKED: usize = 1_000;

/// Ends the load, reads what is stored, and prints what became of it.
pub async fn conclude(load: &Load, writers: JoinSet<()>, redis: &mut MultiplexedConnection) {
    load.stop.cancel();
    writers.join_all().await;
    let calls = load.recorder.take();
    let end = read_end(&load.urls[0], redis, 1).await;
    let violations = check(&calls, &end);
    let unknown = calls.iter().filter(|call| call.outcome == Outcome::Unknown).count();
    let refused = calls.iter().filter(|call| is_open(&call.outcome)).count() - unknown;
    let lost = violations.iter().filter(|violation| matches!(violation, Violation::Lost { .. })).count();
    let settled = calls.iter().filter(|call| matches!(&call.outcome, Outcome::Ok(told) if told.duplicate)).count();
    println!(
        "{} calls, {} acked, {lost} lost, {unknown} unknown, {refused} told to try again, {settled} duplicates, \
         {} violations",
        calls.len(),
        load.recorder.acked(),
        violations.len()
    );
    assert_eq!(violations, []);
}

/// Waits until so many further appends are acknowledged, and then for a random moment.
pub async fn work(load: &Load, acked: usize, rng: &mut Rng) {
    let until = load.recorder.acked() + acked;
    eventually("the appends of a round", async || load.recorder.acked() >= until).await;
    tokio::time::sleep(Duration::from_micros(rng.u64(..20_000))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_redis_is_killed() {
    let redis = TestRedis::start().await;
    let app = TestApp::start_on(redis.clone(), 1).await;
    let load = Load::new(48, vec![app.url.clone()]);
    let mut rng = Rng::with_seed(load.seed);
    let writers = load.start();
    let began = Instant::now();
    for _ in 0..20 {
        work(&load, ACKED, &mut rng).await;
        let pid = redis.server.pid();
        redis.signal("KILL");
        eventually("Redis runs again", async || redis.server.pid().is_some_and(|new| Some(new) != pid)).await;
    }
    work(&load, ACKED, &mut rng).await;
    println!("20 kills in {:?}", began.elapsed());
    conclude(&load, writers, &mut redis.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_added_twice_when_connections_are_killed() {
    let redis = TestRedis::start().await;
    let (app, other) = (TestApp::start_on(redis.clone(), 1).await, TestApp::start_on(redis.clone(), 1).await);
    let load = Load::new(32, vec![app.url.clone(), other.url]);
    let mut rng = Rng::with_seed(load.seed);
    let writers = load.start();
    let mut connection = redis.connection().await;
    for _ in 0..50 {
        work(&load, 50, &mut rng).await;
        let mut kill = redis::cmd("CLIENT");
        let killed: u64 = kill.arg("KILL").arg("TYPE").arg("normal").query_async(&mut connection).await.unwrap();
        assert!(killed > 0);
    }
    work(&load, 50, &mut rng).await;
    conclude(&load, writers, &mut connection).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_end_in_time_while_redis_hangs_and_it_heals_by_itself() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let redis = TestRedis::start().await;
    let app = TestApp::start_with(redis.clone(), 1, |config| config.store.timeout = TIMEOUT).await;
    let load = Load::new(32, vec![app.url.clone()]);
    let mut rng = Rng::with_seed(load.seed);
    let writers = load.start();
    for _ in 0..2 {
        work(&load, ACKED, &mut rng).await;
        redis.signal("STOP");
        let stopped = Instant::now();
        while stopped.elapsed() < TIMEOUT * 4 {
            let began = Instant::now();
            let body = r#"{"events":[{"type":"never","data":0}]}"#;
            let answer = app.append_with("hang", &[("if-match", "\"9\"")], body).await;
            assert!(matches!(answer.status.as_u16(), 503 | 504), "{answer:?}");
            assert!(began.elapsed() < TIMEOUT + TIMEOUT / 2, "{:?}", began.elapsed());
            let began = Instant::now();
            app.get("/streams/load-0").await.expect_problem(503, "storage-unavailable");
            assert!(began.elapsed() < TIMEOUT + TIMEOUT / 2, "{:?}", began.elapsed());
        }
        redis.signal("CONT");
        let healed = Instant::now();
        work(&load, 1, &mut rng).await;
        println!("healed in {:?}", healed.elapsed());
        eventually("reads work again", async || app.get("/streams/load-0").await.status == 200).await;
    }
    work(&load, ACKED, &mut rng).await;
    conclude(&load, writers, &mut redis.connection().await).await;
}
