//! New nodes that are made right where they belong, in one step: nearly all.
//!
//! What has to replace a whiteout, hide something of the image or get what only a second step can give is made in `work`
//! and renamed into place, which is twice the work for the layer's filesystem.

use super::changes::New;
use super::lookup::Both;
use super::state::{Found, State};
use super::{Ino, Layer, OpenFile, OpenMode, View};
use crate::copy_up;
use crate::error::Error;
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::{Attr, Kind};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

/// The setuid, setgid and sticky bits.
const SPECIAL_BITS: u16 = 0o7000;

impl View {
    /// Makes `new` as `name` in `parent` in one step, and opens a file; `None` if it takes more.
    pub(super) fn make_at_once(
        &self,
        layer: &Layer,
        state: &mut State,
        (parent, name): (Ino, &OsStr),
        new: &New<'_>,
        open: Option<OpenMode>,
    ) -> Result<Option<(Ino, Attr, Option<OpenFile>)>, Error> {
        state.node(parent)?;
        let both = self.both(layer, state, parent)?;
        self.check_name(layer, &both, name)?;
        let Some(directory) = both.upper.as_ref().map(|directory| directory.as_fd()) else { return Ok(None) };
        if !self.is_simple(layer, state, &both, parent, name, new)? {
            return Ok(None);
        }
        let mode = new.permissions.mode & !(new.permissions.umask & 0o777);
        let file = match make(directory, name, new, mode, open) {
            // A whiteout, or a node: then the other way finds that out.
            Err(Error::Upper(error)) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => return Ok(None),
            made => made?,
        };
        let mut stat = match &file {
            Some(file) => fs::fstat(file)?,
            None => fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?,
        };
        if new.kind != Kind::Symlink && stat.st_mode & 0o777 != u32::from(mode) {
            // This process has a umask of its own.
            let object = host::open_object(directory, name)?;
            fs::chmod(host::path_of(object.as_fd()), Mode::from_raw_mode(stat.st_mode & 0o7000 | u32::from(mode)))?;
            stat = host::stat(object.as_fd())?;
        }
        state.epoch += 1;
        let found = Found { kind: new.kind, upper: Some(stat), lower: None, origin: None, stub: false };
        let (ino, attr) = self.enter(layer, state, parent, name, Some(found))?;
        let node = state.node_mut(ino)?;
        node.is_bare = new.kind == Kind::File;
        Ok(Some((ino, attr, file.zip(open).map(|(file, open)| OpenFile::made(ino, node, file, open)))))
    }

    /// Whether all of a new node comes of one system call.
    fn is_simple(
        &self,
        layer: &Layer,
        state: &State,
        both: &Both,
        parent: Ino,
        name: &OsStr,
        new: &New<'_>,
    ) -> Result<bool, Error> {
        let Some(directory) = &both.upper else { return Ok(false) };
        Ok(!layer.upper.uses_markers()
            && new.permissions.mode & SPECIAL_BITS == 0
            && new.owner.is_none_or(|owner| owner == layer.own_ids)
            && self.find_lower(both, name)?.is_none()
            && (new.kind == Kind::Symlink || !state.hands_acl_on(&layer.upper, parent, directory.as_fd())?))
    }
}

/// Makes the node, and opens it if it is a file that is to be opened.
pub(super) fn make(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    new: &New<'_>,
    mode: u16,
    open: Option<OpenMode>,
) -> Result<Option<File>, Error> {
    match (new.kind, open) {
        (Kind::Symlink, _) => fs::symlinkat(new.target, directory, name)?,
        (Kind::File, Some(open)) => {
            let access = if open.write || open.truncate { OFlags::RDWR } else { OFlags::RDONLY };
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
            let file =
                fs::openat(directory, name, flags | access | open.append_flag(), Mode::from_raw_mode(mode.into()))?;
            return Ok(Some(file.into()));
        }
        (kind, _) => copy_up::make(directory, name, kind, mode, new.rdev)?,
    }
    Ok(None)
}
