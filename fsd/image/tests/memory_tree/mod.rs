//! A tree in memory, built by a test, and its comparison with a mounted or unpacked directory.

#![allow(dead_code, reason = "each test program uses a part of it")]

use siphon_image::tree::{Attr, Entry, Error, Kind, NodeId, Statistics, Timestamp, Tree, Xattr};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

/// What a node holds.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Directory(BTreeMap<OsString, NodeId>),
    /// Bytes at the start, zeros up to the length.
    File(Vec<u8>, u64),
    Symlink(OsString),
    Special(Kind, u32),
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) content: Content,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) xattrs: Vec<Xattr>,
}

/// Node 0 is the root.
#[derive(Debug)]
pub(crate) struct MemoryTree {
    pub(crate) nodes: Vec<Node>,
}

impl Default for MemoryTree {
    fn default() -> Self {
        let mut tree = Self { nodes: Vec::new() };
        tree.push(Content::Directory(BTreeMap::new()));
        tree
    }
}

fn index(node: NodeId) -> usize {
    usize::try_from(node.0).unwrap()
}

impl MemoryTree {
    fn push(&mut self, content: Content) -> NodeId {
        let mode = if matches!(content, Content::Symlink(_)) { 0o777 } else { 0o755 };
        self.nodes.push(Node { content, mode, uid: 0, gid: 0, mtime: 1_600_000_000, xattrs: Vec::new() });
        NodeId(self.nodes.len() as u64 - 1)
    }

    pub(crate) fn link(&mut self, parent: NodeId, name: impl AsRef<OsStr>, node: NodeId) {
        let Content::Directory(children) = &mut self.nodes[index(parent)].content else { panic!("not a directory") };
        children.insert(name.as_ref().to_owned(), node);
    }

    pub(crate) fn add(&mut self, parent: NodeId, name: impl AsRef<OsStr>, content: Content) -> NodeId {
        let node = self.push(content);
        self.link(parent, name, node);
        node
    }

    pub(crate) fn directory(&mut self, parent: NodeId, name: impl AsRef<OsStr>) -> NodeId {
        self.add(parent, name, Content::Directory(BTreeMap::new()))
    }

    pub(crate) fn file(&mut self, parent: NodeId, name: impl AsRef<OsStr>, bytes: impl Into<Vec<u8>>) -> NodeId {
        let bytes = bytes.into();
        let length = bytes.len() as u64;
        self.add(parent, name, Content::File(bytes, length))
    }

    pub(crate) fn node(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[index(node)]
    }

    fn get(&self, node: NodeId) -> Result<&Node, Error> {
        self.nodes.get(index(node)).ok_or(Error::NoSuchNode(node))
    }

    fn children(&self, dir: NodeId) -> Result<&BTreeMap<OsString, NodeId>, Error> {
        match &self.get(dir)?.content {
            Content::Directory(children) => Ok(children),
            _ => Err(Error::NotADirectory),
        }
    }

    /// Names that `node` has; of a directory, as file systems count them.
    pub(crate) fn links(&self, node: NodeId) -> u32 {
        if let Ok(children) = self.children(node) {
            return 2 + children.values().filter(|child| self.children(**child).is_ok()).count() as u32;
        }
        let all = (0..self.nodes.len() as u64).filter_map(|dir| self.children(NodeId(dir)).ok());
        all.flat_map(BTreeMap::values).filter(|child| **child == node).count() as u32
    }
}

impl Tree for MemoryTree {
    fn root(&self) -> NodeId {
        NodeId(0)
    }

