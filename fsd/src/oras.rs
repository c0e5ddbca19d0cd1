//! Image files in registries, as singularity keeps them: an artifact whose one layer is the SIF, byte for byte.

use crate::source::{MANIFEST_TYPE, Patience, Remote, Served, SourceError};
use siphon_image::digest::sha256;
use siphon_image::oci::{Descriptor, ImageManifest};
use siphon_image::reference::Repository;
use std::collections::BTreeMap;
use std::io::Read;

/// What the layer is.
pub const SIF_LAYER: &str = "application/vnd.sylabs.sif.layer.v1.sif";
/// What it was called at first, and still may be.
const OLD_SIF_LAYER: &str = "appliciation/vnd.sylabs.sif.layer.tar";
/// What the configuration is, which says nothing.
const SIF_CONFIG: &str = "application/vnd.sylabs.sif.config.v1+json";
const CONFIG: &[u8] = b"{}";
/// The name of a file, in its annotations.
const TITLE: &str = "org.opencontainers.image.title";

/// There is no image file, or it cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry, the library or the way there.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Something else is there.
    #[error("{name} holds no SIF image but {found}; if it is an OCI image, write docker:// in place of oras://")]
    Kind {
        /// The repository.
        name: String,
        /// The media type of what it is.
        found: String,
    },
    /// The manifest is none.
    #[error("the manifest of {name} cannot be understood")]
    Manifest {
        /// The repository.
        name: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// The image file that `repository` names, and the digest of its bytes.
///
/// # Errors
/// If there is none.
pub fn image(repository: &Repository) -> Result<(Remote, Option<String>), Error> {
    image_with(repository, Patience::default())
}

/// The same as [`image`], found within the bounds of `patience`.
///
/// # Errors
/// The same as [`image`].
pub fn image_with(repository: &Repository, patience: Patience) -> Result<(Remote, Option<String>), Error> {
    let (served, manifest) = Served::find_with(repository, patience)?;
    let name = format!("oras://{repository}");
    let layer = layer(&name, &manifest.bytes, &manifest.media_type)?;
    let remote = served.blob(&layer, &name)?;
    Ok((remote, Some(layer.digest().to_string())))
}

fn layer(name: &str, manifest: &[u8], media_type: &str) -> Result<Descriptor, Error> {
    let name = || name.to_owned();
    if media_type.contains("index") || media_type.contains("list") {
        return Err(Error::Kind { name: name(), found: media_type.to_owned() });
    }
    let manifest: ImageManifest =
        serde_json::from_slice(manifest).map_err(|source| Error::Manifest { name: name(), source })?;
    let is_sif = |layer: &&Descriptor| [SIF_LAYER, OLD_SIF_LAYER].contains(&layer.media_type().to_string().as_str());
    if let Some(layer) = manifest.layers().iter().find(is_sif) {
        return Ok(layer.clone());
    }
    let found = manifest.layers().first().unwrap_or_else(|| manifest.config()).media_type().to_string();
    Err(Error::Kind { name: name(), found: found.escape_debug().to_string() })
}

/// An image file to be sent.
#[derive(Debug)]
pub struct Artifact<'a> {
    /// What it is called, without folders.
    pub file_name: &'a str,
    /// The digest of its bytes.
    pub digest: &'a str,
    /// Their number.
    pub len_bytes: u64,
    /// What else the manifest is to say.
    pub annotations: &'a BTreeMap<String, String>,
}

/// Sends an image file, unless the registry has it, under the tag of `repository`. `progress` is told how many bytes are
/// there. Returns the digest of the manifest.
///
/// # Errors
/// If the registry does not take it, or `bytes` cannot be read or are others than the digest says.
pub fn push(
    repository: &Repository,
    artifact: &Artifact<'_>,
    bytes: &mut dyn Read,
    progress: &mut dyn FnMut(u64),
) -> Result<String, Error> {
    let served = Served::for_push(repository)?;
    let name = format!("oras://{repository}");
    if !served.has_blob(artifact.digest)? {
        let sent = served.upload(&name, bytes, progress)?;
        if sent.digest != artifact.digest {
            let (expected, found) = (artifact.digest.to_owned(), sent.digest);
            return Err(SourceError::Digest { name, expected, found }.into());
        }
    }
    let config = sha256(CONFIG);
    if !served.has_blob(&config)? {
        served.upload(&name, &mut &*CONFIG, &mut |_| {})?;
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": SIF_CONFIG, "digest": config, "size": CONFIG.len()},
        "layers": [{
            "mediaType": SIF_LAYER,
            "digest": artifact.digest,
            "size": artifact.len_bytes,
            "annotations": {TITLE: artifact.file_name},
        }],
    });
    let mut manifest = manifest;
    if !artifact.annotations.is_empty() {
        manifest["annotations"] = serde_json::json!(artifact.annotations);
    }
    Ok(served.put_manifest(repository.version(), MANIFEST_TYPE, manifest.to_string().as_bytes())?)
}

/// Gives what `repository` names another tag, and returns its digest.
///
/// # Errors
/// If there is no such thing, or the registry does not take the tag.
pub fn tag(repository: &Repository, tag: &Repository) -> Result<String, Error> {
    let served = Served::for_push(repository)?;
    let manifest = served.manifest(repository.version())?;
    layer(&format!("oras://{repository}"), &manifest.bytes, &manifest.media_type)?;
    Ok(served.put_manifest(tag.version(), &manifest.media_type, &manifest.bytes)?)
}
