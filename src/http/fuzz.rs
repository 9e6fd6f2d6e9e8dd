//! Fuzz targets: everything that reads what a client wrote. The tests run each a bounded number of times with random
//! input, `make fuzz` (cargo-fuzz, in `fuzz/`) for longer, with input that is led by what it covers.
//!
//! Input is never the text itself, but what is changed in one that was good.

use std::net::{IpAddr, Ipv4Addr};

use axum::{
    extract::RawQuery,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::value::RawValue;

use super::{
    Limits,
    accept::{Form, form},
    access,
    append::{AppendRequest, new_events},
    caller::{Caller, parse_network},
    conditions::{Conditions, condition},
    extract::{IDEMPOTENCY_KEY, Query, idempotency_key},
    feeds::{LAST_EVENT_ID, last_event_id},
    groups::{
        settings::SettingsDocument,
        settle::{AckRequest, ExtendRequest, NackRequest},
    },
    json,
    problem::Problem,
    request,
    trace::{TRACEPARENT, TRACESTATE, Trace},
};
use crate::model::{
    Category, Cursor, EventId, GroupName, LeaseToken, Partitions, StreamCursor, StreamId, Version, check_opaque_json,
    parse_rfc3339, rfc3339,
};

/// A target.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("names", names),
    ("numbers", numbers),
    ("tokens", tokens),
    ("queries", queries),
    ("headers", headers),
    ("bodies", bodies),
    ("paths", paths),
];

/// A text that was good, with some places changed: three bytes of `edits` are a place, what is done there, and with what.
/// What is put in is one of `words`, or any byte.
fn changed(seeds: &[&str], words: &[&str], edits: &[u8]) -> Vec<u8> {
    let (seed, edits) = edits.split_first().unwrap_or((&0, &[]));
    let mut text = seeds[usize::from(*seed) % seeds.len()].as_bytes().to_vec();
    for edit in edits.chunks_exact(3) {
        let at = usize::from(edit[0]) % (text.len() + 1);
        let until = |longest: u8| text.len().min(at + usize::from(edit[2] % longest));
        match edit[1] % 5 {
            0 => drop(text.splice(at..at, words[usize::from(edit[2]) % words.len()].bytes())),
            1 => text.insert(at, edit[2]),
            2 => text.truncate(at),
            3 => drop(text.drain(at..until(8))),
            _ => text.extend_from_within(at..until(32)),
        }
    }
    text
}

fn text(seeds: &[&str], words: &[&str], edits: &[u8]) -> String {
    String::from_utf8_lossy(&changed(seeds, words, edits)).into_owned()
}

/// What comes of input is a value, or a problem that is the client's fault.
fn judged<T>(result: Result<T, Problem>) -> Option<T> {
    result.map_err(|problem| assert!(problem.code().facts().0.is_client_error(), "{problem:?}")).ok()
}

fn partitions() -> Partitions {
    Partitions::new(4).expect("in range")
}

/// Names of streams, groups and categories, and ids of events, by a grammar of their own.
pub fn names(edits: &[u8]) {
    let words = ["/", "%2F", "..", "\0", "{", "}", " ", "é", "-", "+", "~", "a-b+c", "\u{202e}"];
    let text = text(&["order-12345", "a", ".", "order-1+notes"], &words, edits);
    let grammar = |c: char| c.is_ascii_alphanumeric() || "._~:@+-".contains(c);
    let good = (1..=200).contains(&text.chars().count()) && text.chars().all(grammar) && text != "." && text != "..";
    let id = StreamId::parse(&text);
    assert_eq!(id.as_ref().map(StreamId::as_str), good.then_some(&*text));
    assert_eq!(GroupName::parse(&text).is_some(), good);
    assert_eq!(Category::parse(&text).is_some(), good && !text.contains('-'));
    if let Some(id) = id {
        assert!(text.starts_with(id.category()) && text.contains(id.partition_key()));
        assert!(partitions().of(&id).get() < partitions().count());
    }
    let printable = (1..=128).contains(&text.len()) && text.chars().all(|c| (' '..='~').contains(&c));
    assert_eq!(EventId::parse(&text).is_some(), printable);
}

/// Versions and times: what is read is what would be written.
pub fn numbers(edits: &[u8]) {
    let words = ["9007199254740991", "+", "-", ".", "e3", "0", "Z", "T", ":", "23:59:60", "+00:00", "٣"];
    let seeds = ["0", "7", "9007199254740991", "2026-11-25T12:00:00.000Z", "2024-02-29T00:00:00+01:00"];
    let text = text(&seeds, &words, edits);
    let plain = text.parse::<u64>().ok().filter(|number| number.to_string() == text && *number < 1 << 53);
    assert_eq!(Version::parse(&text).map(Version::get), plain);
    if let Some(time) = parse_rfc3339(&text) {
        assert_eq!(parse_rfc3339(&rfc3339(time)), Some(time), "{text}");
    }
}

