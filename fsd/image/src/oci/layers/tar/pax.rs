//! Records of a pax extended header: `LENGTH KEY=VALUE` and a line feed.

use crate::tree::Timestamp;

/// What attributes are stored under.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// The records that count.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_size: Option<u64>,
    /// Offset and length of each piece.
    pub(super) sparse_map: Vec<u64>,
    /// GNU's version 1.0: the map is the beginning of the content.
    pub(super) has_map_in_content: bool,
}

impl Pax {
    /// Parses all records; `None` if one is malformed.
    pub(super) fn parse(mut records: &[u8]) -> Option<Self> {
        let mut pax = Self::default();
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ')?;
            let length = usize::try_from(decimal(&records[..space])?).ok()?;
            let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
            records = &records[length..];
            let equals = record.iter().position(|byte| *byte == b'=')?;
            pax.take(&record[..equals], &record[equals + 1..])?;
        }
        Some(pax)
    }

    /// Whether the entry is a file with holes.
    pub(super) fn is_sparse(&self) -> bool {
        self.sparse_size.is_some()
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(name) = key.strip_prefix(XATTR) {
            if name.is_empty() || name.contains(&0) {
                return None;
            }
            self.xattrs.retain(|(known, _)| known != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Some(());
        }
        if value.is_empty() {
            // As if it were not there, by the standard.
            return Some(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = Some(decimal(value)?),
            b"GNU.sparse.major" => self.has_map_in_content = value != b"0",
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse_map.push(decimal(value)?),
            b"GNU.sparse.map" => {
                self.sparse_map = value.split(|byte| *byte == b',').map(decimal).collect::<Option<_>>()?;
            }
            _ => {}
        }
        Some(())
    }
}

/// A decimal number that can be rounded up to blocks.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (number <= u64::MAX / 2).then_some(number)
}

/// Seconds with an optional sign and fraction.
fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |text| (true, text));
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().map(|digit| u32::from(digit - b'0')).chain(std::iter::repeat(0)).take(9);
    let nanos = digits.fold(0, |nanos, digit| nanos * 10 + digit);
    Some(match (negative, nanos) {
        (false, _) => Timestamp { seconds, nanos },
        (true, 0) => Timestamp { seconds: -seconds, nanos },
        // The fraction counts forward in time.
        (true, _) => Timestamp { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_line_feeds() {
        let pax = Pax::parse(b"32 SCHILY.xattr.user.x=\n1 a=b\n\0\n10 path=p\n").unwrap();

        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"\n1 a=b\n\0".to_vec())]);
        assert_eq!(pax.path.unwrap(), b"p");
    }

    #[test]
    fn malformed_records_are_refused() {
        for records in [&b"5 a=b"[..], b"99 a=b\n", b"x a=b\n", b"6 aab\n", b"0 a=b\n", b"1 \n", b"11 size=-1\n"] {
            assert!(Pax::parse(records).is_none(), "{records:?}");
        }
    }

    #[test]
    fn times_have_signs_and_fractions() {
        for (text, seconds, nanos) in
            [("5", 5, 0), ("5.25", 5, 250_000_000), ("-5", -5, 0), ("-1.5", -2, 500_000_000), ("1.0000000019", 1, 1)]
        {
            assert_eq!(time(text.as_bytes()), Some(Timestamp { seconds, nanos }), "{text}");
        }
        assert_eq!(time(b"5.x"), None);
    }
}
