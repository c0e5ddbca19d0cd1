//! An OCI image layout: a directory with an index and blobs.

use super::blobs::Blobs;
use super::select::MAX_MANIFEST_BYTES;
use super::{Descriptor, Digest, ImageIndex};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The file that names the images of a layout.
pub(super) const INDEX: &str = "index.json";

/// A layout on disk.
#[derive(Debug, Clone)]
pub struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// The layout in `directory`, and its index.
    ///
    /// # Errors
    /// If there is no index, or it cannot be read or parsed.
    pub fn open(directory: &Path) -> io::Result<(Self, ImageIndex)> {
        let path = directory.join(INDEX);
        let index = File::open(&path).and_then(read_index);
        let index = index.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok((Self { directory: directory.to_owned() }, index))
    }

    /// Where the blob with this digest is, if it is there.
    ///
    /// # Errors
    /// If no file can have its name.
    pub fn path(&self, digest: &Digest) -> io::Result<PathBuf> {
        Ok(self.directory.join(blob_path(digest)?))
    }
}

impl Blobs for Layout {
    fn open(&self, blob: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        let path = self.path(blob.digest())?;
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = File::open(&path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a file", path.display())));
        }
        Ok(Box::new(file))
    }
}

/// Parses an index that is not too long to be one.
pub(super) fn read_index(file: impl Read) -> io::Result<ImageIndex> {
    let mut json = Vec::new();
    file.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_end(&mut json)?;
    if json.len() > MAX_MANIFEST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long for an index"));
    }
    Ok(serde_json::from_slice(&json)?)
}

/// Where a blob lies in a layout.
pub(super) fn blob_path(digest: &Digest) -> io::Result<PathBuf> {
    let (algorithm, name) = (digest.algorithm().to_string(), digest.digest());
    // A digest is somebody else's word and becomes part of a path.
    let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !is_plain(&algorithm) || !is_plain(name) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the digest {digest} names no file")));
    }
    Ok(["blobs", &algorithm, name].iter().collect())
}
