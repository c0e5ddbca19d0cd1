//! Indexes of an image's layers, sent to its registry for all other machines, as soci-snapshotter has them.
//!
//! ```text
//! manifest   configuration: a SOCI index; subject: the image's manifest
//! layers     a zTOC for each gzip layer, the same as siphon keeps it, which is shorter, and the trace of what a run touches
//! ```
//!
//! A registry that keeps no list of what refers to an image has it under a tag that is made of the image's digest.

use super::layer::{Form, GZIP};
use super::place::Place;
use super::soci::{INDEX_V1, LAYER_DIGEST, SAVED, SAVED_OF, TRACE, ZTOC};
use super::{Error, LayerError, blob, find, layer, make};
use crate::source::{INDEX_TYPE, MANIFEST_TYPE, Served, SourceError};
use serde::Serialize;
use serde_json::{Value, json};
use siphon_image::digest::sha256;
use siphon_image::oci::Descriptor;
use siphon_image::oci::lazy::{LayerIndex, gzip::GzipIndex, ztoc};
use siphon_image::oci::select::ImageFacts;
use siphon_image::reference::Repository;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// The configuration of an index, which says nothing.
const CONFIG: &[u8] = b"{}";
/// Who has made zTOCs, as they and their manifest say.
const TOOL: &str = concat!("siphon ", env!("CARGO_PKG_VERSION"));

/// The indexes of an image's layers on this machine.
#[derive(Debug)]
pub struct Indexes {
    place: Arc<Place>,
    facts: ImageFacts,
    /// Of the gzip layers, with their descriptors.
    gzip: Vec<(Descriptor, Arc<GzipIndex>, LayerIndex)>,
}

/// The manifest of an index. soci-snapshotter keeps not what it fetched but what it writes again of it, and holds that against
/// the digest. So there are the fields that it knows, in its order, and no others: the index could not be used else.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexManifest<'a> {
    schema_version: u8,
    media_type: &'a str,
    config: Sent,
    layers: Vec<Sent>,
    subject: Sent,
    annotations: Notes,
}

/// A blob, as a manifest has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sent {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: Notes,
}

type Notes = BTreeMap<&'static str, String>;

/// What was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The digest of the manifest that holds it.
    pub digest: String,
    /// Bytes of all that is in it.
    pub bytes: u64,
}

impl Indexes {
    /// Has an index of each layer of an image on this machine: what is missing is made, which takes as long as fetching the
    /// layers. Layers with tables of contents of their own need none. `progress` is told how many bytes of layers are done,
    /// of how many.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn make(
        repository: &Repository,
        arch: &str,
        cache_dir: &Path,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Self, Error> {
        let place = Arc::new(Place::new(repository, cache_dir)?);
        let facts = find(&place, arch)?;
        let (mut gzip, mut done_bytes) = (Vec::new(), 0);
        for descriptor in &facts.layers {
            progress(done_bytes, facts.layer_bytes());
            done_bytes += descriptor.size();
            let failed = |source: LayerError| Error::Layer { digest: descriptor.digest().to_string(), source };
            let blob = blob(&place, descriptor)?;
            let opened = layer::open(place.kept(), descriptor, blob.clone()).map_err(failed)?;
            let indexed = match opened {
                Some(indexed) => indexed,
                None => make(&place, descriptor, &blob).map_err(failed)?,
            };
            if let Form::Gzip(index) = indexed.form {
                gzip.push((descriptor.clone(), index, indexed.entries));
            }
        }
        Ok(Self { place, facts, gzip })
    }

    /// The digest of the image's manifest.
    pub fn image_digest(&self) -> &str {
        self.facts.digest.as_ref()
    }

    /// How many layers of the image there are, and how many of them have an index that can be sent.
    pub fn layers(&self) -> (usize, usize) {
        (self.facts.layers.len(), self.gzip.len())
    }

    /// Sends the indexes, and `trace`, which is what a run touches, in place of those that there are.
    ///
    /// # Errors
    /// [`Error::Source`] if the registry does not take them.
    pub fn push(&self, repository: &Repository, trace: &[u8]) -> Result<Published, Error> {
        let mut layers = Vec::new();
        let served = Served::for_push(repository).map_err(Arc::new)?;
        let name = format!("index of docker://{repository}");
        for (descriptor, index, entries) in &self.gzip {
            let digest = descriptor.digest().to_string();
            let failed = |error: siphon_image::oci::lazy::Error| Error::Layer { digest, source: error.into() };
            let bytes = ztoc::write(index, entries, TOOL).map_err(failed)?;
            let notes = BTreeMap::from([
                (LAYER_DIGEST, descriptor.digest().to_string()),
                ("com.amazon.soci.image-layer-mediaType", descriptor.media_type().to_string()),
                ("com.amazon.soci.span-size", index.span_bytes().to_string()),
            ]);
            layers.push(put(&served, &name, ZTOC, &bytes, notes).map_err(Arc::new)?);
            let digest = descriptor.digest().to_string();
            if let Some(bytes) = self.kept(&digest) {
                let notes = BTreeMap::from([(SAVED_OF, digest)]);
                layers.push(put(&served, &name, SAVED, &bytes, notes).map_err(Arc::new)?);
            }
        }
        if !trace.is_empty() {
            layers.push(put(&served, &name, TRACE, trace, Notes::new()).map_err(Arc::new)?);
        }
        Ok(self.attach(&served, &name, layers).map_err(Arc::new)?)
    }

