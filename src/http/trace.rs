//! The trace that a request belongs to (W3C Trace Context), kept with each event that it appends. Members have the names
//! of CloudEvents' distributed tracing extension.

use std::{borrow::Cow, collections::HashMap};

use axum::http::{HeaderMap, HeaderName};
use serde_json::value::RawValue;

/// `traceparent`: the trace, and the span that called (W3C Trace Context §3.2).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate`: what tracing systems tell each other (W3C Trace Context §3.3).
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of a `traceparent` of version 00: `00-<32 hex>-<16 hex>-<2 hex>`.
const PARENT_BYTES: usize = 55;
/// Longest `tracestate` that is passed on, in bytes; every system must pass on as much (§3.3.1.5).
const STATE_BYTES_MAX: usize = 512;

/// The trace of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Trace {
    /// In the form of version 00.
    parent: String,
    /// Printable ASCII.
    state: Option<String>,
}

impl Trace {
    /// Reads it. What breaks the rules counts as absent, and is no reason to refuse a request (§4.3).
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut fields = headers.get_all(TRACEPARENT).iter();
        let parent = parent(fields.next()?.to_str().ok()?)?;
        if fields.next().is_some() {
            return None;
        }
        let states: Result<Vec<&str>, _> = headers.get_all(TRACESTATE).iter().map(|state| state.to_str()).collect();
        let state = states.ok().map(|states| states.join(",")).filter(|state| !state.trim().is_empty());
        Some(Self { parent, state: state.filter(|state| state.len() <= STATE_BYTES_MAX && !state.contains('\t')) })
    }

    /// An event's metadata, a JSON object, with the trace behind its own members. As it was where that says already which
    /// trace the event belongs to, or has no room left below `max` bytes.
    pub fn within<'m>(&self, metadata: Cow<'m, str>, max: usize) -> Cow<'m, str> {
        let members: Option<HashMap<String, &RawValue>> = serde_json::from_str(&metadata).ok();
        let Some(members) = members.filter(|members| !members.contains_key(TRACEPARENT.as_str())) else {
            return metadata;
        };
        let Some(own) = metadata.trim_end().strip_suffix('}') else { return metadata };
        let comma = if members.is_empty() { "" } else { "," };
        let state = self.state.as_ref().filter(|_| !members.contains_key(TRACESTATE.as_str()));
        let state = state.map(|state| format!(",\"{TRACESTATE}\":{}", serde_json::Value::from(state.as_str())));
        let with =
            format!("{own}{comma}\"{TRACEPARENT}\":\"{}\"{}}}", self.parent, state.as_deref().unwrap_or_default());
        if with.len() > max { metadata } else { with.into() }
    }
}

/// A `traceparent`, in the form of version 00. Later versions begin like that (§4.3).
fn parent(text: &str) -> Option<String> {
    let (version, rest) = text.split_once('-')?;
    let rest = match version {
        "00" => Some(rest).filter(|_| text.len() == PARENT_BYTES),
        _ => text
            .get(..PARENT_BYTES)
            .map(|text| &text[3..])
            .filter(|_| matches!(text.as_bytes().get(PARENT_BYTES), None | Some(b'-'))),
    }?;
    let hex =
        |text: &str, digits| text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let id = |text: &str, digits| hex(text, digits) && text.bytes().any(|digit| digit != b'0');
    let mut parts = rest.split('-');
    let good = hex(version, 2)
        && version != "ff"
        && parts.next().is_some_and(|trace| id(trace, 32))
        && parts.next().is_some_and(|span| id(span, 16))
        && parts.next().is_some_and(|flags| hex(flags, 2))
        && parts.next().is_none();
    good.then(|| format!("00-{rest}"))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn trace(fields: &[(HeaderName, &str)]) -> Option<Trace> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        Trace::of(&headers)
    }

    #[test]
    fn a_trace_is_read_by_the_rules() {
        let good = Trace { parent: PARENT.to_owned(), state: None };
        let of = |parent: &str| trace(&[(TRACEPARENT, parent)]);
        assert_eq!(of(PARENT), Some(good));
        // A later version, with and without more behind.
        for later in [PARENT.replacen("00", "42", 1), PARENT.replacen("00", "42", 1) + "-more"] {
            assert_eq!(of(&later).expect("a later version is read").parent, PARENT);
        }
        for bad in [
            "",
            "00",
            &PARENT[..54],
            &format!("{PARENT}0"),
            &format!("{PARENT}-more"),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replacen("00", "4", 1),
            &PARENT.replacen("00", "é", 1),
            &PARENT.to_uppercase(),
            &PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &PARENT.replace("b7ad6b7169203331", &"0".repeat(16)),
            &PARENT.replacen("00", "42", 1).replace("-01", "-0é"),
        ] {
            assert_eq!(HeaderValue::from_str(bad).ok().and_then(|_| of(bad)), None, "{bad}");
        }
        assert_eq!(trace(&[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)]), None, "which?");
        assert_eq!(trace(&[(TRACESTATE, "a=1")]), None);
    }

    #[test]
    fn states_are_one_list() {
        let state = |fields: &[(HeaderName, &str)]| trace(fields).expect("a trace").state;
        let parent = (TRACEPARENT, PARENT);
        let two = [parent.clone(), (TRACESTATE, "a=1,b=2"), (TRACESTATE, "c=\"\\")];
        assert_eq!(state(&two).as_deref(), Some("a=1,b=2,c=\"\\"));
        assert_eq!(state(&[parent.clone(), (TRACESTATE, " ")]), None);
        assert_eq!(state(&[parent, (TRACESTATE, &"a".repeat(513))]), None);
    }

    #[test]
    fn metadata_keeps_its_bytes_and_gets_the_trace() {
        let trace = trace(&[(TRACEPARENT, PARENT), (TRACESTATE, "a=\"")]).expect("a trace");
        let with = |metadata: &str| trace.within(metadata.into(), 200).into_owned();
        let members = format!("\"traceparent\":\"{PARENT}\",\"tracestate\":\"a=\\\"\"}}");
        assert_eq!(with("{}"), format!("{{{members}"));
        assert_eq!(with("{ \"n\": 0.10 }"), format!("{{ \"n\": 0.10 ,{members}"));
        assert_eq!(with("{\"tracestate\":1}"), format!("{{\"tracestate\":1,\"traceparent\":\"{PARENT}\"}}"));
        for own in ["{\"traceparent\":null}", "{\"trace\\u0070arent\":\"mine\"}"] {
            assert_eq!(with(own), own);
        }
        let long = format!("{{\"long\":\"{}\"}}", "x".repeat(180));
        assert_eq!(with(&long), long, "no room");
    }
}
