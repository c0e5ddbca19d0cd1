//! An OCI image becomes a SIF with all that apptainer makes of it: the scripts and labels under `/.singularity.d`, the links
//! to them, the places to mount on, and the configuration as an object of its own.
//!
//! Owners, device nodes and setuid bits are the layers' own, whoever converts: the result is the same for all users.

mod files;
mod quoting;
mod runscript;

pub(super) use runscript::is_generated;

use super::provenance::date;
use super::publish::publish;
use super::{INSPECT_METADATA, is_bare, options, seconds, since, watch};
use crate::inspection::everything;
use crate::report::{Report, human_bytes};
use crate::settings::ImageSettings;
use anyhow::{Context, bail};
use siphon_image::oci::base::OCI_BASE;
use siphon_image::oci::blobs::Blobs;
use siphon_image::oci::layers::{self, Own, Source};
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

/// Where an image comes from, as a definition file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// What it is fetched with: `docker`, `oci`, `oci-archive`, ...
    pub bootstrap: String,
    /// What it is named there, as the user wrote it behind the scheme.
    pub from: String,
}

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
    let deffile = format!("bootstrap: {}\nfrom: {}\n\n", origin.bootstrap, origin.from.replace('\n', " "));
    let labels = labels(image, origin, arch, seconds);
    let own = files::own(&image.config.config, &labels, &deffile)?;
    let source =
        Source { blobs, layers: image.layers.clone(), diff_ids: image.diff_ids.clone(), fetched_bytes: Arc::default() };
    let base = since::of_conversion(origin, image, &own).and_then(|base| base.to_json());
    let conversion = Conversion { image, source, own, base, deffile, arch, seconds, settings, report };
    let mode = if is_bare(target) { 0o666 } else { 0o777 };
    let made = publish(target, mode, |file, interrupted| match is_bare(target) {
        true => Ok(conversion.squashfs(file, 0, interrupted)?.0),
        false => conversion.sif(file, interrupted),
    });
    made.with_context(|| format!("cannot make {}", target.display()))
}

/// The labels of the image, with those of this build.
fn labels(image: &ImageFacts, origin: &Origin, arch: Arch, seconds: u32) -> std::collections::BTreeMap<String, String> {
    let mut labels = image.config.config.labels.clone();
    let own = [
        ("schema-version", "1.0".to_owned()),
        ("build-arch", arch.name().to_owned()),
        ("build-date", date(seconds)),
        ("usage.siphon.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("usage.singularity.deffile.bootstrap", origin.bootstrap.clone()),
        ("usage.singularity.deffile.from", origin.from.clone()),
    ];
    labels.extend(own.map(|(name, value)| (format!("org.label-schema.{name}"), value)));
    labels
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
        Ok(sif.finish(bytes)?)
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

/// What of a configuration says how to run the image, as JSON without what is empty.
fn run_config(config_json: &[u8]) -> anyhow::Result<String> {
    let mut config: serde_json::Value = serde_json::from_slice(config_json)?;
    let mut run = config.get_mut("config").map(serde_json::Value::take).unwrap_or_default();
    if let Some(fields) = run.as_object_mut() {
        fields.retain(|_, value| {
            let is_empty = value.as_str().is_some_and(str::is_empty)
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(serde_json::Map::is_empty);
            !is_empty && !value.is_null() && value.as_bool() != Some(false)
        });
    } else {
        run = serde_json::json!({});
    }
    Ok(run.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_that_is_kept_is_that_of_running() {
        let json = br#"{"os":"linux","config":{"User":"","Env":["A=b"],"Cmd":null,"Tty":false,"Labels":{}}}"#;

        assert_eq!(run_config(json).unwrap(), r#"{"Env":["A=b"]}"#);
        assert_eq!(run_config(br#"{"config":null}"#).unwrap(), "{}");
        assert_eq!(run_config(b"{}").unwrap(), "{}");
    }
}
