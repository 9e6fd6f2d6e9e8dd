//! Hostile input in the fields of the head: conditions, keys, negotiation.

use reqwest::Method;

use crate::{
    app::Answer,
    input::{GOOD, Input},
};

#[tokio::test]
async fn conditions_that_do_not_parse_are_refused() {
    let mut input = Input::start().await;
    let many = vec!["\"1\""; 101].join(",");
    for value in [
        "",
        " ",
        "abc",
        "\"\"",
        "\"",
        "\"7",
        "7\"",
        "W/7",
        "w/\"7\"",
        "\"-1\"",
        "\"+1\"",
        "-1",
        "+1",
        "1.0",
        "\"1.0\"",
        "1e3",
        "\"9007199254740992\"",
        "\"7\",",
        ",\"7\"",
        "\"7\" \"8\"",
        "*,\"7\"",
        "**",
        "'7'",
        "\"ä\"",
        "\"7\";x",
        &many,
    ] {
        input.refused_headers(&[("if-match", value)], 400, "invalid-precondition").await;
        let request = input.app.request(Method::GET, "/streams/witness-1").header("if-match", value.as_bytes());
        input.refused(value, request, 400, "invalid-precondition").await;
        let request = input.app.request(Method::GET, "/streams/witness-1").header("if-none-match", value.as_bytes());
        input.refused(value, request, 400, "invalid-precondition").await;
    }
    for value in ["", "\"7\"", "7", "\"*\"", "*, *"] {
        input.refused_headers(&[("if-none-match", value)], 400, "invalid-precondition").await;
    }
    input.refused_headers(&[("if-match", "\"0\""), ("if-none-match", "*")], 400, "invalid-precondition").await;
    input.refused_headers(&[("if-match", "\"0\""), ("if-match", "\"1\"")], 400, "invalid-precondition").await;
    input.refused_headers(&[("if-none-match", "*"), ("if-none-match", "*")], 400, "invalid-precondition").await;
}

#[tokio::test]
async fn conditions_are_read_as_gateways_and_people_write_them() {
    let mut input = Input::start().await;
    for value in ["\"7\"", "7", "W/\"7\"", "\"7\",\"8\"", "W/\"7\" , 8", "*"] {
        let answer = input.refused_headers(&[("if-match", value)], 409, "version-conflict").await;
        assert_eq!(answer.header("etag"), "\"0\"", "{value}");
        assert_eq!(answer.json()["current_version"], 0, "{value}");
    }
    let app = &input.app;
    for (version, value) in ["\"0\"", "W/\"1\"", "2", "\"9\", \"3\"", "*", " \"5\" "].into_iter().enumerate() {
        let answer = app.append_with("good-1", &[("if-match", value)], GOOD).await.expect(201);
        assert_eq!(answer.header("etag"), format!("\"{}\"", version + 1), "{value}");
    }
    app.append_with("good-2", &[("if-none-match", " * ")], GOOD).await.expect(201);
    app.append_with("good-2", &[("if-none-match", "*")], GOOD).await.expect_problem(409, "version-conflict");
    for (value, status) in
        [("\"6\"", 304), ("W/\"6\"", 304), ("6", 304), ("\"5\", \"6\"", 304), ("*", 304), ("\"5\"", 200)]
    {
        for method in [Method::GET, Method::HEAD] {
            let request = app.request(method.clone(), "/streams/good-1").header("if-none-match", value);
            let answer = Answer::of(request).await.expect(status);
            assert_eq!(answer.header("etag"), "\"6\"", "{method} {value}");
            assert_eq!(answer.header("cache-control"), "private, no-cache", "{method} {value}");
            if status == 304 {
                assert!(answer.text.is_empty());
                assert!(!answer.headers.contains_key("content-length"), "not that of the 200 (RFC 9110 §8.6)");
                assert!(!answer.headers.contains_key("content-type"), "a 304 has no body");
                assert_eq!(answer.header("vary").to_ascii_lowercase(), "accept, accept-encoding");
            }
        }
    }
    let answer = Answer::of(app.request(Method::GET, "/streams/good-1").header("if-match", "\"5\"")).await;
    assert_eq!(answer.expect_problem(412, "precondition-failed").header("etag"), "\"6\"");
    let answer =
        Answer::of(app.request(Method::GET, "/streams/good-1/events/2").header("if-none-match", "\"2\"")).await;
    assert_eq!(answer.expect(304).header("etag"), "\"2\"");
}

#[tokio::test]
async fn idempotency_keys_that_do_not_parse_are_refused() {
    let mut input = Input::start().await;
    let (long, quoted) = ("k".repeat(256), format!("\"{}\"", "k".repeat(256)));
    for value in
        ["", "\"\"", "\"", "\"a", "a\"", "\"a\"b\"", "\"a\\x\"", "a\\b", "\"a\tb\"", "a\tb", "\"ä\"", &long, &quoted]
    {
        input.refused_headers(&[("idempotency-key", value)], 400, "invalid-request").await;
    }
    input.refused_headers(&[("idempotency-key", "a"), ("idempotency-key", "b")], 400, "invalid-request").await;
    let other = GOOD.replace('1', "2");
    let with_id = |body: &str| body.replace("\"type\"", "\"id\":\"i-1\",\"type\"");
    let key = [("idempotency-key", "k-1")];
    let app = &input.app;
    app.append_with("good-2", &key, GOOD).await.expect(201);
    app.append_with("good-2", &key, &other).await.expect_problem(422, "idempotency-key-reused");
    app.append_with("good-2", &key, &with_id(GOOD)).await.expect(201);
    app.append_with("good-2", &key, &with_id(&other)).await.expect_problem(422, "event-id-reused");
    let longest = format!("\"{}\"", "k".repeat(255));
    for value in ["\"a b\\\"c\\\\\"", "8e03978e-40d5", &longest] {
        input.app.append_with("good-1", &[("idempotency-key", value)], GOOD).await.expect(201);
        input.app.append_with("good-1", &[("idempotency-key", value)], GOOD).await.expect(200);
    }
}

