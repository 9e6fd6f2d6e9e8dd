//! Reading one stream: pages, links, conditions, caches.

use std::time::Duration;

use serde_json::{Value, json};

use crate::app::{Answer, TestApp, TestRedis};

/// A stream with ten events; their data is their version.
async fn ten(app: &TestApp) {
    let events: Vec<_> = (1..=10).map(|n| json!({"type": "t", "data": n})).collect();
    app.append("order-1", &json!({ "events": events }).to_string()).await.expect(201);
}

fn versions(page: &Answer) -> Vec<u64> {
    page.json()["events"].as_array().unwrap().iter().map(|event| event["version"].as_u64().unwrap()).collect()
}

fn link(page: &Answer, rel: &str) -> Option<String> {
    let link = page.header("link").split(", ").find(|link| link.ends_with(&format!("; rel=\"{rel}\"")))?;
    Some(link[1..link.find('>').unwrap()].to_owned())
}

test_app! {
    async fn pages_go_both_ways(app) {
        ten(&app).await;
        for (query, expected, next) in [
            ("", (1..=10).collect::<Vec<_>>(), Value::Null),
            ("?limit=4", vec![1, 2, 3, 4], json!(5)),
            ("?from=5&limit=4", vec![5, 6, 7, 8], json!(9)),
            ("?from=9&limit=4", vec![9, 10], Value::Null),
            ("?from=7&limit=4", vec![7, 8, 9, 10], Value::Null),
            ("?from=3&to=5", vec![3, 4, 5], Value::Null),
            ("?from=3&to=5&limit=2", vec![3, 4], json!(5)),
            ("?from=3&to=5&limit=3", vec![3, 4, 5], Value::Null),
            ("?from=11", vec![], Value::Null),
            ("?from=9007199254740991", vec![], Value::Null),
            ("?from=5&to=3", vec![], Value::Null),
            ("?direction=forward&limit=1", vec![1], json!(2)),
            ("?direction=backward", (1..=10).rev().collect(), Value::Null),
            ("?direction=backward&limit=4", vec![10, 9, 8, 7], json!(6)),
            ("?direction=backward&from=6&limit=4", vec![6, 5, 4, 3], json!(2)),
            ("?direction=backward&from=4&limit=4", vec![4, 3, 2, 1], Value::Null),
            ("?direction=backward&from=6&to=5&limit=4", vec![6, 5], Value::Null),
            ("?direction=backward&from=6&to=3&limit=2", vec![6, 5], json!(4)),
            ("?direction=backward&from=99&limit=1", vec![10], json!(9)),
        ] {
            let page = app.get(&format!("/streams/order-1{query}")).await.expect(200);
            assert_eq!(versions(&page), expected, "{query}");
            assert_eq!(page.json()["next"], next, "{query}");
            assert_eq!((page.json()["version"].as_u64(), page.header("etag")), (Some(10), "\"10\""), "{query}");
            assert_eq!(page.header("cache-control"), "private, no-cache", "{query}");
        }
    }
}

test_app! {
    async fn links_lead_through_the_stream(app) {
        ten(&app).await;
        for direction in ["", "direction=backward&"] {
            let mut seen = Vec::new();
            let mut query = Some(format!("?{direction}limit=3"));
            let mut last = None;
            while let Some(at) = query {
                assert!(at.starts_with('?'), "links are relative: {at}");
                let page = app.get(&format!("/streams/order-1{at}")).await.expect(200);
                seen.extend(versions(&page));
                query = link(&page, "next");
                last = link(&page, "last");
            }
            let mut expected: Vec<u64> = (1..=10).collect();
            if !direction.is_empty() {
                expected.reverse();
            }
            assert_eq!(seen, expected);
            let end = app.get(&format!("/streams/order-1{}", last.unwrap())).await.expect(200);
            assert_eq!(versions(&end).last(), expected.last());
            assert_eq!(versions(&end).len(), 3);
            let previous = app.get(&format!("/streams/order-1{}", link(&end, "prev").unwrap())).await.expect(200);
            assert_eq!(versions(&previous), expected[4..7]);
            let first = app.get(&format!("/streams/order-1{}", link(&previous, "first").unwrap())).await.expect(200);
            assert_eq!(versions(&first), expected[0..3]);
            assert_eq!(link(&first, "prev"), None);
        }
    }
}

test_app! {
    async fn a_reader_that_is_up_to_date_gets_304(app) {
        ten(&app).await;
        for tag in ["\"10\"", "W/\"10\"", "10", "\"3\", \"10\"", "*"] {
            for method in [reqwest::Method::GET, reqwest::Method::HEAD] {
                let request = app.request(method, "/streams/order-1").header("if-none-match", tag);
                let answer = Answer::of(request).await.expect(304);
                assert_eq!((answer.header("etag"), answer.text.as_str()), ("\"10\"", ""), "{tag}");
            }
        }
        for (name, tag) in [("if-none-match", "\"9\""), ("if-match", "\"10\""), ("if-match", "*")] {
            Answer::of(app.request(reqwest::Method::GET, "/streams/order-1").header(name, tag)).await.expect(200);
        }
        let stale = app.request(reqwest::Method::GET, "/streams/order-1").header("if-match", "\"9\"");
        assert_eq!(Answer::of(stale).await.expect_problem(412, "precondition-failed").header("etag"), "\"10\"");
        let garbage = app.request(reqwest::Method::GET, "/streams/order-1").header("if-none-match", "abc");
        Answer::of(garbage).await.expect_problem(400, "invalid-precondition");
    }
}

