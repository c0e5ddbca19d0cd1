//! Brings nodes of the image into the layer.

use super::state::{Found, State, held_name};
use super::{COPYING, Ino, Layer, View};
use crate::copy_up;
use crate::error::Error;
use crate::upper::Place;
use rustix::fs::{self, AtFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::{Kind, Timestamp};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// For [`View::copy_up`]: all of a file.
pub(super) const WHOLE: u64 = u64::MAX;

impl View {
    /// Makes sure that the layer has `ino`, with at least the first `limit_bytes` of a file.
    pub(super) fn copy_up(&self, ino: Ino, limit_bytes: u64) -> Result<(), Error> {
        let layer = self.layer()?;
        let stripe = usize::try_from(ino.0 % COPYING as u64).unwrap_or(0);
        let _one_at_a_time = layer.copying[stripe].lock();
        let lower = {
            let state = layer.state.read();
            let node = state.node(ino)?;
            match node.lower {
                _ if node.up => return Ok(()),
                Some(lower) if node.kind != Kind::Directory => lower,
                _ => {
                    drop(state);
                    return self.raise(layer, &mut layer.state.write(), ino);
                }
            }
        };
        let staged = copy_up::stage(&layer.upper, &*self.lower, lower, limit_bytes)?;
        let mut state = layer.state.write();
        // A rename of a directory above may have brought it up meanwhile.
        if state.node(ino)?.up {
            return Ok(layer.upper.discard(&staged)?);
        }
        self.install(layer, &mut state, ino, &staged)
    }

    /// Copies the directory `ino` and those above it, without their content, as far as the layer lacks them.
    pub(super) fn raise(&self, layer: &Layer, state: &mut State, ino: Ino) -> Result<(), Error> {
        for ino in state.ancestors(ino)?.into_iter().rev() {
            let node = state.node(ino)?;
            if node.up {
                continue;
            }
            let lower = node.lower.ok_or(Errno::STALE)?;
            let staged = copy_up::stage(&layer.upper, &*self.lower, lower, 0)?;
            self.install(layer, state, ino, &staged)?;
        }
        Ok(())
    }

    /// Puts the finished copy of `ino` where the node is.
    fn install(&self, layer: &Layer, state: &mut State, ino: Ino, staged: &OsStr) -> Result<(), Error> {
        let work = layer.upper.work()?;
        let node = state.node(ino)?;
        let (kind, lower, name) = (node.kind, node.lower, node.names.first().cloned());
        if let (true, Some(lower)) = (kind != Kind::Directory, lower) {
            let links = self.lower.attr(lower)?.nlink;
            if state.names_left(ino, links) > 1 || (links > 1 && name.is_none()) {
                fs::linkat(work, staged, work, held_name(ino), AtFlags::empty())?;
                let node = state.node_mut(ino)?;
                node.held = true;
                node.lower_links = links;
            }
        }
        state.epoch += 1;
        let Some(name) = name else {
            let object = host::open_object(work, staged)?;
            let stat = host::stat(object.as_fd())?;
            state.node_mut(ino)?.orphan = Some(object.into());
            fs::unlinkat(work, staged, AtFlags::empty())?;
            return state.mark_up(ino, Ino::ROOT, OsStr::new(""), &stat);
        };
        self.raise(layer, state, name.parent)?;
        let directory = self.upper_directory(layer, state, name.parent)?;
        let object = host::open_object(work, staged)?;
        keeping_times(directory.as_fd(), || Ok(layer.upper.install(staged, directory.as_fd(), &name.name)?))?;
        if state.node(ino)?.held {
            state.name_gone(ino);
        }
        state.mark_up(ino, name.parent, &name.name, &host::stat(object.as_fd())?)
    }

    /// The layer's directory `ino`, which was raised.
    pub(super) fn upper_directory(&self, layer: &Layer, state: &State, ino: Ino) -> Result<OwnedFd, Error> {
        Ok(layer.upper.directory(&state.path(ino)?)?)
    }

    /// Makes sure that the layer has the name `name` in `parent`, with what the view shows there.
    pub(super) fn bring_up(&self, layer: &Layer, state: &mut State, parent: Ino, name: &OsStr) -> Result<Ino, Error> {
        self.raise(layer, state, parent)?;
        let both = self.both(layer, state, parent)?;
        let found = self.find(layer, &both, name)?.ok_or(Errno::NOENT)?;
        let ino = self.number(state, &found);
        state.remember(ino, parent, name, &found)?;
        if found.upper.is_some() {
            return Ok(ino);
        }
        if found.kind == Kind::Directory {
            self.raise(layer, state, ino)?;
        } else if state.node(ino)?.up {
            self.write_out_link(layer, state, ino, (parent, name))?;
        } else {
            self.copy_to(layer, state, ino, (parent, name), &found)?;
        }
        Ok(ino)
    }

    fn copy_to(
        &self,
        layer: &Layer,
        state: &mut State,
        ino: Ino,
        at: (Ino, &OsStr),
        found: &Found,
    ) -> Result<(), Error> {
        let lower = found.lower.map(|(node, _)| node).ok_or(Errno::STALE)?;
        let staged = copy_up::stage(&layer.upper, &*self.lower, lower, WHOLE)?;
        // The copy goes to the name that is wanted, not to another one of the same file.
        let names = &mut state.node_mut(ino)?.names;
        if let Some(index) = names.iter().position(|known| known.parent == at.0 && known.name == at.1) {
            names.swap(0, index);
        }
        self.install(layer, state, ino, &staged)
    }

    /// Gives a file that was copied up under another name this one too.
    fn write_out_link(&self, layer: &Layer, state: &mut State, ino: Ino, at: (Ino, &OsStr)) -> Result<(), Error> {
        let object = state.object(&layer.upper, ino)?.ok_or(Errno::STALE)?;
        let directory = self.upper_directory(layer, state, at.0)?;
        let staged = layer.upper.temporary();
        stage_link(layer, object.as_fd(), &staged)?;
        keeping_times(directory.as_fd(), || Ok(layer.upper.install(&staged, directory.as_fd(), at.1)?))?;
        state.name_gone(ino);
        state.mark_up(ino, at.0, at.1, &host::stat(object.as_fd())?)?;
        state.release_hold(&layer.upper, ino)
    }

    /// Brings everything below the directory `ino` up, so that nothing of the image shows through it.
    pub(super) fn bring_up_all(&self, layer: &Layer, state: &mut State, ino: Ino) -> Result<(), Error> {
        let mut directories = Vec::new();
        let mut touched = Vec::new();
        let mut pending = vec![ino];
        while let Some(directory) = pending.pop() {
            self.raise(layer, state, directory)?;
            directories.push(directory);
            let both = self.both(layer, state, directory)?;
            if both.lower.is_none() {
                continue;
            }
            for (name, kind) in self.names_in(layer, &both)? {
                let child = self.bring_up(layer, state, directory, &name)?;
                touched.push(child);
                if kind == Kind::Directory {
                    pending.push(child);
                }
            }
        }
        // Children first, so that a crash leaves each directory merged or complete.
        for directory in directories.into_iter().rev() {
            if state.node_mut(directory)?.lower.take().is_some() {
                let opened = self.upper_directory(layer, state, directory)?;
                keeping_times(opened.as_fd(), || {
                    layer.upper.make_opaque(opened.as_fd())?;
                    clear_whiteouts(layer, opened.as_fd())
                })?;
            }
        }
        // A child that is dropped takes its unused parents with it, but this one is still wanted.
        state.node_mut(ino)?.refs += 1;
        for child in touched {
            state.collect(child);
        }
        state.node_mut(ino)?.refs -= 1;
        Ok(())
    }
}

/// Makes the link `staged` in `work` to a node of the layer.
pub(super) fn stage_link(layer: &Layer, object: BorrowedFd<'_>, staged: &OsStr) -> Result<(), Errno> {
    let path = host::path_of(object);
    fs::linkat(fs::CWD, path, layer.upper.work()?, staged, AtFlags::SYMLINK_FOLLOW)
}

/// The kernel's overlayfs shows whiteouts in directories that are not merged, so none must stay there.
fn clear_whiteouts(layer: &Layer, directory: BorrowedFd<'_>) -> Result<(), Error> {
    for entry in host::list(directory)? {
        if let Place::Whiteout = layer.upper.place(directory, &entry.name)? {
            layer.upper.remove(directory, &entry.name)?;
        }
        if layer.upper.is_whiteout_marker(&entry.name) {
            layer.upper.remove(directory, &entry.name)?;
        }
    }
    Ok(())
}

/// A copy-up changes nothing that the user did, so the directory keeps its times.
fn keeping_times(directory: BorrowedFd<'_>, change: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    let before = host::attr_of(&host::stat(directory)?);
    change()?;
    let (atime, mtime): (Timestamp, Timestamp) = (before.atime, before.mtime);
    match copy_up::set_times(directory, atime, mtime) {
        // Only its owner may set a directory's times; they are not worth the change.
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
