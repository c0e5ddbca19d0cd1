//! One block of a tar that says what follows it.

use super::super::error::Error;
use super::super::index::EntryKind;

/// What a header is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Type {
    Entry(EntryKind),
    /// Records for the next entry.
    Pax,
    /// Records for all entries that follow.
    GlobalPax,
    /// GNU's path of the next entry.
    LongName,
    /// GNU's link target of the next entry.
    LongLink,
}

/// The fields of a header that have a meaning.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) kind: Type,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u16,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) dev_major: u64,
    pub(super) dev_minor: u64,
}

impl Header {
    /// Parses a block that is at byte `at` of the tar.
    pub(super) fn parse(block: &[u8], at: u64) -> Result<Self, Error> {
        let damaged = |problem| Error::damaged("tar header", at, problem);
        let number = |range: std::ops::Range<usize>, problem| number(&block[range]).ok_or(damaged(problem));
        let sum = number(148..156, "its checksum is no number")?;
        if !sums(block).contains(&sum) {
            return Err(damaged("its checksum is wrong"));
        }
        let size = number(124..136, "its size is no number")?;
        let is_ustar = &block[257..263] == b"ustar\0";
        let is_gnu = &block[257..263] == b"ustar ";
        let prefix = match is_ustar {
            true if &block[508..512] == b"tar\0" => text(&block[345..476]),
            true => text(&block[345..500]),
            false => &[],
        };
        let name = text(&block[..100]);
        let path = if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() };
        let device = |range| if is_ustar || is_gnu { number(range, "its device is no number") } else { Ok(0) };
        Ok(Self {
            kind: kind(block[156])?,
            path,
            link: text(&block[157..257]).to_vec(),
            mode: u16::try_from(number(100..108, "its mode is no number")? & 0o7777).expect("it is masked"),
            uid: number(108..116, "its owner is no number")?,
            gid: number(116..124, "its group is no number")?,
            size: u64::try_from(size).map_err(|_| damaged("its size is negative"))?,
            mtime: number(136..148, "its time is no number")?,
            dev_major: device(329..337)?.unsigned_abs(),
            dev_minor: device(337..345)?.unsigned_abs(),
        })
    }
}

fn kind(flag: u8) -> Result<Type, Error> {
    Ok(match flag {
        0 | b'0' | b'7' => Type::Entry(EntryKind::File),
        b'1' => Type::Entry(EntryKind::HardLink),
        b'2' => Type::Entry(EntryKind::Symlink),
        b'3' => Type::Entry(EntryKind::CharDevice),
        b'4' => Type::Entry(EntryKind::BlockDevice),
        b'5' => Type::Entry(EntryKind::Directory),
        b'6' => Type::Entry(EntryKind::Fifo),
        b'x' => Type::Pax,
        b'g' => Type::GlobalPax,
        b'L' => Type::LongName,
        b'K' => Type::LongLink,
        b'S' => return Err(Error::Unsupported("a sparse file")),
        _ => return Err(Error::Unsupported("an entry of a type that images do not have")),
    })
}

/// Sums of all bytes with blanks for the checksum, once with bytes that are signed, as some old programs had it.
fn sums(block: &[u8]) -> [i64; 2] {
    let bytes = block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    bytes.fold([0, 0], |[unsigned, signed], byte| {
        [unsigned + i64::from(byte), signed + i64::from(i8::from_ne_bytes([byte]))]
    })
}

/// What comes before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or where the first bit is set, a big-endian number.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = if negative { i64::from(*first) - 0x100 } else { i64::from(first & 0x3f) };
        return rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)));
    }
    let is_blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = field[start..].split(is_blank).next().unwrap_or_default();
    digits.iter().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        let cases: [(&[u8], Option<i64>); 7] = [
            (b"0000755\0", Some(0o755)),
            (b"   755 \0", Some(0o755)),
            (b"\0\0\0\0", Some(0)),
            (b"\x80\x00\x00\x01\x00", Some(256)),
            (b"\xff\xff\xff\xfe", Some(-2)),
            (b"0000789\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, value) in cases {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
