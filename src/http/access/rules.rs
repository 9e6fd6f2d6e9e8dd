//! What each request needs. The one place that says so: requests are judged by it, and the OpenAPI document tells it.

use std::borrow::Cow;

use axum::http::Method;
use percent_encoding::percent_decode_str;

use super::grant::Verb;

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// One stream.
    Stream(Cow<'a, str>),
    /// The log or the list of streams: all streams, or those that the query names.
    Log,
    /// One group.
    Group(Cow<'a, str>),
    /// The list of groups, of which only those are shown that may be seen.
    Groups,
    /// All groups.
    AllGroups,
}

/// What a request needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Need<'a> {
    /// One of these verbs.
    pub verbs: &'static [Verb],
    /// For this.
    pub target: Target<'a>,
}

/// Whether anybody may ask: probes have no credentials, the documentation tells nothing of what is stored, and OPTIONS
/// no more than the documentation.
pub fn is_open(method: &Method, path: &str) -> bool {
    let documentation = path == "/docs" || path.starts_with("/docs/") || path == "/openapi.json";
    method == Method::OPTIONS || matches!(path, "/livez" | "/readyz") || documentation
}

/// What a request needs; `None` where there is no such operation, which is for the router to say. HEAD needs what GET
/// needs.
pub fn need<'a>(method: &Method, path: &'a str) -> Option<Need<'a>> {
    use Verb::{Append, Consume, Manage, Read};
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let stream = |verbs, id| Some(Need { verbs, target: Target::Stream(decoded(id)) });
    let group = |verbs, name| Some(Need { verbs, target: Target::Group(decoded(name)) });
    match (method, segments.as_slice()) {
        ("GET", ["streams" | "events"]) => Some(Need { verbs: &[Read], target: Target::Log }),
        ("GET", ["streams", id] | ["streams", id, "events", _]) => stream(&[Read], id),
        ("POST", ["streams", id, "events"]) => stream(&[Append], id),
        ("GET", ["metrics"]) => Some(Need { verbs: &[Manage], target: Target::AllGroups }),
        ("GET", ["groups"]) => Some(Need { verbs: &[Consume, Manage], target: Target::Groups }),
        ("GET", ["groups", name] | ["groups", name, "parked"]) => group(&[Consume, Manage], name),
        ("GET" | "POST", ["groups", name, "next"]) | ("POST", ["groups", name, "ack" | "nack" | "extend"]) => {
            group(&[Consume], name)
        }
        ("PUT" | "DELETE", ["groups", name])
        | ("DELETE", ["groups", name, "parked"])
        | ("POST", ["groups", name, "seek" | "pause" | "resume"] | ["groups", name, "parked", "replay"]) => {
            group(&[Manage], name)
        }
        _ => None,
    }
}

/// As the handlers see it. What is no UTF-8 they refuse.
fn decoded(segment: &str) -> Cow<'_, str> {
    percent_decode_str(segment).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_seen_as_the_handlers_see_them() {
        let need = need(&Method::HEAD, "/streams/order%2D1").expect("a rule");
        assert_eq!(need, Need { verbs: &[Verb::Read], target: Target::Stream("order-1".into()) });
    }

    #[test]
    fn only_what_tells_nothing_is_open() {
        for path in ["/livez", "/readyz", "/docs", "/docs/", "/docs/x.js", "/openapi.json"] {
            assert!(is_open(&Method::GET, path), "{path}");
        }
        for path in ["/", "/docsx", "/livez/", "//livez", "/events", "/streams/livez", "/streams/docs/events/1"] {
            assert!(!is_open(&Method::GET, path), "{path}");
        }
    }
}
