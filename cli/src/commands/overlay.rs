//! `siphon overlay create`.

use crate::args::OverlayCreateArgs;
use crate::report::Report;
use anyhow::{Context, bail};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use siphon_fsd::sys::ext::{self, NewExt};
use siphon_image::read_at::{FileAt, ReadAt};
use siphon_image::sif::append::{append_partition, partition_start};
use siphon_image::sif::{self, DataType, FilesystemType, Partition, PartitionType, Sif};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::NamedTempFile;

/// The smallest that apptainer makes.
const MIN_MIB: u64 = 64;
/// The largest that ext3 can have, with blocks of 4 KiB.
const MAX_MIB: u64 = 16 << 20;
/// How much is copied at once.
const CHUNK_BYTES: usize = 1 << 20;
/// First bytes of a file that show whether it is a SIF.
const HEAD_BYTES: u64 = 128;

/// Makes an ext3 image, or adds a partition to a SIF image.
///
/// # Errors
/// If there is an image already that is no SIF, or one with an overlay or a signature; if `mke2fs` is not there; if the
/// image cannot be written, which is then as it was.
pub fn create(args: &OverlayCreateArgs, report: Report) -> anyhow::Result<()> {
    if args.size < MIN_MIB {
        bail!("image size must be equal or greater than {MIN_MIB} MiB");
    }
    if args.size > MAX_MIB {
        bail!("image size must be equal or less than {MAX_MIB} MiB, the most that ext3 can have");
    }
    // mke2fs ends by the same signal, and what was made so far goes.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    let context = || format!("while opening image file {}", args.image.display());
    let file = match OpenOptions::new().read(true).write(true).open(&args.image) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let made = make(args, &interrupted)?;
            if let Err(error) = made.persist_noclobber(&args.image) {
                return Err(error.error).with_context(|| format!("cannot write {}", args.image.display()));
            }
            report.info(format_args!("Made {}; use it with --overlay {0}", args.image.display()));
            return Ok(());
        }
        Err(_) if args.image.is_dir() => bail!("destination image must be SIF image"),
        opened => opened.with_context(context)?,
    };
    let bytes = FileAt::new(file.try_clone()?).with_context(context)?;
    let mut head = vec![0; usize::try_from(bytes.len().min(HEAD_BYTES))?];
    bytes.read_exact_at(&mut head, 0).with_context(context)?;
    if sif::is_sif(&head) {
        return add(args, &file, &interrupted, report);
    }
    match siphon_fsd::layers::Overlay::find(&args.image)?.is_writable() {
        true => bail!("EXT3 overlay image {} already exists", args.image.display()),
        false => bail!("destination image must be SIF image"),
    }
}

/// A file system in a file of its own, beside the image.
fn make(args: &OverlayCreateArgs, interrupted: &AtomicBool) -> anyhow::Result<NamedTempFile> {
    let directory = args.image.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let context = || format!("cannot write to {}", directory.display());
    let file = tempfile::Builder::new().prefix(".siphon-").tempfile_in(directory).with_context(context)?;
    let size_bytes = args.size << 20;
    if !args.sparse {
        reserve(file.as_file(), 0, size_bytes).with_context(context)?;
    }
    file.as_file().set_len(size_bytes).with_context(context)?;
    let layout = layout(&args.create_dir)?;
    let made =
        ext::make(&NewExt { file: file.path(), content: layout.path(), as_root: args.fakeroot, sparse: args.sparse });
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    made?;
    file.as_file().sync_all().with_context(context)?;
    Ok(file)
}

/// What an overlay has in it: `upper`, with directories that were asked for, and `work`.
fn layout(directories: &[PathBuf]) -> anyhow::Result<tempfile::TempDir> {
    let layout = tempfile::Builder::new().prefix("siphon-overlay-").tempdir()?;
    for name in ["upper", "work"] {
        std::fs::create_dir(layout.path().join(name))?;
    }
    for directory in directories {
        let mut path = layout.path().join("upper");
        for component in directory.components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    bail!("overlay directory {} may lead outside of the overlay", directory.display());
                }
            }
        }
        std::fs::create_dir_all(&path)?;
    }
    Ok(layout)
}

/// Adds an overlay partition to the SIF image in `file`.
fn add(args: &OverlayCreateArgs, file: &File, interrupted: &AtomicBool, report: Report) -> anyhow::Result<()> {
    let image = args.image.display();
    let context = || format!("while adding an overlay to {image}");
    if flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("{image} is being changed by another process");
    }
    let sif = Sif::open(Arc::new(FileAt::new(file.try_clone()?)?)).with_context(context)?;
    let Some(primary) = sif.primary_partition() else { bail!("no root file system found in {image}") };
    if sif.descriptors().iter().any(|descriptor| descriptor.data_type == DataType::Signature) {
        bail!("SIF image {image} is signed: could not add writable overlay");
    }
    let is_overlay =
        |partition: Partition| partition.kind == PartitionType::Overlay && partition.filesystem == FilesystemType::Ext3;
    let mut descriptors = sif.descriptors().iter();
    if let Some(known) = descriptors.find(|descriptor| descriptor.partition().is_some_and(is_overlay)) {
        bail!("a writable overlay partition already exists in {image} (ID: {}), delete it first", known.id);
    }
    let made = make(args, interrupted)?;
    let len = file.metadata()?.len();
    let (start, size) = (partition_start(len), args.size << 20);
    let partition = Partition {
        filesystem: FilesystemType::Ext3,
        kind: PartitionType::Overlay,
        arch: primary.partition().map_or(sif::Arch::UNKNOWN, |partition| partition.arch),
    };
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let added = copy(made.as_file(), file, start, size, args.sparse, interrupted).and_then(|()| {
        Ok(append_partition(file, &sif, partition, primary.group, (start, size), i64::try_from(seconds)?)?)
    });
    if let Err(error) = added {
        // Nothing refers to what lies behind the old end.
        let _ = file.set_len(len);
        return Err(error).with_context(context);
    }
    report.info(format_args!("Added an overlay partition to {image}; use it with --writable"));
    Ok(())
}

/// Copies the file system, without its empty blocks.
fn copy(from: &File, to: &File, start: u64, size: u64, sparse: bool, interrupted: &AtomicBool) -> anyhow::Result<()> {
    to.set_len(start + size)?;
    if !sparse {
        reserve(to, start, size)?;
    }
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut done = 0;
    while done < size {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let len = usize::try_from(size - done).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        from.read_exact_at(&mut chunk[..len], done)?;
        if chunk[..len].iter().any(|byte| *byte != 0) {
            to.write_all_at(&chunk[..len], start + done)?;
        }
        done += len as u64;
    }
    Ok(())
}

/// Has the disk hold room ready. A filesystem that cannot takes it when it is written to.
fn reserve(file: &File, start: u64, size: u64) -> std::io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), start, size) {
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        other => Ok(other?),
    }
}
