//! Brings nodes of the image into the layer.

use super::spot::Spot;
use super::state::{Found, Node, State};
use super::{COPYING, Ino, Layer, View, lower_node};
use crate::copy_up::{self, Content, Staged};
use crate::error::Error;
use crate::upper::Place;
use parking_lot::MutexGuard;
use rustix::fs::{self, AtFlags, OFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::{Kind, NodeId, Timestamp};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// What the layer must have of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Everything but the content of a file.
    Attributes,
    /// Of a file, at least its first bytes.
    Content(u64),
}

pub(super) const ATTRIBUTES: Need = Need::Attributes;
pub(super) const WHOLE: Need = Need::Content(u64::MAX);

impl View {
    /// Makes sure that the layer has what is needed of `ino`. Content is copied without a lock that others need.
    pub(super) fn copy_up(&self, ino: Ino, need: Need) -> Result<(), Error> {
        let layer = self.layer()?;
        let _one_at_a_time = layer.one_at_a_time(ino);
        let (lower, path) = {
            let state = layer.state.read();
            let node = state.node(ino)?;
            match (node.lower, need) {
                (Some(lower), Need::Content(limit)) if node.stub => {
                    let object = state.object(&layer.upper, ino)?.ok_or(Errno::STALE)?;
                    drop(state);
                    return self.complete_stub(layer, ino, lower, object.as_fd(), limit);
                }
                _ if node.up => return Ok(()),
                (Some(lower), _) if node.kind != Kind::Directory => (lower, path_of(&state, node)?),
                _ => {
                    drop(state);
                    return self.raise(layer, &mut layer.state.write(), ino);
                }
            }
        };
        let content = match (&path, need) {
            (Some(path), Need::Attributes) => Content::Stays(path),
            (None, Need::Attributes) => Content::UpTo(u64::MAX),
            (_, Need::Content(limit)) => Content::UpTo(limit),
        };
        let staged = copy_up::stage(&layer.upper, &*self.lower, lower, content)?;
        let mut state = layer.state.write();
        // A rename of a directory above may have brought it up meanwhile.
        let node = state.node(ino)?;
        if !node.up {
            return self.install(layer, &mut state, ino, &staged);
        }
        layer.upper.discard(&staged.name)?;
        if !node.stub || need == Need::Attributes {
            return Ok(());
        }
        let object = state.object(&layer.upper, ino)?.ok_or(Errno::STALE)?;
        drop(state);
        let Need::Content(limit) = need else { return Ok(()) };
        self.complete_stub(layer, ino, lower, object.as_fd(), limit)
    }

    /// Gives a stub the content that it lacks, cut to `limit` bytes first, which is done at once: what a crash leaves
    /// is a stub of one length or the other.
    fn complete_stub(
        &self,
        layer: &Layer,
        ino: Ino,
        lower: NodeId,
        object: BorrowedFd<'_>,
        limit: u64,
    ) -> Result<(), Error> {
        if host::attr_of(&host::stat(object)?).size > limit {
            fs::ftruncate(host::reopen(object, OFlags::WRONLY)?, limit)?;
        }
        copy_up::complete(&layer.upper, &*self.lower, lower, object)?;
        layer.state.write().mark_complete(ino);
        Ok(())
    }

    /// Completes the files that are held for the sake of names in the image, and returns how many there were.
    pub(super) fn complete_held(&self, layer: &Layer) -> Result<u64, Error> {
        let held = layer.state.read().held_stubs();
        for ino in &held {
            let (directory, name) = layer.upper.held_at(lower_node(*ino))?;
            let path = layer.upper.origin(directory, &name)?.content.ok_or(Errno::IO)?;
            let (lower, _) = self.content_of_stub(&path)?;
            self.complete_stub(layer, *ino, lower, layer.upper.held(lower_node(*ino))?.as_fd(), u64::MAX)?;
        }
        Ok(held.len() as u64)
    }

    /// Completes a stub that a crash left shorter than the image's file, which is then no content for it.
    pub(super) fn repair(&self, ino: Ino) -> Result<(), Error> {
        let Some(layer) = &self.layer else { return Ok(()) };
        let size = {
            let state = layer.state.read();
            match state.nodes.get(&ino).map(|node| (node.stub, node.lower)) {
                Some((true, Some(lower))) => {
                    let object = state.object(&layer.upper, ino)?.ok_or(Errno::STALE)?;
                    let size = host::attr_of(&host::stat(object.as_fd())?).size;
                    (size != self.lower.attr(lower)?.size).then_some(size)
                }
                _ => None,
            }
        };
        match size {
            None => Ok(()),
            Some(_) if layer.upper.is_locked() => self.copy_up(ino, WHOLE),
            // What is only read must not change, and the layer's writer may be at it.
            Some(_) => Err(Errno::IO.into()),
        }
    }

    /// Copies the directory `ino` and those above it, without their content, as far as the layer lacks them.
    pub(super) fn raise(&self, layer: &Layer, state: &mut State, ino: Ino) -> Result<(), Error> {
        for ino in state.ancestors(ino)?.into_iter().rev() {
            let node = state.node(ino)?;
            if node.up {
                continue;
            }
            let lower = node.lower.ok_or(Errno::STALE)?;
            let staged = copy_up::stage(&layer.upper, &*self.lower, lower, Content::UpTo(0))?;
            self.install(layer, state, ino, &staged)?;
        }
        Ok(())
    }

