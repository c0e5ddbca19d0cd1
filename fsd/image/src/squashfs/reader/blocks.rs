//! File content: from a byte of a file to the stored block that holds it, and from there to decoded bytes.
//!
//! ```text
//! file:   | block 0 | block 1 | hole | block 3 | rest |
//!              |         |              |         '---> fragment block: the ends of several files
//! image:  | stored 0 | stored 1 | stored 3 |            one after the other, from the file's start
//! ```
//!
//! The inode lists only the stored size of each block, so that the place of a block is the sum of all sizes before it.
//! [`BlockList`] remembers that sum for each 512th block, and where in the list the next sizes are.

use crate::cache::{Cache, Lookup, Lookups, Turn};
use crate::squashfs::format::DATA_UNCOMPRESSED;
use crate::squashfs::reader::codec::Decoder;
use crate::squashfs::reader::error::{Error, Part};
use crate::squashfs::reader::frames::{Frame, Frames};
use crate::squashfs::reader::inode::File;
use crate::squashfs::reader::metadata::{Cursor, Metadata, Position, Region};
use crate::squashfs::reader::storage::{Storage, Use};
use crate::squashfs::reader::tables::IndexedTable;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks from one remembered place to the next: 64 MiB of file with the usual block size, and 2 KiB of list.
const BLOCKS_PER_MARK: u64 = 512;

/// What a block weighs in the cache beyond its bytes.
const OVERHEAD_BYTES: u64 = 128;

/// What is not wanted between two blocks that are, and is read with them: less than another read costs.
const MAX_PASSED_OVER_BYTES: u64 = 32 << 10;

/// Who asks for no more than this of a block jumps about: the kernel reads ahead 16 KiB at least. Of a block that is
/// stored as it is, nothing else is read then.
const MAX_JUMP_BYTES: usize = 8 << 10;

/// Buffers of former blocks that are kept for the next ones, in bytes.
const MAX_FREE_BYTES: usize = 2 << 20;

/// The stored sizes of a file's blocks, read on demand: a list says nothing of how long it is in the image until it
/// is read, so no memory is set aside for it.
#[derive(Debug)]
pub(super) struct BlockList {
    count: u64,
    first: Mark,
    /// For block 512, 1024, ..., as far as the list has been read.
    marks: Mutex<Vec<Mark>>,
}

/// Where one of the blocks is.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Place of its size in the inode table.
    list: Position,
    /// Byte offset of its content in the image.
    start: u64,
}

/// Bytes of the image that hold one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stored {
    /// Byte offset in the image.
    pub(super) start: u64,
    /// Stored bytes, with the bit that says that they are not compressed. 0 is a hole.
    pub(super) size: u32,
}

/// Reads the list from some block on.
struct Walk<'a> {
    list: &'a BlockList,
    cursor: Cursor<'a>,
    index: u64,
    start: u64,
}

/// A block that is to be decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Missing {
    block: Stored,
    part: Part,
    /// Bytes that it decodes to, at most.
    room: usize,
}

/// The parts of the image that hold these blocks, neighbours together.
pub(super) fn extents(mut missing: Vec<Missing>) -> Vec<Range<u64>> {
    missing.sort_by_key(|missing| missing.block.start);
    let mut extents: Vec<Range<u64>> = Vec::new();
    for Missing { block, .. } in missing {
        match extents.last_mut() {
            Some(last) if block.start.saturating_sub(last.end) <= MAX_PASSED_OVER_BYTES => {
                last.end = last.end.max(block.end());
            }
            _ => extents.push(block.start..block.end()),
        }
    }
    extents
}

/// The data blocks and fragments of an image.
#[derive(Debug)]
pub(super) struct Blocks {
    storage: Arc<Storage>,
    decoder: Arc<Decoder>,
    block_log: u16,
    fragments: IndexedTable,
    cache: Cache<Stored, Decoded, Error>,
    frames: Arc<Frames>,
}

