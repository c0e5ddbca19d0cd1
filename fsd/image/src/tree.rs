//! The vocabulary of a read-only file tree: what every image format is turned into.
//!
//! Names and link targets are bytes (`OsStr`), as the kernel has them. Nodes are named by [`NodeId`], which a tree
//! hands out and takes back; two names with the same id are hard links of one file.

use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// A node of one tree, stable for the tree's life and for every later opening of the same image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// Seconds and nanoseconds since 1970, possibly before it. `nanos` is below 1,000,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// The rest, always forward in time.
    pub nanos: u32,
}

/// What `stat` says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: the low 12 bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes in a file, length of a link's target, a format's own idea of a directory's size.
    pub size: u64,
    /// Bytes of storage that the content stands for, holes left out, in units of 512 bytes.
    pub blocks: u64,
    /// Hard links.
    pub nlink: u32,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the attributes; the same as `mtime` where a format has none.
    pub ctime: Timestamp,
    /// Last access; the same as `mtime` where a format has none.
    pub atime: Timestamp,
    /// Device number of a device node in the kernel's 32-bit encoding (`new_encode_dev`: minor's low byte, then 12 bits
    /// of major, then the rest of minor), else 0.
    pub rdev: u32,
}

/// One name in a directory. `.` and `..` are never among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name: not empty, without `/` and NUL, not `.` or `..`.
    pub name: OsString,
    /// The node it names.
    pub node: NodeId,
    /// What the node is.
    pub kind: Kind,
}

/// An extended attribute: full name with its name space (`user.x`, `security.capability`) and value.
pub type Xattr = (OsString, Vec<u8>);

/// A read-only file tree. All methods may be called by many threads at once.
pub trait Tree: Send + Sync + std::fmt::Debug {
    /// The root directory.
    fn root(&self) -> NodeId;

    /// The attributes of `node`.
    ///
    /// # Errors
    /// [`Error::NoSuchNode`] if the tree never handed out `node`; [`Error::Damaged`] or [`Error::Io`] from below.
    fn attr(&self, node: NodeId) -> Result<Attr, Error>;

    /// The node that `name` stands for in the directory `dir`; `None` if there is no such name.
    ///
    /// # Errors
    /// [`Error::NotADirectory`], or as [`Tree::attr`].
    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, Error>;

    /// All entries of the directory `dir`, in an order that is the same each time.
    ///
    /// # Errors
    /// [`Error::NotADirectory`], or as [`Tree::attr`].
    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, Error>;

    /// The target of the symbolic link `node`.
    ///
    /// # Errors
    /// [`Error::NotASymlink`], or as [`Tree::attr`].
    fn read_link(&self, node: NodeId) -> Result<OsString, Error>;

    /// Reads file content from `offset` bytes into `buf` and returns how many bytes were read: as many as `buf` holds,
    /// fewer only at the end of the file, 0 after it.
    ///
    /// # Errors
    /// [`Error::NotAFile`], or as [`Tree::attr`].
    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Error>;

    /// The file `node` open for reading where it is a file of the host as it is, so that the host can copy it; else `None`.
    ///
    /// # Errors
    /// As [`Tree::read`].
    fn host_file(&self, _node: NodeId) -> Result<Option<OwnedFd>, Error> {
        Ok(None)
    }

    /// Up to `count` files that the image stores after `node`, nearest first, with their lengths, which are from 1 to
    /// `max_bytes`: what who reads one small file after the other will read next. None where there is no such order.
    fn files_after(&self, _node: NodeId, _count: usize, _max_bytes: u64) -> Vec<(NodeId, u64)> {
        Vec::new()
    }

    /// Reads and decodes what holds these ranges of bytes of files, in the order of the storage, and keeps it for who
    /// reads them next, as far as there is room. What cannot be read will show to them.
    fn prepare(&self, _ranges: &[(NodeId, Range<u64>)]) {}

