//! The nodes that were looked up: their names, and which of them the layer has.

mod directories;
mod links;
mod numbers;

pub(super) use directories::DEFAULT_ACL;

use super::Ino;
use super::unnamed::Unnamed;
use crate::error::Error;
use crate::upper::{Links, Upper};
use directories::OpenDirectories;
use numbers::Numbers;
use parking_lot::Mutex;
use rustix::fs::Stat;
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::{Attr, Kind, NodeId};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Deepest nesting of directories: a damaged image may have a directory inside itself.
const MAX_DEPTH: usize = 4096;

/// Device and inode number on the layer's filesystem.
pub(super) type Key = (u64, u64);

pub(super) fn key_of(stat: &Stat) -> Key {
    (stat.st_dev, stat.st_ino)
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) nodes: HashMap<Ino, Node>,
    numbers: Numbers,
    open: Mutex<OpenDirectories>,
    /// What is known of the names in the image of its files, by their numbers.
    links: HashMap<Ino, Links>,
    /// Those of them that are held and have their content in the image.
    held_stubs: HashSet<Ino>,
    /// Counts changes of names, so that what was found without the lock is known to be still true.
    pub(super) epoch: u64,
    /// Counts directories that ceased to be merged, whose whiteouts then go.
    pub(super) closed: u64,
    /// What held removed nodes that nobody refers to any more. To close it gives their space back, for which nobody else is to
    /// wait: it is for who unlocks the state.
    pub(super) let_go: Vec<(Arc<OwnedFd>, Option<Unnamed>)>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// The image's directory that shows through, or the image's file that this is or was.
    pub(super) lower: Option<NodeId>,
    /// Whether the layer has it.
    pub(super) up: bool,
    /// Whether the layer has its attributes only, and its content is that of `lower`.
    pub(super) stub: bool,
    /// Its known names: at most one of a directory. None once it was removed.
    pub(super) names: Vec<Name>,
    /// Holds a node of the layer that lost its last known name, or has got none yet.
    pub(super) orphan: Option<Arc<OwnedFd>>,
    /// Where a file is that has got none yet.
    pub(super) unnamed: Option<Unnamed>,
    /// Whether the layer keeps a link of the copy of a file that has more names in the image.
    pub(super) held: bool,
    pub(super) refs: u64,
    /// Names in this directory that nodes are remembered by.
    children: u64,
    /// Told to open files when the content moves to the layer.
    pub(super) copied: Option<Arc<AtomicBool>>,
    key: Option<Key>,
    /// Whether it was made without capabilities and ACLs a moment ago, and has got none since.
    pub(super) is_bare: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) parent: Ino,
    pub(super) name: OsString,
    /// Whether the layer has this name.
    pub(super) up: bool,
}

/// What lies at a name.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) kind: Kind,
    /// The layer's node.
    pub(super) upper: Option<Stat>,
    /// The image's node: without an upper one, the directory merged with it, or the file that a stub has its content of.
    pub(super) lower: Option<(NodeId, Attr)>,
    /// The image's node that the upper one is a copy of, if that is known.
    pub(super) origin: Option<NodeId>,
    /// Whether the upper one is a stub.
    pub(super) stub: bool,
}

impl Found {
    /// What the image alone has.
    pub(super) fn lower(lower: (NodeId, Attr)) -> Self {
        Self { kind: lower.1.kind, upper: None, lower: Some(lower), origin: None, stub: false }
    }
}

impl State {
    pub(super) fn new(upper: &Upper, lower_root: NodeId) -> Result<Self, Error> {
        let lower = (!upper.is_opaque(upper.root())?).then_some(lower_root);
        let stat = host::stat(upper.root())?;
        let mut root = Node::new(Kind::Directory, lower);
        root.up = true;
        root.refs = 1;
        root.key = Some(key_of(&stat));
        let mut state = Self {
            nodes: HashMap::from([(Ino::ROOT, root)]),
            numbers: Numbers::new(stat.st_dev),
            open: Mutex::default(),
            links: HashMap::new(),
            held_stubs: HashSet::new(),
            epoch: 0,
            closed: 0,
            let_go: Vec::new(),
        };
        state.numbers.own(key_of(&stat), Ino::ROOT);
        state.read_links(upper)?;
        Ok(state)
    }

    pub(super) fn node(&self, ino: Ino) -> Result<&Node, Error> {
        self.nodes.get(&ino).ok_or_else(|| Errno::STALE.into())
    }

    pub(super) fn node_mut(&mut self, ino: Ino) -> Result<&mut Node, Error> {
        self.nodes.get_mut(&ino).ok_or_else(|| Errno::STALE.into())
    }

    /// The names that lead from the root to the directory `ino`.
    pub(super) fn path(&self, ino: Ino) -> Result<Vec<OsString>, Error> {
        let mut names = Vec::new();
        let mut here = ino;
        while here != Ino::ROOT {
            let name = self.node(here)?.names.first().ok_or(Errno::NOENT)?;
            if names.len() == MAX_DEPTH {
                return Err(Errno::LOOP.into());
            }
            names.push(name.name.clone());
            here = name.parent;
        }
        names.reverse();
        Ok(names)
    }

