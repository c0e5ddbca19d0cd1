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
use std::fs::File;
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
        let layer = self.layer()?;
        let mut state = layer.state.write();
        state.node(parent)?;
        // What is no directory is none to raise.
        self.both(layer, &state, parent)?;
        self.raise(layer, &mut state, parent)?;
        let directory = self.upper_directory(layer, &state, parent)?;
        let hands_acl_on = state.hands_acl_on(&layer.upper, parent, directory.as_fd())?;
        let (made, unnamed) = match make(directory.as_fd(), &new, hands_acl_on, open) {
            Ok(file) => (Ok(file), Unnamed::Nowhere),
            // Whatever a filesystem answers that makes no such files.
            Err(_) => {
                let staged = layer.upper.temporary();
                let made = stage_new(layer, directory.as_fd(), &new, &staged, Some(open));
                (made.map(|file| file.expect("a file that is to be opened is")), Unnamed::InWork(staged))
            }
        };
        let entered = made.and_then(|file| {
            let object = OwnedFd::from(file.try_clone()?);
            let stat = host::stat(object.as_fd())?;
            let ino = state.number(key_of(&stat), None, false);
            let node = state.remember_unnamed(ino, &stat, object, unnamed.clone());
            node.is_bare = !hands_acl_on;
            // The name that it has in `work` is none.
            let attr = Attr { nlink: 0, ..host::attr_of(&stat) };
            Ok((ino, attr, OpenFile::made(ino, node, file, open)))
        });
        if entered.is_err() {
            discard(&layer.upper, Some(&unnamed));
        }
        entered
    }
}

/// Makes the file without a name anywhere, and opens it.
fn make(directory: BorrowedFd<'_>, new: &New<'_>, hands_acl_on: bool, open: OpenMode) -> Result<File, Error> {
    let Permissions { mode, umask } = new.permissions;
    let umask = if hands_acl_on { 0 } else { umask & 0o777 };
    let mode = mode & 0o7777 & !umask;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | open.append_flag();
    let file = fs::openat(directory, ".", flags, Mode::from_raw_mode(mode.into()))?;
    // The ACL has its say in it; this process's own umask has none.
    let mode = if hands_acl_on { host::attr_of(&host::stat(file.as_fd())?).mode } else { mode };
    settle(file.as_fd(), directory, new, mode)?;
    Ok(file.into())
}

impl Drop for Layer {
    fn drop(&mut self) {
        for node in self.state.get_mut().nodes.values_mut() {
            // Some filesystems keep a file under another name for who has it open.
            node.orphan = None;
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
