//! A host directory as a read-only tree: a plain-directory image, such as apptainer's own sandbox.
//!
//! Nodes are numbered by the host's inode numbers, so that hard links coincide. Where a node was last found (parent and
//! name) is remembered, and each operation walks there from the root's descriptor without following symbolic links:
//! what is below may be hostile and may change meanwhile. A node that has gone since answers `ENOENT`.

pub mod host;

use crate::tree::{Attr, Entry, Error, Kind, NodeId, Statistics, Tree, Xattr};
use parking_lot::RwLock;
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Ids from here on are counted out, for nodes whose inode number cannot be their id: those on another device below
/// the root, and inode numbers this large.
const FIRST_COUNTED_ID: u64 = 1 << 59;
/// Deepest nesting of directories that is walked.
const MAX_DEPTH: usize = 4096;

/// A directory of the host, opened as an image.
#[derive(Debug)]
pub struct Directory {
    root: OwnedFd,
    root_node: NodeId,
    /// A name at the root that is not shown.
    hidden: Option<OsString>,
    device: u64,
    nodes: RwLock<Nodes>,
}

#[derive(Debug, Default)]
struct Nodes {
    /// Where each node but the root was last found.
    places: HashMap<NodeId, (NodeId, OsString)>,
    /// Ids of nodes on other devices, by device and inode.
    counted: HashMap<(u64, u64), NodeId>,
}

impl Directory {
    /// Opens the directory at `path`; a symbolic link there is followed, none below is.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or is not a directory.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?;
        let stat = host::stat(root.as_fd())?;
        let mut tree = Self {
            root,
            root_node: NodeId(0),
            hidden: None,
            device: stat.st_dev,
            nodes: RwLock::new(Nodes::default()),
        };
        tree.root_node = tree.id(stat.st_dev, stat.st_ino);
        Ok(tree)
    }

    /// The same without the name `hidden` at its root.
    #[must_use]
    pub fn without(self, hidden: &OsStr) -> Self {
        Self { hidden: Some(hidden.to_owned()), ..self }
    }

    fn hides(&self, dir: NodeId, name: &OsStr) -> bool {
        dir == self.root_node && self.hidden.as_deref() == Some(name)
    }

    fn id(&self, device: u64, inode: u64) -> NodeId {
        if device == self.device && inode < FIRST_COUNTED_ID {
            return NodeId(inode);
        }
        let counted = &mut self.nodes.write().counted;
        let next = NodeId(FIRST_COUNTED_ID + counted.len() as u64);
        *counted.entry((device, inode)).or_insert(next)
    }

    fn place(&self, parent: NodeId, name: &OsStr, node: NodeId) {
        let known = self.nodes.read().places.get(&node).is_some_and(|place| place.0 == parent && place.1 == name);
        if !known && node != self.root_node {
            self.nodes.write().places.insert(node, (parent, name.to_owned()));
        }
    }

    /// The names that lead from the root to `node`.
    fn names(&self, node: NodeId) -> Result<Vec<OsString>, Error> {
        let nodes = self.nodes.read();
        let mut names = Vec::new();
        let mut here = node;
        while here != self.root_node {
            let (parent, name) = nodes.places.get(&here).ok_or(Error::NoSuchNode(node))?;
            if names.len() == MAX_DEPTH {
                return Err(io::Error::from(Errno::LOOP).into());
            }
            names.push(name.clone());
            here = *parent;
        }
        names.reverse();
        Ok(names)
    }

    fn object(&self, node: NodeId) -> Result<OwnedFd, Error> {
        let names = self.names(node)?;
        Ok(match names.split_last() {
            None => host::open_directory(self.root.as_fd(), OsStr::new("."))?,
            Some((name, parents)) => host::open_object(host::walk(self.root.as_fd(), parents)?.as_fd(), name)?,
        })
    }

    fn opened(&self, node: NodeId) -> Result<OwnedFd, Error> {
        let object = self.object(node)?;
        // A pipe or device must not be opened at all.
        if host::kind_of(&host::stat(object.as_fd())?) != Kind::File {
            return Err(Error::NotAFile);
        }
        Ok(host::reopen(object.as_fd(), OFlags::RDONLY)?)
    }

    fn directory(&self, node: NodeId) -> Result<OwnedFd, Error> {
        host::walk(self.root.as_fd(), &self.names(node)?).map_err(not_a_directory)
    }

    fn entry(&self, fd: BorrowedFd<'_>, device: u64, dir: NodeId, found: host::HostEntry) -> io::Result<Option<Entry>> {
        // A directory may be a mount point, whose inode number in the listing is that of what it hides.
        let (kind, node) = match found.kind {
            Some(kind) if kind != Kind::Directory => (kind, self.id(device, found.inode)),
            _ => match host::stat_at(fd, &found.name)? {
                Some(stat) => (host::kind_of(&stat), self.id(stat.st_dev, stat.st_ino)),
                None => return Ok(None),
            },
        };
        self.place(dir, &found.name, node);
        Ok(Some(Entry { name: found.name, node, kind }))
    }
}

