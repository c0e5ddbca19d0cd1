//! Packs a tree into an image: under a temporary name beside the target, synced, then renamed, so that a crash leaves
//! the old image or the new one.

mod agents;
mod ahead;
mod apps;
mod base_files;
mod bootstrap;
mod child;
pub mod convert;
pub mod converted;
mod copy;
mod definition;
pub mod elsewhere;
pub mod export;
mod finish;
mod glob;
pub mod job;
pub mod keep;
mod provenance;
pub mod publish;
pub mod recipe;
mod root;
mod since;
pub mod sources;
mod stage;
mod workspace;

pub use workspace::Told;

use crate::host::{cache_dir, subordinate_ids};
use crate::inspection::everything;
use crate::report::{Bar, Report, human_bytes};
use crate::settings::{Common, Compression, ImageSettings};
use ahead::Begun;
use anyhow::{Context, bail};
use provenance::Provenance;
use publish::Draft;
use siphon_fsd::locator::{self, Locator, Opened};
use siphon_fsd::sys::namespaces;
use siphon_image::oci::base::OCI_BASE;
use siphon_image::open::{OCI_CONFIG, facts};
use siphon_image::sif::writer::SifWriter;
use siphon_image::sif::{Arch, DataType};
use siphon_image::squashfs::format::Compressor;
use siphon_image::squashfs::reader::Squashfs;
use siphon_image::squashfs::writer::{self, Copied, Options, Owners, Progress};
use siphon_image::tree::Tree;
use siphon_overlay::upper::Upper;
use siphon_overlay::view::View;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);
/// How long writing goes on before the kernel is told to put it on the disk.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);
/// What `inspect` prints, kept beside the image so that nothing has to be run for it.
const INSPECT_METADATA: &str = "inspect-metadata.json";

/// An image file to be made.
#[derive(Debug, Clone, Copy)]
pub struct ImageRequest<'a> {
    /// An image, a sandbox with its changes, or a directory.
    pub source: &'a str,
    /// A layer over it.
    pub overlay: Option<&'a Path>,
    /// What to make.
    pub target: &'a Path,
    /// Whether it does not say what it was made from.
    pub as_it_is: bool,
    /// Whether the layers of the sandbox `source` are still in the making: see [`ahead`].
    pub when_told: bool,
}

/// Makes an image file.
///
/// # Errors
/// If the source cannot be opened or read, the target exists and is not to be replaced, or it cannot be written. The
/// target is then as it was.
pub fn image(
    request: ImageRequest<'_>,
    settings: &ImageSettings,
    common: &Common,
    report: Report,
) -> anyhow::Result<()> {
    let ImageRequest { source, overlay, target, as_it_is, when_told } = request;
    if !settings.force && target.symlink_metadata().is_ok() {
        bail!("build target '{}' already exists. Use --force if you want to overwrite it", target.display());
    }
    if target.is_dir() {
        bail!("{} is a directory; name the image file to make", target.display());
    }
    let context = || format!("could not open image {source}");
    let owners = own_what_is_ours();
    let locator = Locator::parse(source).with_context(context)?;
    let mut opened = locator::open(&locator, &cache_dir(common), common.cache_bytes).with_context(context)?;
    let begun = match when_told {
        true => Some(ahead::copy_until_told(&mut opened, target, settings)?),
        false => None,
    };
    let mut tree = opened.tree()?;
    if let Some(directory) = overlay {
        let context = || format!("cannot use the layer {}", directory.display());
        let upper = Upper::open_overlay_read_only(directory).with_context(context)?;
        tree = Arc::new(View::new(tree, Some(upper)).with_context(context)?);
    }
    let seconds = seconds(settings)?;
    let image = &opened.image;
    let arch = image.sif.as_ref().map(|sif| sif.header().arch).or_else(|| Arch::from_name(std::env::consts::ARCH));
    let arch = arch.unwrap_or(Arch::UNKNOWN);
    let own_files = tempfile::tempdir().context("cannot make a temporary directory")?;
    if !as_it_is {
        let facts = facts(tree.as_ref()).with_context(context)?;
        let provenance = Provenance { source, facts: &facts, arch, seconds };
        tree =
            provenance::write(tree, provenance, own_files.path()).context("cannot write what the image is made of")?;
    }
    let made = Made { opened: &opened, tree, arch, seconds, owners, settings, report };
    report.info(format_args!("Creating {} file...", if is_bare(target) { "squashfs" } else { "SIF" }));
    let bytes = made.write(target, begun).with_context(|| format!("cannot make {}", target.display()))?;
    report.info(format_args!("Build complete: {} ({})", target.display(), human_bytes(bytes)));
    Ok(())
}

