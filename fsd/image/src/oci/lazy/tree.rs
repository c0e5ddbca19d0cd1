//! The merged tree, in as few bytes as lookups in it allow.
//!
//! ```text
//! nodes:  directories, files, the rest; files in the order of the layers' bytes, so that neighbours have neighbour ids
//! names:  each directory's, sorted, one after the other:  (name, node), (name, node), ...
//! ```
//!
//! A file takes 56 bytes as a node, 12 and its length for a name, and 64 for a chunk, if its layer has chunks.

mod chunks;

use super::decoded::Decoded;
use super::error::Error;
use super::index::{Chunk, Content, XattrList};
use super::merge::{Building, Merge, MergedLayer, ROOT};
use crate::tree::{self, Activity, Attr, Entry, Kind, NodeId, Statistics, Timestamp, Tree, Xattr};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

/// What `statfs` says, and what readers should ask for at least.
const BLOCK_BYTES: u32 = 4096;

/// What `stat` says of a directory, as ext4 does of most.
const DIRECTORY_BYTES: u64 = 4096;

/// What [`Tree::prepare`] reads at a time.
const PREPARE_BYTES: u64 = 1 << 20;

/// The merged tree of an image's layers.
#[derive(Debug)]
pub struct LayeredTree {
    nodes: Box<[Node]>,
    links: Box<[Link]>,
    text: Box<[u8]>,
    xattrs: Box<[Box<[u8]>]>,
    layers: Box<[MergedLayer]>,
    decoded: Arc<Decoded>,
    /// The ids of regular files, in the order of their content.
    files: Range<u32>,
}

