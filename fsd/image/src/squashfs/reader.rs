//! A squashfs image as a [`Tree`], read lazily by any number of threads.
//!
//! A node's id is the metadata reference of its inode, which directory entries hold, so that no table leads from id to
//! inode. Decoded inodes, metadata blocks, data blocks and fragments are kept in bounded caches; nothing else is held
//! beside the id table and the indexes of the fragment and xattr tables.
//!
//! ```text
//! reader -> directory, xattr -> tables -> metadata -> codec, cache, storage -> ReadAt
//!        -> inode, blocks    -'
//! ```

mod blocks;
mod codec;
mod directory;
mod error;
mod frames;
mod inode;
mod layout;
mod metadata;
mod storage;
mod tables;
mod xattr;

pub use self::error::{Error, Part};
pub use self::layout::Layout;

use self::blocks::Blocks;
use self::codec::{Codec, Decoder};
use self::inode::{Body, Inode};
use self::metadata::{Metadata, Position, Region};
use self::storage::Storage;
use self::tables::IndexedTable;
use self::xattr::Xattrs;
use crate::cache::Cache;
use crate::read_at::ReadAt;
use crate::squashfs::format::Superblock;
use crate::tree::{self, Activity, Attr, Entry, Kind, NodeId, Statistics, Timestamp, Tree, Xattr};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// Permissions with setuid, setgid and sticky.
const MODE_BITS: u16 = 0o7777;

/// How many inodes are looked at for each file that is looked for: there are others between them.
const MAX_INODES_PER_FILE: usize = 4;

/// What can be chosen for a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes of decoded content to keep at most: five eighths for file content, a quarter for metadata, and an eighth
    /// for the block lists of files that are read. What is in use at the moment comes on top.
    pub cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20 }
    }
}

/// An open squashfs 4.0 image.
#[derive(Debug)]
pub struct Squashfs {
    storage: Arc<Storage>,
    superblock: Superblock,
    inodes: Region,
    directories: Region,
    ids: Box<[u32]>,
    decoder: Arc<Decoder>,
    metadata: Metadata,
    /// Those of files that are read: what their block lists remember is worth keeping.
    files: Cache<NodeId, Inode, Error>,
    blocks: Blocks,
    xattrs: Option<Xattrs>,
}

impl Squashfs {
    /// Opens the image that begins at the first of `bytes` with a cache of 64 MiB.
    ///
    /// # Errors
    /// What is wrong with the superblock, the compressor or one of the tables that are read now.
    pub fn open(bytes: Arc<dyn ReadAt>) -> Result<Self, Error> {
        Self::open_with(bytes, Options::default())
    }

    /// Opens the image that begins at the first of `bytes`.
    ///
    /// # Errors
    /// As [`Squashfs::open`].
    pub fn open_with(bytes: Arc<dyn ReadAt>, options: Options) -> Result<Self, Error> {
        let storage = Arc::new(Storage::new(bytes));
        let superblock = tables::superblock(&storage)?;
        let codec = Codec::from_id(superblock.compressor_id)?;
        // The tables lie behind all content, and whoever opens an image looks at most of them.
        storage.bytes().will_read(superblock.inode_table_start..superblock.bytes_used);
        tables::check_compressor_options(&storage, &superblock, codec)?;
        let decoder = Arc::new(Decoder::new(codec));
        let eighth = options.cache_bytes / 8;
        let metadata = Metadata::new(storage.clone(), decoder.clone(), 2 * eighth);
        let ids = tables::ids(&storage, &metadata, &superblock)?;
        let xattrs = Xattrs::load(&storage, &superblock)?;
        let fragments = IndexedTable::fragments(&storage, &superblock)?;
        let Superblock { inode_table_start, directory_table_start, bytes_used, .. } = superblock;
        let squashfs = Self {
            storage: storage.clone(),
            superblock,
            inodes: Region { part: Part::InodeTable, start: inode_table_start, end: directory_table_start },
            directories: Region { part: Part::DirectoryTable, start: directory_table_start, end: bytes_used },
            ids,
            metadata,
            files: Cache::new(eighth, inode::INODE_BYTES),
            blocks: Blocks::new(storage, decoder.clone(), superblock.block_log, fragments, 5 * eighth),
            decoder,
            xattrs,
        };
        squashfs.check_root()?;
        Ok(squashfs)
    }

