//! A repository of a registry, which is asked once something is missing here.

use super::kept::Kept;
use crate::cache::Cache;
use crate::source::{Patience, Served, SourceError};
use crate::{blob::BlobError, oci::Error};
use parking_lot::Mutex;
use siphon_image::oci::Descriptor;
use siphon_image::oci::blobs::Blobs;
use siphon_image::oci::config::MAX_CONFIG_BYTES;
use siphon_image::reference::Repository;
use std::collections::BTreeSet;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where an image's blobs come from.
#[derive(Debug)]
pub(super) struct Place {
    repository: Repository,
    cache_dir: PathBuf,
    kept: Kept,
    /// Digests of what was read of it here.
    used: Mutex<BTreeSet<String>>,
    served: Mutex<Option<Served>>,
}

/// A manifest, or an index of them.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) digest: String,
    pub(super) media_type: String,
    pub(super) bytes: Vec<u8>,
}

impl Place {
    /// # Errors
    /// If the cache directory cannot be used.
    pub(super) fn new(repository: &Repository, cache_dir: &Path) -> Result<Self, BlobError> {
        // What is kept is believed only in a directory that is ours.
        Cache::open(cache_dir)?;
        Ok(Self {
            repository: repository.clone(),
            cache_dir: cache_dir.to_owned(),
            kept: Kept::below(cache_dir),
            used: Mutex::default(),
            served: Mutex::default(),
        })
    }

    /// The repository, without tag and digest.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.repository.registry(), self.repository.path())
    }

    pub(super) fn cache_dir(&self) -> &Path {
        &self.cache_dir
    }

    pub(super) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// What was read of it so far beside layers, as files of [`Kept`].
    pub(super) fn used(&self) -> BTreeSet<String> {
        self.used.lock().iter().filter_map(|digest| Kept::blob_file(digest)).collect()
    }

    /// Whether it is named by what it is, and not by what it is called.
    pub(super) fn has_digest(&self) -> bool {
        self.repository.digest().is_some()
    }

    /// The repository at its registry.
    ///
    /// # Errors
    /// If that cannot be reached.
    pub(super) fn served(&self) -> Result<Served, SourceError> {
        // Held while it is asked: the others that miss something wait for the same answer.
        let mut served = self.served.lock();
        if let Some(served) = &*served {
            return Ok(served.clone());
        }
        let (found, _) = Served::find(&self.repository)?;
        Ok(served.insert(found).clone())
    }

    /// What the name stands for: asked of the registry, or what it was when that cannot be reached. What a digest stands for
    /// never changes, nor does what is pinned.
    ///
    /// # Errors
    /// If the registry does not have it.
    pub(super) fn manifest(&self) -> Result<Found, Error> {
        let name = self.repository.to_string();
        let pinned = self.kept.pinned(&name).and_then(|pinned| pinned.found(&self.kept));
        if let Some(pinned) = pinned {
            return Ok(self.uses(pinned));
        }
        let known = self.kept.name(&name);
        if self.has_digest()
            && let Some(known) = known
        {
            return Ok(self.uses(known));
        }
        let patience = if known.is_some() { Patience::default().of_known() } else { Patience::default() };
        match (Served::find_with(&self.repository, patience), known) {
            (Ok((served, manifest)), _) => {
                let found = Found { digest: manifest.digest, media_type: manifest.media_type, bytes: manifest.bytes };
                self.kept.keep_name(&name, &found);
                *self.served.lock() = Some(served.with_patience(Patience::default()));
                Ok(self.uses(found))
            }
            (Err(error), Some(known)) if error.is_away() => {
                tracing::warn!("{error}; going on with what is cached of {name}");
                Ok(self.uses(known))
            }
            (Err(error), _) => Err(Arc::new(error).into()),
        }
    }

    fn uses(&self, found: Found) -> Found {
        self.used.lock().insert(found.digest.clone());
        found
    }
}

/// Manifests and configurations, which are kept.
impl Blobs for Place {
    fn open(&self, blob: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        let digest = blob.digest().as_ref();
        self.used.lock().insert(digest.to_owned());
        if let Some(bytes) = self.kept.blob(digest) {
            return Ok(Box::new(Cursor::new(bytes)));
        }
        let opened = self.served().map_err(io::Error::other)?.open(blob)?;
        if blob.size() > MAX_CONFIG_BYTES as u64 {
            return Ok(opened);
        }
        let mut bytes = Vec::new();
        opened.take(blob.size() + 1).read_to_end(&mut bytes)?;
        self.kept.keep_blob(digest, &bytes);
        Ok(Box::new(Cursor::new(bytes)))
    }
}
