//! Which form of an answer a client takes (RFC 9110 §12.5.1).

use std::str::FromStr;

use axum::http::{HeaderMap, HeaderName, header};

use super::problem::{Code, Problem};

/// A form that answers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One JSON document.
    Json,
    /// Server-sent events (WHATWG HTML §9.2): a feed.
    EventStream,
    /// One JSON document a line.
    Ndjson,
}

impl Form {
    /// All forms, the one that is given to whoever takes anything first.
    pub const ALL: &'static [Self] = &[Self::Json, Self::EventStream, Self::Ndjson];

    /// Its media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::EventStream => "text/event-stream",
            Self::Ndjson => "application/x-ndjson",
        }
    }

    /// How well a range of `Accept` fits: 3 exactly, 1 if it fits anything, 0 not at all. Whoever takes anything is given
    /// JSON: an answer without an end has to be asked for by name.
    fn rank(self, range: &str) -> u8 {
        match range {
            range if range == self.media_type() => 3,
            "application/*" if self == Self::Json => 2,
            "*/*" if self == Self::Json => 1,
            _ => 0,
        }
    }

    /// How much a client wants this form, and how exactly it says so; the most specific range decides. `None`: not at
    /// all.
    fn wanted(self, headers: &HeaderMap) -> Option<(f32, u8)> {
        let (mut weight, mut best) = (0.0_f32, 0);
        for (range, q) in weighted(headers, &header::ACCEPT) {
            let rank = self.rank(&range);
            if rank > 0 && rank >= best {
                weight = if rank == best { weight.max(q) } else { q };
                best = rank;
            }
        }
        (weight > 0.0).then_some((weight, best))
    }
}

/// The form, of those offered, that the client wants most; without `Accept` the first.
///
/// # Errors
/// `not-acceptable`
pub fn form(headers: &HeaderMap, offered: &[Form]) -> Result<Form, Problem> {
    let silent = headers.get_all(header::ACCEPT).iter().all(|value| value.as_bytes().trim_ascii().is_empty());
    if silent && let Some(first) = offered.first() {
        return Ok(*first);
    }
    let mut best = None;
    for form in offered {
        if let Some(wanted) = form.wanted(headers)
            && best.is_none_or(|(_, before)| wanted > before)
        {
            best = Some((*form, wanted));
        }
    }
    best.map(|(form, _)| form).ok_or_else(|| {
        let kinds: Vec<_> = offered.iter().map(|form| form.media_type()).collect();
        Problem::new(Code::NotAcceptable, format!("The answer is {}.", kinds.join(" or ")))
    })
}

/// That the client takes JSON.
///
/// # Errors
/// `not-acceptable`
pub fn accepts_json(headers: &HeaderMap) -> Result<(), Problem> {
    form(headers, &[Form::Json]).map(drop)
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
    fn the_form_is_the_one_wanted_most() {
        for (accept, expected) in [
            ("", Some(Form::Json)),
            ("*/*", Some(Form::Json)),
            ("application/*", Some(Form::Json)),
            ("text/*", None),
            ("text/event-stream", Some(Form::EventStream)),
            ("text/event-stream, */*", Some(Form::EventStream)),
            ("application/x-ndjson;q=0.5, application/json;q=0.4", Some(Form::Ndjson)),
            ("application/json;q=0, */*;q=0.1", None),
            ("text/event-stream;q=0.9, */*", Some(Form::Json)),
            ("text/html", None),
            ("application/json;q=0", None),
            ("*/*;q=0", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().expect("a good header"));
            assert_eq!(form(&headers, Form::ALL).ok(), expected, "{accept}");
        }
    }
}
