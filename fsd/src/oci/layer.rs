//! One layer: what it has in itself or was made of it before, and how its content is read then.

use super::LayerError;
use super::kept::Kept;
use crate::blob::Blob;
use siphon_image::oci::Descriptor;
use siphon_image::oci::lazy::estargz::{self, TOC_DIGEST_ANNOTATION};
use siphon_image::oci::lazy::gzip::{GzipIndex, GzipLayer};
use siphon_image::oci::lazy::seekable::SeekableLayer;
use siphon_image::oci::lazy::zstd_chunked::{self, Annotations};
use siphon_image::oci::lazy::{Decoded, Layer, LayerIndex, saved, sha256};
use siphon_image::read_at::{FileAt, ReadAt};
use std::fs::File;
use std::sync::Arc;

/// Kinds of indexes that are made, as their files are named.
pub(super) const GZIP: &str = "gzip";
pub(super) const TAR: &str = "tar";
pub(super) const SEEKABLE: &str = "zst";

/// A layer that can be read anywhere.
#[derive(Debug)]
pub(super) struct Indexed {
    pub(super) entries: LayerIndex,
    pub(super) form: Form,
}

/// How content is read.
#[derive(Debug)]
pub(super) enum Form {
    /// Chunks that are members of gzip.
    GzipChunks,
    /// Chunks that are frames of zstd.
    ZstdChunks,
    /// Gzip, from these checkpoints on.
    Gzip(Arc<GzipIndex>),
    /// As it is.
    Tar,
    /// Out of a file of this machine, which has all of it.
    Seekable(Arc<FileAt>),
}

impl Form {
    /// What reads content, of the layer `bytes`.
    pub(super) fn read(self, bytes: Arc<dyn ReadAt>, decoded: &Arc<Decoded>) -> Result<Layer, LayerError> {
        Ok(match self {
            Self::GzipChunks => Layer::GzipChunks(bytes),
            Self::ZstdChunks => Layer::ZstdChunks(bytes),
            Self::Gzip(index) => Layer::Tar(Arc::new(GzipLayer::new(bytes, index, decoded.clone())?)),
            Self::Tar => Layer::Tar(bytes),
            Self::Seekable(file) => Layer::Tar(Arc::new(SeekableLayer::open(file, decoded.clone())?)),
        })
    }
}

/// Opens a layer by its table of contents, or by an index that was made before. `None` if it has neither.
///
/// # Errors
/// If it is no archive, or its table is not what its annotations say, even when it is fetched again.
pub(super) fn open(kept: &Kept, layer: &Descriptor, blob: &Arc<Blob>) -> Result<Option<Indexed>, LayerError> {
    open_once(kept, layer, blob).or_else(|error| {
        match error {
            LayerError::Format(format) => format.check_is_of_bytes()?,
            error => return Err(error),
        }
        blob.discard(0..blob.len());
        open_once(kept, layer, blob)
    })
}

fn open_once(kept: &Kept, layer: &Descriptor, blob: &Arc<Blob>) -> Result<Option<Indexed>, LayerError> {
    let media_type = layer.media_type().to_string();
    let is_archive = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."]
        .iter()
        .any(|prefix| media_type.starts_with(prefix));
    if !is_archive || media_type.ends_with("+encrypted") {
        return Err(LayerError::MediaType(media_type));
    }
    let bytes: Arc<dyn ReadAt> = blob.clone();
    let notes = layer.annotations().as_ref();
    let note = |name: &str| notes.and_then(|notes| notes.get(name)).map(String::as_str);
    let chunked = Annotations::new(note)?;
    if chunked.is_given() {
        let toc = zstd_chunked::open(&bytes, &chunked)?;
        return Ok(Some(Indexed { entries: toc.index, form: Form::ZstdChunks }));
    }
    // Without the digest of its table, nothing would be held against anything.
    if let Some(digest) = note(TOC_DIGEST_ANNOTATION).and_then(sha256) {
        let toc = estargz::open(&bytes, Some(&digest))?;
        return Ok(Some(Indexed { entries: toc.index, form: Form::GzipChunks }));
    }
    Ok(made_before(kept, layer).unwrap_or_else(|error| {
        tracing::warn!("the index that was made of the layer {} is of no use: {error}", layer.digest());
        None
    }))
}

fn made_before(kept: &Kept, layer: &Descriptor) -> Result<Option<Indexed>, LayerError> {
    let file = |kind| kept.index(layer.digest().as_ref(), kind);
    if let Some(file) = file(GZIP) {
        return gzip(file).map(Some);
    }
    let Some(entries) = file(TAR) else { return Ok(None) };
    let entries = saved::open_entries(&FileAt::new(entries)?)?;
    let form = match file(SEEKABLE) {
        Some(file) => Form::Seekable(Arc::new(FileAt::new(file)?)),
        // Of a zstd layer both were made.
        None if layer.media_type().to_string().ends_with("zstd") => return Ok(None),
        None => Form::Tar,
    };
    Ok(Some(Indexed { entries, form }))
}

/// A gzip layer by its index in `file`.
pub(super) fn gzip(file: File) -> Result<Indexed, LayerError> {
    let indexed = saved::open(Arc::new(FileAt::new(file)?))?;
    Ok(Indexed { entries: indexed.layer, form: Form::Gzip(indexed.gzip) })
}
