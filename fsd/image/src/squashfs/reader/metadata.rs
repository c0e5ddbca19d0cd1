//! Metadata blocks: 8 KiB of table, stored behind a 16-bit header, decoded once and read through a [`Cursor`].
//!
//! ```text
//! table on disk:  | header, stored bytes | header, stored bytes | ...
//! decoded:        | 8192 bytes           | 8192 bytes           | ... last: fewer
//! ```
//!
//! A position in a table is the byte offset of a block's header and an offset into what the block decodes to.

use crate::cache::{Cache, Lookups};
use crate::squashfs::format::{METADATA_BLOCK_BYTES, METADATA_UNCOMPRESSED};
use crate::squashfs::reader::codec::Decoder;
use crate::squashfs::reader::error::{Error, Part};
use crate::squashfs::reader::storage::{Storage, Use};
use std::sync::Arc;

const HEADER_BYTES: usize = 2;

/// Read at least, where the table goes on: some twenty blocks, which storage gives for the price of one.
const READ_BYTES: u64 = 64 << 10;

/// What a block weighs in the cache beyond its bytes: the entry itself.
const OVERHEAD_BYTES: u64 = 128;

/// Where the blocks of a table may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    /// What it holds, for errors.
    pub(super) part: Part,
    /// Byte offset of its first block.
    pub(super) start: u64,
    /// Byte offset of its end.
    pub(super) end: u64,
}

/// A place in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// Byte offset of the block's header in the image.
    pub(super) block: u64,
    /// Byte offset in the decoded block.
    pub(super) offset: u16,
}

/// One decoded block.
#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    next: u64,
}

/// All metadata of an image.
#[derive(Debug)]
pub(super) struct Metadata {
    storage: Arc<Storage>,
    decoder: Arc<Decoder>,
    blocks: Cache<u64, Block, Error>,
}

impl Region {
    /// The place that a metadata reference into this region means: the low 16 bits are the offset in the decoded
    /// block, the rest is where the block lies after the region's start. `None` if it is outside of the region.
    pub(super) fn position(&self, reference: u64) -> Option<Position> {
        let block = self.start.checked_add(reference >> 16)?;
        let offset = u16::try_from(reference & 0xffff).ok()?;
        (block < self.end && usize::from(offset) < METADATA_BLOCK_BYTES).then_some(Position { block, offset })
    }

    /// The other way round, for a position in this region.
    pub(super) fn reference(&self, position: Position) -> u64 {
        (position.block - self.start) << 16 | u64::from(position.offset)
    }
}

impl Metadata {
    pub(super) fn new(storage: Arc<Storage>, decoder: Arc<Decoder>, cache_bytes: u64) -> Self {
        let block_bytes = METADATA_BLOCK_BYTES as u64 + OVERHEAD_BYTES;
        Self { storage, decoder, blocks: Cache::new(cache_bytes, block_bytes) }
    }

    /// How often blocks were looked up.
    pub(super) fn lookups(&self) -> Lookups {
        self.blocks.lookups()
    }

    /// A cursor at `position` of `region`. Nothing is read yet.
    pub(super) fn cursor(&self, region: Region, position: Position) -> Cursor<'_> {
        Cursor { metadata: self, region, next: position.block, offset: usize::from(position.offset), held: None }
    }

    /// The block whose header is at `at`.
    fn block(&self, region: Region, at: u64) -> Result<Arc<Block>, Error> {
        if at < region.start || at >= region.end {
            return Err(Error::Misplaced { part: region.part, offset: at });
        }
        let block = self.blocks.get_or_make(at, || {
            let block = self.load(region, at)?;
            let weight_bytes = block.bytes.len() as u64 + OVERHEAD_BYTES;
            Ok((block, weight_bytes))
        })?;
        // Another table that overlaps this one may have put the block there, so the bound is this caller's to check.
        if block.next > region.end { Err(Error::Misplaced { part: region.part, offset: at }) } else { Ok(block) }
    }

    fn load(&self, region: Region, at: u64) -> Result<Block, Error> {
        // Header and content in one piece: the largest block is little more than what storage reads anyway.
        let room = usize::try_from(region.end - at).unwrap_or(usize::MAX).min(HEADER_BYTES + METADATA_BLOCK_BYTES);
        let wanted = at.saturating_add(READ_BYTES).min(region.end);
        self.storage.with(Use::Repeated, region.part, at, room, wanted, |raw| self.decode(region, at, raw))?
    }

    /// Decodes the block at `at`, which is somewhere in the front of `raw`.
    fn decode(&self, region: Region, at: u64, raw: &[u8]) -> Result<Block, Error> {
        let part = region.part;
        let Some((header, content)) = raw.split_first_chunk::<HEADER_BYTES>() else {
            return Err(Error::Truncated { part, offset: at, needed: HEADER_BYTES as u64, len: region.end });
        };
        let header = u16::from_le_bytes(*header);
        let stored_bytes = usize::from(header & !METADATA_UNCOMPRESSED);
        if stored_bytes == 0 || stored_bytes > METADATA_BLOCK_BYTES {
            let max = METADATA_BLOCK_BYTES as u64;
            return Err(Error::BadStoredSize { part, offset: at, stored: stored_bytes as u64, max });
        }
        let Some(stored) = content.get(..stored_bytes) else {
            return Err(Error::Truncated { part, offset: at, needed: stored_bytes as u64, len: region.end });
        };
        let next = at + (HEADER_BYTES + stored_bytes) as u64;
        if header & METADATA_UNCOMPRESSED != 0 {
            return Ok(Block { bytes: stored.into(), next });
        }
        let mut decoded = [0; METADATA_BLOCK_BYTES];
        let decompress = |reason| Error::Decompress { part, offset: at, reason };
        let decoded_bytes = self.decoder.decode(stored, &mut decoded).map_err(decompress)?;
        if decoded_bytes == 0 {
            // Without bytes a cursor would make no progress.
            return Err(Error::BadLength { part, offset: at, expected: 1, found: 0 });
        }
        Ok(Block { bytes: decoded[..decoded_bytes].into(), next })
    }
}

