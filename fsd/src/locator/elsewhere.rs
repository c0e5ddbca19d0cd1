//! Image files in registries, libraries and on web servers.
//!
//! What a name led to is remembered: an image whose server is away starts with what is cached of it, and one that is pinned
//! without its server being asked.

use super::{Error, Locator, this_arch};
use crate::blob::{Blob, BlobError, FIRST_BYTES};
use crate::cache::{Cache, CacheError, Named};
use crate::oras;
use crate::source::{Patience, Remote, SourceError, hub_image, library_image};
use siphon_image::reference::Reference;
use std::path::Path;
use std::sync::Arc;

/// The image file that `reference` names in a registry, in a library or on a web server, and the digest that its bytes have
/// to have where that is known: who reads only some of them cannot tell. `arch` is for machines of which, as Go names
/// them; this one's if `None`.
///
/// # Errors
/// If there is none, or it is of another kind.
pub fn elsewhere(reference: &Reference, arch: Option<&str>) -> Result<(Remote, Option<String>), Error> {
    elsewhere_with(reference, arch, Patience::default())
}

fn elsewhere_with(
    reference: &Reference,
    arch: Option<&str>,
    patience: Patience,
) -> Result<(Remote, Option<String>), Error> {
    let name = || reference.to_string();
    let failed = |source: oras::Error| Error::Elsewhere { name: name(), source };
    let asked = |source: SourceError| failed(source.into());
    match reference {
        Reference::Oras(repository) => oras::image_with(repository, patience).map_err(failed),
        Reference::Library(library) => {
            let arch = arch.unwrap_or_else(|| this_arch());
            let image = library_image(library, arch, FIRST_BYTES, patience).map_err(asked)?;
            Ok((image.remote, image.digest))
        }
        Reference::Docker(_) => Err(Error::Unmade { name: name() }),
        Reference::Shub(image) => Ok((hub_image(image, FIRST_BYTES, patience).map_err(asked)?, None)),
        Reference::Web(url) => {
            let remote = Remote::open_with(url, FIRST_BYTES, patience).map_err(Arc::new);
            Ok((remote.map_err(|source| Error::Url { url: url.clone(), source: source.into() })?, None))
        }
    }
}

/// Opens the image file that `locator` names on a server; `None` for what is no such file: local images, and layers in a
/// registry.
///
/// # Errors
/// If there is none, or its server cannot be reached and nothing is known of it.
pub fn open_blob(locator: &Locator, cache_dir: &Path) -> Result<Option<Blob>, Error> {
    match locator {
        Locator::Url(url) => {
            let opened = Blob::open(url, cache_dir);
            opened.map(Some).map_err(|source| Error::Url { url: url.clone(), source })
        }
        Locator::Elsewhere(Reference::Docker(_)) => Ok(None),
        Locator::Elsewhere(reference) => open_elsewhere(reference, cache_dir).map(Some),
        Locator::File(_) | Locator::Directory(_) | Locator::Sandbox(_) | Locator::Layout(..) => Ok(None),
    }
}

/// What the image file that `locator` names was when its server was last asked, if it is cached.
pub fn known(locator: &Locator, cache: &Cache) -> Option<Named> {
    match locator {
        Locator::Url(url) => cache.named(url),
        Locator::Elsewhere(reference) => cache.named(&address(reference)),
        Locator::File(_) | Locator::Directory(_) | Locator::Sandbox(_) | Locator::Layout(..) => None,
    }
}

fn open_elsewhere(reference: &Reference, cache_dir: &Path) -> Result<Blob, Error> {
    let name = reference.to_string();
    let failed = |source: BlobError| Error::Url { url: name.clone(), source };
    let unusable = |source: CacheError| failed(source.into());
    let cache = Cache::open(cache_dir).map_err(unusable)?;
    let known = cache.named(&address(reference));
    let apart = |known: Named| {
        let reference = reference.clone();
        let open = move || elsewhere(&reference, None).map(|(remote, _)| remote).map_err(Error::into_source);
        Blob::apart(known, open, cache_dir).map_err(failed)
    };
    let known = match known {
        Some(known) if cache.is_pinned(&known.key) => return apart(known),
        known => known,
    };
    let patience = if known.is_some() { Patience::default().of_known() } else { Patience::default() };
    match (elsewhere_with(reference, None, patience), known) {
        (Ok((remote, _)), _) => {
            let blob = Blob::over(remote.with_patience(Patience::default()), cache_dir).map_err(failed)?;
            if let Err(error) = cache.remember(&address(reference), blob.named()) {
                tracing::debug!(%error, "cannot remember what a name leads to");
            }
            Ok(blob)
        }
        (Err(error), Some(known)) if error.is_away() => {
            tracing::warn!("{error}; going on with what is cached of it");
            apart(known)
        }
        (Err(error), _) => Err(error),
    }
}

/// What the cache knows `reference` by: a library has another file for another kind of machine.
fn address(reference: &Reference) -> String {
    format!("{reference} for {}", this_arch())
}

impl Error {
    /// Whether the server did not say anything about the image.
    fn is_away(&self) -> bool {
        match self {
            Self::Elsewhere { source: oras::Error::Source(source), .. } => source.is_away(),
            Self::Url { source: BlobError::Source(source), .. } => source.is_away(),
            _ => false,
        }
    }

    /// For who has opened the image before, and asks its server again.
    fn into_source(self) -> SourceError {
        let changed = |name, detail| SourceError::Changed { name, detail };
        match self {
            Self::Elsewhere { source: oras::Error::Source(source), .. } => source,
            Self::Elsewhere { name, .. } => changed(name, "there is no image file any more"),
            other => changed(other.to_string(), "it cannot be opened any more"),
        }
    }
}