/// A block in memory.
#[derive(Debug)]
struct Decoded {
    content: Frame,
    /// Bytes that were handed out so far. Once all were, the kernel has them in its page cache, and they are not worth
    /// a place in ours.
    served_bytes: AtomicU64,
}

impl Stored {
    fn is_hole(self) -> bool {
        self.size == 0
    }

    fn is_compressed(self) -> bool {
        self.size & DATA_UNCOMPRESSED == 0
    }

    fn stored_bytes(self) -> u32 {
        self.size & !DATA_UNCOMPRESSED
    }

    /// Byte offset in the image of what follows.
    fn end(self) -> u64 {
        self.start.saturating_add(self.stored_bytes().into())
    }
}

impl BlockList {
    /// The list of `count` sizes at `list`, of content from `start` on.
    pub(super) fn new(list: Position, start: u64, count: u64) -> Self {
        Self { count, first: Mark { list, start }, marks: Mutex::default() }
    }

    /// What it takes in the inode table.
    pub(super) fn list_bytes(&self) -> u64 {
        self.count.saturating_mul(4)
    }

    /// What the marks can take in memory.
    pub(super) fn weight_bytes(&self) -> u64 {
        (self.count / BLOCKS_PER_MARK).saturating_mul(size_of::<Mark>() as u64)
    }

    /// A walk from block `index` on.
    fn walk<'a>(&'a self, metadata: &'a Metadata, inodes: Region, index: u64) -> Result<Walk<'a>, Error> {
        let wanted = usize::try_from(index / BLOCKS_PER_MARK).unwrap_or(usize::MAX);
        let marks = self.marks.lock();
        let known = wanted.min(marks.len());
        let mark = if known == 0 { self.first } else { marks[known - 1] };
        drop(marks);
        let cursor = metadata.cursor(inodes, mark.list);
        let mut walk = Walk { list: self, cursor, index: known as u64 * BLOCKS_PER_MARK, start: mark.start };
        walk.skip_to(index)?;
        Ok(walk)
    }

    /// Remembers that block `index` is at `mark`, if it is the next to remember.
    fn remember(&self, index: u64, mark: Mark) {
        let mut marks = self.marks.lock();
        if (marks.len() as u64 + 1) * BLOCKS_PER_MARK == index {
            marks.push(mark);
        }
    }
}

impl Walk<'_> {
    fn next(&mut self) -> Result<Stored, Error> {
        let block = Stored { start: self.start, size: self.cursor.u32()? };
        self.step(1, block.stored_bytes().into())?;
        Ok(block)
    }

    /// Moves on to block `index`, which is not before the present one.
    fn skip_to(&mut self, index: u64) -> Result<(), Error> {
        while self.index < index {
            let left = (index - self.index).min(BLOCKS_PER_MARK - self.index % BLOCKS_PER_MARK);
            let (sizes, _) = self.cursor.available()?.as_chunks();
            let count = sizes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let stored = |size: &[u8; 4]| u64::from(u32::from_le_bytes(*size) & !DATA_UNCOMPRESSED);
            let bytes = sizes[..count].iter().map(stored).sum();
            if count == 0 {
                // A size on the border of two metadata blocks.
                self.next()?;
            } else {
                self.cursor.advance(4 * count);
                self.step(count as u64, bytes)?;
            }
        }
        Ok(())
    }

    fn step(&mut self, blocks: u64, stored_bytes: u64) -> Result<(), Error> {
        let end = self.start.checked_add(stored_bytes);
        self.start = end.ok_or_else(|| self.cursor.bad_field("data block start", self.start))?;
        self.index += blocks;
        if self.index.is_multiple_of(BLOCKS_PER_MARK) {
            self.list.remember(self.index, Mark { list: self.cursor.position(), start: self.start });
        }
        Ok(())
    }
}

impl Blocks {
    pub(super) fn new(
        storage: Arc<Storage>,
        decoder: Arc<Decoder>,
        block_log: u16,
        fragments: IndexedTable,
        cache_bytes: u64,
    ) -> Self {
        let block_bytes = 1_usize << block_log;
        let cache = Cache::new(cache_bytes, block_bytes as u64 + OVERHEAD_BYTES);
        let frames = Frames::new(block_bytes, (MAX_FREE_BYTES / block_bytes).max(2));
        Self { storage, decoder, block_log, fragments, cache, frames }
    }