    /// What the image says of itself.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    fn check_root(&self) -> Result<(), Error> {
        let (part, offset) = (Part::Superblock, 0);
        let not_a_directory = Error::BadField { part, offset, field: "root inode", value: self.superblock.root_inode };
        match self.position(self.root()).map(|position| self.decode(position)).transpose()? {
            Some(root) if root.kind() == Kind::Directory => Ok(()),
            _ => Err(not_a_directory),
        }
    }

    /// Where the inode of `node` is; `None` if it cannot be in this image.
    fn position(&self, node: NodeId) -> Option<Position> {
        self.inodes.position(node.0)
    }

    fn decode(&self, position: Position) -> Result<Inode, Error> {
        inode::decode(&mut self.metadata.cursor(self.inodes, position), self.superblock.block_log)
    }

    fn inode(&self, node: NodeId) -> Result<Inode, tree::Error> {
        Ok(self.decode(self.position(node).ok_or(tree::Error::NoSuchNode(node))?)?)
    }

    /// The blocks of these parts of files that are not decoded. What cannot be found out shows to whoever reads it.
    fn missing(&self, ranges: &[(NodeId, Range<u64>)]) -> Vec<blocks::Missing> {
        let mut missing = Vec::new();
        for (node, range) in ranges {
            let Ok(inode) = self.file(*node) else { continue };
            if let Body::File(file) = &inode.body {
                let range = range.start..range.end.min(file.size);
                missing.extend(self.blocks.missing(&self.metadata, self.inodes, file, range).unwrap_or_default());
            }
        }
        missing
    }

    /// The inode of a file that is read.
    fn file(&self, node: NodeId) -> Result<Arc<Inode>, tree::Error> {
        let position = self.position(node).ok_or(tree::Error::NoSuchNode(node))?;
        let decode = || {
            let inode = self.decode(position)?;
            let weight_bytes = inode.weight_bytes();
            Ok((inode, weight_bytes))
        };
        Ok(self.files.get_or_make(node, decode)?)
    }

    fn directory(&self, dir: NodeId) -> Result<(directory::Tables<'_>, inode::Directory), tree::Error> {
        let Body::Directory(directory) = self.inode(dir)?.body else { return Err(tree::Error::NotADirectory) };
        let tables = directory::Tables { metadata: &self.metadata, inodes: self.inodes, directories: self.directories };
        Ok((tables, directory))
    }

    fn id(&self, index: u16) -> Result<u32, Error> {
        let (index, count) = (usize::from(index), self.ids.len() as u64);
        let missing = Error::NoSuchEntry { part: Part::IdTable, index: index as u64, count };
        self.ids.get(index).copied().ok_or(missing)
    }

    /// The set that `inode` names. An image without xattr table has none, whatever its inodes say, as in Linux.
    fn xattr_set(&self, inode: &Inode) -> Result<Option<xattr::Set>, Error> {
        match (&self.xattrs, inode.xattrs) {
            (Some(xattrs), Some(index)) => xattrs.set(&self.metadata, index).map(Some),
            _ => Ok(None),
        }
    }
}

impl Tree for Squashfs {
    fn root(&self) -> NodeId {
        NodeId(self.superblock.root_inode)
    }

