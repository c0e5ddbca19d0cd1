//! The merged view: what the image and its layer look like together.
//!
//! Without a layer, an inode number is a node of the image plus a constant, and nothing is locked or remembered. With
//! one, each node that was looked up is remembered with its names, since a node that is copied up needs a path:
//!
//! ```text
//! lookup          parent: upper directory? lower directory?  ->  what lies at the name in each  ->  node
//! read            node copied up?  no: lower, without a lock   yes: upper file
//! change          copy up parents, make the node in work, rename it into place   (state locked for writing)
//! ```
//!
//! One lock guards the state. Changes of names hold it for writing, with their few system calls; content is copied up
//! before it is taken, and the image is never read under it for a lookup, a listing or a read.
//!
//! A hard link of the image stays one node: once one of its names is copied up, all of them show the copy, and a link in
//! `.siphon/links` keeps it while names in the image still stand for it. The kernel's overlayfs finds the copy only
//! under the names that were written out. The link count of a directory that is merged is 1, which tells programs not
//! to count on it.
//!
//! What changes only attributes or names of a file makes a stub of it (see [`crate::upper`]): the content is copied when
//! it is first written to.

mod attributes;
mod changes;
mod copying;
mod differences;
mod files;
mod links;
mod lookup;
mod making;
mod merged;
mod rename;
mod spot;
mod state;
mod unnamed;

use crate::error::Error;
use crate::upper::Upper;
use parking_lot::{Mutex, RwLock};
use siphon_image::tree::{NodeId, Timestamp, Tree};
use state::State;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

/// Inode number within one view. The root is [`Ino::ROOT`]. A node keeps its number when it is copied up or renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory, as FUSE numbers it.
    pub const ROOT: Self = Self(1);
}

/// Who a new node belongs to. `None` leaves it to the process that serves the view (rootless: there is only one owner).
pub type Owner = Option<(u32, u32)>;

/// The permissions of a new node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    /// Low 12 bits of `st_mode`, as asked for.
    pub mode: u16,
    /// What is taken from them, unless the directory has a default ACL.
    pub umask: u16,
}

impl Permissions {
    /// These, where no ACL says otherwise.
    pub fn exactly(mode: u16) -> Self {
        Self { mode, umask: 0 }
    }
}

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

impl OpenMode {
    /// `O_APPEND`, if that is how.
    fn append_flag(self) -> rustix::fs::OFlags {
        if self.append { rustix::fs::OFlags::APPEND } else { rustix::fs::OFlags::empty() }
    }
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
pub struct OpenFile {
    ino: Ino,
    writable: bool,
    /// Content in the image, for as long as `copied` does not say otherwise.
    lower: Option<NodeId>,
    copied: Option<Arc<AtomicBool>>,
    upper: OnceLock<std::fs::File>,
    /// The same file for writes of a mapping, if `upper` appends.
    in_place: OnceLock<std::fs::File>,
}

/// A read-only tree with an optional layer on top, as one filesystem. All methods may be called by many threads.
#[derive(Debug)]
pub struct View {
    lower: Arc<dyn Tree>,
    layer: Option<Layer>,
}

#[derive(Debug)]
struct Layer {
    upper: Upper,
    state: RwLock<State>,
    /// The ids that new nodes get from this process.
    own_ids: (u32, u32),
    /// By inode number: one thread at a time copies the content of one file up.
    copying: [Mutex<()>; COPYING],
}

/// Enough that two files copied up at once seldom wait for each other.
const COPYING: usize = 64;
/// Set in the numbers of nodes that only the layer has.
pub(crate) const UPPER_BIT: u64 = 1 << 62;
/// Added to a node of the image. Numbers below it are the root's and reserved ones of FUSE.
const LOWER_BASE: u64 = 16;
/// Node ids of images are below this.
const LOWER_END: u64 = 1 << 60;
/// Added to what [`UPPER_BIT`] leaves of the id of a node that a view below this one has in its layer.
const NESTED_BASE: u64 = 1 << 61;

impl View {
    /// Merges `lower` with `upper`. Without an upper every change fails with `EROFS`.
    ///
    /// # Errors
    /// If the root of the layer cannot be read.
    pub fn new(lower: Arc<dyn Tree>, upper: Option<Upper>) -> Result<Self, Error> {
        let layer = match upper {
            None => None,
            Some(upper) => {
                let state = State::new(&upper, lower.root())?;
                let own_ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                let copying = [const { Mutex::new(()) }; COPYING];
                Some(Layer { upper, state: RwLock::new(state), own_ids, copying })
            }
        };
        Ok(Self { lower, layer })
    }

