//! Objects that are to stay: marked by a file beside their packs.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Cache, CacheError};

const PINNED: &str = "pinned";

impl Cache {
    /// Keeps the object `key` until it is told otherwise, or no longer.
    ///
    /// # Errors
    /// If there is no such object, or its directory cannot be written to.
    pub fn set_pinned(&self, key: &str, pinned: bool) -> Result<(), CacheError> {
        let path = self.objects().join(key).join(PINNED);
        let result = match pinned {
            true => OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map(drop),
            false => unpin(&self.objects().join(key)),
        };
        result.map_err(|source| CacheError::Directory { path, source })
    }

    /// Whether the object `key` is kept.
    pub fn is_pinned(&self, key: &str) -> bool {
        is_pinned(&self.objects().join(key))
    }
}

/// Has the object in this directory no longer be kept.
pub(super) fn unpin(object: &Path) -> io::Result<()> {
    match fs::remove_file(object.join(PINNED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whether the object in this directory is kept.
pub(super) fn is_pinned(object: &Path) -> bool {
    object.join(PINNED).exists()
}