    /// Puts the finished copy of `ino` where the node is.
    fn install(&self, layer: &Layer, state: &mut State, ino: Ino, staged: &Staged) -> Result<(), Error> {
        let work = layer.upper.work()?;
        let name = state.node(ino)?.names.first().cloned();
        state.node_mut(ino)?.stub = staged.is_stub;
        let total = self.links_in_image(state, ino)?;
        if total > 1 && (state.names_left(ino, total) > 1 || name.is_none()) {
            state.hold(&layer.upper, ino, total, &staged.name)?;
        }
        state.epoch += 1;
        let Some(name) = name else {
            let object = host::open_object(work, &staged.name)?;
            let stat = host::stat(object.as_fd())?;
            let node = state.node_mut(ino)?;
            node.orphan = Some(Spot::Held(object.into()).pinned(node)?);
            fs::unlinkat(work, &staged.name, AtFlags::empty())?;
            return state.mark_up(ino, Ino::ROOT, OsStr::new(""), &stat);
        };
        self.raise(layer, state, name.parent)?;
        let directory = self.upper_directory(layer, state, name.parent)?;
        let object = host::open_object(work, &staged.name)?;
        keeping_times(directory.as_fd(), || Ok(layer.upper.install(&staged.name, directory.as_fd(), &name.name)?))?;
        state.mark_up(ino, name.parent, &name.name, &host::stat(object.as_fd())?)?;
        if total > 1 {
            state.name_gone(&layer.upper, ino, total)?;
        }
        Ok(())
    }

    /// How many names the file `ino` has in the image; 0 of a directory and of what is the layer's own.
    fn links_in_image(&self, state: &State, ino: Ino) -> Result<u32, Error> {
        let node = state.node(ino)?;
        match node.lower {
            Some(lower) if node.kind != Kind::Directory => Ok(self.lower.attr(lower)?.nlink),
            _ => Ok(0),
        }
    }

    /// The layer's directory `ino`, which was raised.
    pub(super) fn upper_directory(&self, layer: &Layer, state: &State, ino: Ino) -> Result<Arc<OwnedFd>, Error> {
        state.directory(&layer.upper, ino)
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
        let path = path_of(state, state.node(ino)?)?;
        let content = path.as_deref().map_or(Content::UpTo(u64::MAX), Content::Stays);
        let staged = copy_up::stage(&layer.upper, &*self.lower, lower, content)?;
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
        state.mark_up(ino, at.0, at.1, &host::stat(object.as_fd())?)?;
        let total = state.links(ino).map_or(1, |links| links.total);
        state.name_gone(&layer.upper, ino, total)?;
        state.release_hold(&layer.upper, ino)
    }

    /// As [`View::bring_up_all`], with the lock for one directory at a time.
    pub(super) fn bring_up_below(&self, ino: Ino) -> Result<(), Error> {
        let layer = self.layer()?;
        let mut entered = Vec::new();
        let done = self.bring_up_each(layer, ino, &mut entered);
        entered.into_iter().rev().for_each(|child| self.forget(child, 1));
        done
    }

    fn bring_up_each(&self, layer: &Layer, ino: Ino, entered: &mut Vec<Ino>) -> Result<(), Error> {
        let mut pending = vec![(ino, false)];
        while let Some((directory, is_ready)) = pending.pop() {
            if is_ready {
                let mut state = layer.state.write();
                state.epoch += 1;
                self.bring_up_all(layer, &mut state, directory)?;
                continue;
            }
            let both = self.both(layer, &layer.state.read(), directory)?;
            let Some(lower) = both.lower else { continue };
            // What the copy of the directory itself needs is in memory then, so that an image that answers late holds up
            // nobody else.
            self.lower.attr(lower)?;
            self.lower.xattrs(lower)?;
            pending.push((directory, true));
            for (name, _) in self.names_in(layer, &both)? {
                let (child, attr) = match self.lookup(directory, &name) {
                    Err(error) if error.errno() == Errno::NOENT.raw_os_error() => continue,
                    other => other?,
                };
                if attr.kind == Kind::Directory {
                    entered.push(child);
                    pending.push((child, false));
                } else {
                    let done = self.copy_up(child, ATTRIBUTES);
                    self.forget(child, 1);
                    done?;
                }
            }
        }
        Ok(())
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
                state.closed += 1;
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

impl Layer {
    /// Excludes others who copy the content of `ino`.
    pub(super) fn one_at_a_time(&self, ino: Ino) -> MutexGuard<'_, ()> {
        self.copying[usize::try_from(ino.0 % COPYING as u64).unwrap_or(0)].lock()
    }
}

/// The names that lead to a node of the image that the layer does not have: there and here they are the same, since
/// what is moved is brought up first. `None` if it has none left.
fn path_of(state: &State, node: &Node) -> Result<Option<Vec<OsString>>, Error> {
    let Some(name) = node.names.first() else { return Ok(None) };
    let mut path = state.path(name.parent)?;
    path.push(name.name.clone());
    Ok(Some(path))
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
