//! Takes requests apart: paths, queries, conditions, bodies. Whatever does not parse is refused with a problem.

use std::{borrow::Cow, convert::Infallible, str::FromStr, time::Duration};

use axum::{
    extract::{FromRequestParts, Path, RawQuery},
    http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts},
};
use percent_encoding::percent_decode_str;

use super::problem::{Code, Problem};
use crate::model::{Condition, GroupName, StreamId, Version};

/// The bodies that are read (W3C LDP §7.1), with every refusal of another kind.
pub const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
/// The only kind, so far.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

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

/// The query, of which only the given keys are known. Each may stand once.
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Parses a query.
    ///
    /// # Errors
    /// `invalid-parameter`: an unknown key, one twice, or text that is no UTF-8.
    pub fn parse(query: &RawQuery, known: &[&str]) -> Result<Self, Problem> {
        let refuse = |detail: String| Err(Problem::new(Code::InvalidParameter, detail));
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query.0.as_deref().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(key), Some(value)) = (decode(key), decode(value)) else {
                return refuse("The query is no UTF-8 after percent-decoding.".to_owned());
            };
            if !known.contains(&key.as_str()) {
                return refuse(format!("This address knows the parameters {}, and no others.", known.join(", ")));
            }
            if pairs.iter().any(|(other, _)| *other == key) {
                return refuse(format!("The parameter {key} stands there twice."));
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

fn decode(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(Cow::into_owned)
}

/// The condition of an append: `If-Match` or `If-None-Match`.
///
/// # Errors
/// `invalid-precondition`
pub fn condition(headers: &HeaderMap) -> Result<Option<Condition>, Problem> {
    let refuse = |detail: &str| Err(Problem::new(Code::InvalidPrecondition, detail));
    match (single(headers, &header::IF_MATCH)?, single(headers, &header::IF_NONE_MATCH)?) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => refuse("Send If-Match or If-None-Match, not both."),
        (None, Some(text)) if text.trim() == "*" => Ok(Some(Condition::NoStream)),
        (None, Some(_)) => refuse("An append reads If-None-Match: * only; say what you expect with If-Match."),
        (Some(text), None) => match tags(text) {
            Some(Tags::Any) => Ok(Some(Condition::Exists)),
            Some(Tags::Versions(versions)) => Ok(Some(Condition::OneOf(versions))),
            None => refuse("If-Match is * or versions such as \"7\", with commas between them."),
        },
    }
}

/// What the tags of `If-Match` or `If-None-Match` name.
#[derive(Debug, PartialEq, Eq)]
pub enum Tags {
    /// `*`
    Any,
    /// Versions, at least one.
    Versions(Vec<Version>),
}

/// Parses the tags of a header on a read.
///
/// # Errors
/// `invalid-precondition`
pub fn tags_of(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Problem> {
    let Some(text) = single(headers, name)? else { return Ok(None) };
    match tags(text) {
        Some(tags) => Ok(Some(tags)),
        None => Err(Problem::new(Code::InvalidPrecondition, "A condition is * or versions such as \"7\".")),
    }
}

/// `*`, or tags with commas between them (RFC 9110 §13.1.1). A gateway that compresses makes a tag weak, and people
/// forget the quotes: `W/"7"` and `7` mean `"7"`.
fn tags(text: &str) -> Option<Tags> {
    /// More versions than this in one header are no honest condition.
    const TAGS_MAX: usize = 100;
    if text.trim() == "*" {
        return Some(Tags::Any);
    }
    let version = |tag: &str| {
        let tag = tag.trim();
        let quoted = tag.strip_prefix("W/").unwrap_or(tag);
        match quoted.strip_prefix('"') {
            Some(rest) => Version::parse(rest.strip_suffix('"')?),
            None if quoted.len() == tag.len() => Version::parse(tag),
            None => None,
        }
    };
    let versions: Vec<Version> = text.split(',').map(version).collect::<Option<_>>()?;
    (versions.len() <= TAGS_MAX).then_some(Tags::Versions(versions))
}

/// A header that must stand once at most; lists over several lines are joined by no client that we know.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match value.to_str() {
        Ok(text) if values.next().is_none() => Ok(Some(text)),
        _ => Err(Problem::new(Code::InvalidPrecondition, format!("The header {name} stands once, in ASCII."))),
    }
}

/// `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07): a quoted string (RFC 9651 §3.3.3), or the bare text.
///
/// # Errors
/// `invalid-request`
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    const NAME: HeaderName = HeaderName::from_static("idempotency-key");
    let mut values = headers.get_all(&NAME).iter();
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

/// That the client takes JSON (RFC 9110 §12.5.1); without `Accept` it takes anything. Of the ranges that fit, the
/// most specific one decides.
///
/// # Errors
/// `not-acceptable`
pub fn accepts_json(headers: &HeaderMap) -> Result<(), Problem> {
    let specificity = |range: &str| match range {
        "application/json" => Some(3),
        "application/*" => Some(2),
        "*/*" => Some(1),
        _ => None,
    };
    let mut accepted = headers.get_all(header::ACCEPT).iter().all(|value| value.as_bytes().trim_ascii().is_empty());
    let mut best = 0;
    for (range, weight) in weighted(headers, &header::ACCEPT) {
        if let Some(rank) = specificity(&range).filter(|rank| *rank >= best) {
            accepted = weight > 0.0 || (rank == best && accepted);
            best = rank;
        }
    }
    if accepted { Ok(()) } else { Err(Problem::new(Code::NotAcceptable, "The answer is application/json.")) }
}

/// What a header of negotiation names, in small letters, and how much it is wanted (RFC 9110 §12.4.2); 0: not at all.
pub fn weighted(headers: &HeaderMap, name: &HeaderName) -> impl Iterator<Item = (String, f32)> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|item| {
        let item = item.to_ascii_lowercase();
        let mut parts = item.split(';').map(str::trim);
        let named = parts.next().unwrap_or_default().to_owned();
        let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| f32::from_str(q).unwrap_or(0.0));
        (named, weight)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_as_gateways_and_people_write_them() {
        let versions = |numbers: &[u64]| Tags::Versions(numbers.iter().filter_map(|n| Version::new(*n)).collect());
        assert_eq!(tags("*"), Some(Tags::Any));
        assert_eq!(tags("\"7\""), Some(versions(&[7])));
        assert_eq!(tags("W/\"7\", 8 ,\"9\""), Some(versions(&[7, 8, 9])));
        for bad in ["", "\"\"", "W/7", "\"7", "7\"", "+7", "-1", "\"7\",", "* , \"7\"", "1.0", "abc"] {
            assert_eq!(tags(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn keys_are_read_quoted_and_bare() {
        assert_eq!(unquote("\"a b\\\"c\""), Some("a b\"c".to_owned()));
        assert_eq!(unquote("8e03978e-40d5"), Some("8e03978e-40d5".to_owned()));
        for bad in ["\"", "\"a", "a\"", "\"a\"b\"", "\"\\x\"", "a\\b"] {
            assert_eq!(unquote(bad), None, "{bad:?}");
        }
    }
}
