//! The service behind nginx, HAProxy and Caddy: what HTTP promises holds through them too.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, Url};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    app::{Answer, TestApp, eventually},
    feed::{Feed, name},
    gateway::Behind,
    groups::{TestGroup, append},
};

/// What is not held back comes sooner, also on a busy machine.
const SOON: Duration = Duration::from_secs(8);

const ONE: &str = r#"{"events":[{"type":"t","data":1}]}"#;

fn by_gzip(request: RequestBuilder) -> RequestBuilder {
    request.header("accept-encoding", "gzip")
}

/// What does not depend on the request of a problem.
fn problem(answer: &Answer) -> Value {
    let mut problem = answer.json();
    problem.as_object_mut().unwrap().remove("instance").unwrap();
    problem
}

test_gateways! {
    async fn versions_and_conflicts_pass(gateway) {
        let behind = Behind::start(gateway).await;
        let app = &behind.app;
        let appended = app.append_with("order-1", &[("if-none-match", "*")], ONE).await.expect(201);
        assert_eq!(appended.header("etag"), "\"1\"");
        app.append_with("order-1", &[("if-match", appended.header("etag"))], ONE).await.expect(201);
        let plain = app.get("/streams/order-1").await.expect(200);
        assert_eq!(plain.header("etag"), "\"2\"");
        // Too small for the service to compress; nginx does.
        let packed = by_gzip(app.request(Method::GET, "/streams/order-1")).send().await.unwrap();
        let header = |name: &str| packed.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        let (coding, tag) = (header("content-encoding"), header("etag"));
        let expected = if gateway == Kind::Nginx { ("gzip", "W/\"2\"") } else { ("", "\"2\"") };
        assert_eq!((coding.as_str(), tag.as_str()), expected);
        let unchanged = by_gzip(app.request(Method::GET, "/streams/order-1")).header("if-none-match", &tag);
        assert_eq!(unchanged.send().await.unwrap().status(), 304);
        assert_eq!(app.head("/streams/order-1").await.expect(200).header("etag"), "\"2\"");
        app.append_with("order-1", &[("if-match", &tag)], ONE).await.expect(201);

        // A conflict comes as it is, with all that it says, and not as a page of the gateway.
        let path = "/streams/order-1/events?include=events";
        let conflict = app.post(path, &[("if-match", &tag)], ONE).await.expect_problem(409, "version-conflict");
        assert_eq!(conflict.header("etag"), "\"3\"");
        assert_eq!(conflict.json()["current_version"], 3);
        assert_eq!(conflict.json()["events"][0]["version"], 3);
        let direct = behind.other.post(path, &[("if-match", &tag)], ONE).await.expect_problem(409, "version-conflict");
        assert_eq!(problem(&conflict), problem(&direct));
        assert_eq!(app.get("/streams/order-1").await.expect(200).header("etag"), "\"3\"");

        // What the service compresses stays as it is: tag, coding, and content.
        let large = json!({ "events": [{ "type": "t", "data": "x".repeat(100_000) }] });
        app.append("large-1", &large.to_string()).await.expect(201);
        let packed = by_gzip(app.request(Method::GET, "/streams/large-1")).send().await.unwrap();
        assert_eq!(packed.headers()["content-encoding"], "gzip");
        assert_eq!(packed.headers()["etag"], "\"1\"");
        assert!(packed.bytes().await.unwrap().len() < 10_000);
    }
}

