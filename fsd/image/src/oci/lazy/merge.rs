//! Layers put on each other, lowest first, into one tree.
//!
//! A whiteout hides what lower layers have, never what its own layer does, wherever in the layer it stands: so a layer's
//! whiteouts are applied first, and its entries after them. An entry replaces what has its name; only a directory that
//! meets a directory keeps what is in it. A path that leads through a symbolic link is followed within the image, as
//! unpackers do. A hard link to what is not there yet waits until its layer is there, since some formats reorder files.

use super::super::layers::merge::is_foreign;
use super::super::own::{Own, OwnBody};
use super::decoded::{Decoded, LayerId};
use super::error::Error;
use super::index::{Chunk, Content, Entry, EntryKind, LayerIndex, MAX_PATH_BYTES, XattrList};
use super::tree::LayeredTree;
use crate::read_at::ReadAt;
use crate::tree::{Kind, Timestamp};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// Symbolic links in one path, as the kernel counts them.
const MAX_LINKS: usize = 40;

/// Longest name of a file.
const MAX_NAME_BYTES: usize = 255;

/// Layers of one image. Registries and runtimes have 127.
const MAX_LAYERS: usize = 1000;

/// Nodes of one image.
const MAX_NODES: usize = 8 << 20;

/// Nested directories: the longest path has no more.
const MAX_DEPTH: usize = MAX_PATH_BYTES / 2;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Where the content of a layer's files is read.
#[derive(Debug)]
pub enum Layer {
    /// The uncompressed tar: the layer itself, or something that decompresses what is asked for.
    Tar(Arc<dyn ReadAt>),
    /// Gzip members that are the chunks of an eStargz.
    GzipChunks(Arc<dyn ReadAt>),
    /// Frames that are the chunks of a zstd:chunked layer.
    ZstdChunks(Arc<dyn ReadAt>),
}

/// How the content of a layer that is merged is read.
#[derive(Debug)]
pub(super) struct MergedLayer {
    pub(super) source: Layer,
    pub(super) chunks: Vec<Chunk>,
    pub(super) id: LayerId,
}

pub(super) const ROOT: u32 = 0;

/// A node while layers are merged.
#[derive(Debug, Clone)]
pub(super) struct Building {
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) rdev: u32,
    pub(super) size: u64,
    pub(super) layer: u16,
    pub(super) content: Content,
    /// Of directories: which of the merge's.
    pub(super) directory: u32,
    /// Of symbolic links: where the target lies in the text.
    pub(super) target: (u32, u16),
    pub(super) xattrs: u32,
}

/// The layers so far.
#[derive(Debug)]
pub struct Merge {
    pub(super) nodes: Vec<Building>,
    pub(super) directories: Vec<BTreeMap<Box<[u8]>, u32>>,
    pub(super) text: Vec<u8>,
    /// Distinct lists of extended attributes; number 0 is the empty one.
    pub(super) xattrs: Vec<Box<[u8]>>,
    pub(super) layers: Vec<MergedLayer>,
    xattr_numbers: HashMap<Box<[u8]>, u32>,
    decoded: Arc<Decoded>,
}

impl Merge {
    /// No layer yet: an empty root directory. What is decoded is kept in `decoded`.
    pub fn new(decoded: Arc<Decoded>) -> Self {
        let mut merge = Self {
            nodes: Vec::new(),
            directories: Vec::new(),
            text: Vec::new(),
            xattrs: vec![Box::default()],
            layers: Vec::new(),
            xattr_numbers: HashMap::from([(Box::default(), 0)]),
            decoded,
        };
        merge.add_implied_directory(Timestamp::default()).expect("one node is not too many");
        merge
    }

    /// Puts a layer on those before it.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::TooLarge`] and [`Error::DanglingLink`] for what no image may have.
    pub fn add(&mut self, index: LayerIndex, source: Layer) -> Result<(), Error> {
        let number = Error::bounded("the number of layers", self.layers.len() as u64, MAX_LAYERS as u64)?;
        let number = u16::try_from(number).expect("it was just bounded");
        for entry in index.entries() {
            self.apply_whiteout(&entry)?;
        }
        let mut links = Vec::new();
        for (at, entry) in index.entries().enumerate() {
            if self.add_entry(&entry, number)?.is_none() && !self.add_link(&entry)? {
                links.push(at);
            }
        }
        self.add_links(&index, links)?;
        self.layers.push(MergedLayer { source, chunks: index.into_chunks(), id: self.decoded.add_layer() });
        Ok(())
    }

