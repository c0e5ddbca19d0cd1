//! eStargz layers: gzip with a member for each chunk, and a table of contents at the end.
//!
//! ```text
//! | member | member | ... | member: tar of stargz.index.json | footer: 51 bytes, an empty member that says where the table is |
//! ```

use super::error::Error;
use super::gzip::{header_bytes, verify};
use super::tar;
use super::toc::{self, MAX_TOC_BYTES, TOC_NAME, Toc};
use crate::read_at::ReadAt;
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use std::sync::Arc;

/// The annotation of a layer's descriptor with the digest of its table's text.
pub const TOC_DIGEST_ANNOTATION: &str = "containerd.io/snapshot/stargz/toc.digest";

const FOOTER_BYTES: usize = 51;
/// That of stargz, before it was extended: the same without a header of the extra field.
const LEGACY_FOOTER_BYTES: usize = 47;

/// Reads the table of contents of the layer `bytes`. If `toc_digest` is given, its text must have it: then all that is
/// read from the layer later is what the maker of the digest has seen.
///
/// # Errors
/// [`Error::Missing`] for a layer that is no eStargz; [`Error::Digest`], [`Error::Damaged`] and their kin for one that is
/// not whole; [`Error::Read`].
pub fn open(bytes: &Arc<dyn ReadAt>, toc_digest: Option<&[u8; 32]>) -> Result<Toc, Error> {
    let (toc_offset, footer_bytes) = find(bytes.as_ref())?;
    let end = bytes.len() - footer_bytes;
    let needed = Error::bounded("a stored table of contents", end - toc_offset, MAX_TOC_BYTES)?;
    let stored = read(bytes.as_ref(), toc_offset, needed)?;
    let damaged = |problem| Error::damaged("table of contents", toc_offset, problem);
    let header = header_bytes(&stored, toc_offset)?.ok_or(damaged("its gzip header is cut off"))?;
    let limit = usize::try_from(MAX_TOC_BYTES).expect("256 MiB fit any usize");
    let tar = decompress_to_vec_with_limit(&stored[header..], limit).map_err(|_| damaged("it does not decompress"))?;
    let tar: Arc<Vec<u8>> = Arc::new(tar);
    let index = tar::index(&(tar.clone() as Arc<dyn ReadAt>))?;
    let entry = index.entries().find(|entry| entry.path == TOC_NAME.as_bytes());
    let entry = entry.ok_or(Error::Missing("stargz.index.json"))?;
    let super::index::Content::Offset(offset) = entry.content else { return Err(Error::Missing("stargz.index.json")) };
    let range = offset..offset.saturating_add(entry.size);
    let inside = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let json = tar.get(inside(range.start)..inside(range.end)).ok_or(damaged("it is cut off"))?;
    if let Some(digest) = toc_digest {
        verify("table of contents", toc_offset, json, digest)?;
    }
    toc::parse(json, toc_offset)
}

/// Where the table begins, and the length of the footer that says so.
fn find(bytes: &dyn ReadAt) -> Result<(u64, u64), Error> {
    let length = bytes.len().min(FOOTER_BYTES as u64);
    let tail = read(bytes, bytes.len() - length, length)?;
    let legacy = tail.len().saturating_sub(LEGACY_FOOTER_BYTES);
    let found = match footer(&tail) {
        Some(offset) => Some((offset, FOOTER_BYTES as u64)),
        None => legacy_footer(&tail[legacy..]).map(|offset| (offset, LEGACY_FOOTER_BYTES as u64)),
    };
    let (offset, footer_bytes) = found.ok_or(Error::Missing("eStargz footer"))?;
    if offset > bytes.len() - footer_bytes {
        return Err(Error::damaged("eStargz footer", bytes.len() - footer_bytes, "the table begins after it"));
    }
    Ok((offset, footer_bytes))
}

/// Of an empty gzip member the extra field: 16 hexadecimal digits and `STARGZ`.
fn footer(tail: &[u8]) -> Option<u64> {
    let field = (tail.len() == FOOTER_BYTES && tail.starts_with(&[0x1f, 0x8b, 8, 4])).then(|| &tail[10..])?;
    offset(field.strip_prefix(&[26, 0, b'S', b'G', 22, 0])?.get(..22)?)
}

fn legacy_footer(tail: &[u8]) -> Option<u64> {
    let field = (tail.len() == LEGACY_FOOTER_BYTES && tail.starts_with(&[0x1f, 0x8b, 8, 4])).then(|| &tail[10..])?;
    offset(field.strip_prefix(&[22, 0])?.get(..22)?)
}

fn offset(field: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(field.strip_suffix(b"STARGZ")?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

/// The `needed` bytes at `offset`, of which there are no more than are accepted.
pub(super) fn read(bytes: &dyn ReadAt, offset: u64, needed: u64) -> Result<Vec<u8>, Error> {
    let mut buf = vec![0; usize::try_from(needed).expect("callers bound it")];
    let failed = |source| Error::Read { offset, needed, source: Arc::new(source) };
    bytes.read_exact_at(&mut buf, offset).map_err(failed)?;
    Ok(buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_footers_say_where_the_table_is() {
        let head = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
        let tail = [1, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0];
        let new = [&head[..], &[26, 0, b'S', b'G', 22, 0], b"00000000000001aeSTARGZ", &tail].concat();
        let old = [&head[..], &[22, 0], b"00000000000001aeSTARGZ", &tail].concat();

        assert_eq!(footer(&new), Some(0x1ae));
        assert_eq!(legacy_footer(&old), Some(0x1ae));
        assert_eq!((footer(&old), legacy_footer(&new)), (None, None));
    }

    #[test]
    fn what_has_no_footer_is_no_estargz() {
        for length in [0, 10, 47, 51, 100] {
            let bytes: Arc<dyn ReadAt> = Arc::new(vec![0; length]);
            assert!(matches!(open(&bytes, None), Err(Error::Missing(_))), "{length} bytes");
        }
    }
}
