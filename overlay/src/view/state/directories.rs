//! Directories of the layer that are kept open for the next operation in them.

use super::super::Ino;
use super::{Key, State};
use crate::error::Error;
use crate::upper::Upper;
use siphon_image::directory::host;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// What a directory hands on to what is made in it.
pub(in crate::view) const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Most directories that are kept open. When there are as many, all are closed: those in use come back at once.
const MAX_OPEN: usize = 256;

/// By their numbers, which are nobody else's for as long.
#[derive(Debug, Default)]
pub(super) struct OpenDirectories(HashMap<Ino, OpenDirectory>);

#[derive(Debug)]
struct OpenDirectory {
    /// What it was opened as.
    key: Key,
    object: Arc<OwnedFd>,
    /// Whether what is made in it gets an ACL from it, if that is known.
    hands_acl_on: Option<bool>,
}

impl OpenDirectories {
    /// The open directory `ino`, if it still is `key`.
    pub(super) fn get(&self, ino: Ino, key: Key) -> Option<Arc<OwnedFd>> {
        self.0.get(&ino).filter(|open| open.key == key).map(|open| open.object.clone())
    }

    pub(super) fn keep(&mut self, ino: Ino, key: Key, object: Arc<OwnedFd>) {
        if self.0.len() >= MAX_OPEN {
            self.0.clear();
        }
        self.0.insert(ino, OpenDirectory { key, object, hands_acl_on: None });
    }

    pub(super) fn close(&mut self, ino: Ino) {
        self.0.remove(&ino);
    }

    /// Whether what is made in `ino` gets an ACL from it, if that is known.
    pub(super) fn hands_acl_on(&self, ino: Ino) -> Option<bool> {
        self.0.get(&ino)?.hands_acl_on
    }

    /// Notes that, for as long as it is open.
    pub(super) fn note_acl(&mut self, ino: Ino, hands_acl_on: bool) {
        if let Some(open) = self.0.get_mut(&ino) {
            open.hands_acl_on = Some(hands_acl_on);
        }
    }
}

impl State {
    /// The layer's directory `ino`, which the layer has. It is kept open for the next operation in it.
    pub(in crate::view) fn directory(&self, upper: &Upper, ino: Ino) -> Result<Arc<OwnedFd>, Error> {
        let key = self.node(ino)?.key;
        if let Some(open) = key.and_then(|key| self.open.lock().get(ino, key)) {
            return Ok(open);
        }
        let opened = Arc::new(upper.directory(&self.path(ino)?)?);
        if let Some(key) = key {
            self.open.lock().keep(ino, key, opened.clone());
        }
        Ok(opened)
    }

    /// Whether what is made in `ino`, which is open as `directory`, gets an ACL from it.
    pub(in crate::view) fn hands_acl_on(
        &self,
        upper: &Upper,
        ino: Ino,
        directory: BorrowedFd<'_>,
    ) -> Result<bool, Error> {
        if !upper.has_acls() {
            return Ok(false);
        }
        if let Some(known) = self.open.lock().hands_acl_on(ino) {
            return Ok(known);
        }
        let has = host::xattr(directory, OsStr::new(DEFAULT_ACL))?.is_some();
        self.open.lock().note_acl(ino, has);
        Ok(has)
    }
}