    /// Puts files on the layers that none of them has, of the time `seconds` since 1970.
    ///
    /// # Errors
    /// As [`Merge::add`].
    pub fn add_own(&mut self, own: &[Own], seconds: i64) -> Result<(), Error> {
        let (mut index, mut bytes) = (LayerIndex::default(), Vec::new());
        for file in own.iter().filter(|file| file.replaces || !self.has(file.path.as_bytes())) {
            let (kind, link) = match &file.body {
                OwnBody::Directory => (EntryKind::Directory, ""),
                OwnBody::File(_) => (EntryKind::File, ""),
                OwnBody::Symlink(target) => (EntryKind::Symlink, &target[..]),
            };
            index.push(&Entry {
                path: file.path.as_bytes(),
                kind,
                mode: file.mode,
                uid: 0,
                gid: 0,
                mtime: Timestamp { seconds, nanos: 0 },
                rdev: 0,
                size: file.bytes().len() as u64,
                link: link.as_bytes(),
                xattrs: &[],
                content: Content::Offset(bytes.len() as u64),
            })?;
            bytes.extend_from_slice(file.bytes());
        }
        self.add(index, Layer::Tar(Arc::new(bytes)))
    }

    /// Whether there is something at `path`, links on the way followed.
    fn has(&self, path: &[u8]) -> bool {
        let Ok(components) = components(path) else { return false };
        let Some((name, parents)) = components.split_last() else { return true };
        let parent = self.find_directory(parents);
        parent.is_some_and(|parent| self.directories[self.directory_of(parent)].contains_key(*name))
    }

    /// The tree of all layers.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if directories are nested too deeply.
    pub fn finish(self) -> Result<LayeredTree, Error> {
        let decoded = self.decoded.clone();
        LayeredTree::new(self, decoded)
    }

    fn apply_whiteout(&mut self, entry: &Entry<'_>) -> Result<(), Error> {
        let components = components(entry.path)?;
        let Some((last, parents)) = components.split_last() else { return Ok(()) };
        let Some(hidden) = last.strip_prefix(WHITEOUT) else { return Ok(()) };
        let Some(parent) = self.find_directory(parents) else { return Ok(()) };
        let directory = self.directory_of(parent);
        if *last == OPAQUE {
            self.directories[directory].clear();
        } else {
            self.directories[directory].remove(hidden);
        }
        Ok(())
    }

    /// Adds all but hard links and whiteouts. `None` for a hard link.
    fn add_entry(&mut self, entry: &Entry<'_>, layer: u16) -> Result<Option<()>, Error> {
        let components = components(entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            // The root directory itself.
            if entry.kind == EntryKind::Directory {
                self.set_attributes(ROOT, entry)?;
            }
            return Ok(Some(()));
        };
        if name.starts_with(WHITEOUT) {
            return Ok(Some(()));
        }
        if entry.kind == EntryKind::HardLink {
            return Ok(None);
        }
        let parent = self.make_directory(parents, entry.mtime)?;
        let directory = self.directory_of(parent);
        if entry.kind == EntryKind::Directory
            && let Some(old) = self.directories[directory].get(*name).copied()
            && self.nodes[index(old)].kind == Kind::Directory
        {
            self.set_attributes(old, entry)?;
            return Ok(Some(()));
        }
        let node = self.add_node(entry, layer)?;
        self.directories[directory].insert((*name).into(), node);
        Ok(Some(()))
    }

