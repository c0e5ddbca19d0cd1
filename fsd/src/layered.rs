//! OCI images sent to registries: layers that the registry has, takes over or is given from elsewhere, and one that is made on
//! the way.
//!
//! A layer is sent while it is made, and its digest is known when it is whole. So a short one is held back until then, and not
//! sent at all if the registry has it; of a long one nothing is held but what is on its way.

use crate::source::{Chunked, MANIFEST_TYPE, Served, SourceError};
use siphon_image::digest::sha256;
use siphon_image::oci::base::Changed;
use siphon_image::oci::own::Own;
use siphon_image::oci::pack::{self, compressed};
use siphon_image::oci::{Descriptor, Digest};
use siphon_image::reference::Repository;
use siphon_image::tree::Tree;
use std::io;
use std::num::NonZeroUsize;

/// What its configuration and a layer are.
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Docker's names for layers, as they begin.
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.";
/// A layer that is no longer is held back until its digest is known.
const MAX_HELD_BYTES: usize = 64 << 20;
/// What is sent at once: registries over object stores take no less than 5 MiB.
const CHUNK_BYTES: usize = 16 << 20;

/// An image cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A registry, or the way there.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The layer cannot be made.
    #[error(transparent)]
    Pack(#[from] pack::Error),
    /// The stream between the two broke, which another error explains.
    #[error("cannot make the layer")]
    Stream(#[from] io::Error),
    /// A registry took a blob under a digest that is none.
    #[error("{0:?} is no digest")]
    Digest(String),
}

impl Error {
    /// Whether what was asked for is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Source(SourceError::NotFound { .. } | SourceError::Login { .. }))
    }
}

/// How a layer came to be where it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// It was there.
    WasThere,
    /// From another repository of the registry.
    TakenOver,
    /// Over the network.
    Sent,
}

/// A layer of an image that is being sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What the manifest says of it.
    pub descriptor: Descriptor,
    /// The digest of its tar stream.
    pub diff_id: String,
    /// How it came there.
    pub came: Came,
}

/// What a layer is made of: see [`pack::write`].
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// The tree.
    pub tree: &'a dyn Tree,
    /// What of it, if not all.
    pub changed: Option<&'a Changed>,
    /// Files beside those of the tree.
    pub own: &'a [Own],
    /// Their time, in seconds since 1970.
    pub own_seconds: i64,
}

/// A repository that an image is sent to.
#[derive(Debug)]
pub struct Target {
    served: Served,
    registry: String,
    name: String,
}

impl Target {
    /// Finds the repository.
    ///
    /// # Errors
    /// If its registry cannot be reached.
    pub fn open(repository: &Repository) -> Result<Self, Error> {
        let (registry, name) = (repository.registry().to_owned(), format!("docker://{repository}"));
        Ok(Self { served: Served::for_push(repository)?, registry, name })
    }

    /// Sees to it that the repository has the layers of the image `base`, which must still be where it was.
    ///
    /// # Errors
    /// [`Error::is_missing`] if it is not, or one of its layers; others if these cannot be brought over.
    pub fn provide(&self, base: &Repository, layers: &[Descriptor]) -> Result<Vec<Came>, Error> {
        let (from, _manifest) = Served::find(base)?;
        layers.iter().map(|layer| self.provide_layer(&from, base, layer)).collect()
    }

    fn provide_layer(&self, from: &Served, base: &Repository, layer: &Descriptor) -> Result<Came, Error> {
        let digest = layer.digest().to_string();
        if self.served.has_blob(&digest)? {
            return Ok(Came::WasThere);
        }
        if base.registry() == self.registry && self.served.mount_blob(&digest, base.path())? {
            return Ok(Came::TakenOver);
        }
        let name = format!("{}@{digest}", self.served.name());
        let sent = self.served.upload(&name, &mut from.stream(layer)?, &mut |_| {})?;
        match sent.digest == digest {
            true => Ok(Came::Sent),
            false => Err(SourceError::Digest { name, expected: digest, found: sent.digest }.into()),
        }
    }

