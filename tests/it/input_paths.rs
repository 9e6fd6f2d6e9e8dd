//! Hostile input in paths, queries and methods.

use reqwest::Method;

use crate::input::{GOOD, Input};

#[tokio::test]
async fn stream_ids_outside_the_grammar_are_refused() {
    let mut input = Input::start().await;
    let long = "x".repeat(201);
    let bad = [
        "a%2Fb",
        "a%00",
        "a%0D%0A",
        "a%0d%0aX-Evil:%201",
        "%7Ba%7D",
        "{a}",
        "a%20b",
        "a%252Fb",
        "a%zz",
        "a%2",
        "a%",
        "%C3%A4",
        "ä",
        "a%7F",
        "a\"b",
        "a%22",
        "a|b",
        "a;b",
        "a,b",
        "a*",
        "a!",
        "a$b",
        "a'",
        "a(b)",
        "a%5Cb",
        "a\\b",
        "a%3Fb",
        "a%23b",
        ".",
        "..",
        "%2e",
        "%2E%2e",
        "%F0%9F%98%80",
        long.as_str(),
    ];
    for id in bad {
        for line in
            [format!("GET /streams/{id}"), format!("GET /streams/{id}/events/1"), format!("POST /streams/{id}/events")]
        {
            let answer = input.refused_line(&line, 400, "invalid-stream-id").await;
            assert!(!answer.text.contains("Evil") && !answer.text.contains(&long), "echoes: {answer:?}");
        }
        let head = format!("HEAD /streams/{id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        input.refused_bytes(head.as_bytes(), 400).await;
    }
    let query = ["stream=a%2Fb", "stream=", "stream=.", "stream=a%00", "category=a-b", "category=", "category=%7B"];
    for query in query {
        let code = if query.starts_with("stream") { "invalid-stream-id" } else { "invalid-parameter" };
        input.refused_get(&format!("/events?{query}"), 400, code).await;
    }
}

#[tokio::test]
async fn the_longest_and_the_oddest_good_ids_work() {
    let input = Input::start().await;
    let long = "x".repeat(200);
    for (path, id) in
        [(long.as_str(), long.as_str()), ("A.b_c~d:e@f+g-h", "A.b_c~d:e@f+g-h"), ("%61-%31", "a-1"), ("...", "...")]
    {
        let answer = input.app.append(path, GOOD).await.expect(201);
        assert_eq!(answer.json()["stream"], id);
        assert_eq!(input.app.get(&format!("/streams/{path}")).await.expect(200).json()["events"][0]["stream"], id);
    }
}

#[tokio::test]
async fn paths_that_cannot_be_read_are_refused() {
    let mut input = Input::start().await;
    for id in ["%FF", "a%C3", "%ED%A0%80"] {
        input.refused_line(&format!("GET /streams/{id}"), 400, "invalid-path").await;
        input.refused_line(&format!("GET /streams/{id}/events/1"), 400, "invalid-path").await;
        input.refused_line(&format!("GET /streams/a/events/{id}"), 400, "invalid-path").await;
        input.refused_line(&format!("POST /streams/{id}/events"), 400, "invalid-path").await;
    }
    let long = "x".repeat(8 * 1024);
    for line in [format!("GET /streams/{long}"), format!("GET /events?after={long}"), format!("POST /{long}")] {
        let answer = input.refused_line(&line, 414, "uri-too-long").await;
        assert_eq!(answer.header("connection"), "close");
    }
    // Beyond hyper's own limit.
    let huge = "x".repeat(70_000);
    let bytes = format!("GET /{huge} HTTP/1.1\r\nHost: x\r\n\r\n");
    input.refused_bytes(bytes.as_bytes(), 414).await;
}

#[tokio::test]
async fn versions_are_plain_numbers() {
    let mut input = Input::start().await;
    let bad = [
        "0",
        "-1",
        "+1",
        "%2B1",
        "1.0",
        "1e3",
        "01x",
        "%221%22",
        "9007199254740992",
        "18446744073709551616",
        "NaN",
        "0x1",
        "1_0",
        "%D9%A1",
        "1%20",
        "%201",
        "null",
        "true",
        "1,2",
    ];
    for number in bad {
        input.refused_get(&format!("/streams/witness-1/events/{number}"), 400, "invalid-parameter").await;
        for key in ["from", "to", "limit"] {
            input.refused_get(&format!("/streams/witness-1?{key}={number}"), 400, "invalid-parameter").await;
        }
        input.refused_get(&format!("/events?limit={number}"), 400, "invalid-parameter").await;
    }
    for query in [
        "from=",
        "from",
        "to=",
        "limit=",
        "limit",
        "limit=1001",
        "limit=1000000000",
        "direction=",
        "direction=up",
        "direction=Forward",
    ] {
        input.refused_get(&format!("/streams/witness-1?{query}"), 400, "invalid-parameter").await;
    }
    for query in ["limit=", "limit=1001", "after=", "after=x", "after=!!!!", "after=MDox", "after=%FF", "after=MDox%00"]
    {
        input.refused_get(&format!("/events?{query}"), 400, "invalid-parameter").await;
    }
    for good in
        ["from=1&to=1&limit=1000", "limit=1", "from=9007199254740991", "direction=backward", "", "&", "&&from=1&"]
    {
        input.app.get(&format!("/streams/witness-1?{good}")).await.expect(200);
    }
    input.app.get("/streams/witness-1/events/9007199254740991").await.expect_problem(404, "event-not-found");
}

#[tokio::test]
async fn query_keys_are_known_and_stand_once() {
    let mut input = Input::start().await;
    let secret = "q7b3secret";
    for query in [
        "from=1&from=1",
        "from=1&%66rom=2",
        "limit=1&limit=2",
        "wait=61",
        "wait=-1",
        "wait=0.5",
        "wait=1e9",
        "follow=true",
        "From=1",
        "from[]=1",
        "version=1",
        "%FF=1",
        "from=%FF",
        "=1",
        "a%00=1",
        "from=1;to=2",
        secret,
    ] {
        let answer = input.refused_get(&format!("/streams/witness-1?{query}"), 400, "invalid-parameter").await;
        assert!(!answer.text.contains(secret), "echoes: {answer:?}");
    }
    for query in ["after=a&after=b", "from=1", "direction=up", "wait=5&wait=5", "cursor=x", "stream=a&stream=a"] {
        input.refused_get(&format!("/events?{query}"), 400, "invalid-parameter").await;
    }
    for query in ["x=1", "from=1", "limit=1"] {
        input.refused_get(&format!("/streams/witness-1/events/1?{query}"), 400, "invalid-parameter").await;
    }
    for query in ["include=", "include", "include=all", "include=events&include=events", "expected=1", "wait=1"] {
        let path = format!("/streams/victim-1/events?{query}");
        let request = input.app.request(Method::POST, &path).header("content-type", "application/json").body(GOOD);
        input.refused(query, request, 400, "invalid-parameter").await;
    }
}

#[tokio::test]
async fn unknown_addresses_and_wrong_methods_are_problems() {
    let mut input = Input::start().await;
    for path in [
        "/",
        "/streams/",
        "/streams/a/",
        "/streams/a/events",
        "/streams/a/events/",
        "/streams/a/b",
        "/Events",
        "/events/",
        "/events/1",
        "/docs/nothing",
        "/openapi.yaml",
        "/livez/",
        "//events",
        "/streams//events/1",
        "/%2e%2e/events",
    ] {
        let (status, code) = match path {
            "/streams/a/events" => (405, "method-not-allowed"), // there, but not for GET
            "/streams//events/1" => (400, "invalid-stream-id"),
            _ => (404, "not-found"),
        };
        input.refused_line(&format!("GET {path}"), status, code).await;
    }
    let addresses = [
        ("/streams/witness-1", "GET, HEAD, OPTIONS"),
        ("/streams/witness-1/events/1", "GET, HEAD, OPTIONS"),
        ("/streams/witness-1/events", "POST, OPTIONS"),
        ("/events", "GET, HEAD, OPTIONS"),
        ("/livez", "GET, HEAD, OPTIONS"),
        ("/readyz", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
        ("/docs/", "GET, HEAD, OPTIONS"),
    ];
    for (path, allowed) in addresses {
        for method in ["DELETE", "PUT", "PATCH", "TRACE", "PROPFIND", "get", "X"] {
            let answer = input.refused_line(&format!("{method} {path}"), 405, "method-not-allowed").await;
            assert_eq!(answer.header("allow"), allowed, "{method} {path}");
        }
        if !allowed.contains("POST") {
            let answer = input.refused_line(&format!("POST {path}"), 405, "method-not-allowed").await;
            assert_eq!(answer.header("allow"), allowed, "POST {path}");
        }
        let answer = input.app.request(Method::OPTIONS, path).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["allow"]), (204, &allowed.parse().unwrap()), "{path}");
        assert!(!answer.headers().contains_key("content-length"), "a 204 has no length (RFC 9110 §8.6)");
        assert!(!answer.headers().contains_key("content-type"), "a 204 has no body");
    }
    input.refused_line("OPTIONS /nowhere", 404, "not-found").await;
    input.refused_line("CONNECT example.org:443", 404, "not-found").await;
    input.refused_line("OPTIONS *", 404, "not-found").await;
    input.refused_line("GET livez", 404, "not-found").await;
}
