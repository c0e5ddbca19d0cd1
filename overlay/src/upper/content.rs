//! Which node of the image a node of the layer comes from, and whether its content is still there.
//!
//! | xattr | on | says |
//! |---|---|---|
//! | `user.overlay.siphon.origin` = decimal id of the image's node | what was copied up | it keeps that node's inode number |
//! | `user.overlay.metacopy`, empty | a *stub*: a regular file without its data | attributes are here, content is the image's |
//! | `user.overlay.redirect` = absolute path | a stub | where in the image the content is |
//!
//! The last two are the kernel's (`Documentation/filesystems/overlayfs.rst`, "Metadata only copy up"). With `userxattr` it
//! follows neither: it refuses such a file with `EPERM`, so that nothing reads zeros. A layer that may hold stubs has
//! `.siphon/stubs`; [`crate::view::View::complete`] gives them their data and takes that file away.
//!
//! An overlay directory has none of these, since it may be used with another image later: a stub in one is an error.
//!
//! A stub's length is its own. Where it is shorter than the image's file, a crash came between cutting and filling it.

use super::{Upper, form};
use rustix::fs::{self, AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::NodeId;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::Ordering;

pub(super) const STUBS_NAME: &str = "stubs";
const ORIGIN: &str = "user.overlay.siphon.origin";
const METACOPY: &str = "user.overlay.metacopy";
const REDIRECT: &str = "user.overlay.redirect";

/// What the marks on a node say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The node of the image that it was copied from.
    pub(crate) node: Option<NodeId>,
    /// The names that lead to its content in the image, of a stub.
    pub(crate) content: Option<Vec<OsString>>,
}

impl Upper {
    /// The marks on `name` in `directory`, a regular file or a directory.
    pub(crate) fn origin(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Origin> {
        if !self.has_xattrs || !form::may_have_marks(directory, name)? {
            return Ok(Origin::default());
        }
        let is_stub = host::xattr_at(directory, name, OsStr::new(METACOPY))?.is_some();
        if self.is_portable {
            // Of which image its content would be, nobody knows.
            return if is_stub { Err(Errno::IO.into()) } else { Ok(Origin::default()) };
        }
        let value = host::xattr_at(directory, name, OsStr::new(ORIGIN))?.unwrap_or_default();
        let node = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()).map(NodeId);
        let mut content = None;
        if is_stub {
            let path = host::xattr_at(directory, name, OsStr::new(REDIRECT))?.unwrap_or_default();
            let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
            content = Some(names.map(|name| OsString::from_vec(name.to_vec())).collect());
        }
        Ok(Origin { node, content })
    }

    /// Notes that `object` in `work` is a copy of `node`; nothing where there are no xattrs.
    pub(crate) fn set_origin(&self, object: BorrowedFd<'_>, node: NodeId) -> Result<(), Errno> {
        if !self.has_xattrs || self.is_portable {
            return Ok(());
        }
        match fs::setxattr(host::path_of(object), ORIGIN, node.0.to_string().as_bytes(), XattrFlags::empty()) {
            // Symbolic links, pipes and devices take none, and a full disk is not worth a number.
            Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSPC) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Notes that `object` is a copy of nothing any more, since the image shows its own again.
    pub(super) fn forget_origin(&self, object: BorrowedFd<'_>) -> Result<(), Errno> {
        if !self.has_xattrs || self.is_portable {
            return Ok(());
        }
        match fs::removexattr(host::path_of(object), ORIGIN) {
            Err(Errno::NODATA) => Ok(()),
            other => other,
        }
    }

    /// Makes `object`, a file in `work` of the right length, a stub of the image's file at `path`. `false` if this
    /// filesystem cannot keep the marks; the content has to be copied then.
    pub(crate) fn mark_stub(&self, object: BorrowedFd<'_>, path: &[OsString]) -> Result<bool, Errno> {
        if !self.has_xattrs || self.is_portable {
            return Ok(false);
        }
        if !self.stubs.load(Ordering::Relaxed) {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let private = &self.private()?.directory;
            let noted = fs::openat(private, STUBS_NAME, flags, Mode::from_raw_mode(0o644))?;
            fs::fsync(noted)?;
            self.stubs.store(true, Ordering::Relaxed);
        }
        let mut redirect = Vec::new();
        for name in path {
            redirect.push(b'/');
            redirect.extend_from_slice(name.as_bytes());
        }
        let object = host::path_of(object);
        for (name, value) in [(REDIRECT, redirect.as_slice()), (METACOPY, b"")] {
            match fs::setxattr(&object, name, value, XattrFlags::empty()) {
                Ok(()) => {}
                // Too long a path for this filesystem's xattrs.
                Err(Errno::NOSPC | Errno::RANGE | Errno::TOOBIG | Errno::OPNOTSUPP | Errno::PERM) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Makes the stub `object`, whose content was written, a file like any other. From here on it counts.
    pub(crate) fn unmark_stub(&self, object: BorrowedFd<'_>) -> Result<(), Errno> {
        let object = host::path_of(object);
        for name in [METACOPY, REDIRECT] {
            match fs::removexattr(&object, name) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether files of this layer may lack their content.
    pub(crate) fn may_have_stubs(&self) -> bool {
        self.stubs.load(Ordering::Relaxed)
    }

    /// Notes that no file of this layer is a stub any more.
    pub(crate) fn forget_stubs(&self) -> Result<(), Errno> {
        match fs::unlinkat(&self.private()?.directory, STUBS_NAME, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        self.stubs.store(false, Ordering::Relaxed);
        Ok(())
    }
}
