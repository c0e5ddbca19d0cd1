//! The writable directory of a layer.

use crate::error::Error;
use std::path::Path;

/// An open layer directory.
#[derive(Debug)]
pub struct Upper {}

impl Upper {
    /// Opens the layer in `directory`. Working files go to `.siphon/work` inside it, which is made if it is missing
    /// and is never shown.
    ///
    /// # Errors
    /// If the directory cannot be opened or `.siphon` not be made.
    pub fn open(_directory: &Path) -> Result<Self, Error> {
        unimplemented!()
    }
}