test_gateways! {
    async fn links_and_locations_lead_on(gateway) {
        let behind = Behind::start(gateway).await;
        let app = &behind.app;
        let appended = app.append("order-1", ONE).await.expect(201);
        append(app, "order-1", "t", 2).await;
        let at = |path: &str| Url::parse(&format!("{}{path}", app.url)).unwrap();
        let asked = async |url: Url| Answer::of(app.client.get(url)).await.expect(200);
        let first = asked(at("/streams/order-1/events").join(appended.header("location")).unwrap()).await.json();
        assert_eq!(name(&first), "order-1@1");
        let mut url = at("/streams/order-1?limit=1");
        for expected in ["order-1@1", "order-1@2", "order-1@3"] {
            assert!(url.as_str().starts_with(&app.url), "{url}");
            let page = asked(url.clone()).await;
            assert_eq!(name(&page.json()["events"][0]), expected);
            let next = page.header("link").split(',').find(|link| link.contains("rel=\"next\""));
            if let Some(next) = next.and_then(|link| link.split(['<', '>']).nth(1)) {
                url = url.join(next).unwrap();
            }
        }
        let document = asked(at("/openapi.json")).await.json();
        assert_eq!(document["servers"][0]["url"], "/events-store");
        asked(at("/docs/")).await;
    }
}

test_gateways! {
    async fn requests_pass_as_they_are(gateway) {
        let behind = Behind::start(gateway).await;
        let (app, direct) = (&behind.app, &behind.other);
        let long = "x".repeat(201);
        let odd = ["a%2Fb", "%2Fa", "a%5Cb", "%7Bx%7D", "a%20b", "%C3%A9", "a%25b", "a%252Fb", "a%3Fb", "a%0Ab"];
        for id in odd.into_iter().chain([long.as_str()]) {
            let path = format!("/streams/{id}");
            let through = app.get(&path).await.expect_problem(400, "invalid-stream-id");
            assert_eq!(problem(&through), problem(&direct.get(&path).await), "{id}");
            let through = app.append(id, ONE).await.expect_problem(400, "invalid-stream-id");
            assert_eq!(problem(&through), problem(&direct.append(id, ONE).await), "{id}");
        }
        app.get("/streams/%FF").await.expect_problem(400, "invalid-path");
        for id in ["a~b:c@d+e-f._", "a%2Bb", "%61b", "a..b"] {
            app.append(id, ONE).await.expect(201);
            direct.get(&format!("/streams/{id}/events/1")).await.expect(200);
        }
        let request = app.request(Method::GET, "/streams/none-1").header("x-request-id", "order-7.a_b");
        let answer = Answer::of(request).await.expect_problem(404, "stream-not-found");
        assert_eq!(answer.header("x-request-id"), "order-7.a_b");
        assert_eq!(app.get("/livez").await.expect(200).header("x-request-id").len(), 36, "made where there is none");
        // Headers nearly as large as the service takes them.
        let large = app.request(Method::GET, "/livez").header("x-large", "x".repeat(15 * 1024));
        Answer::of(large).await.expect(200);
        let retry = app.append_with("key-1", &[("idempotency-key", "\"k\"")], ONE).await.expect(201);
        let again = app.append_with("key-1", &[("idempotency-key", "\"k\"")], ONE).await.expect(200);
        assert_eq!(retry.json()["cursor"], again.json()["cursor"]);
    }
}

test_gateways! {
    async fn large_bodies_pass(gateway) {
        let behind = Behind::start(gateway).await;
        let most = 4 * 1024 * 1024;
        let event = json!({ "type": "t", "data": "x".repeat(1_000_000) });
        let mut body = json!({ "events": vec![event; 4] }).to_string();
        body.push_str(&" ".repeat(most - body.len()));
        behind.app.append("large-1", &body).await.expect(201);
        let page = behind.app.get("/streams/large-1").await.expect(200);
        assert!(page.text.len() > 4_000_000);
        assert_eq!(page.json(), behind.other.get("/streams/large-1").await.json());
        // The service says what is wrong, not the gateway.
        body.push(' ');
        behind.app.append("large-1", &body).await.expect_problem(413, "payload-too-large");
    }
}

/// Opens a feed as lines of JSON.
async fn lines(app: &TestApp, path: &str) -> Response {
    app.request(Method::GET, path).header("accept", "application/x-ndjson").send().await.unwrap()
}

/// Reads lines of JSON until one contains this.
async fn until(lines: &mut Response, what: &str) {
    let mut text = String::new();
    while !text.contains(what) {
        text.push_str(std::str::from_utf8(&lines.chunk().await.unwrap().unwrap()).unwrap());
    }
}