/// A node. What `data` means depends on its kind.
#[derive(Debug)]
struct Node {
    mtime_seconds: i64,
    size: u64,
    /// Of a directory its first link and their number, of a symbolic link its target's place and length, of a file the
    /// offset of its content or its first chunk and their end, of a device its number.
    data: u64,
    mtime_nanos: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    xattrs: u32,
    layer: u16,
    mode: u16,
    kind: Kind,
    is_chunked: bool,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
struct Link {
    name: u32,
    node: u32,
    name_bytes: u8,
}

fn pack(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn unpack(data: u64) -> (usize, usize) {
    let half = |bits: u64| usize::try_from(bits & u64::from(u32::MAX)).expect("32 bits are of things in memory");
    (half(data >> 32), half(data))
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("a merge bounds the number of nodes")
}

fn at(number: u32) -> usize {
    usize::try_from(number).expect("numbers are of things in memory")
}

impl LayeredTree {
    /// Numbers what can be reached, and forgets the rest.
    pub(super) fn new(merge: Merge, decoded: Arc<Decoded>) -> Result<Self, Error> {
        let (order, files) = order(&merge);
        let mut ids = vec![u32::MAX; merge.nodes.len()];
        for (id, old) in order.iter().enumerate() {
            ids[at(*old)] = number(id);
        }
        let mut nodes: Vec<Node> = order.iter().map(|old| Node::new(&merge.nodes[at(*old)])).collect();
        let (mut links, mut text) = (Vec::new(), Vec::new());
        for old in &order {
            let building = &merge.nodes[at(*old)];
            let id = at(ids[at(*old)]);
            if building.kind == Kind::Symlink {
                let target = merge.target(building);
                nodes[id].data = pack(number(text.len()), number(target.len()));
                text.extend_from_slice(target);
            }
            if building.kind != Kind::Directory {
                continue;
            }
            let children = &merge.directories[at(building.directory)];
            nodes[id].data = pack(number(links.len()), number(children.len()));
            for (name, child) in children {
                let child_id = ids[at(*child)];
                let is_directory = merge.nodes[at(*child)].kind == Kind::Directory;
                nodes[if is_directory { id } else { at(child_id) }].nlink += 1;
                let start = Error::bounded("text of an image", text.len() as u64, u64::from(u32::MAX) - 4096)?;
                let name_bytes = u8::try_from(name.len()).expect("names are at most 255 bytes");
                links.push(Link { name: number(usize::try_from(start).unwrap_or(0)), node: child_id, name_bytes });
                text.extend_from_slice(name);
            }
        }
        Ok(Self {
            nodes: nodes.into(),
            links: links.into(),
            text: text.into(),
            xattrs: merge.xattrs.into(),
            layers: merge.layers.into(),
            decoded,
            files,
        })
    }

    /// Bytes of memory that the tree takes, what is decoded left out.
    pub fn memory_bytes(&self) -> u64 {
        let chunks: usize = self.layers.iter().map(|layer| layer.chunks.capacity() * size_of::<Chunk>()).sum();
        let xattrs: usize = self.xattrs.iter().map(|list| list.len() + 32).sum();
        (size_of_val(&*self.nodes) + size_of_val(&*self.links) + self.text.len() + xattrs + chunks) as u64
    }

    fn node(&self, id: NodeId) -> Result<&Node, tree::Error> {
        usize::try_from(id.0).ok().and_then(|id| self.nodes.get(id)).ok_or(tree::Error::NoSuchNode(id))
    }

    fn links(&self, dir: NodeId) -> Result<&[Link], tree::Error> {
        let node = self.node(dir)?;
        if node.kind != Kind::Directory {
            return Err(tree::Error::NotADirectory);
        }
        let (start, count) = unpack(node.data);
        Ok(&self.links[start..start + count])
    }

    fn name(&self, link: &Link) -> &[u8] {
        &self.text[at(link.name)..][..usize::from(link.name_bytes)]
    }

    fn read_content(&self, node: &Node, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let layer = &self.layers[usize::from(node.layer)];
        if node.is_chunked {
            let (start, end) = unpack(node.data);
            return chunks::read(layer, &(number(start)..number(end)), &self.decoded, offset, buf);
        }
        let (offset, needed) = (node.data.saturating_add(offset), buf.len() as u64);
        let failed = |source: std::io::Error| {
            // What is wrong with the layer is better said without what it was read for.
            match source.downcast::<Error>() {
                Ok(error) => error,
                Err(source) => Error::Read { offset, needed, source: Arc::new(source) },
            }
        };
        layer.source.bytes().read_exact_at(buf, offset).map_err(failed)
    }
}

/// What can be reached, in the order of the new ids, and which of them are files.
fn order(merge: &Merge) -> (Vec<u32>, Range<u32>) {
    let mut seen = vec![false; merge.nodes.len()];
    let (mut directories, mut files, mut others) = (vec![ROOT], Vec::new(), Vec::new());
    let mut next = 0;
    while let Some(directory) = directories.get(next) {
        next += 1;
        for child in merge.directories[at(merge.nodes[at(*directory)].directory)].values() {
            if std::mem::replace(&mut seen[at(*child)], true) {
                continue;
            }
            match merge.nodes[at(*child)].kind {
                Kind::Directory => directories.push(*child),
                Kind::File => files.push(*child),
                _ => others.push(*child),
            }
        }
    }
    files.sort_by_key(|file| {
        let node = &merge.nodes[at(*file)];
        (node.layer, content_data(&node.content), *file)
    });
    let range = number(directories.len())..number(directories.len() + files.len());
    directories.extend(files);
    directories.extend(others);
    (directories, range)
}

fn content_data(content: &Content) -> u64 {
    match content {
        Content::Offset(offset) => *offset,
        Content::Chunks(range) => pack(range.start, range.end),
    }
}

impl Node {
    fn new(building: &Building) -> Self {
        let data = match building.kind {
            Kind::File => content_data(&building.content),
            _ => u64::from(building.rdev),
        };
        Self {
            mtime_seconds: building.mtime.seconds,
            size: building.size,
            data,
            mtime_nanos: building.mtime.nanos,
            uid: building.uid,
            gid: building.gid,
            nlink: if building.kind == Kind::Directory { 2 } else { 0 },
            xattrs: building.xattrs,
            layer: building.layer,
            mode: building.mode,
            kind: building.kind,
            is_chunked: matches!(building.content, Content::Chunks(_)),
        }
    }
}

impl Tree for LayeredTree {
    fn root(&self) -> NodeId {
        NodeId(0)
    }

    fn attr(&self, id: NodeId) -> Result<Attr, tree::Error> {
        let node = self.node(id)?;
        let mtime = Timestamp { seconds: node.mtime_seconds, nanos: node.mtime_nanos };
        let size = match node.kind {
            Kind::Directory => DIRECTORY_BYTES,
            Kind::Symlink => unpack(node.data).1 as u64,
            _ => node.size,
        };
        let is_device = matches!(node.kind, Kind::BlockDevice | Kind::CharDevice);
        Ok(Attr {
            kind: node.kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            size,
            blocks: if node.kind == Kind::File { size.div_ceil(512) } else { 0 },
            nlink: node.nlink,
            mtime,
            ctime: mtime,
            atime: mtime,
            rdev: if is_device { number(unpack(node.data).1) } else { 0 },
        })
    }

    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, tree::Error> {
        let links = self.links(dir)?;
        let found = links.binary_search_by(|link| self.name(link).cmp(name.as_bytes()));
        Ok(found.ok().map(|index| NodeId(links[index].node.into())))
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, tree::Error> {
        let entry = |link: &Link| Entry {
            name: OsStr::from_bytes(self.name(link)).to_owned(),
            node: NodeId(link.node.into()),
            kind: self.nodes[at(link.node)].kind,
        };
        Ok(self.links(dir)?.iter().map(entry).collect())
    }

    fn read_link(&self, id: NodeId) -> Result<OsString, tree::Error> {
        let node = self.node(id)?;
        if node.kind != Kind::Symlink {
            return Err(tree::Error::NotASymlink);
        }
        let (start, length) = unpack(node.data);
        Ok(OsString::from_vec(self.text[start..start + length].to_vec()))
    }

    fn read(&self, id: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, tree::Error> {
        let node = self.node(id)?;
        if node.kind != Kind::File {
            return Err(tree::Error::NotAFile);
        }
        let left = usize::try_from(node.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = left.min(buf.len());
        if count > 0 {
            self.read_content(node, offset, &mut buf[..count])?;
        }
        Ok(count)
    }

    fn files_after(&self, id: NodeId, count: usize, max_bytes: u64) -> Vec<(NodeId, u64)> {
        let Some(first) = u32::try_from(id.0).ok().filter(|id| self.files.contains(id)) else { return Vec::new() };
        let layer = self.nodes[at(first)].layer;
        (first + 1..self.files.end)
            .map(|next| (NodeId(next.into()), &self.nodes[at(next)]))
            .take_while(|(_, node)| node.layer == layer)
            // Not further than a reader of small files gets: whoever stores large ones between them has no such order.
            .take(count.saturating_mul(4))
            .filter(|(_, node)| (1..=max_bytes).contains(&node.size))
            .map(|(id, node)| (id, node.size))
            .take(count)
            .collect()
    }

    fn prepare(&self, ranges: &[(NodeId, Range<u64>)]) {
        let mut ranges: Vec<_> = ranges.iter().filter(|(id, _)| self.node(*id).is_ok()).collect();
        // Files are numbered in the order of their content.
        ranges.sort_by_key(|(id, range)| (*id, range.start));
        let mut buf = Vec::new();
        for (id, range) in ranges {
            let mut offset = range.start;
            while offset < range.end {
                buf.resize(usize::try_from((range.end - offset).min(PREPARE_BYTES)).unwrap_or(0), 0);
                match self.read(*id, offset, &mut buf) {
                    Ok(count) if count > 0 => offset += count as u64,
                    _ => break,
                }
            }
        }
    }

    fn xattrs(&self, id: NodeId) -> Result<Vec<Xattr>, tree::Error> {
        let list = &self.xattrs[at(self.node(id)?.xattrs)];
        Ok(XattrList::iter(list).map(|(name, value)| (OsStr::from_bytes(name).to_owned(), value.to_vec())).collect())
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            bytes: self.layers.iter().map(|layer| layer.source.bytes().len()).fold(0, u64::saturating_add),
            nodes: self.nodes.len() as u64,
            block_size: BLOCK_BYTES,
            ..Statistics::default()
        }
    }

    fn activity(&self) -> Activity {
        let lookups = self.decoded.lookups();
        Activity {
            decoded_blocks: lookups.misses,
            decoded_bytes: self.decoded.decoded_bytes(),
            cache_hits: lookups.hits,
            cache_misses: lookups.misses,
            cache_waits: lookups.waits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::{self, EntryKind, LayerIndex};
    use super::super::merge::Layer;
    use super::*;

    #[test]
    fn a_file_takes_at_most_150_bytes_with_its_chunk() {
        const FILES: u32 = 50_000;
        let mut layer = LayerIndex::default();
        for number in 0..FILES {
            let path = format!("usr/lib/python3/dir{}/module_{number}", number % 1000);
            let digest = Some([7; 32]);
            let (offset, file_offset, inner_offset) = (u64::from(number) * 100, 0, 0);
            let chunk = Chunk { offset, stored_bytes: 100, inner_offset, file_offset, bytes: 300, digest };
            let first = layer.push_chunk(chunk).unwrap();
            let entry = index::Entry {
                path: path.as_bytes(),
                kind: EntryKind::File,
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: Timestamp::default(),
                rdev: 0,
                size: 300,
                link: &[],
                xattrs: &[],
                content: Content::Chunks(first..first + 1),
            };
            layer.push(&entry).unwrap();
        }
        let mut merge = Merge::new(Decoded::new(1 << 20));
        merge.add(layer, Layer::GzipChunks(Arc::new(Vec::<u8>::new()))).unwrap();

        let tree = merge.finish().unwrap();

        assert_eq!(tree.statistics().nodes, u64::from(FILES) + 1000 + 4);
        let bytes = tree.memory_bytes() / u64::from(FILES);
        assert!(bytes <= 150, "{bytes} bytes");
    }
}
