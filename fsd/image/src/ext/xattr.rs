//! Extended attributes, in an inode or in a block of their own.

use super::{le16, le32};
use crate::tree::Xattr;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// `h_magic` before the attributes.
const MAGIC: u32 = 0xea02_0000;
/// Bytes before the first attribute of a block.
const BLOCK_HEAD_BYTES: usize = 32;
/// Bytes of an attribute before its name.
const ENTRY_BYTES: usize = 16;

/// Those of a block.
pub(super) fn of_block(block: &[u8]) -> Vec<Xattr> {
    if block.len() < BLOCK_HEAD_BYTES || le32(block, 0) != MAGIC {
        Vec::new()
    } else {
        read(block, BLOCK_HEAD_BYTES, 0)
    }
}

/// Those of the rest of an inode.
pub(super) fn of_inode(rest: &[u8]) -> Vec<Xattr> {
    if rest.len() < 4 || le32(rest, 0) != MAGIC { Vec::new() } else { read(rest, 4, 4) }
}

/// From `start` on; values are counted from `base` on. Damage ends them, and what would need another file is left out, as are
/// access lists, which are stored in another form than they are read in.
fn read(bytes: &[u8], start: usize, base: usize) -> Vec<Xattr> {
    let mut found = Vec::new();
    let mut at = start;
    while let Some(entry) = bytes.get(at..at + ENTRY_BYTES).filter(|entry| le32(entry, 0) != 0) {
        let name_bytes = usize::from(entry[0]);
        let Some(name) = bytes.get(at + ENTRY_BYTES..at + ENTRY_BYTES + name_bytes) else { break };
        let value_start = base + usize::from(le16(entry, 2));
        let value_bytes = usize::try_from(le32(entry, 8)).unwrap_or(usize::MAX);
        let value = value_start.checked_add(value_bytes).and_then(|end| bytes.get(value_start..end));
        let prefix = match entry[1] {
            1 => Some("user."),
            4 => Some("trusted."),
            6 => Some("security."),
            _ => None,
        };
        if let (Some(prefix), Some(value), 0) = (prefix, value, le32(entry, 4))
            && !name.is_empty()
            && !name.contains(&0)
        {
            found.push((OsString::from_vec([prefix.as_bytes(), name].concat()), value.to_vec()));
        }
        at += (ENTRY_BYTES + name_bytes).next_multiple_of(4);
    }
    found
}
