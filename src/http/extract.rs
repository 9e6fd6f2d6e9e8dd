//! Takes requests apart: paths, queries, conditions, bodies. Whatever does not parse is refused with a problem.

use std::{borrow::Cow, convert::Infallible, time::Duration};

use axum::{
    extract::{FromRequestParts, Path, RawQuery},
    http::{HeaderMap, HeaderName, HeaderValue, request::Parts},
};
use percent_encoding::percent_decode_str;

use super::problem::{Code, Problem};
use crate::{
    model::{Durability, GroupName, StreamId, Version},
    store::Direction,
};

/// The bodies that are read (W3C LDP §7.1), with every refusal of another kind.
pub const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
/// The only kind, so far.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Most values of a list.
const LIST_MAX: usize = 100;
/// Makes an append without ids repeatable.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Longest `wait`: gateways commonly give up after 60 s.
const WAIT_MAX_SECS: u64 = 60;

/// The stream of the path.
pub struct StreamPath(pub StreamId);

impl<S: Send + Sync> FromRequestParts<S> for StreamPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, state).await.map_err(|_| unreadable_path())?;
        stream_id(&path.0).map(Self)
    }
}

/// The stream and the version of the path.
pub struct EventPath(pub StreamId, pub Version);

impl<S: Send + Sync> FromRequestParts<S> for EventPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await.map_err(|_| unreadable_path())?;
        let Path((stream, version)) = path;
        let stream = stream_id(&stream)?;
        match Version::parse(&version).filter(|version| *version > Version::ZERO) {
            Some(version) => Ok(Self(stream, version)),
            None => Err(Problem::new(Code::InvalidParameter, "A version is a whole number from 1 to 2^53-1.")),
        }
    }
}

/// The consumer group of the path.
pub struct GroupPath(pub GroupName);

impl<S: Send + Sync> FromRequestParts<S> for GroupPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, state).await.map_err(|_| unreadable_path())?;
        GroupName::parse(&path.0)
            .map(Self)
            .ok_or_else(|| Problem::new(Code::InvalidGroupName, format!("A group's name has {}", StreamId::RULE)))
    }
}

/// The headers, taken out of the request: axum's own extractor copies them all. Nothing after it sees any.
pub struct Headers(pub HeaderMap);

impl<S: Send + Sync> FromRequestParts<S> for Headers {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(std::mem::take(&mut parts.headers)))
    }
}

fn unreadable_path() -> Problem {
    Problem::new(Code::InvalidPath, "The path is no UTF-8 after percent-decoding.")
}

/// Parses a stream id.
///
/// # Errors
/// `invalid-stream-id`
pub fn stream_id(text: &str) -> Result<StreamId, Problem> {
    StreamId::parse(text)
        .ok_or_else(|| Problem::new(Code::InvalidStreamId, format!("A stream id has {}", StreamId::RULE)))
}

