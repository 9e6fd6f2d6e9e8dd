//! Live feeds of the log and of streams.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    app::{Answer, TestApp, TestRedis, eventually},
    feed::{Block, Feed, name},
    groups::append,
};

pub fn names(events: &[Value]) -> Vec<String> {
    events.iter().map(name).collect()
}

/// A page's events.
pub fn events(answer: Answer) -> Vec<Value> {
    answer.expect(200).json()["events"].as_array().unwrap().clone()
}

test_app! {
    async fn the_log_is_followed_from_the_beginning_into_the_present(app) {
        for n in 0..70 {
            append(&app, &format!("order-{}", n % 7), "placed", 10).await;
        }
        let mut feed = Feed::open(&app, "/events", None).await;
        let mut seen = feed.until_caught_up().await;
        assert_eq!(seen.len(), 700);
        for n in 0..50 {
            append(&app, &format!("order-{}", n % 7), "placed", 1 + n % 3).await;
        }
        seen.extend(feed.events(50 + 49).await);
        for n in 0..7 {
            let of = |event: &&Value| event["stream"] == format!("order-{n}");
            let versions: Vec<_> = seen.iter().filter(of).map(|event| event["version"].as_u64().unwrap()).collect();
            assert_eq!(versions, (1..=versions.len() as u64).collect::<Vec<_>>());
        }
        // The stored event as it is, but for its form.
        let one = app.get("/streams/order-1/events/5").await.expect(200).json();
        assert!(seen.contains(&one));
    }
}

/// The next so many events, as they were sent.
async fn sent(feed: &mut Feed, count: usize) -> Vec<Block> {
    let mut blocks = Vec::with_capacity(count);
    while blocks.len() < count {
        let block = feed.block().await.expect("the feed goes on");
        if block.message().is_some() {
            blocks.push(block);
        }
    }
    blocks
}

/// With one partition an event is made ready once for all: what is sent does not depend on who follows, and since when.
#[tokio::test]
async fn all_who_follow_are_sent_the_same() {
    let app = TestApp::start(1).await;
    let mut followers = Vec::new();
    for path in ["/events", "/events", "/events?category=order"] {
        let mut feed = Feed::open(&app, path, None).await;
        feed.until_caught_up().await;
        followers.push(feed);
    }
    for n in 0..30 {
        append(&app, if n % 2 == 0_usize { "invoice-1" } else { "order-1" }, "placed", 1 + n % 3).await;
    }
    let late = sent(&mut Feed::open(&app, "/events", None).await, 60).await;
    let orders: Vec<_> = late.iter().filter(|block| block.message().unwrap()["stream"] == "order-1").cloned().collect();
    assert_eq!(orders.len(), 30);
    for (feed, expected) in followers.iter_mut().zip([&late, &late, &orders]) {
        assert_eq!(sent(feed, expected.len()).await, *expected);
    }
}

test_app! {
    async fn a_stream_is_followed_before_it_is_there(app) {
        let mut feed = Feed::open(&app, "/streams/new-1", None).await;
        assert_eq!(feed.until_caught_up().await.len(), 0);
        assert_eq!(feed.last_id, "", "there is nothing to come back to");
        append(&app, "new-2", "other", 3).await;
        append(&app, "new-1", "mine", 3).await;
        append(&app, "new-1", "mine", 2).await;
        assert_eq!(names(&feed.events(5).await), ["new-1@1", "new-1@2", "new-1@3", "new-1@4", "new-1@5"]);
        // From a version on, which may be ahead of the stream.
        let mut late = Feed::open(&app, "/streams/new-1?from=7", None).await;
        let mut early = Feed::open(&app, "/streams/new-1?from=4", None).await;
        append(&app, "new-1", "mine", 3).await;
        assert_eq!(names(&late.events(2).await), ["new-1@7", "new-1@8"]);
        assert_eq!(names(&early.events(5).await), ["new-1@4", "new-1@5", "new-1@6", "new-1@7", "new-1@8"]);
    }
}

test_app! {
    async fn filters_work_in_the_store(app) {
        for n in 0..40 {
            append(&app, &format!("order-{n}"), ["placed", "paid"][n % 2], 1).await;
            append(&app, &format!("invoice-{n}"), "sent", 1).await;
            append(&app, &format!("note-{n}"), "paid", 1).await;
        }
        for (query, count) in [
            ("category=order", 40),
            ("category=order&category=note", 80),
            ("type=paid", 60),
            ("type=paid&type=sent", 100),
            ("category=order&category=invoice&type=paid&type=sent", 60),
            ("stream=note-7", 1),
            ("category=nothing", 0),
            ("type=a%2Cb", 0),
        ] {
            let mut feed = Feed::open(&app, &format!("/events?limit=1000&{query}"), None).await;
            let mut followed = feed.until_caught_up().await;
            assert_eq!(followed.len(), count, "{query}");
            let mut polled = if count == 0 { Vec::new() } else {
                events(app.get(&format!("/events?{query}&wait=1&limit=1000")).await)
            };
            let mut paged = events(app.get(&format!("/events?{query}&limit=1000")).await);
            for list in [&mut followed, &mut polled, &mut paged] {
                list.sort_by_key(name);
            }
            assert_eq!((&followed, &polled), (&paged, &paged), "{query}");
        }
        // And in what comes.
        let mut feed = Feed::open(&app, "/events?category=order&category=note&type=paid", None).await;
        feed.until_caught_up().await;
        for (stream, kind) in [("junk-1", "paid"), ("order-1", "sent"), ("order-1", "paid"), ("note-1", "paid")] {
            append(&app, stream, kind, 1).await;
        }
        let mut came = names(&feed.events(2).await);
        came.sort();
        assert_eq!(came, ["note-1@2", "order-1@3"]);
    }
}

