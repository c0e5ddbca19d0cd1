//! A tree as a layer of an OCI image: the tar stream of all of it, or of what changed and is gone, as a runtime applies it.
//!
//! ```text
//! whiteouts      .wh.NAME for each changed path that is not there any more
//! the tree       in the order of its listings, parents first; of files with several names the first has the content
//! own files      those that are not in the tree
//! ```
//!
//! A file with several names is written under all of them, or none: a link to a file of a layer below would be one to another
//! file in some runtimes. A directory that counts as new begins with an opaque whiteout, since there may once have been another
//! one of its name.

mod compress;
mod tar;

use super::base::Changed;
use super::own::{Own, OwnBody};
use crate::tree::{self, Attr, Entry, Kind, NodeId, Tree};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

pub use compress::{Packed, compressed};

/// Bytes of content that are read at a time: a multiple of all blocks.
const BUFFER_BYTES: usize = 1 << 20;
/// Deepest nesting of directories: no kernel mounts an image with longer paths.
const MAX_DEPTH: usize = 2048;

/// Why a tree could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tree failed.
    #[error("cannot read {}", path.display())]
    Tree {
        /// Where in the tree.
        path: PathBuf,
        /// Why.
        source: tree::Error,
    },
    /// A file is shorter than its attributes say.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// A directory that has a second name, or is nested too deep: the tree is none.
    #[error("the directory {} has a second name, or is nested too deep", .0.display())]
    Directory(PathBuf),
    /// The stream could not be written.
    #[error("cannot write the layer")]
    Output(#[from] io::Error),
}

/// Writes the tar stream of `tree`, or of what `changed` names of it, with the files `own`, which are of the time `own_seconds`
/// since 1970 and take the place of those in the tree.
///
/// # Errors
/// See [`Error`].
pub fn write(
    tree: &dyn Tree,
    changed: Option<&Changed>,
    own: &[Own],
    own_seconds: i64,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let own: BTreeMap<&[u8], &Own> = own.iter().map(|own| (own.path.as_bytes(), own)).collect();
    let mut pack = Pack { tree, changed, own: &own, links: HashMap::new(), out };
    if let Some(changed) = changed {
        pack.find_links()?;
        for path in pack.whiteouts(changed)? {
            pack.empty_file(&path)?;
        }
    }
    pack.entries()?;
    for own in own.values() {
        pack.own_file(own, own_seconds)?;
    }
    pack.out.write_all(&tar::END)?;
    Ok(())
}

struct Pack<'a> {
    tree: &'a dyn Tree,
    changed: Option<&'a Changed>,
    own: &'a BTreeMap<&'a [u8], &'a Own>,
    /// Files with several names of which one is wanted, and under which name they were written.
    links: HashMap<NodeId, Option<Vec<u8>>>,
    out: &'a mut dyn Write,
}

/// A node that a walk comes to.
struct Visit<'v> {
    path: &'v [u8],
    node: NodeId,
    attr: Attr,
    /// Whether it is named, or something above it with all that is below.
    is_wanted: bool,
    /// Whether it is a directory that takes the place of any below.
    is_whole: bool,
}

