//! The service below a path, and for pages of other origins.

use reqwest::Method;

use crate::{
    app::{Answer, TestApp, TestRedis},
    feed::Feed,
    groups::append,
};

async fn below(base: &str) -> TestApp {
    TestApp::start_with(TestRedis::start().await, 1, |config| base.clone_into(&mut config.base_path)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_stands_below_the_base_path() {
    let app = below("/team/events-store").await;
    let base = |path: &str| format!("/team/events-store{path}");
    let one = r#"{"events":[{"type":"t","data":1}]}"#;
    let appended = app.post(&base("/streams/order-1/events"), &[("if-none-match", "*")], one).await.expect(201);
    // Relative to the address asked: right behind any prefix.
    let location = reqwest::Url::parse(&format!("{}{}", app.url, base("/streams/order-1/events"))).unwrap();
    let first = location.join(appended.header("location")).unwrap();
    assert_eq!(first.path(), base("/streams/order-1/events/1"));
    app.get(first.path()).await.expect(200);
    let page = app.get(&base("/streams/order-1?limit=1")).await.expect(200);
    assert!(page.header("link").starts_with("<?"), "{page:?}");
    assert_eq!(app.head(&base("/streams/order-1")).await.expect(200).header("etag"), "\"1\"");
    for path in ["/livez", "/readyz", "/events", "/streams", "/groups"] {
        app.get(&base(path)).await.expect(200);
        app.get(path).await.expect_problem(404, "not-found");
    }
    app.get(&base("/nothing")).await.expect_problem(404, "not-found");
    app.get("/team/events-storex/events").await.expect_problem(404, "not-found");
    app.get(&base("/streams/a%2Fb")).await.expect_problem(400, "invalid-stream-id");
    let other =
        Answer::of(app.request(Method::DELETE, &base("/events"))).await.expect_problem(405, "method-not-allowed");
    assert_eq!(other.header("allow"), "GET, HEAD, OPTIONS");
    assert_eq!(Feed::open(&app, &base("/events"), None).await.until_caught_up().await.len(), 1);
    let document = app.get(&base("/openapi.json")).await.expect(200).json();
    assert_eq!(document["servers"][0]["url"], "/team/events-store");
    app.get("/openapi.json").await.expect_problem(404, "not-found");
    let docs = app.get(&base("/docs")).await.expect(200);
    assert!(docs.text.contains("swagger-ui"), "{docs:?}");
    let script = app.get(&base("/docs/swagger-initializer.js")).await.expect(200);
    assert!(script.text.contains(&base("/openapi.json")), "{script:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_named_origins_may_use_the_service() {
    let app = TestApp::start_with(TestRedis::start().await, 1, |config| {
        config.cors_origins =
            vec!["https://app.example.com".parse().unwrap(), "http://localhost:3000".parse().unwrap()];
    })
    .await;
    append(&app, "order-1", "x", 1).await;
    let asked = async |method: Method, path: &str, origin: &str| {
        Answer::of(app.request(method, path).header("origin", origin)).await
    };
    for origin in ["https://app.example.com", "http://localhost:3000"] {
        let read = asked(Method::GET, "/streams/order-1", origin).await.expect(200);
        assert_eq!(read.header("access-control-allow-origin"), origin);
        let exposed = read.header("access-control-expose-headers").to_ascii_lowercase();
        for name in ["etag", "link", "location", "retry-after", "x-request-id", "streamkeep-durability"] {
            assert!(exposed.split(',').any(|header| header == name), "{name}: {exposed}");
        }
        let vary: Vec<_> = read.headers.get_all("vary").iter().map(|value| value.to_str().unwrap()).collect();
        let vary = vary.join(", ");
        assert!(vary.contains("origin") && vary.contains("accept-encoding"), "{vary}");
        // Failures too, or the page could not read them.
        let problem = asked(Method::GET, "/streams/none-1", origin).await.expect_problem(404, "stream-not-found");
        assert_eq!(problem.header("access-control-allow-origin"), origin);
        let preflight = app.request(Method::OPTIONS, "/streams/order-1/events").header("origin", origin);
        let preflight = preflight.header("access-control-request-method", "POST");
        let preflight = preflight.header("access-control-request-headers", "if-match,content-type,idempotency-key");
        let allowed = Answer::of(preflight).await.expect(200);
        assert_eq!(allowed.header("access-control-allow-origin"), origin);
        assert!(allowed.header("access-control-allow-methods").contains("POST"));
        let headers = allowed.header("access-control-allow-headers").to_ascii_lowercase();
        for name in ["if-match", "if-none-match", "content-type", "idempotency-key", "last-event-id", "authorization"] {
            assert!(headers.split(',').any(|header| header == name), "{name}: {headers}");
        }
        assert_eq!(allowed.header("access-control-max-age"), "600");
    }
    let foreign = asked(Method::GET, "/streams/order-1", "https://evil.example.com").await.expect(200);
    assert_eq!(foreign.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn without_origins_no_page_may() {
    let app = TestApp::start(1).await;
    append(&app, "order-1", "x", 1).await;
    let request = app.request(Method::GET, "/streams/order-1").header("origin", "https://app.example.com");
    let answer = Answer::of(request).await.expect(200);
    assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("access-control")), "{answer:?}");
    let options = Answer::of(app.request(Method::OPTIONS, "/streams/order-1")).await.expect(204);
    assert_eq!(options.header("allow"), "GET, HEAD, OPTIONS");
}
