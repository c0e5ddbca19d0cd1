//! zTOCs: what SOCI keeps beside an unmodified layer, a flatbuffer of its tar's entries and of checkpoints into its gzip.
//!
//! The checkpoints are `have` (i32) and `span_size` (i64), then for each `in` and `out` (i64), `bits` (u8) and a window of
//! 32 KiB. An older version leaves out the first, which is at the end of a gzip header of 10 bytes. Everything is
//! little-endian and nothing is aligned.

mod flat;
mod write;

pub use write::write;

use self::flat::Table;
use super::error::Error;
use super::estargz::read;
use super::gzip::{Checkpoint, GzipIndex, MAX_CHECKPOINTS, WINDOW_BYTES, WindowAt};
use super::index::{Content, Entry, EntryKind, LayerIndex, XattrList, device_number, timestamp};
use super::toc::sha256;
use crate::read_at::ReadAt;
use std::ops::Range;
use std::sync::Arc;

/// Largest zTOC that is read, all of which is in memory meanwhile: that of a layer of 64 GiB, by the spans of 4 MiB that all
/// writers have by default.
pub const MAX_ZTOC_BYTES: u64 = 512 << 20;

/// What the zTOC of a small layer may have of entries.
const SMALL_ZTOC_BYTES: u64 = 16 << 20;

/// Before the names of extended attributes among an entry's PAX records.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

const ZINFO_HEADER_BYTES: usize = 12;
const CHECKPOINT_BYTES: usize = 17 + WINDOW_BYTES;

/// Bytes of a zTOC that an entry takes at least: its offset, and a table of twelve fields.
const MIN_ENTRY_BYTES: usize = 64;

/// Which compression a layer has.
#[derive(Debug)]
pub enum Compression {
    /// Gzip, read by these checkpoints.
    Gzip(Arc<GzipIndex>),
    /// None: the layer is the tar.
    None,
}

/// What a zTOC says of a layer.
#[derive(Debug)]
pub struct Ztoc {
    /// What the tar holds.
    pub layer: LayerIndex,
    /// How to read it.
    pub compression: Compression,
    /// Bytes of the layer.
    pub stored_bytes: u64,
    /// Bytes of the tar.
    pub bytes: u64,
}

/// The longest zTOC that a layer of `stored_bytes` can be expected to have: a window for every half of a MiB of it is more
/// than any writer makes.
pub fn max_bytes(stored_bytes: u64) -> u64 {
    SMALL_ZTOC_BYTES.saturating_add(stored_bytes / 4).min(MAX_ZTOC_BYTES)
}

/// Reads a zTOC. Windows stay in `bytes` until they are needed.
///
/// # Errors
/// [`Error::TooLarge`], [`Error::Damaged`] and their kin; [`Error::Unsupported`] for one of a later version;
/// [`Error::Read`].
pub fn open(bytes: Arc<dyn ReadAt>) -> Result<Ztoc, Error> {
    let length = Error::bounded("a zTOC", bytes.len(), MAX_ZTOC_BYTES)?;
    let flat = read(bytes.as_ref(), 0, length)?;
    let missing = |what| Error::damaged("zTOC", 0, what);
    let root = Table::root(&flat)?;
    if !root.bytes(0)?.unwrap_or_default().starts_with(b"0.") {
        return Err(Error::Unsupported("a zTOC of another version"));
    }
    let size =
        |slot| -> Result<u64, Error> { u64::try_from(root.long(slot)?).map_err(|_| missing("a size is negative")) };
    let (stored_bytes, tar_bytes) = (size(2)?, size(3)?);
    let toc = root.table(4)?.ok_or(missing("it has no table of contents"))?;
    let layer = entries(&toc, tar_bytes, flat.len())?;
    let info = root.table(5)?.ok_or(missing("it has no compression"))?;
    let compression = match info.byte(0, 1)? {
        1 => {
            let zinfo = info.range(3)?.ok_or(missing("it has no checkpoints"))?;
            let (checkpoints, span_bytes) = checkpoints(&flat, zinfo)?;
            let digests = digests(&info)?;
            let index = GzipIndex::new(checkpoints, digests, bytes, stored_bytes, tar_bytes, span_bytes)?;
            Compression::Gzip(Arc::new(index))
        }
        2 => Compression::None,
        _ => return Err(Error::Unsupported("a compression that zTOCs do not have")),
    };
    Ok(Ztoc { layer, compression, stored_bytes, bytes: tar_bytes })
}

