//! Which of the images of an index is meant, and what its manifest and configuration say.

use super::blobs::Blobs;
use super::config::{self, ImageConfig, MAX_CONFIG_BYTES};
use super::layers;
use super::{Descriptor, Digest, ImageIndex, ImageManifest};
use serde::Deserialize;
use std::collections::HashMap;
use std::io::{self, Read};

/// Largest manifest or index that is read: what registries accept.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Indexes within indexes that are followed.
const MAX_NESTED: usize = 4;
/// What an index names its images by.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// The platform that an image is wanted for. The operating system is Linux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Architecture under its OCI name, such as `amd64`.
    pub arch: String,
    /// Variant, such as `v7`; `None` for any.
    pub variant: Option<String>,
}

impl Wanted {
    /// A variant is written with or without its letter; an empty one is any.
    pub fn new(arch: &str, variant: Option<&str>) -> Self {
        let filled = variant.filter(|variant| !variant.is_empty());
        let variant =
            filled.map(|variant| if variant.starts_with('v') { variant.into() } else { format!("v{variant}") });
        Self { arch: arch.to_owned(), variant }
    }
}

/// Why no image could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("the index has no image")]
    Empty,
    /// There is none of this name.
    #[error("there is no image named {name:?}, only {}", known.join(", "))]
    Name {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// There are several.
    #[error("there are {} images, and one has to be named: {}", known.len(), known.join(", "))]
    Ambiguous {
        /// Their names.
        known: Vec<String>,
    },
    /// There is none for the platform.
    #[error("there is no image for linux/{wanted}, only for {}", known.join(", "))]
    Platform {
        /// Architecture and variant asked for.
        wanted: String,
        /// The platforms there are.
        known: Vec<String>,
    },
    /// Indexes that only lead to further ones.
    #[error("the index leads to more than {MAX_NESTED} others in a row")]
    Nested,
    /// It is something else than an image.
    #[error("the type {0} is not an image's")]
    MediaType(String),
    /// A manifest or configuration of an impossible length.
    #[error("{digest} has {bytes} bytes, which is too long for what it should be")]
    TooLong {
        /// The blob.
        digest: String,
        /// Its length.
        bytes: u64,
    },
    /// It is no manifest.
    #[error("{digest} is not a valid manifest or index")]
    Json {
        /// The blob.
        digest: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It is no configuration.
    #[error("the configuration is not usable")]
    Config(#[from] config::Error),
    /// The blob could not be read, or is another one.
    #[error(transparent)]
    Blob(#[from] layers::Error),
}

/// An image: its manifest and configuration, read and held against their digests.
#[derive(Debug, Clone)]
pub struct ImageFacts {
    /// The manifest's digest, which names the image.
    pub digest: Digest,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// Digests of the uncompressed layers.
    pub diff_ids: Vec<Digest>,
    /// The JSON text of the configuration.
    pub config_json: Vec<u8>,
    /// What of the configuration counts for running it.
    pub config: ImageConfig,
    /// What its manifest says of it.
    pub annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct WithRootFs {
    rootfs: RootFs,
}

/// The image of `index` that has the name `name`, if one is given, and is for the platform `wanted`. What is returned may be
/// an index itself.
///
/// # Errors
/// See [`Error`].
pub fn select(index: &ImageIndex, name: Option<&str>, wanted: &Wanted) -> Result<Descriptor, Error> {
    let all: Vec<&Descriptor> = index.manifests().iter().filter(|image| !is_attestation(image)).collect();
    let known = || all.iter().filter_map(|image| name_of(image)).map(str::to_owned).collect::<Vec<_>>();
    let named: Vec<&Descriptor> = match name {
        Some(name) => all.iter().filter(|image| name_of(image) == Some(name)).copied().collect(),
        None => all.clone(),
    };
    if named.is_empty() {
        return Err(match name {
            Some(name) => Error::Name { name: name.to_owned(), known: known() },
            None => Error::Empty,
        });
    }
    // Of an index without names and platforms, the only image is meant, and whether it fits is seen by its configuration.
    if let [only] = named[..]
        && only.platform().is_none()
    {
        return Ok(only.clone());
    }
    let rank = |image: &&Descriptor| rank(image, wanted);
    let best = named.iter().filter_map(|image| Some((rank(image)?, *image))).min_by_key(|(rank, _)| *rank);
    if let Some((_, image)) = best {
        return Ok(image.clone());
    }
    let platforms: Vec<String> = named.iter().filter_map(|image| platform_of(image)).collect();
    if platforms.is_empty() {
        return Err(Error::Ambiguous { known: known() });
    }
    let variant = wanted.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
    Err(Error::Platform { wanted: format!("{}{variant}", wanted.arch), known: platforms })
}

/// How well an image fits, 0 best; `None` if it does not.
fn rank(image: &Descriptor, wanted: &Wanted) -> Option<u8> {
    let platform = image.platform().as_ref()?;
    if platform.os().to_string() != "linux" || platform.architecture().to_string() != wanted.arch {
        return None;
    }
    let variant = platform.variant().as_deref().filter(|variant| !variant.is_empty());
    match (&wanted.variant, variant) {
        (Some(wanted), Some(variant)) => (wanted == variant).then_some(0),
        // 64-bit ARM has the one variant that most do not mention.
        (Some(wanted_variant), None) => (wanted.arch == "arm64" && wanted_variant == "v8").then_some(0),
        (None, None) => Some(0),
        (None, Some(_)) => Some(1),
    }
}

fn name_of(image: &Descriptor) -> Option<&str> {
    image.annotations().as_ref()?.get(REF_NAME).map(String::as_str)
}

fn platform_of(image: &Descriptor) -> Option<String> {
    let platform = image.platform().as_ref()?;
    let variant = platform.variant().as_deref().filter(|variant| !variant.is_empty());
    let variant = variant.map(|variant| format!("/{variant}")).unwrap_or_default();
    Some(format!("{}/{}{variant}", platform.os(), platform.architecture()))
}

/// Whether it tells how an image was made instead of being one.
fn is_attestation(image: &Descriptor) -> bool {
    image.annotations().as_ref().is_some_and(|notes| notes.contains_key("vnd.docker.reference.type"))
}

/// Reads a whole blob of at most `max_bytes`, and holds it against its descriptor.
///
/// # Errors
/// [`Error::TooLong`] or [`Error::Blob`].
pub fn read_blob(blobs: &dyn Blobs, blob: &Descriptor, max_bytes: usize) -> Result<Vec<u8>, Error> {
    let digest = blob.digest();
    if blob.size() > max_bytes as u64 {
        return Err(Error::TooLong { digest: digest.to_string(), bytes: blob.size() });
    }
    let failed = |source: io::Error| layers::Error::Blob { digest: digest.to_string(), source };
    let mut bytes = Vec::new();
    blobs.open(blob).map_err(failed)?.take(blob.size() + 1).read_to_end(&mut bytes).map_err(failed)?;
    let found = bytes.len() as u64;
    if found != blob.size() {
        return Err(layers::Error::Length { digest: digest.to_string(), expected: blob.size(), found }.into());
    }
    let mut hash = layers::hash_like(digest)?;
    hash.update(&bytes);
    layers::check(hash, digest)?;
    Ok(bytes)
}

/// Reads the image that `image` stands for: a manifest, or an index of images for several platforms.
///
/// # Errors
/// See [`Error`].
pub fn read_image(blobs: &dyn Blobs, image: &Descriptor, wanted: &Wanted) -> Result<ImageFacts, Error> {
    let json = read_one(blobs, image)?;
    read_found(blobs, image.digest().clone(), image.media_type().as_ref(), json, wanted)
}

/// The same, where the manifest or index is there already: `json`, which has `digest`.
///
/// # Errors
/// See [`Error`].
pub fn read_found(
    blobs: &dyn Blobs,
    digest: Digest,
    media_type: &str,
    json: Vec<u8>,
    wanted: &Wanted,
) -> Result<ImageFacts, Error> {
    let (mut digest, mut media_type, mut json) = (digest, media_type.to_owned(), json);
    for _ in 0..=MAX_NESTED {
        let failed = |source| Error::Json { digest: digest.to_string(), source };
        if MANIFEST_TYPES.contains(&media_type.as_str()) {
            let manifest = serde_json::from_slice(&json).map_err(failed)?;
            return read_manifest(blobs, digest, &manifest);
        }
        if !INDEX_TYPES.contains(&media_type.as_str()) {
            return Err(Error::MediaType(media_type));
        }
        let index: ImageIndex = serde_json::from_slice(&json).map_err(failed)?;
        let image = select(&index, None, wanted)?;
        json = read_one(blobs, &image)?;
        (digest, media_type) = (image.digest().clone(), image.media_type().to_string());
    }
    Err(Error::Nested)
}

/// Whether a blob of this type is a manifest or an index, which registries keep apart from other blobs.
pub fn is_manifest(media_type: &str) -> bool {
    INDEX_TYPES.contains(&media_type) || MANIFEST_TYPES.contains(&media_type)
}

fn read_one(blobs: &dyn Blobs, image: &Descriptor) -> Result<Vec<u8>, Error> {
    let media_type = image.media_type().to_string();
    if !is_manifest(&media_type) {
        return Err(Error::MediaType(media_type));
    }
    read_blob(blobs, image, MAX_MANIFEST_BYTES)
}

/// Reads the configuration of the image with this manifest, whose digest names it.
///
/// # Errors
/// See [`Error`].
pub fn read_manifest(blobs: &dyn Blobs, digest: Digest, manifest: &ImageManifest) -> Result<ImageFacts, Error> {
    let config_json = read_blob(blobs, manifest.config(), MAX_CONFIG_BYTES)?;
    let mut facts = ImageFacts::new(digest, manifest.layers().clone(), config_json)?;
    facts.annotations = manifest.annotations().clone().unwrap_or_default();
    Ok(facts)
}

impl ImageFacts {
    /// An image of these layers, the lowest first, with this configuration.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Json`].
    pub fn new(digest: Digest, layers: Vec<Descriptor>, config_json: Vec<u8>) -> Result<Self, Error> {
        let config = ImageConfig::parse(&config_json)?;
        let failed = |source| Error::Json { digest: digest.to_string(), source };
        let WithRootFs { rootfs } = serde_json::from_slice(&config_json).map_err(failed)?;
        Ok(Self { digest, layers, diff_ids: rootfs.diff_ids, config_json, config, annotations: HashMap::new() })
    }

    /// Bytes of all layers as they are stored.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.size()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(images: &str) -> ImageIndex {
        serde_json::from_str(&format!(r#"{{"schemaVersion":2,"manifests":[{images}]}}"#)).unwrap()
    }

    fn image(size: u64, more: &str) -> String {
        let digest = "a".repeat(64);
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{digest}","size":{size}{more}}}"#
        )
    }

    fn for_platform(size: u64, os: &str, arch: &str, variant: &str) -> String {
        image(size, &format!(r#","platform":{{"os":"{os}","architecture":"{arch}","variant":"{variant}"}}"#))
    }

    fn wanted(arch: &str, variant: Option<&str>) -> Wanted {
        Wanted { arch: arch.into(), variant: variant.map(str::to_owned) }
    }

    #[test]
    fn the_image_of_the_platform_is_chosen() {
        let images = [
            for_platform(1, "windows", "amd64", ""),
            for_platform(2, "linux", "amd64", ""),
            for_platform(3, "linux", "arm", "v6"),
            for_platform(4, "linux", "arm", "v7"),
            for_platform(5, "linux", "arm64", "v8"),
        ];
        let index = index(&images.join(","));

        for (arch, variant, chosen) in [
            ("amd64", None, Some(2)),
            ("arm", Some("v7"), Some(4)),
            ("arm", None, Some(3)),
            ("arm64", None, Some(5)),
            ("arm64", Some("v8"), Some(5)),
            ("arm", Some("v5"), None),
            ("s390x", None, None),
        ] {
            let found = select(&index, None, &wanted(arch, variant));
            assert_eq!(found.as_ref().ok().map(Descriptor::size), chosen, "{arch} {variant:?}: {found:?}");
        }
        let error = select(&index, None, &wanted("s390x", None)).unwrap_err().to_string();
        assert!(error.contains("linux/s390x, only for windows/amd64, linux/amd64, linux/arm/v6"), "{error}");
    }

    #[test]
    fn an_image_is_chosen_by_its_name() {
        let named = |size, name| image(size, &format!(r#","annotations":{{"{REF_NAME}":"{name}"}}"#));
        let index = index(&[named(1, "a"), named(2, "b")].join(","));
        let amd64 = wanted("amd64", None);

        assert_eq!(select(&index, Some("b"), &amd64).unwrap().size(), 2);
        let error = select(&index, Some("c"), &amd64).unwrap_err();
        assert!(matches!(&error, Error::Name { known, .. } if known == &["a", "b"]), "{error}");
        assert!(matches!(select(&index, None, &amd64), Err(Error::Ambiguous { .. })));
    }

    #[test]
    fn attestations_are_no_images() {
        let attestation = image(1, r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#);

        assert_eq!(
            select(&index(&[attestation.clone(), image(2, "")].join(",")), None, &wanted("x", None)).unwrap().size(),
            2
        );
        assert!(matches!(select(&index(&attestation), None, &wanted("x", None)), Err(Error::Empty)));
    }
}
