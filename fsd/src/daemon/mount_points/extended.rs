//! A read-only tree with the mount points that it lacks beside its own nodes, in plain memory.
//!
//! A name of the tree below always wins, what is added is empty but for further additions, and nothing is ever taken
//! away. Until something is added, no call costs more than the look at one pointer.

use crate::control::MountPointKind;
use parking_lot::RwLock;
use siphon_image::tree::{Activity, Attr, Entry, Error, Kind, NodeId, Statistics, Timestamp, Tree, Xattr};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// Ids of added nodes: above those of squashfs, below `1 << 48`, and of a directory of the host, counted up from
/// `1 << 59`; below `1 << 60`, where those that a view accepts end, and `1 << 62`, where a layer's begin.
const IDS: Range<u64> = 0xf << 56..1 << 60;

/// A tree that takes additions.
#[derive(Debug)]
pub(in crate::daemon) struct Extended {
    below: Arc<dyn Tree>,
    added: OnceLock<RwLock<Added>>,
}

#[derive(Debug, Default)]
struct Added {
    /// In order of their ids.
    nodes: Vec<Attr>,
    /// By the directory that they are in, below or added.
    names: HashMap<NodeId, BTreeMap<OsString, NodeId>>,
}

impl Extended {
    pub(in crate::daemon) fn new(below: Arc<dyn Tree>) -> Self {
        Self { below, added: OnceLock::new() }
    }

    /// Adds an empty directory of mode 0755 or an empty file of mode 0644, unless there is something at `name` already.
    ///
    /// # Errors
    /// [`Error::NotADirectory`], or what the tree below says.
    pub(super) fn add(&self, dir: NodeId, name: &OsStr, kind: MountPointKind) -> Result<(), Error> {
        if self.attr(dir)?.kind != Kind::Directory {
            return Err(Error::NotADirectory);
        }
        if self.lookup(dir, name)?.is_none() {
            self.added.get_or_init(RwLock::default).write().add(dir, name, empty(kind));
        }
        Ok(())
    }

    /// Looks at what was added, if anything was.
    fn added<T>(&self, look: impl FnOnce(&Added) -> Option<T>) -> Option<T> {
        look(&self.added.get()?.read())
    }

    /// The attributes of an added node; `None` for one of the tree below.
    fn added_attr(&self, node: NodeId) -> Result<Option<Attr>, Error> {
        if !IDS.contains(&node.0) {
            return Ok(None);
        }
        self.added(|added| added.attr(node)).map(Some).ok_or(Error::NoSuchNode(node))
    }

    /// As [`Extended::added_attr`] for a node that has to be a directory.
    fn added_directory(&self, node: NodeId) -> Result<Option<Attr>, Error> {
        match self.added_attr(node)? {
            Some(attr) if attr.kind != Kind::Directory => Err(Error::NotADirectory),
            attr => Ok(attr),
        }
    }
}

impl Added {
    fn add(&mut self, dir: NodeId, name: &OsStr, attr: Attr) {
        let node = NodeId(IDS.start + self.nodes.len() as u64);
        let names = self.names.entry(dir).or_default();
        // Another thread may have been faster.
        if !names.contains_key(name) {
            names.insert(name.to_owned(), node);
            self.nodes.push(attr);
        }
    }

    fn attr(&self, node: NodeId) -> Option<Attr> {
        let index = usize::try_from(node.0.checked_sub(IDS.start)?).ok()?;
        self.nodes.get(index).copied()
    }

    fn lookup(&self, dir: NodeId, name: &OsStr) -> Option<NodeId> {
        self.names.get(&dir)?.get(name).copied()
    }

    fn entries(&self, dir: NodeId) -> Option<Vec<Entry>> {
        let entry = |(name, node): (&OsString, &NodeId)| {
            Some(Entry { name: name.clone(), node: *node, kind: self.attr(*node)?.kind })
        };
        Some(self.names.get(&dir)?.iter().filter_map(entry).collect())
    }

    /// How many directories were added to `dir`: each is a link to it.
    fn links(&self, dir: NodeId) -> Option<u32> {
        let nodes = self.names.get(&dir)?.values();
        let directories = nodes.filter(|node| self.attr(**node).is_some_and(|attr| attr.kind == Kind::Directory));
        u32::try_from(directories.count()).ok()
    }
}

impl Tree for Extended {
    fn root(&self) -> NodeId {
        self.below.root()
    }

