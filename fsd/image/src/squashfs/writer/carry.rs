//! Which content is taken over from a base image as it is stored there.
//!
//! A file that the tree passes through from the base keeps its blocks and its place in a fragment. So does a new file
//! that turns out to have the content of one: of the file at the same path whatever its size, else, from a block on, of any
//! file as long. Both are read and compared for that; most differ early.
//!
//! ```text
//! base:   | a | b | c | unused | d | fragment | tables
//! kept:   | a | b | c | unused | d | fragment | new content | tables      at the same offsets, in one piece
//! or:     | a | b | c | d | fragment | new content | tables               if what is unused is worth it
//! ```
//!
//! Copied blocks are not decoded: that would take as long as it takes to read the whole image. It is checked that each lies
//! within the content of the base, is no longer than a block, and overlaps no other, so that the new image refers to
//! those bytes and to no others. A block that is damaged in itself stays so, and whoever reads it is told, as before.

use super::content::Tail;
use super::pipeline::Blocks;
use super::scan::Scan;
use super::{Error, Options, Progress};
use crate::squashfs::format::{DATA_UNCOMPRESSED, NONE_U32};
use crate::squashfs::reader::{Layout, Squashfs};
use crate::tree::{Kind, NodeId, Tree};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

/// Files of the base that a new file is compared with at most, beside the one at its own path.
const MAX_CANDIDATES: usize = 4;
/// What messages call what fails in the base and belongs to no path.
const BASE: &str = "the base image";

/// What is taken over.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Whether the content of a node is.
    pub(super) is_carried: Vec<bool>,
    /// The full blocks of each node, at their places in the new image.
    pub(super) blocks: Vec<Blocks>,
    /// The tail of each node.
    pub(super) tails: Vec<Tail>,
    /// Start and stored size of each fragment, at its place in the new image.
    pub(super) fragments: Vec<(u64, u32)>,
    /// What to copy from the base.
    pub(super) pieces: Vec<Piece>,
    /// Where the copied content ends.
    pub(super) end: u64,
    /// Content of files that is taken over.
    pub(super) content_bytes: u64,
    /// Stored bytes of the base that are not.
    pub(super) dropped_bytes: u64,
}

impl Carried {
    /// Leaves out what is copied already: the base's bytes up to `end`, at their own offsets. Returns how many of those it
    /// had to copy.
    pub(super) fn leave_out_up_to(&mut self, end: u64) -> u64 {
        // What moves lies behind what does not.
        let Some(first) = self.pieces.first_mut().filter(|first| first.from.start == first.to) else { return 0 };
        let there = end.clamp(first.from.start, first.from.end) - first.from.start;
        first.from.start += there;
        first.to += there;
        there
    }
}

/// Bytes of the base that lie together in both images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where in the base.
    pub(super) from: Range<u64>,
    /// Where in the new image they begin.
    pub(super) to: u64,
}

/// Nothing to take over: content begins at `start`.
pub(super) fn nothing(scan: &Scan, start: u64) -> Carried {
    let nodes = scan.nodes.len();
    Carried {
        is_carried: vec![false; nodes],
        blocks: std::iter::repeat_with(Blocks::default).take(nodes).collect(),
        tails: vec![Tail::NONE; nodes],
        end: start,
        ..Carried::default()
    }
}

/// Finds what to take over from `base`, whose content is in `content`, into an image whose content begins there too.
pub(super) fn plan(
    tree: &dyn Tree,
    scan: &Scan,
    base: &Squashfs,
    content: Range<u64>,
    options: &Options,
    progress: &Progress,
) -> Result<Carried, Error> {
    let mut plan =
        Plan { tree, scan, base, content, block_size: options.block_size, progress, stored: BTreeMap::new() };
    let mut layouts = plan.passed_through()?;
    plan.add_equal(&mut layouts)?;
    plan.carry(layouts, options.compact_percent)
}

struct Plan<'a> {
    tree: &'a dyn Tree,
    scan: &'a Scan,
    base: &'a Squashfs,
    /// Where in the base content lies.
    content: Range<u64>,
    block_size: u32,
    progress: &'a Progress,
    /// Stored lengths of all blocks and fragments that are taken over, by their start in the base.
    stored: BTreeMap<u64, u32>,
}

