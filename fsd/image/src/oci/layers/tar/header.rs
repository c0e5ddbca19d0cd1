//! The 512 bytes before every entry.

use super::pax::Pax;
use super::sparse::Map;
use super::{BLOCK_BYTES, Entry, Error, Kind, until_nul};
use crate::tree::Timestamp;
use std::ops::Range;

pub(super) type Block = [u8; BLOCK_BYTES];

/// Where the fields lie.
const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE_FLAG: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
/// Of GNU's first form of files with holes: four pieces, whether more blocks follow, and the file's length.
const OLD_SPARSE: Range<usize> = 386..482;
const OLD_SPARSE_GOES_ON: usize = 482;
const OLD_SPARSE_SIZE: Range<usize> = 483..495;
/// Of each further block: 21 pieces, and whether more follow.
const MORE_SPARSE: Range<usize> = 0..504;
const MORE_SPARSE_GOES_ON: usize = 504;
/// Bytes of one piece: offset and length.
const SPARSE_PIECE_BYTES: usize = 24;

/// Largest device numbers of Linux: 12 and 20 bits.
const MAX_MAJOR: u64 = 0xfff;
const MAX_MINOR: u64 = 0xf_ffff;

/// One header, and where it was.
pub(super) struct Header<'a> {
    pub(super) block: &'a Block,
    pub(super) at: u64,
}

impl Header<'_> {
    /// Whether the checksum is right. It is taken with its own field as spaces, and some writers took bytes as signed.
    pub(super) fn is_intact(&self) -> bool {
        let Some(stated) = number(&self.block[CHECKSUM]) else { return false };
        let bytes = || {
            let blank = |(index, byte): (usize, &u8)| if CHECKSUM.contains(&index) { b' ' } else { *byte };
            self.block.iter().enumerate().map(blank)
        };
        let unsigned: i128 = bytes().map(i128::from).sum();
        let signed: i128 = bytes().map(|byte| i128::from(byte.cast_signed())).sum();
        stated == unsigned || stated == signed
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[TYPE_FLAG]
    }

    pub(super) fn size(&self) -> Result<u64, Error> {
        self.field(&SIZE, "size")
    }

    /// The entry, with what `pax` says in place of the header's own.
    pub(super) fn entry(&self, pax: &Pax) -> Result<Entry, Error> {
        let kind = match self.kind() {
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(Error::Kind { at: self.at, kind: char::from(other) }),
        };
        let impossible = |field| Error::Field { at: self.at, field };
        let id = |range, stated: Option<u64>, field| {
            let id = stated.map_or_else(|| self.field(range, field), Ok)?;
            u32::try_from(id).map_err(|_| impossible(field))
        };
        let rdev = match kind {
            Kind::CharDevice | Kind::BlockDevice => self.rdev()?,
            _ => 0,
        };
        let seconds = number(&self.block[MTIME]).and_then(|seconds| i64::try_from(seconds).ok());
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => Timestamp { seconds: seconds.ok_or_else(|| impossible("time"))?, nanos: 0 },
        };
        let mode = number(&self.block[MODE]).ok_or_else(|| impossible("mode"))?;
        Ok(Entry {
            kind,
            path: pax.path.clone().unwrap_or_else(|| self.path()),
            link: pax.link.clone().unwrap_or_else(|| until_nul(self.block[LINK].to_vec())),
            mode: u16::try_from(mode & 0o7777).expect("12 bits"),
            uid: id(&UID, pax.uid, "owner")?,
            gid: id(&GID, pax.gid, "group")?,
            mtime,
            rdev,
            size: pax.size.map_or_else(|| self.size(), Ok)?,
            xattrs: pax.xattrs.clone(),
        })
    }

    /// Puts the pieces of a GNU file with holes into `map`; returns whether more blocks follow, and the file's length.
    pub(super) fn old_sparse(&self, map: &mut Map) -> Result<(bool, u64), Error> {
        self.pieces(&OLD_SPARSE, map)?;
        Ok((self.block[OLD_SPARSE_GOES_ON] == 1, self.field(&OLD_SPARSE_SIZE, "length of a file with holes")?))
    }

    /// The same for a further block.
    pub(super) fn more_sparse(&self, map: &mut Map) -> Result<bool, Error> {
        self.pieces(&MORE_SPARSE, map)?;
        Ok(self.block[MORE_SPARSE_GOES_ON] == 1)
    }

    fn pieces(&self, range: &Range<usize>, map: &mut Map) -> Result<(), Error> {
        let impossible = || Error::Field { at: self.at, field: "map of holes" };
        for piece in self.block[range.clone()].chunks_exact(SPARSE_PIECE_BYTES) {
            if piece[0] == 0 {
                break;
            }
            let (offset, length) = piece.split_at(SPARSE_PIECE_BYTES / 2);
            let numbers = [number(offset), number(length)].map(|number| u64::try_from(number?).ok());
            let [Some(offset), Some(length)] = numbers else { return Err(impossible()) };
            map.add(offset, length).ok_or_else(impossible)?;
        }
        Ok(())
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(self.block[NAME].to_vec());
        // GNU's magic ends in spaces, and its headers have other fields where the prefix would be.
        let prefix = if self.block[MAGIC].starts_with(b"ustar\0") { &self.block[PREFIX] } else { &[] };
        let prefix = until_nul(prefix.to_vec());
        if prefix.is_empty() { name } else { [&prefix[..], b"/", &name].concat() }
    }

    fn rdev(&self) -> Result<u32, Error> {
        let (major, minor) = (self.field(&MAJOR, "device")?, self.field(&MINOR, "device")?);
        if major > MAX_MAJOR || minor > MAX_MINOR {
            return Err(Error::Field { at: self.at, field: "device" });
        }
        let encoded = minor & 0xff | major << 8 | (minor & !0xff) << 12;
        Ok(u32::try_from(encoded).expect("12 and 20 bits"))
    }

    fn field(&self, range: &Range<usize>, field: &'static str) -> Result<u64, Error> {
        let value = number(&self.block[range.clone()]).and_then(|number| u64::try_from(number).ok());
        // Lengths are rounded up to blocks.
        value.filter(|value| *value <= u64::MAX / 2).ok_or(Error::Field { at: self.at, field })
    }
}

/// A number: octal digits between spaces or NULs, or big-endian in two's complement behind a bit that says so.
fn number(field: &[u8]) -> Option<i128> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let mut value = i128::from(first & 0x7f);
        if first & 0x40 != 0 {
            value -= 0x80;
        }
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return Some(value);
    }
    let is_filling = |byte: &u8| matches!(byte, b' ' | 0);
    let from = field.iter().position(|byte| !is_filling(byte)).unwrap_or(field.len());
    let digits = &field[from..];
    let digits = &digits[..digits.iter().position(is_filling).unwrap_or(digits.len())];
    let mut value = 0i128;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value.checked_mul(8)?.checked_add(i128::from(digit))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b" 644 \0\0\0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"644x\0\0\0\0", None),
            (b"9\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\x02", Some(0x102)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x10\0\0\0\0\0\0\0", Some(1 << 60)),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