    /// The index of a layer as it is kept here. Without it others have the zTOC.
    fn kept(&self, layer: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.place.kept().index(layer, GZIP)?.read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    fn attach(&self, served: &Served, name: &str, layers: Vec<Sent>) -> Result<Published, SourceError> {
        let image = self.image_digest();
        let bytes = layers.iter().map(|layer| layer.size).sum();
        let config = put(served, name, INDEX_V1, CONFIG, Notes::new())?;
        let subject = match self.place.kept().blob(image) {
            Some(bytes) => bytes,
            None => served.manifest(image)?.bytes,
        };
        let media_type = serde_json::from_slice::<Value>(&subject).unwrap_or_default();
        let media_type = media_type["mediaType"].as_str().unwrap_or(MANIFEST_TYPE);
        let notes = BTreeMap::from([("com.amazon.soci.build-tool-identifier", TOOL.to_owned())]);
        let subject = Sent {
            media_type: media_type.to_owned(),
            digest: image.to_owned(),
            size: subject.len() as u64,
            annotations: Notes::new(),
        };
        let (schema_version, annotations) = (2, notes.clone());
        let manifest =
            IndexManifest { schema_version, media_type: MANIFEST_TYPE, config, layers, subject, annotations };
        let text = manifest.text();
        let digest = served.put_manifest(&sha256(text.as_bytes()), MANIFEST_TYPE, text.as_bytes())?;
        if !served.lists_referrers(image)? {
            let own = json!({
                "mediaType": MANIFEST_TYPE,
                "artifactType": INDEX_V1,
                "digest": digest,
                "size": text.len(),
                "annotations": notes,
            });
            list(served, image, own)?;
        }
        Ok(Published { digest, bytes })
    }
}

impl IndexManifest<'_> {
    fn text(&self) -> String {
        serde_json::to_string(self).expect("it is of texts and numbers")
    }
}

/// Sends a blob that the registry does not have, and returns its descriptor.
fn put(served: &Served, name: &str, media_type: &str, bytes: &[u8], annotations: Notes) -> Result<Sent, SourceError> {
    let digest = sha256(bytes);
    if !served.has_blob(&digest)? {
        served.upload(name, &mut &*bytes, &mut |_| {})?;
    }
    Ok(Sent { media_type: media_type.to_owned(), digest, size: bytes.len() as u64, annotations })
}

/// Puts `own` first among what refers to the image `image`, under the tag that lists it.
fn list(served: &Served, image: &str, own: Value) -> Result<(), SourceError> {
    let tag = crate::source::referrers_tag(image);
    let listed = match served.manifest(&tag) {
        Ok(manifest) => serde_json::from_slice::<Value>(&manifest.bytes).unwrap_or_default(),
        Err(SourceError::NotFound { .. }) => Value::Null,
        Err(error) => return Err(error),
    };
    let is_replaced = |entry: &Value| entry["artifactType"] == own["artifactType"] || entry["digest"] == own["digest"];
    let others = listed["manifests"].as_array().into_iter().flatten().filter(|entry| !is_replaced(entry)).cloned();
    let manifests: Vec<Value> = std::iter::once(own.clone()).chain(others).collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests});
    served.put_manifest(&tag, INDEX_TYPE, index.to_string().as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_as_soci_snapshotter_writes_it_again() {
        let sent = |media_type: &str, annotations| Sent {
            media_type: media_type.to_owned(),
            digest: "sha256:00".to_owned(),
            size: 7,
            annotations,
        };
        let notes = BTreeMap::from([("b", "2".to_owned()), ("a", "1".to_owned())]);
        let manifest = IndexManifest {
            schema_version: 2,
            media_type: MANIFEST_TYPE,
            config: sent(INDEX_V1, Notes::new()),
            layers: vec![sent(ZTOC, notes.clone())],
            subject: sent(MANIFEST_TYPE, Notes::new()),
            annotations: notes,
        };

        // By the types of OCI's image-spec in Go: fields in their order, `artifactType` left out, names in order.
        let expected = concat!(
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
            r#""config":{"mediaType":"application/vnd.amazon.soci.index.v1+json","digest":"sha256:00","size":7},"#,
            r#""layers":[{"mediaType":"application/octet-stream","digest":"sha256:00","size":7,"#,
            r#""annotations":{"a":"1","b":"2"}}],"#,
            r#""subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:00","size":7},"#,
            r#""annotations":{"a":"1","b":"2"}}"#
        );
        assert_eq!(manifest.text(), expected);
    }
}