    /// The directories from `ino`, which comes first, up to the root, which comes last.
    pub(super) fn ancestors(&self, ino: Ino) -> Result<Vec<Ino>, Error> {
        let mut found = vec![ino];
        let mut here = ino;
        while here != Ino::ROOT {
            here = self.node(here)?.names.first().ok_or(Errno::NOENT)?.parent;
            if found.len() == MAX_DEPTH {
                return Err(Errno::LOOP.into());
            }
            found.push(here);
        }
        Ok(found)
    }

    /// The number of a node of the layer: that of the image's node that it is a copy of or merged with, unless something
    /// else has that, or else what its inode number in the layer makes.
    pub(super) fn number(&mut self, key: Key, from: Option<Ino>, is_merged: bool) -> Ino {
        if let Some(known) = self.numbers.known(key) {
            return known;
        }
        let nodes = &self.nodes;
        let is_taken = |ino: Ino| ino != Ino::ROOT && nodes.get(&ino).is_some_and(Node::is_removed_directory);
        // After a crash the image's own may still show elsewhere.
        let is_free =
            |ino: &Ino| self.numbers.key_of(*ino).is_none() && !is_taken(*ino) && (is_merged || !self.shows(*ino));
        let from = from.filter(is_free);
        self.numbers.give(key, from, is_taken)
    }

    /// Whether `ino` is a node of the image that the layer does not have, at a name that is known.
    fn shows(&self, ino: Ino) -> bool {
        self.nodes.get(&ino).is_some_and(|node| !node.up && !node.names.is_empty())
    }

    /// Remembers that `ino` is at `name` in `parent`, unless the parent is unknown: then the node needs no state.
    pub(super) fn remember(&mut self, ino: Ino, parent: Ino, name: &OsStr, found: &Found) -> Result<(), Error> {
        if !self.nodes.contains_key(&parent) {
            return Ok(());
        }
        let lower = found.lower.map(|(node, _)| node);
        if !self.nodes.contains_key(&ino) {
            let node = self.made(ino, found, lower)?;
            self.nodes.insert(ino, node);
        }
        let node = self.node_mut(ino)?;
        if let Some(stat) = &found.upper {
            node.up = true;
            node.key = Some(key_of(stat));
            if !node.held && node.stub != found.stub {
                // Its writer is another process.
                node.stub = found.stub;
                if let Some(copied) = &node.copied {
                    copied.store(!found.stub, Ordering::Release);
                }
            }
        }
        let up = found.upper.is_some();
        if let Some(known) = node.names.iter_mut().find(|known| known.parent == parent && known.name == name) {
            known.up |= up;
            return Ok(());
        }
        if node.kind == Kind::Directory && (!node.names.is_empty() || ino == Ino::ROOT) {
            // A directory has one name: the image is damaged, or someone else moved it about in the layer.
            return Err(Errno::STALE.into());
        }
        node.names.push(Name { parent, name: name.to_owned(), up });
        if up {
            (node.orphan, node.unnamed) = (None, None);
        }
        self.node_mut(parent)?.children += 1;
        Ok(())
    }

    /// Remembers the new file `object`, which has no name, and counts a reference.
    pub(super) fn remember_unnamed(&mut self, ino: Ino, stat: &Stat, object: OwnedFd, unnamed: Unnamed) -> &mut Node {
        let node = self.nodes.entry(ino).or_insert_with(|| Node::new(Kind::File, None));
        node.up = true;
        node.key = Some(key_of(stat));
        node.orphan = Some(object.into());
        node.unnamed = Some(unnamed);
        node.refs += 1;
        node
    }

    /// A node that is remembered from now on.
    fn made(&self, ino: Ino, found: &Found, lower: Option<NodeId>) -> Result<Node, Error> {
        let mut node = Node::new(found.kind, lower);
        node.stub = found.stub;
        if self.links.get(&ino).is_some_and(|links| links.held) && found.kind != Kind::Directory {
            node.held = true;
            node.up = true;
            node.stub = self.held_stubs.contains(&ino);
            node.key = self.numbers.key_of(ino);
        }
        Ok(node)
    }

    /// Notes that the layer now has `ino` at its known name `name` in `parent`.
    pub(super) fn mark_up(&mut self, ino: Ino, parent: Ino, name: &OsStr, stat: &Stat) -> Result<(), Error> {
        self.numbers.own(key_of(stat), ino);
        let node = self.node_mut(ino)?;
        node.up = true;
        node.key = Some(key_of(stat));
        for known in &mut node.names {
            known.up |= known.parent == parent && known.name == name;
        }
        if let (Some(copied), false) = (&node.copied, node.stub) {
            copied.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Notes that the layer has the content of `ino` too.
    pub(super) fn mark_complete(&mut self, ino: Ino) {
        self.epoch += 1;
        self.held_stubs.remove(&ino);
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.stub = false;
        if let Some(copied) = &node.copied {
            copied.store(true, Ordering::Release);
        }
    }

    /// Forgets what is known of the xattrs of `ino`, which change before the state is unlocked: a directory may get or lose an ACL
    /// that it hands on.
    pub(super) fn xattrs_change(&mut self, ino: Ino) {
        self.open.lock().close(ino);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.is_bare = false;
        }
    }

    /// Notes that the directory `ino` was removed. Where the layer's filesystem keeps nothing of it for who has it open, such as
    /// NFS and bindfs, the next node may get its number there at once.
    pub(super) fn directory_gone(&mut self, ino: Ino) {
        self.open.lock().close(ino);
        if let Some(key) = self.nodes.get_mut(&ino).and_then(|node| node.key.take()) {
            self.numbers.disown(key);
        }
    }

    /// Forgets one name of `ino`.
    pub(super) fn drop_name(&mut self, ino: Ino, parent: Ino, name: &OsStr) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let before = node.names.len();
        node.names.retain(|known| known.parent != parent || known.name != name);
        if node.names.len() < before {
            self.drop_child(parent);
        }
        self.collect(ino);
    }

