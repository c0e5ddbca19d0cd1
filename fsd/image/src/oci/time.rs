//! Times as RFC 3339 text.

use crate::tree::Timestamp;
use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;

/// Parses `2006-01-02T15:04:05.999999999Z` or the same with an offset such as `+01:00`.
pub(super) fn parse(text: &str) -> Option<Timestamp> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(Timestamp { seconds: time.unix_timestamp(), nanos: time.nanosecond() })
}

/// Formats as [`parse`] reads it, in UTC. Years before 0 and after 9999, which the form has no place for, are 1970.
pub(super) fn format(time: Timestamp) -> String {
    let seconds = OffsetDateTime::from_unix_timestamp(time.seconds).ok();
    let whole = seconds.and_then(|seconds| seconds.replace_nanosecond(time.nanos).ok());
    whole.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_as_go_does() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2026-11-26T11:14:53Z", 1_795_691_693, 0),
            ("2000-02-29T23:59:59.000000001Z", 951_868_799, 1),
            ("1969-12-31T23:59:59.5Z", -1, 500_000_000),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
        ];
        for (text, seconds, nanos) in cases {
            let time = Timestamp { seconds, nanos };
            assert_eq!(parse(text), Some(time), "{text}");
            assert_eq!(format(time), text);
        }
        assert_eq!(parse("2000-01-01T01:00:00+01:00"), parse("2000-01-01T00:00:00Z"));
        assert_eq!(parse("1999-12-31T18:30:00-05:30"), parse("2000-01-01T00:00:00Z"));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in
            ["", "2000", "2000-13-01T00:00:00Z", "2000-01-01T00:00:00", "2000-01-01T00:00:00+0100", "ääääääääääääää"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(format(Timestamp { seconds: i64::MAX, nanos: 0 }), "1970-01-01T00:00:00Z");
        assert_eq!(format(Timestamp { seconds: i64::MIN, nanos: 0 }), "1970-01-01T00:00:00Z");
    }
}
