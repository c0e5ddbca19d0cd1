//! Why an operation on the merged view failed.

use rustix::io::Errno;
use siphon_image::tree;
use std::io;

/// A failed operation. [`Error::errno`] is what the caller of the filesystem sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operation is not possible here, or the filesystem below the layer refused it.
    #[error("the layer cannot do this")]
    Upper(#[from] io::Error),
    /// The image below could not be read.
    #[error("cannot read the image below")]
    Lower(#[from] tree::Error),
    /// Another process has the layer open for writing.
    #[error("the layer is in use by {}", .holder.as_deref().unwrap_or("another process"))]
    Locked {
        /// Process and host, as the holder wrote them.
        holder: Option<String>,
    },
    /// `.siphon/base.json` is not what this version writes.
    #[error("the layer's base.json cannot be understood")]
    Base(#[from] serde_json::Error),
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Upper(errno.into())
    }
}

impl Error {
    /// The error number for the kernel: what the upper's filesystem said, or `EIO` for a damaged or unreadable image.
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::Upper(source) => return source.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
            Self::Lower(tree::Error::NotADirectory) => Errno::NOTDIR,
            Self::Lower(tree::Error::NotASymlink | tree::Error::NotAFile) => Errno::INVAL,
            Self::Lower(tree::Error::NoSuchNode(_)) => Errno::STALE,
            Self::Lower(tree::Error::Damaged(_) | tree::Error::Io(_)) | Self::Base(_) => Errno::IO,
            Self::Locked { .. } => Errno::AGAIN,
        };
        errno.raw_os_error()
    }
}
