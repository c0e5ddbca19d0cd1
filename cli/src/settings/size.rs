//! Numbers of bytes as people write them.

/// The bytes that `text` stands for: a number, alone or with K, M or G for the powers of 1024; `None` if it is
/// something else or does not fit.
pub fn parse(text: &str) -> Option<u64> {
    let unit_bytes = match text.bytes().last()?.to_ascii_uppercase() {
        b'K' => 1 << 10,
        b'M' => 1 << 20,
        b'G' => 1 << 30,
        _ => 1,
    };
    let digits = if unit_bytes == 1 { text } else { &text[..text.len() - 1] };
    // `parse` takes a plus sign as well.
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok()?.checked_mul(unit_bytes))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_or_without_a_unit() {
        let cases = [
            ("0", Some(0)),
            ("1536", Some(1536)),
            ("4K", Some(4096)),
            ("64m", Some(64 << 20)),
            ("2G", Some(2 << 30)),
            ("18446744073709551615", Some(u64::MAX)),
        ];

        for (text, bytes) in cases {
            assert_eq!(parse(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "12Q", "1.5G", "-1", "+1", "1 M", "1MB", "0x10", "\u{663}", "\u{212a}", "17179869184G"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
