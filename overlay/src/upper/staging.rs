//! Nodes in `.siphon/work`: names for those being made, removal of those no longer wanted.

use super::Upper;
use rustix::fs::{self, AtFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

impl Upper {
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
