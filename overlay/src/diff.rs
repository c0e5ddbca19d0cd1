//! What differs between two trees, told in path order.
//!
//! [`Changes::of_layer`] goes only where a layer has something, so that it takes as long as the layer is large, whatever
//! the image, unless the layer changed a file that has more names in the image: only a look at every name finds those. [`Changes::between`] compares any two trees. Either holds the listings of the directories on the way to where
//! it is and the numbers of directories that it has been to; content is read in pieces, and only where sizes agree.
//!
//! Times are compared in whole seconds, as images have them, and those of directories not at all: they change with
//! what is in a directory. How many names a file has is not compared either.

mod content;
mod paths;
mod places;

pub use paths::paths;

use crate::view::{Ino, View};
use siphon_image::squashfs::writer::Owners;
use siphon_image::tree::{self, Attr, Kind, NodeId, Tree};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

pub use places::WithoutPlaces;

/// Deepest nesting of directories: no image that a kernel mounts has longer paths (`PATH_MAX` 4096, two bytes a level).
const MAX_DEPTH: usize = 2048;

/// One path at which the trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Absolute within the trees.
    pub path: PathBuf,
    /// What was there; `None` if it was added.
    pub old: Option<Attr>,
    /// What is there now; `None` if it was deleted.
    pub new: Option<Attr>,
    /// What differs of a node that is in both.
    pub apart: Apart,
}

/// What differs of a node that both trees have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Apart {
    /// Kind, content, link target or device number.
    pub content: bool,
    /// Permissions.
    pub mode: bool,
    /// User or group.
    pub owner: bool,
    /// The time of the last change.
    pub time: bool,
    /// Extended attributes.
    pub xattrs: bool,
}

impl Apart {
    fn is_anything(self) -> bool {
        self != Self::default()
    }
}

/// A tree could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot compare {}", path.display())]
pub struct Error {
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub source: tree::Error,
}

/// All changes from an old tree to a new one; ends with the first error.
#[derive(Debug)]
pub struct Changes<'a> {
    old: &'a dyn Tree,
    new: New<'a>,
    owners: Owners,
    stack: Vec<Frame>,
    old_seen: HashSet<NodeId>,
    new_seen: HashSet<NodeId>,
    content: content::Comparison,
    has_begun: bool,
    /// Whether to look at every name, also where the layer has nothing.
    is_thorough: bool,
}

