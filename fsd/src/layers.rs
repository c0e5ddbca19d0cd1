//! What is put over an image besides a layer of its own: directories, squashfs and ext3 images, and the overlay partitions
//! of SIF images.
//!
//! ```text
//! directory   upper/ and work/     takes writes, or is read: then without upper/ all of it is the layer
//! squashfs                         is read
//! ext3        upper/ and work/     takes writes, or is read, as a directory once it is mounted
//! SIF         its overlay partitions, of either kind
//! ```

use crate::local::LocalFile;
use crate::sys::ext::{self, ExtImage, ExtMount};
use crate::sys::mounts::seen_overlayfs;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use siphon_image::ext::size_bytes as ext_size_bytes;
use siphon_image::open::is_squashfs;
use siphon_image::read_at::{FileAt, ReadAt, Window};
use siphon_image::sif::{self, DataType, FilesystemType, PartitionType, Sif};
use siphon_image::squashfs::reader::{self, Options, Squashfs};
use siphon_overlay::error::Error as OverlayError;
use siphon_overlay::stack::Stack;
use siphon_overlay::upper::Upper;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `EROFS`, as a layer says that has no place to work in.
const EROFS: i32 = rustix::io::Errno::ROFS.raw_os_error();
/// Bytes of a file that are looked at to see what it is.
const HEAD_BYTES: u64 = 2048;

/// Something cannot be a layer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path leads nowhere, or not to something readable.
    #[error("failed to open overlay image {path}")]
    Path {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// None of the kinds there are.
    #[error(
        "failed to open overlay image {path}: image format not recognized; an overlay is a directory, a squashfs or ext3 \
         image, or a SIF image with an overlay partition"
    )]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// A SIF image that has nothing to lay over another.
    #[error("no overlay partition found in {path}; add one with: siphon overlay create {path}")]
    NoPartition {
        /// The file.
        path: PathBuf,
    },
    /// A SIF image that cannot be read.
    #[error("failed to open overlay image {path}")]
    Sif {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: sif::Error,
    },
    /// A squashfs that cannot be read.
    #[error("failed to open overlay image {path}")]
    Squashfs {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: reader::Error,
    },
    /// An ext3 file system that is cut off: writing to it would write to what comes after it.
    #[error("the ext3 file system in {path} is damaged: it takes {size} bytes, and has {room}")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What its superblock says.
        size: u64,
        /// What there is.
        room: u64,
    },
    /// An ext3 file system that cannot be mounted.
    #[error(transparent)]
    Ext(#[from] ext::Error),
    /// An ext3 image whose root directory belongs to others.
    #[error("the root directory in {path} belongs to a user or group other than yours; write to it with --fakeroot")]
    OthersRoot {
        /// The file.
        path: PathBuf,
    },
    /// The layer itself.
    #[error("cannot use the layer {path}")]
    Layer {
        /// Its directory or file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: OverlayError,
    },
}

/// A layer to put on an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    path: PathBuf,
    /// Lowest first.
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Directory,
    Squashfs { offset_bytes: u64, size_bytes: u64 },
    Ext { offset_bytes: u64, size_bytes: u64 },
}

/// What a stack of layers stands on besides their files: to be kept for as long as it is read.
pub type Mounts = Vec<ExtMount>;

impl Overlay {
    /// Finds out what `path` is.
    ///
    /// # Errors
    /// Any [`Error`] but the last two.
    pub fn find(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Path { path: path.into(), source };
        let canonical = path.canonicalize().map_err(failed)?;
        let kind = std::fs::metadata(&canonical).map_err(failed)?;
        if kind.is_dir() {
            return Ok(Self { path: canonical, parts: vec![Part::Directory] });
        }
        if !kind.is_file() {
            return Err(Error::Kind { path: canonical });
        }
        let bytes = FileAt::new(File::open(&canonical).map_err(failed)?).map_err(failed)?;
        let head = head(&bytes, 0).map_err(failed)?;
        if sif::is_sif(&head) {
            let sif = Sif::open(Arc::new(bytes)).map_err(|source| Error::Sif { path: canonical.clone(), source })?;
            return match Self::of_sif(&canonical, &sif)? {
                Some(overlay) => Ok(overlay),
                None => Err(Error::NoPartition { path: canonical }),
            };
        }
        let part = part(&canonical, &bytes, 0, bytes.len()).map_err(failed)?;
        let part = part?.ok_or_else(|| Error::Kind { path: canonical.clone() })?;
        Ok(Self { path: canonical, parts: vec![part] })
    }

    /// The overlay partitions of the image's own root file system, which are in its group; `None` if there are none.
    ///
    /// # Errors
    /// [`Error::Path`] or [`Error::Truncated`].
    pub fn of_sif(path: &Path, sif: &Sif) -> Result<Option<Self>, Error> {
        let Some(primary) = sif.primary_partition() else { return Ok(None) };
        let mut parts = Vec::new();
        for descriptor in sif.descriptors().iter().filter(|descriptor| descriptor.group == primary.group) {
            let is_overlay = descriptor.partition().is_some_and(|partition| {
                let known = matches!(partition.filesystem, FilesystemType::Squashfs | FilesystemType::Ext3);
                partition.kind == PartitionType::Overlay && known
            });
            if descriptor.data_type == DataType::Partition && is_overlay {
                let object = sif.object(descriptor);
                let found = part(path, &object, descriptor.offset_bytes, descriptor.size_bytes);
                parts.extend(found.map_err(|source| Error::Path { path: path.into(), source })??);
            }
        }
        Ok((!parts.is_empty()).then(|| Self { path: path.into(), parts }))
    }

