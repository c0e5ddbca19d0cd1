//! Where the layer has a node. What a name is enough for needs no descriptor of the node itself, which takes two more
//! system calls.

use super::state::{Found, Node, State, key_of};
use super::{Ino, UPPER_BIT, lower_node};
use crate::error::Error;
use crate::upper::Upper;
use rustix::fs::{self, AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::Kind;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// A name of a node or a descriptor of it. It is good while the state is locked: then nobody moves the name.
#[derive(Debug)]
pub(super) enum Spot {
    /// A name in a directory of the layer.
    Named(Arc<OwnedFd>, OsString),
    /// The node itself.
    Held(Arc<OwnedFd>),
}

impl State {
    /// Where the layer has `ino`; `None` if it has not.
    pub(super) fn spot(&self, upper: &Upper, ino: Ino) -> Result<Option<Spot>, Error> {
        let node = self.node(ino)?;
        if !node.up {
            return Ok(None);
        }
        if ino == Ino::ROOT {
            return Ok(Some(Spot::Held(self.directory(upper, ino)?)));
        }
        if let Some(name) = node.names.iter().find(|name| name.up) {
            return Ok(Some(match node.kind {
                Kind::Directory => Spot::Held(self.directory(upper, ino)?),
                _ => Spot::Named(self.directory(upper, name.parent)?, name.name.clone()),
            }));
        }
        match &node.orphan {
            Some(orphan) => Ok(Some(Spot::Held(orphan.clone()))),
            None => Ok(Some(Spot::Held(Arc::new(upper.held(lower_node(ino))?)))),
        }
    }

    /// The layer's node of `ino`; `None` if the layer has none.
    pub(super) fn object(&self, upper: &Upper, ino: Ino) -> Result<Option<Arc<OwnedFd>>, Error> {
        self.spot(upper, ino)?.map(Spot::object).transpose()
    }

    /// What a node of the layer is, if it is known to have no mark: it was looked at before, and is no copy.
    pub(super) fn plain(&self, stat: &Stat) -> Option<Found> {
        let key = key_of(stat);
        let kind = host::kind_of(stat);
        match self.nodes.get(&Ino(UPPER_BIT.saturating_add(key.1))) {
            Some(node) if node.is_own(key, kind) => {
                Some(Found { kind, upper: Some(*stat), lower: None, origin: None, stub: false })
            }
            _ => None,
        }
    }
}

impl Spot {
    pub(super) fn stat(&self) -> io::Result<Stat> {
        match self {
            Self::Named(directory, name) => Ok(fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?),
            Self::Held(object) => host::stat(object.as_fd()),
        }
    }

    /// A descriptor that pins the node.
    pub(super) fn object(self) -> Result<Arc<OwnedFd>, Error> {
        match self {
            Self::Named(directory, name) => Ok(Arc::new(host::open_object(directory.as_fd(), &name)?)),
            Self::Held(object) => Ok(object),
        }
    }

    /// What keeps `node`, which is here, once it has no name in the layer. A file that is open is opened for that: filesystems in
    /// user space that go by names, such as bindfs and sshfs, keep a removed file for none but who has it open.
    pub(super) fn pinned(self, node: &Node) -> Result<Arc<OwnedFd>, Error> {
        if node.kind == Kind::File && node.is_open() {
            // It may be one that this process may not read.
            if let Ok(opened) = self.open(OFlags::RDONLY) {
                return Ok(Arc::new(opened));
            }
        }
        self.object()
    }

    /// Opens a regular file.
    pub(super) fn open(&self, flags: OFlags) -> io::Result<OwnedFd> {
        match self {
            Self::Named(directory, name) => {
                let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
                Ok(fs::openat(directory, name, flags, Mode::empty())?)
            }
            Self::Held(object) => host::reopen(object.as_fd(), flags),
        }
    }

    pub(super) fn xattr(&self, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Named(directory, own) => host::xattr_at(directory.as_fd(), own, name),
            Self::Held(object) => host::xattr(object.as_fd(), name),
        }
    }

    /// Changes the owner, of a symbolic link itself too.
    pub(super) fn set_owner(&self, uid: Option<fs::Uid>, gid: Option<fs::Gid>) -> Result<(), Errno> {
        match self {
            Self::Named(directory, name) => fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
            Self::Held(object) => fs::chownat(object, "", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    /// Sets the times, of a symbolic link itself too.
    pub(super) fn set_times(&self, times: &fs::Timestamps) -> Result<(), Errno> {
        match self {
            Self::Named(directory, name) => fs::utimensat(directory, name, times, AtFlags::SYMLINK_NOFOLLOW),
            Self::Held(object) => fs::utimensat(fs::CWD, host::path_of(object.as_fd()), times, AtFlags::empty()),
        }
    }
}