/// Reads a table from some position on, over the borders of its blocks.
///
/// Every step moves forward within the region, so that a walk ends however the table was made.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    metadata: &'a Metadata,
    region: Region,
    /// The block to load next: the one of the position if none is held.
    next: u64,
    offset: usize,
    held: Option<(u64, Arc<Block>)>,
}

impl Cursor<'_> {
    /// Fills `buf` and moves behind it.
    pub(super) fn read(&mut self, mut buf: &mut [u8]) -> Result<(), Error> {
        while !buf.is_empty() {
            let available = self.available()?;
            let take = available.len().min(buf.len());
            let (front, rest) = buf.split_at_mut(take);
            front.copy_from_slice(&available[..take]);
            self.offset += take;
            buf = rest;
        }
        Ok(())
    }

    pub(super) fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next `count` bytes. The caller bounds `count`.
    pub(super) fn vec(&mut self, count: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; count];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// The present position.
    pub(super) fn position(&self) -> Position {
        let block = self.block_offset();
        let offset = u16::try_from(self.offset).expect("offsets start as u16 and stay within a block of 8 KiB");
        Position { block, offset }
    }

    /// An error about a field that was read from here.
    pub(super) fn bad_field(&self, field: &'static str, value: u64) -> Error {
        Error::BadField { part: self.region.part, offset: self.block_offset(), field, value }
    }

    /// An error about a name that was read from here.
    pub(super) fn bad_name(&self, name: &[u8]) -> Error {
        let name = String::from_utf8_lossy(name).into_owned();
        Error::BadName { part: self.region.part, offset: self.block_offset(), name }
    }

    fn block_offset(&self) -> u64 {
        self.held.as_ref().map_or(self.next, |(at, _)| *at)
    }

    /// Moves `bytes` forward, over the borders of blocks.
    pub(super) fn skip(&mut self, mut bytes: u64) -> Result<(), Error> {
        while bytes > 0 {
            let step = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.available()?.len());
            self.advance(step);
            bytes -= step as u64;
        }
        Ok(())
    }

    /// The present position, which is in the next block if nothing is left of this one.
    pub(super) fn next_position(&mut self) -> Result<Position, Error> {
        self.available()?;
        Ok(self.position())
    }

    /// Moves behind `bytes` of what is available.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.offset += bytes;
    }

    /// The rest of the present block, or the whole next one if nothing is left of it.
    pub(super) fn available(&mut self) -> Result<&[u8], Error> {
        if self.held.is_none() {
            self.load()?;
        }
        if self.held.as_ref().is_some_and(|(_, block)| self.offset == block.bytes.len()) {
            self.offset = 0;
            self.load()?;
        }
        let (at, block) = self.held.as_ref().expect("a block was loaded above");
        block.bytes.get(self.offset..).filter(|rest| !rest.is_empty()).ok_or(Error::BadLength {
            part: self.region.part,
            offset: *at,
            expected: self.offset as u64 + 1,
            found: block.bytes.len() as u64,
        })
    }

    fn load(&mut self) -> Result<(), Error> {
        let block = self.metadata.block(self.region, self.next)?;
        let at = std::mem::replace(&mut self.next, block.next);
        self.held = Some((at, block));
        Ok(())
    }
}
