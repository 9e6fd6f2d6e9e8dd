//! Feeds and polls at their edges: large events, drains midway, silent partitions, what is quiet for long.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    app::{Answer, TestApp, TestRedis, eventually},
    feed::{Feed, name},
    feeds::events,
    groups::append,
};

/// Events of this size.
async fn append_large(app: &TestApp, stream: &str, count: usize, bytes: usize) {
    let events: Vec<_> = (0..count).map(|_| json!({"type": "large", "data": "x".repeat(bytes)})).collect();
    app.append(stream, &json!({"events": events}).to_string()).await.expect(201);
}

test_app! {
    async fn a_stream_of_large_events_is_followed_on(app) {
        for _ in 0..5 {
            append_large(&app, "s-1", 1, 700_000).await;
        }
        let mut feed = Feed::open(&app, "/streams/s-1", None).await;
        let seen = feed.until_caught_up().await;
        assert_eq!(seen.len(), 5);
        // Each place compares with an event that fills a piece by itself.
        let mut again = Feed::open(&app, "/streams/s-1", Some(&feed.last_id)).await;
        assert_eq!(again.until_caught_up().await.len(), 0);
        append_large(&app, "s-1", 1, 700_000).await;
        for feed in [&mut feed, &mut again] {
            assert_eq!(name(&feed.event().await), "s-1@6");
        }
        let page = app.get("/streams/s-1?limit=2&from=5").await.expect(200).json();
        assert_eq!((page["events"].as_array().unwrap().len(), &page["next"]), (2, &Value::Null));
    }
}

