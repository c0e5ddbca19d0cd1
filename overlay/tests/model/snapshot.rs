//! A whole tree as values that can be compared.

use siphon_image::directory::Directory;
use siphon_image::tree::{Kind, NodeId, Tree};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Content, shown shortly.
#[derive(Clone, PartialEq, Eq)]
struct Bytes(Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for run in self.0.chunk_by(|a, b| a == b) {
            write!(f, "{}x{} ", run.len(), run[0].escape_ascii())?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    kind: Kind,
    mode: u16,
    owner: (u32, u32),
    bytes: Bytes,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Not of directories, whose count is the filesystem's own affair.
    nlink: u32,
    /// The first path of the same node.
    pub(crate) first: PathBuf,
    mtime: Option<i64>,
}

pub(crate) type Snapshot = BTreeMap<PathBuf, Seen>;

pub(crate) fn of_directory(path: &Path) -> Snapshot {
    of_tree(&Directory::open(path).unwrap())
}

pub(crate) fn of_tree(tree: &dyn Tree) -> Snapshot {
    let mut found = Snapshot::new();
    let mut firsts = HashMap::new();
    let mut pending = vec![(PathBuf::from("/"), tree.root())];
    while let Some((path, node)) = pending.pop() {
        let first = firsts.entry(node).or_insert_with(|| path.clone()).clone();
        let attr = tree.attr(node).unwrap();
        if attr.kind == Kind::Directory {
            for entry in tree.entries(node).unwrap().into_iter().rev() {
                if entry.name != ".siphon" && is_content(&entry.name) {
                    assert_eq!(tree.lookup(node, &entry.name).unwrap(), Some(entry.node), "{path:?} {:?}", entry.name);
                    pending.push((path.join(&entry.name), entry.node));
                }
            }
        }
        found.insert(path, seen(tree, node, first));
    }
    found
}

/// Whether a name is one that an operation made, not what libfuse calls an open file that was removed.
pub(crate) fn is_content(name: &OsStr) -> bool {
    !name.as_bytes().starts_with(b".fuse_hidden")
}

/// The kind and number of every node, by path.
pub(crate) fn numbers(tree: &dyn Tree) -> BTreeMap<PathBuf, (Kind, u64)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(PathBuf::from("/"), tree.root())];
    while let Some((path, node)) = pending.pop() {
        let kind = tree.attr(node).unwrap().kind;
        if kind == Kind::Directory {
            let entries = tree
                .entries(node)
                .unwrap()
                .into_iter()
                .filter(|entry| entry.name != ".siphon" && is_content(&entry.name));
            pending.extend(entries.map(|entry| (path.join(&entry.name), entry.node)));
        }
        found.insert(path, (kind, node.0));
    }
    found
}

fn seen(tree: &dyn Tree, node: NodeId, first: PathBuf) -> Seen {
    let attr = tree.attr(node).unwrap();
    let bytes = match attr.kind {
        Kind::File => {
            let mut bytes = vec![0; usize::try_from(attr.size).unwrap() + 10];
            let read = tree.read(node, 0, &mut bytes).unwrap();
            bytes.truncate(read);
            assert_eq!(read as u64, attr.size);
            bytes
        }
        Kind::Symlink => tree.read_link(node).unwrap().as_bytes().to_vec(),
        _ => Vec::new(),
    };
    let user = |name: &OsStr| name.as_bytes().starts_with(b"user.");
    let xattrs = tree.xattrs(node).unwrap().into_iter().filter(|(name, _)| user(name));
    Seen {
        kind: attr.kind,
        mode: attr.mode,
        owner: (attr.uid, attr.gid),
        bytes: Bytes(bytes),
        xattrs: xattrs.map(|(name, value)| (name.into_string().unwrap(), value)).collect(),
        nlink: if attr.kind == Kind::Directory { 0 } else { attr.nlink },
        first,
        // Only times that were set by the test are comparable; those lie before this.
        mtime: Some(attr.mtime.seconds).filter(|seconds| *seconds < super::pair::SET_BEFORE),
    }
}

/// The first path that is different, with both sides.
pub(crate) fn difference(ours: &Snapshot, plain: &Snapshot) -> Option<String> {
    let paths = ours.keys().chain(plain.keys());
    let path = paths.filter(|path| ours.get(*path) != plain.get(*path)).min()?;
    Some(format!("{}\nhere:  {:?}\nplain: {:?}", path.display(), ours.get(path), plain.get(path)))
}