    fn attr(&self, node: NodeId) -> Result<Attr, Error> {
        let mut attr = match self.added_attr(node)? {
            Some(attr) => attr,
            None => self.below.attr(node)?,
        };
        // A count of 1 says that directories are not counted.
        if attr.kind == Kind::Directory && attr.nlink > 1 {
            let links = self.added(|added| added.links(node)).unwrap_or(0);
            attr.nlink = attr.nlink.saturating_add(links);
        }
        Ok(attr)
    }

    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, Error> {
        if self.added_directory(dir)?.is_none()
            && let Some(node) = self.below.lookup(dir, name)?
        {
            return Ok(Some(node));
        }
        Ok(self.added(|added| added.lookup(dir, name)))
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, Error> {
        let mut entries = match self.added_directory(dir)? {
            Some(_) => Vec::new(),
            None => self.below.entries(dir)?,
        };
        if let Some(mut added) = self.added(|added| added.entries(dir)) {
            // A directory of the host may have got such a name of its own meanwhile.
            added.retain(|entry| entries.iter().all(|own| own.name != entry.name));
            entries.append(&mut added);
            entries.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(entries)
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, Error> {
        match self.added_attr(node)? {
            Some(_) => Err(Error::NotASymlink),
            None => self.below.read_link(node),
        }
    }

    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        match self.added_attr(node)? {
            Some(attr) if attr.kind == Kind::File => Ok(0),
            Some(_) => Err(Error::NotAFile),
            None => self.below.read(node, offset, buf),
        }
    }

    fn origin(&self, node: NodeId) -> Option<(&dyn Tree, NodeId)> {
        // What was added may be below any directory.
        if self.attr(node).ok()?.kind == Kind::Directory { None } else { self.below.origin(node) }
    }

    fn prepare(&self, ranges: &[(NodeId, Range<u64>)]) {
        self.below.prepare(ranges);
    }

    fn decoded_around(&self, node: NodeId, offset: u64) -> Option<Range<u64>> {
        self.below.decoded_around(node, offset)
    }

    fn fetch_ahead(&self, ranges: &[(NodeId, Range<u64>)]) {
        self.below.fetch_ahead(ranges);
    }

    fn files_after(&self, node: NodeId, count: usize, max_bytes: u64) -> Vec<(NodeId, u64)> {
        self.below.files_after(node, count, max_bytes)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        match self.added_attr(node)? {
            Some(_) => Ok(Vec::new()),
            None => self.below.xattrs(node),
        }
    }

    fn statistics(&self) -> Statistics {
        self.below.statistics()
    }

    fn activity(&self) -> Activity {
        self.below.activity()
    }
}

/// What a new node is like.
fn empty(kind: MountPointKind) -> Attr {
    let (kind, mode, nlink) = match kind {
        MountPointKind::Directory => (Kind::Directory, 0o755, 2),
        MountPointKind::File => (Kind::File, 0o644, 1),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = Timestamp { seconds: now.as_secs().cast_signed(), nanos: now.subsec_nanos() };
    Attr { kind, mode, uid: 0, gid: 0, size: 0, blocks: 0, nlink, mtime: now, ctime: now, atime: now, rdev: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use siphon_image::directory::Directory;

    const FILE: MountPointKind = MountPointKind::File;
    const DIRECTORY: MountPointKind = MountPointKind::Directory;

    /// A tree with `etc/passwd` and `opt`.
    fn extended() -> (tempfile::TempDir, Extended) {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::create_dir(root.path().join("opt")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "root").unwrap();
        let tree = Extended::new(Arc::new(Directory::open(root.path()).unwrap()));
        (root, tree)
    }

    fn find(tree: &Extended, path: &str) -> Option<NodeId> {
        path.split('/').try_fold(tree.root(), |dir, name| tree.lookup(dir, OsStr::new(name)).unwrap())
    }

    fn add(tree: &Extended, dir: NodeId, name: &str, kind: MountPointKind) -> NodeId {
        tree.add(dir, OsStr::new(name), kind).unwrap();
        tree.lookup(dir, OsStr::new(name)).unwrap().unwrap()
    }

    fn names(tree: &Extended, dir: NodeId) -> Vec<(String, NodeId)> {
        let entries = tree.entries(dir).unwrap();
        entries.into_iter().map(|entry| (entry.name.into_string().unwrap(), entry.node)).collect()
    }

    #[test]
    fn what_is_added_is_found_and_listed_beside_the_trees_own() {
        let (_root, tree) = extended();
        let (root, etc) = (tree.root(), find(&tree, "etc").unwrap());
        assert_eq!(find(&tree, "etc/hosts"), None);

        let data = add(&tree, root, "data", DIRECTORY);
        let hosts = add(&tree, etc, "hosts", FILE);

        assert_eq!(find(&tree, "etc/hosts"), Some(hosts));
        assert_eq!(names(&tree, etc), [("hosts".into(), hosts), ("passwd".into(), find(&tree, "etc/passwd").unwrap())]);
        let opt = find(&tree, "opt").unwrap();
        assert_eq!(names(&tree, root), [("data".into(), data), ("etc".into(), etc), ("opt".into(), opt)]);
        assert_eq!(names(&tree, data), []);
    }

    #[test]
    fn additions_nest() {
        let (_root, tree) = extended();

        let data = add(&tree, tree.root(), "data", DIRECTORY);
        let run = add(&tree, data, "run1", DIRECTORY);
        let out = add(&tree, run, "out", FILE);

        assert_eq!(find(&tree, "data/run1/out"), Some(out));
        assert_eq!(names(&tree, run), [("out".into(), out)]);
        assert_eq!(tree.attr(data).unwrap().nlink, 3);
        assert_eq!(tree.attr(run).unwrap().nlink, 2);
    }

    #[test]
    fn added_nodes_are_empty_and_as_the_kernel_expects_them() {
        let (_root, tree) = extended();

        let directory = add(&tree, tree.root(), "directory", DIRECTORY);
        let file = add(&tree, tree.root(), "file", FILE);

        let shown = |node| {
            let attr = tree.attr(node).unwrap();
            (attr.kind, attr.mode, attr.nlink, attr.size)
        };
        assert_eq!(shown(directory), (Kind::Directory, 0o755, 2, 0));
        assert_eq!(shown(file), (Kind::File, 0o644, 1, 0));
        assert_eq!(tree.read(file, 0, &mut [0; 10]).unwrap(), 0);
        assert!(tree.xattrs(directory).unwrap().is_empty());
        assert!(matches!(tree.read(directory, 0, &mut [0; 10]), Err(Error::NotAFile)));
        assert!(matches!(tree.read_link(file), Err(Error::NotASymlink)));
        assert!(matches!(tree.lookup(file, OsStr::new("x")), Err(Error::NotADirectory)));
        assert!(matches!(tree.entries(file), Err(Error::NotADirectory)));
        assert!(matches!(tree.add(file, OsStr::new("x"), FILE), Err(Error::NotADirectory)));
        assert!(matches!(tree.attr(NodeId(IDS.start + 2)), Err(Error::NoSuchNode(_))));
    }

    #[test]
    fn a_name_of_the_tree_is_never_hidden() {
        let (root, tree) = extended();
        let passwd = find(&tree, "etc/passwd").unwrap();

        tree.add(find(&tree, "etc").unwrap(), OsStr::new("passwd"), DIRECTORY).unwrap();
        let added = add(&tree, tree.root(), "late", DIRECTORY);
        std::fs::write(root.path().join("late"), "own").unwrap();

        assert_eq!(find(&tree, "etc/passwd"), Some(passwd));
        let late = find(&tree, "late").unwrap();
        assert_ne!(late, added);
        let listed: Vec<_> = names(&tree, tree.root()).into_iter().filter(|(name, _)| name == "late").collect();
        assert_eq!(listed, [("late".into(), late)]);
    }

    #[test]
    fn the_same_name_added_twice_is_one_node() {
        let (_root, tree) = extended();

        let first = add(&tree, tree.root(), "data", DIRECTORY);
        let second = add(&tree, tree.root(), "data", DIRECTORY);

        assert_eq!(first, second);
    }

    #[test]
    fn a_directory_counts_the_directories_added_to_it() {
        let (_root, tree) = extended();
        let before = tree.attr(tree.root()).unwrap().nlink;

        add(&tree, tree.root(), "data", DIRECTORY);
        add(&tree, tree.root(), "file", FILE);

        let after = tree.attr(tree.root()).unwrap().nlink;
        // Not every filesystem of a host counts: 1 is for those that do not.
        assert_eq!(after, if before > 1 { before + 1 } else { before });
    }
}