/// Whoever reads lines must not take a part for the whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_break_off_have_no_good_end() {
    let redis = TestRedis::start().await;
    let app = TestApp::start_with(redis, 1, |config| config.store.timeout = Duration::from_millis(500)).await;
    for _ in 0..20 {
        append_large(&app, "s-1", 250, 10_000).await;
    }
    let request = app.request(Method::GET, "/events").header("accept", "application/x-ndjson");
    let mut response = request.send().await.unwrap();
    response.chunk().await.unwrap().expect("a first piece");
    app.redis.signal("STOP");
    app.shutdown.cancel();
    let end = loop {
        match response.chunk().await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    app.redis.signal("CONT");
    assert!(end.is_err(), "it ended as if it were whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_a_feed_that_is_behind() {
    let app = TestApp::start(1).await;
    for _ in 0..40 {
        append_large(&app, "s-1", 250, 6_000).await;
    }
    let mut feed = Feed::open(&app, "/events", None).await;
    feed.event().await;
    app.shutdown.cancel();
    let began = Instant::now();
    let mut count = 1;
    while let Some(block) = feed.try_block().await.expect("it ends properly") {
        count += usize::from(block.message().is_some());
    }
    assert!(count < 10_000, "it was read to the end");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// The log is silent after it was emptied, though what else wakes is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_log_is_noticed_while_groups_are_busy() {
    let app = TestApp::start(1).await;
    append(&app, "s-1", "x", 20).await;
    let mut feed = Feed::open(&app, "/events", None).await;
    feed.until_caught_up().await;
    let mut redis = app.redis.connection().await;
    redis::cmd("FLUSHALL").exec_async(&mut redis).await.unwrap();
    append(&app, "s-1", "y", 1).await;
    let busy = tokio::spawn(async move {
        loop {
            redis::cmd("XADD").arg("wake").arg("*").arg("g").arg("g").exec_async(&mut redis).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let told = async {
        loop {
            let block = feed.block().await.expect("it says why it ends");
            if block.event.as_deref() == Some("problem") {
                return block.data.unwrap();
            }
            assert!(block.message().is_none());
        }
    };
    let problem = tokio::time::timeout(Duration::from_secs(15), told).await.expect("in time");
    assert!(problem.contains("history-diverged"), "{problem}");
    busy.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_partitions_cost_one_timeout_in_all() {
    let redis = TestRedis::start().await;
    let app = TestApp::start_with(redis, 8, |config| config.store.timeout = Duration::from_millis(500)).await;
    append(&app, "s-1", "x", 1).await;
    app.redis.signal("STOP");
    let began = Instant::now();
    app.get("/events?wait=1").await.expect_problem(503, "storage-unavailable");
    let feed = app.request(Method::GET, "/events").header("accept", "text/event-stream");
    Answer::of(feed).await.expect_problem(503, "storage-unavailable");
    // Refused before the store is asked.
    app.get("/events?after=end&limit=0").await.expect_problem(400, "invalid-parameter");
    app.get("/streams/s-1?direction=backward&wait=1").await.expect_problem(400, "invalid-parameter");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    app.redis.signal("CONT");
    eventually("it heals", async || app.get("/events?wait=1").await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_is_bounded_over_all_partitions() {
    let app = TestApp::start(4).await;
    for n in 0..20 {
        append_large(&app, &format!("s-{n}"), 40, 90_000).await;
    }
    let (mut after, mut seen) = (String::new(), 0);
    loop {
        let answer = app.get(&format!("/events?limit=1000{after}")).await.expect(200);
        assert!(answer.text.len() < 20 * 1024 * 1024, "a page of {} bytes", answer.text.len());
        let page = answer.json();
        seen += page["events"].as_array().unwrap().len();
        after = format!("&after={}", page["next"].as_str().unwrap());
        if page["caught_up"] == true {
            break;
        }
    }
    assert_eq!(seen, 800);
}

/// Whoever takes the log piece by piece sees all partitions, though one is far ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_take_the_partitions_in_turn() {
    let app = TestApp::start(4).await;
    append(&app, "busy", "x", 500).await;
    for n in 0..40 {
        append(&app, &format!("s-{n}"), "x", 1).await;
    }
    let partition = |stream: &str| app.store.partition(&streamkeep::model::StreamId::parse(stream).unwrap());
    let (mut seen, mut last) = (HashSet::new(), None);
    for _ in 0..4 {
        let request = app.request(Method::GET, "/events?limit=5").header("accept", "application/x-ndjson");
        let request = last.iter().fold(request, |request, last: &String| request.header("last-event-id", last));
        for line in Answer::of(request).await.expect(200).text.lines().filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_str(line).unwrap();
            seen.insert(partition(event["stream"].as_str().unwrap()));
            last = Some(event["cursor"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(seen.len(), 4);
}

/// What was long quiet is given from what was fetched once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_a_quiet_stream_do_not_page() {
    let app = TestApp::start(1).await;
    append(&app, "quiet-1", "x", 1).await;
    let mut feeds = Vec::new();
    for _ in 0..50 {
        let mut feed = Feed::open(&app, "/streams/quiet-1", None).await;
        feed.until_caught_up().await;
        feeds.push(feed);
    }
    let mut log = Feed::open(&app, "/events", None).await;
    for _ in 0..5 {
        append(&app, "busy-1", "x", 1_000).await;
    }
    log.events(5_001).await;
    let before = app.redis.calls_of("xrange").await;
    append(&app, "quiet-1", "x", 1).await;
    for feed in &mut feeds {
        assert_eq!(name(&feed.event().await), "quiet-1@2");
    }
    let cost = app.redis.calls_of("xrange").await - before;
    assert!(cost < 25, "{cost} reads for one event to fifty followers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backward_begins_at_the_end() {
    let app = TestApp::start(1).await;
    append(&app, "s-1", "x", 5).await;
    let newest = events(app.get("/events?direction=backward&limit=2").await);
    assert_eq!(newest.iter().map(|event| event["version"].as_u64().unwrap()).collect::<Vec<_>>(), [5, 4]);
    assert_eq!(events(app.get("/events?direction=backward&limit=2&after=end").await), newest);
    for query in ["after=beginning", "from_time=1999-01-01T00:00:00Z", "wait=1"] {
        let path = format!("/events?direction=backward&{query}");
        app.get(&path).await.expect_problem(400, "invalid-parameter");
    }
}

test_app! {
    async fn conditions_and_heads_do_not_wait_for_what_is_not_there(app) {
        append(&app, "s-1", "x", 1).await;
        let began = Instant::now();
        let with = async |path: &str, name: &str, value: &str| {
            Answer::of(app.request(Method::GET, path).header(name, value)).await
        };
        with("/streams/none-1?wait=20", "if-match", "\"7\"").await.expect_problem(404, "stream-not-found");
        with("/streams/none-1?wait=1", "if-none-match", "\"0\"").await.expect(304);
        app.head("/events?wait=20&after=end").await.expect(200);
        app.head("/events?wait=61").await.expect(400);
        app.head("/streams/s-1?follow=x").await.expect(400);
        app.head("/streams/s-1?wait=999").await.expect(400);
        let feed = |path: &str| app.request(Method::HEAD, path).header("accept", "text/event-stream");
        for path in ["/events", "/streams/s-1", "/streams/none-1"] {
            let head = Answer::of(feed(path)).await.expect(200);
            assert_eq!(head.header("content-type"), "text/event-stream");
            assert_eq!(head.header("cache-control"), "no-cache, no-transform");
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

/// What an instance appended itself is passed on without being fetched, what another did is not; both as they are stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_is_what_is_stored() {
    let app = TestApp::start(2).await;
    let other = TestApp::start_on(Arc::clone(&app.redis), 2).await;
    let mut feeds = [Feed::open(&app, "/events", None).await, Feed::open(&other, "/events", None).await];
    for feed in &mut feeds {
        feed.until_caught_up().await;
    }
    let trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let key = ("idempotency-key", "\"k-1\"");
    let bodies = [
        r#"{"events":[{"type":"a","data":{"n" : 1.50}}]}"#,
        r#"{"events":[{"type":"a","data":[]},{"type":"ü","data":"x\ny","metadata":{"who":"ada"}},{"type":"c","data":null}]}"#,
        r#"{"events":[{"type":"a","data":{},"id":"i-1"},{"type":"b","data":{},"id":"i-2"}]}"#,
    ];
    for stream in ["s-1", "s-2", "s-3", "s-4"] {
        for (n, headers) in [(0, &[][..]), (1, &[trace]), (2, &[]), (0, &[key])] {
            for instance in [&app, &other] {
                // With ids or a key the second is a repeat.
                let answer = instance.append_with(stream, headers, bodies[n]).await;
                assert!([200, 201].contains(&answer.status.as_u16()));
            }
        }
    }
    for feed in &mut feeds {
        for event in feed.events(4 * (2 + 6 + 2 + 1)).await {
            let path = format!("/streams/{}/events/{}", event["stream"].as_str().unwrap(), event["version"]);
            assert_eq!(event, app.get(&path).await.expect(200).json());
        }
    }
}

#[tokio::test]
async fn an_event_of_ones_own_is_not_fetched() {
    let app = TestApp::start(1).await;
    let mut feed = Feed::open(&app, "/events", None).await;
    feed.until_caught_up().await;
    let before = app.redis.calls_of("xrange").await;
    for n in 1..=40 {
        append(&app, "s-1", "x", 1).await;
        assert_eq!(name(&feed.event().await), format!("s-1@{n}"));
    }
    // Two each for the proof that history is still the same, and three where the log told of it before the answer came.
    let cost = app.redis.calls_of("xrange").await - before;
    assert!(cost < 40 * 2 + 20 * 3, "{cost} reads for forty events");
}
