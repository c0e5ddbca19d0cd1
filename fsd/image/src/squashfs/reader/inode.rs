//! Inodes: fourteen types on disk, seven kinds of node.

use crate::squashfs::format::{NONE_U32, inode_type};
use crate::squashfs::reader::blocks::BlockList;
use crate::squashfs::reader::error::Error;
use crate::squashfs::reader::metadata::{Cursor, Position};
use crate::tree::Kind;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// Longest target of a symbolic link; Linux refuses links of more than a page.
const MAX_TARGET_BYTES: u32 = 4096;

/// A longer list of blocks is not read only to find what comes after it: that of a file of 2 GiB, mostly.
const MAX_PASSED_BYTES: u64 = 64 << 10;

/// Bytes that an inode takes in memory, without target and block list.
pub(super) const INODE_BYTES: u64 = 256;

/// One decoded inode. Owner and group are still indexes of the id table.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) mode: u16,
    pub(super) uid_index: u16,
    pub(super) gid_index: u16,
    pub(super) mtime: u32,
    pub(super) nlink: u32,
    /// Index into the xattr sets; `None` if the node has no xattrs.
    pub(super) xattrs: Option<u32>,
    pub(super) body: Body,
}

/// What is special to a kind of node.
#[derive(Debug)]
pub(super) enum Body {
    Directory(Directory),
    File(File),
    Symlink(OsString),
    BlockDevice(u32),
    CharDevice(u32),
    Fifo,
    Socket,
}

/// Where a directory's listing is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Directory {
    /// `start_block` and `offset`, as a reference into the directory table.
    pub(super) listing: u64,
    /// `file_size`: bytes of the listing and 3 more.
    pub(super) size: u32,
    /// Entries of the index, and the place of the first one in the inode table.
    pub(super) index: Option<(u16, Position)>,
}

/// Where a file's content is.
#[derive(Debug)]
pub(super) struct File {
    pub(super) size: u64,
    /// Bytes in holes.
    pub(super) sparse: u64,
    /// Number of the fragment block and offset of the file's end in it.
    pub(super) fragment: Option<(u32, u32)>,
    pub(super) blocks: BlockList,
}

/// Decodes the inode at `cursor`, of an image with blocks of `1 << block_log` bytes.
pub(super) fn decode(cursor: &mut Cursor<'_>, block_log: u16) -> Result<Inode, Error> {
    let kind = cursor.u16()?;
    let mode = cursor.u16()?;
    let uid_index = cursor.u16()?;
    let gid_index = cursor.u16()?;
    let mtime = cursor.u32()?;
    let _inode_number = cursor.u32()?;
    let mut common = Inode { mode, uid_index, gid_index, mtime, nlink: 1, xattrs: None, body: Body::Fifo };
    let extended =
        (inode_type::DIRECTORY + inode_type::EXTENDED..=inode_type::SOCKET + inode_type::EXTENDED).contains(&kind);
    match if extended { kind - inode_type::EXTENDED } else { kind } {
        inode_type::DIRECTORY if extended => extended_directory(cursor, &mut common)?,
        inode_type::DIRECTORY => basic_directory(cursor, &mut common)?,
        inode_type::FILE if extended => extended_file(cursor, &mut common, block_log)?,
        inode_type::FILE => basic_file(cursor, &mut common, block_log)?,
        inode_type::SYMLINK => symlink(cursor, &mut common)?,
        inode_type::BLOCK_DEVICE => {
            common.nlink = cursor.u32()?;
            common.body = Body::BlockDevice(cursor.u32()?);
        }
        inode_type::CHAR_DEVICE => {
            common.nlink = cursor.u32()?;
            common.body = Body::CharDevice(cursor.u32()?);
        }
        inode_type::FIFO => common.nlink = cursor.u32()?,
        inode_type::SOCKET => {
            common.nlink = cursor.u32()?;
            common.body = Body::Socket;
        }
        _ => return Err(cursor.bad_field("inode type", kind.into())),
    }
    // Files and directories have it elsewhere; in every other extended inode it comes last.
    if extended && !matches!(common.body, Body::File(_) | Body::Directory(_)) {
        common.xattrs = optional(cursor.u32()?);
    }
    Ok(common)
}

fn optional(index: u32) -> Option<u32> {
    (index != NONE_U32).then_some(index)
}

fn basic_directory(cursor: &mut Cursor<'_>, inode: &mut Inode) -> Result<(), Error> {
    let start_block = cursor.u32()?;
    inode.nlink = cursor.u32()?;
    let size = u32::from(cursor.u16()?);
    let offset = cursor.u16()?;
    let _parent = cursor.u32()?;
    let listing = u64::from(start_block) << 16 | u64::from(offset);
    inode.body = Body::Directory(Directory { listing, size, index: None });
    Ok(())
}

