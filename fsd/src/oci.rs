//! OCI images in registries and layouts, read where they are: manifest, layers, an index of each, one merged tree.
//!
//! ```text
//! name -> manifest -> configuration, layers                               kept, for a start without the registry
//! layer -> its own table of contents | an index that was made before      (annotations; kept by the layer's digest)
//!        | an index that the registry has | one that is made now          soci; made, in one pass over the layer
//! layers and the files that every image has -> LayeredTree                image::oci::lazy
//! ```
//!
//! All that an index is taken from is bound to the manifest by digests, but for indexes that are only attached to it. Those
//! are not used for an image that was named by its digest.
//!
//! Bytes of layers come by way of [`crate::blob`], so that they are fetched once for all images that have the layer, and a
//! layer that an index is made of is in the cache afterwards.

mod checked;
mod kept;
mod layer;
mod layout;
mod made;
mod pinned;
mod place;
mod publish;
mod soci;

use crate::blob::{Blob, BlobError};
use crate::cache::Named;
use crate::prefetch::Prefetch;
use crate::source::SourceError;
use crate::storage::Storage;
use layer::Indexed;
use parking_lot::Mutex;
use place::Place;
use siphon_image::oci::config::run_config;
use siphon_image::oci::lazy::{self, Decoded, LayeredTree, Merge};
use siphon_image::oci::own::{self, Origin};
use siphon_image::oci::select::{self, ImageFacts, Wanted, read_found};
use siphon_image::oci::{Descriptor, Digest};
use siphon_image::reference::Repository;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use kept::remove_kept;
pub use layout::open_layout;
pub use pinned::{PinnedImage, pin, pinned, unpin};
pub use publish::{Indexes, Published};

/// Layers whose tables of contents are read at the same time: each is two or three round trips.
const OPENED_AT_ONCE: usize = 8;
/// Layers of which an index is made at the same time. Each takes a processor, and some 40 MB.
const MADE_AT_ONCE: usize = 3;

/// An image that is read where it is.
#[derive(Debug)]
pub struct LayeredImage {
    /// Its files.
    pub tree: Arc<LayeredTree>,
    /// How to run it: JSON.
    pub run_config: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The layers, if they are a registry's.
    pub layers: Option<Arc<Prefetch>>,
    /// What is asked of each.
    pub storage: Vec<Arc<Storage>>,
    /// What runs on other machines touched of the layers, if it is known: a trace of [`Prefetch`].
    pub trace: Vec<u8>,
}