    /// Makes a layer with `threads` threads that compress, and sends it unless the registry has it. `progress` is told how many
    /// bytes were made.
    ///
    /// # Errors
    /// If it cannot be made or sent. The registry then has no such layer.
    pub fn send_layer(
        &self,
        content: Content<'_>,
        threads: NonZeroUsize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Layer, Error> {
        let Content { tree, changed, own, own_seconds } = content;
        let mut sending = Sending { target: self, held: Vec::new(), upload: None, made_bytes: 0 };
        let fill = |out: &mut dyn io::Write| Ok::<_, Error>(pack::write(tree, changed, own, own_seconds, out)?);
        let packed = compressed(threads, fill, |member| {
            sending.take(member)?;
            progress(sending.made_bytes);
            Ok(())
        })?;
        let (digest, len_bytes, came) = sending.finish()?;
        let digest: Digest = digest.parse().map_err(|_| Error::Digest(digest.clone()))?;
        Ok(Layer { descriptor: Descriptor::new(LAYER.into(), len_bytes, digest), diff_id: packed.diff_id, came })
    }

    /// Names an image of these layers, the lowest first, `version`, and returns the digest of its manifest.
    ///
    /// # Errors
    /// If the registry does not take it.
    pub fn finish(&self, version: &str, config: &[u8], layers: &[Descriptor]) -> Result<String, Error> {
        let digest = sha256(config);
        if !self.served.has_blob(&digest)? {
            self.served.upload(&self.name, &mut &*config, &mut |_| {})?;
        }
        let layers: Vec<_> = layers.iter().map(described).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": { "mediaType": CONFIG, "digest": digest, "size": config.len() },
            "layers": layers,
        });
        Ok(self.served.put_manifest(version, MANIFEST_TYPE, manifest.to_string().as_bytes())?)
    }
}

/// What an OCI manifest says of a layer, which one of docker's may have named by another type.
fn described(layer: &Descriptor) -> serde_json::Value {
    let media_type = layer.media_type().to_string();
    let media_type = match media_type.strip_prefix(DOCKER_LAYER) {
        Some(kind) if kind.ends_with("gzip") => LAYER,
        Some(kind) if kind.ends_with("zstd") => "application/vnd.oci.image.layer.v1.tar+zstd",
        Some(_) => "application/vnd.oci.image.layer.v1.tar",
        None => &media_type,
    };
    serde_json::json!({ "mediaType": media_type, "digest": layer.digest().to_string(), "size": layer.size() })
}

/// A layer on its way.
struct Sending<'a> {
    target: &'a Target,
    /// What was not sent yet.
    held: Vec<u8>,
    upload: Option<Chunked<'a>>,
    made_bytes: u64,
}

impl Sending<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        self.held.extend_from_slice(bytes);
        self.made_bytes += bytes.len() as u64;
        let limit = if self.upload.is_some() { CHUNK_BYTES } else { MAX_HELD_BYTES };
        if self.held.len() >= limit { self.send() } else { Ok(()) }
    }

    /// Sends all that is held.
    fn send(&mut self) -> Result<(), SourceError> {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => self.upload.insert(self.target.served.begin_upload(&self.target.name)?),
        };
        self.held.chunks(CHUNK_BYTES).try_for_each(|chunk| upload.send(chunk))?;
        self.held.clear();
        Ok(())
    }

    /// The digest, the length, and whether it was there.
    fn finish(mut self) -> Result<(String, u64, Came), SourceError> {
        if self.upload.is_none() {
            let digest = sha256(&self.held);
            if self.target.served.has_blob(&digest)? {
                return Ok((digest, self.made_bytes, Came::WasThere));
            }
        }
        if !self.held.is_empty() {
            self.send()?;
        }
        let upload = self.upload.expect("a layer has an end, which was sent");
        let sent = upload.finish()?;
        Ok((sent.digest, sent.len_bytes, Came::Sent))
    }
}