    /// The bytes of the file `node` around `offset` that lie decoded in memory, so that reading them costs little. `None` if
    /// there are none, or the tree keeps nothing.
    fn decoded_around(&self, _node: NodeId, _offset: u64) -> Option<Range<u64>> {
        None
    }

    /// Says that these ranges of bytes of files will be read soon, each from front to back, so that storage may read what holds
    /// them in long pieces, and storage far away fetch it meanwhile.
    fn fetch_ahead(&self, _ranges: &[(NodeId, Range<u64>)]) {}

    /// The tree that the content of `node` is passed through from, unchanged, and the node's id in that: of a file its bytes,
    /// of a directory all that is below it. An image is its own origin. `None` where the content is nobody else's, or where
    /// that is not known.
    fn origin(&self, _node: NodeId) -> Option<(&dyn Tree, NodeId)> {
        None
    }

    /// All extended attributes of `node`.
    ///
    /// # Errors
    /// As [`Tree::attr`].
    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error>;

    /// What `statfs` says of the whole tree.
    fn statistics(&self) -> Statistics;

    /// What decoding and its caches did since the tree was opened; all zero for a format that decodes nothing.
    fn activity(&self) -> Activity {
        Activity::default()
    }
}

/// How a tree's blocks were come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Activity {
    /// Blocks decoded: of content, of file ends and of metadata.
    pub decoded_blocks: u64,
    /// Bytes that they decoded to.
    pub decoded_bytes: u64,
    /// Blocks that were in the cache when they were wanted.
    pub cache_hits: u64,
    /// Blocks that were not, and that the one who wanted them decoded.
    pub cache_misses: u64,
    /// Blocks that another thread was just decoding, so that it was waited for.
    pub cache_waits: u64,
}

/// Sizes of a whole tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Bytes that the image takes.
    pub bytes: u64,
    /// Nodes in it.
    pub nodes: u64,
    /// Its block size in bytes.
    pub block_size: u32,
    /// Bytes that can still be written; 0 for an image.
    pub free_bytes: u64,
    /// Nodes that can still be made; 0 for an image.
    pub free_nodes: u64,
}

/// A tree of nothing but a root directory: what lies below a directory that is its own image.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmptyTree;

impl EmptyTree {
    fn expect_root(node: NodeId) -> Result<(), Error> {
        if node == EmptyTree.root() { Ok(()) } else { Err(Error::NoSuchNode(node)) }
    }
}

impl Tree for EmptyTree {
    fn root(&self) -> NodeId {
        NodeId(0)
    }

    fn attr(&self, node: NodeId) -> Result<Attr, Error> {
        Self::expect_root(node)?;
        let time = Timestamp::default();
        Ok(Attr {
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            nlink: 2,
            mtime: time,
            ctime: time,
            atime: time,
            rdev: 0,
        })
    }

    fn lookup(&self, dir: NodeId, _name: &OsStr) -> Result<Option<NodeId>, Error> {
        Self::expect_root(dir).map(|()| None)
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, Error> {
        Self::expect_root(dir).map(|()| Vec::new())
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, Error> {
        Self::expect_root(node).and(Err(Error::NotASymlink))
    }

    fn read(&self, node: NodeId, _offset: u64, _buf: &mut [u8]) -> Result<usize, Error> {
        Self::expect_root(node).and(Err(Error::NotAFile))
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        Self::expect_root(node).map(|()| Vec::new())
    }

    fn statistics(&self) -> Statistics {
        Statistics { nodes: 1, block_size: 4096, ..Statistics::default() }
    }
}

/// Why a tree could not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The id is not one of this tree's.
    #[error("there is no node {0:?}")]
    NoSuchNode(NodeId),
    /// A directory operation on something else.
    #[error("not a directory")]
    NotADirectory,
    /// `read_link` on something else.
    #[error("not a symbolic link")]
    NotASymlink,
    /// `read` on something else.
    #[error("not a regular file")]
    NotAFile,
    /// The image contradicts its own format. The source says where and how.
    #[error("the image is damaged")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The storage below failed.
    #[error("cannot read the image")]
    Io(#[from] io::Error),
}
