//! Files that are made without a name (`O_TMPFILE`), and get one later or never.
//!
//! Where the layer's filesystem makes such files, one is made in the layer's directory, which hands on its ACL and its group,
//! and is gone with the process that serves the view, however that ends. Elsewhere the file is one in `work` until it gets a
//! name or nobody refers to it; what a killed process left of it is cleared when the layer is next locked.

use super::changes::{New, settle, stage_new};
use super::state::key_of;
use super::{Ino, Layer, OpenFile, OpenMode, Owner, Permissions, View};
use crate::error::Error;
use crate::upper::Upper;
use rustix::fs::{self, Mode, OFlags};
use siphon_image::directory::host;
use siphon_image::tree::{Attr, Kind};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What the layer has of a file that was made without a name and has got none yet.
#[derive(Debug, Clone)]
pub(super) enum Unnamed {
    /// A file without a name.
    Nowhere,
    /// A file of this name in `work`.
    InWork(OsString),
}

impl View {
    /// Creates a regular file that has no name and belongs where it would if it were made in `parent`, and opens it. Counts one
    /// reference. [`View::link`] gives it a name.
    ///
    /// # Errors
    /// `ENOENT` for a removed directory, `ENOTDIR`, `EROFS`, or what the layer's filesystem says.
    pub fn create_unnamed(
        &self,
        parent: Ino,
        permissions: Permissions,
        owner: Owner,
        open: OpenMode,
    ) -> Result<(Ino, Attr, OpenFile), Error> {
        let new = New { kind: Kind::File, permissions, rdev: 0, target: OsStr::new(""), owner };
        let (ino, attr) = self.make_unnamed(parent, &new)?;
        match self.open_new(ino, open) {
            Ok(file) => Ok((ino, attr, file)),
            Err(error) => {
                self.forget(ino, 1);
                Err(error)
            }
        }
    }

    fn make_unnamed(&self, parent: Ino, new: &New<'_>) -> Result<(Ino, Attr), Error> {
        let layer = self.layer()?;
        let mut state = layer.state.write();
        state.node(parent)?;
        // What is no directory is none to raise.
        self.both(layer, &state, parent)?;
        self.raise(layer, &mut state, parent)?;
        let directory = self.upper_directory(layer, &state, parent)?;
        let hands_acl_on = state.hands_acl_on(&layer.upper, parent, directory.as_fd())?;
        let (object, unnamed) = match make(directory.as_fd(), new, hands_acl_on) {
            Ok(object) => (object, Unnamed::Nowhere),
            // Whatever a filesystem answers that makes no such files.
            Err(_) => {
                let staged = layer.upper.temporary();
                let made = make_in_work(layer, directory.as_fd(), new, &staged);
                if made.is_err() {
                    // The first failure is the one to report.
                    let _ = layer.upper.discard(&staged);
                }
                (made?, Unnamed::InWork(staged))
            }
        };
        let stat = host::stat(object.as_fd())?;
        let ino = state.number(key_of(&stat), None, false);
        state.remember_unnamed(ino, &stat, object, unnamed);
        state.node_mut(ino)?.is_bare = !hands_acl_on;
        Ok((ino, self.attr_of(layer, &state, ino)?))
    }
}

/// Makes the file without a name anywhere.
fn make(directory: BorrowedFd<'_>, new: &New<'_>, hands_acl_on: bool) -> Result<OwnedFd, Error> {
    let Permissions { mode, umask } = new.permissions;
    let umask = if hands_acl_on { 0 } else { umask & 0o777 };
    let mode = mode & 0o7777 & !umask;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let object = fs::openat(directory, ".", flags, Mode::from_raw_mode(mode.into()))?;
    // The ACL has its say in it; this process's own umask has none.
    let mode = if hands_acl_on { host::attr_of(&host::stat(object.as_fd())?).mode } else { mode };
    settle(object.as_fd(), directory, new, mode)?;
    Ok(object)
}

fn make_in_work(layer: &Layer, parent: BorrowedFd<'_>, new: &New<'_>, staged: &OsStr) -> Result<OwnedFd, Error> {
    stage_new(layer, parent, new, staged)?;
    Ok(host::open_object(layer.upper.work()?, staged)?)
}

impl Drop for Layer {
    fn drop(&mut self) {
        for node in self.state.get_mut().nodes.values() {
            discard(&self.upper, node.unnamed.as_ref());
        }
    }
}

/// Takes away what `work` has of a file that nobody refers to any more.
pub(super) fn discard(upper: &Upper, unnamed: Option<&Unnamed>) {
    if let Some(Unnamed::InWork(name)) = unnamed {
        // What cannot be removed is, when the layer is next locked.
        let _ = upper.discard(name);
    }
}
