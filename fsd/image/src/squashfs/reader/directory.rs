//! Directory listings: runs of entries that share an inode block, and the index over them in large directories.
//!
//! ```text
//! listing: | header: count - 1, inode block, inode number | entry | entry | ... | header | entry | ...
//! index:   | bytes into the listing, block, name of the first entry there | ...   one for about each 8 KiB
//! ```
//!
//! Names are in byte order, so that the index can be used and a look-up can stop early.

use crate::squashfs::format::{MAX_NAME_BYTES, METADATA_BLOCK_BYTES, inode_type};
use crate::squashfs::reader::error::Error;
use crate::squashfs::reader::inode::Directory;
use crate::squashfs::reader::metadata::{Cursor, Metadata, Position, Region};
use crate::tree::{Entry, Kind, NodeId};
use std::cmp::Ordering;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// `file_size` counts the 3 bytes that `.` and `..` would take; a directory without entries has just these.
const SIZE_OF_DOTS: u32 = 3;

/// Entries under one header.
const MAX_RUN: u32 = 256;

/// Bytes of a listing for each stored byte of the directory table, and bytes that are always allowed. Names differ, so
/// that no codec comes near this; without a bound a small image could ask for gigabytes of equal entries.
const MAX_EXPANSION: u64 = 128;
const MAX_SMALL_LISTING: u64 = 1 << 20;

const HEADER_BYTES: u32 = 12;
const ENTRY_BYTES: u32 = 8;

/// The tables that a directory needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) metadata: &'a Metadata,
    pub(super) inodes: Region,
    pub(super) directories: Region,
}

/// Yields the entries of one directory in order.
struct Listing<'a> {
    cursor: Cursor<'a>,
    /// Bytes of the listing that are left.
    left: u32,
    /// Entries left under the present header.
    run: u32,
    inode_block: u32,
    name: [u8; MAX_NAME_BYTES],
}

/// An entry whose name is still in the listing's buffer.
struct Found<'a> {
    name: &'a [u8],
    node: NodeId,
    kind: Kind,
}

/// All entries of `directory`.
pub(super) fn entries(tables: Tables<'_>, directory: Directory) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    let Some(mut listing) = Listing::new(tables, directory, None)? else { return Ok(entries) };
    while let Some(found) = listing.next()? {
        let name = OsString::from_vec(found.name.to_vec());
        entries.push(Entry { name, node: found.node, kind: found.kind });
    }
    Ok(entries)
}

/// The node that `name` stands for in `directory`.
pub(super) fn lookup(tables: Tables<'_>, directory: Directory, name: &[u8]) -> Result<Option<NodeId>, Error> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Ok(None);
    }
    let start = match directory.index {
        Some((count, position)) => search_index(tables, position, count, name)?,
        None => None,
    };
    let Some(mut listing) = Listing::new(tables, directory, start)? else { return Ok(None) };
    while let Some(found) = listing.next()? {
        match found.name.cmp(name) {
            Ordering::Less => {}
            Ordering::Equal => return Ok(Some(found.node)),
            Ordering::Greater => return Ok(None),
        }
    }
    Ok(None)
}

/// The last place of the index whose name is not after `name`: bytes into the listing, and block in the table.
fn search_index(tables: Tables<'_>, position: Position, count: u16, name: &[u8]) -> Result<Option<(u32, u32)>, Error> {
    let mut cursor = tables.metadata.cursor(tables.inodes, position);
    let mut best = None;
    let mut first = [0; MAX_NAME_BYTES];
    for _ in 0..count {
        let bytes_before = cursor.u32()?;
        let block = cursor.u32()?;
        let name_bytes = cursor.u32()?;
        let first = first.get_mut(..name_length(&cursor, name_bytes)?).unwrap_or_default();
        cursor.read(first)?;
        if *first > *name {
            break;
        }
        best = Some((bytes_before, block));
    }
    Ok(best)
}