fn not_a_directory(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotADirectory => Error::NotADirectory,
        _ => Error::Io(error),
    }
}

impl Tree for Directory {
    fn root(&self) -> NodeId {
        self.root_node
    }

    fn attr(&self, node: NodeId) -> Result<Attr, Error> {
        Ok(host::attr_of(&host::stat(self.object(node)?.as_fd())?))
    }

    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, Error> {
        let directory = self.directory(dir)?;
        if !host::is_name(name) || self.hides(dir, name) {
            return Ok(None);
        }
        let Some(stat) = host::stat_at(directory.as_fd(), name)? else { return Ok(None) };
        let node = self.id(stat.st_dev, stat.st_ino);
        self.place(dir, name, node);
        Ok(Some(node))
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, Error> {
        let directory = self.directory(dir)?;
        let device = host::stat(directory.as_fd())?.st_dev;
        let mut entries = Vec::new();
        for found in host::list(directory.as_fd())?.into_iter().filter(|found| !self.hides(dir, &found.name)) {
            entries.extend(self.entry(directory.as_fd(), device, dir, found)?);
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, Error> {
        let object = self.object(node)?;
        if host::kind_of(&host::stat(object.as_fd())?) != Kind::Symlink {
            return Err(Error::NotASymlink);
        }
        Ok(host::read_link(object.as_fd())?)
    }

    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        Ok(read_full(self.opened(node)?.as_fd(), offset, buf)?)
    }

    fn host_file(&self, node: NodeId) -> Result<Option<OwnedFd>, Error> {
        self.opened(node).map(Some)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        Ok(host::xattrs(self.object(node)?.as_fd())?)
    }

    fn statistics(&self) -> Statistics {
        statistics_of(self.root.as_fd()).unwrap_or_default()
    }
}

fn read_full(file: BorrowedFd<'_>, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(file, &mut buf[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            // An offset beyond what a file can have is past its end.
            Err(Errno::INVAL) if i64::try_from(offset).is_err() => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

fn statistics_of(root: BorrowedFd<'_>) -> io::Result<Statistics> {
    let stat = fs::fstatvfs(host::reopen(root, OFlags::RDONLY | OFlags::DIRECTORY)?)?;
    let used = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize);
    Ok(Statistics {
        bytes: used,
        nodes: stat.f_files.saturating_sub(stat.f_ffree),
        block_size: u32::try_from(stat.f_frsize).unwrap_or(4096),
        ..Statistics::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn opened() -> (tempfile::TempDir, Directory) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/file"), b"content").unwrap();
        std::fs::hard_link(dir.path().join("d/file"), dir.path().join("again")).unwrap();
        symlink("/etc", dir.path().join("link")).unwrap();
        let tree = Directory::open(dir.path()).unwrap();
        (dir, tree)
    }

    fn find(tree: &Directory, path: &[&str]) -> NodeId {
        path.iter().fold(tree.root(), |dir, name| tree.lookup(dir, OsStr::new(name)).unwrap().unwrap())
    }

    #[test]
    fn hard_links_are_one_node() {
        let (_dir, tree) = opened();

        assert_eq!(find(&tree, &["d", "file"]), find(&tree, &["again"]));
        assert_eq!(tree.attr(find(&tree, &["again"])).unwrap().nlink, 2);
    }

    #[test]
    fn a_listing_is_sorted_and_names_the_nodes_that_a_lookup_finds() {
        let (_dir, tree) = opened();

        let entries = tree.entries(tree.root()).unwrap();

        let names: Vec<_> = entries.iter().map(|entry| (entry.name.to_str().unwrap(), entry.kind)).collect();
        assert_eq!(names, [("again", Kind::File), ("d", Kind::Directory), ("link", Kind::Symlink)]);
        for entry in entries {
            assert_eq!(find(&tree, &[entry.name.to_str().unwrap()]), entry.node);
        }
    }

    #[test]
    fn a_read_fills_the_buffer_up_to_the_end_of_the_file() {
        let (_dir, tree) = opened();
        let mut buf = [0; 16];

        assert_eq!(tree.read(find(&tree, &["again"]), 3, &mut buf).unwrap(), 4);
        assert_eq!(&buf[..4], b"tent");
        assert_eq!(tree.read(find(&tree, &["again"]), u64::MAX, &mut buf).unwrap(), 0);
        assert!(matches!(tree.read(find(&tree, &["d"]), 0, &mut buf), Err(Error::NotAFile)));
    }

    #[test]
    fn a_symbolic_link_is_never_followed() {
        let (dir, tree) = opened();
        let link = find(&tree, &["link"]);
        let d = find(&tree, &["d"]);

        assert_eq!(tree.read_link(link).unwrap(), "/etc");
        assert!(matches!(tree.lookup(link, OsStr::new("passwd")), Err(Error::NotADirectory)));
        assert!(matches!(tree.entries(link), Err(Error::NotADirectory)));
        std::fs::rename(dir.path().join("d"), dir.path().join("e")).unwrap();
        symlink("/etc", dir.path().join("d")).unwrap();
        assert!(matches!(tree.lookup(d, OsStr::new("passwd")), Err(Error::NotADirectory)));
    }

    #[test]
    fn a_pipe_is_not_opened_for_reading() {
        let (dir, tree) = opened();
        fs::mknodat(fs::CWD, dir.path().join("pipe"), fs::FileType::Fifo, Mode::RUSR, 0).unwrap();

        assert!(matches!(tree.read(find(&tree, &["pipe"]), 0, &mut [0; 4]), Err(Error::NotAFile)));
    }

    #[test]
    fn dots_and_slashes_name_nothing() {
        let (_dir, tree) = opened();

        for name in ["", ".", "..", "d/file", "../etc"] {
            assert_eq!(tree.lookup(tree.root(), OsStr::new(name)).unwrap(), None, "{name}");
        }
    }

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_read() {
        let (dir, tree) = opened();
        let long = "n".repeat(200);
        let mut here = fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..30 {
            fs::mkdirat(&here, &long, Mode::RWXU).unwrap();
            here = host::open_directory(here.as_fd(), OsStr::new(&long)).unwrap();
        }

        let node = find(&tree, &[long.as_str(); 30]);

        assert_eq!(tree.attr(node).unwrap().kind, Kind::Directory);
    }

    #[test]
    fn a_hidden_name_is_hidden_at_the_root_only() {
        let (_dir, tree) = opened();
        let tree = tree.without(OsStr::new("d"));
        let names = tree.entries(tree.root()).unwrap().into_iter().map(|entry| entry.name);

        assert!(!names.into_iter().any(|name| name == "d"));
        assert_eq!(tree.lookup(tree.root(), OsStr::new("d")).unwrap(), None);
        assert!(tree.lookup(tree.root(), OsStr::new("again")).unwrap().is_some());
    }

    #[test]
    fn xattrs_of_a_file_are_read() {
        let (dir, tree) = opened();
        match fs::setxattr(dir.path().join("again"), "user.note", b"v", fs::XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => return println!("skipped: no xattrs in {}", dir.path().display()),
            other => other.unwrap(),
        }

        assert_eq!(tree.xattrs(find(&tree, &["again"])).unwrap(), [("user.note".into(), b"v".to_vec())]);
        assert_eq!(tree.xattrs(find(&tree, &["link"])).unwrap(), []);
    }
}
