//! OCI images by the names that apptainer has for them: `oci:DIRECTORY[:NAME]`, `oci-archive:FILE[:NAME]`,
//! `docker-archive:FILE[:NAME]`, `docker-daemon:NAME[:TAG]`, `docker://REPOSITORY[:TAG]`.

use super::Told;
use super::convert::convert;
use super::converted::CONVERTED;
use super::publish::publish;
use crate::host::cache_dir;
use crate::report::Report;
use crate::settings::{Common, ImageSettings};
use anyhow::{Context, bail};
use siphon_fsd::locator::path_and_name;
use siphon_fsd::source::{Served, registries, saved_image};
use siphon_image::oci::Digest;
use siphon_image::oci::archive::Archive;
use siphon_image::oci::blobs::Blobs;
use siphon_image::oci::layout::Layout;
use siphon_image::oci::own::Origin;
use siphon_image::oci::select::{ImageFacts, Wanted, read_found, read_image, select};
use siphon_image::reference::{Reference, Repository};
use std::borrow::Cow;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// An image whose manifest and configuration were read, and where its layers come from.
#[derive(Debug, Clone)]
pub struct OciImage {
    /// What it is.
    pub facts: ImageFacts,
    /// What has its layers.
    pub blobs: Arc<dyn Blobs>,
    /// How it was named.
    pub origin: Origin,
}

/// Kinds of names.
const SCHEMES: [&str; 4] = ["oci", "oci-archive", "docker-archive", "docker-daemon"];

/// The platform of this machine, unless another is asked for.
pub fn platform(arch: Option<&str>, variant: Option<&str>) -> anyhow::Result<Wanted> {
    let name = arch.unwrap_or(std::env::consts::ARCH);
    let known = siphon_image::sif::Arch::from_name(name).map(siphon_image::sif::Arch::name);
    match (arch, known) {
        (Some(arch), None) => bail!("the architecture {arch} is not known; amd64, arm64 and ppc64le are some that are"),
        (_, known) => Ok(Wanted::new(known.unwrap_or(name), variant)),
    }
}

/// Opens the OCI image that `name` stands for; `None` if that is no name of one.
///
/// # Errors
/// If there is no such image, or what describes it is damaged.
pub fn open(name: &str, wanted: &Wanted) -> anyhow::Result<Option<OciImage>> {
    if let Ok(Some(Reference::Docker(repository))) = Reference::parse(name) {
        let (facts, blobs) = open_registry(&repository, wanted).with_context(|| format!("cannot open {name}"))?;
        let origin = Origin { bootstrap: "docker".to_owned(), from: repository.to_string() };
        return Ok(Some(OciImage { facts, blobs, origin }));
    }
    let Some((scheme, from)) = name.split_once(':').filter(|(scheme, _)| SCHEMES.contains(scheme)) else {
        return Ok(None);
    };
    let opened = match scheme {
        "oci" => open_layout(from, wanted),
        "docker-daemon" => open_daemon(from),
        _ => open_archive(scheme, from, wanted),
    };
    let (facts, blobs) = opened.with_context(|| format!("cannot open {name}"))?;
    let origin = Origin { bootstrap: scheme.to_owned(), from: from.to_owned() };
    Ok(Some(OciImage { facts, blobs, origin }))
}

/// The SIF that an OCI image was converted to, in the cache directory; converts it if it was not yet.
///
/// # Errors
/// If it cannot be converted or kept.
pub fn cached(image: &OciImage, common: &Common, report: Report) -> anyhow::Result<PathBuf> {
    let target = place(image, common);
    if target.is_file() {
        report.info("Using cached SIF image");
        return Ok(target);
    }
    let directory = target.parent().unwrap_or(Path::new("."));
    let context = || format!("cannot make {}", directory.display());
    DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(context)?;
    report.info("Converting OCI blobs to SIF format");
    let settings = ImageSettings { force: true, compression: None, compact_percent: 0, epoch_seconds: None };
    convert(&image.facts, image.blobs.clone(), &image.origin, &target, &settings, report)?;
    Ok(target)
}

/// Makes `target` of an OCI image, or copies it from the cache directory if it lies there.
///
/// # Errors
/// If it cannot be converted or written.
pub fn save(
    image: &OciImage,
    target: &Path,
    uses_cache: bool,
    settings: &ImageSettings,
    common: &Common,
    report: Report,
) -> anyhow::Result<()> {
    let made = place(image, common);
    if uses_cache && settings.epoch_seconds.is_none() && made.is_file() {
        report.info("Using cached SIF image");
        let copy = |mut to: &File, _: &AtomicBool| Ok(std::io::copy(&mut File::open(&made)?, &mut to)?);
        publish(target, 0o777, copy).with_context(|| format!("cannot make {}", target.display()))?;
        return Ok(());
    }
    report.info("Converting OCI blobs to SIF format");
    convert(&image.facts, image.blobs.clone(), &image.origin, target, settings, report)?;
    Ok(())
}

fn place(image: &OciImage, common: &Common) -> PathBuf {
    let digest = &image.facts.digest;
    cache_dir(common).join(CONVERTED).join(format!("{}-{}.sif", digest.algorithm(), digest.digest()))
}