fn extended_directory(cursor: &mut Cursor<'_>, inode: &mut Inode) -> Result<(), Error> {
    inode.nlink = cursor.u32()?;
    let size = cursor.u32()?;
    let start_block = cursor.u32()?;
    let _parent = cursor.u32()?;
    let index_count = cursor.u16()?;
    let offset = cursor.u16()?;
    inode.xattrs = optional(cursor.u32()?);
    let listing = u64::from(start_block) << 16 | u64::from(offset);
    let index = (index_count > 0).then(|| (index_count, cursor.position()));
    inode.body = Body::Directory(Directory { listing, size, index });
    Ok(())
}

fn basic_file(cursor: &mut Cursor<'_>, inode: &mut Inode, block_log: u16) -> Result<(), Error> {
    let start = u64::from(cursor.u32()?);
    let fragment = cursor.u32()?;
    let fragment_offset = cursor.u32()?;
    let size = u64::from(cursor.u32()?);
    let fragment = optional(fragment).map(|index| (index, fragment_offset));
    let blocks = BlockList::new(cursor.position(), start, block_count(size, fragment.is_some(), block_log));
    inode.body = Body::File(File { size, sparse: 0, fragment, blocks });
    Ok(())
}

fn extended_file(cursor: &mut Cursor<'_>, inode: &mut Inode, block_log: u16) -> Result<(), Error> {
    let start = cursor.u64()?;
    let size = cursor.u64()?;
    let sparse = cursor.u64()?;
    inode.nlink = cursor.u32()?;
    let fragment = cursor.u32()?;
    let fragment_offset = cursor.u32()?;
    inode.xattrs = optional(cursor.u32()?);
    // The kernel has file sizes as signed numbers.
    if i64::try_from(size).is_err() {
        return Err(cursor.bad_field("file size", size));
    }
    let fragment = optional(fragment).map(|index| (index, fragment_offset));
    let blocks = BlockList::new(cursor.position(), start, block_count(size, fragment.is_some(), block_log));
    inode.body = Body::File(File { size, sparse, fragment, blocks });
    Ok(())
}

fn symlink(cursor: &mut Cursor<'_>, inode: &mut Inode) -> Result<(), Error> {
    inode.nlink = cursor.u32()?;
    let target_bytes = cursor.u32()?;
    if target_bytes == 0 || target_bytes > MAX_TARGET_BYTES {
        return Err(cursor.bad_field("link target length", target_bytes.into()));
    }
    let target = cursor.vec(usize::try_from(target_bytes).expect("it is at most 4096"))?;
    if target.contains(&0) {
        return Err(cursor.bad_name(&target));
    }
    inode.body = Body::Symlink(OsString::from_vec(target));
    Ok(())
}

/// Moves `cursor`, which just decoded `inode`, to the one after it in the table. `false` if that takes too long to find.
pub(super) fn pass(cursor: &mut Cursor<'_>, inode: &Inode) -> Result<bool, Error> {
    match &inode.body {
        Body::File(file) if file.blocks.list_bytes() > MAX_PASSED_BYTES => return Ok(false),
        Body::File(file) => cursor.skip(file.blocks.list_bytes())?,
        Body::Directory(Directory { index: Some(_), .. }) => return Ok(false),
        _ => {}
    }
    Ok(true)
}

/// How many blocks a file has: the end of it is in a fragment or else in a last, short block.
fn block_count(size: u64, has_fragment: bool, block_log: u16) -> u64 {
    let whole = size >> block_log;
    let has_rest = size & ((1 << block_log) - 1) != 0;
    whole + u64::from(has_rest && !has_fragment)
}

impl Inode {
    pub(super) fn kind(&self) -> Kind {
        match self.body {
            Body::Directory(_) => Kind::Directory,
            Body::File(_) => Kind::File,
            Body::Symlink(_) => Kind::Symlink,
            Body::BlockDevice(_) => Kind::BlockDevice,
            Body::CharDevice(_) => Kind::CharDevice,
            Body::Fifo => Kind::Fifo,
            Body::Socket => Kind::Socket,
        }
    }

    /// What it takes in memory, at most.
    pub(super) fn weight_bytes(&self) -> u64 {
        INODE_BYTES
            + match &self.body {
                Body::Symlink(target) => target.len() as u64,
                Body::File(file) => file.blocks.weight_bytes(),
                _ => 0,
            }
    }
}