/// Whoever comes back under a filter need not look again at what was passed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_moves_the_place_on() {
    let app = TestApp::start(1).await;
    for _ in 0..3 {
        append(&app, "junk-1", "junk", 1_000).await;
    }
    let mut feed = Feed::open(&app, "/events?category=order", None).await;
    let mut ids = 0;
    loop {
        let block = feed.block().await.unwrap();
        if block.is_caught_up() {
            break;
        }
        assert_eq!(block.data, None);
        ids += usize::from(block.id.is_some());
    }
    assert!(ids >= 2, "the long way had {ids} places");
    let page = app.get(&format!("/events?after={}", feed.last_id)).await.expect(200).json();
    assert_eq!((&page["events"], &page["caught_up"]), (&json!([]), &json!(true)), "the place is the head");
    // Also at the head, where others pass by: a heartbeat tells.
    append(&app, "junk-1", "junk", 10).await;
    let before = feed.last_id.clone();
    let block = feed.block().await.unwrap();
    assert!(block.id.is_some_and(|id| id != before) && block.data.is_none());
    let page = app.get(&format!("/events?after={}", feed.last_id)).await.expect(200).json();
    assert_eq!(page["events"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_feed_says_that_it_lives() {
    let app = TestApp::start(1).await;
    let mut feed = Feed::open(&app, "/streams/quiet-1", None).await;
    assert_eq!(feed.block().await.unwrap().comments, 1, "at once, so that the headers pass");
    feed.until_caught_up().await;
    let began = Instant::now();
    let block = feed.block().await.unwrap();
    assert_eq!((block.comments, block.data), (1, None));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

test_app! {
    async fn lines_end_at_the_head_or_go_on(app) {
        append(&app, "order-1", "x", 3).await;
        let lines = async |path: &str| {
            let request = app.request(Method::GET, path).header("accept", "application/x-ndjson");
            let answer = Answer::of(request).await.expect(200);
            assert_eq!(answer.header("content-type"), "application/x-ndjson");
            assert_eq!(answer.header("cache-control"), "no-cache, no-transform");
            let lines = answer.text.lines().filter(|line| !line.is_empty());
            lines.map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
        };
        for path in ["/events", "/streams/order-1"] {
            let whole = lines(path).await;
            assert_eq!(names(&whole), ["order-1@1", "order-1@2", "order-1@3"]);
            assert_eq!(lines(&format!("{path}?limit=2&follow=true")).await, whole[..2]);
            // A line's cursor goes on behind it.
            let cursor = whole[1]["cursor"].as_str().unwrap();
            let request = app.request(Method::GET, path).header("accept", "application/x-ndjson");
            let rest = Answer::of(request.header("last-event-id", cursor)).await.expect(200);
            assert_eq!(rest.text.lines().count(), 1);
            assert!(rest.text.contains("\"version\":3"));
            let mut without = whole[2].clone();
            without.as_object_mut().unwrap().remove("cursor");
            assert_eq!(app.get("/streams/order-1/events/3").await.json(), without);
        }
        let request = app.request(Method::GET, "/events?follow=true").header("accept", "application/x-ndjson");
        let mut response = request.send().await.unwrap();
        append(&app, "order-1", "live", 1).await;
        let mut text = String::new();
        while !text.contains("\"live\"") {
            text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().expect("it goes on")).unwrap());
        }
        app.shutdown.cancel();
        while let Some(chunk) = response.chunk().await.unwrap() {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        assert_eq!(text.lines().filter(|line| !line.is_empty()).count(), 4, "a drain ends it properly");
    }
}

test_app! {
    async fn what_looks_like_the_form_of_a_feed_survives_it(app) {
        let inside = r#""data: x\n\nid: 7\r\nevent: caught-up\n\n""#;
        let data = format!("{{\n \"text\": {inside},\r\n\"u\": \"\u{2028}\u{85}\", \"n\": 12345678901234567890.10 }}");
        let body = format!("{{\"events\":[{{\"type\":\"data: y\",\"data\":{data},\"metadata\":{{\n}}}}]}}");
        app.append("order-1", &body).await.expect(201);
        for path in ["/events", "/streams/order-1"] {
            let mut feed = Feed::open(&app, path, None).await;
            let mut block = feed.block().await.unwrap();
            while block.data.is_none() {
                block = feed.block().await.unwrap();
            }
            let line = block.data.unwrap();
            let text = data.replace(['\n', '\r'], " ");
            assert!(line.contains(&format!("\"data\":{text},")), "{line}");
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["type"], "data: y");
        }
    }
}

test_app! {
    async fn a_feed_ends_after_its_limit_and_with_its_service(app) {
        append(&app, "order-1", "x", 3).await;
        for path in ["/events?limit=2", "/streams/order-1?limit=2"] {
            let version = app.get("/streams/order-1").await.json()["version"].as_u64().unwrap();
            let mut feed = Feed::open(&app, path, None).await;
            assert_eq!(feed.events(2).await.len(), 2);
            assert_eq!(feed.block().await, None);
            // Over the present too.
            let mut feed = Feed::open(&app, &format!("/streams/order-1?from={version}&limit=2"), None).await;
            feed.event().await;
            append(&app, "order-1", "x", 2).await;
            feed.event().await;
            assert_eq!(feed.block().await, None);
        }
        let mut feeds = vec![Feed::open(&app, "/events", None).await, Feed::open(&app, "/streams/order-1", None).await];
        for feed in &mut feeds {
            feed.until_caught_up().await;
        }
        app.shutdown.cancel();
        let began = Instant::now();
        for feed in &mut feeds {
            assert_eq!(feed.block().await, None);
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

test_app! {
    async fn feeds_refuse_what_they_cannot_do(app) {
        append(&app, "order-1", "x", 1).await;
        let refused = async |path: &str, last: Option<&str>, code: &str| {
            let request = app.request(Method::GET, path).header("accept", "text/event-stream");
            let request = last.into_iter().fold(request, |request, id| request.header("last-event-id", id));
            Answer::of(request).await.expect_problem(400, code)
        };
        for path in ["/events", "/streams/order-1"] {
            for query in ["wait=1", "direction=backward", "direction=forward", "limit=0", "follow=x", "x=1", "wait=61"] {
                refused(&format!("{path}?{query}"), None, "invalid-parameter").await;
            }
            for last in ["", "x", "1", "1-", "0-00000000", "1-0000000", "+1-00000000", "9007199254740992-00000000"] {
                refused(path, Some(last), "invalid-request").await;
            }
            let request = app.request(Method::HEAD, path).header("accept", "text/event-stream");
            assert_eq!(Answer::of(request).await.expect(200).text, "");
            for query in ["follow=true", "wait=1&direction=backward", "wait=61", "wait=x"] {
                app.get(&format!("{path}?{query}")).await.expect_problem(400, "invalid-parameter");
            }
        }
        for query in ["after=end&from_time=2026-01-01T00:00:00Z", "from_time=now", "type=", "type=%00", "category=a-b"] {
            refused(&format!("/events?{query}"), None, "invalid-parameter").await;
        }
        let many: Vec<_> = (0..101).map(|n| format!("type=t{n}")).collect();
        refused(&format!("/events?{}", many.join("&")), None, "invalid-parameter").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_who_wait_are_refused_and_others_are_not() {
    let redis = TestRedis::start().await;
    let app = TestApp::start_with(redis, 1, |config| config.limits.waiting = 3).await;
    append(&app, "order-1", "x", 1).await;
    app.put("/groups/g", "{}").await.expect(201);
    let mut feeds = Vec::new();
    for _ in 0..3 {
        feeds.push(Feed::open(&app, "/events", None).await);
    }
    let refused = async || Feed::open_at(&app.client, &format!("{}/events", app.url), None).await.is_err();
    for path in ["/events", "/streams/order-1"] {
        let request = app.request(Method::GET, path).header("accept", "text/event-stream");
        let answer = Answer::of(request).await.expect_problem(503, "overloaded");
        assert_eq!(answer.header("retry-after"), "1");
        app.get(&format!("{path}?wait=1")).await.expect_problem(503, "overloaded");
        app.get(path).await.expect(200);
    }
    app.get("/groups/g/next?wait=1").await.expect_problem(503, "overloaded");
    app.get("/groups/g?acked=MDo&wait=1").await.expect_problem(503, "overloaded");
    app.get("/groups/g/next").await.expect(200);
    app.get("/livez").await.expect(200);
    append(&app, "order-1", "x", 1).await;
    assert!(refused().await);
    feeds.pop();
    eventually("there is room again", async || !refused().await).await;
}

/// Gateways have to notice first; then what follows and waits is ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_tells_gateways_before_it_ends_feeds() {
    let delay = Duration::from_secs(2);
    let app = TestApp::start_with(TestRedis::start().await, 1, |config| config.server.drain_delay = delay).await;
    let mut feed = Feed::open(&app, "/events", None).await;
    feed.until_caught_up().await;
    let began = Instant::now();
    app.shutdown.cancel();
    app.get("/readyz").await.expect_problem(503, "not-ready");
    append(&app, "order-1", "x", 1).await;
    assert_eq!(name(&feed.event().await), "order-1@1");
    Feed::open(&app, "/events", None).await.events(1).await;
    assert_eq!(feed.block().await, None);
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
}