#[tokio::test]
async fn answers_that_cannot_be_given_are_refused() {
    let mut input = Input::start().await;
    for accept in [
        "text/html",
        "application/xml",
        "application/json;q=0",
        "application/json;q=0.000",
        "application/json; Q=0",
        "*/*;q=0",
        "application/*;q=0, text/html",
        "application/json;q=0, */*",
        "application/json;q=0, application/*;q=1",
        "application/jsonp",
        "text/*",
        "json",
        ";",
        "application/json;q=zero",
        "application/problem+json",
        "ä",
    ] {
        for path in ["/streams/witness-1", "/streams/witness-1/events/1", "/events"] {
            let request = input.app.request(Method::GET, path).header("accept", accept.as_bytes());
            input.refused(&format!("{path} {accept}"), request, 406, "not-acceptable").await;
        }
        input.refused_headers(&[("accept", accept)], 406, "not-acceptable").await;
    }
    for accept in [
        "",
        "*/*",
        "application/*",
        "application/json",
        "APPLICATION/JSON",
        "text/html, application/json;q=0.1",
        "text/html;q=0, */*;q=0.001",
        "application/json;charset=utf-8",
        "application/json, */*;q=0",
        " application/json ;q=1",
    ] {
        let request = input.app.request(Method::GET, "/streams/witness-1").header("accept", accept);
        Answer::of(request).await.expect(200);
    }
    // Probes are asked by programs that know nothing of types.
    let request = input.app.request(Method::GET, "/livez").header("accept", "text/plain");
    Answer::of(request).await.expect(200);
}

#[tokio::test]
async fn bodies_of_another_type_are_refused() {
    let mut input = Input::start().await;
    let types: [&[&str]; 10] = [
        &[],
        &[""],
        &["text/plain"],
        &["application/x-www-form-urlencoded"],
        &["application/json; charset=latin1"],
        &["application/json;charset=\"utf-16\""],
        &["application/jsonx"],
        &["json"],
        &["application/json, text/plain"],
        &["application/json", "text/plain"],
    ];
    for values in types {
        let request = values
            .iter()
            .fold(input.app.request(Method::POST, "/streams/victim-1/events").body(GOOD), |request, value| {
                request.header("content-type", *value)
            });
        let answer = input.refused(&format!("{values:?}"), request, 415, "unsupported-media-type").await;
        assert_eq!(answer.header("accept-post"), "application/json", "{values:?}");
    }
    let types = [
        "application/json; charset=utf-8",
        "Application/JSON;Charset=\"UTF-8\"",
        "application/json;",
        "application/json;x=y",
    ];
    for (number, value) in types.into_iter().enumerate() {
        let path = format!("/streams/good-{number}/events");
        Answer::of(input.app.request(Method::POST, &path).header("content-type", value).body(GOOD)).await.expect(201);
    }
}

#[tokio::test]
async fn request_ids_are_kept_or_made() {
    let input = Input::start().await;
    let long = "i".repeat(128);
    for id in ["a", "A.b_c-9", "01890a5d-ac96-774b-bcce-b302099a8057", &long] {
        for path in ["/streams/witness-1", "/streams/victim-1", "/nowhere", "/livez"] {
            let answer = Answer::of(input.app.request(Method::GET, path).header("x-request-id", id)).await;
            assert_eq!(answer.header("x-request-id"), id, "{path}");
        }
    }
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    let answer = Answer::of(input.app.request(Method::GET, "/nowhere").header("x-request-id", id)).await;
    assert_eq!(answer.json()["instance"], format!("urn:uuid:{id}"));
    let instance = |id: &'static str| {
        let request = input.app.request(Method::GET, "/nowhere").header("x-request-id", id);
        async { Answer::of(request).await.expect_problem(404, "not-found").json()["instance"].clone() }
    };
    assert_eq!(instance("mine-1").await, instance("mine-1").await, "the same id is the same instance");
    assert_ne!(instance("mine-1").await, instance("mine-2").await);
    let too_long = "i".repeat(129);
    for id in ["", "a b", "a/b", "ä", "<script>", "a\"b", &too_long] {
        let answer = Answer::of(input.app.request(Method::GET, "/nowhere").header("x-request-id", id.as_bytes())).await;
        let made = answer.header("x-request-id").to_owned();
        assert!(uuid::Uuid::try_parse(&made).is_ok(), "{id:?}: {made}");
        assert_eq!(answer.expect_problem(404, "not-found").json()["instance"], format!("urn:uuid:{made}"), "{id:?}");
    }
}
