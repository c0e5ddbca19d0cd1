//! The tree that layers make, one put over the other: in memory, without content.
//!
//! Entries are applied as a runtime applies them to a directory, lowest layer first, by the rules of umoci and containerd:
//! names are cleaned, so that none leads out of the tree; links in the way are followed within it; what is missing on the way
//! is made; whatever an entry meets is replaced, unless both are directories. A whiteout takes away what lower layers have,
//! and nothing of its own.

mod tree;

use super::tar::{Entry, Kind};
use crate::squashfs::writer::stream::ContentId;
use crate::tree::{Kind as NodeKind, Timestamp, Xattr};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What names of whiteouts begin with.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// The name by which a directory hides all that lower layers have in it.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin with this are AUFS's own.
const RESERVED: &[u8] = b".wh..wh.";
/// Links that are followed on the way to one name, as in the kernel.
const MAX_LINKS: usize = 40;
/// Longest name in a directory.
const MAX_NAME_BYTES: usize = 255;
/// Attributes that mean something to the host and nothing in an image: labels of another machine, and marks of overlayfs,
/// which would take them for its own.
const FOREIGN_XATTRS: [&[u8]; 4] = [b"security.selinux", b"security.nfs4_acl", b"trusted.overlay.", b"user.overlay."];

/// Why an entry cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something on the way to it is no directory.
    #[error("its parent is not a directory")]
    Parent,
    /// The root can only be a directory.
    #[error("it would replace the root directory")]
    Root,
    /// Links that lead to links without an end.
    #[error("too many symbolic links on the way to it")]
    Links,
    /// A hard link to what is not there, or to a directory.
    #[error("it is a hard link to {0:?}, which is no file that there is")]
    Target(OsString),
    /// A name that no file system can hold.
    #[error("its name is longer than {MAX_NAME_BYTES} bytes")]
    Name,
    /// A whiteout without a name, or of `.` or `..`.
    #[error("it is a whiteout of nothing")]
    Whiteout,
}

/// Where the content of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// In the image.
    Stored(ContentId),
    /// Still in the layer: it was taken to be hidden. This entry of this layer has it.
    Skipped { layer: usize, entry: usize },
    /// There is none.
    Empty,
}

/// Content that is in the image, and what of it is needed again before the image can be read.
pub(super) type Written = (ContentId, Option<Box<[u8]>>);

/// The merged tree.
#[derive(Debug)]
pub struct Merged {
    pub(super) nodes: Vec<Node>,
    /// Counts applied layers, from 1 on; what the root and generated files belong to is never removed.
    layer: u32,
}

/// One file. Those that no name leads to any more stay and cost a little memory.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) body: Body,
    /// The last layer above which nothing older is left in this directory.
    emptied: u32,
}

#[derive(Debug)]
pub(super) enum Body {
    Directory(BTreeMap<OsString, Child>),
    File {
        content: Content,
        size: u64,
        /// What is needed again before the image can be read.
        bytes: Option<Box<[u8]>>,
    },
    Symlink(OsString),
    Special(NodeKind, u32),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Child {
    pub(super) node: usize,
    /// The last layer that had an entry for it or below it.
    layer: u32,
}

const ROOT: usize = 0;

impl Default for Merged {
    fn default() -> Self {
        let root = Node {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
            body: Body::Directory(BTreeMap::new()),
            emptied: 0,
        };
        Self { nodes: vec![root], layer: 0 }
    }
}

impl Merged {
    /// Has the following entries be of a layer above.
    pub(super) fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// Applies one entry; `content` is that of a file.
    pub(super) fn apply(&mut self, entry: &Entry, content: Content, bytes: Option<Box<[u8]>>) -> Result<(), Error> {
        let mut path = clean(&entry.path);
        let Some(name) = path.pop() else {
            return self.set_root(entry);
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.white_out(&path, name, hidden);
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::Name);
        }
        let target = match entry.kind {
            Kind::HardLink => Some(self.link_target(&entry.link)?),
            _ => None,
        };
        let parents = self.directory(&path, entry.mtime)?;
        let parent = *parents.last().map_or(&ROOT, |(_, _, node)| node);
        let name = OsString::from_vec(name.to_vec());
        let present = self.children(parent).and_then(|children| children.get(&name)).map(|child| child.node);
        let node = match (target, present) {
            (Some(target), _) => target,
            (None, Some(present)) if entry.kind == Kind::Directory && self.children(present).is_some() => present,
            (None, _) => self.add(entry, content, bytes),
        };
        if target.is_none() {
            self.set_attributes(node, entry);
        }
        self.touch(&parents);
        let layer = self.layer;
        if let Some(children) = self.children_mut(parent) {
            children.insert(name, Child { node, layer });
        }
        Ok(())
    }