impl Plan<'_> {
    /// The layouts of the files that the tree has from the base unchanged, by node.
    fn passed_through(&mut self) -> Result<BTreeMap<usize, Layout>, Error> {
        let mut layouts = BTreeMap::new();
        let base: &dyn Tree = self.base;
        for node in &self.scan.file_order {
            self.progress.check()?;
            let origin = self.tree.origin(self.scan.nodes[*node].id);
            let Some((_, file)) = origin.filter(|(tree, _)| std::ptr::addr_eq(*tree, base)) else { continue };
            layouts.extend(self.usable(*node, file)?.map(|layout| (*node, layout)));
        }
        Ok(layouts)
    }

    /// Adds files that have the content of a file of the base.
    fn add_equal(&mut self, layouts: &mut BTreeMap<usize, Layout>) -> Result<(), Error> {
        let is_new = |node: &&usize| self.scan.nodes[**node].attr.size > 0 && !layouts.contains_key(*node);
        let new: Vec<usize> = self.scan.file_order.iter().filter(is_new).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        let same_path = self.files_at_the_paths_of(&new)?;
        let mut by_size = None;
        let mut comparison = Comparison::default();
        for node in new {
            let size = self.scan.nodes[node].attr.size;
            let mut candidates: Vec<NodeId> = same_path.get(&node).copied().into_iter().collect();
            if size >= u64::from(self.block_size) {
                let by_size = match &by_size {
                    Some(known) => known,
                    None => by_size.insert(self.files_by_size()?),
                };
                candidates.extend(by_size.get(&size).into_iter().flatten().take(MAX_CANDIDATES));
            }
            for file in candidates {
                self.progress.check()?;
                if self.base.attr(file).map_err(self.scan.at(node))?.size != size
                    || !self.is_equal(&mut comparison, node, file)?
                {
                    continue;
                }
                layouts.extend(self.usable(node, file)?.map(|layout| (node, layout)));
                break;
            }
        }
        Ok(())
    }

    /// Whether the file `node` of the tree has the content of the file `file` of the base, which is as long. A file of the
    /// base that cannot be read is equal to none.
    fn is_equal(&self, comparison: &mut Comparison, node: usize, file: NodeId) -> Result<bool, Error> {
        let Comparison { new, old } = comparison;
        let size = self.scan.nodes[node].attr.size;
        let mut offset = 0;
        while offset < size {
            self.progress.check()?;
            let length =
                usize::try_from((size - offset).min(self.block_size.into())).expect("a block is at most 1 MiB");
            new.resize(length, 0);
            old.resize(length, 0);
            let read = self.tree.read(self.scan.nodes[node].id, offset, new).map_err(self.scan.at(node))?;
            if read < length {
                return Err(Error::Changed(self.scan.path(node)));
            }
            if !matches!(self.base.read(file, offset, old), Ok(read) if read == length) || new != old {
                return Ok(false);
            }
            offset += length as u64;
        }
        Ok(true)
    }

    /// The files that the base has at the paths of `nodes`.
    fn files_at_the_paths_of(&self, nodes: &[usize]) -> Result<HashMap<usize, NodeId>, Error> {
        let wanted: HashSet<usize> = nodes.iter().copied().collect();
        let mut above = HashSet::from([0]);
        for node in nodes {
            let mut parent = self.scan.nodes[*node].parent;
            while above.insert(parent) {
                parent = self.scan.nodes[parent].parent;
            }
        }
        let mut directories = HashMap::from([(0, self.base.root())]);
        let mut files = HashMap::new();
        for directory in self.scan.directories.iter().filter(|directory| above.contains(&directory.node)) {
            let Some(base_directory) = directories.get(&directory.node).copied() else { continue };
            let entries = self.base.entries(base_directory).map_err(self.scan.at(directory.node))?;
            let known: HashMap<_, _> =
                entries.into_iter().map(|entry| (entry.name, (entry.node, entry.kind))).collect();
            for (name, child) in &directory.children {
                match known.get(name) {
                    Some((found, Kind::Directory)) if above.contains(child) => directories.insert(*child, *found),
                    Some((found, Kind::File)) if wanted.contains(child) => files.insert(*child, *found),
                    _ => None,
                };
            }
        }
        Ok(files)
    }

    /// The files of the base that have a block or more, by their sizes.
    fn files_by_size(&self) -> Result<HashMap<u64, Vec<NodeId>>, Error> {
        let failed = |source| Error::Tree { path: BASE.into(), source };
        let mut files = HashMap::<u64, Vec<NodeId>>::new();
        let mut seen = HashSet::from([self.base.root()]);
        let mut pending = vec![self.base.root()];
        while let Some(directory) = pending.pop() {
            self.progress.check()?;
            for entry in self.base.entries(directory).map_err(failed)? {
                if !seen.insert(entry.node) {
                    continue;
                }
                match entry.kind {
                    Kind::Directory => pending.push(entry.node),
                    Kind::File => {
                        let size = self.base.attr(entry.node).map_err(failed)?.size;
                        if size >= self.block_size.into() {
                            files.entry(size).or_default().push(entry.node);
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(files)
    }

    /// The layout of a file of the base, once all of its blocks are known to lie where they may. `None` for a file without
    /// content, and for one that is another length than the tree says.
    fn usable(&mut self, node: usize, file: NodeId) -> Result<Option<Layout>, Error> {
        let layout = self.base.layout(file).map_err(self.scan.at(node))?;
        let size = self.scan.nodes[node].attr.size;
        if size == 0 || size != layout.size {
            return Ok(None);
        }
        let mut start = layout.start;
        for stored in layout.sizes.iter().filter(|stored| **stored != 0) {
            self.use_block(start, *stored)?;
            start += u64::from(stored & !DATA_UNCOMPRESSED);
        }
        if let Some((index, offset)) = layout.fragment {
            let (start, stored) = self.base.fragment(index).map_err(self.scan.at(node))?;
            self.use_block(start, stored)?;
            let tail_bytes = size % u64::from(self.block_size);
            if u64::from(offset) + tail_bytes > self.block_size.into() {
                return Err(Error::BaseContent { start, bytes: u64::from(offset) + tail_bytes });
            }
        }
        Ok(Some(layout))
    }

    /// Notes that a block or fragment is taken over, if it lies where it may.
    fn use_block(&mut self, start: u64, stored: u32) -> Result<(), Error> {
        let bytes = stored & !DATA_UNCOMPRESSED;
        let outside = || Error::BaseContent { start, bytes: bytes.into() };
        let end = start.checked_add(bytes.into()).ok_or_else(outside)?;
        if bytes == 0 || bytes > self.block_size || start < self.content.start || end > self.content.end {
            return Err(outside());
        }
        // Blocks that are equal are stored once and have several owners; anything else that overlaps is damage.
        let known = *self.stored.entry(start).or_insert(bytes);
        let before = self.stored.range(..start).next_back();
        let overlaps_before = before.is_some_and(|(other, bytes)| other + u64::from(*bytes) > start);
        let overlaps_after = self.stored.range(start + 1..).next().is_some_and(|(other, _)| *other < end);
        if known != bytes || overlaps_before || overlaps_after {
            return Err(Error::BaseOverlap { start });
        }
        Ok(())
    }

    /// Decides what is copied, and where everything comes to lie.
    fn carry(self, layouts: BTreeMap<usize, Layout>, compact_percent: u8) -> Result<Carried, Error> {
        let mut carried = nothing(self.scan, self.content.start);
        let all_bytes = self.content.end - self.content.start;
        let used_bytes: u64 = self.stored.values().map(|bytes| u64::from(*bytes)).sum();
        let unused_bytes = all_bytes - used_bytes;
        let is_compact = u128::from(unused_bytes) * 100 > u128::from(all_bytes) * u128::from(compact_percent);
        if is_compact {
            carried.pieces = packed(&self.stored, self.content.start);
            carried.dropped_bytes = unused_bytes;
        } else if !layouts.is_empty() {
            carried.pieces = vec![Piece { from: self.content.clone(), to: self.content.start }];
        }
        let last = carried.pieces.last();
        carried.end = last.map_or(self.content.start, |piece| piece.to + (piece.from.end - piece.from.start));
        let mut fragments = BTreeMap::new();
        for index in layouts.values().filter_map(|layout| layout.fragment) {
            fragments.entry(index.0).or_insert(NONE_U32);
        }
        for (index, new_index) in &mut fragments {
            *new_index = u32::try_from(carried.fragments.len()).expect("there are no more than in the base");
            let failed = |source| Error::Tree { path: BASE.into(), source };
            let (start, stored) = self.base.fragment(*index).map_err(failed)?;
            carried.fragments.push((moved(&carried.pieces, start), stored));
        }
        for (node, layout) in layouts {
            carried.content_bytes += layout.size;
            carried.is_carried[node] = true;
            if let Some((index, offset)) = layout.fragment {
                carried.tails[node] = Tail { fragment: fragments[&index], offset };
            }
            let start = if layout.sizes.iter().any(|size| *size != 0) {
                moved(&carried.pieces, layout.start)
            } else {
                carried.end
            };
            carried.blocks[node] = Blocks { start, sizes: layout.sizes, hole_bytes: layout.hole_bytes };
        }
        Ok(carried)
    }
}

#[derive(Debug, Default)]
struct Comparison {
    new: Vec<u8>,
    old: Vec<u8>,
}

/// The blocks moved together from `start` on, in their order.
fn packed(stored: &BTreeMap<u64, u32>, start: u64) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut to = start;
    for (from, bytes) in stored {
        let end = from + u64::from(*bytes);
        match pieces.last_mut() {
            Some(piece) if piece.from.end == *from => piece.from.end = end,
            _ => pieces.push(Piece { from: *from..end, to }),
        }
        to += u64::from(*bytes);
    }
    pieces
}

/// Where the byte `start` of the base, which is in one of the pieces, comes to lie.
fn moved(pieces: &[Piece], start: u64) -> u64 {
    let index = pieces.partition_point(|piece| piece.from.start <= start);
    let piece = &pieces[index.checked_sub(1).expect("a block is copied before it is moved")];
    piece.to + (start - piece.from.start)
}
