//! `siphon push` and `siphon tag`: an image file to a registry, and a further name for it there.

use crate::args::{PushArgs, TagArgs};
use crate::build::export;
use crate::report::{Bar, Report};
use crate::settings::Common;
use anyhow::{Context, bail};
use siphon_fsd::oras::{self, Artifact};
use siphon_image::digest::Hash;
use siphon_image::reference::{Reference, Repository};
use siphon_image::sif::Sif;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes that are hashed at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// Sends an image file.
///
/// # Errors
/// If it cannot be read, or the registry does not take it.
pub fn push(args: &PushArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    if args.description.is_some() {
        report.warning("Description is not supported for push to oras. Ignoring it.");
    }
    let context = || format!("cannot understand {:?}", args.uri);
    match Reference::parse(&args.uri).with_context(context)? {
        Some(Reference::Oras(repository)) => push_file(args, &repository, report),
        Some(Reference::Docker(repository)) => push_layers(args, &repository, common, report),
        Some(Reference::Library(_)) => bail!("pushing to a library is not supported; oras:// takes the file as it is"),
        Some(Reference::Shub(_) | Reference::Web(_)) => {
            bail!("{} takes no images; push to oras://HOST/PATH:TAG", args.uri)
        }
        None => bail!("{} names no registry; push to oras://HOST/PATH:TAG", args.uri),
    }
}

fn push_layers(args: &PushArgs, repository: &Repository, common: &Common, report: Report) -> anyhow::Result<()> {
    check_tag(args, repository)?;
    if !args.annotation.is_empty() {
        bail!("--annotation is for oras://; give the image labels in its definition file instead");
    }
    let image = args.image.to_str().context("the name of the image is not valid UTF-8")?;
    export::push(image, repository, common, report).with_context(|| format!("unable to push image to {}", args.uri))
}

fn check_tag(args: &PushArgs, repository: &Repository) -> anyhow::Result<()> {
    if repository.digest().is_some() {
        bail!("an image is pushed to a tag, and {} has a digest", args.uri);
    }
    Ok(())
}

fn push_file(args: &PushArgs, repository: &Repository, report: Report) -> anyhow::Result<()> {
    check_tag(args, repository)?;
    let annotations = annotations(&args.annotation)?;
    let failed = || format!("unable to push image to oci registry: cannot read {}", args.image.display());
    let mut file = File::open(&args.image).with_context(failed)?;
    let len_bytes = file.metadata().with_context(failed)?.len();
    check_sif(&args.image)?;
    let bar = report.progress("reading", len_bytes);
    let digest = digest(&mut file, len_bytes, &bar).with_context(failed)?;
    drop(bar);
    file.seek(SeekFrom::Start(0)).with_context(failed)?;
    let file_name = args.image.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let artifact = Artifact { file_name: &file_name, digest: &digest, len_bytes, annotations: &annotations };
    let bar = report.progress("sending", len_bytes);
    let manifest = oras::push(repository, &artifact, &mut file, &mut |sent| bar.set(sent, len_bytes));
    drop(bar);
    let manifest = manifest.with_context(|| format!("unable to push image to oci registry: {}", args.uri))?;
    report.info("Upload complete");
    report.info(format_args!("{} is {manifest}", args.uri));
    Ok(())
}

/// What is sent as a SIF has to be one.
fn check_sif(path: &Path) -> anyhow::Result<()> {
    let context = || format!("{} is no SIF image, and only those are pushed as they are", path.display());
    let file = File::open(path).and_then(siphon_image::read_at::FileAt::new).with_context(context)?;
    Sif::open(std::sync::Arc::new(file)).map(drop).with_context(context)
}

fn digest(file: &mut File, len_bytes: u64, bar: &Bar) -> io::Result<String> {
    let mut hash = Hash::sha256();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut done = 0;
    loop {
        let len = file.read(&mut buffer)?;
        if len == 0 {
            return Ok(hash.finish());
        }
        hash.update(&buffer[..len]);
        done += len as u64;
        bar.set(done, len_bytes);
    }
}

fn annotations(pairs: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let split = |pair: &String| {
        let split = pair.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) = split.with_context(|| format!("{pair:?} must be formatted as KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    pairs.iter().map(split).collect()
}

/// Gives an image in a registry a further tag.
///
/// # Errors
/// If there is no such image, or the registry does not take the tag.
pub fn tag(args: &TagArgs, report: Report) -> anyhow::Result<()> {
    let context = || format!("cannot understand {:?}", args.uri);
    let Some(Reference::Oras(repository)) = Reference::parse(&args.uri).with_context(context)? else {
        bail!("{} is no oras:// image, and only those are tagged", args.uri);
    };
    let target = repository.with_tag(&args.tag).with_context(|| format!("{:?} cannot be a tag", args.tag))?;
    oras::tag(&repository, &target).with_context(|| format!("cannot tag {}", args.uri))?;
    report.info(format_args!("Tagged {} as {}", args.uri, args.tag));
    Ok(())
}