    fn drop_child(&mut self, parent: Ino) {
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children = node.children.saturating_sub(1);
        }
    }

    /// Forgets the number of a node whose last link is gone, unless it is still in use.
    pub(super) fn drop_key(&mut self, key: Key) {
        if self.numbers.known(key).is_some_and(|ino| !self.nodes.contains_key(&ino)) {
            self.numbers.disown(key);
        }
    }

    /// Drops the state of nodes that nobody refers to, from `ino` upwards.
    pub(super) fn collect(&mut self, ino: Ino) {
        let mut pending = vec![ino];
        while let Some(ino) = pending.pop() {
            if !self.nodes.get(&ino).is_some_and(Node::is_unused) {
                continue;
            }
            let Some(node) = self.nodes.remove(&ino) else { continue };
            if node.names.is_empty() {
                if self.links.get(&ino).is_some_and(|links| links.left() == 0 || links.total <= 1) {
                    self.links.remove(&ino);
                }
                let unlinked = node.orphan.as_ref().and_then(|fd| host::stat(fd.as_fd()).ok());
                let is_gone = node.unnamed.is_some() || unlinked.is_none_or(|stat| stat.st_nlink == 0);
                if let (Some(key), true) = (node.key, is_gone) {
                    self.numbers.disown(key);
                }
            }
            for name in node.names {
                self.drop_child(name.parent);
                pending.push(name.parent);
            }
            self.let_go.extend(node.orphan.map(|orphan| (orphan, node.unnamed)));
        }
    }

    /// Makes sure that a node can be reached once the layer's `name` of it in `parent` is gone.
    pub(super) fn keep_without(&mut self, upper: &Upper, ino: Ino, parent: Ino, name: &OsStr) -> Result<(), Error> {
        let Some(node) = self.nodes.get(&ino) else { return Ok(()) };
        let others = node.names.iter().any(|known| known.up && (known.parent != parent || known.name != name));
        if node.up && !others && !node.held && node.orphan.is_none() {
            let orphan = self.pinned(upper, ino)?;
            self.node_mut(ino)?.orphan = orphan;
        }
        Ok(())
    }

    /// What keeps `ino` once it has no name in the layer.
    fn pinned(&self, upper: &Upper, ino: Ino) -> Result<Option<Arc<OwnedFd>>, Error> {
        let Some(spot) = self.spot(upper, ino)? else { return Ok(None) };
        spot.pinned(self.node(ino)?).map(Some)
    }

    /// Notes that a node was renamed.
    pub(super) fn rename(&mut self, ino: Ino, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<(), Error> {
        let Some(node) = self.nodes.get_mut(&ino) else { return Ok(()) };
        for known in &mut node.names {
            if known.parent == from.0 && known.name == from.1 {
                *known = Name { parent: to.0, name: to.1.to_owned(), up: true };
                self.drop_child(from.0);
                self.node_mut(to.0)?.children += 1;
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Node {
    fn new(kind: Kind, lower: Option<NodeId>) -> Self {
        Self {
            kind,
            lower,
            up: false,
            stub: false,
            names: Vec::new(),
            orphan: None,
            unnamed: None,
            held: false,
            refs: 0,
            children: 0,
            copied: None,
            key: None,
            is_bare: false,
        }
    }

    /// Whether this is the layer's node `key` of this kind, and nothing of the image is in it.
    pub(super) fn is_own(&self, key: Key, kind: Kind) -> bool {
        self.key == Some(key) && self.kind == kind && self.lower.is_none() && !self.stub
    }

    /// Whether this is a directory without a name, as none but the root is that was not removed.
    fn is_removed_directory(&self) -> bool {
        self.kind == Kind::Directory && self.names.is_empty()
    }

    /// Whether the layer has its content, for who has it open: told as that changes.
    pub(super) fn is_copied_flag(&mut self) -> Arc<AtomicBool> {
        self.copied.get_or_insert_with(|| AtomicBool::new(self.up && !self.stub).into()).clone()
    }

    pub(super) fn is_open(&self) -> bool {
        self.copied.as_ref().is_some_and(|copied| Arc::strong_count(copied) > 1)
    }

    fn is_unused(&self) -> bool {
        self.refs == 0 && self.children == 0 && !self.held && !self.is_open()
    }
}