/// The new tree.
#[derive(Debug, Clone, Copy)]
enum New<'a> {
    Any(&'a dyn Tree),
    /// The old one with a layer.
    Layer(&'a View),
}

/// A directory that is being gone through.
#[derive(Debug)]
struct Frame {
    path: PathBuf,
    pairs: std::collections::btree_map::IntoIter<OsString, Pair>,
    new: Option<NodeId>,
}

/// What both trees have at one name.
#[derive(Debug, Clone, Copy, Default)]
struct Pair {
    old: Option<NodeId>,
    new: Option<NodeId>,
}

impl<'a> Changes<'a> {
    /// What the layer of `view` changes of `lower`, the tree right below it. Owners in the view are mapped by `owners`.
    pub fn of_layer(lower: &'a dyn Tree, view: &'a View, owners: Owners) -> Self {
        Self::new(lower, New::Layer(view), owners)
    }

    /// What was changed from `old` to `new`, whose owners are mapped by `owners`.
    pub fn between(old: &'a dyn Tree, new: &'a dyn Tree, owners: Owners) -> Self {
        Self::new(old, New::Any(new), owners)
    }

    fn new(old: &'a dyn Tree, new: New<'a>, owners: Owners) -> Self {
        Self {
            old,
            new,
            owners,
            stack: Vec::new(),
            old_seen: HashSet::new(),
            new_seen: HashSet::new(),
            content: content::Comparison::default(),
            has_begun: false,
            is_thorough: matches!(new, New::Layer(view) if view.has_changed_links()),
        }
    }

    /// Goes on to the next pair; `None` at the end.
    fn step(&mut self) -> Option<Result<Option<Change>, Error>> {
        if !std::mem::replace(&mut self.has_begun, true) {
            let roots = Pair { old: Some(self.old.root()), new: Some(self.new.tree().root()) };
            return Some(self.visit("/".into(), roots));
        }
        let frame = self.stack.last_mut()?;
        match frame.pairs.next() {
            Some((name, pair)) => {
                let path = frame.path.join(name);
                Some(self.visit(path, pair))
            }
            None => {
                let done = self.stack.pop()?;
                // The root was never looked up.
                self.new.release(done.new.filter(|_| !self.stack.is_empty()));
                Some(Ok(None))
            }
        }
    }

    fn visit(&mut self, path: PathBuf, pair: Pair) -> Result<Option<Change>, Error> {
        let compared = self.compare(path.clone(), pair).map_err(|source| Error { path, source })?;
        Ok(compared.filter(|change| change.old.is_none() || change.new.is_none() || change.apart.is_anything()))
    }

    /// Compares one pair, and prepares to go into it if there is a directory.
    fn compare(&mut self, path: PathBuf, pair: Pair) -> Result<Option<Change>, tree::Error> {
        let old = pair.old.map(|node| self.old.attr(node)).transpose()?;
        let new = pair.new.map(|node| self.new.tree().attr(node)).transpose()?.map(|attr| {
            let (uid, gid) = self.owners.map(attr.uid, attr.gid);
            Attr { uid, gid, ..attr }
        });
        let apart = match (pair.old.zip(old), pair.new.zip(new)) {
            (Some(old), Some(new)) => self.apart(old, new)?,
            (None, None) => return Ok(None),
            _ => Apart::default(),
        };
        let directory = |node: Option<NodeId>, attr: Option<Attr>| {
            node.filter(|_| attr.is_some_and(|attr| attr.kind == Kind::Directory))
        };
        let (old_directory, new_directory) = (directory(pair.old, old), directory(pair.new, new));
        let is_same_below =
            |(old, new)| self.owners == Owners::Keep && !self.is_thorough && self.is_passed_through(old, new);
        if old_directory.zip(new_directory).is_some_and(is_same_below) {
            self.new.release(pair.new);
        } else if old_directory.is_some() || new_directory.is_some() {
            let pairs = self.pairs(old_directory, new_directory)?;
            self.stack.push(Frame { path: path.clone(), pairs: pairs.into_iter(), new: pair.new });
        } else {
            self.new.release(pair.new);
        }
        Ok(Some(Change { path, old, new, apart }))
    }

    /// The names at which two directories may differ.
    fn pairs(&mut self, old: Option<NodeId>, new: Option<NodeId>) -> Result<BTreeMap<OsString, Pair>, tree::Error> {
        let is_first = old.is_none_or(|node| self.old_seen.insert(node));
        if !is_first || !new.is_none_or(|node| self.new_seen.insert(node)) || self.stack.len() >= MAX_DEPTH {
            let reason = io::Error::other("a directory has a second name, or is nested too deep");
            return Err(tree::Error::Damaged(reason.into()));
        }
        let mut pairs = BTreeMap::<_, Pair>::new();
        if let (New::Layer(view), Some(old), Some(new), false) = (self.new, old, new, self.is_thorough)
            && let Some(names) = view.names_apart(Ino(new.0), old)?
        {
            for name in names {
                let pair = Pair { old: self.old.lookup(old, &name)?, new: Tree::lookup(view, new, &name)? };
                pairs.insert(name, pair);
            }
            return Ok(pairs);
        }
        for entry in old.map(|node| self.old.entries(node)).transpose()?.unwrap_or_default() {
            pairs.entry(entry.name).or_default().old = Some(entry.node);
        }
        for entry in new.map(|node| self.new.tree().entries(node)).transpose()?.unwrap_or_default() {
            pairs.entry(entry.name).or_default().new = Some(entry.node);
        }
        Ok(pairs)
    }

    fn apart(&mut self, old: (NodeId, Attr), new: (NodeId, Attr)) -> Result<Apart, tree::Error> {
        let (old_node, old) = old;
        let (new_node, new) = new;
        let same = old.kind == new.kind && self.same_content((old_node, old), (new_node, new))?;
        let xattrs = |tree: &dyn Tree, node| {
            let mut found = tree.xattrs(node)?;
            found.sort();
            Ok::<_, tree::Error>(found)
        };
        Ok(Apart {
            content: !same,
            mode: old.mode != new.mode,
            owner: (old.uid, old.gid) != (new.uid, new.gid),
            time: old.mtime.seconds != new.mtime.seconds && new.kind != Kind::Directory,
            xattrs: xattrs(self.old, old_node)? != xattrs(self.new.tree(), new_node)?,
        })
    }

    fn same_content(&mut self, old: (NodeId, Attr), new: (NodeId, Attr)) -> Result<bool, tree::Error> {
        let tree = self.new.tree();
        match new.1.kind {
            Kind::File if old.1.size != new.1.size => Ok(false),
            Kind::File if self.is_passed_through(old.0, new.0) => Ok(true),
            Kind::File => self.content.is_same((self.old, old.0), (tree, new.0), new.1.size),
            Kind::Symlink => Ok(self.old.read_link(old.0)? == tree.read_link(new.0)?),
            Kind::BlockDevice | Kind::CharDevice => Ok(old.1.rdev == new.1.rdev),
            Kind::Directory | Kind::Fifo | Kind::Socket => Ok(true),
        }
    }

    /// Whether both nodes have the content of one file of one image.
    fn is_passed_through(&self, old: NodeId, new: NodeId) -> bool {
        let origins = self.old.origin(old).zip(self.new.tree().origin(new));
        origins.is_some_and(|(old, new)| std::ptr::addr_eq(old.0, new.0) && old.1 == new.1)
    }
}

impl Iterator for Changes<'_> {
    type Item = Result<Change, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.step()? {
                Ok(None) => {}
                Ok(Some(change)) => return Some(Ok(change)),
                Err(error) => {
                    self.stack.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}

impl<'a> New<'a> {
    fn tree(self) -> &'a dyn Tree {
        match self {
            Self::Any(tree) => tree,
            Self::Layer(view) => view,
        }
    }

    /// Gives the reference back that a look-up counted, so that the view forgets what has been gone through.
    fn release(self, node: Option<NodeId>) {
        if let (Self::Layer(view), Some(node)) = (self, node) {
            view.forget(Ino(node.0), 1);
        }
    }
}

#[cfg(test)]
mod tests;