    fn attr(&self, node: NodeId) -> Result<Attr, tree::Error> {
        let inode = self.inode(node)?;
        let xattrs = self.xattr_set(&inode)?;
        Ok(Attr { uid: self.id(inode.uid_index)?, gid: self.id(inode.gid_index)?, ..attr(&inode, xattrs) })
    }

    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, tree::Error> {
        let (tables, directory) = self.directory(dir)?;
        Ok(directory::lookup(tables, directory, name.as_bytes())?)
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, tree::Error> {
        let (tables, directory) = self.directory(dir)?;
        Ok(directory::entries(tables, directory)?)
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, tree::Error> {
        match self.inode(node)?.body {
            Body::Symlink(target) => Ok(target),
            _ => Err(tree::Error::NotASymlink),
        }
    }

    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, tree::Error> {
        let inode = self.file(node)?;
        let Body::File(file) = &inode.body else { return Err(tree::Error::NotAFile) };
        let left = usize::try_from(file.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = left.min(buf.len());
        self.blocks.read(&self.metadata, self.inodes, file, offset, &mut buf[..count])?;
        Ok(count)
    }

    /// In the order of the inode table, which is that of the walk that packed the image.
    fn files_after(&self, node: NodeId, count: usize, max_bytes: u64) -> Vec<(NodeId, u64)> {
        let mut files = Vec::new();
        let Some(position) = self.position(node) else { return files };
        let mut cursor = self.metadata.cursor(self.inodes, position);
        // Damage ends the search; it will show to whoever opens what is damaged.
        let Ok(mut inode) = inode::decode(&mut cursor, self.superblock.block_log) else { return files };
        for _ in 0..count.saturating_mul(MAX_INODES_PER_FILE) {
            let (Ok(true), Ok(position)) = (inode::pass(&mut cursor, &inode), cursor.next_position()) else { break };
            let Ok(next) = inode::decode(&mut cursor, self.superblock.block_log) else { break };
            inode = next;
            if let Body::File(file) = &inode.body
                && (1..=max_bytes).contains(&file.size)
            {
                files.push((NodeId(self.inodes.reference(position)), file.size));
                if files.len() == count {
                    break;
                }
            }
        }
        files
    }

    fn prepare(&self, ranges: &[(NodeId, Range<u64>)]) {
        self.blocks.prepare(self.missing(ranges));
    }

    fn decoded_around(&self, node: NodeId, offset: u64) -> Option<Range<u64>> {
        match &self.file(node).ok()?.body {
            // Damage shows to whoever reads.
            Body::File(file) => self.blocks.decoded_around(&self.metadata, self.inodes, file, offset).ok()?,
            _ => None,
        }
    }

    fn fetch_ahead(&self, ranges: &[(NodeId, Range<u64>)]) {
        let extents = blocks::extents(self.missing(ranges));
        // What is fetched is handed out as it comes, and not once a long span is there.
        if !self.storage.bytes().may_read(&extents) {
            self.storage.will_read(&extents);
        }
    }

    fn origin(&self, node: NodeId) -> Option<(&dyn Tree, NodeId)> {
        Some((self, node))
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, tree::Error> {
        match (&self.xattrs, self.xattr_set(&self.inode(node)?)?) {
            (Some(xattrs), Some(set)) => Ok(xattrs.entries(&self.metadata, set)?),
            _ => Ok(Vec::new()),
        }
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            bytes: self.superblock.bytes_used,
            nodes: self.superblock.inode_count.into(),
            block_size: self.superblock.block_size,
            ..Statistics::default()
        }
    }

    fn activity(&self) -> Activity {
        let (content, tables) = (self.blocks.lookups(), self.metadata.lookups());
        Activity {
            decoded_blocks: self.decoder.blocks(),
            decoded_bytes: self.decoder.bytes(),
            cache_hits: content.hits + tables.hits,
            cache_misses: content.misses + tables.misses,
            cache_waits: content.waits + tables.waits,
        }
    }
}

/// The attributes that Linux shows, too, but for the owners.
fn attr(inode: &Inode, xattrs: Option<xattr::Set>) -> Attr {
    let (size, content_blocks) = match &inode.body {
        Body::Directory(directory) => (directory.size.into(), 0),
        Body::File(file) => (file.size, file.size.saturating_sub(file.sparse).div_ceil(512)),
        Body::Symlink(target) => (target.len() as u64, 0),
        Body::BlockDevice(_) | Body::CharDevice(_) | Body::Fifo | Body::Socket => (0, 0),
    };
    let rdev = match inode.body {
        Body::BlockDevice(rdev) | Body::CharDevice(rdev) => rdev,
        _ => 0,
    };
    let time = Timestamp { seconds: inode.mtime.into(), nanos: 0 };
    Attr {
        kind: inode.kind(),
        mode: inode.mode & MODE_BITS,
        uid: 0,
        gid: 0,
        size,
        // Linux counts the xattrs among a node's blocks.
        blocks: content_blocks + xattrs.map_or(0, |set| u64::from(set.size_bytes).div_ceil(512)),
        nlink: inode.nlink,
        mtime: time,
        ctime: time,
        atime: time,
        rdev,
    }
}
