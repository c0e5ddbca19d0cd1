//! Layers that cannot be read anywhere, such as a zstd layer of one frame, written once in a form that can.
//!
//! It is zstd's own seekable format, which any zstd decompresses as a whole:
//!
//! ```text
//! | frame of 256 KiB | frame | ... | skippable: seek table |
//! seek table: { stored length u32, length u32 } for each frame, number of frames u32, flags u8 (0), magic 8f92eab1
//! ```

use super::decoded::{Decoded, LayerId};
use super::error::Error;
use super::estargz::read;
use super::index::LayerIndex;
use super::tar::Scanner;
use crate::read_at::ReadAt;
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use std::sync::Arc;

/// What a frame decompresses to: twice what the kernel asks for at a time, and enough to compress well.
pub const FRAME_BYTES: usize = 256 << 10;

/// A level that compresses as fast as a layer is decompressed, to a third more than what builders take hours for.
const LEVEL: i32 = 1;

/// Frames of one layer that are accepted: of 16 TiB.
const MAX_FRAMES: u64 = 64 << 20;

/// The largest frame that is decoded, for seekable layers that others have made.
const MAX_FRAME_BYTES: u32 = 64 << 20;

const SKIPPABLE_MAGIC: u32 = 0x184d_2a5e;
const SEEKABLE_MAGIC: u32 = 0x8f92_eab1;
const SKIPPABLE_HEADER_BYTES: u64 = 8;
const FOOTER_BYTES: u64 = 9;
/// The flag of tables that have a checksum for each frame too.
const CHECKSUM_FLAG: u8 = 0x80;

/// Takes the uncompressed tar of a layer in order, writes it in seekable form, and makes an index of it.
pub struct Writer<W> {
    out: W,
    compressor: zstd::bulk::Compressor<'static>,
    pending: Vec<u8>,
    frames: Vec<(u32, u32)>,
    hash: Sha256,
    scanner: Scanner,
}

impl<W: Write> Writer<W> {
    /// A writer to `out`.
    ///
    /// # Errors
    /// If there is no memory for a compressor.
    pub fn new(out: W) -> io::Result<Self> {
        Ok(Self {
            out,
            compressor: zstd::bulk::Compressor::new(LEVEL)?,
            pending: Vec::with_capacity(FRAME_BYTES),
            frames: Vec::new(),
            hash: Sha256::new(),
            scanner: Scanner::default(),
        })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// If `out` fails, or the bytes are no tar; the latter is an [`Error`] within.
    pub fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.scanner.push(bytes)?;
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(FRAME_BYTES - self.pending.len()));
            self.pending.extend_from_slice(part);
            bytes = rest;
            if self.pending.len() == FRAME_BYTES {
                self.end_frame()?;
            }
        }
        Ok(())
    }

    /// Writes the rest and the seek table. Returns what was written to, the index, and the tar's SHA-256, its `diff_id`.
    ///
    /// # Errors
    /// As [`Writer::push`].
    pub fn finish(mut self) -> io::Result<(W, LayerIndex, [u8; 32])> {
        if !self.pending.is_empty() {
            self.end_frame()?;
        }
        let length = |count: usize| u32::try_from(count).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
        let table_bytes = length(self.frames.len() * 8 + 9)?;
        self.out.write_all(&SKIPPABLE_MAGIC.to_le_bytes())?;
        self.out.write_all(&table_bytes.to_le_bytes())?;
        let mut table = Vec::with_capacity(self.frames.len() * 8 + 9);
        for (stored, bytes) in &self.frames {
            table.extend_from_slice(&stored.to_le_bytes());
            table.extend_from_slice(&bytes.to_le_bytes());
        }
        table.extend_from_slice(&length(self.frames.len())?.to_le_bytes());
        table.push(0);
        table.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
        self.out.write_all(&table)?;
        Ok((self.out, self.scanner.finish()?, self.hash.finalize().into()))
    }

    fn end_frame(&mut self) -> io::Result<()> {
        let stored = self.compressor.compress(&self.pending)?;
        self.out.write_all(&stored)?;
        let narrow = |length: usize| u32::try_from(length).expect("frames are of 256 KiB");
        self.frames.push((narrow(stored.len()), narrow(self.pending.len())));
        self.pending.clear();
        Ok(())
    }
}

/// Takes the tar as it comes out of a decoder.
impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes a zstd layer in order, whatever frames it has, and writes it in seekable form.
pub struct Recoder<W: Write> {
    decoder: zstd::stream::write::Decoder<'static, Writer<W>>,
}

impl<W: Write> Recoder<W> {
    /// A recoder to `out`.
    ///
    /// # Errors
    /// As [`Writer::new`].
    pub fn new(out: W) -> io::Result<Self> {
        Ok(Self { decoder: zstd::stream::write::Decoder::new(Writer::new(out)?)? })
    }

    /// Takes the next bytes of the layer.
    ///
    /// # Errors
    /// As [`Writer::push`], and for what is no zstd.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.decoder.write_all(bytes)
    }

    /// Ends the layer, as [`Writer::finish`] does.
    ///
    /// # Errors
    /// As [`Writer::finish`].
    pub fn finish(mut self) -> io::Result<(W, LayerIndex, [u8; 32])> {
        self.decoder.flush()?;
        self.decoder.into_inner().finish()
    }
}

