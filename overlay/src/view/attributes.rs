//! Attributes, xattrs, link targets.

use super::copying::{ATTRIBUTES, Need};
use super::state::{Found, State};
use super::{Ino, Layer, SetAttr, SetTime, View};
use crate::copy_up::{escaped, timespec, unescaped};
use crate::error::Error;
use crate::upper::Links;
use rustix::fs::{self, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::{Attr, Kind, NodeId, Statistics};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// What a program's capabilities, and an ACL, are kept in.
const CAPABILITY: &str = "security.capability";
const ACCESS_ACL: &str = "system.posix_acl_access";

/// Where a node's metadata is at present.
enum Place {
    Upper(Arc<OwnedFd>),
    Lower(NodeId),
}

impl View {
    /// The attributes of `ino`, of a removed node too while it is referred to.
    ///
    /// # Errors
    /// `ESTALE` if it is not known, or what the layer or the image says.
    pub fn attr(&self, ino: Ino) -> Result<Attr, Error> {
        let Some(layer) = &self.layer else { return Ok(self.lower.attr(self.lower_of(ino)?)?) };
        let (node, removed) = {
            let state = layer.state.read();
            match state.nodes.get(&ino) {
                Some(node) if node.up => {
                    let stat = state.spot(&layer.upper, ino)?.ok_or(Errno::STALE)?.stat()?;
                    let mut attr = with_upper_links(&state, ino, host::attr_of(&stat));
                    let content = node.lower.filter(|_| node.stub);
                    drop(state);
                    if let Some(content) = content {
                        attr.blocks = self.lower.attr(content)?.blocks;
                    }
                    return Ok(attr);
                }
                Some(node) => (node.lower.ok_or(Errno::STALE)?, node.names.is_empty()),
                None => (self.lower_of(ino)?, false),
            }
        };
        let attr = self.lower.attr(node)?;
        Ok(with_lower_links(&layer.state.read(), ino, attr, removed))
    }

    /// The attributes of a node that the layer has.
    pub(super) fn attr_of(&self, layer: &Layer, state: &State, ino: Ino) -> Result<Attr, Error> {
        let stat = state.spot(&layer.upper, ino)?.ok_or(Errno::STALE)?.stat()?;
        let mut attr = with_upper_links(state, ino, host::attr_of(&stat));
        if let Some((true, Some(lower))) = state.nodes.get(&ino).map(|node| (node.stub, node.lower)) {
            attr.blocks = self.lower.attr(lower)?.blocks;
        }
        Ok(attr)
    }

    pub(super) fn attr_of_found(&self, layer: &Layer, state: &State, ino: Ino, found: &Found) -> Result<Attr, Error> {
        match (&found.upper, &found.lower) {
            (Some(stat), Some((_, lower))) if found.stub => {
                let attr = with_upper_links(state, ino, host::attr_of(stat));
                Ok(Attr { blocks: lower.blocks, ..attr })
            }
            (Some(stat), _) => Ok(with_upper_links(state, ino, host::attr_of(stat))),
            (None, _) if state.nodes.get(&ino).is_some_and(|node| node.up) => self.attr_of(layer, state, ino),
            (None, Some((_, attr))) => Ok(with_lower_links(state, ino, *attr, false)),
            (None, None) => Err(Errno::NOENT.into()),
        }
    }

    fn place(&self, ino: Ino) -> Result<Place, Error> {
        let Some(layer) = &self.layer else { return Ok(Place::Lower(self.lower_of(ino)?)) };
        let state = layer.state.read();
        match state.nodes.get(&ino) {
            None => Ok(Place::Lower(self.lower_of(ino)?)),
            Some(node) => match state.object(&layer.upper, ino)? {
                Some(object) => Ok(Place::Upper(object)),
                None => Ok(Place::Lower(node.lower.ok_or(Errno::STALE)?)),
            },
        }
    }

    /// The layer's node of `ino`, which is copied up if it must be.
    fn writable(&self, ino: Ino, need: Need) -> Result<Arc<OwnedFd>, Error> {
        self.copy_up(ino, need)?;
        let layer = self.layer()?;
        let state = layer.state.read();
        state.object(&layer.upper, ino)?.ok_or_else(|| Errno::STALE.into())
    }

    /// Changes attributes and returns all of them.
    ///
    /// # Errors
    /// `EROFS`, `EISDIR` or `EINVAL` for the size of something that is not a file, or what the layer's filesystem says.
    pub fn set_attr(&self, ino: Ino, change: &SetAttr) -> Result<Attr, Error> {
        self.copy_up(ino, change.size.map_or(ATTRIBUTES, Need::Content))?;
        let layer = self.layer()?;
        // Who copies its content puts the former mode and times back.
        let is_stub = layer.state.read().node(ino)?.stub;
        let _content_waits = is_stub.then(|| layer.one_at_a_time(ino));
        let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
        if let Some(size) = change.size {
            // Giving space back takes time, for which nobody else is to wait.
            let object = layer.state.read().object(&layer.upper, ino)?.ok_or(Errno::STALE)?;
            resize(object.as_fd(), size)?;
        }
        let state = layer.state.read();
        let spot = state.spot(&layer.upper, ino)?.ok_or(Errno::STALE)?;
        // Nothing at all is a change of owners to what they are, which takes setuid bits nevertheless.
        if uid.is_some() || gid.is_some() || *change == SetAttr::default() {
            spot.set_owner(uid, gid)?;
        }
        if let Some(mode) = change.mode {
            if state.node(ino)?.kind == Kind::Symlink {
                return Err(Errno::OPNOTSUPP.into());
            }
            let object = state.object(&layer.upper, ino)?.ok_or(Errno::STALE)?;
            fs::chmod(host::path_of(object.as_fd()), Mode::from_raw_mode((mode & 0o7777).into()))?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            spot.set_times(&Timestamps { last_access: time(change.atime), last_modification: time(change.mtime) })?;
        }
        drop(state);
        self.attr(ino)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` if it is none, or what the layer or the image says.
    pub fn read_link(&self, ino: Ino) -> Result<OsString, Error> {
        match self.place(ino)? {
            Place::Lower(node) => Ok(self.lower.read_link(node)?),
            Place::Upper(object) => match host::kind_of(&host::stat(object.as_fd())?) {
                Kind::Symlink => Ok(host::read_link(object.as_fd())?),
                _ => Err(Errno::INVAL.into()),
            },
        }
    }

    /// The value of one xattr; `None` if it is not set.
    ///
    /// # Errors
    /// What the layer or the image says.
    pub fn xattr(&self, ino: Ino, name: &OsStr) -> Result<Option<Vec<u8>>, Error> {
        if let Some(known) = self.xattr_of_layer(ino, name)? {
            return Ok(known);
        }
        match self.place(ino)? {
            Place::Lower(node) => {
                let found = self.lower.xattrs(node)?.into_iter().find(|(known, _)| known == name);
                Ok(found.map(|(_, value)| value))
            }
            Place::Upper(object) => Ok(host::xattr(object.as_fd(), &escaped(name))?),
        }
    }

    /// As [`View::xattr`], if the layer can tell at once.
    fn xattr_of_layer(&self, ino: Ino, name: &OsStr) -> Result<Option<Option<Vec<u8>>>, Error> {
        let Some(layer) = &self.layer else { return Ok(None) };
        let state = layer.state.read();
        match state.nodes.get(&ino) {
            // The kernel asks before the first write to a file.
            Some(node) if node.is_bare && (name == CAPABILITY || name == ACCESS_ACL) => Ok(Some(None)),
            Some(node) if node.up => {
                let spot = state.spot(&layer.upper, ino)?.ok_or(Errno::STALE)?;
                Ok(Some(spot.xattr(&escaped(name))?))
            }
            _ => Ok(None),
        }
    }

    /// The names of all xattrs.
    ///
    /// # Errors
    /// What the layer or the image says.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<OsString>, Error> {
        match self.place(ino)? {
            Place::Lower(node) => Ok(self.lower.xattrs(node)?.into_iter().map(|(name, _)| name).collect()),
            Place::Upper(object) => {
                let names = host::xattr_names(object.as_fd())?;
                Ok(names.iter().filter_map(|name| unescaped(name)).collect())
            }
        }
    }

    /// Sets an xattr. `flags` are `setxattr(2)`'s `XATTR_CREATE` and `XATTR_REPLACE`.
    ///
    /// # Errors
    /// `EROFS`, `EEXIST`, `ENODATA`, or what the layer's filesystem says.
    pub fn set_xattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Result<(), Error> {
        let flags = u32::try_from(flags).ok().and_then(XattrFlags::from_bits).ok_or(Errno::INVAL)?;
        self.layer()?;
        self.check_may_have(ino, name)?;
        let object = self.writable(ino, ATTRIBUTES)?;
        let mut state = self.layer()?.state.write();
        state.xattrs_change(ino);
        Ok(fs::setxattr(host::path_of(object.as_fd()), escaped(name), value, flags)?)
    }

    /// Only files and directories have `user.` xattrs; nothing else is copied up to be told so.
    fn check_may_have(&self, ino: Ino, name: &OsStr) -> Result<(), Error> {
        let may = !name.as_encoded_bytes().starts_with(b"user.")
            || matches!(self.attr(ino)?.kind, Kind::File | Kind::Directory);
        if may { Ok(()) } else { Err(Errno::PERM.into()) }
    }

    /// Removes an xattr.
    ///
    /// # Errors
    /// `EROFS`, `ENODATA` if it is not set, or what the layer's filesystem says.
    pub fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<(), Error> {
        self.layer()?;
        self.check_may_have(ino, name)?;
        if self.xattr(ino, name)?.is_none() {
            return Err(Errno::NODATA.into());
        }
        let object = self.writable(ino, ATTRIBUTES)?;
        let mut state = self.layer()?.state.write();
        state.xattrs_change(ino);
        Ok(fs::removexattr(host::path_of(object.as_fd()), escaped(name))?)
    }

    /// Of the upper's filesystem if there is one, else of the tree.
    ///
    /// # Errors
    /// As `fstatfs(2)`.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        match &self.layer {
            None => Ok(self.lower.statistics()),
            Some(layer) => {
                let root = host::reopen(layer.upper.root(), OFlags::RDONLY | OFlags::DIRECTORY)?;
                let stat = fs::fstatvfs(root)?;
                Ok(Statistics {
                    bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
                    nodes: stat.f_files,
                    block_size: u32::try_from(stat.f_frsize).unwrap_or(4096),
                    free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
                    free_nodes: stat.f_ffree,
                })
            }
        }
    }
}

fn time(change: Option<SetTime>) -> Timespec {
    match change {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(time)) => timespec(time),
    }
}

fn resize(object: BorrowedFd<'_>, size: u64) -> Result<(), Error> {
    match host::kind_of(&host::stat(object)?) {
        Kind::File => Ok(fs::ftruncate(host::reopen(object, OFlags::WRONLY)?, size)?),
        Kind::Directory => Err(Errno::ISDIR.into()),
        _ => Err(Errno::INVAL.into()),
    }
}

fn with_lower_links(state: &State, ino: Ino, mut attr: Attr, removed: bool) -> Attr {
    attr.nlink = match attr.kind {
        Kind::Directory if removed => 0,
        Kind::Directory => attr.nlink,
        _ => state.names_left(ino, attr.nlink),
    };
    attr
}

fn with_upper_links(state: &State, ino: Ino, mut attr: Attr) -> Attr {
    let Some(node) = state.nodes.get(&ino) else { return attr };
    attr.nlink = match node.kind {
        Kind::Directory if node.names.is_empty() && ino != Ino::ROOT => 0,
        Kind::Directory if node.lower.is_some() => 1,
        // Our own directory in the root is not shown.
        Kind::Directory if ino == Ino::ROOT => attr.nlink.saturating_sub(1),
        Kind::Directory => attr.nlink,
        // The name that it has in `work` is none.
        _ if node.unnamed.is_some() => 0,
        _ if node.held => {
            let left = state.links(ino).map_or(0, Links::left);
            attr.nlink.saturating_sub(1).saturating_add(left)
        }
        _ => attr.nlink,
    };
    attr
}