    /// Adds the hard links of a layer whose targets came after them. A link to such a link has to wait for that.
    fn add_links(&mut self, layer: &LayerIndex, mut links: Vec<usize>) -> Result<(), Error> {
        let entries: HashMap<usize, Entry<'_>> = match links.is_empty() {
            true => HashMap::new(),
            false => layer.entries().enumerate().filter(|(_, entry)| entry.kind == EntryKind::HardLink).collect(),
        };
        // Each round adds one at least, and unpackers have links in an order that takes one round.
        for _ in 0..MAX_LINKS {
            let mut waiting = Vec::new();
            for number in links {
                if !self.add_link(&entries[&number])? {
                    waiting.push(number);
                }
            }
            links = waiting;
            if links.is_empty() {
                return Ok(());
            }
        }
        let entry = &entries[&links[0]];
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Err(Error::DanglingLink { link: text(entry.path), target: text(entry.link) })
    }

    /// Whether there was what the link is to.
    fn add_link(&mut self, entry: &Entry<'_>) -> Result<bool, Error> {
        let target = components(entry.link)?;
        let found = target.split_last().and_then(|(name, parents)| {
            let parent = self.find_directory(parents)?;
            self.directories[self.directory_of(parent)].get(*name).copied()
        });
        let Some(node) = found.filter(|node| self.nodes[index(*node)].kind != Kind::Directory) else {
            return Ok(false);
        };
        let components = components(entry.path)?;
        let Some((name, parents)) = components.split_last() else { return Ok(true) };
        let parent = self.make_directory(parents, entry.mtime)?;
        let directory = self.directory_of(parent);
        self.directories[directory].insert((*name).into(), node);
        Ok(true)
    }

    /// The directory with this path, made as far as it is not there, with the time of what it is made for.
    fn make_directory(&mut self, path: &[&[u8]], mtime: Timestamp) -> Result<u32, Error> {
        let mut missing = Vec::new();
        let mut at = self.walk(path, &mut missing)?;
        for name in missing {
            let node = self.add_implied_directory(mtime)?;
            let directory = self.directory_of(at);
            self.directories[directory].insert(name, node);
            at = node;
        }
        Ok(at)
    }

    /// The directory with this path, if there is one.
    fn find_directory(&self, path: &[&[u8]]) -> Option<u32> {
        let mut missing = Vec::new();
        self.walk(path, &mut missing).ok().filter(|_| missing.is_empty())
    }

    /// Walks down a path, through symbolic links as if the image were the root. What is not there, or is no directory, is
    /// put into `missing`, to be made in the directory that is returned.
    fn walk(&self, path: &[&[u8]], missing: &mut Vec<Box<[u8]>>) -> Result<u32, Error> {
        let mut above = vec![ROOT];
        // What is still to be walked, the next last.
        let mut pending: Vec<&[u8]> = path.iter().rev().copied().collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            Error::bounded("a path's depth", (above.len() + missing.len()) as u64, MAX_DEPTH as u64)?;
            let at = *above.last().expect("the root is never taken away");
            if name == b".." {
                if missing.pop().is_none() && above.len() > 1 {
                    above.pop();
                }
                continue;
            }
            let found = match missing.is_empty() {
                true => self.directories[self.directory_of(at)].get(name).copied(),
                false => None,
            };
            match found.map(|node| (node, &self.nodes[index(node)])) {
                Some((node, found)) if found.kind == Kind::Directory => above.push(node),
                Some((_, found)) if found.kind == Kind::Symlink => {
                    links += 1;
                    Error::bounded("the number of symbolic links in a path", links, MAX_LINKS as u64)?;
                    let target = self.target(found);
                    if target.first() == Some(&b'/') {
                        above.truncate(1);
                    }
                    pending.extend(split(target).rev());
                }
                _ => missing.push(checked_name(name)?.into()),
            }
        }
        Ok(*above.last().expect("the root is never taken away"))
    }

    pub(super) fn target(&self, node: &Building) -> &[u8] {
        let start = index(node.target.0);
        &self.text[start..start + usize::from(node.target.1)]
    }

    fn directory_of(&self, node: u32) -> usize {
        index(self.nodes[index(node)].directory)
    }

    fn add_implied_directory(&mut self, mtime: Timestamp) -> Result<u32, Error> {
        self.add_node(
            &Entry {
                path: &[],
                kind: EntryKind::Directory,
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime,
                rdev: 0,
                size: 0,
                link: &[],
                xattrs: &[],
                content: Content::Offset(0),
            },
            0,
        )
    }

    fn add_node(&mut self, entry: &Entry<'_>, layer: u16) -> Result<u32, Error> {
        let number = Error::bounded("the number of an image's files", self.nodes.len() as u64, MAX_NODES as u64)?;
        let kind = match entry.kind {
            EntryKind::Directory => Kind::Directory,
            EntryKind::File | EntryKind::HardLink => Kind::File,
            EntryKind::Symlink => Kind::Symlink,
            EntryKind::CharDevice => Kind::CharDevice,
            EntryKind::BlockDevice => Kind::BlockDevice,
            EntryKind::Fifo => Kind::Fifo,
        };
        let mut target = (0, 0);
        if kind == Kind::Symlink {
            if entry.link.is_empty() || entry.link.contains(&0) {
                return Err(bad_name(entry.link));
            }
            let start = Error::bounded("text of an image", self.text.len() as u64, u64::from(u32::MAX))?;
            let length = u16::try_from(entry.link.len()).map_err(|_| bad_name(entry.link))?;
            target = (u32::try_from(start).expect("it was just bounded"), length);
            self.text.extend_from_slice(entry.link);
        }
        let directory = u32::try_from(self.directories.len()).expect("there are fewer than nodes");
        if kind == Kind::Directory {
            self.directories.push(BTreeMap::new());
        }
        let xattrs = self.xattr_number(entry.xattrs);
        self.nodes.push(Building {
            kind,
            mode: if kind == Kind::Symlink { 0o777 } else { entry.mode },
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            rdev: entry.rdev,
            size: entry.size,
            layer,
            content: entry.content.clone(),
            directory,
            target,
            xattrs,
        });
        Ok(u32::try_from(number).expect("it was just bounded"))
    }

    fn set_attributes(&mut self, node: u32, entry: &Entry<'_>) -> Result<(), Error> {
        let xattrs = self.xattr_number(entry.xattrs);
        let node = &mut self.nodes[index(node)];
        (node.mode, node.uid, node.gid) = (entry.mode, entry.uid, entry.gid);
        (node.mtime, node.xattrs) = (entry.mtime, xattrs);
        Ok(())
    }

    /// Few lists differ: most files have none, and programs with capabilities have the same.
    fn xattr_number(&mut self, list: &[u8]) -> u32 {
        if let Some(number) = self.xattr_numbers.get(list) {
            return *number;
        }
        if XattrList::iter(list).any(|(name, _)| is_foreign(name)) {
            return self.xattr_number(&XattrList::without(list, is_foreign));
        }
        let number = u32::try_from(self.xattrs.len()).expect("there are fewer than nodes");
        self.xattrs.push(list.into());
        self.xattr_numbers.insert(list.into(), number);
        number
    }
}