    /// How often blocks were looked up.
    pub(super) fn lookups(&self) -> Lookups {
        self.cache.lookups()
    }

    /// Fills `buf`, which is all within the file, from `offset`.
    pub(super) fn read(
        &self,
        metadata: &Metadata,
        inodes: Region,
        file: &File,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Error> {
        let first = offset >> self.block_log;
        let blocks = self.blocks_in(metadata, inodes, file, offset..offset + buf.len() as u64)?;
        let mut skip = self.offset_in_block(offset);
        if let [block] = blocks[..]
            && buf.len() <= MAX_JUMP_BYTES.min(self.decoded_bytes(file, first) - skip)
            && self.may_read_in_place(block)
        {
            expect_length(block, self.decoded_bytes(file, first), block.stored_bytes() as usize)?;
            return self.storage.read(Part::DataBlock, block.start.saturating_add(skip as u64), buf);
        }
        let wanted = self.end_of_missing(&blocks);
        let mut rest = buf;
        for (index, block) in (first..).zip(blocks) {
            let block_bytes = self.decoded_bytes(file, index);
            let (front, behind) = rest.split_at_mut((block_bytes - skip).min(rest.len()));
            self.read_block(block, block_bytes, skip, front, wanted)?;
            (rest, skip) = (behind, 0);
        }
        if rest.is_empty() { Ok(()) } else { self.read_fragment(metadata, file, skip, rest) }
    }

    /// All blocks of `file`.
    pub(super) fn all(&self, metadata: &Metadata, inodes: Region, file: &File) -> Result<Vec<Stored>, Error> {
        self.blocks_in(metadata, inodes, file, 0..file.size)
    }

    /// Where the fragment `index` is stored.
    pub(super) fn fragment(&self, metadata: &Metadata, index: u32) -> Result<Stored, Error> {
        let mut entry = self.fragments.entry(metadata, index)?;
        Ok(Stored { start: entry.u64()?, size: entry.u32()? })
    }

    /// The blocks that hold the bytes of `range`; none for those in a fragment.
    fn blocks_in(
        &self,
        metadata: &Metadata,
        inodes: Region,
        file: &File,
        range: Range<u64>,
    ) -> Result<Vec<Stored>, Error> {
        let indexes = range.start >> self.block_log..range.end.div_ceil(self.block_bytes()).min(file.blocks.count);
        if range.is_empty() || indexes.is_empty() {
            return Ok(Vec::new());
        }
        let mut walk = file.blocks.walk(metadata, inodes, indexes.start)?;
        indexes.map(|_| walk.next()).collect()
    }

    /// What holds `range`, which is within `file`, and is neither in the cache nor a hole, nor longer than blocks are: that is
    /// damaged, as who reads it is told.
    pub(super) fn missing(
        &self,
        metadata: &Metadata,
        inodes: Region,
        file: &File,
        range: Range<u64>,
    ) -> Result<Vec<Missing>, Error> {
        let first = range.start >> self.block_log;
        let blocks = self.blocks_in(metadata, inodes, file, range.clone())?;
        let mut missing: Vec<_> = (first..)
            .zip(blocks)
            .map(|(index, block)| Missing { block, part: Part::DataBlock, room: self.decoded_bytes(file, index) })
            .collect();
        if let Some((index, _)) = file.fragment.filter(|_| range.end > file.blocks.count << self.block_log) {
            let mut entry = self.fragments.entry(metadata, index)?;
            let block = Stored { start: entry.u64()?, size: entry.u32()? };
            missing.push(Missing { block, part: Part::Fragment, room: 1 << self.block_log });
        }
        let is_block = |block: Stored| !block.is_hole() && u64::from(block.stored_bytes()) <= self.block_bytes();
        missing.retain(|missing| is_block(missing.block) && !self.cache.contains(missing.block));
        Ok(missing)
    }

    /// The bytes of `file` that the block of the one at `offset` holds, if it is in the cache and not all of it was handed out.
    pub(super) fn decoded_around(
        &self,
        metadata: &Metadata,
        inodes: Region,
        file: &File,
        offset: u64,
    ) -> Result<Option<Range<u64>>, Error> {
        let start = offset & !(self.block_bytes() - 1);
        let end = start.saturating_add(self.block_bytes()).min(file.size);
        let blocks = self.blocks_in(metadata, inodes, file, start..end)?;
        let is_decoded = |block: &Stored| !block.is_hole() && self.cache.is_wanted(*block);
        Ok(blocks.first().filter(|block| is_decoded(block)).map(|_| start..end))
    }

    /// Decodes blocks into the cache, in the order of the image.
    pub(super) fn prepare(&self, mut missing: Vec<Missing>) {
        missing.sort_by_key(|missing| missing.block.start);
        let mut wanted = 0;
        for (index, one) in missing.iter().enumerate() {
            if one.block.start >= wanted {
                let follows = |pair: &&[Missing]| {
                    pair[1].block.start.saturating_sub(pair[0].block.end()) <= MAX_PASSED_OVER_BYTES
                };
                let run = missing[index..].windows(2).take_while(follows).count();
                wanted = missing[index + run].block.end();
            }
            // One that another thread is decoding is being prepared; what is damaged shows to who reads it.
            if let Ok(Lookup::Turn(turn)) = self.cache.look_up(one.block) {
                let _ = self.make(one.part, one.block, one.room, wanted, turn);
            }
        }
    }

    /// Whether what is stored is the content itself, which is not in memory.
    fn may_read_in_place(&self, block: Stored) -> bool {
        !block.is_hole() && !block.is_compressed() && !self.cache.contains(block)
    }

    /// Where in the image the last of `blocks` ends that has to be read; 0 if none has to.
    fn end_of_missing(&self, blocks: &[Stored]) -> u64 {
        let missing = blocks.iter().rfind(|block| !block.is_hole() && !self.cache.contains(**block));
        missing.map_or(0, |block| block.end())
    }

    fn offset_in_block(&self, offset: u64) -> usize {
        usize::try_from(offset & (self.block_bytes() - 1)).expect("blocks are at most 1 MiB")
    }

    fn block_bytes(&self) -> u64 {
        1 << self.block_log
    }

    /// Length of block `index` of `file`: that of all blocks, less for the last one.
    fn decoded_bytes(&self, file: &File, index: u64) -> usize {
        let left = file.size - (index << self.block_log);
        usize::try_from(left.min(self.block_bytes())).expect("blocks are at most 1 MiB")
    }

    /// Fills `buf` from `skip` bytes into a block that must have `block_bytes`.
    fn read_block(
        &self,
        block: Stored,
        block_bytes: usize,
        skip: usize,
        buf: &mut [u8],
        wanted: u64,
    ) -> Result<(), Error> {
        if block.is_hole() {
            buf.fill(0);
            return Ok(());
        }
        let decoded = match self.cache.look_up(block)? {
            Lookup::Hit(decoded) => decoded,
            Lookup::Turn(turn) if buf.len() == block_bytes && !turn.is_awaited() => {
                return self.decode_whole(block, buf, wanted, turn);
            }
            Lookup::Turn(turn) => self.make(Part::DataBlock, block, block_bytes, wanted, turn)?,
        };
        expect_length(block, block_bytes, decoded.content.len())?;
        self.serve(block, &decoded, skip, buf);
        Ok(())
    }

    /// Decodes a block straight into `buf`, which is as long: whoever reads a whole block has it then.
    fn decode_whole(&self, block: Stored, buf: &mut [u8], wanted: u64, turn: MakeTurn<'_>) -> Result<(), Error> {
        let outcome = self.decode(Use::Once, Part::DataBlock, block, buf, wanted);
        match outcome.and_then(|found| expect_length(block, buf.len(), found)) {
            Ok(()) if turn.is_awaited() => {
                let mut content = self.frames.take();
                content.truncate(buf.len());
                content.copy_from_slice(buf);
                land(turn, content, buf.len() as u64);
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(error) => Err(turn.fail(error)),
        }
    }

    /// Fills `buf` from `skip` bytes into the end of `file`.
    fn read_fragment(&self, metadata: &Metadata, file: &File, skip: usize, buf: &mut [u8]) -> Result<(), Error> {
        let part = Part::Fragment;
        let (index, start) = file.fragment.expect("a file without fragment has all of its bytes in its blocks");
        let block = self.fragment(metadata, index)?;
        let decoded = match self.cache.look_up(block)? {
            Lookup::Hit(decoded) => decoded,
            Lookup::Turn(turn) => self.make(part, block, 1 << self.block_log, block.end(), turn)?,
        };
        let from = usize::try_from(start).ok().and_then(|start| start.checked_add(skip));
        let end = from.and_then(|from| from.checked_add(buf.len()));
        let (Some(from), Some(_)) = (from, end.filter(|end| *end <= decoded.content.len())) else {
            let expected = u64::from(start) + (skip + buf.len()) as u64;
            return Err(Error::BadLength { part, offset: block.start, expected, found: decoded.content.len() as u64 });
        };
        self.serve(block, &decoded, from, buf);
        Ok(())
    }

    /// Fills `buf` from `from` bytes into `decoded`, which has as many.
    fn serve(&self, block: Stored, decoded: &Decoded, from: usize, buf: &mut [u8]) {
        buf.copy_from_slice(&decoded.content[from..from + buf.len()]);
        let served_before = decoded.served_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        if served_before + buf.len() as u64 >= decoded.content.len() as u64 {
            self.cache.retire(block);
        }
    }

    /// Decodes `block` into the cache. It has `room` bytes at most.
    fn make(
        &self,
        part: Part,
        block: Stored,
        room: usize,
        wanted: u64,
        turn: MakeTurn<'_>,
    ) -> Result<Arc<Decoded>, Error> {
        let mut content = self.frames.take();
        content.truncate(room);
        match self.decode(Use::Repeated, part, block, &mut content, wanted) {
            Ok(decoded_bytes) => {
                content.truncate(decoded_bytes);
                Ok(land(turn, content.fitted(), 0))
            }
            Err(error) => Err(turn.fail(error)),
        }
    }

    /// Decodes `block` into the front of `decoded` and returns how many bytes it has. What follows it in the image up
    /// to `wanted` will be asked for next.
    fn decode(&self, purpose: Use, part: Part, block: Stored, decoded: &mut [u8], wanted: u64) -> Result<usize, Error> {
        let stored = u64::from(block.stored_bytes());
        let room = decoded.len() as u64;
        let max = if block.is_compressed() { self.block_bytes() } else { room };
        let stored_bytes = match usize::try_from(stored) {
            Ok(bytes) if stored > 0 && stored <= max => bytes,
            _ => return Err(Error::BadStoredSize { part, offset: block.start, stored, max }),
        };
        self.storage.with(purpose, part, block.start, stored_bytes, wanted, |stored| {
            if !block.is_compressed() {
                decoded[..stored_bytes].copy_from_slice(stored);
                return Ok(stored_bytes);
            }
            let decompress = |reason| Error::Decompress { part, offset: block.start, reason };
            self.decoder.decode(stored, decoded).map_err(decompress)
        })?
    }
}

type MakeTurn<'a> = Turn<'a, Stored, Decoded, Error>;

/// Puts a decoded block, of which `served_bytes` were handed out, into the cache.
fn land(turn: MakeTurn<'_>, content: Frame, served_bytes: u64) -> Arc<Decoded> {
    let weight_bytes = content.capacity() as u64 + OVERHEAD_BYTES;
    turn.land(Decoded { content, served_bytes: served_bytes.into() }, weight_bytes)
}

fn expect_length(block: Stored, expected: usize, found: usize) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    let (expected, found) = (expected as u64, found as u64);
    Err(Error::BadLength { part: Part::DataBlock, offset: block.start, expected, found })
}
