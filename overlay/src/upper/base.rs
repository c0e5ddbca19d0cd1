//! What a layer lies on.

use super::PRIVATE_NAME;
use crate::error::Error;
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use siphon_image::directory::host;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

const NAME: &str = "base.json";
/// More than any path and identity take.
const MAX_BASE_BYTES: u64 = 64 << 10;

/// The image that a layer belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Version of this record: [`Base::VERSION`].
    pub version: u32,
    /// Absolute path or URL.
    pub image: String,
    /// What tells this image from another one at the same place.
    pub identity: String,
}

impl Base {
    /// The version that this program writes.
    pub const VERSION: u32 = 1;

    /// Reads the record of the layer in `directory`; `None` if that is not a layer over an image.
    ///
    /// # Errors
    /// [`Error::Base`] if the record is not understood, [`Error::Upper`] if it cannot be read.
    pub fn read(directory: &Path) -> Result<Option<Self>, Error> {
        let root = fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let private = match host::open_directory(root.as_fd(), OsStr::new(PRIVATE_NAME)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(&private, NAME, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => File::from(other?),
        };
        let mut text = Vec::new();
        file.take(MAX_BASE_BYTES).read_to_end(&mut text)?;
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// Writes the record, which must not exist, whole or not at all.
    pub(super) fn write(&self, private: BorrowedFd<'_>, work: BorrowedFd<'_>) -> Result<(), Error> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(fs::openat(work, NAME, flags, Mode::from_raw_mode(0o644))?);
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        let linked = fs::linkat(work, NAME, private, NAME, AtFlags::empty());
        fs::unlinkat(work, NAME, AtFlags::empty())?;
        Ok(linked?)
    }
}
