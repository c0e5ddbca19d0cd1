//! Times as RFC 3339 text.

use crate::tree::Timestamp;

const DAY_SECONDS: i64 = 86_400;

/// Parses `2006-01-02T15:04:05.999999999Z` or the same with an offset such as `+01:00`.
pub(super) fn parse(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = bytes.get(range)?;
        digits.iter().all(u8::is_ascii_digit).then(|| digits.iter().fold(0, |sum, b| sum * 10 + i64::from(b - b'0')))
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, byte)| bytes.get(*at).is_none_or(|b| !b.eq_ignore_ascii_case(byte))) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = &bytes[19..];
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let count = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        for place in 0..9 {
            nanos = nanos * 10 + fraction[..count].get(place).map_or(0, |b| u32::from(b - b'0'));
        }
        rest = &fraction[count..];
    }
    let seconds = days_since_1970(year, month, day) * DAY_SECONDS + hour * 3600 + minute * 60 + second;
    Some(Timestamp { seconds: seconds - zone_seconds(rest)?, nanos })
}

/// Formats as [`parse`] reads it, in UTC. Years before 0 and after 9999, which the form has no place for, are 1970.
pub(super) fn format(time: Timestamp) -> String {
    let (days, seconds) = (time.seconds.div_euclid(DAY_SECONDS), time.seconds.rem_euclid(DAY_SECONDS));
    let (year, month, day) = match date(days) {
        date if (0..=9999).contains(&date.0) => date,
        _ => return "1970-01-01T00:00:00Z".to_owned(),
    };
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = match time.nanos {
        0 => String::new(),
        nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
    };
    format!("{year:04}-{month:02}-{day:02}T{clock}{fraction}Z")
}

fn zone_seconds(zone: &[u8]) -> Option<i64> {
    let digit = |at: usize| zone.get(at).filter(|b| b.is_ascii_digit()).map(|b| i64::from(b - b'0'));
    let sign = match zone {
        b"Z" | b"z" => return Some(0),
        [b'+', _, _, b':', _, _] => 1,
        [b'-', _, _, b':', _, _] => -1,
        _ => return None,
    };
    Some(sign * ((digit(1)? * 10 + digit(2)?) * 3600 + (digit(4)? * 10 + digit(5)?) * 60))
}

/// Days of the proleptic Gregorian calendar, counted in years that begin in March so that leap days come last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

fn date(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(719_468);
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
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
