//! Names to nodes, and listings.

use super::state::{Found, Key, State, key_of};
use super::{Ino, Layer, View, unnamed};
use crate::error::Error;
use crate::upper::{Origin, PRIVATE_NAME, Place};
use rustix::fs::Stat;
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::{Attr, Entry, Kind, NodeId};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// The kernel's `NAME_MAX`, which FUSE does not hold callers to.
pub(super) const MAX_NAME_BYTES: usize = 255;
/// How often a lookup is tried again because names changed meanwhile, before it excludes changes.
const UNLOCKED_TRIES: usize = 8;

/// The two directories that one directory of the view is made of.
#[derive(Debug)]
pub(super) struct Both {
    pub(super) upper: Option<Arc<OwnedFd>>,
    pub(super) lower: Option<NodeId>,
    pub(super) is_root: bool,
}

/// An entry whose number may have to be given out yet.
struct Listed {
    name: OsString,
    kind: Kind,
    upper: Option<Key>,
    lower: Option<NodeId>,
    /// Whether `lower` shows through it.
    is_merged: bool,
}

impl View {
    /// Looks `name` up and counts one reference on the result, which [`View::forget`] gives back.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ESTALE` if `parent` is not known, or what the layer or the image says.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<(Ino, Attr), Error> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Errno::NAMETOOLONG.into());
        }
        let Some(layer) = &self.layer else {
            let node = self.lower.lookup(self.lower_of(parent)?, name)?.ok_or(Errno::NOENT)?;
            return Ok((self.ino_of(node), self.lower.attr(node)?));
        };
        for _ in 0..UNLOCKED_TRIES {
            let (both, epoch) = {
                let state = layer.state.read();
                (self.both(layer, &state, parent)?, state.epoch)
            };
            let found = self.find(layer, &both, name)?;
            if found.is_none() && layer.state.read().epoch == epoch {
                return Err(Errno::NOENT.into());
            }
            let mut state = layer.state.write();
            if state.epoch == epoch {
                return self.enter(layer, &mut state, parent, name, found);
            }
        }
        let mut state = layer.state.write();
        let both = self.both(layer, &state, parent)?;
        let found = self.find(layer, &both, name)?;
        self.enter(layer, &mut state, parent, name, found)
    }

    /// Gives `count` references back. The last one drops what is remembered of the node.
    pub fn forget(&self, ino: Ino, count: u64) {
        let Some(layer) = &self.layer else { return };
        let mut state = layer.state.write();
        if let Some(node) = state.nodes.get_mut(&ino)
            && ino != Ino::ROOT
        {
            node.refs = node.refs.saturating_sub(count);
            state.collect(ino);
        }
        let let_go = std::mem::take(&mut state.let_go);
        drop(state);
        for (object, unnamed) in let_go {
            drop(object);
            unnamed::discard(&layer.upper, unnamed.as_ref());
        }
    }

    pub(super) fn enter(
        &self,
        layer: &Layer,
        state: &mut State,
        parent: Ino,
        name: &OsStr,
        found: Option<Found>,
    ) -> Result<(Ino, Attr), Error> {
        let found = found.ok_or(Errno::NOENT)?;
        let ino = self.number(state, &found);
        state.remember(ino, parent, name, &found)?;
        let attr = self.attr_of_found(layer, state, ino, &found)?;
        if let Some(node) = state.nodes.get_mut(&ino) {
            node.refs += 1;
        }
        Ok((ino, attr))
    }

    pub(super) fn number(&self, state: &mut State, found: &Found) -> Ino {
        let lower = found.lower.map(|(node, _)| node).or(found.origin).map(|node| self.ino_of(node));
        match (&found.upper, lower) {
            (Some(stat), from) => {
                state.number(key_of(stat), from, found.kind == Kind::Directory && found.lower.is_some())
            }
            (None, Some(ino)) => ino,
            // `find` never returns neither; the root is the harmless answer.
            (None, None) => Ino::ROOT,
        }
    }

    /// The directories behind `ino`. One that was never looked up is the image's alone.
    pub(super) fn both(&self, layer: &Layer, state: &State, ino: Ino) -> Result<Both, Error> {
        let is_root = ino == Ino::ROOT;
        let Some(node) = state.nodes.get(&ino) else {
            return Ok(Both { upper: None, lower: Some(self.lower_of(ino)?), is_root });
        };
        if node.kind != Kind::Directory {
            return Err(Errno::NOTDIR.into());
        }
        if node.names.is_empty() && !is_root {
            // Removed: nothing is in it any more, and nothing can be put there.
            return Ok(Both { upper: None, lower: None, is_root });
        }
        Ok(Both { upper: state.object(&layer.upper, ino)?, lower: node.lower, is_root })
    }

    /// What lies at `name`; takes no lock.
    pub(super) fn find(&self, layer: &Layer, both: &Both, name: &OsStr) -> Result<Option<Found>, Error> {
        self.find_unless(layer, both, name, |_| None)
    }

    /// As [`View::find`]: what was found before is not looked at for marks again.
    pub(super) fn find_known(
        &self,
        layer: &Layer,
        state: &State,
        both: &Both,
        name: &OsStr,
    ) -> Result<Option<Found>, Error> {
        self.find_unless(layer, both, name, |stat| state.plain(stat))
    }

    /// What lies at `name`, without a look for marks at what is `known`.
    fn find_unless(
        &self,
        layer: &Layer,
        both: &Both,
        name: &OsStr,
        known: impl FnOnce(&Stat) -> Option<Found>,
    ) -> Result<Option<Found>, Error> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Errno::NAMETOOLONG.into());
        }
        if !host::is_name(name) || (both.is_root && name == PRIVATE_NAME) {
            return Ok(None);
        }
        let stat = match &both.upper {
            None => None,
            Some(directory) => {
                let node = layer.upper.node_at(directory.as_fd(), name)?;
                if let Some(found) = node.as_ref().and_then(known) {
                    return Ok(Some(found));
                }
                match layer.upper.place_of(directory.as_fd(), name, node)? {
                    Place::Whiteout => return Ok(None),
                    Place::Absent => None,
                    Place::Object(stat) => Some(stat),
                }
            }
        };
        let Some(stat) = stat else {
            return Ok(self.find_lower(both, name)?.map(Found::lower));
        };
        let kind = host::kind_of(&stat);
        let mut lower = None;
        if let (Kind::Directory, Some(_), Some(parent)) = (kind, both.lower, &both.upper) {
            let directory = host::open_directory(parent.as_fd(), name)?;
            if !layer.upper.is_opaque(directory.as_fd())? {
                lower = self.find_lower(both, name)?.filter(|(_, attr)| attr.kind == Kind::Directory);
            }
        }
        let mut marks = Origin::default();
        if let (None, Kind::File | Kind::Directory, Some(parent)) = (&lower, kind, &both.upper) {
            marks = layer.upper.origin(parent.as_fd(), name)?;
        }
        let stub = marks.content.is_some() && kind == Kind::File;
        if let (Some(path), true) = (&marks.content, stub) {
            lower = Some(self.content_of_stub(path)?);
        }
        Ok(Some(Found { kind, upper: Some(stat), lower, origin: marks.node, stub }))
    }

    /// The image's file that a stub says to have its content of.
    pub(super) fn content_of_stub(&self, path: &[OsString]) -> Result<(NodeId, Attr), Error> {
        let mut node = self.lower.root();
        for name in path {
            // A layer that is not this image's, or that someone made up.
            node = self.lower.lookup(node, name)?.ok_or(Errno::IO)?;
        }
        let attr = self.lower.attr(node)?;
        if attr.kind == Kind::File { Ok((node, attr)) } else { Err(Errno::IO.into()) }
    }

    /// What the image has at `name`, shown or not.
    pub(super) fn find_lower(&self, both: &Both, name: &OsStr) -> Result<Option<(NodeId, Attr)>, Error> {
        let Some(directory) = both.lower else { return Ok(None) };
        match self.lower.lookup(directory, name)? {
            Some(node) => Ok(Some((node, self.lower.attr(node)?))),
            None => Ok(None),
        }
    }

    /// All entries, whiteouts applied, sorted by name. `Entry::node` holds the `Ino` (as `NodeId`) that `lookup` would
    /// give; no references are counted.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE` if `ino` is not known, or what the layer or the image says.
    pub fn entries(&self, ino: Ino) -> Result<Vec<Entry>, Error> {
        let Some(layer) = &self.layer else {
            let mut entries = self.lower.entries(self.lower_of(ino)?)?;
            for entry in &mut entries {
                entry.node = NodeId(self.ino_of(entry.node).0);
            }
            return Ok(entries);
        };
        for _ in 0..UNLOCKED_TRIES {
            let (both, closed) = {
                let state = layer.state.read();
                (self.both(layer, &state, ino)?, state.closed)
            };
            let listed = self.list(layer, &both)?;
            let mut state = layer.state.write();
            // Else whiteouts may have gone between the one directory and the other.
            if state.closed == closed {
                return Ok(self.with_numbers(&mut state, listed));
            }
        }
        let mut state = layer.state.write();
        let listed = self.list(layer, &self.both(layer, &state, ino)?)?;
        Ok(self.with_numbers(&mut state, listed))
    }

    fn with_numbers(&self, state: &mut State, listed: Vec<Listed>) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(listed.len());
        for entry in listed {
            let lower = entry.lower.map(|node| self.ino_of(node));
            let ino = match entry.upper {
                Some(key) => state.number(key, lower, entry.kind == Kind::Directory && entry.is_merged),
                None => lower.unwrap_or(Ino(UNKNOWN)),
            };
            entries.push(Entry { name: entry.name, node: NodeId(ino.0), kind: entry.kind });
        }
        entries
    }

    /// The names that the view shows in a directory.
    pub(super) fn names_in(&self, layer: &Layer, both: &Both) -> Result<Vec<(OsString, Kind)>, Error> {
        Ok(self.list(layer, both)?.into_iter().map(|entry| (entry.name, entry.kind)).collect())
    }

    /// Both listings merged, without a lock.
    fn list(&self, layer: &Layer, both: &Both) -> Result<Vec<Listed>, Error> {
        let mut listed = Vec::new();
        let mut hidden = HashSet::new();
        if let Some(directory) = &both.upper {
            for found in host::list(directory.as_fd())? {
                if layer.upper.is_mark(&found.name) {
                    continue;
                }
                listed.extend(self.list_upper(layer, both, &found)?);
                hidden.insert(found.name);
            }
        }
        if let Some(lower) = both.lower {
            for entry in self.lower.entries(lower)? {
                if hidden.contains(&entry.name) || self.is_hidden(layer, both, &entry.name)? {
                    continue;
                }
                listed.push(Listed {
                    name: entry.name,
                    kind: entry.kind,
                    upper: None,
                    lower: Some(entry.node),
                    is_merged: false,
                });
            }
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    fn list_upper(&self, layer: &Layer, both: &Both, found: &host::HostEntry) -> Result<Option<Listed>, Error> {
        let found = match self.find(layer, both, &found.name)? {
            // Gone meanwhile, so that the image's own may show for this once.
            Some(Found { upper: None, .. }) | None => return Ok(None),
            Some(node) => (found.name.clone(), node),
        };
        let (name, node) = found;
        let is_merged = node.lower.is_some();
        let lower = node.lower.map(|(node, _)| node).or(node.origin);
        Ok(Some(Listed { name, kind: node.kind, upper: node.upper.as_ref().map(key_of), lower, is_merged }))
    }

    /// Whether a name that only the image has does not show: our own directory, or one that a marker takes away.
    fn is_hidden(&self, layer: &Layer, both: &Both, name: &OsStr) -> Result<bool, Error> {
        if both.is_root && name == PRIVATE_NAME {
            return Ok(true);
        }
        match &both.upper {
            Some(directory) => Ok(layer.upper.is_marked(directory.as_fd(), name)?),
            None => Ok(false),
        }
    }
}

/// FUSE's convention for an entry whose number is not told.
const UNKNOWN: u64 = 0xffff_ffff;
