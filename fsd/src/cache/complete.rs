//! Whether all of an object is on disk, and whether all of it was held against its digest.
//!
//! That it was is a file beside the packs. Whatever is stored or evicted takes it away, so that it speaks of the very bytes
//! that are there. A process that stored something itself does not believe a mark that another one made meanwhile.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::object::Object;

const CHECKED: &str = "checked";

impl Object {
    /// Whether the disk claims to have all chunks. What was found to be there is not looked for again.
    pub fn is_complete(&self) -> bool {
        let Some(packs) = &self.packs else { return false };
        let first_absent = packs.first_absent(self.first_absent.load(Ordering::Relaxed), self.chunks());
        let first_absent = first_absent.unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot tell what is cached");
            0
        });
        self.first_absent.store(first_absent, Ordering::Relaxed);
        first_absent == self.chunks()
    }

    /// Says that `chunk` is not there after all.
    pub fn misses(&self, chunk: u32) {
        self.first_absent.fetch_min(chunk, Ordering::Relaxed);
    }

    /// Whether all that is on disk was held against the digest of the whole.
    pub fn is_checked(&self) -> bool {
        !self.stored_since_check.load(Ordering::Acquire)
            && self.packs.as_ref().is_some_and(|packs| packs.dir().join(CHECKED).exists())
    }

    /// Says that it was, and is what it should be.
    pub fn set_checked(&self) {
        let Some(packs) = &self.packs else { return };
        self.stored_since_check.store(false, Ordering::Release);
        let mark =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(packs.dir().join(CHECKED));
        if let Err(error) = mark {
            tracing::debug!(%error, "cannot write down that an object was checked");
        }
    }

    /// Takes all that is stored of it away, and lets it be evicted: it is not what it should be.
    pub fn throw_away(&self) {
        self.unstored.lock().clear();
        let Some(packs) = &self.packs else { return };
        self.first_absent.store(0, Ordering::Relaxed);
        uncheck(packs.dir());
        if let Err(error) = super::pins::unpin(packs.dir()).and(packs.remove()) {
            tracing::warn!(url = self.description().url, %error, "cannot remove what is cached of it");
        }
    }

    /// Takes note that other bytes are about to be on disk.
    pub(super) fn will_store(&self) {
        if !self.stored_since_check.swap(true, Ordering::AcqRel)
            && let Some(packs) = &self.packs
        {
            uncheck(packs.dir());
        }
    }
}

/// Takes back that the object in this directory was checked.
pub(super) fn uncheck(object: &Path) {
    match fs::remove_file(object.join(CHECKED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(%error, "cannot take back that an object was checked");
        }
        _ => {}
    }
}
