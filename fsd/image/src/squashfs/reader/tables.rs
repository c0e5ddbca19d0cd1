//! What is read once, when an image is opened: superblock, ids, and the indexes of the fragment and xattr tables.
//!
//! ```text
//! index:   | u64 | u64 | ...   plain, at the place that the superblock names
//!             |     '----> metadata block with the next 8 KiB of entries
//!             '----------> metadata block with the first 8 KiB of entries
//! ```

use crate::squashfs::format::{
    FRAGMENT_ENTRY_BYTES, MAGIC, MAX_BLOCK_BYTES, METADATA_BLOCK_BYTES, METADATA_UNCOMPRESSED, MIN_BLOCK_BYTES,
    NONE_U64, SUPERBLOCK_BYTES, Superblock, XATTR_ID_BYTES, flags,
};
use crate::squashfs::reader::codec::Codec;
use crate::squashfs::reader::error::{Error, Part};
use crate::squashfs::reader::metadata::{Cursor, Metadata, Position, Region};
use crate::squashfs::reader::storage::Storage;

const ID_BYTES: usize = 4;

/// The only version of lz4 blocks that there is, as the options of an lz4 image have to say.
const LZ4_LEGACY: u32 = 1;

/// Reads and checks the superblock.
pub(super) fn superblock(storage: &Storage) -> Result<Superblock, Error> {
    let mut raw = [0; SUPERBLOCK_BYTES];
    storage.read(Part::Superblock, 0, &mut raw)?;
    let Some(superblock) = Superblock::decode(&raw) else {
        let found = [raw[0], raw[1], raw[2], raw[3]];
        let big_endian = u32::from_be_bytes(found) == MAGIC;
        return Err(if big_endian { Error::BigEndian } else { Error::BadMagic { found } });
    };
    check(&superblock, storage.len())?;
    Ok(superblock)
}

fn check(superblock: &Superblock, len: u64) -> Result<(), Error> {
    let Superblock { version_major: major, version_minor: minor, block_size, block_log, .. } = *superblock;
    if (major, minor) != (4, 0) {
        return Err(Error::UnsupportedVersion { major, minor });
    }
    let sizes = MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES;
    if !sizes.contains(&block_size) || 1_u32.checked_shl(u32::from(block_log)) != Some(block_size) {
        return Err(Error::BadBlockSize { block_size, block_log });
    }
    if superblock.bytes_used > len {
        return Err(Error::Truncated { part: Part::Superblock, offset: 0, needed: superblock.bytes_used, len });
    }
    check_order(superblock)
}

/// The tables that every image has lie within it, the inodes before the directories.
fn check_order(superblock: &Superblock) -> Result<(), Error> {
    let places = [
        (Part::InodeTable, superblock.inode_table_start, superblock.directory_table_start),
        (Part::DirectoryTable, superblock.directory_table_start, superblock.bytes_used),
        (Part::IdTable, superblock.id_table_start, superblock.bytes_used),
    ];
    for (part, offset, end) in places {
        if offset < SUPERBLOCK_BYTES as u64 || offset > end {
            return Err(Error::Misplaced { part, offset });
        }
    }
    Ok(())
}

/// Checks the options that follow the superblock. Streams say for themselves all that a decoder has to know, but an
/// lz4 image of a later version would not be readable.
pub(super) fn check_compressor_options(storage: &Storage, superblock: &Superblock, codec: Codec) -> Result<(), Error> {
    if superblock.flags & flags::COMPRESSOR_OPTIONS == 0 {
        return Ok(());
    }
    let part = Part::CompressorOptions;
    let offset = SUPERBLOCK_BYTES as u64;
    let needed: u16 = if codec == Codec::Zstd { 4 } else { 8 };
    let mut raw = [0; 2 + 8];
    let raw = &mut raw[..2 + usize::from(needed)];
    storage.read(part, offset, raw)?;
    let header = u16::from_le_bytes([raw[0], raw[1]]);
    if header & METADATA_UNCOMPRESSED == 0 || header & !METADATA_UNCOMPRESSED < needed {
        return Err(Error::BadField { part, offset, field: "a header of", value: header.into() });
    }
    let version = u32::from_le_bytes([raw[2], raw[3], raw[4], raw[5]]);
    if codec == Codec::Lz4 && version != LZ4_LEGACY {
        return Err(Error::BadField { part, offset, field: "lz4 version", value: version.into() });
    }
    Ok(())
}

