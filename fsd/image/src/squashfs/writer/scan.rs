//! The whole tree's metadata in memory: who is in which directory, under which inode number.
//!
//! Directories are visited depth first, and the nodes that a directory names first are numbered one after the other, so
//! that the numbers in its listing are close together, as the format wants them.

use super::xattrs::Xattrs;
use super::{Error, Options, Progress};
use crate::squashfs::format::MAX_NAME_BYTES;
use crate::tree::{self, Attr, Kind, NodeId, Tree};
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Blocks of the largest file: 4 TiB in blocks of 128 KiB, whose block list takes 128 MiB.
pub(super) const MAX_FILE_BLOCKS: u64 = 1 << 25;
/// Inode numbers count from 1, and the root's parent is one more than the last.
const MAX_INODES: usize = (u32::MAX - 1) as usize;

/// Everything about the tree but its content and its links' targets.
#[derive(Debug)]
pub(super) struct Scan {
    /// All nodes; the root is the first. An inode's number is its index here plus 1.
    pub(super) nodes: Vec<Node>,
    /// All directories, each after the one that holds it.
    pub(super) directories: Vec<Directory>,
    /// Regular files in the order of the directories: the order of their content in the image.
    pub(super) file_order: Vec<usize>,
    /// Extended attributes of all nodes.
    pub(super) xattrs: Xattrs,
    /// Regular files, hard links counted once.
    pub(super) files: u64,
    /// Bytes in them.
    pub(super) content_bytes: u64,
}

/// One inode to be.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) attr: Attr,
    /// Names found; of a directory, the names that it has in its subdirectories and itself.
    pub(super) links: u32,
    /// Index into the xattr table.
    pub(super) xattrs: u32,
    /// Index of the directory that names it first.
    pub(super) parent: usize,
}

/// One listing.
#[derive(Debug)]
pub(super) struct Directory {
    /// Index of the directory itself.
    pub(super) node: usize,
    /// Names in the order of their bytes, which is that of listings, with the index of what they name.
    pub(super) children: Vec<(OsString, usize)>,
}

impl Scan {
    /// How many inodes the image has.
    pub(super) fn inode_count(&self) -> u32 {
        u32::try_from(self.nodes.len()).expect("scanning stops at MAX_INODES")
    }

    /// The path of a node, for messages. Slow.
    pub(super) fn path(&self, mut node: usize) -> PathBuf {
        let mut names = Vec::new();
        while node != 0 {
            let parent = self.nodes[node].parent;
            let directory = self.directories.iter().find(|directory| directory.node == parent);
            let child = directory.and_then(|found| found.children.iter().find(|child| child.1 == node));
            names.extend(child.map(|(name, _)| name.as_os_str()));
            node = parent;
        }
        std::iter::once(OsStr::new("/")).chain(names.into_iter().rev()).collect()
    }

    /// Says where the tree failed.
    pub(super) fn at(&self, node: usize) -> impl FnOnce(tree::Error) -> Error {
        move |source| Error::Tree { path: self.path(node), source }
    }
}

/// Walks all of `tree`.
pub(super) fn scan(tree: &dyn Tree, options: &Options, progress: &Progress) -> Result<Scan, Error> {
    let mut walk = Walk {
        tree,
        max_file_bytes: MAX_FILE_BLOCKS * u64::from(options.block_size),
        index_of: HashMap::new(),
        pending: Vec::new(),
        scan: Scan {
            nodes: Vec::new(),
            directories: Vec::new(),
            file_order: Vec::new(),
            xattrs: Xattrs::default(),
            files: 0,
            content_bytes: 0,
        },
    };
    let root = walk.number(tree.root(), 0).map_err(|source| Error::Tree { path: "/".into(), source })?;
    walk.add_xattrs(root)?;
    walk.pending.push(root);
    while let Some(directory) = walk.pending.pop() {
        progress.check()?;
        walk.visit(directory)?;
    }
    Ok(walk.scan)
}