/// What to open to look into `image`, as it was typed, or to run it: the layers of a registry and of a layout are read where
/// they are, and all else is made [`usable`].
///
/// # Errors
/// As [`usable`].
pub fn readable<'a>(image: &'a str, common: &Common, report: Report) -> anyhow::Result<Cow<'a, str>> {
    if is_in_place(image) { Ok(Cow::Borrowed(image)) } else { usable(image, common, report) }
}

/// As [`readable`], by a process of its own where threads are needed, as [`usable_apart`] has it.
///
/// # Errors
/// As [`usable_apart`].
pub fn readable_apart<'a>(image: &'a str, report: Report) -> anyhow::Result<Cow<'a, str>> {
    if is_in_place(image) { Ok(Cow::Borrowed(image)) } else { usable_apart(image, report) }
}

fn is_in_place(name: &str) -> bool {
    name.starts_with("oci:") || is_in_registry(name)
}

fn is_in_registry(name: &str) -> bool {
    matches!(Reference::parse(name), Ok(Some(Reference::Docker(_))))
}

/// What to make an image or a sandbox of for `image`, as it was typed: an OCI image becomes an image file in the cache, everything else stays as it
/// is and is read where it is.
///
/// # Errors
/// If there is no such OCI image, or no file can be made of it.
pub fn usable<'a>(image: &'a str, common: &Common, report: Report) -> anyhow::Result<Cow<'a, str>> {
    let Some(oci) = open(image, &platform(None, None)?)? else { return Ok(Cow::Borrowed(image)) };
    let made = cached(&oci, common, report)?;
    Ok(Cow::Owned(made.to_str().context("the cache directory's name is not UTF-8")?.to_owned()))
}

/// As [`usable`], by a process of its own: to ask a registry takes threads, and a process with threads joins no namespaces.
///
/// # Errors
/// As [`usable`]. [`Told`] if that process has said what is wrong.
pub fn usable_apart<'a>(image: &'a str, report: Report) -> anyhow::Result<Cow<'a, str>> {
    if !is_oci(image) {
        return Ok(Cow::Borrowed(image));
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg0("siphon").args(report.as_flags()).args(["convert", "--", image]);
    command.envs(registries().variables()).stderr(Stdio::inherit()).stdin(Stdio::null());
    let output = command.output().context("cannot run siphon itself")?;
    if !output.status.success() {
        bail!(Told);
    }
    let path = String::from_utf8(output.stdout).context("the cache directory's name is not UTF-8")?;
    Ok(Cow::Owned(path.strip_suffix('\n').unwrap_or(&path).to_owned()))
}

/// The name of the file that a pull makes of an OCI image on this machine, as apptainer has it: `NAME_TAG.sif`.
pub fn file_name(image: &str) -> Option<String> {
    let (_, from) = image.split_once(':')?;
    let last = from.rsplit('/').next()?;
    let (name, tag) = last.split_once(':').unwrap_or((last, "latest"));
    (!name.is_empty() && !name.starts_with('.')).then(|| format!("{name}_{tag}.sif"))
}

/// Whether the name is one of an OCI image.
pub fn is_oci(name: &str) -> bool {
    let scheme = name.split_once(':').map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| SCHEMES.contains(&scheme)) || is_in_registry(name)
}

type Opened = (ImageFacts, Arc<dyn Blobs>);

fn open_registry(repository: &Repository, wanted: &Wanted) -> anyhow::Result<Opened> {
    let (served, found) = Served::find(repository)?;
    let digest = Digest::from_str(&found.digest)?;
    let facts = read_found(&served, digest, &found.media_type, found.bytes, wanted)?;
    Ok((facts, Arc::new(served)))
}

fn open_layout(from: &str, wanted: &Wanted) -> anyhow::Result<Opened> {
    let (path, name) = path_and_name(from);
    let (layout, index) = Layout::open(Path::new(path))?;
    let image = select(&index, name, wanted)?;
    let facts = read_image(&layout, &image, wanted)?;
    Ok((facts, Arc::new(layout)))
}

/// What a docker daemon sends is an archive whose table comes last. So it is kept until the image is made, in a file without a
/// name.
fn open_daemon(from: &str) -> anyhow::Result<Opened> {
    let name = from.trim_start_matches('/');
    let last = name.rsplit('/').next().unwrap_or_default();
    let is_id = name.strip_prefix("sha256:").is_some_and(|id| id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let tagged = if last.contains([':', '@']) || is_id { name.to_owned() } else { format!("{name}:latest") };
    let directory = std::env::temp_dir();
    let context = || format!("cannot keep the image in {}", directory.display());
    let mut file = tempfile::tempfile_in(&directory).with_context(context)?;
    std::io::copy(&mut saved_image(&tagged)?, &mut file).with_context(context)?;
    let mut archive = Archive::open(file, &directory)?;
    Ok((archive.docker_image(None)?, Arc::new(archive)))
}

fn open_archive(scheme: &str, from: &str, wanted: &Wanted) -> anyhow::Result<Opened> {
    let (path, name) = path_and_name(from);
    let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
    let mut archive = Archive::open(file, &std::env::temp_dir())?;
    let facts = if scheme == "docker-archive" {
        archive.docker_image(name)?
    } else {
        let image = select(&archive.index()?, name, wanted)?;
        read_image(&archive, &image, wanted)?
    };
    Ok((facts, Arc::new(archive)))
}
