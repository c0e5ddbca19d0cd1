//! What extended headers say of the entry after them.

use super::super::error::Error;
use super::super::index::XattrList;
use super::header::{Type, text};
use crate::tree::Timestamp;

/// Before the name of an extended attribute, in what Go, star and GNU tar write.
pub(crate) const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// Values that replace those of the header.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<u8>,
}

impl Overrides {
    /// Takes the content of an extended header of the type `kind` that is at byte `at` of the tar.
    pub(super) fn take(&mut self, kind: Type, content: &[u8], at: u64) -> Result<(), Error> {
        match kind {
            Type::LongName => self.path = Some(text(content).to_vec()),
            Type::LongLink => self.link = Some(text(content).to_vec()),
            _ => {
                let mut rest = content;
                while !rest.is_empty() {
                    let (record, after) = split_record(rest).ok_or(Error::damaged("PAX header", at, "a record"))?;
                    self.set(record.0, record.1, at)?;
                    rest = after;
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], at: u64) -> Result<(), Error> {
        let number = || {
            let digits = std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok());
            digits.ok_or(Error::damaged("PAX header", at, "a value is no number"))
        };
        if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
            // Go takes an attribute without a value for none, and with it all that unpacks images.
            if value.is_empty() {
                return Ok(());
            }
            return XattrList::push(&mut self.xattrs, name, value);
        }
        if key.starts_with(b"GNU.sparse.") {
            return Err(Error::Unsupported("a sparse file"));
        }
        // No value takes back what was said before.
        let is_set = !value.is_empty();
        match key {
            b"path" => self.path = is_set.then(|| text(value).to_vec()),
            b"linkpath" => self.link = is_set.then(|| text(value).to_vec()),
            b"size" if is_set => {
                let negative = |_| Error::damaged("PAX header", at, "a size is negative");
                self.size = Some(u64::try_from(number()?).map_err(negative)?);
            }
            b"uid" if is_set => self.uid = Some(number()?),
            b"gid" if is_set => self.gid = Some(number()?),
            b"mtime" if is_set => {
                self.mtime = Some(time(value).ok_or(Error::damaged("PAX header", at, "a time is no number"))?);
            }
            _ => {}
        }
        Ok(())
    }
}

type Record<'a> = (&'a [u8], &'a [u8]);

/// Splits `length key=value\n` off, of which the length counts all bytes.
fn split_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let blank = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..blank]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((&record[..equals], &record[equals + 1..]), rest))
}

/// A decimal number of seconds, possibly with a sign and a fraction.
fn time(value: &[u8]) -> Option<Timestamp> {
    let value = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    Some(match whole.starts_with('-') && nanos > 0 {
        true => Timestamp { seconds: seconds.checked_sub(1)?, nanos: 1_000_000_000 - nanos },
        false => Timestamp { seconds, nanos },
    })
}
