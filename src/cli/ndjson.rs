//! The form of a line, in which events come in and go out.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::model::{present, put_on_one_line};

/// An event as one line of JSON. Data and metadata are never parsed, so their bytes stay what they are.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Line<'a> {
    /// The stream that it belongs to.
    #[serde(borrow)]
    pub stream: Cow<'a, str>,
    /// What happened.
    #[serde(borrow, rename = "type")]
    pub kind: Cow<'a, str>,
    /// Any JSON.
    #[serde(borrow)]
    pub data: &'a RawValue,
    /// A JSON object.
    #[serde(borrow, default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub metadata: Option<&'a RawValue>,
    /// Unique in the stream.
    #[serde(borrow, default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub id: Option<Cow<'a, str>>,
}

impl<'a> Line<'a> {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it, and at which byte.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| {
            // serde's own "at line 1" would be taken for the line of the file.
            let message = error.to_string();
            let what = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
            format!("{what} (at byte {})", error.column())
        })
    }

    /// Appends the line with its end to `out`.
    ///
    /// JSON may have line breaks between its parts, which would end the line: they become spaces, the only bytes that
    /// ever change.
    pub fn write(&self, out: &mut Vec<u8>) {
        let from = out.len();
        serde_json::to_writer(&mut *out, self).expect("writing text to memory cannot fail");
        put_on_one_line(&mut out[from..]);
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_what_they_are() {
        let text = r#"{"stream":"a","type":"t\n","data":{ "n":1.0e2,"n":0.10 },"metadata":{},"id":"x"}"#;
        let mut out = Vec::new();
        Line::parse(text).expect("a good line").write(&mut out);
        assert_eq!(String::from_utf8(out).expect("text"), format!("{text}\n"));
    }

    #[test]
    fn a_line_stays_one_line() {
        let text = "{\"stream\":\"a\",\"type\":\"t\",\"data\":[1,\r\n2]}";
        let mut out = Vec::new();
        Line::parse(text).expect("a good line").write(&mut out);
        assert_eq!(out, b"{\"stream\":\"a\",\"type\":\"t\",\"data\":[1,  2]}\n");
    }

    #[test]
    fn bad_lines_are_refused_without_a_misleading_line_number() {
        for (bad, what) in [
            ("{", "EOF while parsing an object (at byte 1)"),
            (r#"{"stream":"a","type":"t"}"#, "missing field `data` (at byte 25)"),
            (r#"{"stream":"a","type":"t","data":1,"more":1}"#, "unknown field `more`"),
            (r#"{"stream":"a","type":"t","data":1,"id":null}"#, "invalid type: null"),
            (r#"{"stream":"a","stream":"a","type":"t","data":1}"#, "duplicate field `stream`"),
        ] {
            let error = Line::parse(bad).expect_err(bad);
            assert!(error.contains(what) && !error.contains("line 1"), "{error}");
        }
    }
}
