//! Why an operation on the merged view failed.

use siphon_image::tree;
use std::io;

/// A failed operation. [`Error::errno`] is what the caller of the filesystem sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operation is refused, or the filesystem below the layer refused it.
    #[error("{what}")]
    Upper {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The image below could not be read.
    #[error("cannot read the image below")]
    Lower(#[from] tree::Error),
}

impl Error {
    /// The error number for the kernel: what the upper's filesystem said, or `EIO` for a damaged or unreadable image.
    pub fn errno(&self) -> i32 {
        unimplemented!()
    }
}
