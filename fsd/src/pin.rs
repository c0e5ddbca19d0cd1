//! Remote images that are to stay: all of them on this disk, and no server asked from then on.

use crate::blob::BlobCounters;
use crate::cache::{Cache, CacheError};
use crate::locator::{self, Error, Locator, this_arch};
use crate::oci;
use crate::prefetch::fetch_all;
use siphon_image::reference::Reference;
use std::path::Path;

/// The type of images that are in layers, as their names begin.
const DOCKER: &str = "docker://";

/// An image that is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// What it is named by: fit for logs.
    pub name: String,
    /// Its bytes.
    pub len_bytes: u64,
}

/// Has all of a remote image on this disk, to stay. `progress` is told how many bytes are there, and of how many. Says what
/// was fetched; `None` for a local image, which needs no network.
///
/// # Errors
/// If it cannot be fetched, is not what its digest says, or there is no room for it.
pub fn pin(
    image: &Locator,
    cache_dir: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Option<(Pinned, BlobCounters)>, Error> {
    if let Locator::Elsewhere(Reference::Docker(repository)) = image {
        let failed = |source: oci::Error| Error::Oci { name: image.to_string(), source: source.into() };
        let (pinned, fetched) = oci::pin(repository, this_arch(), cache_dir, progress).map_err(failed)?;
        return Ok(Some((of_layers(&pinned), fetched)));
    }
    let Some(blob) = locator::open_blob(image, cache_dir)? else { return Ok(None) };
    let len_bytes = blob.len_bytes();
    let kept = fetch_all(&blob, &|done| progress(done, len_bytes)).and_then(|()| blob.set_pinned(true));
    kept.map_err(|source| Error::Url { url: blob.name().to_owned(), source })?;
    Ok(Some((Pinned { name: blob.name().to_owned(), len_bytes }, blob.counters())))
}

/// Lets an image go that was pinned; `None` if it was not.
///
/// # Errors
/// If that cannot be written down.
pub fn unpin(image: &Locator, cache_dir: &Path) -> Result<Option<Pinned>, CacheError> {
    if let Locator::Elsewhere(Reference::Docker(repository)) = image {
        return Ok(oci::unpin(repository, cache_dir)?.as_ref().map(of_layers));
    }
    let Some(cache) = Cache::existing(cache_dir)? else { return Ok(None) };
    let Some(named) = locator::known(image, &cache).filter(|named| cache.is_pinned(&named.key)) else {
        return Ok(None);
    };
    cache.set_pinned(&named.key, false)?;
    Ok(Some(Pinned { name: named.description.url, len_bytes: named.description.len_bytes }))
}

/// All images that are pinned.
///
/// # Errors
/// If the cache directory cannot be read.
pub fn pinned(cache_dir: &Path) -> Result<Vec<Pinned>, CacheError> {
    let Some(cache) = Cache::existing(cache_dir)? else { return Ok(Vec::new()) };
    let mut all: Vec<_> = oci::pinned(cache_dir).iter().map(of_layers).collect();
    for entry in cache.entries()?.into_iter().filter(|entry| entry.pinned) {
        let (name, len_bytes) = entry
            .description
            .map_or_else(|| ("unknown".to_owned(), entry.stored_bytes), |known| (known.url, known.len_bytes));
        // Layers are listed as the images that they are of.
        if !name.starts_with(DOCKER) {
            all.push(Pinned { name, len_bytes });
        }
    }
    Ok(all)
}

fn of_layers(image: &oci::PinnedImage) -> Pinned {
    Pinned { name: format!("{DOCKER}{}", image.name), len_bytes: image.layer_bytes }
}