    /// Whether there is something at `path`, links on the way followed.
    pub(super) fn has(&self, path: &[u8]) -> Result<bool, Error> {
        let mut path = clean(path);
        let Some(name) = path.pop() else { return Ok(true) };
        let children = self.walk(&path)?.and_then(|directory| self.children(directory));
        Ok(children.is_some_and(|children| children.contains_key(OsStr::from_bytes(name))))
    }

    /// Entries of files whose content was skipped and is wanted all the same, by layer.
    pub(super) fn skipped(&self) -> Vec<(usize, usize)> {
        let mut seen = vec![false; self.nodes.len()];
        let mut pending = vec![ROOT];
        let mut skipped = Vec::new();
        while let Some(node) = pending.pop() {
            match &self.nodes[node].body {
                Body::Directory(children) => pending.extend(children.values().map(|child| child.node)),
                Body::File { content: Content::Skipped { layer, entry }, .. }
                    if !std::mem::replace(&mut seen[node], true) =>
                {
                    skipped.push((*layer, *entry));
                }
                _ => {}
            }
        }
        skipped
    }

    /// Says where content is that was skipped.
    pub(super) fn found(&mut self, found: &BTreeMap<(usize, usize), Written>) {
        for node in &mut self.nodes {
            if let Body::File { content, bytes, .. } = &mut node.body
                && let Content::Skipped { layer, entry } = *content
                && let Some((stored, kept)) = found.get(&(layer, entry))
            {
                *content = Content::Stored(*stored);
                bytes.clone_from(kept);
            }
        }
    }