/// Cursors and leases: what is read from a token is read from the token that it writes.
pub fn tokens(edits: &[u8]) {
    let words = [":", ",", ".", "-", "0", "+1", "9007199254740992", "order-1", "0123456789abcdef", "é"];
    let inner = [
        "0:,,,",
        "3:7-0f1a2b3c,,1-00000000,",
        "1:9007199254740991-ffffffff,,,",
        "0.0123456789abcdef.7.fedcba9876543210:1:7:order-1",
        "3.0123456789abcdef.1.0123456789abcdef:2:1:a",
    ];
    let outer = ["7-0f1a2b3c", "MDo3My0wZjFhMmIzYywsLA", "MC4wMTIzNDU2Nzg5YWJjZGVm"];
    for token in [URL_SAFE_NO_PAD.encode(changed(&inner, &words, edits)), text(&outer, &words, edits)] {
        if let Some(cursor) = Cursor::parse(&token, partitions()) {
            assert_eq!(Cursor::parse(&cursor.token(), partitions()), Some(cursor));
        }
        if let Some(cursor) = StreamCursor::parse(&token) {
            assert_eq!(StreamCursor::parse(&cursor.token()), Some(cursor));
        }
        if let Some(lease) = LeaseToken::parse(&token, partitions()) {
            assert!(lease.stream().is_some() && lease.partition.get() < partitions().count());
            assert_eq!(LeaseToken::parse(&lease.token(), partitions()), Some(lease));
        }
    }
}

/// Queries: what is over a limit is not taken.
pub fn queries(edits: &[u8]) {
    let words = ["&", "=", "%", "%2B", "%ff", "+", "limit=1", "from=", "direction=backward", "wait=60", "category=a"];
    let seeds = ["from=1&limit=100&direction=forward", "category=a&category=b&wait=0", "follow=true", ""];
    let query = RawQuery(Some(text(&seeds, &words, edits)));
    let known = ["from", "limit", "direction", "wait", "follow"];
    let Some(query) = judged(Query::parse_with_lists(&query, &known, &["category"])) else { return };
    assert!(judged(query.limit(100, 1_000)).is_none_or(|limit| (1..=1_000).contains(&limit)));
    assert!(judged(query.version("from")).is_none_or(|version| version != Some(Version::ZERO)));
    assert!(judged(query.wait()).is_none_or(|wait| wait.as_secs() <= 60));
    judged(query.direction());
    judged(query.flag("follow"));
    judged(query.list("category", "x", Category::parse));
}

