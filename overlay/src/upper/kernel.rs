//! What the kernel's overlayfs is given of a layer.

use super::form::Form;
use super::{OVERLAY_WORK, Private, Upper, made};
use crate::error::Error;
use rustix::fs::{self, AtFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;

/// `FUSE_SUPER_MAGIC` of `linux/magic.h`.
const FUSE_MAGIC: u64 = 0x6573_5546;

/// The directories of a layer as the kernel's overlayfs names them. The working directory, if it lies beside the layer,
/// is taken away when this is dropped.
#[derive(Debug)]
pub struct KernelDirectories {
    upper: OwnedFd,
    work: OwnedFd,
    /// Where the working directory is, and its name, if it was made for the time of the mount.
    beside: Option<(OwnedFd, OsString)>,
}

impl Upper {
    /// Why the kernel's overlayfs would show this layer other than it is; `None` if it shows the same.
    pub fn foreign_to_kernel(&self) -> Option<&'static str> {
        if self.private.is_none() {
            return Some("the layer may not be written to");
        }
        if self.uses_markers() {
            return Some("the layer has files that stand for deleted ones, which the kernel does not know");
        }
        if self.may_have_stubs() {
            return Some("the layer has files whose content is in the image");
        }
        if self.holds_links() {
            return Some("the layer has changed a file that has other names in the image");
        }
        if self.filesystem().is_ok_and(|(kind, _)| kind == FUSE_MAGIC) {
            return Some("the filesystem of the layer is served by a program");
        }
        (self.form != Form::Device).then_some("the filesystem of the layer takes no device nodes as whiteouts")
    }

    /// Whether what is ours lies among the files of the layer.
    pub fn is_private_inside(&self) -> bool {
        self.overlay.is_none()
    }

    /// The layer's directory of files and one to work in, which overlayfs clears itself. The layer must be locked.
    ///
    /// # Errors
    /// If there can be no working directory: that beside the layer needs a right to write there.
    pub fn kernel_directories(&self) -> Result<KernelDirectories, Error> {
        let upper = self.root.try_clone()?;
        if let Some(overlay) = &self.overlay {
            let work = made(overlay.as_fd(), OsStr::new(OVERLAY_WORK))?;
            return Ok(KernelDirectories { upper, work, beside: None });
        }
        let parent = host::open_directory(self.root.as_fd(), OsStr::new(".."))?;
        let stat = host::stat(self.root.as_fd())?;
        let above = host::stat(parent.as_fd())?;
        if (stat.st_dev, stat.st_ino) == (above.st_dev, above.st_ino) || stat.st_dev != above.st_dev {
            return Err(Errno::XDEV.into());
        }
        let name = OsString::from(format!(".siphon-work-{}", stat.st_ino));
        let work = made(parent.as_fd(), &name)?;
        let made = host::stat(work.as_fd())?;
        // Others may write to the directory above.
        if made.st_uid != rustix::process::geteuid().as_raw() || made.st_mode & 0o022 != 0 {
            return Err(Errno::PERM.into());
        }
        Ok(KernelDirectories { upper, work, beside: Some((parent, name)) })
    }

    /// The filesystem that it lies on: its type and device number.
    ///
    /// # Errors
    /// As `fstatfs(2)`.
    pub fn filesystem(&self) -> io::Result<(u64, u64)> {
        let kind = fs::fstatfs(&self.root)?.f_type;
        Ok((u64::try_from(kind).unwrap_or_default(), host::stat(self.root.as_fd())?.st_dev))
    }

    /// The same layer, for a view of its own. The lock is that of the layer, however many share it.
    ///
    /// # Errors
    /// If there are too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        let private = self.private.as_ref().map(|private| -> io::Result<_> {
            Ok(Private {
                directory: private.directory.try_clone()?,
                work: private.work.try_clone()?,
                lock: private.lock.try_clone()?,
            })
        });
        Ok(Self {
            root: self.root.try_clone()?,
            private: private.transpose()?,
            overlay: self.overlay.as_ref().map(OwnedFd::try_clone).transpose()?,
            links: self.links.as_ref().map(OwnedFd::try_clone).transpose()?,
            is_portable: self.is_portable,
            is_locked: self.is_locked.clone(),
            has_xattrs: self.has_xattrs,
            has_acls: self.has_acls,
            form: self.form,
            markers: AtomicBool::new(self.uses_markers()),
            stubs: self.stubs.clone(),
            next_temporary: self.next_temporary.clone(),
        })
    }
}

impl KernelDirectories {
    /// For `upperdir`.
    pub fn upper(&self) -> BorrowedFd<'_> {
        self.upper.as_fd()
    }

    /// For `workdir`.
    pub fn work(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }
}

impl Drop for KernelDirectories {
    fn drop(&mut self) {
        if let Some((parent, name)) = &self.beside {
            // The kernel leaves an empty `work` in it, in some versions `index` too. Anything else is for its next mount
            // to clear away.
            for left in ["work", "index"] {
                let _ = fs::unlinkat(&self.work, left, AtFlags::REMOVEDIR);
            }
            let _ = fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
    }
}