    /// Where it is, links followed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this user may write to it, and it is of a kind that takes writes.
    pub fn is_writable(&self) -> bool {
        let takes_writes = self.parts.iter().any(|part| !matches!(part, Part::Squashfs { .. }));
        takes_writes && accessat(CWD, &self.path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
    }

    /// Puts all of it on `stack`, to be read. `place` is an empty directory to mount on for a moment.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn push(&self, stack: &mut Stack, place: &Path, mounts: &mut Mounts) -> Result<(), Error> {
        self.parts.iter().try_for_each(|part| self.push_part(*part, stack, place, mounts))
    }

    /// Puts all but the topmost of it that takes writes on `stack`, and opens that to be written to, by this process alone.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn push_below(&self, stack: &mut Stack, place: &Path, mounts: &mut Mounts) -> Result<Upper, Error> {
        let writable = self.parts.iter().rposition(|part| !matches!(part, Part::Squashfs { .. }));
        let writable = writable.ok_or_else(|| Error::Kind { path: self.path.clone() })?;
        for (_, part) in self.parts.iter().enumerate().filter(|(index, _)| *index != writable) {
            self.push_part(*part, stack, place, mounts)?;
        }
        let failed = |source| Error::Layer { path: self.path.clone(), source };
        let upper = match self.parts[writable] {
            Part::Ext { offset_bytes, size_bytes } => {
                let image = ExtImage { path: &self.path, offset_bytes, size_bytes, write: true };
                mounts.push(image.mount(place)?);
                Upper::open_overlay(&mounts.last().map_or_else(PathBuf::new, root_of))
            }
            Part::Directory | Part::Squashfs { .. } => Upper::open_overlay(&self.path),
        };
        let upper = upper.map_err(failed)?;
        upper.lock_exclusive_unless(seen_overlayfs).map_err(failed)?;
        Ok(upper)
    }

    /// Mounts the ext3 image that this is and opens its root, to be written to as it is, by this process alone.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn open_as_root(&self, place: &Path, mounts: &mut Mounts) -> Result<Upper, Error> {
        let &[Part::Ext { offset_bytes, size_bytes }] = self.parts.as_slice() else {
            return Err(Error::Kind { path: self.path.clone() });
        };
        let image = ExtImage { path: &self.path, offset_bytes, size_bytes, write: true };
        mounts.push(image.mount(place)?);
        let failed = |source| Error::Layer { path: self.path.clone(), source };
        let upper = Upper::open(&mounts.last().map_or_else(PathBuf::new, root_of)).map_err(failed)?;
        match upper.lock_exclusive_unless(seen_overlayfs) {
            Ok(()) => Ok(upper),
            // The kernel lets nobody write where a user or group of no id in the namespace is the owner.
            Err(error) if error.errno() == EROFS => Err(Error::OthersRoot { path: self.path.clone() }),
            Err(error) => Err(failed(error)),
        }
    }

    fn push_part(&self, part: Part, stack: &mut Stack, place: &Path, mounts: &mut Mounts) -> Result<(), Error> {
        let failed = |source| Error::Layer { path: self.path.clone(), source };
        let directory = match part {
            Part::Squashfs { offset_bytes, size_bytes } => {
                return stack.push_tree(Arc::new(self.squashfs(offset_bytes, size_bytes)?)).map_err(failed);
            }
            Part::Directory => self.path.clone(),
            Part::Ext { offset_bytes, size_bytes } => {
                let image = ExtImage { path: &self.path, offset_bytes, size_bytes, write: false };
                mounts.push(image.mount(place)?);
                mounts.last().map_or_else(PathBuf::new, root_of)
            }
        };
        let upper = Upper::open_overlay_read_only(&directory).map_err(failed)?;
        stack.push_directory(upper).map_err(failed)
    }

    fn squashfs(&self, offset_bytes: u64, size_bytes: u64) -> Result<Squashfs, Error> {
        let failed = |source| Error::Path { path: self.path.clone(), source };
        let bytes: LocalFile = LocalFile::open(&self.path).map_err(failed)?;
        bytes.tell_by_superblock_at(offset_bytes).map_err(failed)?;
        let window = Window::new(Arc::new(bytes), offset_bytes, size_bytes)
            .ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
        Squashfs::open_with(Arc::new(window), Options::default())
            .map_err(|source| Error::Squashfs { path: self.path.clone(), source })
    }

    /// Whether nobody is expected to change it while it is read.
    pub fn is_stable(&self) -> bool {
        !self.parts.contains(&Part::Directory)
    }
}

fn root_of(mount: &ExtMount) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", mount.root.as_raw_fd()))
}

fn head(bytes: &dyn ReadAt, start: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(bytes.len().saturating_sub(start).min(HEAD_BYTES)).expect("at most 2048");
    let mut head = vec![0; len];
    bytes.read_exact_at(&mut head, start)?;
    Ok(head)
}

/// What `bytes`, the part of the file from `offset_bytes` on, are.
fn part(
    path: &Path,
    bytes: &dyn ReadAt,
    offset_bytes: u64,
    size_bytes: u64,
) -> io::Result<Result<Option<Part>, Error>> {
    let head = head(bytes, 0)?;
    Ok(match ext_size_bytes(&head) {
        _ if is_squashfs(&head) => Ok(Some(Part::Squashfs { offset_bytes, size_bytes })),
        Some(size) if size > size_bytes => Err(Error::Truncated { path: path.into(), size, room: size_bytes }),
        Some(_) => Ok(Some(Part::Ext { offset_bytes, size_bytes })),
        None => Ok(None),
    })
}
