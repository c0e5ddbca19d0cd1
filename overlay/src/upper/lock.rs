//! Who writes to a layer.
//!
//! ```text
//! process 4711 on node3              the holder of the lock, for those that it keeps out
//! upperdir=/proc/4711/fd/12          what the kernel merges the layer by, if it does
//! ```
//!
//! Killed, a process gives its lock back, but what the kernel has merged by its order stays for as long as a program
//! sees it. So the second line is written down before the kernel is asked, and taken away when the mount is gone. Who finds it
//! has to look whether there is such a mount.

use super::Upper;
use crate::error::Error;
use rustix::fs::{self, AtFlags, FlockOperation};
use rustix::io::Errno;
use siphon_image::directory::host;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Longest text that is read from a lock file.
const MAX_BYTES: usize = 1024;
/// What the second line begins with, as the option of overlayfs does.
const MERGED: &str = "upperdir=";

impl Upper {
    /// As [`Upper::lock_exclusive_unless`] where the kernel merges no layer.
    ///
    /// # Errors
    /// As that one.
    pub fn lock_exclusive(&self) -> Result<(), Error> {
        self.lock_exclusive_unless(|_| None)
    }

    /// Makes this process the only writer until the layer is closed, and clears away what a crashed one left behind.
    /// `merged` tells who sees an overlayfs of this machine that was mounted with the option it is given, if
    /// anyone does.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process is it already, or the kernel still merges the layer for a program whose
    /// own writer was killed; `EROFS` if the directory may not be written to.
    pub fn lock_exclusive_unless(&self, merged: impl FnOnce(&str) -> Option<String>) -> Result<(), Error> {
        let lock = &self.private()?.lock;
        match fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let holder = read(lock)?.lines().next().map(|line| line.trim().to_owned());
                return Err(Error::Locked { holder: holder.filter(|holder| !holder.is_empty()) });
            }
            other => other?,
        }
        let option = read(lock)?.lines().find(|line| line.starts_with(MERGED)).map(str::to_owned);
        if let Some(holder) = option.and_then(|option| merged(&option)) {
            fs::flock(lock, FlockOperation::Unlock)?;
            return Err(Error::Locked { holder: Some(holder) });
        }
        self.write_holder(None)?;
        self.clear_work()?;
        if let (true, Some(links)) = (self.is_portable, &self.links) {
            for left in host::list(links.as_fd())? {
                fs::unlinkat(links, &left.name, AtFlags::empty())?;
            }
        }
        self.is_locked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Notes that the kernel is going to merge the layer, which must be locked, with this path as its `upperdir`; with
    /// `None`, that it does so no more.
    ///
    /// # Errors
    /// If it cannot be written down: then the kernel must not be asked.
    pub fn note_merged(&self, upperdir: Option<&Path>) -> Result<(), Error> {
        self.write_holder(upperdir)
    }

    fn write_holder(&self, upperdir: Option<&Path>) -> Result<(), Error> {
        let mut lock = &self.private()?.lock;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let mut text = format!("process {} on {}\n", std::process::id(), host.trim());
        if let Some(path) = upperdir {
            text.push_str(&format!("{MERGED}{}\n", path.display()));
        }
        lock.set_len(0)?;
        io::Seek::rewind(&mut lock)?;
        lock.write_all(text.as_bytes())?;
        Ok(())
    }

    fn clear_work(&self) -> Result<(), Error> {
        for left in host::list(self.work()?)? {
            self.discard(&left.name)?;
        }
        Ok(())
    }

    /// Whether this process is the only writer.
    pub(crate) fn is_locked(&self) -> bool {
        self.is_locked.load(Ordering::Relaxed)
    }
}

/// The text of the lock file, wherever those stand that share the descriptor.
fn read(lock: &File) -> io::Result<String> {
    let mut text = vec![0; MAX_BYTES];
    let len = lock.read_at(&mut text, 0)?;
    text.truncate(len);
    Ok(String::from_utf8_lossy(&text).into_owned())
}
