//! Ext2, ext3 and ext4 file systems as read-only trees: images of singularity 2, and files that others bind.
//!
//! ```text
//! 1024   superblock: length, size of blocks and inodes, what a reader has to understand
//! ....   group descriptors, one for each group of inodes: where its table is
//! ....   inodes, counted from 1; 2 is the root
//! ```
//!
//! Read as it lies there: a file system whose journal has changes that are not in it yet is refused. Nothing is cached,
//! for the kernel keeps what it was told of names and files, and the bytes below. Writing is for the kernel and `fuse2fs`.

mod inode;
mod xattr;

use crate::read_at::ReadAt;
use crate::tree::{self, Attr, Entry, Kind, NodeId, Statistics, Tree, Xattr};
use inode::{BLOCK_BYTES, FIRST_INODE_BYTES, Inode};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

/// Bytes from the start of a file system that [`size_bytes`] looks at.
pub const HEAD_BYTES: usize = SUPERBLOCK + 60;
/// Where the superblock lies.
const SUPERBLOCK: usize = 1024;
/// `s_magic`, 56 bytes into it.
const MAGIC: [u8; 2] = [0x53, 0xef];
/// `s_log_block_size` that the kernel takes at most: blocks of 64 KiB.
const MAX_LOG_BLOCK_SIZE: u32 = 6;

/// Whether these first bytes are those of an ext file system.
pub fn is_ext(head: &[u8]) -> bool {
    head.get(SUPERBLOCK + 56..).is_some_and(|rest| rest.starts_with(&MAGIC))
}

/// How long the file system with these first bytes says that it is; `None` if it is none, or has blocks that no program
/// takes. Ext3 counts its blocks in 32 bits.
pub fn size_bytes(head: &[u8]) -> Option<u64> {
    let field = |offset: usize| {
        let bytes = head.get(SUPERBLOCK + offset..SUPERBLOCK + offset + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let (blocks, log_block_size) = (field(4)?, field(24)?);
    (is_ext(head) && log_block_size <= MAX_LOG_BLOCK_SIZE).then(|| u64::from(blocks) << (10 + log_block_size))
}

/// Bytes of the superblock that are looked at.
const SUPERBLOCK_BYTES: usize = 1024;
/// The number of the root's inode.
const ROOT: u32 = 2;
/// `INCOMPAT_RECOVER`: the journal holds changes.
const RECOVER: u32 = 0x4;
/// `INCOMPAT_64BIT`: numbers of blocks have more than 32 bits.
const WIDE: u32 = 0x80;
/// `INCOMPAT_FILETYPE`: names come with what they name.
const FILETYPE: u32 = 0x2;
/// What is understood besides: extents, flexible groups, seeds of checksums, large directories.
const UNDERSTOOD: u32 = FILETYPE | RECOVER | WIDE | 0x40 | 0x200 | 0x2000 | 0x4000;
/// Longest inode, and longest group descriptor, that is taken.
const MAX_RECORD_BYTES: u16 = 4096;
/// Longest directory that is read: millions of names.
const MAX_DIRECTORY_BYTES: u64 = 256 << 20;
/// Longest target of a link (`PATH_MAX`).
const MAX_LINK_BYTES: u64 = 4096;

/// What is wrong with an ext file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It ends early.
    #[error("it is cut off: it takes {size} bytes, and has {room}")]
    Truncated {
        /// What its superblock says.
        size: u64,
        /// What there is.
        room: u64,
    },
    /// The journal was not written back.
    #[error("it was not unmounted cleanly, and its journal holds changes; run \"e2fsck -p\" on it first")]
    NotClean,
    /// A reader would have to understand something that this one does not.
    #[error("it has features that are not understood: {0:#x}")]
    Features(u32),
    /// The superblock.
    #[error("its superblock says {value} as {field}")]
    Superblock {
        /// The field.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// An inode.
    #[error("inode {number} has {what} {value:#x}")]
    Inode {
        /// Which.
        number: u32,
        /// What of it is wrong.
        what: &'static str,
        /// What it is.
        value: u64,
    },
    /// A directory.
    #[error("a block of the directory with inode {number} has a name of {len} bytes that does not fit")]
    Name {
        /// Its inode.
        number: u32,
        /// How long the entry says that it is.
        len: usize,
    },
    /// The storage below failed.
    #[error("cannot read it")]
    Io(#[from] std::io::Error),
}

impl From<Error> for tree::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(error) => Self::Io(error),
            other => Self::Damaged(Box::new(other)),
        }
    }
}

