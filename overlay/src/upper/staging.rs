//! Nodes in `.siphon/work`: names for those being made, removal of those no longer wanted.

use super::{Upper, made};
use crate::error::Error;
use rustix::fs::{self, AtFlags, Mode};
use rustix::io::Errno;
use siphon_image::directory::host;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

/// A directory in `work`, until it is removed or the layer is next locked.
#[derive(Debug)]
pub struct Scratch<'a> {
    upper: &'a Upper,
    directory: OwnedFd,
    name: OsString,
}

impl Scratch<'_> {
    /// The directory.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Takes it away with all that is in it.
    ///
    /// # Errors
    /// As `unlinkat(2)`, such as where something is mounted in it.
    pub fn remove(self) -> io::Result<()> {
        drop(self.directory);
        self.upper.discard(&self.name)
    }
}

impl Upper {
    /// Makes a directory to try things in, on the filesystem of the layer.
    ///
    /// # Errors
    /// `EROFS` if the layer may not be written to, or as `mkdirat(2)`.
    pub fn scratch(&self) -> Result<Scratch<'_>, Error> {
        let name = self.temporary();
        let directory = made(self.work()?, &name)?;
        Ok(Scratch { upper: self, directory, name })
    }

    /// A name in `work` that no other thread or process uses.
    pub(crate) fn temporary(&self) -> OsString {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", std::process::id()).into()
    }

    /// Removes `name` in `work` with all that is in it. Directories inside are moved up into `work` first, so that no
    /// depth needs a stack or descriptors.
    pub(crate) fn discard(&self, name: &OsStr) -> io::Result<()> {
        let work = self.work()?;
        let mut pending = vec![name.to_owned()];
        while let Some(name) = pending.pop() {
            match fs::unlinkat(work, &name, AtFlags::empty()) {
                Err(Errno::ISDIR) => {}
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            }
            let directory = host::open_directory(work, &name)?;
            // The kernel's overlayfs leaves directories that nobody may list. What is not ours to change may be listed.
            let _ = fs::chmod(host::path_of(directory.as_fd()), Mode::RWXU);
            for entry in host::list(directory.as_fd())? {
                match fs::unlinkat(&directory, &entry.name, AtFlags::empty()) {
                    Err(Errno::ISDIR) => {
                        let moved = self.temporary();
                        fs::renameat(&directory, &entry.name, work, &moved)?;
                        pending.push(moved);
                    }
                    other => other?,
                }
            }
            fs::unlinkat(work, &name, AtFlags::REMOVEDIR)?;
        }
        Ok(())
    }
}
