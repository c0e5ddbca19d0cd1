//! Who merges the image and its layer: our own view, or the kernel's overlayfs over the image alone.
//!
//! ```text
//! fuse     program -> kernel -> FUSE -> view: layer, image
//! kernel   program -> kernel -> overlayfs: layer | FUSE -> view: image
//! ```
//!
//! The kernel's takes no detour through this process for what is in the layer, so it is the faster one; it is used where
//! a trial on the layer's filesystem shows that it works, since there are kernels that mount it and then fail. A trial
//! counts for the kernel, the filesystem and the ids that it was made with, and is written down beside the states of the
//! daemons. Both engines read and write the same layer (`siphon_overlay::upper`).
//!
//! This process never touches a merged mount itself: a request of a FUSE server to itself outlives a kill. A child that
//! was forked while there was one thread, and holds no FUSE device, makes the mounts and the trial.

mod trial;

use super::state::StateDirectory;
use super::{Ids, Layer, Placement, Spec};
use crate::control::{Engine, EngineName};
use crate::errno::chain;
use crate::fs::{FileSystem, Options, Owners, Xattrs};
use crate::fuse::Mounted;
use crate::sys::mounts::{self, FuseMount, OverlayMount};
use crate::sys::processes::{StandBy, stand_by};
use base16ct::lower::encode_string as hex;
use rustix::process::{getegid, geteuid};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use siphon_image::directory::Directory;
use siphon_overlay::upper::{PRIVATE_NAME, Upper};
use siphon_overlay::view::View;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `TMPFS_MAGIC` of `linux/magic.h`.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Which engine a run asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerEngine {
    /// The kernel's where it works, else our own.
    #[default]
    Auto,
    /// The kernel's, or none.
    Kernel,
    /// Our own.
    Fuse,
}

/// Says why `reason` left the layer to our own view.
pub(super) fn fuse(reason: String) -> Engine {
    Engine { name: EngineName::Fuse, reason }
}

/// Says why the kernel merges.
pub(super) fn kernel(asked: LayerEngine) -> Engine {
    let reason = match asked {
        LayerEngine::Kernel => "asked for, and a trial showed that it works here",
        LayerEngine::Auto | LayerEngine::Fuse => "a trial showed that it works here",
    };
    Engine { name: EngineName::Kernel, reason: reason.to_owned() }
}

/// What the child is to do.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Order {
    trial: Option<PathBuf>,
    mount: Option<OverlayMount>,
    /// A directory of the mounted tree to hide.
    cover: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done {
    /// `None` if there was none.
    trial: Option<Result<(), String>>,
    mount: Result<(), String>,
}

/// The child that makes the kernel's mounts.
#[derive(Debug)]
pub(super) struct Helper {
    child: StandBy<Order, Done>,
    /// Where outcomes of trials are written down.
    known: PathBuf,
    ids: &'static str,
}

impl Helper {
    /// Readies the kernel's engine while this process has one thread. The reason if it cannot be used for `spec`.
    pub(super) fn start(spec: &Spec, state: &StateDirectory) -> Result<Self, String> {
        match (spec.engine, &spec.placement, &spec.layer) {
            (LayerEngine::Fuse, ..) => return Err("asked for".to_owned()),
            (_, Placement::HostMount(_), _) => return Err("a mount in the host's tree is made by FUSE".to_owned()),
            (LayerEngine::Auto, _, Layer::Overlay(_)) => {
                return Err("the kernel would leave the places that a run mounts on in the overlay".to_owned());
            }
            (_, _, Layer::ReadOnly) => return Err("there is no layer".to_owned()),
            (_, _, Layer::Directory(_) | Layer::Overlay(_) | Layer::Temporary) => {}
        }
        let child = stand_by(work).map_err(|error| format!("cannot start a process to mount with: {error}"))?;
        let ids = match spec.ids {
            Ids::Caller => "caller",
            Ids::Root(_) => "root",
            Ids::Host => "host",
        };
        Ok(Self { child, known: state.path().parent().unwrap_or(state.path()).to_owned(), ids })
    }

    /// Tries the kernel's engine where that was not done yet, and mounts `layer` with it.
    pub(super) fn mount(self, upper: &Upper, mount: OverlayMount) -> Result<(), String> {
        let cover = upper.is_private_inside().then(|| mount.target.join(PRIVATE_NAME));
        let mut order = Order { mount: Some(mount), cover, trial: None };
        let known = known_trial(&self.known, upper, self.ids);
        match known.as_deref().and_then(read_trial) {
            Some(Ok(())) => return self.child.act(&order)?.mount,
            Some(Err(reason)) => return Err(reason),
            None => {}
        }
        let done = trial::on(upper, |place| {
            order.trial = Some(place);
            self.child.act(&order)
        })?;
        // What fails at work may have failed for want of space: it is tried again.
        if let (Some(known), Some(trial)) = (&known, &done.trial)
            && trial.as_ref().err().is_none_or(|reason| !reason.starts_with(trial::FAILS_AT_WORK))
        {
            write_trial(known, trial);
        }
        done.trial.unwrap_or(Ok(()))?;
        done.mount
    }
}

