//! `If-Match` and `If-None-Match`: what an append expects, and what a reader has.

use axum::{
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse as _, Response},
};

use super::{
    etag,
    problem::{Code, Problem},
};
use crate::model::{Condition, Version};

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
enum Tags {
    /// `*`
    Any,
    /// Versions, at least one.
    Versions(Vec<Version>),
}

/// Parses the tags of a header on a read.
///
/// # Errors
/// `invalid-precondition`
fn tags_of(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Problem> {
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

/// The conditions of a read (RFC 9110 §13.2.2).
pub struct Conditions {
    expected: Option<Tags>,
    known: Option<Tags>,
}

impl Conditions {
    /// Read before the store is asked, so that a bad one is refused whatever is there.
    ///
    /// # Errors
    /// `invalid-precondition`
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        Ok(Self { expected: tags_of(headers, &header::IF_MATCH)?, known: tags_of(headers, &header::IF_NONE_MATCH)? })
    }

    /// Whether they expect that something is there.
    #[must_use]
    pub fn expect_something(&self) -> bool {
        self.expected.is_some()
    }

    /// Whether there are any.
    #[must_use]
    pub fn any(&self) -> bool {
        self.expected.is_some() || self.known.is_some()
    }

    /// 304 with these headers where the caller has this version; 412 where it expects another.
    ///
    /// # Errors
    /// `precondition-failed`
    pub fn judge(&self, version: Version, headers: HeaderMap) -> Result<Option<Response>, Problem> {
        let names = |tags: &Tags| match tags {
            Tags::Any => true,
            Tags::Versions(versions) => versions.contains(&version),
        };
        if self.expected.as_ref().is_some_and(|tags| !names(tags)) {
            let detail =
                format!("What you ask for is at version {version}. Read without If-Match, or with that version.");
            return Err(Problem::new(Code::PreconditionFailed, detail).header(header::ETAG, etag(version)));
        }
        let unchanged = self.known.as_ref().is_some_and(names);
        Ok(unchanged.then(|| (StatusCode::NOT_MODIFIED, headers).into_response()))
    }
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
}
