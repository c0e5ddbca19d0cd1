//! Directory listings: runs of entries whose inodes lie in one metadata block, and an index for long ones.

use super::Error;
use super::metadata::{MetadataStream, Place};
use crate::squashfs::format::METADATA_BLOCK_BYTES;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Entries of one run at most.
const MAX_RUN: usize = 256;
/// Bytes of a run's header: count u32, inode block u32, inode number u32.
const HEADER_BYTES: usize = 12;
/// Bytes of an entry before its name: inode offset u16, number difference i16, type u16, name length u16.
const ENTRY_BYTES: usize = 8;

/// One name and what it stands for.
pub(super) struct Child<'a> {
    pub(super) name: &'a OsString,
    /// Where the inode lies in the inode table.
    pub(super) inode: Place,
    pub(super) number: u32,
    /// Basic inode type.
    pub(super) basic_type: u16,
}

/// A listing that has been written.
pub(super) struct Listing {
    pub(super) place: Place,
    pub(super) size_bytes: u32,
    /// Encoded index entries.
    pub(super) index: Vec<u8>,
    pub(super) index_entries: u16,
}

/// Appends the listing of `children`, which are in the order of their names' bytes, to the directory table.
pub(super) fn write(table: &mut MetadataStream, mut children: &[Child<'_>]) -> Result<Listing, Error> {
    let mut listing = Listing { place: table.place(), size_bytes: 0, index: Vec::new(), index_entries: 0 };
    let mut indexed_to = 0;
    let mut size = 0;
    while let Some(first) = children.first() {
        let place = table.place();
        // The kernel searches a long listing from the last index entry whose name is not after the one it looks for.
        if size - indexed_to >= METADATA_BLOCK_BYTES && listing.index_entries < u16::MAX {
            listing.add_index(size, place, first)?;
            indexed_to = size;
        }
        let (run, rest) = children.split_at(run_length(children, usize::from(place.offset)));
        let encoded = encode_run(first, run)?;
        table.write(&encoded)?;
        size += encoded.len();
        children = rest;
    }
    listing.size_bytes = u32::try_from(size).map_err(|_| too_long())?;
    Ok(listing)
}

impl Listing {
    fn add_index(&mut self, listing_offset: usize, place: Place, first: &Child<'_>) -> Result<(), Error> {
        let offset = u32::try_from(listing_offset).map_err(|_| too_long())?;
        self.index.extend(offset.to_le_bytes());
        self.index.extend(table_offset(place)?.to_le_bytes());
        self.index.extend(u32::from(name_size(first)).to_le_bytes());
        self.index.extend(first.name.as_bytes());
        self.index_entries += 1;
        Ok(())
    }
}

/// How many of the children go under one header that lies `offset` bytes into a metadata block. A run ends where its next
/// entry would begin in another metadata block, so that an index entry can point near any name.
fn run_length(children: &[Child<'_>], offset: usize) -> usize {
    let first = &children[0];
    let mut start = offset + HEADER_BYTES;
    let mut length = 0;
    for child in children.iter().take(MAX_RUN) {
        let difference = i64::from(child.number) - i64::from(first.number);
        let same_block = child.inode.block == first.inode.block && start < METADATA_BLOCK_BYTES;
        if length > 0 && !(same_block && i16::try_from(difference).is_ok()) {
            break;
        }
        start += ENTRY_BYTES + child.name.len();
        length += 1;
    }
    length
}

fn encode_run(first: &Child<'_>, run: &[Child<'_>]) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + run.len() * (ENTRY_BYTES + 16));
    let count = u32::try_from(run.len() - 1).expect("a run has 1 to 256 entries");
    bytes.extend(count.to_le_bytes());
    bytes.extend(table_offset(first.inode)?.to_le_bytes());
    bytes.extend(first.number.to_le_bytes());
    for child in run {
        let difference = i64::from(child.number) - i64::from(first.number);
        let difference = i16::try_from(difference).expect("run_length ends a run before a difference too large");
        bytes.extend(child.inode.offset.to_le_bytes());
        bytes.extend(difference.to_le_bytes());
        bytes.extend(child.basic_type.to_le_bytes());
        bytes.extend(name_size(child).to_le_bytes());
        bytes.extend(child.name.as_bytes());
    }
    Ok(bytes)
}

/// The length of a name, less 1 as the format has it.
fn name_size(child: &Child<'_>) -> u16 {
    u16::try_from(child.name.len() - 1).expect("names are 1 to 256 bytes, or the scan fails")
}

/// Where a place's block begins, as the 32 bits that listings and directories have for it.
pub(super) fn table_offset(place: Place) -> Result<u32, Error> {
    u32::try_from(place.block)
        .map_err(|_| Error::TooMany { what: "bytes of compressed inodes or names", limit: u64::from(u32::MAX) })
}

fn too_long() -> Error {
    Error::TooMany { what: "bytes of names in one directory", limit: u64::from(u32::MAX) }
}
