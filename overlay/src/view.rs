//! The merged view: what the image and its layer look like together.

use crate::error::Error;
use crate::upper::Upper;
use siphon_image::tree::{Attr, Entry, Kind, Statistics, Timestamp, Tree};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

/// Inode number within one view. The root is [`Ino::ROOT`]. A node keeps its number when it is copied up or renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory, as FUSE numbers it.
    pub const ROOT: Self = Self(1);
}

/// Who a new node belongs to. `None` leaves it to the process that serves the view (rootless: there is only one owner).
pub type Owner = Option<(u32, u32)>;

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The upper filesystem's own present.
    Now,
    /// This time.
    At(Timestamp),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Low 12 bits of `st_mode`.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes: truncates or extends with a hole.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenMode {
    /// For writing (implies copy-up).
    pub write: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// Cut to nothing; a lower file is then not copied first.
    pub truncate: bool,
}

/// How `rename` treats an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RenameMode {
    /// Replace it.
    #[default]
    Replace,
    /// Fail with `EEXIST`.
    NoReplace,
    /// Swap the two.
    Exchange,
}

/// An open file. Reads after another handle's write see it, also when that write copied the file up.
#[derive(Debug)]
pub struct OpenFile {}

/// A read-only tree with an optional layer on top, as one filesystem. All methods may be called by many threads.
#[derive(Debug)]
pub struct View {}

#[allow(missing_docs, unused_variables, clippy::missing_errors_doc)]
impl View {
    /// Merges `lower` with `upper`. Without an upper every change fails with `EROFS`.
    pub fn new(lower: Arc<dyn Tree>, upper: Option<Upper>) -> Result<Self, Error> {
        unimplemented!()
    }
    /// Looks `name` up and counts one reference on the result, which [`View::forget`] gives back.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<(Ino, Attr), Error> {
        unimplemented!()
    }
    pub fn forget(&self, ino: Ino, count: u64) {
        unimplemented!()
    }
    pub fn attr(&self, ino: Ino) -> Result<Attr, Error> {
        unimplemented!()
    }
    pub fn set_attr(&self, ino: Ino, change: &SetAttr) -> Result<Attr, Error> {
        unimplemented!()
    }
    pub fn read_link(&self, ino: Ino) -> Result<OsString, Error> {
        unimplemented!()
    }
    /// All entries, whiteouts applied. `Entry::node` holds the `Ino` (as `NodeId`) that `lookup` would give; no
    /// references are counted.
    pub fn entries(&self, ino: Ino) -> Result<Vec<Entry>, Error> {
        unimplemented!()
    }
    pub fn open(&self, ino: Ino, mode: OpenMode) -> Result<OpenFile, Error> {
        unimplemented!()
    }
    pub fn read(&self, file: &OpenFile, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        unimplemented!()
    }
    pub fn write(&self, file: &OpenFile, offset: u64, data: &[u8]) -> Result<usize, Error> {
        unimplemented!()
    }
    pub fn sync(&self, file: &OpenFile, data_only: bool) -> Result<(), Error> {
        unimplemented!()
    }
    pub fn sync_directory(&self, ino: Ino) -> Result<(), Error> {
        unimplemented!()
    }
    /// `fallocate(2)` with its mode bits.
    pub fn allocate(&self, file: &OpenFile, mode: i32, offset: u64, length: u64) -> Result<(), Error> {
        unimplemented!()
    }
    /// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`.
    pub fn seek(&self, file: &OpenFile, offset: u64, whence: i32) -> Result<u64, Error> {
        unimplemented!()
    }
    /// Creates a regular file and opens it for reading and writing. Counts one reference, as do all makers below.
    pub fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u16,
        owner: Owner,
        open: OpenMode,
    ) -> Result<(Ino, Attr, OpenFile), Error> {
        unimplemented!()
    }
    pub fn make_node(
        &self,
        parent: Ino,
        name: &OsStr,
        kind: Kind,
        mode: u16,
        rdev: u32,
        owner: Owner,
    ) -> Result<(Ino, Attr), Error> {
        unimplemented!()
    }
    pub fn make_directory(&self, parent: Ino, name: &OsStr, mode: u16, owner: Owner) -> Result<(Ino, Attr), Error> {
        unimplemented!()
    }
    pub fn make_symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, owner: Owner) -> Result<(Ino, Attr), Error> {
        unimplemented!()
    }
    pub fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<(Ino, Attr), Error> {
        unimplemented!()
    }
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<(), Error> {
        unimplemented!()
    }
    pub fn remove_directory(&self, parent: Ino, name: &OsStr) -> Result<(), Error> {
        unimplemented!()
    }
    pub fn rename(&self, from: Ino, name: &OsStr, to: Ino, new_name: &OsStr, mode: RenameMode) -> Result<(), Error> {
        unimplemented!()
    }
    pub fn xattr(&self, ino: Ino, name: &OsStr) -> Result<Option<Vec<u8>>, Error> {
        unimplemented!()
    }
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<OsString>, Error> {
        unimplemented!()
    }
    /// `flags` are `setxattr(2)`'s `XATTR_CREATE` and `XATTR_REPLACE`.
    pub fn set_xattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Result<(), Error> {
        unimplemented!()
    }
    pub fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<(), Error> {
        unimplemented!()
    }
    /// Of the upper's filesystem if there is one, else of the tree.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        unimplemented!()
    }
}