/// Lengths of names are stored less one.
fn name_length(cursor: &Cursor<'_>, stored: u32) -> Result<usize, Error> {
    match usize::try_from(stored) {
        Ok(stored) if stored < MAX_NAME_BYTES => Ok(stored + 1),
        _ => Err(cursor.bad_field("name length", u64::from(stored) + 1)),
    }
}

impl<'a> Listing<'a> {
    /// The listing of `directory` from its start, or from a place that the index names. `None` if it is empty.
    fn new(tables: Tables<'a>, directory: Directory, start: Option<(u32, u32)>) -> Result<Option<Self>, Error> {
        let Some(bytes) = directory.size.checked_sub(SIZE_OF_DOTS).filter(|bytes| *bytes > 0) else {
            return Ok(None);
        };
        let region = tables.directories;
        let (before, reference) = match start {
            None => (0, directory.listing),
            Some((before, block)) => {
                let offset = ((directory.listing & 0xffff) + u64::from(before)) % METADATA_BLOCK_BYTES as u64;
                (before, u64::from(block) << 16 | offset)
            }
        };
        let misplaced = Error::Misplaced { part: region.part, offset: region.start.saturating_add(reference >> 16) };
        let position = region.position(reference).ok_or(misplaced)?;
        let cursor = tables.metadata.cursor(region, position);
        let max = (region.end - region.start).saturating_mul(MAX_EXPANSION).max(MAX_SMALL_LISTING);
        if u64::from(bytes) > max {
            return Err(cursor.bad_field("listing length", bytes.into()));
        }
        let Some(left) = bytes.checked_sub(before) else {
            return Err(cursor.bad_field("an index entry at listing byte", before.into()));
        };
        Ok(Some(Self { cursor, left, run: 0, inode_block: 0, name: [0; MAX_NAME_BYTES] }))
    }

    fn next(&mut self) -> Result<Option<Found<'_>>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.run == 0 {
            self.header()?;
        }
        self.run -= 1;
        let offset = self.cursor.u16()?;
        let _inode_number_difference = self.cursor.u16()?;
        let kind = self.cursor.u16()?;
        let name_bytes = u32::from(self.cursor.u16()?);
        let name_length = name_length(&self.cursor, name_bytes)?;
        self.consume(ENTRY_BYTES + name_bytes + 1)?;
        let kind = kind_of(kind).ok_or_else(|| self.cursor.bad_field("entry type", kind.into()))?;
        let name = &mut self.name[..name_length];
        self.cursor.read(name)?;
        if !is_allowed(name) {
            return Err(self.cursor.bad_name(name));
        }
        let node = NodeId(u64::from(self.inode_block) << 16 | u64::from(offset));
        Ok(Some(Found { name, node, kind }))
    }

    fn header(&mut self) -> Result<(), Error> {
        let count = self.cursor.u32()?;
        self.inode_block = self.cursor.u32()?;
        let _inode_number = self.cursor.u32()?;
        self.consume(HEADER_BYTES)?;
        if count >= MAX_RUN {
            return Err(self.cursor.bad_field("entries under one header", u64::from(count) + 1));
        }
        self.run = count + 1;
        Ok(())
    }

    /// Counts bytes off the listing's length, which every header and every entry has to fit into.
    fn consume(&mut self, bytes: u32) -> Result<(), Error> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| self.cursor.bad_field("a listing that is too short by", bytes.into()))?;
        Ok(())
    }
}

fn kind_of(stored: u16) -> Option<Kind> {
    Some(match stored {
        inode_type::DIRECTORY => Kind::Directory,
        inode_type::FILE => Kind::File,
        inode_type::SYMLINK => Kind::Symlink,
        inode_type::BLOCK_DEVICE => Kind::BlockDevice,
        inode_type::CHAR_DEVICE => Kind::CharDevice,
        inode_type::FIFO => Kind::Fifo,
        inode_type::SOCKET => Kind::Socket,
        _ => return None,
    })
}

fn is_allowed(name: &[u8]) -> bool {
    name != b"." && name != b".." && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}
