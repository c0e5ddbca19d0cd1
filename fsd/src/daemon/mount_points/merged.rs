//! Mount points in a tree that the kernel merges: made through its mount, since it does not see what happens below it.

use super::super::{DaemonError, Joined};
use crate::control::{self, MountPointKind};
use crate::errno::chain;
use crate::sys::namespaces;
use crate::sys::processes::stand_by;
use nix::sys::stat::{Mode as Umask, umask};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use siphon_image::directory::{Directory, host};
use siphon_image::path::resolve;
use siphon_image::tree::Kind;
use siphon_overlay::upper::Upper;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Has a child of this process, which must have one thread, join the daemon's namespaces and make `points` there.
/// Returns them relative to the root, free of links.
pub(in crate::daemon) fn make_merged(
    joined: &Joined,
    points: &[(PathBuf, MountPointKind)],
) -> Result<Vec<PathBuf>, DaemonError> {
    let child = stand_by(|points: Vec<(PathBuf, MountPointKind)>| {
        namespaces::join(joined.pidfd.as_fd(), joined.pid).map_err(|error| chain(&error))?;
        umask(Umask::empty());
        points.iter().map(|(path, kind)| make(&joined.root, path, *kind)).collect::<Result<Vec<_>, _>>()
    });
    let child = child.map_err(|source| DaemonError::Process { step: "fork", source })?;
    let found = child.act(&points.to_vec()).map_err(control::Error::Refused)?;
    let made: Vec<&Path> = found.iter().flat_map(|point| &point.made).map(PathBuf::as_path).collect();
    if let (Some(directory), false) = (&joined.sandbox, made.is_empty()) {
        Upper::note_places_in(directory, &made)
            .map_err(|source| DaemonError::State { path: directory.clone(), source: std::io::Error::other(source) })?;
    }
    Ok(found.into_iter().map(|point| point.path).collect())
}

/// A mount point, and what of it was missing.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    /// Relative to the root, free of links.
    path: PathBuf,
    /// Absolute, in the order in which it was made.
    made: Vec<PathBuf>,
}

fn make(root: &Path, path: &Path, kind: MountPointKind) -> Result<Found, String> {
    let failed =
        |error: &dyn std::error::Error| format!("cannot make the mount point {}: {}", path.display(), chain(error));
    let tree = Directory::open(root).map_err(|error| failed(&error))?;
    let resolved = resolve(&tree, path, true).map_err(|error| failed(&error))?;
    let names: Vec<&OsStr> = resolved.path.iter().skip(1).collect();
    let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = rustix::fs::open(root, open, Mode::empty()).map_err(|error| failed(&error))?;
    let mut new = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let wanted = if index + 1 == names.len() { kind } else { MountPointKind::Directory };
        let (found, is_new) = step(&here, name, wanted).map_err(|error| failed(&error))?;
        here = found;
        if is_new {
            new.push(resolved.path.iter().take(index + 2).collect());
        }
    }
    Ok(Found { path: names.iter().collect(), made: new })
}

/// One name: opened, and made before if it is missing, which is told.
fn step(parent: &OwnedFd, name: &OsStr, wanted: MountPointKind) -> io::Result<(OwnedFd, bool)> {
    let made = match wanted {
        MountPointKind::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        MountPointKind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    // What is there may be on a filesystem that takes nothing new.
    if !matches!(made, Ok(()) | Err(Errno::EXIST | Errno::ROFS | Errno::ACCESS)) {
        made?;
    }
    let found = host::open_object(parent.as_fd(), name)?;
    let is_directory = host::kind_of(&host::stat(found.as_fd())?) == Kind::Directory;
    match is_directory == (wanted == MountPointKind::Directory) {
        true => Ok((found, made.is_ok())),
        false => Err(if is_directory { Errno::ISDIR.into() } else { Errno::NOTDIR.into() }),
    }
}
