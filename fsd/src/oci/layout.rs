//! OCI images in layouts on this machine: their layers are files, and are read as those of a registry are.
//!
//! Indexes are kept by the layers' digests, so that one that was made of a layer in a registry is good for the same layer
//! here. What is read is held against digests as there, but for archives that are not compressed, whose parts have none: all
//! of such a layer is held against its digest when it is opened, unless it is the very file that was before ([`Stamp`]).

use super::checked::Stamp;
use super::kept::Kept;
use super::layer::{self, Form, Indexed};
use super::{Error, LayerError, LayeredImage, MADE_AT_ONCE, at_once, made, merged};
use crate::blob::BlobError;
use crate::cache::Cache;
use crate::local::LocalFile;
use crate::storage::Storage;
use siphon_image::oci::Descriptor;
use siphon_image::oci::layout::Layout;
use siphon_image::oci::lazy::Decoded;
use siphon_image::oci::own::Origin;
use siphon_image::oci::select::{Wanted, read_image, select};
use siphon_image::read_at::ReadAt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Opens the image named `name` of the layout in `directory`, or the only one, for machines of `arch`, as Go names them.
/// Blocks until there is an index of each layer, which takes as long as reading those that have none yet. `cache_bytes`
/// bounds what is kept decoded.
///
/// # Errors
/// Any [`Error`] but those of registries.
pub fn open_layout(
    directory: &Path,
    name: Option<&str>,
    arch: &str,
    cache_dir: &Path,
    cache_bytes: u64,
) -> Result<LayeredImage, Error> {
    // What is kept is believed only in a directory that is ours.
    Cache::open(cache_dir).map_err(BlobError::from)?;
    let kept = Kept::below(cache_dir);
    let (layout, index) = Layout::open(directory).map_err(Error::Layout)?;
    let wanted = Wanted::new(arch, None);
    let image = select(&index, name, &wanted)?;
    let facts = read_image(&layout, &image, &wanted)?;
    let decoded = Decoded::new(cache_bytes);
    let failed = |layer: &Descriptor, source| Error::Layer { digest: layer.digest().to_string(), source };
    let files = facts.layers.iter().map(|layer| file(&layout, layer).map_err(|error| failed(layer, error.into())));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let indexed = at_once(MADE_AT_ONCE, files.len(), |number| {
        let layer = &facts.layers[number];
        index_of(&kept, layer, &files[number]).map_err(|error| failed(layer, error))
    })?;
    let storage: Vec<_> = files.into_iter().map(|file| Arc::new(Storage::new(file))).collect();
    let from = match name {
        Some(name) => format!("{}:{name}", directory.display()),
        None => directory.display().to_string(),
    };
    let origin = Origin { bootstrap: "oci".to_owned(), from };
    merged(&facts, indexed, storage, &origin, arch, &decoded)
}

fn file(layout: &Layout, layer: &Descriptor) -> io::Result<Arc<dyn ReadAt>> {
    let path = layout.path(layer.digest())?;
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let file: LocalFile = LocalFile::open(&path).map_err(failed)?;
    if file.len() != layer.size() {
        let (found, expected) = (file.len(), layer.size());
        let problem = format!("it has {found} bytes and should have {expected}");
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, problem)));
    }
    Ok(Arc::new(file))
}

fn index_of(kept: &Kept, layer: &Descriptor, bytes: &Arc<dyn ReadAt>) -> Result<Indexed, LayerError> {
    let digest = layer.digest().as_ref();
    let is_checked = || Stamp::of(bytes.as_ref()).is_some_and(|stamp| kept.is_checked(digest, &stamp));
    if let Some(known) = layer::open(kept, layer, bytes.clone())? {
        // Of an archive as it is nothing else tells that this file is the one that the index was made of.
        if !matches!(known.form, Form::Tar) || is_checked() {
            return Ok(known);
        }
    }
    let says_tar = layer.media_type().to_string().ends_with(".tar");
    let stamp = if says_tar { Stamp::settled(bytes.as_ref()) } else { None };
    let made = made::make(kept, layer, bytes.clone())?;
    if let Some(stamp) = stamp.filter(|_| matches!(made.form, Form::Tar) && Stamp::of(bytes.as_ref()) == stamp) {
        kept.keep_checked(digest, &stamp);
    }
    Ok(made)
}