/// Where what lies.
#[derive(Debug, Clone, Copy)]
struct Layout {
    block_bytes: u32,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_bytes: u16,
    /// Where the group descriptors begin.
    groups_start: u64,
    group_bytes: u16,
    has_kinds: bool,
}

impl Layout {
    fn parse(head: &[u8], room: u64) -> Result<Self, Error> {
        let bad = |field, value: u64| Error::Superblock { field, value };
        let log = le32(head, 24);
        if log > MAX_LOG_BLOCK_SIZE {
            return Err(bad("block size", log.into()));
        }
        let block_bytes = 1024_u32 << log;
        let features = le32(head, 96);
        if features & !UNDERSTOOD != 0 {
            return Err(Error::Features(features & !UNDERSTOOD));
        }
        if features & RECOVER != 0 {
            return Err(Error::NotClean);
        }
        let is_wide = features & WIDE != 0;
        let blocks = u64::from(le32(head, 4)) | if is_wide { u64::from(le32(head, 0x150)) << 32 } else { 0 };
        let size = blocks.checked_mul(block_bytes.into()).ok_or(bad("number of blocks", blocks))?;
        if size > room {
            return Err(Error::Truncated { size, room });
        }
        let inode_bytes = if le32(head, 76) == 0 { 128 } else { le16(head, 88) };
        let group_bytes = if is_wide { le16(head, 254) } else { 32 };
        let (inodes, inodes_per_group) = (le32(head, 0), le32(head, 40));
        let first_block = u64::from(le32(head, 20));
        if !(FIRST_INODE_BYTES..=usize::from(MAX_RECORD_BYTES)).contains(&usize::from(inode_bytes)) {
            return Err(bad("inode size", inode_bytes.into()));
        }
        if !(32..=MAX_RECORD_BYTES).contains(&group_bytes) || (is_wide && group_bytes < 64) {
            return Err(bad("size of group descriptors", group_bytes.into()));
        }
        if inodes_per_group == 0 || inodes < ROOT {
            return Err(bad("inodes per group", inodes_per_group.into()));
        }
        let groups_start = (first_block + 1) * u64::from(block_bytes);
        Ok(Self {
            block_bytes,
            blocks,
            inodes,
            inodes_per_group,
            inode_bytes,
            groups_start,
            group_bytes,
            has_kinds: features & FILETYPE != 0,
        })
    }

    fn block(&self, bytes: &dyn ReadAt, number: u64) -> Result<Vec<u8>, Error> {
        let mut block = vec![0; self.block_bytes as usize];
        // What is beyond the end fails by itself.
        bytes.read_exact_at(&mut block, number.saturating_mul(self.block_bytes.into()))?;
        Ok(block)
    }

    fn inode(&self, bytes: &dyn ReadAt, number: u32) -> Result<Option<Inode>, Error> {
        let Some(index) = number.checked_sub(1).filter(|index| *index < self.inodes) else { return Ok(None) };
        let (group, index) = (index / self.inodes_per_group, index % self.inodes_per_group);
        let mut descriptor = vec![0; self.group_bytes.into()];
        bytes.read_exact_at(&mut descriptor, self.groups_start + u64::from(group) * u64::from(self.group_bytes))?;
        let high = if self.group_bytes >= 64 { u64::from(le32(&descriptor, 0x28)) << 32 } else { 0 };
        let table = u64::from(le32(&descriptor, 8)) | high;
        let start = table.saturating_mul(self.block_bytes.into());
        let mut raw = vec![0; self.inode_bytes.into()];
        bytes.read_exact_at(&mut raw, start.saturating_add(u64::from(index) * u64::from(self.inode_bytes)))?;
        Inode::parse(number, &raw, self).map(Some)
    }
}

/// An open file system.
#[derive(Debug)]
pub struct Ext {
    bytes: Arc<dyn ReadAt>,
    layout: Layout,
    /// A name at the root that is not shown.
    hidden: Option<OsString>,
}

