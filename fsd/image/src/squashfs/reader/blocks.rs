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

use crate::read_at::ReadAt;
use crate::squashfs::format::DATA_UNCOMPRESSED;
use crate::squashfs::reader::cache::{Cache, Lookup};
use crate::squashfs::reader::codec::Codec;
use crate::squashfs::reader::error::{Error, Part};
use crate::squashfs::reader::inode::File;
use crate::squashfs::reader::metadata::{Cursor, Metadata, Position, Region, read};
use crate::squashfs::reader::tables::IndexedTable;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::sync::Arc;

/// Blocks from one remembered place to the next: 64 MiB of file with the usual block size, and 2 KiB of list.
const BLOCKS_PER_MARK: u64 = 512;

/// What a block weighs in the cache beyond its bytes.
const OVERHEAD_BYTES: u64 = 128;

thread_local! {
    /// Stored bytes on their way to a codec: at most one block for each thread.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The stored sizes of a file's blocks, read on demand: a list says nothing of how long it is in the image until it
/// is read, so no memory is set aside for it.
#[derive(Debug)]
pub(super) struct BlockList {
    count: u64,
    /// For block 0, 512, 1024, ..., as far as the list has been read. Never empty.
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

/// The data blocks and fragments of an image.
#[derive(Debug)]
pub(super) struct Blocks {
    bytes: Arc<dyn ReadAt>,
    codec: Codec,
    block_log: u16,
    fragments: IndexedTable,
    cache: Cache<Stored, Box<[u8]>, Error>,
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
}

impl BlockList {
    /// The list of `count` sizes at `list`, of content from `start` on.
    pub(super) fn new(list: Position, start: u64, count: u64) -> Self {
        Self { count, marks: Mutex::new(vec![Mark { list, start }]) }
    }

    /// What the marks can take in memory.
    pub(super) fn weight_bytes(&self) -> u64 {
        (self.count / BLOCKS_PER_MARK).saturating_mul(size_of::<Mark>() as u64)
    }

    /// A walk from block `index` on.
    fn walk<'a>(&'a self, metadata: &'a Metadata, inodes: Region, index: u64) -> Result<Walk<'a>, Error> {
        let wanted = usize::try_from(index / BLOCKS_PER_MARK).unwrap_or(usize::MAX);
        let marks = self.marks.lock();
        let known = wanted.min(marks.len() - 1);
        let mark = marks[known];
        drop(marks);
        let cursor = metadata.cursor(inodes, mark.list);
        let mut walk = Walk { list: self, cursor, index: known as u64 * BLOCKS_PER_MARK, start: mark.start };
        while walk.index < index {
            walk.next()?;
        }
        Ok(walk)
    }

    /// Remembers that block `index` is at `mark`, if it is the next to remember.
    fn remember(&self, index: u64, mark: Mark) {
        let mut marks = self.marks.lock();
        if marks.len() as u64 * BLOCKS_PER_MARK == index {
            marks.push(mark);
        }
    }
}

impl Walk<'_> {
    fn next(&mut self) -> Result<Stored, Error> {
        if self.index > 0 && self.index.is_multiple_of(BLOCKS_PER_MARK) {
            self.list.remember(self.index, Mark { list: self.cursor.position(), start: self.start });
        }
        let block = Stored { start: self.start, size: self.cursor.u32()? };
        let end = self.start.checked_add(block.stored_bytes().into());
        self.start = end.ok_or_else(|| self.cursor.bad_field("data block start", self.start))?;
        self.index += 1;
        Ok(block)
    }
}

impl Blocks {
    pub(super) fn new(
        bytes: Arc<dyn ReadAt>,
        codec: Codec,
        block_log: u16,
        fragments: IndexedTable,
        cache_bytes: u64,
    ) -> Self {
        let cache = Cache::new(cache_bytes, (1 << block_log) + OVERHEAD_BYTES);
        Self { bytes, codec, block_log, fragments, cache }
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
        let mut skip = self.offset_in_block(offset);
        let mut rest = buf;
        let mut walk = if first < file.blocks.count { Some(file.blocks.walk(metadata, inodes, first)?) } else { None };
        while !rest.is_empty() {
            let Some(walk) = walk.as_mut().filter(|walk| walk.index < file.blocks.count) else {
                return self.read_fragment(metadata, file, skip, rest);
            };
            let block_bytes = self.decoded_bytes(file, walk.index);
            let block = walk.next()?;
            let (front, behind) = rest.split_at_mut((block_bytes - skip).min(rest.len()));
            self.read_block(block, block_bytes, skip, front)?;
            (rest, skip) = (behind, 0);
        }
        Ok(())
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
    fn read_block(&self, block: Stored, block_bytes: usize, skip: usize, buf: &mut [u8]) -> Result<(), Error> {
        if block.is_hole() {
            buf.fill(0);
            return Ok(());
        }
        let turn = match self.cache.look_up(block)? {
            Lookup::Hit(decoded) => return copy(block, &decoded, block_bytes, skip, buf),
            Lookup::Turn(turn) => turn,
        };
        if buf.len() < block_bytes || turn.is_awaited() {
            let decoded = match self.load(Part::DataBlock, block) {
                Ok(decoded) => turn.land(decoded, block_bytes as u64 + OVERHEAD_BYTES),
                Err(error) => return Err(turn.fail(error)),
            };
            return copy(block, &decoded, block_bytes, skip, buf);
        }
        // Whoever reads a whole block has it then, mostly in the kernel's page cache: it is not worth a place in ours.
        let outcome = self.decode(Part::DataBlock, block, buf);
        match outcome.and_then(|found| expect_length(block, block_bytes, found)) {
            Ok(()) if turn.is_awaited() => drop(turn.land((*buf).into(), block_bytes as u64 + OVERHEAD_BYTES)),
            Ok(()) => {}
            Err(error) => return Err(turn.fail(error)),
        }
        Ok(())
    }

    /// Fills `buf` from `skip` bytes into the end of `file`.
    fn read_fragment(&self, metadata: &Metadata, file: &File, skip: usize, buf: &mut [u8]) -> Result<(), Error> {
        let part = Part::Fragment;
        let (index, start) = file.fragment.expect("a file without fragment has all of its bytes in its blocks");
        let mut entry = self.fragments.entry(metadata, index)?;
        let block = Stored { start: entry.u64()?, size: entry.u32()? };
        let decoded = self.cache.get_or_make(block, || {
            let decoded = self.load(part, block)?;
            let weight_bytes = decoded.len() as u64 + OVERHEAD_BYTES;
            Ok((decoded, weight_bytes))
        })?;
        let from = usize::try_from(start).ok().and_then(|start| start.checked_add(skip));
        let content = from.and_then(|from| decoded.get(from..from.checked_add(buf.len())?));
        let Some(content) = content else {
            let expected = u64::from(start) + (skip + buf.len()) as u64;
            return Err(Error::BadLength { part, offset: block.start, expected, found: decoded.len() as u64 });
        };
        buf.copy_from_slice(content);
        Ok(())
    }

    /// The decoded bytes of `block`, however many they are.
    fn load(&self, part: Part, block: Stored) -> Result<Box<[u8]>, Error> {
        let mut decoded = vec![0; usize::try_from(self.block_bytes()).expect("blocks are at most 1 MiB")];
        let decoded_bytes = self.decode(part, block, &mut decoded)?;
        decoded.truncate(decoded_bytes);
        Ok(decoded.into_boxed_slice())
    }

    /// Decodes `block` into the front of `decoded` and returns how many bytes it has.
    fn decode(&self, part: Part, block: Stored, decoded: &mut [u8]) -> Result<usize, Error> {
        let stored = u64::from(block.stored_bytes());
        let room = decoded.len() as u64;
        let max = if block.is_compressed() { self.block_bytes() } else { room };
        let bad_size = Error::BadStoredSize { part, offset: block.start, stored, max };
        let stored_bytes = match usize::try_from(stored) {
            Ok(bytes) if stored > 0 && stored <= max => bytes,
            _ => return Err(bad_size),
        };
        if !block.is_compressed() {
            read(&*self.bytes, part, block.start, &mut decoded[..stored_bytes])?;
            return Ok(stored_bytes);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < stored_bytes {
                scratch.resize(stored_bytes, 0);
            }
            let scratch = &mut scratch[..stored_bytes];
            read(&*self.bytes, part, block.start, scratch)?;
            let decompress = |reason| Error::Decompress { part, offset: block.start, reason };
            self.codec.decode(scratch, decoded).map_err(decompress)
        })
    }
}

/// Fills `buf` from `skip` bytes into a decoded data block that must have `expected` bytes.
fn copy(block: Stored, decoded: &[u8], expected: usize, skip: usize, buf: &mut [u8]) -> Result<(), Error> {
    expect_length(block, expected, decoded.len())?;
    buf.copy_from_slice(&decoded[skip..skip + buf.len()]);
    Ok(())
}

fn expect_length(block: Stored, expected: usize, found: usize) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    let (expected, found) = (expected as u64, found as u64);
    Err(Error::BadLength { part: Part::DataBlock, offset: block.start, expected, found })
}
