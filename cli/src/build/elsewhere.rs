//! Images that are elsewhere: fetched into a file, or named so that they can be opened.

use super::umask;
use crate::host::cache_dir;
use crate::report::{Report, human_bytes};
use crate::settings::Common;
use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use siphon_fsd::blob::{Blob, BlobError};
use siphon_fsd::locator::{self, this_arch};
use siphon_fsd::source::{Served, SourceError, Whole, digest};
use siphon_fsd::stream::InOrder;
use siphon_image::oci::platform::{Wanted, choose};
use siphon_image::oci::{Descriptor, ImageIndex, ImageManifest};
use siphon_image::open;
use siphon_image::read_at::{FileAt, ReadAt};
use siphon_image::reference::{Reference, Repository};
use std::borrow::Cow;
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that are written, hashed and counted at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// A configuration is some kilobytes; registries themselves bound what refers to it.
const MAX_CONFIG_BYTES: i64 = 8 << 20;

/// A pull.
#[derive(Debug)]
pub struct Pull<'a> {
    /// Where the image is.
    pub reference: &'a Reference,
    /// For which machines.
    pub wanted: Wanted,
    /// The file to make.
    pub target: &'a Path,
    /// Whether what is fetched is kept for later, and what was kept is used.
    pub uses_cache: bool,
}

/// Fetches an image into a file, which has its name once all of it is there and verified.
///
/// # Errors
/// If it cannot be had or written, or is none. The target is then as it was.
pub fn pull(pull: &Pull<'_>, common: &Common, report: Report) -> anyhow::Result<()> {
    if let Reference::Docker(repository) = pull.reference {
        return from_layers(repository, &pull.wanted, pull.target, report);
    }
    let (mut bytes, len_bytes, digest) = open(pull, &cache_dir(common))?;
    write(bytes.as_mut(), len_bytes, digest.as_deref(), pull, report)
}

/// The bytes of an image, how many there are, and their digest, as far as these are known.
type Source = (Box<dyn Read>, Option<u64>, Option<String>);

fn open(pull: &Pull<'_>, cache: &Path) -> anyhow::Result<Source> {
    let (remote, digest) = match locator::elsewhere(pull.reference, Some(&pull.wanted.arch)) {
        Ok(found) => found,
        Err(error) => match pull.reference {
            // It cannot be read in parts, but as a whole.
            Reference::Web(url) if serves_no_ranges(&error) => {
                let whole = Whole::open(url)?;
                let len_bytes = whole.len_bytes();
                return Ok((Box::new(whole), len_bytes, None));
            }
            _ => return Err(error.into()),
        },
    };
    let object: Arc<dyn ReadAt> = match pull.uses_cache {
        true => Arc::new(Blob::over(remote, cache)?),
        false => Arc::new(remote),
    };
    let len_bytes = Some(object.len());
    Ok((Box::new(InOrder::new(object)), len_bytes, digest))
}

fn serves_no_ranges(error: &locator::Error) -> bool {
    let locator::Error::Url { source: BlobError::Source(source), .. } = error else { return false };
    matches!(**source, SourceError::NoRanges { .. })
}

fn write(
    bytes: &mut dyn Read,
    len_bytes: Option<u64>,
    expected: Option<&str>,
    pull: &Pull<'_>,
    report: Report,
) -> anyhow::Result<()> {
    let target = pull.target;
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = || format!("cannot write to {}", directory.display());
    let mut temporary = tempfile::Builder::new().prefix(".siphon-").tempfile_in(directory).with_context(failed)?;
    let interrupted = super::interruption()?;
    let found = copy(bytes, temporary.as_file_mut(), len_bytes, &interrupted, report)
        .with_context(|| format!("cannot make {} from {}", target.display(), shown(pull.reference)))?;
    if let Some(expected) = expected.filter(|expected| *expected != found) {
        bail!(
            "{} has the digest {found} and not {expected}; its server or a proxy has damaged it",
            shown(pull.reference)
        );
    }
    let file = temporary.reopen().and_then(FileAt::new).with_context(failed)?;
    open::open(Arc::new(file)).with_context(|| format!("what {} gave is no image", shown(pull.reference)))?;
    temporary.as_file().set_permissions(Permissions::from_mode(0o777 & !umask()))?;
    temporary.as_file().sync_all().with_context(failed)?;
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    temporary.persist(target).with_context(failed)?;
    Ok(File::open(directory)?.sync_all()?)
}