    fn set_root(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(Error::Root);
        }
        self.set_attributes(ROOT, entry);
        Ok(())
    }

    fn set_attributes(&mut self, node: usize, entry: &Entry) {
        let xattrs = entry.xattrs.iter().filter(|(name, _)| !is_foreign(name));
        let xattrs = xattrs.map(|(name, value)| (OsString::from_vec(name.clone()), value.clone())).collect();
        let node = &mut self.nodes[node];
        node.mode = if entry.kind == Kind::Symlink { 0o777 } else { entry.mode };
        (node.uid, node.gid, node.mtime, node.xattrs) = (entry.uid, entry.gid, entry.mtime, xattrs);
    }

    fn add(&mut self, entry: &Entry, content: Content, bytes: Option<Box<[u8]>>) -> usize {
        let body = match entry.kind {
            Kind::Directory => Body::Directory(BTreeMap::new()),
            Kind::Symlink => Body::Symlink(OsString::from_vec(entry.link.clone())),
            Kind::CharDevice => Body::Special(NodeKind::CharDevice, entry.rdev),
            Kind::BlockDevice => Body::Special(NodeKind::BlockDevice, entry.rdev),
            Kind::Fifo => Body::Special(NodeKind::Fifo, 0),
            // A hard link has its target's node and is not added.
            Kind::File | Kind::HardLink => Body::File { content, size: entry.size, bytes },
        };
        self.push(entry.mtime, body)
    }

    fn push(&mut self, mtime: Timestamp, body: Body) -> usize {
        self.nodes.push(Node { mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new(), body, emptied: 0 });
        self.nodes.len() - 1
    }

    /// Removes what lower layers have under a name, or in a directory.
    fn white_out(&mut self, path: &[&[u8]], name: &[u8], hidden: &[u8]) -> Result<(), Error> {
        if name == OPAQUE {
            if let Some(directory) = self.walk(path)? {
                self.remove_lower(directory);
            }
            return Ok(());
        }
        if name.starts_with(RESERVED) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::Whiteout);
        }
        let layer = self.layer;
        let hidden = OsString::from_vec(hidden.to_vec());
        let Some(directory) = self.walk(path)? else { return Ok(()) };
        let Some(children) = self.children_mut(directory) else { return Ok(()) };
        let Some(child) = children.get(&hidden).copied() else { return Ok(()) };
        if child.layer < layer {
            children.remove(&hidden);
        } else {
            self.remove_lower(child.node);
        }
        Ok(())
    }

    /// Removes what is below `directory` and was not touched by the present layer.
    fn remove_lower(&mut self, directory: usize) {
        let layer = self.layer;
        let mut pending = vec![directory];
        while let Some(directory) = pending.pop() {
            // What was emptied once has nothing older in it again: so no layer has a directory walked twice.
            if std::mem::replace(&mut self.nodes[directory].emptied, layer) == layer {
                continue;
            }
            let Some(children) = self.children_mut(directory) else { continue };
            children.retain(|_, child| child.layer >= layer);
            pending.extend(children.values().map(|child| child.node));
        }
    }

    /// What a hard link leads to. The last name is not followed.
    fn link_target(&self, link: &[u8]) -> Result<usize, Error> {
        let missing = || Error::Target(OsString::from_vec(link.to_vec()));
        let mut path = clean(link);
        let name = path.pop().ok_or_else(missing)?;
        let directory = self.walk(&path)?.ok_or_else(missing)?;
        let children = self.children(directory).ok_or_else(missing)?;
        let child = children.get(OsStr::from_bytes(name)).ok_or_else(missing)?;
        if self.children(child.node).is_some() { Err(missing()) } else { Ok(child.node) }
    }

    /// The directory at `path`; `None` if something on the way is missing or none.
    fn walk(&self, path: &[&[u8]]) -> Result<Option<usize>, Error> {
        let steps = self.resolve(path)?;
        let node = steps.last().map_or(Some(ROOT), |(_, node)| *node);
        Ok(node.filter(|node| self.children(*node).is_some()))
    }

    /// The names on the way to `path` when all links on it are followed, with what they name; what is not there stays as it
    /// is named.
    fn resolve(&self, path: &[&[u8]]) -> Result<Vec<(OsString, Option<usize>)>, Error> {
        let mut pending: Vec<&[u8]> = path.iter().rev().copied().collect();
        let mut steps: Vec<(OsString, Option<usize>)> = Vec::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            match name {
                b"" | b"." => continue,
                b".." => {
                    steps.pop();
                    continue;
                }
                _ => {}
            }
            let parent = steps.last().map_or(Some(ROOT), |(_, node)| *node);
            let children = parent.and_then(|parent| self.children(parent));
            let child = children.and_then(|children| children.get(OsStr::from_bytes(name))).map(|child| child.node);
            let Some(Body::Symlink(target)) = child.map(|child| &self.nodes[child].body) else {
                steps.push((OsStr::from_bytes(name).to_owned(), child));
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::Links);
            }
            if target.as_bytes().starts_with(b"/") {
                steps.clear();
            }
            pending.extend(target.as_bytes().rsplit(|byte| *byte == b'/'));
        }
        Ok(steps)
    }

    /// The directories on the way to `path`, made where they are missing: the parent, name and node of each.
    fn directory(&mut self, path: &[&[u8]], mtime: Timestamp) -> Result<Vec<(usize, OsString, usize)>, Error> {
        let mut parents = Vec::new();
        let mut parent = ROOT;
        for (name, _) in self.resolve(path)? {
            if name.len() > MAX_NAME_BYTES {
                return Err(Error::Name);
            }
            let made = self.nodes.len();
            let layer = self.layer;
            let children = self.children_mut(parent).ok_or(Error::Parent)?;
            let node = match children.entry(name.clone()) {
                Slot::Occupied(child) => child.get().node,
                Slot::Vacant(slot) => {
                    slot.insert(Child { node: made, layer });
                    self.push(mtime, Body::Directory(BTreeMap::new()))
                }
            };
            parents.push((parent, name, node));
            parent = node;
        }
        if self.children(parent).is_none() {
            return Err(Error::Parent);
        }
        Ok(parents)
    }

    /// Has whiteouts of the present layer spare these directories.
    fn touch(&mut self, parents: &[(usize, OsString, usize)]) {
        let layer = self.layer;
        for (parent, name, _) in parents {
            if let Some(child) = self.children_mut(*parent).and_then(|children| children.get_mut(name)) {
                child.layer = layer;
            }
        }
    }

    pub(super) fn children(&self, node: usize) -> Option<&BTreeMap<OsString, Child>> {
        match &self.nodes.get(node)?.body {
            Body::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, node: usize) -> Option<&mut BTreeMap<OsString, Child>> {
        match &mut self.nodes.get_mut(node)?.body {
            Body::Directory(children) => Some(children),
            _ => None,
        }
    }
}

/// Whether an extended attribute is left out of images.
pub(in crate::oci) fn is_foreign(name: &[u8]) -> bool {
    FOREIGN_XATTRS.iter().any(|foreign| name.starts_with(foreign))
}

/// The names of a path below the root, as it is read without looking at links: none is empty, `.` or `..`.
pub(in crate::oci) fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names
}
