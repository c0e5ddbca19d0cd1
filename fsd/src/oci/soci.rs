//! Indexes of layers that the registry has, as soci-snapshotter makes them: a manifest with a zTOC for each large layer.
//!
//! An image that was converted names its index in an annotation of its manifest (v2). Else it is attached to the image as a
//! referrer (v1), which whoever may push there can change: so an image that was named by its digest is not read by it.

use super::layer::{Form, Indexed};
use super::place::{Found, Place};
use crate::prefetch::MAX_STORED_BYTES;
use siphon_image::oci::lazy::ztoc::{self, Compression};
use siphon_image::oci::select::{ImageFacts, MAX_MANIFEST_BYTES, read_blob};
use siphon_image::oci::{Descriptor, ImageManifest};
use siphon_image::read_at::ReadAt;
use std::collections::BTreeMap;

/// The annotation of an image's manifest that names its index.
const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
/// The annotation of a zTOC that names its layer.
pub(super) const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
/// What an index that is attached to an image is.
pub(super) const INDEX_V1: &str = "application/vnd.amazon.soci.index.v1+json";
/// What a zTOC is.
pub(super) const ZTOC: &str = "application/octet-stream";

/// What a trace is, which `siphon index --push` sends with the zTOCs. Others leave it alone.
pub(super) const TRACE: &str = "application/vnd.siphon.trace.v1";

/// What is attached to an image.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// The zTOCs, by the digests of the layers that they are of.
    pub(super) ztocs: BTreeMap<String, Descriptor>,
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
    let of_layer = |ztoc: &Descriptor| {
        let layer = ztoc.annotations().as_ref()?.get(LAYER_DIGEST)?.clone();
        (ztoc.media_type().to_string() == ZTOC).then(|| (layer, ztoc.clone()))
    };
    let layers = manifest.layers();
    let trace = layers.iter().find(|layer| layer.media_type().to_string() == TRACE);
    Attached { ztocs: layers.iter().filter_map(of_layer).collect(), trace: trace.cloned() }
}

/// The trace, if it can be had. Nothing depends on it.
pub(super) fn read_trace(place: &Place, descriptor: &Descriptor) -> Option<Vec<u8>> {
    let read = read_blob(place, descriptor, MAX_STORED_BYTES);
    read.inspect_err(|error| tracing::debug!("cannot read the trace of other machines: {error}")).ok()
}

/// Opens `layer` by its zTOC. `None` if it is of no use; then another index is made.
pub(super) fn open(place: &std::sync::Arc<Place>, layer: &Descriptor, descriptor: &Descriptor) -> Option<Indexed> {
    // What it claims to be long is not asked for: reading it takes as much memory.
    if descriptor.size() > ztoc::max_bytes(layer.size()) {
        let (bytes, layer_bytes) = (descriptor.size(), layer.size());
        tracing::warn!("the zTOC {} is not read: {bytes} bytes for a layer of {layer_bytes}", descriptor.digest());
        return None;
    }
    let opened = super::blob(place, descriptor).map_err(super::LayerError::from).and_then(|blob| {
        blob.will_read(0..blob.len());
        Ok(ztoc::open(blob)?)
    });
    let problem = match opened {
        Ok(ztoc) if ztoc.stored_bytes != layer.size() => "it is of a layer of another length".to_owned(),
        Ok(ztoc) => {
            let form = match ztoc.compression {
                Compression::Gzip(index) => Form::Gzip(index),
                Compression::None => Form::Tar,
            };
            return Some(Indexed { entries: ztoc.layer, form });
        }
        Err(error) => error.to_string(),
    };
    tracing::warn!("the zTOC {} of the layer {} is of no use: {problem}", descriptor.digest(), layer.digest());
    None
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