/// An image cannot be read where it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry.
    #[error(transparent)]
    Source(#[from] Arc<SourceError>),
    /// The bytes of a layer, or the cache directory.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// There is no layout.
    #[error(transparent)]
    Layout(std::io::Error),
    /// There is no such image in it.
    #[error(transparent)]
    Select(#[from] select::Error),
    /// Its configuration is none.
    #[error("the configuration of the image is no JSON")]
    Config(#[from] serde_json::Error),
    /// A layer.
    #[error("cannot read the layer {digest}")]
    Layer {
        /// Its digest.
        digest: String,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
    /// What belongs to it beside its layers cannot be kept.
    #[error("cannot keep what belongs to the image in the cache directory")]
    Unkept(#[source] std::io::Error),
    /// The layers together.
    #[error("cannot merge the layers")]
    Merge(#[source] lazy::Error),
}

/// What is wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It cannot be fetched.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// It contradicts its format.
    #[error(transparent)]
    Format(#[from] lazy::Error),
    /// It cannot be read, or what is made of it not be written.
    #[error("cannot make an index of it")]
    Io(#[from] std::io::Error),
    /// It is another one.
    #[error("it has the digest {found}: it was damaged or replaced")]
    Digest {
        /// The digest of what came.
        found: String,
    },
    /// A digest that nothing can be held against.
    #[error("its digest {0} is of a kind that is not known")]
    Algorithm(String),
    /// A kind of layer that is no archive.
    #[error("layers of the type {0} cannot be read")]
    MediaType(String),
}

/// Opens the image that `repository` names for this machine. Blocks until there is an index of each layer, which takes as
/// long as fetching those that have none yet. `cache_bytes` bounds what is kept decoded.
///
/// # Errors
/// Any [`Error`].
pub fn open(repository: &Repository, arch: &str, cache_dir: &Path, cache_bytes: u64) -> Result<LayeredImage, Error> {
    let place = Arc::new(Place::new(repository, cache_dir)?);
    let facts = find(&place, arch)?;
    let decoded = Decoded::new(cache_bytes);
    let blobs: Vec<Arc<Blob>> = facts.layers.iter().map(|layer| blob(&place, layer)).collect::<Result<_, _>>()?;
    let (indexed, trace) = index(&place, &facts, &blobs)?;
    let layers = Prefetch::new(blobs);
    let storage: Vec<_> = layers.objects().map(|object| Arc::new(Storage::new(Arc::new(object)))).collect();
    let origin = Origin { bootstrap: "docker".to_owned(), from: repository.to_string() };
    let image = merged(&facts, indexed, storage, &origin, arch, &decoded)?;
    Ok(LayeredImage { layers: Some(layers), trace, ..image })
}

/// The layers of an image, which lie in `storage`, and the files that every image has, as one tree.
fn merged(
    facts: &ImageFacts,
    indexed: Vec<Indexed>,
    storage: Vec<Arc<Storage>>,
    origin: &Origin,
    arch: &str,
    decoded: &Arc<Decoded>,
) -> Result<LayeredImage, Error> {
    let mut merge = Merge::new(decoded.clone());
    for ((layer, indexed), storage) in facts.layers.iter().zip(indexed).zip(&storage) {
        let failed = |source: LayerError| Error::Layer { digest: layer.digest().to_string(), source };
        let source = indexed.form.read(storage.clone(), decoded).map_err(failed)?;
        merge.add(indexed.entries, source).map_err(|error| failed(error.into()))?;
    }
    let seconds = facts.config.created_seconds();
    let own = own::files(&facts.config, origin, arch, seconds);
    merge.add_own(&own, seconds.into()).map_err(Error::Merge)?;
    Ok(LayeredImage {
        tree: Arc::new(merge.finish().map_err(Error::Merge)?),
        run_config: run_config(&facts.config_json)?,
        digest: facts.digest.to_string(),
        layers: None,
        storage,
        trace: Vec::new(),
    })
}

/// Makes an index of a layer of a registry. All of it is in the cache then, and known to be what it should be.
fn make(place: &Place, layer: &Descriptor, blob: &Arc<Blob>) -> Result<Indexed, LayerError> {
    made::make(place.kept(), layer, blob.clone()).inspect(|_| blob.set_checked())
}

fn find(place: &Arc<Place>, arch: &str) -> Result<ImageFacts, Error> {
    let found = place.manifest()?;
    let digest = Digest::from_str(&found.digest).map_err(|_| select::Error::MediaType(found.digest.clone()))?;
    let wanted = Wanted::new(arch, None);
    Ok(read_found(place.as_ref(), digest, &found.media_type, found.bytes, &wanted)?)
}

/// A blob of the registry, which is asked once something of it is missing.
fn blob(place: &Arc<Place>, descriptor: &Descriptor) -> Result<Arc<Blob>, BlobError> {
    let name = format!("docker://{}@{}", place.name(), descriptor.digest());
    let known = Named::of_digest(descriptor.digest().as_ref(), &name, descriptor.size());
    let (asked, descriptor) = (place.clone(), descriptor.clone());
    let open = move || asked.served()?.blob(&descriptor, &name);
    Ok(Arc::new(Blob::apart(known, open, place.cache_dir())?))
}

/// An index of each layer, and the trace that comes with those that the registry has.
fn index(place: &Arc<Place>, facts: &ImageFacts, blobs: &[Arc<Blob>]) -> Result<(Vec<Indexed>, Vec<u8>), Error> {
    let failed = |number: usize, source| Error::Layer { digest: facts.layers[number].digest().to_string(), source };
    let mut found: Vec<Option<Indexed>> = at_once(OPENED_AT_ONCE, blobs.len(), |number| {
        layer::open(place.kept(), &facts.layers[number], blobs[number].clone()).map_err(|error| failed(number, error))
    })?;
    let missing = |found: &[Option<Indexed>]| -> Vec<usize> {
        found.iter().enumerate().filter(|(_, found)| found.is_none()).map(|(number, _)| number).collect()
    };
    let wanted = missing(&found);
    let mut trace = Vec::new();
    if !wanted.is_empty() {
        let attached = soci::find(place, facts);
        let opened = at_once(OPENED_AT_ONCE, wanted.len(), |at| {
            let layer = &facts.layers[wanted[at]];
            Ok::<_, Error>(attached.open(place, layer))
        })?;
        trace = attached.trace.and_then(|trace| soci::read_trace(place, &trace)).unwrap_or_default();
        wanted.iter().zip(opened).for_each(|(number, opened)| found[*number] = opened);
    }
    let wanted = missing(&found);
    let made = at_once(MADE_AT_ONCE, wanted.len(), |at| {
        let number = wanted[at];
        make(place, &facts.layers[number], &blobs[number]).map_err(|error| failed(number, error))
    })?;
    wanted.iter().zip(made).for_each(|(number, made)| found[*number] = Some(made));
    Ok((found.into_iter().flatten().collect(), trace))
}

/// Does `work` for the numbers below `count`, some at the same time. The first error ends it.
fn at_once<T: Send, E: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<T>>> = Mutex::new((0..count).map(|_| None).collect());
    let run = || -> Result<(), E> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            let made = work(number).inspect_err(|_| next.store(count, Ordering::Relaxed))?;
            done.lock()[number] = Some(made);
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(count)).map(|_| scope.spawn(run)).collect();
        let own = run();
        others.into_iter().fold(own, |result, thread| match thread.join() {
            Ok(other) => result.and(other),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(done.into_inner().into_iter().flatten().collect())
}
