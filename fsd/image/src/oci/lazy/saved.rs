//! An index of a layer as it is kept on disk under the layer's digest.
//!
//! ```text
//! | head: magic, lengths, digests | entries, zstd | checkpoints | SHA-256 of all before | windows, each zstd |
//! ```
//!
//! All but the windows is read at once; a window is read when its span is. All numbers are little-endian.

use super::error::Error;
use super::estargz::read;
use super::gzip::{Checkpoint, Digests, GzipIndex, Indexed, MAX_CHECKPOINTS, WindowAt};
use super::index::{Content, Entry, EntryKind, LayerIndex, XattrList};
use crate::read_at::{ReadAt, Window};
use crate::tree::Timestamp;
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"siphgzi1";
/// What a list of entries alone begins with: its length follows, and then it, compressed, and the SHA-256 of all of that.
const ENTRIES_MAGIC: &[u8; 8] = b"siphtar1";
const HEAD_BYTES: u64 = 8 + 7 * 8 + 64;
const CHECKPOINT_BYTES: u64 = 8 + 8 + 8 + 4 + 1 + 32;
const DIGEST_BYTES: u64 = 32;

/// Largest list of entries that is accepted, uncompressed, and as a multiple of what it is compressed: ten times what is usual.
const MAX_ENTRIES_BYTES: u64 = 768 << 20;
const MAX_ENTRIES_RATIO: u64 = 100;

/// Most bytes before the windows, all of which are in memory meanwhile.
const MAX_BODY_BYTES: u64 = 512 << 20;

const LEVEL: i32 = 3;

/// Writes `indexed` to `out`.
///
/// # Errors
/// If `out` fails, or a window cannot be read.
pub fn write(indexed: &Indexed, mut out: impl Write) -> io::Result<()> {
    let entries = encode_entries(&indexed.layer);
    let stored_entries = zstd::bulk::compress(&entries, LEVEL)?;
    let gzip = &indexed.gzip;
    let mut head = MAGIC.to_vec();
    let windows = gzip.windows();
    let numbers = [
        gzip.stored_bytes(),
        gzip.bytes(),
        gzip.span_bytes(),
        gzip.checkpoints().len() as u64,
        stored_entries.len() as u64,
        entries.len() as u64,
        windows.len(),
    ];
    numbers.iter().for_each(|number| head.extend_from_slice(&number.to_le_bytes()));
    head.extend_from_slice(&indexed.digests.layer);
    head.extend_from_slice(&indexed.digests.diff_id);
    head.extend_from_slice(&stored_entries);
    for (number, checkpoint) in gzip.checkpoints().iter().enumerate() {
        for field in [checkpoint.input, checkpoint.output, checkpoint.window.offset] {
            head.extend_from_slice(&field.to_le_bytes());
        }
        head.extend_from_slice(&checkpoint.window.bytes.to_le_bytes());
        head.push(checkpoint.bits);
        head.extend_from_slice(&gzip.digests().get(number).copied().unwrap_or_default());
    }
    out.write_all(&head)?;
    out.write_all(&Sha256::digest(&head))?;
    let mut buf = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < windows.len() {
        let part = buf.len().min(usize::try_from(windows.len() - offset).unwrap_or(usize::MAX));
        windows.read_exact_at(&mut buf[..part], offset)?;
        out.write_all(&buf[..part])?;
        offset += part as u64;
    }
    Ok(())
}

/// Reads what [`write()`] has written, all but the windows.
///
/// # Errors
/// [`Error::Missing`] for what is none; [`Error::Digest`] and [`Error::Damaged`] for what is not whole; [`Error::Read`].
pub fn open(bytes: Arc<dyn ReadAt>) -> Result<Indexed, Error> {
    if bytes.len() < HEAD_BYTES + DIGEST_BYTES {
        return Err(Error::Missing("saved gzip index"));
    }
    let head = read(bytes.as_ref(), 0, HEAD_BYTES)?;
    if !head.starts_with(MAGIC) {
        return Err(Error::Missing("saved gzip index"));
    }
    let mut fields = Fields(&head[MAGIC.len()..]);
    let mut numbers = [0; 7];
    for number in &mut numbers {
        *number = fields.long()?;
    }
    let [stored_bytes, length, span_bytes, count, stored_entries, entries_bytes, windows_bytes] = numbers;
    let digests = Digests { layer: fields.array()?, diff_id: fields.array()? };
    Error::bounded("a gzip index's number of checkpoints", count, MAX_CHECKPOINTS)?;
    let max_entries_bytes = stored_entries.saturating_mul(MAX_ENTRIES_RATIO).min(MAX_ENTRIES_BYTES);
    Error::bounded("a list of entries", entries_bytes, max_entries_bytes)?;
    let damaged = || Error::damaged("saved gzip index", 0, "its length is another");
    let body = stored_entries.checked_add(count * CHECKPOINT_BYTES).ok_or_else(damaged)?;
    let body_end = HEAD_BYTES.checked_add(body).filter(|end| *end <= bytes.len()).ok_or_else(damaged)?;
    Error::bounded("a saved gzip index", body_end, MAX_BODY_BYTES)?;
    let windows = Window::new(bytes.clone(), body_end + DIGEST_BYTES, windows_bytes).ok_or_else(damaged)?;
    let all = read(bytes.as_ref(), 0, body_end)?;
    let digest: [u8; 32] = Fields(&read(bytes.as_ref(), body_end, DIGEST_BYTES)?).array()?;
    super::gzip::verify("saved gzip index", 0, &all, &digest)?;
    let head_bytes = usize::try_from(HEAD_BYTES).expect("it is some hundred");
    let body = &all[head_bytes..];
    let (stored, checkpoints) = body.split_at(usize::try_from(stored_entries).map_err(|_| damaged())?);
    let capacity = usize::try_from(entries_bytes).map_err(|_| damaged())?;
    let entries = zstd::bulk::decompress(stored, capacity).map_err(|_| damaged())?;
    let (checkpoints, span_digests) = decode_checkpoints(checkpoints)?;
    let gzip = GzipIndex::new(checkpoints, span_digests, Arc::new(windows), stored_bytes, length, span_bytes)?;
    Ok(Indexed { gzip: Arc::new(gzip), layer: decode_entries(&entries)?, digests })
}