test_gateways! {
    /// Each event arrives before the next is appended: nothing on the way waits for more.
    async fn feeds_and_polls_flow(gateway) {
        let behind = Behind::start(gateway).await;
        let app = &behind.app;
        append(app, "order-1", "t", 1).await;
        let mut log = Feed::open(app, "/events", None).await;
        let mut stream = Feed::open(app, "/streams/order-1", None).await;
        let mut ndjson = lines(app, "/events?follow=true").await;
        assert_eq!(ndjson.headers()["content-type"], "application/x-ndjson");
        assert_eq!(name(&log.event().await), "order-1@1");
        assert_eq!(name(&stream.event().await), "order-1@1");
        until(&mut ndjson, "\"version\":1").await;
        for version in 2..6 {
            let poll = app.request(Method::GET, &format!("/streams/order-1?from={version}&wait=30"));
            let poll = tokio::spawn(Answer::of(poll));
            append(app, "order-1", "t", 1).await;
            let arrived = async {
                let expected = format!("order-1@{version}");
                assert_eq!(name(&log.event().await), expected);
                assert_eq!(name(&stream.event().await), expected);
                until(&mut ndjson, &format!("\"version\":{version}")).await;
                assert_eq!(name(&poll.await.unwrap().expect(200).json()["events"][0]), expected);
            };
            timeout(SOON, arrived).await.unwrap_or_else(|_| panic!("version {version} is held back"));
        }
        let nothing = app.get("/streams/order-1?from=6&wait=1").await.expect(200);
        assert_eq!(nothing.json()["events"], json!([]));
    }
}

test_gateways! {
    /// Heartbeats are enough for a gateway whose patience is a little longer than the time between them.
    async fn heartbeats_keep_feeds_open(gateway) {
        let patience = |text: String| match gateway {
            Kind::Caddy => text.replace("dial_timeout 5s", "dial_timeout 5s\nread_timeout 15s"),
            _ => text.replace("75s", "15s"),
        };
        let behind = Behind::start_with(gateway, |_| {}, patience).await;
        let app = &behind.app;
        let mut feed = Feed::open(app, "/events", None).await;
        let mut ndjson = lines(app, "/events?follow=true").await;
        feed.until_caught_up().await;
        for _ in 0..2 {
            let block = feed.block().await.expect("the feed goes on");
            assert_eq!((block.comments, block.data), (1, None));
        }
        append(app, "order-1", "t", 1).await;
        assert_eq!(name(&feed.event().await), "order-1@1");
        until(&mut ndjson, "\"version\":1").await;
    }
}

test_gateways! {
    /// The gateway does not go on in the name of a client that has gone away.
    async fn who_leaves_is_gone(gateway) {
        let behind = Behind::start_with(gateway, |config| config.limits.waiting = 1, |text| text).await;
        let app = &behind.app;
        let group = TestGroup::create(app, "mailer", json!({ "types": ["taken"] })).await;
        // Both instances have one place.
        let full = async || {
            let polls = [app.get("/events?wait=1&after=end"), app.get("/events?wait=1&after=end")];
            futures::future::join_all(polls).await.iter().any(|answer| answer.status == 503)
        };
        let (first, second) = (Feed::open(app, "/events", None).await, Feed::open(app, "/events", None).await);
        app.get("/events?wait=1&after=end").await.expect_problem(503, "overloaded");
        drop((first, second));
        eventually("feeds have ended", async || {
            // HAProxy notices when it has something to write; heartbeats will do, but take longer.
            if gateway == Kind::Haproxy {
                append(app, "order-1", "other", 1).await;
            }
            !full().await
        })
        .await;
        // Nor does it take events for it, which would be away until their leases run out.
        let poll = app.request(Method::GET, "/groups/mailer/next?wait=60");
        timeout(Duration::from_millis(500), poll.send()).await.unwrap_err();
        eventually("polls have ended", async || !full().await).await;
        append(app, "order-1", "taken", 1).await;
        assert_eq!(group.one().await.count, 1);
    }
}