impl<W: Write> std::fmt::Debug for Recoder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recoder").finish_non_exhaustive()
    }
}

impl<W> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("frames", &self.frames.len()).finish_non_exhaustive()
    }
}

/// What a layer in seekable form decompresses to.
#[derive(Debug)]
pub struct SeekableLayer {
    bytes: Arc<dyn ReadAt>,
    /// Where each frame ends, in the layer and in what it decompresses to.
    ends: Vec<(u64, u64)>,
    decoded: Arc<Decoded>,
    id: LayerId,
}

impl SeekableLayer {
    /// Reads the seek table of the layer `bytes`.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none; [`Error::Damaged`] if it contradicts the layer; [`Error::Read`].
    pub fn open(bytes: Arc<dyn ReadAt>, decoded: Arc<Decoded>) -> Result<Self, Error> {
        let footer_at = bytes.len().checked_sub(FOOTER_BYTES).ok_or(Error::Missing("seek table"))?;
        let footer = read(bytes.as_ref(), footer_at, FOOTER_BYTES)?;
        if !footer.ends_with(&SEEKABLE_MAGIC.to_le_bytes()) {
            return Err(Error::Missing("seek table"));
        }
        let count = u64::from(word(&footer, 0));
        Error::bounded("a seek table's number of frames", count, MAX_FRAMES)?;
        let entry_bytes = if footer[4] & CHECKSUM_FLAG == 0 { 8 } else { 12 };
        let table_bytes = count * entry_bytes;
        let damaged = |problem| Error::damaged("seek table", footer_at, problem);
        let table_at = footer_at.checked_sub(table_bytes).ok_or(damaged("it is longer than the layer"))?;
        let table = read(bytes.as_ref(), table_at, table_bytes)?;
        let frames_end = table_at.checked_sub(SKIPPABLE_HEADER_BYTES).ok_or(damaged("it has no header"))?;
        let mut ends = Vec::new();
        let (mut stored_end, mut end) = (0_u64, 0_u64);
        for entry in table.chunks(usize::try_from(entry_bytes).expect("it is 8 or 12")) {
            let (stored, length) = (word(entry, 0), word(entry, 4));
            if length > MAX_FRAME_BYTES || stored > 2 * MAX_FRAME_BYTES {
                return Err(damaged("a frame is too long"));
            }
            (stored_end, end) = (stored_end + u64::from(stored), end + u64::from(length));
            ends.push((stored_end, end));
        }
        if stored_end > frames_end {
            return Err(damaged("its frames are longer than the layer"));
        }
        let id = decoded.add_layer();
        Ok(Self { bytes, ends, decoded, id })
    }

    fn decode(&self, number: usize) -> Result<Box<[u8]>, Error> {
        let (offset, start) = number.checked_sub(1).map_or((0, 0), |before| self.ends[before]);
        let (stored_end, end) = self.ends[number];
        let stored = read(self.bytes.as_ref(), offset, stored_end - offset)?;
        let length = usize::try_from(end - start).expect("frames are at most 64 MiB");
        let content = zstd::bulk::decompress(&stored, length).ok().filter(|content| content.len() == length);
        content.map(Vec::into_boxed_slice).ok_or(Error::damaged("frame", offset, "it does not decompress"))
    }

    fn read_part(&self, buf: &mut [u8], offset: u64) -> Result<usize, Error> {
        let number = self.ends.partition_point(|(_, end)| *end <= offset);
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before].1);
        let content = self.decoded.get(self.id, number as u64, || self.decode(number))?;
        let from = usize::try_from(offset - start).expect("frames are in memory");
        let part = &content[from..];
        let count = part.len().min(buf.len());
        buf[..count].copy_from_slice(&part[..count]);
        Ok(count)
    }
}

impl ReadAt for SeekableLayer {
    fn len(&self) -> u64 {
        self.ends.last().map_or(0, |(_, end)| *end)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buf.len() {
            done += self.read_part(&mut buf[done..], offset + done as u64)?;
        }
        Ok(())
    }
}

/// The 32-bit number at byte `at`, which is there.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes are four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_anywhere_and_by_any_zstd() {
        let tar: Vec<u8> = vec![0; 1024];
        let tar = [tar, (0..1_000_000_u32).flat_map(|number| (number / 3).to_le_bytes()).collect()].concat();
        let mut writer = Writer::new(Vec::new()).unwrap();
        tar.chunks(77_777).for_each(|part| writer.push(part).unwrap());
        let (stored, index, digest) = writer.finish().unwrap();

        assert_eq!(zstd::stream::decode_all(&stored[..]).unwrap(), tar);
        assert_eq!(digest, <[u8; 32]>::from(Sha256::digest(&tar)));
        assert!(index.is_empty());
        let layer = SeekableLayer::open(Arc::new(stored), Decoded::new(1 << 20)).unwrap();
        assert_eq!(layer.len(), tar.len() as u64);
        for (offset, length) in [(0, 1), (262_143, 2), (100, 900_000), (tar.len() - 5, 5)] {
            let mut buf = vec![0; length];
            layer.read_exact_at(&mut buf, offset as u64).unwrap();
            assert!(buf == tar[offset..offset + length], "{length} bytes at {offset}");
        }
        assert!(layer.read_exact_at(&mut [0; 2], tar.len() as u64 - 1).is_err());
    }
}
