//! Where the blobs of an OCI image come from: a layout on disk, an archive, a registry.

use super::Descriptor;
use std::fmt::Debug;
use std::io::{self, Read};

/// The blobs of one image, each named by its descriptor.
pub trait Blobs: Debug + Send + Sync {
    /// Streams the bytes of `blob` from the first on. They are as stored: neither decompressed nor held against the digest.
    ///
    /// # Errors
    /// If there is no such blob, or it cannot be reached; the error's source says which and why. Reading from the stream
    /// fails in the same way.
    fn open(&self, blob: &Descriptor) -> io::Result<Box<dyn Read + Send>>;
}
