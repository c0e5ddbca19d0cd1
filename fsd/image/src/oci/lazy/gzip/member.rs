//! What a gzip member has around its compressed blocks.

use super::super::error::Error;

/// Bytes of a checksum and a length that follow the blocks.
pub(super) const TRAILER_BYTES: usize = 8;

/// Longest header that is accepted; eStargz has the longest that are known, of some 50 bytes.
const MAX_HEADER_BYTES: usize = 256 << 10;

const FLAG_CRC: u8 = 2;
const FLAG_EXTRA: u8 = 4;
const FLAG_NAME: u8 = 8;
const FLAG_COMMENT: u8 = 16;

/// The length of the header that `bytes` begins with; `None` if there is more of it to come. It is at byte `at`.
pub(in super::super) fn header_bytes(bytes: &[u8], at: u64) -> Result<Option<usize>, Error> {
    let damaged = |problem| Err(Error::damaged("gzip header", at, problem));
    let magic = [0x1f, 0x8b, 8];
    if bytes.iter().zip(magic).any(|(byte, expected)| *byte != expected) {
        return damaged("it does not begin with 1f 8b 08");
    }
    let Some(length) = parse(bytes) else {
        return if bytes.len() > MAX_HEADER_BYTES { damaged("it is too long") } else { Ok(None) };
    };
    if bytes[3] & 0xe0 != 0 {
        return damaged("it has reserved flags");
    }
    Ok(Some(length))
}

fn parse(bytes: &[u8]) -> Option<usize> {
    let flags = *bytes.get(3)?;
    let mut end = 10;
    if flags & FLAG_EXTRA != 0 {
        let length = bytes.get(end..end + 2)?;
        end += 2 + usize::from(u16::from_le_bytes([length[0], length[1]]));
    }
    for flag in [FLAG_NAME, FLAG_COMMENT] {
        if flags & flag != 0 {
            end += bytes.get(end..)?.iter().position(|byte| *byte == 0)? + 1;
        }
    }
    end += if flags & FLAG_CRC != 0 { 2 } else { 0 };
    (bytes.len() >= end).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_ends_after_all_that_its_flags_announce() {
        let plain = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        let full =
            [&[0x1f, 0x8b, 8, 31, 0, 0, 0, 0, 0, 3][..], &[2, 0, 7, 7], b"name\0", b"comment\0", &[1, 2]].concat();

        assert_eq!(header_bytes(&plain, 0).unwrap(), Some(10));
        for length in 0..full.len() {
            assert_eq!(header_bytes(&full[..length], 0).unwrap(), None);
        }
        assert_eq!(header_bytes(&[&full[..], &[0; 9]].concat(), 0).unwrap(), Some(full.len()));
        assert!(header_bytes(b"PK", 0).is_err());
        assert!(header_bytes(&[0x1f, 0x8b, 8, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0).is_err());
    }
}
