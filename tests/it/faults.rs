//! What happens when Redis is away, full, silent, or loses a word.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    app::{TestApp, TestRedis, eventually},
    proxy::Proxy,
};

const ONE: &str = r#"{"events":[{"type":"t","data":1}]}"#;
const THREE: &str = r#"{"events":[{"type":"t","data":1},{"type":"t","data":2},{"type":"t","data":3}]}"#;

async fn behind_proxy(partitions: u16) -> (TestApp, Proxy) {
    let redis = TestRedis::start().await;
    let proxy = Proxy::start(&redis);
    let app = TestApp::start_with(redis, partitions, |config| config.store.address = proxy.address()).await;
    (app, proxy)
}

#[tokio::test]
async fn an_append_whose_reply_was_lost_is_found_again() {
    let (app, proxy) = behind_proxy(1).await;
    app.append("order-1", ONE).await.expect(201);
    let key = ("idempotency-key", "k");
    for (stream, headers) in [
        ("order-1", vec![]),
        ("order-1", vec![("if-match", "\"4\"")]),
        ("order-2", vec![("if-none-match", "*")]),
        ("order-3", vec![("if-match", "\"0\""), key]),
        ("order-3", vec![("if-match", "*")]),
    ] {
        proxy.lose_replies(1);
        let before =
            app.head(&format!("/streams/{stream}")).await.header("etag").trim_matches('"').parse().unwrap_or(0);
        let answer = app.append_with(stream, &headers, THREE).await;
        assert_eq!(proxy.left(), (0, 0), "the reply was lost");
        let result = answer.json();
        assert_eq!(
            (&result["first_version"], &result["version"]),
            (&json!(before + 1), &json!(before + 3)),
            "{result}"
        );
        let version = app.get(&format!("/streams/{stream}")).await.expect(200).json()["version"].as_u64();
        assert_eq!(version, Some(before + 3), "once");
    }
    // The log has each of them once.
    let log = app.get("/events?limit=1000").await.expect(200).json();
    assert_eq!(log["events"].as_array().unwrap().len(), 1 + 5 * 3);
}

#[tokio::test]
async fn an_append_that_never_arrived_is_sent_again() {
    let (app, proxy) = behind_proxy(4).await;
    for (version, headers) in [(3, vec![]), (6, vec![("if-match", "\"3\"")]), (9, vec![("idempotency-key", "k")])] {
        proxy.lose_requests(1);
        let answer = app.append_with("order-1", &headers, THREE).await.expect(201);
        assert_eq!(proxy.left(), (0, 0), "the request was lost");
        assert_eq!((&answer.json()["version"], &answer.json()["duplicate"]), (&json!(version), &json!(false)));
    }
}

#[tokio::test]
async fn a_false_condition_stays_one_when_the_reply_is_lost() {
    let (app, proxy) = behind_proxy(1).await;
    app.append("order-1", ONE).await.expect(201);
    proxy.lose_replies(1);
    app.append_with("order-1", &[("if-match", "\"0\"")], THREE).await.expect_problem(409, "version-conflict");
    assert_eq!(app.head("/streams/order-1").await.header("etag"), "\"1\"");
}

#[tokio::test]
async fn what_cannot_be_settled_is_called_unknown() {
    let (app, proxy) = behind_proxy(1).await;
    // The call is lost; before it is asked for again, more than 1,000 events arrive in its stream. They come from
    // another instance: the look back ends undecided.
    let other = TestApp::start_on(app.redis.clone(), 1).await;
    let thousand = json!({"events": vec![json!({"type": "t", "data": 0}); 1_000]}).to_string();
    other.append("order-1", &thousand).await.expect(201);
    other.append("order-1", &thousand).await.expect(201);
    proxy.lose_requests(1);
    app.append("order-1", ONE).await.expect_problem(504, "outcome-unknown");
    // With ids it settles.
    proxy.lose_requests(1);
    app.append_with("order-1", &[("idempotency-key", "k")], ONE).await.expect(201);
}

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
