//! An OCI image becomes a SIF with all that apptainer makes of it: the scripts and labels under `/.singularity.d`, the links
//! to them, the places to mount on, and the configuration as an object of its own.
//!
//! Owners, device nodes and setuid bits are the layers' own, whoever converts: the result is the same for all users.

use super::publish::publish;
use super::{INSPECT_METADATA, is_bare, options, seconds, since, watch};
use crate::inspection::everything;
use crate::report::{Report, human_bytes};
use crate::settings::ImageSettings;
use anyhow::{Context, bail};
use siphon_image::oci::base::OCI_BASE;
use siphon_image::oci::blobs::Blobs;
use siphon_image::oci::config::run_config;
use siphon_image::oci::layers::{self, Source};
use siphon_image::oci::own::{self, Origin, Own};
use siphon_image::oci::select::ImageFacts;
use siphon_image::open::{OCI_CONFIG, facts};
use siphon_image::sif::writer::SifWriter;
use siphon_image::sif::{Arch, DataType};
use siphon_image::squashfs::writer::{Owners, Progress};
use siphon_image::tree::Tree;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes the image file `target` from the layers of `image`, which `blobs` has: a SIF, or bare squashfs by the name. Says
/// nothing but how far it is, and returns the length of the file in bytes.
///
/// The layers are read as streams, once, several at a time, each from a thread of its own, and held against their digests. No
/// blob is kept, and nothing unpacked. `settings` say how it is compressed and of which time it is; whether the target may be
/// replaced is the caller's to look at.
///
/// # Errors
/// If a layer cannot be read, is not what its digest says or cannot be unpacked, or the file cannot be written. The target is
/// then as it was, and no other file left.
pub fn convert(
    image: &ImageFacts,
    blobs: Arc<dyn Blobs>,
    origin: &Origin,
    target: &Path,
    settings: &ImageSettings,
    report: Report,
) -> anyhow::Result<u64> {
    if target.is_dir() {
        bail!("{} is a directory; name the image file to make", target.display());
    }
    let seconds = seconds(settings)?;
    let arch = Arch::from_name(&image.config.architecture).unwrap_or(Arch::UNKNOWN);
    let own = own::files(&image.config, origin, arch.name(), seconds);
    let source =
        Source { blobs, layers: image.layers.clone(), diff_ids: image.diff_ids.clone(), fetched_bytes: Arc::default() };
    let base = since::of_conversion(origin, image, &own).and_then(|base| base.to_json());
    let conversion =
        Conversion { image, source, own, base, deffile: origin.deffile(), arch, seconds, settings, report };
    let mode = if is_bare(target) { 0o666 } else { 0o777 };
    let made = publish(target, mode, |file, interrupted| match is_bare(target) {
        true => Ok(conversion.squashfs(file, 0, interrupted)?.0),
        false => conversion.sif(file, interrupted),
    });
    made.with_context(|| format!("cannot make {}", target.display()))
}

/// An image in the making.
struct Conversion<'a> {
    image: &'a ImageFacts,
    source: Source,
    own: Vec<Own>,
    /// What a push will want to know, if it can.
    base: Option<Vec<u8>>,
    deffile: String,
    arch: Arch,
    seconds: u32,
    settings: &'a ImageSettings,
    report: Report,
}

impl Conversion<'_> {
    /// Objects lie before the partition and depend on what is in it. So room is left for what they will be, which layers
    /// change only if they bring files under `/.singularity.d` themselves.
    fn sif(&self, file: &File, interrupted: &AtomicBool) -> anyhow::Result<u64> {
        let expected = layers::preview(&self.own)?;
        // Who wants the same bytes again has no use for an identity.
        let id = if self.settings.epoch_seconds.is_some() { uuid::Uuid::nil() } else { uuid::Uuid::new_v4() };
        let new = || SifWriter::new(file, self.arch, id, self.seconds.into());
        let mut sif = new();
        let expected = metadata(&expected)?;
        self.add_objects(&mut sif, Some(&expected))?;
        let (objects_end, start_bytes) = (sif.objects_end(), sif.partition_start());
        let (bytes, tree) = self.squashfs(file, start_bytes, interrupted)?;
        let mut sif = new();
        let found = metadata(tree.as_ref())?;
        // The content is there already. Where it leaves no room for what `inspect` prints, that has to look into the image.
        let grown = (found.len() as u64).saturating_sub(expected.len() as u64);
        self.add_objects(&mut sif, (grown <= start_bytes - objects_end).then_some(&found))?;
        sif.reserve_partition(start_bytes);
        sif.add_partition(bytes);
        Ok(sif.finish()?)
    }

    fn add_objects(&self, sif: &mut SifWriter<'_>, metadata: Option<&String>) -> anyhow::Result<()> {
        sif.add_object(DataType::Deffile, "", self.deffile.as_bytes())?;
        if let Some(metadata) = metadata {
            sif.add_object(DataType::GenericJson, INSPECT_METADATA, metadata.as_bytes())?;
        }
        if let Some(base) = &self.base {
            sif.add_object(DataType::GenericJson, OCI_BASE, base)?;
        }
        sif.add_object(DataType::GenericJson, OCI_CONFIG, run_config(&self.image.config_json)?.as_bytes())?;
        Ok(())
    }

    /// Writes the squashfs; returns its length and its tree.
    fn squashfs(
        &self,
        file: &File,
        start_bytes: u64,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<(u64, Box<dyn Tree>)> {
        let options = options(self.settings, self.seconds, Owners::Keep);
        let progress = Progress::default();
        let total_bytes = self.image.layer_bytes();
        let done = || (self.source.fetched_bytes.load(Ordering::Relaxed), total_bytes);
        let write =
            || layers::write(&self.source, &self.own, self.seconds.into(), file, start_bytes, &options, &progress);
        let bar = self.report.progress("converting", total_bytes);
        let (summary, merged) = watch(write, done, file, &progress, interrupted, bar)??;
        tracing::info!("{} of layers became {} of image", human_bytes(total_bytes), human_bytes(summary.image_bytes));
        Ok((summary.image_bytes, Box::new(merged)))
    }
}

/// What `inspect` prints.
fn metadata(tree: &dyn Tree) -> anyhow::Result<String> {
    Ok(everything(tree, &facts(tree)?).to_string())
}