/// The time that the image is of, in seconds since 1970.
fn seconds(settings: &ImageSettings) -> anyhow::Result<u32> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(settings.epoch_seconds.map_or_else(|| u32::try_from(now()), Ok)?)
}

/// Whether `--force` may replace a directory: only an empty one, or what looks like a container.
///
/// # Errors
/// If it may not.
pub fn check_replaceable(target: &Path) -> anyhow::Result<()> {
    if !target.is_dir() {
        return Ok(());
    }
    let container = [".siphon", ".singularity.d"].iter().any(|name| target.join(name).is_dir());
    let mut entries = std::fs::read_dir(target).with_context(|| format!("cannot remove {}", target.display()))?;
    if !container && entries.next().is_some() {
        bail!("{} is a directory but no sandbox; remove it yourself if you mean it", target.display());
    }
    Ok(())
}

/// Whether the name asks for squashfs and nothing around it.
pub fn is_bare(target: &Path) -> bool {
    target.extension().is_some_and(|ending| ending == "sqfs" || ending == "squashfs")
}

/// Becomes root of a user namespace, and returns who owns the files of the image.
///
/// The files of a layer have the owners that a container gave them, as ids of this host: in the namespace that the
/// container had they are again what the container meant, and the caller's own are root's, as apptainer makes it. A
/// container may also have taken its user's permission to read from files (`chmod 000`): there their owner reads them
/// all the same. Where the host allows no namespace, such a file is an error that names it.
pub fn own_what_is_ours() -> Owners {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() {
        return Owners::Keep;
    }
    match namespaces::enter_user_namespace_as_root(uid.as_raw(), gid.as_raw(), &subordinate_ids()) {
        Ok(mapped) => {
            tracing::debug!("packing as root of a user namespace: {mapped:?}");
            Owners::Keep
        }
        Err(error) => {
            tracing::debug!("packing without a user namespace: {error}");
            Owners::MapToRoot { uid: uid.as_raw(), gid: gid.as_raw() }
        }
    }
}

/// An image in the making.
struct Made<'a> {
    opened: &'a Opened,
    tree: Arc<dyn Tree>,
    arch: Arch,
    /// When it is made, in seconds since 1970.
    seconds: u32,
    owners: Owners,
    settings: &'a ImageSettings,
    report: Report,
}

impl Made<'_> {
    /// Writes it, into the file that was begun if one was.
    fn write(&self, target: &Path, begun: Option<Begun>) -> anyhow::Result<u64> {
        // As apptainer's images are: a SIF with its launch line is a program.
        let mode = if is_bare(target) { 0o666 } else { 0o777 };
        let Begun { draft, start_bytes, copied } = match begun {
            Some(begun) => begun,
            None => Begun { draft: Draft::beside(target)?, start_bytes: 0, copied: Copied::default() },
        };
        draft.publish(target, mode, |file, interrupted| match is_bare(target) {
            true => Ok(self.pack(file, 0, copied, interrupted)?.image_bytes),
            false => self.write_sif(file, (start_bytes, copied), interrupted),
        })
    }

    /// Writes the SIF, of which what was `copied` counts if the partition begins where it was expected to.
    fn write_sif(&self, file: &File, expected: (u64, Copied), interrupted: &AtomicBool) -> anyhow::Result<u64> {
        let tree = self.tree.as_ref();
        let facts = facts(tree)?;
        // Who wants the same bytes again has no use for an identity.
        let id = if self.settings.epoch_seconds.is_some() { uuid::Uuid::nil() } else { uuid::Uuid::new_v4() };
        let mut sif = SifWriter::new(file, self.arch, id, self.seconds.into());
        if let Some(deffile) = &facts.deffile {
            sif.add_object(DataType::Deffile, "", deffile.as_bytes())?;
        }
        let metadata = everything(tree, &facts);
        sif.add_object(DataType::GenericJson, INSPECT_METADATA, metadata.to_string().as_bytes())?;
        if let Some(config) = self.opened.image.oci_config() {
            sif.add_object(DataType::GenericJson, OCI_CONFIG, &config)?;
        }
        sif.reserve_partition(ahead::partition_start(self.opened));
        let start_bytes = sif.partition_start();
        let mut copied = expected.1;
        if start_bytes != expected.0 {
            // What was copied to another place is not to show between the objects and the partition.
            file.set_len(sif.objects_end())?;
            copied = Copied::default();
        }
        let summary = self.pack(file, start_bytes, copied, interrupted)?;
        sif.add_partition(summary.image_bytes);
        // It has as many paths as were changed, and only a push asks for it: in front it would move what is copied.
        let base = self.opened.image.oci_base();
        let base = base.and_then(|base| since::carried_on(base, self.opened.image.tree.as_ref(), tree, self.owners));
        if let Some(base) = base.and_then(|base| base.to_json()) {
            sif.add_object(DataType::GenericJson, OCI_BASE, &base)?;
        }
        Ok(sif.finish()?)
    }

    /// Writes the squashfs: what did not change is copied from the image below, unless all is to be compressed anew.
    fn pack(
        &self,
        file: &File,
        start_bytes: u64,
        copied: Copied,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<writer::Summary> {
        let options = options(self.settings, self.seconds, self.owners);
        let base = base(self.opened, self.settings).map(|base| (base, copied));
        let summary = pack(self.tree.as_ref(), base, file, start_bytes, &options, interrupted, self.report)?;
        tracing::info!(
            "{} of content copied as it is stored, {} of stored content left out",
            human_bytes(summary.carried_bytes),
            human_bytes(summary.dropped_bytes)
        );
        Ok(summary)
    }
}

