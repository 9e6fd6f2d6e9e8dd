//! Times: milliseconds since 1970 inside, RFC 3339 outside.

use time::{
    OffsetDateTime,
    format_description::{BorrowedFormatItem, well_known::Rfc3339},
    macros::format_description,
};

/// RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn rfc3339(timestamp_ms: u64) -> String {
    const FORM: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(timestamp_ms) * 1_000_000);
    time.ok().and_then(|time| time.format(FORM).ok()).unwrap_or_else(|| "9999-12-31T23:59:59.999Z".to_owned())
}

/// Reads RFC 3339 with any offset; a part of a millisecond counts as a whole one, and times before 1970 as 1970. `None`
/// where it is none.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let nanos = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos();
    u64::try_from((nanos.max(0) + 999_999) / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339_in_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }

    #[test]
    fn times_are_read_with_any_offset() {
        assert_eq!(parse_rfc3339("2023-11-14T23:13:20.123+01:00"), Some(1_700_000_000_123));
        assert_eq!(parse_rfc3339("2023-11-14T22:13:20.1230001Z"), Some(1_700_000_000_124), "not before that time");
        assert_eq!(parse_rfc3339("1969-12-31T00:00:00Z"), Some(0));
        for bad in ["", "2023-11-14", "2023-11-14T22:13:20", "now", "1700000000"] {
            assert_eq!(parse_rfc3339(bad), None, "{bad:?}");
        }
    }
}