/// Tries the kernel's engine on the filesystem of the directory `place`, in this process's namespaces. There must be one
/// thread, and the right to mount.
///
/// # Errors
/// What does not work.
pub fn try_kernel(place: &Path) -> Result<(), String> {
    let child = stand_by(work).map_err(|error| error.to_string())?;
    let upper = Upper::open(place).map_err(|error| error.to_string())?;
    if let Some(reason) = upper.foreign_to_kernel() {
        return Err(reason.to_owned());
    }
    let done = trial::on(&upper, |trial| child.act(&Order { trial: Some(trial), ..Order::default() }))?;
    done.trial.unwrap_or(Ok(()))
}

/// The child's part.
fn work(order: Order) -> Result<Done, String> {
    let trial = order.trial.map(|place| trial::run(&place));
    let mount = match (&trial, order.mount) {
        (Some(Err(reason)), _) => Err(reason.clone()),
        (_, Some(mount)) => make(&mount, order.cover.as_deref()),
        (_, None) => Ok(()),
    };
    Ok(Done { trial, mount })
}

fn make(mount: &OverlayMount, cover: Option<&Path>) -> Result<(), String> {
    mount.mount().map_err(|error| chain(&error))?;
    let covered = cover.map_or(Ok(()), mounts::cover);
    covered.map_err(|error| {
        // What is half done must not stay.
        let _ = mounts::detach(&mount.target);
        chain(&error)
    })
}

/// How other processes of ours follow a descriptor of this one.
pub(super) fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))
}

/// What the kernel's overlayfs reads: the content of an image, and nothing that it would take for its own marks or could
/// not copy.
pub(super) fn below(view: Arc<View>, owners: Owners, far: bool, is_host_root: bool) -> Arc<FileSystem> {
    let xattrs = match (is_host_root, owners) {
        (true, _) => Xattrs::BelowRootsOverlay,
        (false, Owners::AsStored { .. }) => Xattrs::BelowOverlay { capabilities: true },
        (false, Owners::Squash { .. }) => Xattrs::BelowOverlay { capabilities: false },
    };
    let options = Options { owners, read_only: true, stable: true, xattrs, far, keeps_privileges: true };
    Arc::new(FileSystem::new(view, options, Arc::default()))
}

/// Serves the directory `source` on `target` as an image is served, until it is unmounted.
fn serve_directory(source: &Path, target: &Path) -> io::Result<std::thread::JoinHandle<()>> {
    let tree = Directory::open(source).map_err(io::Error::other)?;
    let view = View::new(Arc::new(tree), None).map_err(io::Error::other)?;
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let owners = Owners::Squash { uid, gid };
    let filesystem = below(Arc::new(view), owners, false, false);
    let mount = FuseMount { source: "siphon-trial", target, read_only: true, setuid: false, devices: false };
    let device: OwnedFd = mount.mount(uid, gid).map_err(io::Error::other)?;
    let mounted = Mounted::new(filesystem, device, 1)?;
    std::thread::Builder::new().name("trial".to_owned()).spawn(move || {
        if let Err(error) = mounted.serve() {
            tracing::debug!("the trial is served no more: {error}");
        }
    })
}

/// Where the outcome of a trial on the filesystem of `upper` is written down; `None` if that cannot be told.
fn known_trial(directory: &Path, upper: &Upper, ids: &str) -> Option<PathBuf> {
    let (kind, device) = upper.filesystem().ok()?;
    // The number of one in memory is soon another's.
    let device = if kind == TMPFS_MAGIC { 0 } else { device };
    let kernel = fs::read_to_string("/proc/version").ok()?;
    let text = format!("{} {kernel} {kind:x} {device:x} {ids}", env!("CARGO_PKG_VERSION"));
    let digest = hex(&Sha256::digest(text)[..8]);
    Some(directory.join(format!("overlayfs-{digest}.json")))
}

fn read_trial(known: &Path) -> Option<Result<(), String>> {
    serde_json::from_slice(&fs::read(known).ok()?).ok()
}

/// A trial that cannot be written down is made again next time.
fn write_trial(known: &Path, outcome: &Result<(), String>) {
    let own = known.with_extension(std::process::id().to_string());
    let written = serde_json::to_vec(outcome)
        .map_err(io::Error::from)
        .and_then(|text| fs::write(&own, text))
        .and_then(|()| fs::rename(&own, known));
    if let Err(error) = written {
        tracing::debug!("cannot keep the outcome of a trial: {error}");
    }
}