/// Writes the entries of a layer that needs no checkpoints.
///
/// # Errors
/// If `out` fails.
pub fn write_entries(layer: &LayerIndex, mut out: impl Write) -> io::Result<()> {
    let entries = encode_entries(layer);
    let stored = zstd::bulk::compress(&entries, LEVEL)?;
    let mut file = ENTRIES_MAGIC.to_vec();
    file.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    file.extend_from_slice(&stored);
    out.write_all(&file)?;
    out.write_all(&Sha256::digest(&file))
}

/// Reads what [`write_entries()`] has written.
///
/// # Errors
/// As [`open()`].
pub fn open_entries(bytes: &dyn ReadAt) -> Result<LayerIndex, Error> {
    let length = Error::bounded("a list of entries", bytes.len(), MAX_ENTRIES_BYTES)?;
    let body_end = length.checked_sub(DIGEST_BYTES).ok_or(Error::Missing("saved list of entries"))?;
    let body = read(bytes, 0, body_end)?;
    let stored = body.strip_prefix(ENTRIES_MAGIC).ok_or(Error::Missing("saved list of entries"))?;
    let digest: [u8; 32] = Fields(&read(bytes, body_end, DIGEST_BYTES)?).array()?;
    super::gzip::verify("saved list of entries", 0, &body, &digest)?;
    let mut fields = Fields(stored);
    let capacity = Error::bounded("a list of entries", fields.long()?, MAX_ENTRIES_BYTES)?;
    let capacity = usize::try_from(capacity).map_err(|_| damaged())?;
    decode_entries(&zstd::bulk::decompress(fields.0, capacity).map_err(|_| damaged())?)
}

fn decode_checkpoints(bytes: &[u8]) -> Result<(Vec<Checkpoint>, Vec<[u8; 32]>), Error> {
    let mut fields = Fields(bytes);
    let (mut checkpoints, mut digests) = (Vec::new(), Vec::new());
    while !fields.0.is_empty() {
        let (input, output, offset) = (fields.long()?, fields.long()?, fields.long()?);
        let window = WindowAt { offset, bytes: fields.word()?, is_compressed: true };
        let [bits] = fields.array()?;
        checkpoints.push(Checkpoint { input, bits, output, window });
        digests.push(fields.array()?);
    }
    Ok((checkpoints, digests))
}

fn encode_entries(layer: &LayerIndex) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in layer.entries() {
        let Content::Offset(offset) = entry.content else { continue };
        out.push(entry.kind as u8);
        for number in [entry.mtime.seconds.cast_unsigned(), entry.size, offset] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let text = |part: &[u8]| u32::try_from(part.len()).expect("texts of entries are short");
        let words = [entry.mtime.nanos, entry.uid, entry.gid, entry.rdev, u32::from(entry.mode)];
        for word in words.into_iter().chain([entry.path, entry.link, entry.xattrs].map(text)) {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for part in [entry.path, entry.link, entry.xattrs] {
            out.extend_from_slice(part);
        }
    }
    out
}

fn decode_entries(bytes: &[u8]) -> Result<LayerIndex, Error> {
    use EntryKind::{BlockDevice, CharDevice, Directory, Fifo, File, HardLink, Symlink};
    let kinds = [Directory, File, Symlink, HardLink, CharDevice, BlockDevice, Fifo];
    let mut fields = Fields(bytes);
    let mut layer = LayerIndex::default();
    while !fields.0.is_empty() {
        let [kind] = fields.array()?;
        let kind = *kinds.iter().find(|known| **known as u8 == kind).ok_or(damaged())?;
        let (seconds, size, offset) = (fields.long()?.cast_signed(), fields.long()?, fields.long()?);
        let (nanos, uid, gid, rdev, mode) =
            (fields.word()?, fields.word()?, fields.word()?, fields.word()?, fields.word()?);
        let lengths = [fields.word()?, fields.word()?, fields.word()?];
        let mut texts = [&[][..]; 3];
        for (text, length) in texts.iter_mut().zip(lengths) {
            *text = fields.take(usize::try_from(length).map_err(|_| damaged())?)?;
        }
        let mut xattrs = Vec::new();
        for (name, value) in XattrList::iter(texts[2]) {
            XattrList::push(&mut xattrs, name, value)?;
        }
        layer.push(&Entry {
            path: texts[0],
            kind,
            mode: u16::try_from(mode & 0o7777).expect("it is masked"),
            uid,
            gid,
            mtime: Timestamp { seconds, nanos: nanos.min(999_999_999) },
            rdev,
            size,
            link: texts[1],
            xattrs: &xattrs,
            content: Content::Offset(offset),
        })?;
    }
    Ok(layer)
}

fn damaged() -> Error {
    Error::damaged("saved gzip index", 0, "a field ends after its end")
}

/// Fields that follow each other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (field, rest) = self.0.split_at_checked(length).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.take(N)?.try_into().map_err(|_| damaged())
    }

    fn word(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }
}
