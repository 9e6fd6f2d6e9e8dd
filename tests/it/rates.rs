//! Limits of how many requests a caller may make.

use reqwest::Method;
use streamkeep::http::{Access, AccessFiles};
use tempfile::TempDir;

use crate::{
    access::new_key,
    app::{Answer, TestApp, TestConfig, TestRedis, eventually},
    input::GOOD,
};

async fn start(rates: &'static str, change: impl FnOnce(&mut TestConfig)) -> TestApp {
    let change = |config: &mut TestConfig| {
        config.rates = rates;
        change(config);
    };
    TestApp::start_with(TestRedis::start().await, 1, change).await
}

#[tokio::test]
async fn a_caller_that_asks_too_often_is_told_so() {
    let app = start("read=5", |_| {}).await;
    app.append("order-1", GOOD).await.expect(201);
    let mut left = None;
    let refused = loop {
        let answer = app.get("/streams/order-1").await;
        assert_eq!(answer.header("ratelimit-policy"), "\"read\";q=5;w=1");
        if answer.status == 429 {
            break answer.expect_problem(429, "quota-exceeded");
        }
        let now = answer.expect(200).header("ratelimit").to_owned();
        assert!(now.starts_with("\"read\";r=") && now.ends_with(";t=1"), "{now}");
        left.get_or_insert(now);
    };
    assert_eq!(left.as_deref(), Some("\"read\";r=4;t=1"));
    assert_eq!(refused.header("ratelimit"), "\"read\";r=0;t=1");
    assert_eq!(refused.header("retry-after"), "1");
    let problem = refused.json();
    assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(problem["violated-policies"], serde_json::json!(["read"]));
    assert_eq!(problem["retryable"], true);
    // What needs another verb, or none, is not limited by this.
    for _ in 0..20 {
        let appended = app.append("order-1", GOOD).await.expect(201);
        assert_eq!(appended.header("ratelimit"), "");
        for path in ["/livez", "/readyz", "/openapi.json", "/docs/"] {
            app.get(path).await.expect(200);
        }
        Answer::of(app.request(Method::OPTIONS, "/streams/order-1")).await.expect(204);
    }
    eventually("there is some again", async || app.get("/streams/order-1").await.status == 200).await;
    let mut tail = 0;
    while app.request(Method::HEAD, "/events").send().await.unwrap().status() != 429 {
        tail += 1;
        assert!(tail < 1000);
    }
}

/// Before Redis is asked, and after access has judged.
#[tokio::test]
async fn what_is_refused_is_not_done() {
    let app = start("append=1", |_| {}).await;
    let mut appended = 0;
    for _ in 0..30 {
        let answer = app.append("order-1", GOOD).await;
        match answer.status.as_u16() {
            201 => appended += 1,
            _ => drop(answer.expect_problem(429, "quota-exceeded")),
        }
    }
    assert!(appended < 30);
    assert_eq!(app.head("/streams/order-1").await.header("etag"), format!("\"{appended}\""));
}

#[tokio::test]
async fn each_credential_has_its_own() {
    let folder = TempDir::new().unwrap();
    let verbs: &[&str] = &["--verbs", "read", "--streams", "*"];
    let (one, other) = (new_key(&folder, "one", verbs), new_key(&folder, "other", verbs));
    let keys = Some(folder.path().join("keys.ndjson"));
    let access = Access::open(AccessFiles { keys, ..AccessFiles::default() }).unwrap();
    let app = start("read=2,append=1", |config| config.access = Some(access)).await;
    let get = async |token: &str| Answer::of(app.request(Method::GET, "/events").bearer_auth(token)).await;
    let mut asked = 0;
    while get(&one).await.status != 429 {
        asked += 1;
        assert!(asked < 1000);
    }
    get(&other).await.expect(200);
    // What has no right is not counted, nor told how much is left.
    for _ in 0..20 {
        let answer = get("sk_one_wrong").await.expect_problem(401, "unauthorized");
        assert_eq!(answer.header("ratelimit"), "");
        let append = app.request(Method::POST, "/streams/order-1/events").bearer_auth(&other).body(GOOD);
        Answer::of(append).await.expect_problem(403, "forbidden");
    }
}

#[tokio::test]
async fn each_address_has_its_own() {
    let app = start("read=2", |config| {
        config.server.trusted_proxies = ["127.0.0.1/32".parse().unwrap()].into();
    })
    .await;
    let get =
        async |caller: &str| Answer::of(app.request(Method::GET, "/events").header("x-forwarded-for", caller)).await;
    let mut asked = 0;
    while get("192.0.2.1").await.status != 429 {
        asked += 1;
        assert!(asked < 1000);
    }
    get("192.0.2.2").await.expect(200);
}