/// The headers that somebody reads, each with a good value.
const HEADERS: [(HeaderName, &str); 13] = [
    (header::IF_MATCH, "\"7\", W/\"8\""),
    (header::IF_NONE_MATCH, "*"),
    (IDEMPOTENCY_KEY, "\"8e03978e\\\"\""),
    (LAST_EVENT_ID, "7-0f1a2b3c"),
    (header::ACCEPT, "text/event-stream;q=0.5, application/json"),
    (header::ACCEPT_ENCODING, "gzip, br;q=0.1, identity;q=0"),
    (header::CONTENT_TYPE, "application/json; charset=utf-8"),
    (header::CONTENT_ENCODING, "gzip"),
    (header::HOST, "[::1]:7070"),
    (header::FORWARDED, "for=\"[2001:db8::1]:4711\";proto=https, for=10.0.0.2"),
    (HeaderName::from_static("x-forwarded-for"), "198.51.100.1, 10.0.0.2"),
    (TRACEPARENT, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (TRACESTATE, "vendor=\"value\""),
];

/// Headers, some of them left out, some twice.
pub fn headers(edits: &[u8]) {
    let words = ["\"", "\\", ",", ";", "=", "q=", "W/", "*", "0", "9007199254740992", "\t", "é", "identity", ":", "["];
    let mut headers = HeaderMap::new();
    for (at, (name, good)) in HEADERS.iter().enumerate() {
        let edits = edits.get(at * 4..).unwrap_or_default();
        let edits = &edits[..edits.len().min(10)];
        for edits in std::iter::repeat_n(edits, edits.first().map_or(1, |byte| usize::from(byte % 8).min(2))) {
            let value = HeaderValue::from_bytes(&changed(&[good], &words, edits)).ok();
            headers.extend(value.map(|value| (name.clone(), value)));
        }
    }
    judged(condition(&headers));
    judged(Conditions::of(&headers));
    judged(form(&headers, Form::ALL));
    judged(last_event_id(&headers, StreamCursor::parse));
    let printable = |key: &str| (1..=255).contains(&key.len()) && key.chars().all(|c| (' '..='~').contains(&c));
    assert!(judged(idempotency_key(&headers)).flatten().is_none_or(|key| printable(&key)));
    let metadata = r#"{"user":"ada"}"#;
    let with = Trace::of(&headers).map_or(metadata.into(), |trace| trace.within(metadata.into(), 1_000));
    assert!(with.starts_with(r#"{"user":"ada""#) && serde_json::from_str::<&RawValue>(&with).is_ok(), "{with}");
    let gateway = IpAddr::from(Ipv4Addr::LOCALHOST);
    assert_eq!(Caller::of(gateway, &headers, &[]), Caller(gateway), "nobody is trusted");
    Caller::of(gateway, &headers, &[parse_network("127.0.0.0/8").expect("a network")]);
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    judged(request::refusal(&request).map_or(Ok(()), Err));
    judged(request::content_coding(request.headers_mut()));
}

/// The bodies that are read.
const BODIES: [&str; 6] = [
    r#"{"events":[{"id":"1","type":"placed","data":{"total":42.50},"metadata":{"user":"ada"}},{"type":"b","data":["\ud83d\ude00"]}]}"#,
    r#"{"events":[{"type":"a","data":null}]}"#,
    r#"{"leases":["MC4wMTIzNDU2Nzg5YWJjZGVm"],"action":"retry","delay_ms":1000,"reason":"x"}"#,
    r#"{"leases":["x"],"lease_ms":30000}"#,
    r#"{"categories":["order"],"types":["a"],"start":"2026-11-25T12:00:00Z","ordering":"stream","backoff_ms":[1,2],"on_exhausted":"park_stream"}"#,
    r#"{"stream":"order-1","start":7,"lease_ms":1000,"max_deliveries":1,"max_in_flight":10000}"#,
];

/// Bodies: what is opaque stays as it was, and settings of groups are taken as they are shown.
pub fn bodies(edits: &[u8]) {
    let words = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\\ud800",
        "\\u0000",
        "null",
        "-0",
        "1e999",
        "[[[[[[[[[[[[[",
        " ",
        "é",
        "\"id\":\"1\",",
        "\u{feff}",
        "\"events\":",
        "\"type\":",
        "\"data\":1,",
        "\"metadata\":{},",
        "\"start\":0,",
    ];
    let (body, limits) = (&changed(&BODIES, &words, edits), Limits { json_depth: 12, ..Limits::default() });
    let stream = StreamId::parse("order-1").expect("an id");
    for key in [None, Some("key")] {
        let request = json::parse::<AppendRequest<'_>>(body, "");
        let events = judged(request.and_then(|request| new_events(&stream, request, key, &limits)));
        for event in events.into_iter().flat_map(|(events, _)| events) {
            for opaque in [event.data.get(), &*event.metadata] {
                assert_eq!(check_opaque_json(opaque, limits.json_depth), Ok(()));
                assert!(serde_json::from_str::<&RawValue>(opaque).is_ok(), "{opaque}");
            }
            assert!(String::from_utf8_lossy(body).contains(event.data.get()), "byte for byte");
        }
    }
    judged(json::parse::<AckRequest>(body, ""));
    judged(json::parse::<NackRequest>(body, ""));
    judged(json::parse::<ExtendRequest>(body, ""));
    let settings = |body: &[u8]| {
        judged(json::parse::<SettingsDocument>(body, "").and_then(|settings| settings.checked(partitions())))
    };
    if let Some((taken, _)) = settings(body) {
        let shown = serde_json::to_vec(&SettingsDocument::of(&taken, partitions())).expect("it is JSON");
        assert_eq!(settings(&shown).expect("as it is shown it is taken").0, taken);
    }
}

/// Paths: what is open to all is nothing that needs something.
pub fn paths(edits: &[u8]) {
    let words =
        ["/", "%2F", "//", "..", ".", "?", "%", "streams", "groups", "next", "events", "livez", "docs", "é", ";"];
    let seeds = ["/streams/order-1/events/1", "/groups/g/parked/replay", "/livez", "/docs/", "/store/events"];
    let path = text(&seeds, &words, edits);
    for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let open = access::is_open(&method, &path);
        assert!(method == Method::OPTIONS || !open || access::need(&method, &path).is_none(), "{method} {path}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each target is tried, with as many bytes at most.
    const TRIES: usize = 20_000;
    const BYTES: usize = 64;

    /// Shows the input of a target that panics.
    struct Shown<'a>(&'a str, &'a [u8]);

    impl Drop for Shown<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("the target {} had {:?}", self.0, self.1);
            }
        }
    }

    #[test]
    fn random_input_breaks_nothing() {
        for (name, target) in TARGETS {
            for _ in 0..TRIES {
                let edits: Vec<u8> =
                    std::iter::repeat_with(|| fastrand::u8(..)).take(fastrand::usize(..BYTES)).collect();
                let _shown = Shown(name, &edits);
                target(&edits);
            }
        }
    }
}
