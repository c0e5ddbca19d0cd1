//! zstd:chunked layers: a frame for each chunk, and a table of contents in a skippable frame.
//!
//! ```text
//! | frame | frame | ... | skippable: table, zstd | skippable: tar-split | skippable: footer |
//! ```
//!
//! Two programs write them. Their tables differ in what they say beside the chunks, their annotations in the prefix, and
//! their footers in length and one letter.

use super::error::Error;
use super::estargz::{TOC_DIGEST_ANNOTATION, read};
use super::gzip::verify;
use super::toc::{self, MAX_TOC_BYTES, Toc, sha256};
use crate::read_at::ReadAt;
use std::sync::Arc;

/// What annotations begin with: of containers/storage, and of stargz-snapshotter.
const PREFIXES: [&str; 2] = ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."];

/// A skippable frame's number and length.
const SKIPPABLE_HEADER_BYTES: u64 = 8;
const SKIPPABLE_MAGIC: u32 = 0x184d_2a50;

/// Lengths of footers and what they end with, longest first.
const FOOTERS: [(usize, &[u8; 8]); 3] = [(64, b"GNUlInUx"), (40, b"GnUlInUx"), (40, b"GNUlInUx")];

/// The only kind of table that there is.
const TABLE_TYPE: u64 = 1;

/// What the annotations of a layer's descriptor say of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Annotations {
    /// Where it lies.
    position: Option<Position>,
    /// The digest of the table as it is stored.
    stored_digest: Option<[u8; 32]>,
    /// The digest of its text.
    digest: Option<[u8; 32]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    offset: u64,
    stored_bytes: u64,
    bytes: u64,
}

impl Annotations {
    /// Takes what there is of the annotations that `get` finds by name.
    ///
    /// # Errors
    /// [`Error::Damaged`] for one that is none of its kind, and if there are both programs'.
    pub fn new<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Error> {
        let damaged = |problem| Error::damaged("zstd:chunked annotation", 0, problem);
        let found = PREFIXES.map(|prefix| {
            let of = |name: &str| get(&format!("{prefix}{name}"));
            (of("manifest-position"), of("manifest-checksum"))
        });
        let (position, checksum) = match found {
            [(None, None), (None, None)] => return Ok(Self::default()),
            [found, (None, None)] | [(None, None), found] => found,
            _ => return Err(damaged("there are those of two programs, which may differ")),
        };
        let digest = |text: &str| sha256(text).ok_or(damaged("a digest is no SHA-256"));
        Ok(Self {
            position: position.map(|text| Position::parse(text).ok_or(damaged("its position is none"))).transpose()?,
            stored_digest: checksum.map(digest).transpose()?,
            digest: get(TOC_DIGEST_ANNOTATION).map(digest).transpose()?,
        })
    }

    /// Whether they say that the layer is of this format.
    pub fn is_given(&self) -> bool {
        self.position.is_some()
    }
}

impl Position {
    /// `offset:stored length:length:type`.
    fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<u64> = text.split(':').map(|number| number.parse().ok()).collect::<Option<_>>()?;
        match numbers[..] {
            [offset, stored_bytes, bytes, TABLE_TYPE] => Some(Self { offset, stored_bytes, bytes }),
            _ => None,
        }
    }

    /// From the skippable frame that the layer ends with.
    fn of_footer(bytes: &dyn ReadAt) -> Result<Self, Error> {
        for (length, magic) in FOOTERS {
            let Some(start) = bytes.len().checked_sub(SKIPPABLE_HEADER_BYTES + length as u64) else { continue };
            let frame = read(bytes, start, SKIPPABLE_HEADER_BYTES + length as u64)?;
            let field =
                |at: usize| -> Option<u64> { Some(u64::from_le_bytes(frame.get(at..at + 8)?.try_into().ok()?)) };
            let header = u64::from(SKIPPABLE_MAGIC) | (length as u64) << 32;
            if field(0) != Some(header) || !frame.ends_with(magic) {
                continue;
            }
            if let (Some(offset), Some(stored_bytes), Some(bytes), Some(TABLE_TYPE)) =
                (field(8), field(16), field(24), field(32))
            {
                return Ok(Self { offset, stored_bytes, bytes });
            }
        }
        Err(Error::Missing("zstd:chunked footer"))
    }
}

/// Reads the table of contents of the layer `bytes`, which `annotations` or else its footer say the place of. Digests
/// that there are annotations of are verified.
///
/// # Errors
/// [`Error::Missing`] for a layer that is not of this format; [`Error::Digest`], [`Error::Damaged`] and their kin for one
/// that is not whole; [`Error::Read`].
pub fn open(bytes: &Arc<dyn ReadAt>, annotations: &Annotations) -> Result<Toc, Error> {
    let position = match annotations.position {
        Some(position) => position,
        None => Position::of_footer(bytes.as_ref())?,
    };
    let offset = position.offset;
    let damaged = |problem| Error::damaged("table of contents", offset, problem);
    let stored_bytes = Error::bounded("a stored table of contents", position.stored_bytes, MAX_TOC_BYTES)?;
    let length = Error::bounded("a table of contents", position.bytes, MAX_TOC_BYTES)?;
    if offset.checked_add(stored_bytes).is_none_or(|end| end > bytes.len()) {
        return Err(damaged("it ends after the layer"));
    }
    let stored = read(bytes.as_ref(), offset, stored_bytes)?;
    if let Some(digest) = &annotations.stored_digest {
        verify("table of contents", offset, &stored, digest)?;
    }
    let length = usize::try_from(length).expect("256 MiB fit any usize");
    let json = zstd::bulk::decompress(&stored, length).map_err(|_| damaged("it does not decompress"))?;
    if let Some(digest) = &annotations.digest {
        verify("table of contents", offset, &json, digest)?;
    }
    toc::parse(&json, offset.saturating_sub(SKIPPABLE_HEADER_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_of_either_program_are_taken() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for prefix in PREFIXES {
            let get = |name: &str| match name.strip_prefix(prefix) {
                Some("manifest-position") => Some("100:20:300:1"),
                Some("manifest-checksum") => Some(digest.as_str()),
                _ => None,
            };
            let found = Annotations::new(get).unwrap();
            assert_eq!(found.position, Some(Position { offset: 100, stored_bytes: 20, bytes: 300 }));
            assert_eq!(found.stored_digest, Some([10; 32]));
        }
        assert!(Annotations::new(|name| name.ends_with("position").then_some("1:2:3:1")).is_err());
        assert!(
            Annotations::new(|name| (name == "io.containers.zstd-chunked.manifest-position").then_some("1:2:3"))
                .is_err()
        );
        assert!(!Annotations::new(|_| None).unwrap().is_given());
    }

    #[test]
    fn all_footers_are_known() {
        let numbers = |count: usize| -> Vec<u8> {
            [7, 8, 9, 1, 0, 0, 0].iter().take(count).flat_map(|number: &u64| number.to_le_bytes()).collect()
        };
        for (count, magic) in [(7, b"GNUlInUx"), (4, b"GnUlInUx")] {
            let payload = [numbers(count), magic.to_vec()].concat();
            let header = [SKIPPABLE_MAGIC.to_le_bytes(), u32::try_from(payload.len()).unwrap().to_le_bytes()].concat();
            let layer = [vec![1; 50], header, payload].concat();
            let found = Position::of_footer(&layer).unwrap();
            assert_eq!(found, Position { offset: 7, stored_bytes: 8, bytes: 9 });
        }
        assert!(matches!(Position::of_footer(&vec![0_u8; 100]), Err(Error::Missing(_))));
    }
}
