//! Reads the files one after the other, cuts them into blocks and packs what is left of each into fragments.

use super::carry::Carried;
use super::pipeline::{Feed, Piece};
use super::scan::Scan;
use super::{Error, Progress};
use crate::squashfs::format::NONE_U32;
use crate::tree::Tree;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::atomic::Ordering;

/// The end of a file, in a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) fragment: u32,
    pub(super) offset: u32,
}

impl Tail {
    /// What a file without one has.
    pub(super) const NONE: Self = Self { fragment: NONE_U32, offset: 0 };
}

/// Sends all content down `feed`, and returns the tail of each node.
pub(super) fn read(
    tree: &dyn Tree,
    scan: &Scan,
    carried: &Carried,
    block_size: u32,
    feed: &Feed,
    progress: &Progress,
) -> Result<Vec<Tail>, Error> {
    let mut files_of_size = HashMap::new();
    let new: Vec<usize> = scan.file_order.iter().filter(|node| !carried.is_carried[**node]).copied().collect();
    for node in &new {
        *files_of_size.entry(scan.nodes[*node].attr.size).or_insert(0u64) += 1;
    }
    let mut reader = Reader {
        tree,
        scan,
        block_bytes: usize::try_from(block_size).expect("a block is at most 1 MiB"),
        feed,
        progress,
        files_of_size,
        tails: carried.tails.clone(),
        known_tails: HashMap::new(),
        fragment: Vec::new(),
        fragment_index: u32::try_from(carried.fragments.len()).expect("there are no more than in the base"),
    };
    for node in &new {
        reader.file(*node)?;
        progress.files_done.fetch_add(1, Ordering::Relaxed);
    }
    if !reader.fragment.is_empty() {
        reader.send_fragment()?;
    }
    Ok(reader.tails)
}

struct Reader<'a> {
    tree: &'a dyn Tree,
    scan: &'a Scan,
    block_bytes: usize,
    feed: &'a Feed,
    progress: &'a Progress,
    /// Only files of equal size can have equal content: others are spared the digests.
    files_of_size: HashMap<u64, u64>,
    tails: Vec<Tail>,
    known_tails: HashMap<[u8; 32], Tail>,
    fragment: Vec<u8>,
    fragment_index: u32,
}

impl Reader<'_> {
    /// Sends one file: its full blocks, then its tail. Every block of the image comes from here.
    fn file(&mut self, node: usize) -> Result<(), Error> {
        let size = self.scan.nodes[node].attr.size;
        let may_repeat = self.files_of_size.get(&size).is_some_and(|files| *files > 1);
        let block_bytes = self.block_bytes as u64;
        for index in 0..size / block_bytes {
            let block = self.read(node, index * block_bytes, self.block_bytes)?;
            if is_zero(&block) {
                self.feed.send(Piece::Hole(block_bytes))?;
            } else {
                self.feed.compress(block, may_repeat, Piece::Block)?;
            }
        }
        if size >= block_bytes {
            self.feed.send(Piece::FileEnd { node })?;
        }
        let tail_bytes = usize::try_from(size % block_bytes).expect("a tail is shorter than a block");
        if tail_bytes > 0 {
            let tail = self.read(node, size - size % block_bytes, tail_bytes)?;
            self.tails[node] = self.pack(&tail, may_repeat)?;
        }
        Ok(())
    }

    fn read(&self, node: usize, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        self.progress.check()?;
        let mut block = vec![0; length];
        let read = self.tree.read(self.scan.nodes[node].id, offset, &mut block).map_err(self.scan.at(node))?;
        if read < length {
            return Err(Error::Changed(self.scan.path(node)));
        }
        self.progress.bytes_read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(block)
    }

    /// Finds a place for a tail: an equal one's, or the end of the fragment in the making.
    fn pack(&mut self, tail: &[u8], may_repeat: bool) -> Result<Tail, Error> {
        let digest = may_repeat.then(|| <[u8; 32]>::from(Sha256::digest(tail)));
        if let Some(known) = digest.and_then(|digest| self.known_tails.get(&digest)) {
            return Ok(*known);
        }
        if self.fragment.len() + tail.len() > self.block_bytes {
            self.send_fragment()?;
        }
        let offset = u32::try_from(self.fragment.len()).expect("a fragment is at most one block");
        let place = Tail { fragment: self.fragment_index, offset };
        self.fragment.extend_from_slice(tail);
        self.known_tails.extend(digest.map(|digest| (digest, place)));
        Ok(place)
    }

    fn send_fragment(&mut self) -> Result<(), Error> {
        self.feed.compress(std::mem::take(&mut self.fragment), false, Piece::Fragment)?;
        self.fragment_index += 1;
        if self.fragment_index == NONE_U32 {
            return Err(Error::TooMany { what: "fragments", limit: u64::from(NONE_U32) });
        }
        Ok(())
    }
}

/// Whether there are only zeros: the first is one, and each byte is like the one before it.
fn is_zero(block: &[u8]) -> bool {
    block.first().is_none_or(|first| *first == 0 && block[1..] == block[..block.len() - 1])
}