impl Pack<'_> {
    /// Notes the files with several names that have to be written.
    fn find_links(&mut self) -> Result<(), Error> {
        let mut links = HashMap::new();
        walk(self.tree, self.changed, &mut |visit| {
            if visit.is_wanted && visit.attr.nlink > 1 && visit.attr.kind != Kind::Directory {
                links.insert(visit.node, None);
            }
            Ok(())
        })?;
        self.links = links;
        Ok(())
    }

    /// The whiteouts of what is named and not there.
    fn whiteouts(&self, changed: &Changed) -> Result<BTreeSet<Vec<u8>>, Error> {
        let mut whiteouts = BTreeSet::new();
        for path in changed.paths() {
            let failed = |source| Error::Tree { path: path.to_owned(), source };
            let mut directory = self.tree.root();
            let mut above = Vec::new();
            for name in path.iter() {
                if self.tree.attr(directory).map_err(failed)?.kind != Kind::Directory {
                    // What is there now is in the place of all that was below.
                    break;
                }
                let Some(node) = self.tree.lookup(directory, name).map_err(failed)? else {
                    whiteouts.insert([&above[..], b".wh.", name.as_bytes()].concat());
                    break;
                };
                above.extend_from_slice(name.as_bytes());
                above.push(b'/');
                directory = node;
            }
        }
        Ok(whiteouts)
    }

    /// The tree, or what is wanted of it.
    fn entries(&mut self) -> Result<(), Error> {
        let (tree, changed) = (self.tree, self.changed);
        walk(tree, changed, &mut |visit| {
            let is_linked = visit.attr.nlink > 1 && self.links.contains_key(&visit.node);
            if (!visit.is_wanted && !is_linked) || self.own.contains_key(visit.path) {
                return Ok(());
            }
            self.entry(visit)
        })
    }

    fn entry(&mut self, visit: &Visit<'_>) -> Result<(), Error> {
        let Visit { path, node, attr, .. } = *visit;
        let failed = |source| Error::Tree { path: path_of(path), source };
        let is_directory = attr.kind == Kind::Directory;
        if !is_directory && attr.nlink > 1 {
            let first = self.links.entry(node).or_default();
            if let Some(first) = first {
                let link = first.clone();
                return Ok(self.out.write_all(&tar::header(&tar::Entry::link(path, &link)))?);
            }
            *first = Some(path.to_vec());
        }
        let mut name = path.to_vec();
        let (mut link, mut size) = (Vec::new(), 0);
        let kind = match attr.kind {
            Kind::Directory => {
                name.extend_from_slice(if path.is_empty() { b"./" } else { b"/" });
                tar::DIRECTORY
            }
            Kind::File => {
                size = attr.size;
                tar::FILE
            }
            Kind::Symlink => {
                link = self.tree.read_link(node).map_err(failed)?.into_vec();
                tar::SYMLINK
            }
            Kind::CharDevice => tar::CHAR_DEVICE,
            Kind::BlockDevice => tar::BLOCK_DEVICE,
            Kind::Fifo => tar::FIFO,
            // No archive can hold one, and none outlives the program that made it.
            Kind::Socket => return Ok(()),
        };
        let xattrs = self.tree.xattrs(node).map_err(failed)?;
        let Attr { mode, uid, gid, rdev, .. } = attr;
        let mtime = attr.mtime.seconds;
        let entry = tar::Entry { path: &name, kind, link: &link, mode, uid, gid, mtime, size, rdev, xattrs: &xattrs };
        self.out.write_all(&tar::header(&entry))?;
        if attr.kind == Kind::File {
            self.content(visit)?;
        }
        if visit.is_whole {
            let opaque = [path, b"/.wh..wh..opq"].concat();
            self.empty_file(&opaque)?;
        }
        Ok(())
    }

    fn content(&mut self, visit: &Visit<'_>) -> Result<(), Error> {
        let size = visit.attr.size;
        let mut buffer = vec![0; BUFFER_BYTES.min(usize::try_from(size).unwrap_or(BUFFER_BYTES))];
        let mut offset = 0;
        while offset < size {
            let length = usize::try_from(size - offset).unwrap_or(usize::MAX).min(buffer.len());
            let read = self.tree.read(visit.node, offset, &mut buffer[..length]);
            let read = read.map_err(|source| Error::Tree { path: path_of(visit.path), source })?;
            if read < length {
                return Err(Error::Changed(path_of(visit.path)));
            }
            self.out.write_all(&buffer[..length])?;
            offset += length as u64;
        }
        Ok(self.out.write_all(tar::padding(size))?)
    }

    fn empty_file(&mut self, path: &[u8]) -> Result<(), Error> {
        Ok(self.out.write_all(&tar::header(&tar::Entry::empty(path)))?)
    }

    fn own_file(&mut self, own: &Own, seconds: i64) -> Result<(), Error> {
        let mut name = own.path.clone().into_bytes();
        let (kind, link, content): (_, _, &[u8]) = match &own.body {
            OwnBody::Directory => {
                name.push(b'/');
                (tar::DIRECTORY, "", b"")
            }
            OwnBody::File(bytes) => (tar::FILE, "", bytes),
            OwnBody::Symlink(target) => (tar::SYMLINK, &target[..], b""),
        };
        let size = content.len() as u64;
        let entry = tar::Entry {
            kind,
            link: link.as_bytes(),
            mode: own.mode,
            mtime: seconds,
            size,
            ..tar::Entry::empty(&name)
        };
        self.out.write_all(&tar::header(&entry))?;
        self.out.write_all(content)?;
        Ok(self.out.write_all(tar::padding(size))?)
    }
}

/// Goes through a tree, parents first.
fn walk(
    tree: &dyn Tree,
    changed: Option<&Changed>,
    visit: &mut dyn FnMut(&Visit<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    struct Frame {
        entries: std::vec::IntoIter<Entry>,
        path_bytes: usize,
        is_whole: bool,
    }
    let mut path: Vec<u8> = Vec::new();
    let mut seen = HashSet::from([tree.root()]);
    let listing = |node, path: &[u8]| {
        tree.entries(node).map_err(|source| Error::Tree { path: path_of(path), source }).map(Vec::into_iter)
    };
    let attr = |node, path: &[u8]| tree.attr(node).map_err(|source| Error::Tree { path: path_of(path), source });
    let root = tree.root();
    visit(&Visit { path: b"", node: root, attr: attr(root, b"")?, is_wanted: changed.is_none(), is_whole: false })?;
    let mut stack = vec![Frame { entries: listing(root, b"")?, path_bytes: 0, is_whole: changed.is_none() }];
    while let Some(frame) = stack.last_mut() {
        path.truncate(frame.path_bytes);
        let Some(entry) = frame.entries.next() else {
            stack.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(entry.name.as_bytes());
        let is_in_whole = frame.is_whole;
        let is_whole = !is_in_whole && changed.is_some_and(|changed| changed.is_whole(&path));
        let is_wanted = is_in_whole || changed.is_some_and(|changed| changed.names(&path));
        let attr = attr(entry.node, &path)?;
        let is_directory = attr.kind == Kind::Directory;
        visit(&Visit { path: &path, node: entry.node, attr, is_wanted, is_whole: is_whole && is_directory })?;
        if is_directory {
            if !seen.insert(entry.node) || stack.len() >= MAX_DEPTH {
                return Err(Error::Directory(path_of(&path)));
            }
            let entries = listing(entry.node, &path)?;
            stack.push(Frame { entries, path_bytes: path.len(), is_whole: is_in_whole || is_whole });
        }
    }
    Ok(())
}

fn path_of(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}
