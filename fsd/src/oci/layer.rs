//! One layer: what it has in itself or was made of it before, and how its content is read then.

use super::LayerError;
use super::kept::Kept;
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
pub(super) const SEEKABLE_ENTRIES: &str = "zst-tar";

/// All of them.
pub(super) const KINDS: [&str; 4] = [GZIP, TAR, SEEKABLE, SEEKABLE_ENTRIES];

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

/// Opens a layer by its table of contents, or by an index that was made before. `None` if it has neither that is of use.
///
/// # Errors
/// If it is no archive, or cannot be fetched.
pub(super) fn open(kept: &Kept, layer: &Descriptor, bytes: Arc<dyn ReadAt>) -> Result<Option<Indexed>, LayerError> {
    let media_type = layer.media_type().to_string();
    let is_archive = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."]
        .iter()
        .any(|prefix| media_type.starts_with(prefix));
    if !is_archive || media_type.ends_with("+encrypted") {
        return Err(LayerError::MediaType(media_type));
    }
    let table = table(layer, &bytes).or_else(|error| match error {
        LayerError::Format(format) => {
            format.check_is_of_bytes()?;
            bytes.discard(0..bytes.len());
            table(layer, &bytes)
        }
        error => Err(error),
    });
    match table {
        Ok(Some(indexed)) => return Ok(Some(indexed)),
        Ok(None) => {}
        // The layer as a whole may be what its digest says.
        Err(LayerError::Format(error)) => {
            tracing::warn!("the table of contents of the layer {} is of no use: {error}", layer.digest());
        }
        Err(error) => return Err(error),
    }
    Ok(made_before(kept, layer).unwrap_or_else(|error| {
        tracing::warn!("the index that was made of the layer {} is of no use: {error}", layer.digest());
        None
    }))
}

/// A layer by its own table of contents, if it has one that a digest of the manifest's stands for.
fn table(layer: &Descriptor, bytes: &Arc<dyn ReadAt>) -> Result<Option<Indexed>, LayerError> {
    let notes = layer.annotations().as_ref();
    let note = |name: &str| notes.and_then(|notes| notes.get(name)).map(String::as_str);
    let chunked = Annotations::new(note)?;
    if chunked.is_given() {
        let toc = zstd_chunked::open(bytes, &chunked)?;
        return Ok(Some(Indexed { entries: toc.index, form: Form::ZstdChunks }));
    }
    // Without the digest of its table, nothing would be held against anything.
    let Some(digest) = note(TOC_DIGEST_ANNOTATION).and_then(sha256) else { return Ok(None) };
    let toc = estargz::open(bytes, Some(&digest))?;
    Ok(Some(Indexed { entries: toc.index, form: Form::GzipChunks }))
}

fn made_before(kept: &Kept, layer: &Descriptor) -> Result<Option<Indexed>, LayerError> {
    let file = |kind| kept.index(layer.digest().as_ref(), kind);
    if let Some(file) = file(GZIP) {
        return gzip(file).map(Some);
    }
    let (entries, form) = match (file(TAR), file(SEEKABLE_ENTRIES), file(SEEKABLE)) {
        (Some(entries), _, _) => (entries, Form::Tar),
        (None, Some(entries), Some(content)) => (entries, Form::Seekable(Arc::new(FileAt::new(content)?))),
        _ => return Ok(None),
    };
    Ok(Some(Indexed { entries: saved::open_entries(&FileAt::new(entries)?)?, form }))
}

/// A gzip layer by its index in `file`.
pub(super) fn gzip(file: File) -> Result<Indexed, LayerError> {
    let indexed = saved::open(Arc::new(FileAt::new(file)?))?;
    Ok(Indexed { entries: indexed.layer, form: Form::Gzip(indexed.gzip) })
}
