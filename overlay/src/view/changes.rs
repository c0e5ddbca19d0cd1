//! Makes and removes names.

use super::copying::{ATTRIBUTES, stage_link};
use super::lookup::{Both, MAX_NAME_BYTES};
use super::state::{DEFAULT_ACL, Found, State, key_of};
use super::unnamed::Unnamed;
use super::{Ino, Layer, OpenFile, OpenMode, Owner, Permissions, View, making};
use crate::copy_up;
use crate::error::Error;
use crate::upper::PRIVATE_NAME;
use rustix::fs::{self, AtFlags, Gid, Mode, Uid, XattrFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::{Attr, Kind};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

/// The setgid bit of a mode.
const SET_GID: u16 = 0o2000;

/// What to make.
pub(super) struct New<'a> {
    pub(super) kind: Kind,
    pub(super) permissions: Permissions,
    pub(super) rdev: u32,
    pub(super) target: &'a OsStr,
    pub(super) owner: Owner,
}

impl View {
    /// Creates a regular file and opens it. Counts one reference, as do all makers below.
    ///
    /// # Errors
    /// `EEXIST`, `EROFS`, `EPERM` for a reserved name, or what the layer's filesystem says.
    pub fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        permissions: Permissions,
        owner: Owner,
        open: OpenMode,
    ) -> Result<(Ino, Attr, OpenFile), Error> {
        let new = New { kind: Kind::File, permissions, rdev: 0, target: OsStr::new(""), owner };
        let (ino, attr, opened) = self.make_or_open(parent, name, &new, Some(open))?;
        Ok((ino, attr, opened.expect("a file that is to be opened is")))
    }

    /// Makes a file, device, named pipe or socket.
    ///
    /// # Errors
    /// As [`View::create`]; `EPERM` for the character device 0:0, which would be a whiteout.
    pub fn make_node(
        &self,
        parent: Ino,
        name: &OsStr,
        kind: Kind,
        permissions: Permissions,
        rdev: u32,
        owner: Owner,
    ) -> Result<(Ino, Attr), Error> {
        if matches!(kind, Kind::Directory | Kind::Symlink) {
            return Err(Errno::INVAL.into());
        }
        self.make(parent, name, &New { kind, permissions, rdev, target: OsStr::new(""), owner })
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`View::create`].
    pub fn make_directory(
        &self,
        parent: Ino,
        name: &OsStr,
        permissions: Permissions,
        owner: Owner,
    ) -> Result<(Ino, Attr), Error> {
        self.make(parent, name, &New { kind: Kind::Directory, permissions, rdev: 0, target: OsStr::new(""), owner })
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As [`View::create`].
    pub fn make_symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, owner: Owner) -> Result<(Ino, Attr), Error> {
        let permissions = Permissions::exactly(0o777);
        self.make(parent, name, &New { kind: Kind::Symlink, permissions, rdev: 0, target, owner })
    }

    fn make(&self, parent: Ino, name: &OsStr, new: &New<'_>) -> Result<(Ino, Attr), Error> {
        let (ino, attr, _) = self.make_or_open(parent, name, new, None)?;
        Ok((ino, attr))
    }

    /// Makes a node, and opens a file if that comes with it.
    fn make_or_open(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &New<'_>,
        open: Option<OpenMode>,
    ) -> Result<(Ino, Attr, Option<OpenFile>), Error> {
        let layer = self.layer()?;
        self.read_ahead_of_lock(layer, parent, name)?;
        let mut state = layer.state.write();
        if let Some(made) = self.make_at_once(layer, &mut state, (parent, name), new, open)? {
            return Ok(made);
        }
        let both = self.vacant(layer, &mut state, parent, name)?;
        let directory = self.upper_directory(layer, &state, parent)?;
        let staged = layer.upper.temporary();
        let done = stage_new(layer, directory.as_fd(), new, &staged, open).and_then(|file| {
            self.hide_lower(layer, &both, name, new.kind, &staged)?;
            layer.upper.install(&staged, directory.as_fd(), name)?;
            Ok(file)
        });
        if done.is_err() {
            // The first failure is the one to report.
            let _ = layer.upper.discard(&staged);
        }
        let file = done?;
        let (ino, attr) = self.enter_made(layer, &mut state, parent, name)?;
        let node = state.node_mut(ino)?;
        Ok((ino, attr, file.zip(open).map(|(file, open)| OpenFile::made(ino, node, file, open))))
    }

    /// Has the image's tables in memory that the change of a name is about to need, so that an image that answers late
    /// holds up nobody else.
    pub(super) fn read_ahead_of_lock(&self, layer: &Layer, parent: Ino, name: &OsStr) -> Result<(), Error> {
        let lower = match layer.state.read().nodes.get(&parent) {
            Some(node) if node.kind == Kind::Directory => node.lower,
            _ => None,
        };
        if let Some(directory) = lower
            && name.len() <= MAX_NAME_BYTES
            && let Some(node) = self.lower.lookup(directory, name)?
        {
            self.lower.attr(node)?;
        }
        Ok(())
    }

    /// Makes a new directory opaque where the image has one of that name.
    fn hide_lower(&self, layer: &Layer, both: &Both, name: &OsStr, kind: Kind, staged: &OsStr) -> Result<(), Error> {
        if kind != Kind::Directory || self.find_lower(both, name)?.is_none() {
            return Ok(());
        }
        let directory = host::open_directory(layer.upper.work()?, staged)?;
        Ok(layer.upper.make_opaque(directory.as_fd())?)
    }

    /// Makes sure that `name` can be made in `parent`, which is then in the layer.
    fn vacant(&self, layer: &Layer, state: &mut State, parent: Ino, name: &OsStr) -> Result<Both, Error> {
        state.node(parent)?;
        let both = self.both(layer, state, parent)?;
        self.check_name(layer, &both, name)?;
        if self.find(layer, &both, name)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        self.raise(layer, state, parent)?;
        state.epoch += 1;
        self.both(layer, state, parent)
    }

    pub(super) fn check_name(&self, layer: &Layer, both: &Both, name: &OsStr) -> Result<(), Error> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Errno::NAMETOOLONG.into());
        }
        if !host::is_name(name) {
            return Err(Errno::INVAL.into());
        }
        if layer.upper.is_mark(name) || (both.is_root && name == PRIVATE_NAME) {
            return Err(Errno::PERM.into());
        }
        Ok(())
    }

    fn enter_made(&self, layer: &Layer, state: &mut State, parent: Ino, name: &OsStr) -> Result<(Ino, Attr), Error> {
        let both = self.both(layer, state, parent)?;
        let found = self.find(layer, &both, name)?;
        self.enter(layer, state, parent, name, found)
    }

    /// Gives `ino` another name, or its first.
    ///
    /// # Errors
    /// `EPERM` for a directory, `ENOENT` for a removed file, otherwise as [`View::create`].
    pub fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<(Ino, Attr), Error> {
        let layer = self.layer()?;
        {
            let mut state = layer.state.write();
            self.vacant(layer, &mut state, parent, name)?;
            if state.node(ino)?.kind == Kind::Directory {
                return Err(Errno::PERM.into());
            }
        }
        self.copy_up(ino, ATTRIBUTES)?;
        let mut state = layer.state.write();
        self.vacant(layer, &mut state, parent, name)?;
        let object = state.object(&layer.upper, ino)?.ok_or(Errno::STALE)?;
        let unnamed = state.node(ino)?.unnamed.clone();
        if unnamed.is_none() && self.attr_of(layer, &state, ino)?.nlink == 0 {
            return Err(Errno::NOENT.into());
        }
        let directory = self.upper_directory(layer, &state, parent)?;
        if let Some(Unnamed::InWork(staged)) = unnamed {
            layer.upper.install(&staged, directory.as_fd(), name)?;
        } else {
            let staged = layer.upper.temporary();
            stage_link(layer, object.as_fd(), &staged)?;
            if let Err(error) = layer.upper.install(&staged, directory.as_fd(), name) {
                // Else the file has a link too many.
                let _ = layer.upper.discard(&staged);
                return Err(error.into());
            }
        }
        self.enter_made(layer, &mut state, parent, name)
    }

    /// Removes a name of anything but a directory.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `EROFS`, or what the layer's filesystem says.
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<(), Error> {
        self.remove(parent, name, false)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EROFS`, or what the layer's filesystem says.
    pub fn remove_directory(&self, parent: Ino, name: &OsStr) -> Result<(), Error> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: Ino, name: &OsStr, directory: bool) -> Result<(), Error> {
        let layer = self.layer()?;
        self.read_ahead_of_lock(layer, parent, name)?;
        let mut state = layer.state.write();
        state.node(parent)?;
        let both = self.both(layer, &state, parent)?;
        let found = self.find_known(layer, &state, &both, name)?.ok_or(Errno::NOENT)?;
        match (found.kind == Kind::Directory, directory) {
            (true, false) => return Err(Errno::ISDIR.into()),
            (false, true) => return Err(Errno::NOTDIR.into()),
            (true, true) => self.check_empty(layer, &both, name, &found)?,
            (false, false) => {}
        }
        let covered = self.find_lower(&both, name)?.is_some();
        self.raise(layer, &mut state, parent)?;
        state.epoch += 1;
        let ino = self.number(&mut state, &found);
        if found.upper.is_some() {
            state.keep_without(&layer.upper, ino, parent, name)?;
        }
        let opened = self.upper_directory(layer, &state, parent)?;
        if covered {
            layer.upper.whiteout(opened.as_fd(), name)?;
        } else if !directory || fs::unlinkat(&opened, name, AtFlags::REMOVEDIR).is_err() {
            // Whiteouts may be in it.
            layer.upper.remove(opened.as_fd(), name)?;
        }
        self.unlinked(layer, &mut state, ino, (parent, name), &found)
    }

    /// Notes that the name of what was `found` there is gone.
    pub(super) fn unlinked(
        &self,
        layer: &Layer,
        state: &mut State,
        ino: Ino,
        at: (Ino, &OsStr),
        found: &Found,
    ) -> Result<(), Error> {
        if let (None, Some((_, attr))) = (&found.upper, &found.lower)
            && (attr.nlink > 1 || state.nodes.contains_key(&ino))
        {
            state.name_gone(&layer.upper, ino, attr.nlink)?;
        }
        if found.kind == Kind::Directory {
            state.directory_gone(ino);
        }
        state.drop_name(ino, at.0, at.1);
        state.release_hold(&layer.upper, ino)?;
        state.collect(ino);
        if let Some(stat) = &found.upper
            && (stat.st_nlink <= 1 || found.kind == Kind::Directory)
        {
            state.drop_key(key_of(stat));
        }
        Ok(())
    }

    pub(super) fn check_empty(&self, layer: &Layer, both: &Both, name: &OsStr, found: &Found) -> Result<(), Error> {
        let upper = match (&found.upper, &both.upper) {
            (Some(_), Some(parent)) => Some(host::open_directory(parent.as_fd(), name)?.into()),
            _ => None,
        };
        let inside = Both { upper, lower: found.lower.map(|(node, _)| node), is_root: false };
        match self.names_in(layer, &inside)?.is_empty() {
            true => Ok(()),
            false => Err(Errno::NOTEMPTY.into()),
        }
    }
}

/// Makes `new`, which belongs in the directory `parent`, as `staged` in `work`, and opens a file. That comes before its mode, which may
/// be one with which this process may not open it.
pub(super) fn stage_new(
    layer: &Layer,
    parent: BorrowedFd<'_>,
    new: &New<'_>,
    staged: &OsStr,
    open: Option<OpenMode>,
) -> Result<Option<File>, Error> {
    let work = layer.upper.work()?;
    let acl = if layer.upper.has_acls() { host::xattr(parent, OsStr::new(DEFAULT_ACL))? } else { None };
    let (file, mode) = match acl {
        Some(acl) if new.kind != Kind::Symlink => stage_inheriting(layer, new, &acl, staged, open)?,
        _ => {
            let mode = new.permissions.mode & 0o7777 & !(new.permissions.umask & 0o777);
            (making::make(work, staged, new, 0o700, open)?, mode)
        }
    };
    settle(host::open_object(work, staged)?.as_fd(), parent, new, mode)?;
    Ok(file)
}

/// Gives `object`, which was made as `new` for the directory `parent`, its owner, its group and this mode.
pub(super) fn settle(
    object: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    new: &New<'_>,
    mut mode: u16,
) -> Result<(), Error> {
    if let Some((uid, gid)) = new.owner {
        fs::chownat(object, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
    }
    // What is made in a directory with the set-group-id bit belongs to its group, and a directory there passes it on.
    let parent = host::attr_of(&host::stat(parent)?);
    if parent.mode & SET_GID != 0 {
        let own = host::stat(object)?;
        copy_up::change_owner(object, own.st_uid, parent.gid)?;
        if new.kind == Kind::Directory {
            mode |= SET_GID;
        }
    }
    if new.kind != Kind::Symlink {
        fs::chmod(host::path_of(object), Mode::from_raw_mode(mode.into()))?;
    }
    Ok(())
}

/// Makes a node that inherits the default ACL `acl` of its directory, opens a file, and returns its mode too. The filesystem itself
/// works out what that comes to, in a directory that is there for this alone.
fn stage_inheriting(
    layer: &Layer,
    new: &New<'_>,
    acl: &[u8],
    staged: &OsStr,
    open: Option<OpenMode>,
) -> Result<(Option<File>, u16), Error> {
    let work = layer.upper.work()?;
    let around = layer.upper.temporary();
    fs::mkdirat(work, &around, Mode::from_raw_mode(0o700))?;
    let make = || -> Result<(Option<File>, u16), Error> {
        let directory = host::open_directory(work, &around)?;
        fs::setxattr(host::path_of(directory.as_fd()), DEFAULT_ACL, acl, XattrFlags::empty())?;
        let file = making::make(directory.as_fd(), staged, new, new.permissions.mode, open)?;
        let mode = host::attr_of(&host::stat(host::open_object(directory.as_fd(), staged)?.as_fd())?).mode;
        fs::renameat(&directory, staged, work, staged)?;
        fs::unlinkat(work, &around, AtFlags::REMOVEDIR)?;
        Ok((file, mode))
    };
    let made = make();
    if made.is_err() {
        // The first failure is the one to report.
        let _ = layer.upper.discard(&around);
    }
    made
}