/// A table of entries of one size, found by number.
#[derive(Debug)]
pub(super) struct IndexedTable {
    part: Part,
    blocks: Box<[u64]>,
    count: u64,
    entry_bytes: usize,
    /// Blocks of the table lie before its index, and the kernel insists on it, too.
    end: u64,
}

impl IndexedTable {
    /// Reads the index of `count` entries at `start`.
    fn load(storage: &Storage, part: Part, start: u64, count: u64, entry_bytes: usize) -> Result<Self, Error> {
        let blocks = (count * entry_bytes as u64).div_ceil(METADATA_BLOCK_BYTES as u64);
        let needed = blocks * 8;
        // The index is as long as it is in the image, so that it cannot ask for more memory than the image has bytes.
        if start.checked_add(needed).is_none_or(|end| end > storage.len()) {
            return Err(Error::Truncated { part, offset: start, needed, len: storage.len() });
        }
        let too_long = |_| Error::BadLength { part, offset: start, expected: u64::from(u32::MAX), found: needed };
        let mut raw = vec![0; usize::try_from(needed).map_err(too_long)?];
        storage.read(part, start, &mut raw)?;
        let (offsets, _) = raw.as_chunks();
        let blocks = offsets.iter().map(|offset| u64::from_le_bytes(*offset)).collect();
        Ok(Self { part, blocks, count, entry_bytes, end: start })
    }

    /// The table of fragments; empty if the image has none.
    pub(super) fn fragments(storage: &Storage, superblock: &Superblock) -> Result<Self, Error> {
        let start = superblock.fragment_table_start;
        let count = if start == NONE_U64 { 0 } else { superblock.fragment_count };
        Self::load(storage, Part::FragmentTable, if count == 0 { 0 } else { start }, count.into(), FRAGMENT_ENTRY_BYTES)
    }

    /// The table of xattr sets whose index is at `start`.
    pub(super) fn xattr_sets(storage: &Storage, start: u64, count: u32) -> Result<Self, Error> {
        Self::load(storage, Part::XattrTable, start, count.into(), XATTR_ID_BYTES)
    }

    /// A cursor at entry `index`.
    pub(super) fn entry<'a>(&self, metadata: &'a Metadata, index: u32) -> Result<Cursor<'a>, Error> {
        let index = u64::from(index);
        let missing = Error::NoSuchEntry { part: self.part, index, count: self.count };
        if index >= self.count {
            return Err(missing);
        }
        let at = index * self.entry_bytes as u64;
        let block = usize::try_from(at / METADATA_BLOCK_BYTES as u64).ok().and_then(|block| self.blocks.get(block));
        let offset = u16::try_from(at % METADATA_BLOCK_BYTES as u64).ok();
        let (Some(&block), Some(offset)) = (block, offset) else { return Err(missing) };
        let region = Region { part: self.part, start: SUPERBLOCK_BYTES as u64, end: self.end };
        Ok(metadata.cursor(region, Position { block, offset }))
    }
}

/// Reads all owners and groups; there are at most 65535.
pub(super) fn ids(storage: &Storage, metadata: &Metadata, superblock: &Superblock) -> Result<Box<[u32]>, Error> {
    let count = u32::from(superblock.id_count);
    let table = IndexedTable::load(storage, Part::IdTable, superblock.id_table_start, count.into(), ID_BYTES)?;
    (0..count).map(|index| table.entry(metadata, index)?.u32()).collect()
}
