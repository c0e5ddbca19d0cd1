//! Which names in the layer were made for no more than something to be mounted on them.
//!
//! `.siphon/places` has their absolute paths, each with a NUL after it, in the order in which they were made. What is
//! there counts as a change only once it is more than an empty directory or file. A name may be there more than once, and
//! may be gone.

use super::{PRIVATE_NAME, Upper};
use crate::error::Error;
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

const NAME: &str = "places";
/// Far more than runs mount on; what is behind it in a file is not read.
const MAX_PLACES_BYTES: u64 = 1 << 20;

impl Upper {
    /// Notes that `path`, absolute in the layer, was made to be mounted on. Not in an overlay directory, which nothing of
    /// the kind is made in.
    ///
    /// # Errors
    /// `EROFS` if the layer may not be written to, or as `write(2)`.
    pub fn note_place(&self, path: &Path) -> Result<(), Error> {
        if self.is_portable {
            return Ok(());
        }
        note(self.private()?.directory.as_fd(), &[path])
    }

    /// As [`Upper::note_place`] for the sandbox in `directory`, whoever has it locked.
    ///
    /// # Errors
    /// If that is no sandbox, or as `write(2)`.
    pub fn note_places_in(directory: &Path, paths: &[&Path]) -> Result<(), Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(directory, flags, Mode::empty())?;
        note(host::open_directory(root.as_fd(), OsStr::new(PRIVATE_NAME))?.as_fd(), paths)
    }

    /// All that was noted.
    ///
    /// # Errors
    /// If the note cannot be read.
    pub fn places(&self) -> Result<HashSet<PathBuf>, Error> {
        let Some(private) = &self.private else { return Ok(HashSet::new()) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(&private.directory, NAME, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(HashSet::new()),
            opened => File::from(opened?),
        };
        let mut text = Vec::new();
        file.take(MAX_PLACES_BYTES).read_to_end(&mut text)?;
        let paths = text.split(|byte| *byte == 0).filter(|path| path.first() == Some(&b'/'));
        Ok(paths.map(|path| OsString::from_vec(path.to_vec()).into()).collect())
    }
}

/// In one write each time, so that the notes of two runs do not mix.
fn note(private: BorrowedFd<'_>, paths: &[&Path]) -> Result<(), Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(fs::openat(private, NAME, flags, Mode::from_raw_mode(0o644))?);
    let mut text = Vec::new();
    for path in paths {
        text.extend_from_slice(path.as_os_str().as_bytes());
        text.push(0);
    }
    Ok(file.write_all(&text)?)
}
