//! Places to mount on, made where the image lacks them: beside its own nodes in memory, or in the layer of a run that
//! has one. Where the kernel merges, a run makes them itself.

mod extended;
mod merged;

use crate::control::MountPointKind;
use crate::fuse::Notifier;
use nix::libc;
use siphon_image::path::resolve;
use siphon_image::tree::{Attr, Error as TreeError, Kind};
use siphon_overlay::error::Error as ViewError;
use siphon_overlay::view::{Ino, Permissions, View};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

pub(super) use extended::Extended;
pub(super) use merged::make_merged;

/// A mount point could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The way to it could not be followed.
    #[error("cannot follow {path} in the image")]
    Follow {
        path: PathBuf,
        #[source]
        source: TreeError,
    },
    /// A file where a directory is needed, or the other way round.
    #[error("{path} in the image is not a {needed}")]
    WrongKind { path: PathBuf, needed: &'static str },
    /// The layer took no new node.
    #[error("cannot make the mount point {path}")]
    Make {
        path: PathBuf,
        #[source]
        source: ViewError,
    },
    /// The kernel could not be told.
    #[error("cannot tell the kernel of the mount point {path}")]
    Notify {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What mount points are made in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places<'a> {
    /// What is mounted.
    pub(super) view: &'a View,
    /// The tree below the view, if that takes mount points instead of a layer, or rather than it.
    pub(super) extended: Option<&'a Extended>,
    pub(super) notifier: &'a Notifier,
}

/// Follows `path` inside the view and makes what is missing of it, with all directories on the way. Returns the path
/// without its leading slash, free of links.
pub(super) fn make(places: Places<'_>, path: &Path, kind: MountPointKind) -> Result<PathBuf, Error> {
    let resolved = resolve(places.view, path, true).map_err(|source| Error::Follow { path: path.into(), source })?;
    let names: Vec<&OsStr> = resolved.path.iter().skip(1).collect();
    let mut parent = Ino::ROOT;
    let mut referenced = Vec::new();
    let mut result = Ok(());
    for (index, name) in names.iter().enumerate() {
        let wanted = if index + 1 == names.len() { kind } else { MountPointKind::Directory };
        let here: PathBuf = resolved.path.iter().take(index + 2).collect();
        match step(places, (parent, name), &here, wanted, path) {
            Ok(ino) => parent = ino,
            Err(error) => {
                result = Err(error);
                break;
            }
        }
        referenced.push(parent);
    }
    for ino in referenced {
        places.view.forget(ino, 1);
    }
    result.map(|()| names.iter().collect())
}

/// One name, that of `here`: looked up, or made. Counts one reference on the result.
fn step(
    places: Places<'_>,
    (parent, name): (Ino, &OsStr),
    here: &Path,
    wanted: MountPointKind,
    path: &Path,
) -> Result<Ino, Error> {
    let Places { view, extended, notifier } = places;
    let failed = |source| Error::Make { path: path.into(), source };
    let found = match view.lookup(parent, name) {
        Err(error) if error.errno() == libc::ENOENT => None,
        found => Some(found.map_err(failed)?),
    };
    if let Some((ino, attr)) = found {
        let fits = (attr.kind == Kind::Directory) == (wanted == MountPointKind::Directory);
        if fits {
            return Ok(ino);
        }
        view.forget(ino, 1);
        let needed = if wanted == MountPointKind::Directory { "directory" } else { "file" };
        return Err(Error::WrongKind { path: path.into(), needed });
    }
    let made = match (extended, wanted) {
        // What the layer alone has, or took away, can only be mended there.
        (Some(extended), _) => {
            let added = add(view, extended, parent, name, wanted);
            added.or_else(|error| {
                if view.is_stateless() { Err(error) } else { make_in_layer(view, (parent, name), here, wanted) }
            })
        }
        (None, _) => make_in_layer(view, (parent, name), here, wanted),
    };
    let ino = match made {
        // Another client, or a program in a container, was faster.
        Err(error) if error.errno() == libc::EEXIST => view.lookup(parent, name).map_err(failed)?.0,
        made => made.map_err(failed)?.0,
    };
    // The kernel may remember that there is no such name, and the listing without it.
    notifier.forget_entry(parent, name).map_err(|source| Error::Notify { path: path.into(), source })?;
    Ok(ino)
}

/// What is made is noted before: a note without its node says nothing.
fn make_in_layer(
    view: &View,
    (parent, name): (Ino, &OsStr),
    here: &Path,
    kind: MountPointKind,
) -> Result<(Ino, Attr), ViewError> {
    view.note_place(here)?;
    match kind {
        MountPointKind::Directory => view.make_directory(parent, name, Permissions::exactly(0o755), None),
        MountPointKind::File => view.make_node(parent, name, Kind::File, Permissions::exactly(0o644), 0, None),
    }
}

fn add(
    view: &View,
    extended: &Extended,
    parent: Ino,
    name: &OsStr,
    kind: MountPointKind,
) -> Result<(Ino, Attr), ViewError> {
    extended.add(view.lower_of(parent)?, name, kind)?;
    view.lookup(parent, name)
}