/// The names in a path, as if it began at the root: `.` and `..` are resolved without looking.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let mut names = Vec::new();
    for name in split(path) {
        match name {
            b".." => drop(names.pop()),
            name => names.push(checked_name(name)?),
        }
    }
    Error::bounded("a path's depth", names.len() as u64, MAX_DEPTH as u64)?;
    Ok(names)
}

/// The parts of a path that lead anywhere.
fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

fn checked_name(name: &[u8]) -> Result<&[u8], Error> {
    if name.len() > MAX_NAME_BYTES || name.contains(&0) { Err(bad_name(name)) } else { Ok(name) }
}

fn bad_name(name: &[u8]) -> Error {
    Error::BadName(String::from_utf8_lossy(name).into_owned())
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("numbers are of things in memory")
}

impl Layer {
    pub(super) fn bytes(&self) -> &Arc<dyn ReadAt> {
        match self {
            Self::Tar(bytes) | Self::GzipChunks(bytes) | Self::ZstdChunks(bytes) => bytes,
        }
    }
}

/// The chunks of a file: a part of its layer's.
pub(super) fn chunks_of<'a>(layer: &'a MergedLayer, range: &Range<u32>) -> &'a [Chunk] {
    layer.chunks.get(index(range.start)..index(range.end)).unwrap_or_default()
}
