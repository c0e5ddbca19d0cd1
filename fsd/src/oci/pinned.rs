//! OCI images that are to stay: all layers and an index of each on this disk, and a record of what that takes.
//!
//! The record also says which image the name means: as long as there is one, no registry is asked for it.

use super::kept::Kept;
use super::place::{Found, Place};
use super::{Error, LayerError, MADE_AT_ONCE, at_once, blob, find, layer, make};
use crate::blob::BlobCounters;
use crate::cache::{Cache, CacheError};
use crate::prefetch::fetch_all;
use serde::{Deserialize, Serialize};
use siphon_image::reference::Repository;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An image that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedImage {
    /// What it is named by, without `docker://`.
    pub name: String,
    /// Bytes of its layers.
    pub layer_bytes: u64,
    /// The digest of the manifest, or of the index of manifests, that the name leads to.
    pub(super) digest: String,
    /// What that is.
    pub(super) media_type: String,
    /// Other files that are kept for it, below the directory of [`Kept`].
    pub(super) files: BTreeSet<String>,
    /// The layers, by their keys in the cache.
    layers: BTreeSet<String>,
}

/// Has all of the image that `repository` names on this disk, to stay. `progress` is told how many bytes are there, and of
/// how many. Of one that is pinned what is damaged is fetched again, and its registry is not asked for another version.
///
/// # Errors
/// Any [`Error`]; [`Error::Unkept`] if there is no room for what belongs to it beside its layers.
pub fn pin(
    repository: &Repository,
    arch: &str,
    cache_dir: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<(PinnedImage, BlobCounters), Error> {
    let place = Arc::new(Place::new(repository, cache_dir)?);
    let facts = find(&place, arch)?;
    let found = place.manifest()?;
    let blobs = facts.layers.iter().map(|layer| blob(&place, layer)).collect::<Result<Vec<_>, _>>()?;
    let total = blobs.iter().map(|blob| blob.len_bytes()).sum();
    let done: Vec<AtomicU64> = blobs.iter().map(|_| AtomicU64::new(0)).collect();
    at_once(MADE_AT_ONCE, blobs.len(), |number| {
        let (descriptor, blob) = (&facts.layers[number], &blobs[number]);
        let failed = |source: LayerError| Error::Layer { digest: descriptor.digest().to_string(), source };
        let told = |bytes| {
            done[number].fetch_max(bytes, Ordering::Relaxed);
            progress(done.iter().map(|done| done.load(Ordering::Relaxed)).sum(), total);
        };
        fetch_all(blob, &told).map_err(|error| failed(error.into()))?;
        if layer::open(place.kept(), descriptor, blob.clone()).map_err(failed)?.is_none() {
            make(&place, descriptor, blob).map_err(failed)?;
        }
        Ok::<_, Error>(())
    })?;
    let mut files = place.used();
    files.extend(facts.layers.iter().flat_map(|layer| place.kept().indexes(layer.digest().as_ref())));
    let image = PinnedImage {
        name: repository.to_string(),
        layer_bytes: total,
        digest: found.digest,
        media_type: found.media_type,
        files,
        layers: blobs.iter().map(|blob| blob.identity().to_owned()).collect(),
    };
    for blob in &blobs {
        blob.set_pinned(true)?;
    }
    place.kept().pin(&image).map_err(Error::Unkept)?;
    let fetched = blobs.iter().map(|blob| blob.counters()).reduce(BlobCounters::and);
    Ok((image, fetched.unwrap_or_default()))
}

/// Lets an image go that was pinned; `None` if it was not. What other pinned images have of it stays.
///
/// # Errors
/// If the cache directory cannot be written to.
pub fn unpin(repository: &Repository, cache_dir: &Path) -> Result<Option<PinnedImage>, CacheError> {
    let Some(cache) = Cache::existing(cache_dir)? else { return Ok(None) };
    let kept = Kept::below(cache_dir);
    let Some(image) = kept.pinned(&repository.to_string()) else { return Ok(None) };
    let failed = |source| CacheError::Directory { path: cache_dir.to_owned(), source };
    kept.unpin(&image.name).map_err(failed)?;
    let others = kept.all_pinned();
    for key in image.layers.iter().filter(|key| !others.iter().any(|other| other.layers.contains(*key))) {
        cache.set_pinned(key, false)?;
    }
    Ok(Some(image))
}

/// All images that are pinned.
pub fn pinned(cache_dir: &Path) -> Vec<PinnedImage> {
    Kept::below(cache_dir).all_pinned()
}

impl PinnedImage {
    /// What its name leads to, if that is still here.
    pub(super) fn found(self, kept: &Kept) -> Option<Found> {
        let bytes = kept.blob(&self.digest)?;
        Some(Found { digest: self.digest, media_type: self.media_type, bytes })
    }
}
