//! Indexes of layers that the registry has, as soci-snapshotter makes them: a manifest with a zTOC for each large layer.
//!
//! An image that was converted names its index in an annotation of its manifest (v2). Else it is attached to the image as a
//! referrer (v1), which whoever may push there can change: so an image that was named by its digest is not read by it.

use super::LayerError;
use super::layer::{Form, Indexed};
use super::place::{Found, Place};
use crate::prefetch::MAX_STORED_BYTES;
use siphon_image::oci::lazy::saved;
use siphon_image::oci::lazy::ztoc::{self, Compression};
use siphon_image::oci::select::{ImageFacts, MAX_MANIFEST_BYTES, read_blob};
use siphon_image::oci::{Descriptor, ImageManifest};
use siphon_image::read_at::ReadAt;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The annotation of an image's manifest that names its index.
const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
/// The annotation of a zTOC that names its layer.
pub(super) const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
/// What an index that is attached to an image is.
pub(super) const INDEX_V1: &str = "application/vnd.amazon.soci.index.v1+json";
/// What a zTOC is.
pub(super) const ZTOC: &str = "application/octet-stream";

/// What an index is that `siphon index --push` sends with each zTOC: the same, but with compressed windows, and so much
/// shorter. Others leave it alone.
pub(super) const SAVED: &str = "application/vnd.siphon.index.v1";
/// The annotation of it that names its layer: another one than zTOCs have, since soci-snapshotter asks for nothing else.
pub(super) const SAVED_OF: &str = "siphon.layer-digest";

/// What a trace is, which is sent with the zTOCs. Others leave it alone.
pub(super) const TRACE: &str = "application/vnd.siphon.trace.v1";

/// What is attached to an image.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// The zTOCs, by the digests of the layers that they are of.
    ztocs: BTreeMap<String, Descriptor>,
    /// Siphon's own indexes, likewise.
    saved: BTreeMap<String, Descriptor>,
    /// What runs touch.
    pub(super) trace: Option<Descriptor>,
}

/// What there is for an image. That there is nothing is no error.
pub(super) fn find(place: &Place, facts: &ImageFacts) -> Attached {
    let manifest = match facts.annotations.get(INDEX_DIGEST) {
        Some(digest) => bound(place, digest),
        None if place.has_digest() => None,
        None => attached(place, facts.digest.as_ref()),
    };
    let Some(manifest) = manifest else { return Attached::default() };
    let indexes = |media_type: &str, note: &str| {
        let of_layer = |index: &Descriptor| {
            let layer = index.annotations().as_ref()?.get(note)?.clone();
            (index.media_type().to_string() == media_type).then(|| (layer, index.clone()))
        };
        manifest.layers().iter().filter_map(of_layer).collect()
    };
    let trace = manifest.layers().iter().find(|layer| layer.media_type().to_string() == TRACE);
    Attached { ztocs: indexes(ZTOC, LAYER_DIGEST), saved: indexes(SAVED, SAVED_OF), trace: trace.cloned() }
}

/// The trace, if it can be had. Nothing depends on it.
pub(super) fn read_trace(place: &Place, descriptor: &Descriptor) -> Option<Vec<u8>> {
    let read = read_blob(place, descriptor, MAX_STORED_BYTES);
    read.inspect_err(|error| tracing::debug!("cannot read the trace of other machines: {error}")).ok()
}

impl Attached {
    /// Opens `layer` by an index of it. `None` if there is none that is of use; then another one is made.
    pub(super) fn open(&self, place: &Arc<Place>, layer: &Descriptor) -> Option<Indexed> {
        let digest = layer.digest().as_ref();
        let saved = self.saved.get(digest).and_then(|index| open(place, layer, index, by_saved));
        saved.or_else(|| self.ztocs.get(digest).and_then(|index| open(place, layer, index, by_ztoc)))
    }
}

/// Reads an index of `layer`, and says how long a layer it is of.
type Read = fn(Arc<dyn ReadAt>) -> Result<(Indexed, u64), LayerError>;

fn open(place: &Arc<Place>, layer: &Descriptor, index: &Descriptor, read: Read) -> Option<Indexed> {
    // What it claims to be long is not asked for: reading it takes as much memory.
    if index.size() > ztoc::max_bytes(layer.size()) {
        let (bytes, layer_bytes) = (index.size(), layer.size());
        tracing::warn!("the index {} is not read: {bytes} bytes for a layer of {layer_bytes}", index.digest());
        return None;
    }
    let opened = super::blob(place, index).map_err(LayerError::from).and_then(|blob| {
        blob.will_read(0..blob.len());
        read(blob)
    });
    let problem = match opened {
        Ok((_, stored_bytes)) if stored_bytes != layer.size() => "it is of a layer of another length".to_owned(),
        Ok((indexed, _)) => return Some(indexed),
        Err(error) => error.to_string(),
    };
    tracing::warn!("the index {} of the layer {} is of no use: {problem}", index.digest(), layer.digest());
    None
}

fn by_saved(bytes: Arc<dyn ReadAt>) -> Result<(Indexed, u64), LayerError> {
    let indexed = saved::open(bytes)?;
    let stored_bytes = indexed.gzip.stored_bytes();
    Ok((Indexed { entries: indexed.layer, form: Form::Gzip(indexed.gzip) }, stored_bytes))
}

fn by_ztoc(bytes: Arc<dyn ReadAt>) -> Result<(Indexed, u64), LayerError> {
    let ztoc = ztoc::open(bytes)?;
    let form = match ztoc.compression {
        Compression::Gzip(index) => Form::Gzip(index),
        Compression::None => Form::Tar,
    };
    Ok((Indexed { entries: ztoc.layer, form }, ztoc.stored_bytes))
}

/// The manifest that the image's own manifest names.
fn bound(place: &Place, digest: &str) -> Option<ImageManifest> {
    let bytes = match place.kept().blob(digest) {
        Some(bytes) => bytes,
        None => {
            let manifest = place.served().and_then(|served| served.manifest(digest));
            let manifest = manifest
                .inspect_err(|error| tracing::warn!("cannot read the index of the image: {error}"))
                .ok()
                .filter(|manifest| manifest.bytes.len() <= MAX_MANIFEST_BYTES)?;
            place.kept().keep_blob(digest, &manifest.bytes);
            manifest.bytes
        }
    };
    serde_json::from_slice(&bytes).ok()
}

/// The manifest that refers to the image. What it was is remembered for when the registry cannot be asked.
fn attached(place: &Place, image: &str) -> Option<ImageManifest> {
    let name = format!("{INDEX_V1} of {}@{image}", place.name());
    let asked = place.served().and_then(|served| {
        let Some(found) = served.referrers(image, INDEX_V1)?.into_iter().next() else { return Ok(None) };
        served.manifest(found.digest().as_ref()).map(Some)
    });
    let found = match asked {
        Ok(Some(manifest)) => {
            let found = Found { digest: manifest.digest, media_type: manifest.media_type, bytes: manifest.bytes };
            place.kept().keep_name(&name, &found);
            found
        }
        Ok(None) => return None,
        Err(error) => {
            tracing::debug!("cannot ask for an index of the image: {error}");
            place.kept().name(&name)?
        }
    };
    serde_json::from_slice(&found.bytes).ok()
}