/// Copies all of `from`, and returns its digest.
fn copy(
    from: &mut dyn Read,
    to: &mut File,
    len_bytes: Option<u64>,
    interrupted: &AtomicBool,
    report: Report,
) -> anyhow::Result<String> {
    let bar = report.progress("fetching", len_bytes.unwrap_or(0));
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut done = 0;
    loop {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted; what was fetched is kept in the cache");
        }
        let len = from.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        hash.update(&buffer[..len]);
        to.write_all(&buffer[..len]).with_context(|| format!("no room for more than {}", human_bytes(done)))?;
        done += len as u64;
        bar.set(done, len_bytes.unwrap_or(done).max(done));
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

/// A reference without what may be secret in a URL.
pub fn shown(reference: &Reference) -> String {
    let Reference::Web(url) = reference else { return reference.to_string() };
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    match plain.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, rest)| rest)),
        None => plain.to_owned(),
    }
}

/// An OCI image in a registry: what it is made of, all of it verified but the layers.
#[derive(Debug)]
pub struct Layered {
    /// Gives the layers' bytes.
    pub served: Served,
    /// The manifest of the image for the wanted machine.
    pub manifest: ImageManifest,
    /// The digest of that manifest, which stands for the whole image.
    pub digest: String,
    /// The configuration's bytes.
    pub config: Vec<u8>,
}

impl Layered {
    /// Finds the image for `wanted`.
    ///
    /// # Errors
    /// If there is none, or it is no image.
    pub fn find(repository: &Repository, wanted: &Wanted) -> anyhow::Result<Self> {
        let name = format!("docker://{repository}");
        let (served, mut found) = Served::find(repository).with_context(|| format!("cannot fetch {name}"))?;
        if found.media_type.contains("index") || found.media_type.contains("manifest.list") {
            let damaged = || format!("the index of {name} cannot be understood");
            let index: ImageIndex = serde_json::from_slice(&found.bytes).with_context(damaged)?;
            let image = match choose(&index, wanted) {
                Ok(image) => image.digest().to_string(),
                Err(others) => {
                    let variant = wanted.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
                    bail!("{name} is not for {}{variant}, but for: {}", wanted.arch, others.join(", "));
                }
            };
            found = served.manifest(&image)?;
        }
        let damaged = || format!("the manifest of {name} cannot be understood");
        let manifest: ImageManifest = serde_json::from_slice(&found.bytes).with_context(damaged)?;
        let config = small_blob(&served, manifest.config())?;
        Ok(Self { served, manifest, digest: found.digest, config })
    }
}

/// All of a small blob, held against its digest.
fn small_blob(served: &Served, blob: &Descriptor) -> anyhow::Result<Vec<u8>> {
    let name = format!("{}@{}", served.name(), blob.digest());
    if i64::try_from(blob.size()).is_ok_and(|size| size > MAX_CONFIG_BYTES) {
        bail!("{name} is said to be a configuration, and to have {} bytes", blob.size());
    }
    let mut bytes = Vec::new();
    served
        .stream(blob)?
        .take(blob.size() + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot fetch {name}"))?;
    let found = digest(&bytes);
    if bytes.len() as u64 != blob.size() || found != blob.digest().to_string() {
        bail!("{name} was sent as {} bytes with the digest {found}", bytes.len());
    }
    Ok(bytes)
}

/// Makes an image file of an OCI image in a registry.
///
/// The layers are read through [`Layered::served`], which is a [`siphon_image::oci::blobs::Blobs`]; merging them into
/// `target` is what is missing here.
fn from_layers(repository: &Repository, wanted: &Wanted, target: &Path, report: Report) -> anyhow::Result<()> {
    let image = Layered::find(repository, wanted)?;
    let name = image.served.name();
    let damaged = || format!("the configuration of docker://{name} cannot be understood");
    serde_json::from_slice::<serde_json::Value>(&image.config).with_context(damaged)?;
    let bytes = image.manifest.layers().iter().map(Descriptor::size).sum();
    report.info(format_args!("docker://{repository} is {} with layers of {}", image.digest, human_bytes(bytes)));
    bail!("cannot make {}: layers of OCI images cannot be merged yet", target.display())
}

/// What to open for `image`, as it was typed: a reference to an OCI image becomes an image file in the cache, everything
/// else stays as it is and is read where it is.
///
/// # Errors
/// If such a file cannot be made.
pub fn usable<'a>(image: &'a str, common: &Common, report: Report) -> anyhow::Result<Cow<'a, str>> {
    let Ok(Some(Reference::Docker(repository))) = Reference::parse(image) else { return Ok(Cow::Borrowed(image)) };
    let wanted = Wanted::new(this_arch(), None);
    let digest = Layered::find(&repository, &wanted)?.digest;
    let directory = cache_dir(common).join("oci-tmp");
    let made = directory.join(format!("{}.sif", digest.replace(':', "-")));
    if !made.exists() {
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot use {}", directory.display()))?;
        from_layers(&repository, &wanted, &made, report)?;
    }
    Ok(Cow::Owned(made.to_str().context("the cache directory's name is not UTF-8")?.to_owned()))
}
