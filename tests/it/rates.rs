//! Limits of requests a second.

use reqwest::Method;
use serde_json::json;
use streamkeep::http::{Access, AccessFiles, parse_network};
use tempfile::TempDir;

use crate::{
    access::new_key,
    app::{Answer, TestApp, TestRedis, eventually},
    input::GOOD,
};

async fn limited(limits: &[&str]) -> TestApp {
    TestApp::start_with(TestRedis::start().await, 1, |config| {
        config.rate_limits = limits.iter().map(|limit| limit.parse().unwrap()).collect();
        config.server.trusted_proxies = [parse_network("127.0.0.0/8").unwrap()].into();
    })
    .await
}

/// Reads as the caller at an address until it is refused; how often it was not.
async fn read_until_refused(app: &TestApp, address: &str) -> (usize, Answer) {
    for before in 0..1_000 {
        let answer = Answer::of(app.request(Method::GET, "/events").header("x-forwarded-for", address)).await;
        if answer.status != 200 {
            return (before, answer);
        }
    }
    panic!("there is no limit");
}

#[tokio::test]
async fn a_caller_that_asks_too_often_hears_when_to_come_back() {
    let app = limited(&["append=2"]).await;
    let mut appended = 0;
    let refused = loop {
        let answer = app.append("order-1", GOOD).await;
        assert_eq!(answer.header("ratelimit-policy"), "\"append\";q=2;w=1");
        if answer.status != 201 {
            break answer.expect_problem(429, "quota-exceeded");
        }
        appended += 1;
        assert!(["\"append\";r=1;t=1", "\"append\";r=0;t=1"].contains(&answer.header("ratelimit")), "{answer:?}");
        assert!(appended < 1_000, "there is no limit");
    };
    assert!(appended >= 2, "as many at once as in a second");
    assert_eq!((refused.header("ratelimit"), refused.header("retry-after")), ("\"append\";r=0;t=1", "1"));
    let problem = refused.json();
    assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!((&problem["violated-policies"], &problem["retryable"]), (&json!(["append"]), &json!(true)));
    // Nothing was written, and all else is as it was.
    let stream = app.get("/streams/order-1").await.expect(200);
    assert_eq!(stream.json()["version"], appended);
    assert!(!stream.headers.contains_key("ratelimit"), "there is no limit for reads");
    for open in ["/livez", "/readyz", "/openapi.json", "/nowhere"] {
        assert!(!app.get(open).await.headers.contains_key("ratelimit"), "{open}");
    }
    eventually("it may again", async || app.append("order-1", GOOD).await.status == 201).await;
}

#[tokio::test]
async fn each_address_has_its_own() {
    let app = limited(&["read=1000", "read=3"]).await;
    let (first, refused) = read_until_refused(&app, "198.51.100.1").await;
    assert!(first >= 3, "{first}: the last limit of a verb holds");
    assert_eq!(refused.header("ratelimit-policy"), "\"read\";q=3;w=1");
    assert!(read_until_refused(&app, "198.51.100.2").await.0 >= 3, "another caller has not asked yet");
    // A host with IPv6 has as many addresses as it likes.
    assert!(read_until_refused(&app, "2001:db8::1").await.0 >= 3);
    let other = Answer::of(app.request(Method::GET, "/events").header("x-forwarded-for", "2001:db8::2")).await;
    assert!(other.status == 429 || other.header("ratelimit") != "\"read\";r=2;t=1", "{other:?}");
}

#[tokio::test]
async fn each_credential_has_its_own() {
    let folder = TempDir::new().unwrap();
    let key = |id| new_key(&folder, id, &["--verbs", "read,consume", "--streams", "*", "--groups", "*"]);
    let (one, two) = (key("one"), key("two"));
    let files = AccessFiles { keys: Some(folder.path().join("keys.ndjson")), ..AccessFiles::default() };
    let access = Access::open(files).unwrap();
    let app = TestApp::start_with(TestRedis::start().await, 1, |config| {
        config.access = Some(access);
        config.rate_limits = vec!["read=1".parse().unwrap(), "consume=1".parse().unwrap()];
    });
    let app = app.await;
    let get = async |key: &str, path: &str| Answer::of(app.request(Method::GET, path).bearer_auth(key)).await;
    eventually("one has asked too often", async || get(&one, "/events").await.status == 429).await;
    let other = get(&two, "/events").await.expect(200);
    assert_eq!(other.header("ratelimit"), "\"read\";r=0;t=1");
    // What needs another verb is counted by itself, and whoever may not do it is not counted at all.
    assert_eq!(get(&one, "/groups").await.expect(200).header("ratelimit-policy"), "\"consume\";q=1;w=1");
    let refused = get("wrong", "/events").await.expect_problem(401, "unauthorized");
    assert!(!refused.headers.contains_key("ratelimit"));
}