/// The image that content is taken over from.
fn base<'a>(opened: &'a Opened, settings: &ImageSettings) -> Option<&'a Squashfs> {
    let base = opened.image.squashfs.as_deref().filter(|_| settings.compression.is_none());
    // Nobody writes LZMA any more, so that such an image is compressed anew.
    base.filter(|base| base.superblock().compressor_id != Compressor::Lzma.id())
}

/// How a squashfs of the time `seconds` since 1970 is written.
fn options(settings: &ImageSettings, seconds: u32, owners: Owners) -> Options {
    let ImageSettings { compression, compact_percent, epoch_seconds, .. } = *settings;
    let options =
        Options { mkfs_time: seconds, owners, latest_mtime: epoch_seconds, compact_percent, ..Options::default() };
    match compression {
        Some(Compression { compressor, level, is_none }) => {
            Options { compressor, level, uncompressed: is_none, ..options }
        }
        None => options,
    }
}

/// Writes the squashfs in another thread while this one shows how far it is and watches for ^C.
fn pack(
    tree: &dyn Tree,
    base: Option<(&Squashfs, Copied)>,
    file: &File,
    start_bytes: u64,
    options: &Options,
    interrupted: &AtomicBool,
    report: Report,
) -> anyhow::Result<writer::Summary> {
    let progress = Progress::default();
    let done = || (progress.bytes_read.load(Ordering::Relaxed), progress.bytes_total.load(Ordering::Relaxed));
    let write = || writer::write_over_copied(tree, base, file, start_bytes, options, &progress);
    watch(write, done, file, &progress, interrupted, report.progress("packing", 0))?.map_err(anyhow::Error::from)
}

/// Runs `write`, which makes `file`, in another thread while this one shows how much of how much is `done` and watches for ^C.
fn watch<T: Send>(
    write: impl FnOnce() -> T + Send,
    done: impl Fn() -> (u64, u64),
    file: &File,
    progress: &Progress,
    interrupted: &AtomicBool,
    bar: Bar,
) -> anyhow::Result<T> {
    let is_packed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let packing = scope.spawn(write);
        // What is written goes to the disk meanwhile, so that the last sync has little left to wait for. Failing is told there.
        let flushing = scope.spawn(|| {
            while !is_packed.load(Ordering::Relaxed) {
                std::thread::park_timeout(FLUSH_INTERVAL);
                let _told_by_the_last_one = file.sync_data();
            }
        });
        while !packing.is_finished() {
            std::thread::park_timeout(TICK);
            progress.cancel.fetch_or(interrupted.load(Ordering::Relaxed), Ordering::Relaxed);
            let (done_bytes, total_bytes) = done();
            bar.set(done_bytes, total_bytes);
        }
        is_packed.store(true, Ordering::Relaxed);
        flushing.thread().unpark();
        packing.join().map_err(|_| anyhow::anyhow!("the thread that packs the image panicked"))
    })
}
