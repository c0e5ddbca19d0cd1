//! Packs a tree into an image: under a temporary name beside the target, synced, then renamed, so that a crash leaves
//! the old image or the new one.

use crate::host::{cache_dir, subordinate_ids};
use crate::inspection::everything;
use crate::report::{Report, human_bytes};
use crate::settings::Common;
use anyhow::{Context, bail};
use siphon_fsd::locator::{self, Locator, Opened};
use siphon_fsd::sys::namespaces;
use siphon_image::open::{OCI_CONFIG, facts};
use siphon_image::sif::writer::SifWriter;
use siphon_image::sif::{Arch, DataType};
use siphon_image::squashfs::writer::{self, Options, Owners, Progress};
use siphon_image::tree::Tree;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);
/// What `inspect` prints, kept beside the image so that nothing has to be run for it.
const INSPECT_METADATA: &str = "inspect-metadata.json";

/// Makes the image file `target` from `source`: an image, a sandbox with its changes, or a directory.
///
/// # Errors
/// If the source cannot be opened or read, the target exists and `force` is not given, or it cannot be written. The
/// target is then as it was.
pub fn image(source: &str, target: &Path, force: bool, common: &Common, report: Report) -> anyhow::Result<()> {
    if !force && target.symlink_metadata().is_ok() {
        bail!("build target '{}' already exists. Use --force if you want to overwrite it", target.display());
    }
    if target.is_dir() {
        bail!("{} is a directory; name the image file to make", target.display());
    }
    let owners = own_what_is_ours();
    let context = || format!("could not open image {source}");
    let locator = Locator::parse(source).with_context(context)?;
    let opened = locator::open(&locator, &cache_dir(common), common.cache_bytes).with_context(context)?;
    report.info("Creating SIF file...");
    let bytes = write(&opened, target, owners, report).with_context(|| format!("cannot make {}", target.display()))?;
    report.info(format_args!("Build complete: {} ({})", target.display(), human_bytes(bytes)));
    Ok(())
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

fn write(opened: &Opened, target: &Path, owners: Owners, report: Report) -> anyhow::Result<u64> {
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".siphon-")
        .tempfile_in(directory)
        .with_context(|| format!("cannot write to {}", directory.display()))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    let bytes = write_sif(opened, temporary.as_file(), owners, &interrupted, report)?;
    // As apptainer's images are: a SIF with its launch line is a program.
    temporary.as_file().set_permissions(Permissions::from_mode(0o777 & !umask()))?;
    temporary.as_file().sync_all()?;
    temporary.persist(target)?;
    File::open(directory)?.sync_all()?;
    Ok(bytes)
}

fn write_sif(
    opened: &Opened,
    file: &File,
    owners: Owners,
    interrupted: &AtomicBool,
    report: Report,
) -> anyhow::Result<u64> {
    let tree = opened.tree()?;
    let facts = facts(tree.as_ref())?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let arch =
        opened.image.sif.as_ref().map(|sif| sif.header().arch).or_else(|| Arch::from_name(std::env::consts::ARCH));
    let arch = arch.unwrap_or(Arch::UNKNOWN);
    let mut sif = SifWriter::new(file, arch, uuid::Uuid::new_v4(), i64::try_from(seconds)?);
    if let Some(deffile) = &facts.deffile {
        sif.add_object(DataType::Deffile, "", deffile.as_bytes())?;
    }
    let metadata = everything(tree.as_ref(), &facts);
    sif.add_object(DataType::GenericJson, INSPECT_METADATA, metadata.to_string().as_bytes())?;
    if let Some(config) = opened.image.oci_config() {
        sif.add_object(DataType::GenericJson, OCI_CONFIG, &config)?;
    }
    let options = Options { mkfs_time: u32::try_from(seconds)?, owners, ..Options::default() };
    let summary = pack(tree.as_ref(), file, sif.partition_start(), &options, interrupted, report)?;
    Ok(sif.finish(summary.image_bytes)?)
}

/// Writes the squashfs in another thread while this one shows how far it is and watches for ^C.
fn pack(
    tree: &dyn Tree,
    file: &File,
    start_bytes: u64,
    options: &Options,
    interrupted: &AtomicBool,
    report: Report,
) -> anyhow::Result<writer::Summary> {
    let progress = Progress::default();
    let bar = report.progress("packing", 0);
    std::thread::scope(|scope| {
        let packing = scope.spawn(|| writer::write(tree, file, start_bytes, options, &progress));
        while !packing.is_finished() {
            std::thread::park_timeout(TICK);
            progress.cancel.store(interrupted.load(Ordering::Relaxed), Ordering::Relaxed);
            bar.set(progress.bytes_read.load(Ordering::Relaxed), progress.bytes_total.load(Ordering::Relaxed));
        }
        let summary = packing.join().map_err(|_| anyhow::anyhow!("the thread that packs the image panicked"))?;
        summary.map_err(anyhow::Error::from)
    })
}

fn umask() -> u32 {
    let present = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    nix::sys::stat::umask(present);
    present.bits()
}
