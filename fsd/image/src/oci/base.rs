//! The OCI image that an image file was once made from, and what was changed since: what it takes to send the file to a
//! registry as that image and one more layer.
//!
//! It lies in a SIF as an object of its own. Who commits carries it on, and adds what differs from the file below; so the list
//! grows with each commit, whatever became of the files in between. A path in it need not differ from the OCI image any more,
//! and need not be there.

use super::{Descriptor, Digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Name of the SIF object.
pub const OCI_BASE: &str = "oci-base.json";
/// The longest that is read: a few hundred thousand paths. More are sent as a whole image.
pub const MAX_BASE_BYTES: usize = 32 << 20;

/// An OCI image in a registry, and what an image file has in place of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Base {
    /// Where it was fetched from: `HOST/PATH`.
    pub repository: String,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// Its configuration.
    pub config: serde_json::Value,
    /// What may differ.
    pub changed: Changed,
}

impl Base {
    /// Reads what a SIF has; `None` for what is none.
    pub fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// As a SIF has it; `None` if it is too long to be kept.
    pub fn to_json(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(self).ok().filter(|json| json.len() <= MAX_BASE_BYTES)
    }
}

/// Paths at which two trees may differ, relative to their roots. One that ends with `/` stands for all that is below it too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed(BTreeSet<String>);

impl Changed {
    /// Adds a path, and if `is_whole` all that is below it. `false` for a name that is not UTF-8, which cannot be written down.
    #[must_use]
    pub fn add(&mut self, path: &Path, is_whole: bool) -> bool {
        let Some(path) = path.to_str() else { return false };
        let path = path.trim_matches('/');
        if !path.is_empty() && !self.covers(path.as_bytes()) {
            self.0.insert(if is_whole { format!("{path}/") } else { path.to_owned() });
        }
        true
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The paths, without what marks some of them.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|path| Path::new(path.trim_end_matches('/')))
    }

    /// Whether `path` is named, and all that is below it meant.
    pub(super) fn is_whole(&self, path: &[u8]) -> bool {
        std::str::from_utf8(path).is_ok_and(|path| self.0.contains(&format!("{path}/")))
    }

    /// Whether `path` is named itself.
    pub(super) fn names(&self, path: &[u8]) -> bool {
        std::str::from_utf8(path).is_ok_and(|path| self.0.contains(path)) || self.is_whole(path)
    }

    /// Whether something above `path`, or `path` itself, is named with all that is below.
    fn covers(&self, path: &[u8]) -> bool {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        path.ancestors().any(|above| self.is_whole(above.as_os_str().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_whole_directory_is_not_named_again() {
        let mut changed = Changed::default();
        for (path, is_whole) in [("/a", true), ("/a/b/c", false), ("/b", false), ("b/c", true), ("/", false)] {
            assert!(changed.add(Path::new(path), is_whole));
        }

        assert_eq!(changed.paths().collect::<Vec<_>>(), [Path::new("a"), Path::new("b"), Path::new("b/c")]);
        assert!(changed.names(b"a") && changed.is_whole(b"a") && changed.names(b"b") && !changed.is_whole(b"b"));
        assert!(!changed.add(Path::new(std::ffi::OsStr::from_bytes(b"x\xff")), false));
    }
}
