//! The writable directory of a layer.
//!
//! ```text
//! layer/              the user's sandbox: files of the layer, whiteouts, opaque directories
//!   .siphon/          never shown through a view
//!     base.json       which image the layer belongs to
//!     lock            flock(2)ed by the one process that writes; who that is, and what the kernel merges (`upper/lock.rs`)
//!     markers         exists once marker files were used for whiteouts
//!     places          what was made for mounts alone (`upper/places.rs`)
//!     stubs           exists while files may be here whose content is in the image (`upper/content.rs`)
//!     links/          what is known of hard links of the image (`upper/links.rs`)
//!     work/           nodes being made, and nodes that wait for their removal
//! ```
//!
//! In an overlay directory, as apptainer makes them, the files are in `upper`, and `.siphon` is in `work`: in an ext3 image
//! that is all that belongs to a user.
//!
//! The kernel's overlayfs works in a directory of its own that must not be inside the layer: `work` in an overlay
//! directory, else `.siphon-work-N` beside the layer, N being the layer's inode number. It is there while the kernel
//! serves the layer, and what a killed process left of it is cleared by the next one that does.
//!
//! A node is made whole in `work/` and then renamed into place, so that a crash leaves the old state or the new one.
//! See [`form`](self) for how absence is written down: `upper/form.rs`.

mod base;
mod content;
mod form;
mod kernel;
mod links;
mod lock;
mod places;
mod reset;
mod staging;

pub use base::Base;
pub(crate) use content::Origin;
pub(crate) use form::Place;
pub use kernel::KernelDirectories;
pub(crate) use links::Links;
pub use reset::{Reset, ResetError};
pub use staging::Scratch;

use crate::error::Error;
use form::{Abilities, Form};
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// The directory at the root of a layer that holds what is ours.
pub const PRIVATE_NAME: &str = ".siphon";
/// The files of an overlay directory.
const OVERLAY_FILES: &str = "upper";
/// What the kernel's overlayfs works in, in an overlay directory.
const OVERLAY_WORK: &str = "work";
/// The directory in it for hard links of the image.
const LINKS_NAME: &str = "links";
/// What overlayfs and fuse-overlayfs make in there.
const FOREIGN_WORK: &str = "work";

/// An open layer directory.
#[derive(Debug)]
pub struct Upper {
    root: OwnedFd,
    /// `None` where the directory cannot be written to.
    private: Option<Private>,
    /// An overlay directory, for a layer that lies in one.
    overlay: Option<OwnedFd>,
    /// `None` where there is none yet and none can be made.
    links: Option<OwnedFd>,
    form: Form,
    /// Whether `.wh.` names are marks here.
    markers: AtomicBool,
    /// Whether files may be stubs; the same for all clones.
    stubs: Arc<AtomicBool>,
    /// The same for all clones, which make their nodes in the same `work`.
    next_temporary: Arc<AtomicU64>,
    has_xattrs: bool,
    has_acls: bool,
    /// Whether it may lie over any image: then nothing that is true of one image alone is noted in it, or believed.
    is_portable: bool,
    /// Whether this process is the only writer.
    is_locked: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Private {
    directory: OwnedFd,
    work: OwnedFd,
    lock: File,
}

impl Upper {
    /// Opens the layer in `directory`. Working files go to `.siphon/work` inside it, which is made if it is missing
    /// and is never shown. A directory that may not be written to is opened all the same; changes then fail with
    /// `EROFS`.
    ///
    /// # Errors
    /// If the directory cannot be opened or `.siphon` not be made.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let root = open_path(directory)?;
        let private = Private::open_if_allowed(root.as_fd())?;
        Self::with_private(root.try_clone()?, root.as_fd(), private, false)
    }

    /// Opens the layer in an overlay directory: its `upper`, which is made if it is missing, as is `work`.
    ///
    /// # Errors
    /// If the directory cannot be opened, or `upper`, `work` or `.siphon` not be made.
    pub fn open_overlay(directory: &Path) -> Result<Self, Error> {
        let overlay = open_path(directory)?;
        let files = made(overlay.as_fd(), OsStr::new(OVERLAY_FILES))?;
        let work = made(overlay.as_fd(), OsStr::new(OVERLAY_WORK))?;
        let foreign = host::stat_at(work.as_fd(), OsStr::new(FOREIGN_WORK))?.is_some();
        let private = Private::open_if_allowed(work.as_fd())?;
        let upper = Self::with_private(files, work.as_fd(), private, foreign)?;
        Ok(Self { overlay: Some(overlay), is_portable: true, ..upper })
    }