struct Walk<'a> {
    tree: &'a dyn Tree,
    max_file_bytes: u64,
    index_of: HashMap<NodeId, usize>,
    pending: Vec<usize>,
    scan: Scan,
}

impl Walk<'_> {
    /// Lists a directory and numbers what was not known yet.
    fn visit(&mut self, directory: usize) -> Result<(), Error> {
        let entries = self.tree.entries(self.scan.nodes[directory].id).map_err(self.scan.at(directory))?;
        let mut entries: Vec<_> = entries.into_iter().map(|entry| (entry.name, entry.node)).collect();
        entries.sort();
        if let Some(name) = bad_name(&entries) {
            return Err(Error::BadName(self.scan.path(directory).join(name)));
        }
        let slot = self.scan.directories.len();
        self.scan.directories.push(Directory { node: directory, children: Vec::with_capacity(entries.len()) });
        let first_pending = self.pending.len();
        for (name, id) in entries {
            let known = self.scan.nodes.len();
            let child = self.number(id, directory).map_err(self.scan.at(directory))?;
            self.scan.directories[slot].children.push((name, child));
            self.count(child, directory, child == known)?;
        }
        // The stack gives back the last first; the order on disk is that of the names.
        self.pending[first_pending..].reverse();
        Ok(())
    }

    /// The index of a node, a new one if it is met for the first time.
    fn number(&mut self, id: NodeId, parent: usize) -> Result<usize, tree::Error> {
        let next = self.scan.nodes.len();
        match self.index_of.entry(id) {
            Slot::Occupied(known) => Ok(*known.get()),
            Slot::Vacant(slot) => {
                let attr = self.tree.attr(id)?;
                slot.insert(next);
                let links = if attr.kind == Kind::Directory { 2 } else { 0 };
                self.scan.nodes.push(Node { id, attr, links, xattrs: 0, parent });
                Ok(next)
            }
        }
    }

    /// Accounts for one more name of `child`.
    fn count(&mut self, child: usize, directory: usize, is_new: bool) -> Result<(), Error> {
        let Attr { kind, size, .. } = self.scan.nodes[child].attr;
        if kind == Kind::Directory {
            if !is_new {
                return Err(Error::DirectoryTwice(self.scan.path(child)));
            }
            self.scan.nodes[directory].links = self.scan.nodes[directory].links.saturating_add(1);
            self.pending.push(child);
        } else {
            self.scan.nodes[child].links = self.scan.nodes[child].links.saturating_add(1);
        }
        if !is_new {
            return Ok(());
        }
        if self.scan.nodes.len() > MAX_INODES {
            return Err(Error::TooMany { what: "inodes", limit: MAX_INODES as u64 });
        }
        if kind == Kind::File {
            if size > self.max_file_bytes {
                return Err(Error::FileTooLarge { path: self.scan.path(child), bytes: size });
            }
            self.scan.files += 1;
            self.scan.content_bytes = self.scan.content_bytes.saturating_add(size);
            self.scan.file_order.push(child);
        }
        self.add_xattrs(child)
    }

    fn add_xattrs(&mut self, node: usize) -> Result<(), Error> {
        let attributes = self.tree.xattrs(self.scan.nodes[node].id).map_err(self.scan.at(node))?;
        self.scan.nodes[node].xattrs = self.scan.xattrs.add(attributes)?;
        Ok(())
    }
}

/// The first of the sorted names that a squashfs directory cannot hold.
fn bad_name(entries: &[(OsString, NodeId)]) -> Option<&OsStr> {
    let repeated = entries.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| &pair[0]);
    let impossible = entries.iter().find(|(name, _)| {
        let name = name.as_bytes();
        matches!(name, b"" | b"." | b"..") || name.len() > MAX_NAME_BYTES || name.iter().any(|b| matches!(b, 0 | b'/'))
    });
    repeated.or(impossible).map(|(name, _)| name.as_os_str())
}
