//! What every answer has: the rules of HEAD, of caches and of compression.

use std::io::Read as _;

use flate2::read::GzDecoder;
use reqwest::Method;

use crate::{
    app::Answer,
    input::{GOOD, Input},
};

#[tokio::test]
async fn head_answers_with_the_headers_of_get() {
    let input = Input::start().await;
    let paths = [
        "/streams/witness-1",
        "/streams/witness-1?limit=1",
        "/streams/witness-1/events/1",
        "/events",
        "/livez",
        "/readyz",
        "/openapi.json",
        "/docs/",
        "/streams/victim-1",
        "/streams/a%2Fb",
        "/nowhere",
        "/streams/witness-1?from=0",
    ];
    for path in paths {
        let (head, get) = (input.app.head(path).await, input.app.get(path).await);
        assert_eq!(head.status, get.status, "{path}");
        assert!(head.text.is_empty(), "{path}: {head:?}");
        for name in ["content-type", "etag", "cache-control", "vary"] {
            assert_eq!(head.header(name), get.header(name), "{path}: {name}");
        }
        // What is not known without reading may be left out, but is not wrong (RFC 9110 §8.6).
        if head.headers.contains_key("content-length") {
            assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
        }
        assert!(!head.header("x-request-id").is_empty(), "{path}");
    }
}

#[tokio::test]
async fn caches_are_told_what_they_may_keep() {
    let input = Input::start().await;
    for path in ["/streams/witness-1", "/streams/witness-1/events/1", "/events"] {
        let answer = input.app.get(path).await.expect(200);
        assert_eq!(answer.header("cache-control"), "private, no-cache", "{path}");
        assert_eq!(answer.header("vary").to_ascii_lowercase(), "accept, accept-encoding", "{path}");
        assert_eq!(answer.header("content-type"), "application/json", "{path}");
    }
    for path in ["/livez", "/readyz", "/nowhere", "/streams/victim-1", "/streams/witness-1?from=0"] {
        assert_eq!(input.app.get(path).await.header("cache-control"), "no-store", "{path}");
    }
}

#[tokio::test]
async fn large_answers_are_compressed_and_keep_their_tag() {
    let input = Input::start().await;
    let large = format!(r#"{{"events":[{{"type":"a","data":"{}"}}]}}"#, "x".repeat(5_000));
    input.app.append("large-1", &large).await.expect(201);
    let get = |path: &'static str, coding: &'static str| {
        let request = input.app.request(Method::GET, path).header("accept-encoding", coding);
        async { request.send().await.unwrap() }
    };
    for path in ["/streams/large-1", "/streams/large-1/events/1", "/events?stream=large-1", "/openapi.json"] {
        let plain = input.app.get(path).await.expect(200);
        assert_eq!(plain.header("content-encoding"), "", "{path}: not asked for");
        for (asked, wanted) in [
            ("gzip", "gzip"),
            ("br", "br"),
            ("zstd", "zstd"),
            ("gzip;q=0.1, zstd", "zstd"),
            ("gzip;q=0, br", "br"),
            ("GZIP", "gzip"),
            ("identity", ""),
            ("deflate", ""),
            ("gzip;q=0", ""),
            ("", ""),
            ("identity;q=0", ""),
            ("*;q=0", ""),
            ("nonsense;q=x", ""),
        ] {
            let answer = get(path, asked).await;
            let header = |name: &str| answer.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
            assert_eq!(answer.status(), 200, "{path} {asked}");
            assert_eq!(header("content-encoding"), wanted, "{path} {asked}");
            assert!(header("vary").to_ascii_lowercase().contains("accept-encoding"), "{path} {asked}");
            assert_eq!(header("etag"), plain.header("etag"), "{path} {asked}");
            let body = answer.bytes().await.unwrap();
            if wanted == "gzip" {
                let mut text = String::new();
                GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap();
                assert_eq!(text, plain.text, "{path} {asked}");
            } else if wanted.is_empty() {
                assert_eq!(body, plain.text.as_bytes(), "{path} {asked}");
            } else {
                assert!(body.len() < plain.text.len(), "{path} {asked}");
            }
        }
    }
    let small = get("/streams/witness-1/events/1", "gzip").await;
    assert!(!small.headers().contains_key("content-encoding"), "not worth it");
}

#[tokio::test]
async fn an_append_is_answered_as_it_went_whatever_codings_are_refused() {
    let input = Input::start().await;
    for (version, coding) in
        ["identity;q=0", "*;q=0", "deflate, identity;q=0", "gzip, *;q=0", "identity;q=-1"].iter().enumerate()
    {
        let answer = input.app.append_with("good-1", &[("accept-encoding", coding)], GOOD).await.expect(201);
        assert_eq!(answer.json()["version"], version + 1);
    }
}

#[tokio::test]
async fn problems_echo_nothing() {
    let mut input = Input::start().await;
    let probe = "<script>alert(1)</script>";
    let escaped = "%3Cscript%3Ealert(1)%3C%2Fscript%3E";
    let mut answers = vec![
        input.refused_get(&format!("/streams/{escaped}"), 400, "invalid-stream-id").await,
        input.refused_get(&format!("/{escaped}"), 404, "not-found").await,
        input.refused_get(&format!("/events?{escaped}=1"), 400, "invalid-parameter").await,
        input.refused_get(&format!("/events?after={escaped}"), 400, "invalid-parameter").await,
        input.refused_get(&format!("/streams/witness-1?from={escaped}"), 400, "invalid-parameter").await,
        input.refused_get(&format!("/streams/witness-1/events/{escaped}"), 400, "invalid-parameter").await,
    ];
    for name in ["if-match", "if-none-match", "accept", "content-type", "content-encoding"] {
        let status = match name {
            "accept" => (406, "not-acceptable"),
            "content-type" | "content-encoding" => (415, "unsupported-media-type"),
            _ => (400, "invalid-precondition"),
        };
        let request = input.app.request(Method::POST, "/streams/victim-1/events").header(name, probe).body(GOOD);
        answers.push(input.refused(name, request, status.0, status.1).await);
    }
    for body in [
        format!("{{\"a, expected {probe} at line \":1}}"),
        format!("{{\"events\":\"a, expected {probe} at line \"}}"),
        format!("{{\"events\":[{{\"id\":{{\"a, expected {probe} at line \":1}}}}]}}"),
        format!("{{\"{probe}\":1}}"),
        format!("{{\"events\":\"{probe}\"}}"),
        format!("{{\"events\":[{{\"{probe}\":1}}]}}"),
        format!("{{\"events\":[{{\"type\":\"a\",\"data\":1,\"metadata\":\"{probe}\"}}]}}"),
        probe.to_owned(),
        format!("{{\"events\":[]}}{probe}"),
    ] {
        answers.push(input.refused_body(body, 400, "invalid-json").await);
    }
    for answer in answers {
        assert!(!answer.text.contains("script") && !answer.text.contains("alert"), "echoes: {answer:?}");
    }
    let answer = Answer::of(input.app.request(Method::GET, "/nowhere").header("x-request-id", probe)).await;
    assert!(!format!("{answer:?}").contains("script"), "echoes: {answer:?}");
}
