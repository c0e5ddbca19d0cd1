//! The image served alone, out of sight, for the kernel to merge it with a layer.

use super::{Serving, serve};
use crate::daemon::engine::{self, Helper};
use crate::daemon::serve::conversation::Parts;
use crate::daemon::state::StateDirectory;
use crate::daemon::{DaemonError, Ids, Layer, Spec};
use crate::errno::chain;
use crate::fs::Owners;
use crate::layers::Mounts;
use crate::sys::mounts::{self, FuseMount, OverlayMount};
use rustix::process::{getegid, geteuid};
use siphon_overlay::upper::Upper;
use siphon_overlay::view::View;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

/// The note in the layer that the kernel merges it, which is taken away with this.
#[derive(Debug)]
struct Noted(Upper);

impl Noted {
    fn new(upper: &Upper, upperdir: &Path) -> Result<Self, String> {
        let noted = Self(upper.try_clone().map_err(|error| error.to_string())?);
        upper.note_merged(Some(upperdir)).map_err(|error| chain(&error))?;
        Ok(noted)
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        // One that stays names a mount that is not there any more.
        let _ = self.0.note_merged(None);
    }
}

/// Serves the image alone, out of sight, and has the kernel merge it with the layer on the mount point. The reason if
/// that cannot be; then nothing of it stays.
pub(super) fn serve_by_kernel(
    helper: Helper,
    parts: &Parts,
    spec: &Spec,
    state: &StateDirectory,
    owners: Owners,
    merged: &FuseMount<'_>,
    (workers, far, mounts): (usize, bool, Arc<Mounts>),
) -> Result<Serving, String> {
    if let Some(reason) = parts.upper.foreign_to_kernel() {
        return Err(reason.to_owned());
    }
    if let (Layer::Directory(_), Ids::Root(_)) = (&spec.layer, &spec.ids) {
        return Err("root in the container could change what siphon notes down in the sandbox".to_owned());
    }
    let directories = parts.upper.kernel_directories();
    let directories =
        directories.map_err(|error| format!("overlayfs has no place beside the layer to work in: {error}"))?;
    let (upper, work) = (engine::path_of(directories.upper()), engine::path_of(directories.work()));
    let noted = Noted::new(&parts.upper, &upper)?;
    let view = View::new(parts.lower.clone(), None).map_err(|error| chain(&error))?;
    let filesystem = engine::below(Arc::new(view), owners, far, spec.ids == Ids::Host);
    let lower = state.lower();
    make_directory(&lower).map_err(|error| chain(&error))?;
    let mount = FuseMount { target: &lower, read_only: true, ..merged.clone() };
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let served = mount.mount(uid, gid).map_err(|error| chain(&error)).and_then(|device| {
        serve(filesystem, device, workers, (noted, directories, mounts)).map_err(|error| error.to_string())
    });
    let overlay = OverlayMount {
        source: merged.source.to_owned(),
        target: merged.target.to_owned(),
        lower: lower.clone(),
        upper,
        work,
        setuid: merged.setuid,
    };
    let result = served.and_then(|serving| match helper.mount(&parts.upper, overlay) {
        Ok(()) => Ok(serving),
        Err(reason) => {
            // A helper that died may have mounted. What serves the image ends with its last mount.
            let _ = mounts::detach(merged.target);
            discard_directory(&lower);
            Err(reason)
        }
    });
    // What the kernel merges, it holds by itself.
    discard_directory(&lower);
    result
}

pub(super) fn make_directory(path: &Path) -> Result<(), DaemonError> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    made.map_err(|source| DaemonError::State { path: path.into(), source })
}

/// Takes a directory away, and what is mounted there, if there is one.
pub(super) fn discard_directory(path: &Path) {
    let _ = mounts::detach(path);
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}