test_app! {
    async fn head_tells_the_version(app) {
        ten(&app).await;
        let head = app.head("/streams/order-1").await.expect(200);
        assert_eq!((head.header("etag"), head.text.as_str()), ("\"10\"", ""));
        assert_eq!(head.header("content-type"), "application/json");
        app.head("/streams/order-2").await.expect(404);
    }
}

test_app! {
    async fn one_event_by_its_version(app) {
        ten(&app).await;
        let answer = app.get("/streams/order-1/events/7").await.expect(200);
        assert_eq!((&answer.json()["version"], &answer.json()["data"]), (&json!(7), &json!(7)));
        assert_eq!(answer.header("etag"), "\"7\"");
        let known = app.request(reqwest::Method::GET, "/streams/order-1/events/7").header("if-none-match", "\"7\"");
        Answer::of(known).await.expect(304);
        app.get("/streams/order-1/events/11").await.expect_problem(404, "event-not-found");
        app.get("/streams/order-2/events/1").await.expect_problem(404, "stream-not-found");
        for bad in ["0", "-1", "+1", "1.0", "1e3", "x", "9007199254740992"] {
            app.get(&format!("/streams/order-1/events/{bad}")).await.expect_problem(400, "invalid-parameter");
        }
    }
}

test_app! {
    async fn the_location_of_an_append_is_its_first_event(app) {
        ten(&app).await;
        let answer = app.append("order-1", r#"{"events":[{"type":"found","data":1}]}"#).await.expect(201);
        let base = reqwest::Url::parse(&format!("{}/streams/order-1/events", app.url)).unwrap();
        let url = base.join(answer.header("location")).unwrap();
        let found = Answer::of(app.client.get(url)).await.expect(200);
        assert_eq!(found.json()["type"], "found");
    }
}

#[tokio::test]
async fn shared_caches_may_keep_what_never_changes() {
    let redis = TestRedis::start().await;
    let app = TestApp::start_with(redis, 1, |config| config.cache_max_age = Duration::from_mins(1)).await;
    ten(&app).await;
    let full = app.get("/streams/order-1?limit=4").await.expect(200);
    assert_eq!(full.header("cache-control"), "public, max-age=60, immutable");
    assert_eq!((full.header("etag"), full.json().get("version")), ("", None));
    assert_eq!(link(&full, "last"), None);
    assert_eq!(full.json()["next"], 5);
    assert_eq!(
        app.get("/streams/order-1/events/3").await.expect(200).header("cache-control"),
        "public, max-age=60, immutable"
    );
    for changing in ["?from=7&limit=4", "?from=9&limit=4", "?direction=backward&limit=4", "?from=3&to=5"] {
        let page = app.get(&format!("/streams/order-1{changing}")).await.expect(200);
        assert_eq!((page.header("cache-control"), page.header("etag")), ("private, no-cache", "\"10\""), "{changing}");
    }
}

/// A page has an end in bytes too: whoever follows `next` gets every event once.
#[tokio::test]
async fn pages_of_large_events_are_cut_short() {
    // Only pages are looked at here: no need to wait for the disk.
    let everysec = streamkeep::redis_server::AppendFsync::Everysec;
    let app = TestApp::start_on(TestRedis::start_with(|config| config.append_fsync = everysec).await, 1).await;
    let large = "x".repeat(250_000);
    for _ in 0..12 {
        let events: Vec<_> = (0..12).map(|_| json!({"type": "t", "data": large})).collect();
        app.append("order-1", &json!({ "events": events }).to_string()).await.expect(201);
    }
    for (direction, from) in [("forward", 1), ("backward", 144)] {
        let (mut seen, mut next, mut pages) = (Vec::new(), json!(from), 0);
        while let Some(from) = next.as_u64() {
            let query = format!("/streams/order-1?limit=1000&direction={direction}&from={from}");
            let page = app.get(&query).await.expect(200);
            // The first piece of the first page may be large: nothing is known yet.
            assert!(page.text.len() < if pages == 0 && direction == "forward" { 30_000_000 } else { 17_000_000 });
            seen.extend(versions(&page));
            next = page.json()["next"].clone();
            pages += 1;
        }
        assert!(pages > 1);
        seen.sort_unstable();
        assert_eq!(seen, (1..=144).collect::<Vec<_>>());
    }
    let (mut count, mut pages, mut after) = (0, 0, String::new());
    loop {
        let page = app.get(&format!("/events?limit=1000{after}")).await.expect(200).json();
        count += page["events"].as_array().unwrap().len();
        pages += 1;
        if page["caught_up"] == true {
            break;
        }
        after = format!("&after={}", page["next"].as_str().unwrap());
    }
    assert_eq!((count, pages > 1), (144, true));
}