impl Ext {
    /// Opens the file system that begins at the first of `bytes`.
    ///
    /// # Errors
    /// What is wrong with its superblock or its root.
    pub fn open(bytes: Arc<dyn ReadAt>) -> Result<Self, Error> {
        let mut head = vec![0; SUPERBLOCK_BYTES];
        bytes.read_exact_at(&mut head, SUPERBLOCK as u64)?;
        let ext = Self { layout: Layout::parse(&head, bytes.len())?, bytes, hidden: None };
        match ext.layout.inode(ext.bytes.as_ref(), ROOT)? {
            Some(root) if root.kind == Kind::Directory => Ok(ext),
            _ => Err(Error::Superblock { field: "root inode", value: ROOT.into() }),
        }
    }

    /// The same without the name `hidden` at its root.
    #[must_use]
    pub fn without(self, hidden: &OsStr) -> Self {
        Self { hidden: Some(hidden.to_owned()), ..self }
    }

    fn hides(&self, dir: u32, name: &[u8]) -> bool {
        dir == ROOT && self.hidden.as_ref().is_some_and(|hidden| hidden.as_bytes() == name)
    }

    fn inode(&self, node: NodeId) -> Result<Inode, tree::Error> {
        let missing = tree::Error::NoSuchNode(node);
        match u32::try_from(node.0) {
            Ok(number) => self.layout.inode(self.bytes.as_ref(), number)?.ok_or(missing),
            Err(_) => Err(missing),
        }
    }