/// The query, of which only the given keys are known. Each may stand once, unless it is that of a list.
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Parses a query.
    ///
    /// # Errors
    /// `invalid-parameter`: an unknown key, one twice, or text that is no UTF-8.
    pub fn parse(query: &RawQuery, known: &[&str]) -> Result<Self, Problem> {
        Self::parse_with_lists(query, known, &[])
    }

    /// The same, where the keys of `lists`, which are known too, may stand several times: an array in the default form of
    /// OpenAPI.
    ///
    /// # Errors
    /// `invalid-parameter`
    pub fn parse_with_lists(query: &RawQuery, known: &[&str], lists: &[&str]) -> Result<Self, Problem> {
        let refuse = |detail: String| Err(Problem::new(Code::InvalidParameter, detail));
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in decoded_pairs(query.0.as_deref().unwrap_or_default()) {
            let Some((key, value)) = pair else {
                return refuse("The query is no UTF-8 after percent-decoding.".to_owned());
            };
            let is_list = lists.contains(&key.as_str());
            if !is_list && !known.contains(&key.as_str()) {
                let known = [known, lists].concat().join(", ");
                return refuse(format!("This address knows the parameters {known}, and no others."));
            }
            let before = pairs.iter().filter(|(other, _)| *other == key).count();
            if before > 0 && !is_list {
                return refuse(format!("The parameter {key} stands there twice."));
            }
            if before == LIST_MAX {
                return refuse(format!("The parameter {key} stands there at most {LIST_MAX} times."));
            }
            pairs.push((key, value));
        }
        Ok(Self { pairs })
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The values of a list, each as `parse` understands it.
    ///
    /// # Errors
    /// `invalid-parameter`, which says that each must be `what`.
    pub fn list<T>(&self, key: &str, what: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Problem> {
        let values = self.pairs.iter().filter(|(name, _)| name == key).map(|(_, value)| parse(value));
        let values: Option<Vec<T>> = values.collect();
        values.ok_or_else(|| Problem::new(Code::InvalidParameter, format!("The parameter {key} is {what}.")))
    }

    /// `true` or `false`; absent: `false`.
    ///
    /// # Errors
    /// `invalid-parameter`
    pub fn flag(&self, key: &str) -> Result<bool, Problem> {
        Ok(self.parsed(key, "true or false", |text| text.parse().ok())?.unwrap_or(false))
    }

    /// A version of at least 1.
    ///
    /// # Errors
    /// `invalid-parameter`
    pub fn version(&self, key: &str) -> Result<Option<Version>, Problem> {
        self.parsed(key, "a whole number from 1 to 2^53-1", |text| Version::parse(text).filter(|v| *v > Version::ZERO))
    }

    /// A page size from 1 to `max`.
    ///
    /// # Errors
    /// `invalid-parameter`
    pub fn limit(&self, default: usize, max: usize) -> Result<usize, Problem> {
        let digits = |text: &str| Version::parse(text).and_then(|number| usize::try_from(number.get()).ok());
        let limit = self.parsed("limit", &format!("a whole number from 1 to {max}"), |text| {
            digits(text).filter(|limit| (1..=max).contains(limit))
        })?;
        Ok(limit.unwrap_or(default.min(max)))
    }

    /// Which way to read; forward if absent.
    ///
    /// # Errors
    /// `invalid-parameter`
    pub fn direction(&self) -> Result<Direction, Problem> {
        let direction = self.parsed("direction", "forward or backward", |text| match text {
            "forward" => Some(Direction::Forward),
            "backward" => Some(Direction::Backward),
            _ => None,
        })?;
        Ok(direction.unwrap_or(Direction::Forward))
    }

    /// How long a request may wait for something to happen; zero if absent.
    ///
    /// # Errors
    /// `invalid-parameter`
    pub fn wait(&self) -> Result<Duration, Problem> {
        let seconds = |text: &str| Version::parse(text).map(Version::get).filter(|seconds| *seconds <= WAIT_MAX_SECS);
        let wait = self.parsed("wait", &format!("a whole number of seconds from 0 to {WAIT_MAX_SECS}"), seconds)?;
        Ok(Duration::from_secs(wait.unwrap_or(0)))
    }

    /// A value that `parse` understands.
    ///
    /// # Errors
    /// `invalid-parameter`, which says that the value must be `what`.
    pub fn parsed<T>(&self, key: &str, what: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Problem> {
        let Some(text) = self.get(key) else { return Ok(None) };
        match parse(text) {
            Some(value) => Ok(Some(value)),
            None => Err(Problem::new(Code::InvalidParameter, format!("The parameter {key} is {what}."))),
        }
    }
}

/// The keys of a query with their values; `None` for a pair that is no UTF-8.
pub fn decoded_pairs(query: &str) -> impl Iterator<Item = Option<(String, String)>> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decode(key)?, decode(value)?))
    })
}

fn decode(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(Cow::into_owned)
}

/// That a read which waits goes forward.
///
/// # Errors
/// `invalid-parameter`
pub fn forward_only(direction: Direction) -> Result<(), Problem> {
    match direction {
        Direction::Forward => Ok(()),
        Direction::Backward => {
            let detail = "What comes is at the head: wait goes with direction=forward.";
            Err(Problem::new(Code::InvalidParameter, detail))
        }
    }
}

/// `Streamkeep-Durability`: what an append must survive, of a request; what it survives, of its 2xx answer.
pub const DURABILITY: HeaderName = HeaderName::from_static("streamkeep-durability");

/// The level that an append asks for.
///
/// # Errors
/// `invalid-request`
pub fn durability(headers: &HeaderMap) -> Result<Option<Durability>, Problem> {
    let mut values = headers.get_all(&DURABILITY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match value.to_str().ok().filter(|_| values.next().is_none()).and_then(|text| Durability::parse(text.trim())) {
        Some(level) => Ok(Some(level)),
        None => {
            let rule = "Streamkeep-Durability stands once: memory, fsync, replicated or replicated-fsync.";
            Err(Problem::new(Code::InvalidRequest, rule))
        }
    }
}

/// `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07): a quoted string (RFC 9651 §3.3.3), or the bare text.
///
/// # Errors
/// `invalid-request`
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(&IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().ok().filter(|_| values.next().is_none()).and_then(|text| unquote(text.trim()));
    match key.filter(|key| (1..=255).contains(&key.len())) {
        Some(key) => Ok(Some(key)),
        None => {
            let rule =
                "Idempotency-Key stands once, with 1 to 255 printable ASCII characters, in double quotes or bare.";
            Err(Problem::new(Code::InvalidRequest, rule))
        }
    }
}

fn unquote(text: &str) -> Option<String> {
    let Some(inner) = text.strip_prefix('"') else {
        return (!text.contains(['"', '\\', '\t'])).then(|| text.to_owned());
    };
    let inner = inner.strip_suffix('"')?;
    let mut key = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => key.push(characters.next().filter(|next| matches!(next, '"' | '\\'))?),
            '"' | '\t' => return None,
            other => key.push(other),
        }
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_quoted_and_bare() {
        assert_eq!(unquote("\"a b\\\"c\""), Some("a b\"c".to_owned()));
        assert_eq!(unquote("8e03978e-40d5"), Some("8e03978e-40d5".to_owned()));
        for bad in ["\"", "\"a", "a\"", "\"a\"b\"", "\"\\x\"", "a\\b"] {
            assert_eq!(unquote(bad), None, "{bad:?}");
        }
    }
}
