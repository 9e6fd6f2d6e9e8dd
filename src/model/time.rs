//! Times: milliseconds since 1970 inside, RFC 3339 outside.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// RFC 3339 in UTC with milliseconds; what is after the year 9999 is its last moment.
#[must_use]
pub fn rfc3339(timestamp_ms: u64) -> String {
    let mut text = Vec::with_capacity(24);
    write_rfc3339(&mut text, timestamp_ms);
    String::from_utf8(text).expect("digits are ASCII")
}

/// The same, behind what is there. By hand, for it stands in each event of a page.
pub fn write_rfc3339(out: &mut Vec<u8>, timestamp_ms: u64) {
    let (seconds, millis) = (i64::try_from(timestamp_ms / 1000).unwrap_or(i64::MAX), timestamp_ms % 1000);
    let Ok(time) = OffsetDateTime::from_unix_timestamp(seconds) else {
        out.extend_from_slice(b"9999-12-31T23:59:59.999Z");
        return;
    };
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |at: usize, digits: usize, mut number: u64| {
        for place in text[at..at + digits].iter_mut().rev() {
            *place += u8::try_from(number % 10).unwrap_or_default();
            number /= 10;
        }
    };
    put(0, 4, year.unsigned_abs().into());
    for (at, number) in [(5, month.into()), (8, day), (11, hour), (14, minute), (17, second)] {
        put(at, 2, number.into());
    }
    put(20, 3, millis);
    out.extend_from_slice(&text);
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
        assert_eq!(rfc3339(951_827_696_007), "2000-02-29T12:34:56.007Z");
        assert_eq!(rfc3339(253_402_300_799_999), "9999-12-31T23:59:59.999Z");
        assert_eq!(
            (rfc3339(253_402_300_800_000), rfc3339(u64::MAX)),
            (rfc3339(253_402_300_799_999), rfc3339(253_402_300_799_999))
        );
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