    /// Fills `buf` from `offset` bytes into the content of `inode`, all of which is within it.
    fn fill(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let block_bytes = u64::from(self.layout.block_bytes);
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let run = inode.run(self.bytes.as_ref(), &self.layout, at / block_bytes)?;
            let skipped = at % block_bytes;
            let run_bytes = run.count.saturating_mul(block_bytes) - skipped;
            let count = usize::try_from(run_bytes).unwrap_or(usize::MAX).min(buf.len() - done);
            let part = &mut buf[done..done + count];
            match run.start {
                Some(start) => self.bytes.read_exact_at(part, start * block_bytes + skipped)?,
                None => part.fill(0),
            }
            done += count;
        }
        Ok(())
    }

    /// Calls `found` with each name of the directory until it returns something.
    fn scan<T>(
        &self,
        dir: NodeId,
        mut found: impl FnMut(&[u8], u32, u8) -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, tree::Error> {
        let inode = self.inode(dir)?;
        let number = inode.number;
        if inode.kind != Kind::Directory {
            return Err(tree::Error::NotADirectory);
        }
        if inode.size > MAX_DIRECTORY_BYTES {
            return Err(Error::Inode { number, what: "size", value: inode.size }.into());
        }
        let block_bytes = self.layout.block_bytes as usize;
        let mut block = vec![0; block_bytes];
        for index in 0..inode.size / block_bytes as u64 {
            self.fill(&inode, index * block_bytes as u64, &mut block)?;
            let mut at = 0;
            while let Some(head) = block.get(at..at + 8) {
                // A length of 64 KiB does not fit into its field.
                let len = match le16(head, 4) {
                    0 | u16::MAX if block_bytes == 1 << 16 => block_bytes,
                    len => usize::from(len),
                };
                let name_bytes = if self.layout.has_kinds { usize::from(head[6]) } else { usize::from(le16(head, 6)) };
                let wrong = Error::Name { number, len };
                if len < 8 || len > block_bytes - at || name_bytes + 8 > len {
                    return Err(wrong.into());
                }
                let (named, name) = (le32(head, 0), &block[at + 8..at + 8 + name_bytes]);
                at += len;
                if named == 0 || name == b"." || name == b".." || self.hides(number, name) {
                    continue;
                }
                if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
                    return Err(wrong.into());
                }
                if let Some(found) = found(name, named, if self.layout.has_kinds { head[7] } else { 0 })? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// What a name names, by the number beside it where there is one.
    fn kind(&self, number: u32, kind: u8) -> Result<Kind, Error> {
        Ok(match kind {
            1 => Kind::File,
            2 => Kind::Directory,
            3 => Kind::CharDevice,
            4 => Kind::BlockDevice,
            5 => Kind::Fifo,
            6 => Kind::Socket,
            7 => Kind::Symlink,
            _ => {
                let inode = self.layout.inode(self.bytes.as_ref(), number)?;
                inode.ok_or(Error::Inode { number, what: "number", value: number.into() })?.kind
            }
        })
    }
}

impl Tree for Ext {
    fn root(&self) -> NodeId {
        NodeId(ROOT.into())
    }

    fn attr(&self, node: NodeId) -> Result<Attr, tree::Error> {
        let inode = self.inode(node)?;
        let rdev = match (inode.kind, le32(&inode.block, 0)) {
            (Kind::BlockDevice | Kind::CharDevice, 0) => le32(&inode.block, 4),
            (Kind::BlockDevice | Kind::CharDevice, old) => old & 0xffff,
            _ => 0,
        };
        Ok(Attr {
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            blocks: inode.sectors,
            nlink: inode.nlink,
            mtime: inode.mtime,
            ctime: inode.ctime,
            atime: inode.atime,
            rdev,
        })
    }

    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, tree::Error> {
        let found = |found: &[u8], number, _| Ok((found == name.as_bytes()).then_some(NodeId(u64::from(number))));
        self.scan(dir, found)
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, tree::Error> {
        let mut entries = Vec::new();
        self.scan(dir, |name, number, kind| {
            let name = OsString::from_vec(name.to_vec());
            entries.push(Entry { name, node: NodeId(number.into()), kind: self.kind(number, kind)? });
            Ok(None::<()>)
        })?;
        Ok(entries)
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, tree::Error> {
        let inode = self.inode(node)?;
        if inode.kind != Kind::Symlink {
            return Err(tree::Error::NotASymlink);
        }
        if inode.size > MAX_LINK_BYTES {
            return Err(Error::Inode { number: inode.number, what: "size", value: inode.size }.into());
        }
        let mut target = vec![0; usize::try_from(inode.size).expect("at most 4096")];
        if inode.is_short_link(&self.layout) {
            let len = target.len().min(BLOCK_BYTES);
            target[..len].copy_from_slice(&inode.block[..len]);
        } else {
            self.fill(&inode, 0, &mut target)?;
        }
        Ok(OsString::from_vec(target))
    }

    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, tree::Error> {
        let inode = self.inode(node)?;
        if inode.kind != Kind::File {
            return Err(tree::Error::NotAFile);
        }
        let left = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = left.min(buf.len());
        self.fill(&inode, offset, &mut buf[..count])?;
        Ok(count)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, tree::Error> {
        let inode = self.inode(node)?;
        let mut found = xattr::of_inode(&inode.rest);
        if inode.attributes != 0 {
            found.extend(xattr::of_block(&self.layout.block(self.bytes.as_ref(), inode.attributes)?));
        }
        Ok(found)
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            bytes: self.layout.blocks.saturating_mul(self.layout.block_bytes.into()),
            nodes: self.layout.inodes.into(),
            block_size: self.layout.block_bytes,
            ..Statistics::default()
        }
    }
}

fn le16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn le32(bytes: &[u8], offset: usize) -> u32 {
    u32::from(le16(bytes, offset)) | u32::from(le16(bytes, offset + 2)) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(blocks: u32, log_block_size: u32) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[1028..1032].copy_from_slice(&blocks.to_le_bytes());
        head[1048..1052].copy_from_slice(&log_block_size.to_le_bytes());
        head[1080..1082].copy_from_slice(&MAGIC);
        head
    }

    #[test]
    fn the_length_is_that_of_all_blocks() {
        assert_eq!(size_bytes(&head(65536, 0)), Some(64 << 20));
        assert_eq!(size_bytes(&head(u32::MAX, 6)), Some(u64::from(u32::MAX) << 16));
    }

    #[test]
    fn what_is_no_ext_file_system_has_no_length() {
        assert_eq!(size_bytes(&head(1, 7)), None);
        assert_eq!(size_bytes(&head(1, 0)[..HEAD_BYTES - 10]), None);
        assert_eq!(size_bytes(&[0; HEAD_BYTES]), None);
        assert_eq!(size_bytes(&[]), None);
    }
}