fn entries(toc: &Table<'_>, tar_bytes: u64, flat_bytes: usize) -> Result<LayerIndex, Error> {
    let mut layer = LayerIndex::default();
    let Some(list) = toc.vector(0)? else { return Ok(layer) };
    Error::bounded("a zTOC's number of entries", list.len() as u64, (flat_bytes / MIN_ENTRY_BYTES) as u64)?;
    // Whoever wrote it has written each text once, so that all of them are not longer than it is.
    let mut text_left = flat_bytes;
    for number in 0..list.len() {
        let entry = list.table(number)?;
        let damaged = |problem| Error::damaged("entry of a zTOC", number as u64, problem);
        let (path, link) = (entry.bytes(0)?.unwrap_or_default(), entry.bytes(4)?.unwrap_or_default());
        let xattrs = xattrs(&entry)?;
        text_left = text_left
            .checked_sub(path.len() + link.len() + xattrs.len())
            .ok_or(damaged("its texts are longer than the zTOC"))?;
        let kind = kind(entry.bytes(1)?.unwrap_or_default()).ok_or(damaged("it has an unknown type"))?;
        let long = |slot| -> Result<u64, Error> {
            u64::try_from(entry.long(slot)?).map_err(|_| damaged("a number is negative"))
        };
        let (offset, size) = (long(2)?, if kind == EntryKind::File { long(3)? } else { 0 });
        if offset.checked_add(size).is_none_or(|end| end > tar_bytes) {
            return Err(damaged("its content ends after the tar"));
        }
        let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let time = std::str::from_utf8(entry.bytes(10)?.unwrap_or_default()).unwrap_or_default();
        layer.push(&Entry {
            path,
            kind,
            mode: u16::try_from(entry.long(5)? & 0o7777).expect("it is masked"),
            uid: entry.word(6)?,
            gid: entry.word(7)?,
            mtime: timestamp(time),
            rdev: if is_device { device_number(long(11)?, long(12)?) } else { 0 },
            size,
            link: if matches!(kind, EntryKind::Symlink | EntryKind::HardLink) { link } else { &[] },
            xattrs: &xattrs,
            content: Content::Offset(offset),
        })?;
    }
    Ok(layer)
}

fn xattrs(entry: &Table<'_>) -> Result<Vec<u8>, Error> {
    let mut xattrs = Vec::new();
    let Some(records) = entry.vector(13)? else { return Ok(xattrs) };
    for number in 0..records.len() {
        let record = records.table(number)?;
        if let Some(name) = record.bytes(0)?.unwrap_or_default().strip_prefix(XATTR_PREFIX) {
            let value = record.bytes(1)?.unwrap_or_default();
            // As in a tar.
            if !value.is_empty() {
                XattrList::push(&mut xattrs, name, value)?;
            }
        }
    }
    Ok(xattrs)
}

fn kind(name: &[u8]) -> Option<EntryKind> {
    Some(match name {
        b"reg" => EntryKind::File,
        b"dir" => EntryKind::Directory,
        b"symlink" => EntryKind::Symlink,
        b"hardlink" => EntryKind::HardLink,
        b"char" => EntryKind::CharDevice,
        b"block" => EntryKind::BlockDevice,
        b"fifo" => EntryKind::Fifo,
        _ => return None,
    })
}

fn digests(info: &Table<'_>) -> Result<Vec<[u8; 32]>, Error> {
    let Some(list) = info.vector(2)? else { return Ok(Vec::new()) };
    let digest = |number| {
        let text = std::str::from_utf8(list.bytes(number)?).ok();
        text.and_then(sha256).ok_or(Error::damaged("digest of a zTOC", number as u64, "it is no SHA-256"))
    };
    (0..list.len()).map(digest).collect()
}

/// The checkpoints that lie in `range` of the zTOC, and how long spans are meant to be.
fn checkpoints(flat: &[u8], range: Range<usize>) -> Result<(Vec<Checkpoint>, u64), Error> {
    let damaged = |problem| Error::damaged("checkpoints of a zTOC", range.start as u64, problem);
    let zinfo = &flat[range.clone()];
    let (header, stored) = zinfo.split_at_checked(ZINFO_HEADER_BYTES).ok_or(damaged("they have no header"))?;
    let have = header.first_chunk().map_or(0, |have| i32::from_le_bytes(*have));
    let span_bytes = header.last_chunk().map_or(0, |span| i64::from_le_bytes(*span));
    let (have, count) = (usize::try_from(have).unwrap_or(0), stored.len() / CHECKPOINT_BYTES);
    Error::bounded("a gzip index's number of checkpoints", count as u64, MAX_CHECKPOINTS)?;
    if count * CHECKPOINT_BYTES != stored.len() || have != count && have != count + 1 {
        return Err(damaged("they are not as many as they say"));
    }
    let mut checkpoints = Vec::with_capacity(have);
    if have == count + 1 {
        let window = WindowAt { offset: 0, bytes: 0, is_compressed: false };
        checkpoints.push(Checkpoint { input: 10, bits: 0, output: 0, window });
    }
    for (number, stored) in stored.chunks(CHECKPOINT_BYTES).enumerate() {
        let field = |at: usize| -> Option<u64> {
            u64::try_from(i64::from_le_bytes(stored.get(at..at + 8)?.try_into().ok()?)).ok()
        };
        let (Some(input), Some(output)) = (field(0), field(8)) else { return Err(damaged("an offset is negative")) };
        let offset = (range.start + ZINFO_HEADER_BYTES + number * CHECKPOINT_BYTES + 17) as u64;
        // What comes before the first is nothing, whatever was in the writer's memory.
        let bytes = if output == 0 { 0 } else { WINDOW_BYTES as u32 };
        let window = WindowAt { offset, bytes, is_compressed: false };
        checkpoints.push(Checkpoint { input, bits: stored[16], output, window });
    }
    Ok((checkpoints, u64::try_from(span_bytes).map_err(|_| damaged("their spacing is negative"))?))
}
