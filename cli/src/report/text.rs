//! Numbers, tables and JSON as people read them.

use serde::Serialize;
use time::{OffsetDateTime, UtcDateTime};

/// Blanks between two columns, as singularity has it.
const GAP: usize = 4;

/// A number of bytes, such as `3.2 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A message without the numbers of errors, which Rust puts behind their names: `(os error 2)`.
pub(super) fn without_numbers(message: &str) -> String {
    let mut parts = message.split(" (os error ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => text.push_str(rest),
            _ => text.extend([" (os error ", part]),
        }
    }
    text
}

/// `2026-11-23 20:00:07` in UTC, of seconds since 1970. What is beyond the year 9999 is its end.
pub fn utc(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(UtcDateTime::MAX.into());
    let (hour, minute, second) = time.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02}", time.date())
}

/// A table whose columns are as wide as they have to be, each row with its line's end. What would move a terminal's
/// cursor is left out.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..count).map(|column| width(column).unwrap_or(0) + GAP).collect();
    let mut text = String::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            let plain: String = cell.chars().filter(|character| !character.is_control()).collect();
            text.push_str(&plain);
            if index + 1 < row.len() {
                text.extend(std::iter::repeat_n(' ', widths[index].saturating_sub(plain.chars().count())));
            }
        }
        text.push('\n');
    }
    text
}

/// JSON with a tab for each level, as singularity writes it.
///
/// # Errors
/// If `value` cannot be JSON.
pub fn json_with_tabs(value: &impl Serialize) -> serde_json::Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_errors_are_left_out() {
        let cases = [
            ("cannot open a: No such file or directory (os error 2)", "cannot open a: No such file or directory"),
            ("a: denied (os error 13): b (os error 1); c", "a: denied: b; c"),
            ("a (os error x)", "a (os error x)"),
            ("a (os error ", "a (os error "),
        ];
        for (message, shown) in cases {
            assert_eq!(without_numbers(message), shown);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows =
            [vec!["NAME".to_owned(), "IP".into(), "IMAGE".into()], vec!["a\u{1b}bcdef".into(), "".into(), "x".into()]];

        assert_eq!(columns(&rows), "NAME       IP    IMAGE\nabcdef           x\n");
    }

    #[test]
    fn times_are_written_as_dates() {
        let cases = [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_464_061, "2026-11-23 20:01:01"),
            (-1, "1969-12-31 23:59:59"),
            (i64::MAX, "9999-12-31 23:59:59"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(utc(seconds), expected);
        }
    }
}