    /// Whether nothing is remembered of nodes that were looked up or opened: any number is good at any time, and
    /// opening a file or looking a node up again costs nothing.
    pub fn is_stateless(&self) -> bool {
        self.layer.is_none()
    }

    fn ino_of(&self, node: NodeId) -> Ino {
        if node == self.lower.root() { Ino::ROOT } else { number_of(node) }
    }

    /// The node of the tree below that `ino` stands for, unless the layer has something to say of it.
    ///
    /// # Errors
    /// `ESTALE` for a number that no node of the tree below has.
    pub fn lower_of(&self, ino: Ino) -> Result<NodeId, Error> {
        match ino.0 {
            1 => Ok(self.lower.root()),
            LOWER_BASE.. if ino.0 < LOWER_END + LOWER_BASE => Ok(lower_node(ino)),
            NESTED_BASE..UPPER_BIT => Ok(lower_node(ino)),
            _ => Err(rustix::io::Errno::STALE.into()),
        }
    }

    /// Gives all files of the layer that have only their attributes there the content that the image has, and those that
    /// have only some of their names there all, so that the kernel's overlayfs can serve the layer. Returns how many got
    /// content. Nobody may change anything meanwhile.
    ///
    /// # Errors
    /// `EROFS` without a layer that can be written, or what the layer or the image says.
    pub fn complete(&self) -> Result<u64, Error> {
        let layer = self.layer()?;
        let mut completed = if layer.upper.may_have_stubs() { self.complete_held(layer)? } else { 0 };
        if layer.upper.holds_links() {
            self.write_out_links(layer)?;
        }
        if !layer.upper.may_have_stubs() {
            return Ok(completed);
        }
        let mut pending = vec![Ino::ROOT];
        while let Some(directory) = pending.pop() {
            for entry in self.entries(directory)? {
                let (ino, attr) = match self.lookup(directory, &entry.name) {
                    Err(error) if error.errno() == rustix::io::Errno::NOENT.raw_os_error() => continue,
                    other => other?,
                };
                let is_stub = layer.state.read().node(ino)?.stub;
                if is_stub {
                    self.copy_up(ino, copying::WHOLE)?;
                    completed += 1;
                }
                if attr.kind == siphon_image::tree::Kind::Directory && layer.state.read().node(ino)?.up {
                    pending.push(ino);
                } else {
                    self.forget(ino, 1);
                }
            }
            if directory != Ino::ROOT {
                self.forget(directory, 1);
            }
        }
        layer.upper.forget_stubs()?;
        Ok(completed)
    }

    /// Whether the layer may hold files that only [`View::complete`] makes readable for the kernel's overlayfs.
    pub fn may_be_incomplete(&self) -> bool {
        self.layer.as_ref().is_some_and(|layer| layer.upper.may_have_stubs())
    }

    /// Notes that `path`, absolute in the view, was made for something to be mounted on it.
    ///
    /// # Errors
    /// `EROFS` without a layer that can be written, or as `write(2)`.
    pub fn note_place(&self, path: &Path) -> Result<(), Error> {
        self.layer()?.upper.note_place(path)
    }

    /// Whether POSIX ACLs can be kept: an image alone has none that count.
    pub fn has_acls(&self) -> bool {
        self.layer.as_ref().is_some_and(|layer| layer.upper.has_acls())
    }

    fn layer(&self) -> Result<&Layer, Error> {
        self.layer.as_ref().ok_or_else(|| rustix::io::Errno::ROFS.into())
    }
}

/// The number of a node of the image that is not its root.
fn number_of(node: NodeId) -> Ino {
    match node.0 {
        UPPER_BIT.. => Ino(node.0 - UPPER_BIT + NESTED_BASE),
        id => Ino(id.saturating_add(LOWER_BASE)),
    }
}

/// The node of the image whose number `ino` is, where it is known to be one's.
fn lower_node(ino: Ino) -> NodeId {
    match ino.0 {
        NESTED_BASE..UPPER_BIT => NodeId(ino.0 - NESTED_BASE + UPPER_BIT),
        number => NodeId(number.saturating_sub(LOWER_BASE)),
    }
}

#[cfg(test)]
mod tests;
