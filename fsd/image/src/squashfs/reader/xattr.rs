//! Extended attributes: sets of names and values that any number of nodes share.
//!
//! ```text
//! node -> number of a set -> (reference, count, size)      the indexed table of sets
//!                                 '-> name, value | name, reference to a value | ...
//! ```

use crate::squashfs::format::{NONE_U64, SUPERBLOCK_BYTES, Superblock};
use crate::squashfs::reader::error::{Error, Part};
use crate::squashfs::reader::metadata::{Cursor, Metadata, Region};
use crate::squashfs::reader::storage::Storage;
use crate::squashfs::reader::tables::IndexedTable;
use crate::tree::Xattr;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// Header of the table: where the names and values start, number of sets, unused.
const HEADER_BYTES: usize = 16;

/// Bit of an entry's type that says that its value is elsewhere.
const VALUE_OUT_OF_LINE: u16 = 0x0100;

/// Name spaces, by the low byte of an entry's type.
const PREFIXES: [&str; 3] = ["user.", "trusted.", "security."];

/// Linux's own limit on a value (`XATTR_SIZE_MAX`).
const MAX_VALUE_BYTES: u32 = 64 << 10;

/// Linux's own limit on a name without its name space (`XATTR_NAME_MAX`).
const MAX_XATTR_NAME_BYTES: u16 = 255;

/// All names and values of one node. Many entries can refer to one long value, so that a few bytes of image could ask
/// for gigabytes.
const MAX_SET_BYTES: usize = 4 << 20;

/// What an entry takes in memory beside its name and value.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// The xattrs of an image.
#[derive(Debug)]
pub(super) struct Xattrs {
    sets: IndexedTable,
    entries: Region,
}

/// How many bytes and entries a set has, and where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Set {
    reference: u64,
    count: u32,
    /// Bytes of all names and values.
    pub(super) size_bytes: u32,
}

impl Xattrs {
    /// Reads the header and the index; `None` if the image has no xattrs.
    pub(super) fn load(storage: &Storage, superblock: &Superblock) -> Result<Option<Self>, Error> {
        let offset = superblock.xattr_table_start;
        if offset == NONE_U64 {
            return Ok(None);
        }
        let part = Part::XattrTable;
        let mut header = [0; HEADER_BYTES];
        storage.read(part, offset, &mut header)?;
        let (words, _) = header.as_chunks();
        let start = u64::from_le_bytes(words[0]);
        let count = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if start < SUPERBLOCK_BYTES as u64 || start > offset {
            return Err(Error::Misplaced { part, offset: start });
        }
        // Reading found the header within the image, so that its end is a valid offset.
        let sets = IndexedTable::xattr_sets(storage, offset + HEADER_BYTES as u64, count)?;
        Ok(Some(Self { sets, entries: Region { part, start, end: offset } }))
    }

    /// Set number `index`.
    pub(super) fn set(&self, metadata: &Metadata, index: u32) -> Result<Set, Error> {
        let mut cursor = self.sets.entry(metadata, index)?;
        Ok(Set { reference: cursor.u64()?, count: cursor.u32()?, size_bytes: cursor.u32()? })
    }

    /// All names and values of `set`, in stored order. Name spaces that this version does not know are left out, as
    /// Linux does.
    pub(super) fn entries(&self, metadata: &Metadata, set: Set) -> Result<Vec<Xattr>, Error> {
        let mut cursor = self.cursor(metadata, set.reference)?;
        let mut entries = Vec::new();
        let mut total_bytes = 0;
        for _ in 0..set.count {
            let kind = cursor.u16()?;
            let name = read_name(&mut cursor)?;
            let value = if kind & VALUE_OUT_OF_LINE == 0 {
                read_value(&mut cursor)?
            } else {
                let _size_of_reference = cursor.u32()?;
                let reference = cursor.u64()?;
                read_value(&mut self.cursor(metadata, reference)?)?
            };
            total_bytes += name.len() + value.len() + ENTRY_OVERHEAD_BYTES;
            if total_bytes > MAX_SET_BYTES {
                return Err(cursor.bad_field("more bytes of extended attributes than", MAX_SET_BYTES as u64));
            }
            if let Some(prefix) = PREFIXES.get(usize::from(kind & 0xff)) {
                entries.push((OsString::from_vec([prefix.as_bytes(), &name].concat()), value));
            }
        }
        Ok(entries)
    }

    fn cursor<'a>(&self, metadata: &'a Metadata, reference: u64) -> Result<Cursor<'a>, Error> {
        let offset = self.entries.start.saturating_add(reference >> 16);
        let position = self.entries.position(reference);
        Ok(metadata.cursor(self.entries, position.ok_or(Error::Misplaced { part: Part::XattrTable, offset })?))
    }
}

fn read_name(cursor: &mut Cursor<'_>) -> Result<Vec<u8>, Error> {
    let name_bytes = cursor.u16()?;
    if name_bytes == 0 || name_bytes > MAX_XATTR_NAME_BYTES {
        return Err(cursor.bad_field("xattr name length", name_bytes.into()));
    }
    let name = cursor.vec(name_bytes.into())?;
    if name.contains(&0) { Err(cursor.bad_name(&name)) } else { Ok(name) }
}

fn read_value(cursor: &mut Cursor<'_>) -> Result<Vec<u8>, Error> {
    let value_bytes = cursor.u32()?;
    if value_bytes > MAX_VALUE_BYTES {
        return Err(cursor.bad_field("xattr value length", value_bytes.into()));
    }
    cursor.vec(usize::try_from(value_bytes).expect("it is at most 64 KiB"))
}
