//! What serde's readers leave unchecked: opaque JSON, and members that are `null`.

use std::ops::RangeInclusive;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, Unexpected},
};
use serde_json::Number;

/// What is wrong with a piece of opaque JSON that parses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonFault {
    /// Arrays and objects are nested deeper than allowed.
    TooDeep,
    /// A `\uD800`-like escape stands without its other half (RFC 8259 §8.2): strict readers refuse such text.
    LoneSurrogate,
}

/// For `deserialize_with`: an optional member may be absent, but is not `null`.
///
/// # Errors
/// Those of `T`.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A whole number. To JSON `5.0` is one too (JSON Schema 2020-12 §6.1.1), and some clients write it so.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Whole(pub u64);

impl Whole {
    /// What a JSON number is, if it is whole and not negative. With a fraction of zero up to 2^53-1: beyond, digits are lost.
    #[must_use]
    pub fn of(number: &Number) -> Option<Self> {
        const EXACT: RangeInclusive<f64> = 0.0..=9_007_199_254_740_991.0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and in range")]
        let whole = |number: f64| (number.fract() == 0.0 && EXACT.contains(&number)).then_some(number as u64);
        number.as_u64().or_else(|| number.as_f64().and_then(whole)).map(Self)
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = Number::deserialize(deserializer)?;
        Self::of(&number).ok_or_else(|| D::Error::invalid_value(Unexpected::Other("number"), &"a whole number"))
    }
}

/// Makes JSON one line: line breaks between its parts become spaces. Inside a string there are none (RFC 8259 §7).
pub fn put_on_one_line(json: &mut [u8]) {
    for byte in json {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

/// Checks JSON that is known to parse: `depth_max` levels of nesting, and no lone surrogates.
///
/// `RawValue` skips over nested values without a limit (100,000 levels pass) and over escapes without a look, but
/// whoever reads the event later may do neither.
///
/// # Errors
/// The first fault found.
pub fn check_opaque_json(json: &str, depth_max: usize) -> Result<(), JsonFault> {
    let bytes = json.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at = skip_string(bytes, at + 1)?;
                continue;
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > depth_max {
            return Err(JsonFault::TooDeep);
        }
        at += 1;
    }
    Ok(())
}

/// The index after the string whose first character is at `at`.
fn skip_string(bytes: &[u8], mut at: usize) -> Result<usize, JsonFault> {
    loop {
        match bytes.get(at) {
            None | Some(b'"') => return Ok(at + 1),
            Some(b'\\') => match escape(bytes, at) {
                Some(0xD800..=0xDBFF) if matches!(escape(bytes, at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
                Some(0xD800..=0xDFFF) => return Err(JsonFault::LoneSurrogate),
                _ => at += 2,
            },
            Some(_) => at += 1,
        }
    }
}

/// The code unit of the `\uXXXX` at `at`, if one stands there.
fn escape(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_structure_and_not_text() {
        assert_eq!(check_opaque_json("[[1]]", 2), Ok(()));
        assert_eq!(check_opaque_json("[[[1]]]", 2), Err(JsonFault::TooDeep));
        assert_eq!(check_opaque_json(r#"{"[[[":"\"[[["}"#, 1), Ok(()));
        assert_eq!(check_opaque_json("[{},{},[]]", 2), Ok(()));
    }

    #[test]
    fn surrogates_come_in_pairs() {
        assert_eq!(check_opaque_json(r#""\ud83d\ude00""#, 1), Ok(()));
        assert_eq!(check_opaque_json(r#""\\ud83d""#, 1), Ok(()));
        for bad in [r#""\ud83d""#, r#""\ude00""#, r#""\ud83dx""#, r#""\ud83d\u0041""#, r#""\uD83D\\""#] {
            assert_eq!(check_opaque_json(bad, 1), Err(JsonFault::LoneSurrogate), "{bad}");
        }
    }
}