    /// Opens the layer in an overlay directory for reading only: its `upper`, or all of it where it has none. Nothing is
    /// made in it, and changes fail with `EROFS`.
    ///
    /// # Errors
    /// If the directory cannot be opened.
    pub fn open_overlay_read_only(directory: &Path) -> Result<Self, Error> {
        let overlay = open_path(directory)?;
        let part = |name| match host::open_directory(overlay.as_fd(), OsStr::new(name)) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => overlay.try_clone(),
            part => part,
        };
        let work = part(OVERLAY_WORK)?;
        let has = |name| Ok::<_, io::Error>(host::stat_at(work.as_fd(), OsStr::new(name))?.is_some());
        let foreign = has(FOREIGN_WORK)? || !has(PRIVATE_NAME)?;
        let upper = Self::with_private(part(OVERLAY_FILES)?, work.as_fd(), None, foreign)?;
        Ok(Self { is_portable: true, links: None, ..upper })
    }

    /// `foreign` says that another program may have written it, of which one writes markers without a note.
    fn with_private(
        root: OwnedFd,
        place: BorrowedFd<'_>,
        private: Option<Private>,
        foreign: bool,
    ) -> Result<Self, Error> {
        let Abilities { form, has_xattrs, has_acls } = match &private {
            Some(private) => form::probe(private.work.as_fd())?,
            // Whatever is written down is read.
            None => Abilities { form: Form::Device, has_xattrs: true, has_acls: false },
        };
        let links = match &private {
            Some(private) => Some(made(private.directory.as_fd(), OsStr::new(LINKS_NAME))?),
            None => host::walk(place, &[PRIVATE_NAME, LINKS_NAME]).ok(),
        };
        let markers = form == Form::Marker || foreign || has_note(place, form::MARKERS_NAME);
        Ok(Self {
            root,
            private,
            overlay: None,
            links,
            has_xattrs,
            has_acls,
            is_portable: false,
            is_locked: Arc::default(),
            form,
            markers: AtomicBool::new(markers),
            stubs: Arc::new(has_note(place, content::STUBS_NAME).into()),
            next_temporary: Arc::default(),
        })
    }

    /// Makes a new layer over `base` in `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// `EEXIST` if the directory is a layer already; otherwise if it cannot be written.
    pub fn create(directory: &Path, base: &Base) -> Result<Self, Error> {
        match fs::mkdir(directory, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let upper = Self::open(directory)?;
        base.write(upper.private()?.directory.as_fd(), upper.work()?)?;
        Ok(upper)
    }

    fn private(&self) -> Result<&Private, Errno> {
        self.private.as_ref().ok_or(Errno::ROFS)
    }

    pub(crate) fn work(&self) -> Result<BorrowedFd<'_>, Errno> {
        Ok(self.private()?.work.as_fd())
    }

    /// Whether xattrs can be kept at all.
    pub(crate) fn has_xattrs(&self) -> bool {
        self.has_xattrs
    }

    /// Whether POSIX ACLs can be kept.
    pub(crate) fn has_acls(&self) -> bool {
        self.has_acls
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory that `names` lead to from the root of the layer.
    pub(crate) fn directory(&self, names: &[OsString]) -> io::Result<OwnedFd> {
        host::walk(self.root.as_fd(), names)
    }
}

impl Private {
    /// `None` where it may not be made or written to.
    fn open_if_allowed(place: BorrowedFd<'_>) -> Result<Option<Self>, Errno> {
        match Self::open(place) {
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Ok(None),
            other => other.map(Some),
        }
    }

    fn open(root: BorrowedFd<'_>) -> Result<Self, Errno> {
        let directory = made(root, OsStr::new(PRIVATE_NAME))?;
        let work = made(directory.as_fd(), OsStr::new("work"))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let lock = fs::openat(&directory, "lock", flags, Mode::from_raw_mode(0o644))?;
        Ok(Self { directory, work, lock: File::from(lock) })
    }
}

fn open_path(directory: &Path) -> Result<OwnedFd, Errno> {
    fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn made(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    match fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let directory =
        host::open_directory(parent, name).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    fs::accessat(&directory, ".", fs::Access::WRITE_OK | fs::Access::EXEC_OK, AtFlags::EACCESS)?;
    Ok(directory)
}

fn has_note(place: BorrowedFd<'_>, name: &str) -> bool {
    let found = host::open_directory(place, OsStr::new(PRIVATE_NAME))
        .and_then(|private| host::stat_at(private.as_fd(), OsStr::new(name)));
    matches!(found, Ok(Some(_)))
}

#[cfg(test)]
mod tests;