    fn attr(&self, node: NodeId) -> Result<Attr, Error> {
        let found = self.get(node)?;
        let (kind, size, rdev) = match &found.content {
            Content::Directory(_) => (Kind::Directory, 0, 0),
            Content::File(_, length) => (Kind::File, *length, 0),
            Content::Symlink(target) => (Kind::Symlink, target.len() as u64, 0),
            Content::Special(kind, rdev) => (*kind, 0, *rdev),
        };
        let time = Timestamp { seconds: found.mtime, nanos: 0 };
        Ok(Attr {
            kind,
            mode: found.mode,
            uid: found.uid,
            gid: found.gid,
            size,
            blocks: size.div_ceil(512),
            nlink: 1,
            mtime: time,
            ctime: time,
            atime: time,
            rdev,
        })
    }

    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, Error> {
        Ok(self.children(dir)?.get(name).copied())
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, Error> {
        let children = self.children(dir)?.iter();
        // Backwards, since a tree promises no order.
        children
            .rev()
            .map(|(name, node)| Ok(Entry { name: name.clone(), node: *node, kind: self.attr(*node)?.kind }))
            .collect()
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, Error> {
        match &self.get(node)?.content {
            Content::Symlink(target) => Ok(target.clone()),
            _ => Err(Error::NotASymlink),
        }
    }

    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let Content::File(bytes, length) = &self.get(node)?.content else { return Err(Error::NotAFile) };
        let count = usize::try_from(length.saturating_sub(offset)).unwrap().min(buf.len());
        let start = usize::try_from(offset).unwrap().min(bytes.len());
        let stored = &bytes[start..bytes.len().min(start + count)];
        buf[..count].fill(0);
        buf[..stored.len()].copy_from_slice(stored);
        Ok(count)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        Ok(self.get(node)?.xattrs.clone())
    }

    fn statistics(&self) -> Statistics {
        Statistics::default()
    }
}

/// Asserts that the directory at `path` is `tree`, down to every byte, attribute and hard link.
pub(crate) fn assert_same(tree: &MemoryTree, path: &Path) {
    let mut inode_of = BTreeMap::new();
    assert_same_node(tree, tree.root(), path, &mut inode_of);
}

fn assert_same_node(tree: &MemoryTree, node: NodeId, path: &Path, inode_of: &mut BTreeMap<NodeId, u64>) {
    let expected = tree.get(node).unwrap();
    let found = std::fs::symlink_metadata(path).unwrap();
    let at = path.display();
    assert_eq!(found.mode() & 0o7777, u32::from(expected.mode), "mode of {at}");
    assert_eq!((found.uid(), found.gid()), (expected.uid, expected.gid), "owner of {at}");
    assert_eq!(found.mtime(), expected.mtime, "time of {at}");
    assert_eq!(*inode_of.entry(node).or_insert(found.ino()), found.ino(), "hard links of {at}");
    assert_xattrs(expected, path);
    match &expected.content {
        Content::Directory(children) => {
            let mut names: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert!(names.iter().eq(children.keys()), "names in {at}");
            for (name, child) in children {
                assert_same_node(tree, *child, &path.join(name), inode_of);
            }
            return;
        }
        Content::File(bytes, length) => assert_content(bytes, *length, path),
        Content::Symlink(target) => assert_eq!(std::fs::read_link(path).unwrap().as_os_str(), target, "{at}"),
        Content::Special(kind, rdev) => {
            let kinds = [
                (Kind::BlockDevice, found.file_type().is_block_device()),
                (Kind::CharDevice, found.file_type().is_char_device()),
                (Kind::Fifo, found.file_type().is_fifo()),
                (Kind::Socket, found.file_type().is_socket()),
            ];
            assert!(kinds.contains(&(*kind, true)), "kind of {at}");
            let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
            assert_eq!((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12), *rdev, "device number of {at}");
        }
    }
    assert_eq!(found.nlink(), u64::from(tree.links(node)), "link count of {at}");
}

fn assert_content(bytes: &[u8], length: u64, path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), length, "size of {}", path.display());
    let mut found = vec![0; bytes.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == bytes, "content of {}", path.display());
    // The zeros after the stored bytes: the first and the last of them are enough.
    let mut rest = vec![1; usize::try_from(length - bytes.len() as u64).unwrap().min(100_000)];
    file.read_exact_at(&mut rest, bytes.len() as u64).unwrap();
    let last = length - rest.len() as u64;
    file.read_exact_at(&mut rest, last).unwrap();
    assert!(bytes.len() as u64 == length || rest.iter().all(|b| *b == 0), "zeros in {}", path.display());
}

fn assert_xattrs(expected: &Node, path: &Path) {
    for (name, value) in &expected.xattrs {
        let mut found = vec![0; value.len() + 1];
        let length = rustix::fs::lgetxattr(path, name.as_os_str(), &mut found)
            .unwrap_or_else(|error| panic!("{name:?} of {}: {error}", path.display()));
        assert_eq!(&found[..length], value, "{name:?} of {}", path.display());
    }
    let mut names = vec![0; 100_000];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        // What the kernel says of an image without any.
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length.unwrap(),
    };
    let mut found: Vec<_> = names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()).collect();
    found.sort();
    let mut wanted: Vec<_> = expected.xattrs.iter().map(|(name, _)| name.as_bytes()).collect();
    wanted.sort();
    assert_eq!(found, wanted, "xattrs of {}", path.display());
}
