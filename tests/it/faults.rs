//! What happens when Redis is away, full, or silent.

use std::time::{Duration, Instant};

use crate::app::{TestApp, TestRedis, eventually};

const ONE: &str = r#"{"events":[{"type":"t","data":1}]}"#;
const THREE: &str = r#"{"events":[{"type":"t","data":1},{"type":"t","data":2},{"type":"t","data":3}]}"#;

#[tokio::test]
async fn a_full_redis_answers_507_and_goes_on_reading() {
    let app = TestApp::start(1).await;
    app.append("order-1", ONE).await.expect(201);
    let mut plain = app.redis.connection().await;
    let mut set = async |memory: &str| {
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(memory).exec_async(&mut plain).await.unwrap();
    };
    set("1mb").await;
    let full = app.append("order-1", ONE).await.expect_problem(507, "storage-full");
    assert_eq!(full.json()["retryable"], true);
    assert_eq!(app.get("/streams/order-1").await.expect(200).json()["version"], 1);
    set("0").await;
    app.append("order-1", ONE).await.expect(201);
}

#[tokio::test]
async fn without_redis_the_answer_is_503_in_time_and_it_heals() {
    let redis = TestRedis::start().await;
    let app = TestApp::start_with(redis, 1, |config| config.store.timeout = Duration::from_millis(500)).await;
    app.append("order-1", ONE).await.expect(201);
    // Stopped, not dead: nobody starts it again.
    app.redis.signal("STOP");
    let began = Instant::now();
    let answers = futures::future::join_all((0..20).map(|_| app.append("order-1", ONE))).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    for answer in answers {
        // Those that had left for Redis are unknown, the others were not written.
        match answer.status.as_u16() {
            504 => drop(answer.expect_problem(504, "outcome-unknown")),
            _ => assert_eq!(answer.expect_problem(503, "storage-unavailable").header("retry-after"), "1"),
        }
    }
    let read = app.get("/streams/order-1").await.expect_problem(503, "storage-unavailable");
    assert_eq!(read.header("retry-after"), "1");
    app.get("/readyz").await.expect_problem(503, "not-ready");
    app.get("/livez").await.expect(200);
    app.redis.signal("CONT");
    eventually("it heals", async || app.append("order-1", ONE).await.status == 201).await;
    app.get("/readyz").await.expect(200);
    app.get("/streams/order-1").await.expect(200);
}

#[tokio::test]
async fn a_short_absence_is_not_noticed() {
    let app = TestApp::start(1).await;
    for version in 1..=3 {
        let died = app.redis.server.pid();
        app.redis.signal("KILL");
        let answer = app.append_with("order-1", &[("idempotency-key", &format!("k{version}"))], ONE).await;
        assert_eq!(answer.expect(201).json()["version"], version);
        assert_ne!(app.redis.server.pid(), died);
        app.redis.signal("KILL");
        assert_eq!(app.get("/streams/order-1").await.expect(200).json()["version"], version);
    }
}

#[tokio::test]
async fn disk_full_stops_writes_and_not_reads() {
    let app = TestApp::start(1).await;
    app.append("order-1", ONE).await.expect(201);
    let mut plain = app.redis.connection().await;
    // As MISCONF: writes are refused with a word of its own.
    redis::cmd("CONFIG").arg("SET").arg("min-replicas-to-write").arg(1).exec_async(&mut plain).await.unwrap();
    app.append("order-1", ONE).await.expect_problem(503, "storage-unavailable");
    app.get("/streams/order-1").await.expect(200);
    redis::cmd("CONFIG").arg("SET").arg("min-replicas-to-write").arg(0).exec_async(&mut plain).await.unwrap();
    app.append("order-1", ONE).await.expect(201);
}

#[tokio::test]
async fn a_client_that_leaves_leaves_whole_batches() {
    let app = TestApp::start(1).await;
    let mut sent = Vec::new();
    for n in 0..50 {
        let stream = format!("left-{n}");
        let request = app.append(&stream, THREE);
        // Gone at a different moment each time.
        let patience = Duration::from_micros(n * 100);
        let answered = tokio::time::timeout(patience, request).await.is_ok();
        sent.push((stream, answered));
    }
    for (stream, answered) in sent {
        let stream = format!("/streams/{stream}");
        let whole = || async { matches!(app.head(&stream).await.header("etag"), "\"3\"" | "") };
        assert!(whole().await, "{stream}");
        assert!(!answered || app.head(&stream).await.status == 200, "{stream}");
    }
    app.append("order-1", ONE).await.expect(201);
}

#[tokio::test]
async fn too_many_waiting_appends_are_refused() {
    let redis = TestRedis::start().await;
    let app = TestApp::start_with(redis, 1, |config| {
        config.store.queued_max = 5;
        config.store.timeout = Duration::from_secs(1);
    })
    .await;
    app.append("order-1", ONE).await.expect(201);
    app.redis.signal("STOP");
    let answers = futures::future::join_all((0..50).map(|_| app.append("order-1", ONE))).await;
    app.redis.signal("CONT");
    let overloaded = answers.iter().filter(|answer| answer.json()["code"] == "overloaded").count();
    assert!(overloaded >= 10, "{overloaded}");
    eventually("it heals", async || app.append("order-1", ONE).await.status == 201).await;
}

#[tokio::test]
async fn a_drain_lets_requests_under_way_end() {
    let app = TestApp::start(1).await;
    app.append("order-1", ONE).await.expect(201);
    app.redis.signal("STOP");
    let mut append = Box::pin(app.append("order-1", ONE));
    // Under way: sent, and not answered.
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut append).await.is_err());
    app.shutdown.cancel();
    eventually("no new connection", async || tokio::net::TcpStream::connect(app.address()).await.is_err()).await;
    app.redis.signal("CONT");
    assert_eq!(append.await.expect(201).json()["version"], 2);
    app.served.await.unwrap();
}

#[tokio::test]
async fn a_drain_is_told_before_it_closes() {
    let delay = Duration::from_secs(1);
    let app = TestApp::start_with(TestRedis::start().await, 1, |config| config.server.drain_delay = delay).await;
    app.get("/readyz").await.expect(200);
    app.shutdown.cancel();
    let checks = app.get("/readyz").await.expect_problem(503, "not-ready").json();
    assert!(checks["checks"].to_string().contains("drains"), "{checks}");
    // Whoever has not noticed yet is still served.
    app.append("order-1", ONE).await.expect(201);
    app.served.await.unwrap();
}
