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
    // Only files of equal size can have equal content: others are spared the digests.
    let mut files_of_size = HashMap::new();
    let new: Vec<usize> = scan.file_order.iter().filter(|node| !carried.is_carried[**node]).copied().collect();
    for node in &new {
        *files_of_size.entry(scan.nodes[*node].attr.size).or_insert(0u64) += 1;
    }
    let mut tails = carried.tails.clone();
    let mut packer = Packer::new(block_size, carried.fragments.len(), feed, progress);
    for node in new {
        let size = scan.nodes[node].attr.size;
        let may_repeat = files_of_size.get(&size).is_some_and(|files| *files > 1);
        let mut offset = 0;
        tails[node] = packer.file(node, size, may_repeat, |length| {
            let mut block = vec![0; length];
            let read = tree.read(scan.nodes[node].id, offset, &mut block).map_err(scan.at(node))?;
            offset += length as u64;
            if read < length { Err(Error::Changed(scan.path(node))) } else { Ok(Chunk::Bytes(block)) }
        })?;
    }
    packer.finish()?;
    Ok(tails)
}

/// What a file has next.
#[derive(Debug)]
pub enum Chunk {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing but zeros.
    Zeros,
}

/// Cuts one file after the other into blocks. Every block of an image that is not taken over from another comes from here.
pub(super) struct Packer<'a> {
    block_bytes: usize,
    feed: &'a Feed,
    progress: &'a Progress,
    known_tails: HashMap<[u8; 32], Tail>,
    fragment: Vec<u8>,
    fragment_index: u32,
}

impl<'a> Packer<'a> {
    /// Begins behind as many fragments as there are.
    pub(super) fn new(block_size: u32, fragments: usize, feed: &'a Feed, progress: &'a Progress) -> Self {
        Self {
            block_bytes: usize::try_from(block_size).expect("a block is at most 1 MiB"),
            feed,
            progress,
            known_tails: HashMap::new(),
            fragment: Vec::new(),
            fragment_index: u32::try_from(fragments).expect("there are no more than in the base"),
        }
    }

    /// Sends one file, of which `next` gives as many bytes as it is asked for: its full blocks, then its tail. `node` is
    /// what its blocks will be found under. Where there can be another one like it, `may_repeat` has both stored once.
    pub(super) fn file<E: From<Error>>(
        &mut self,
        node: usize,
        size: u64,
        may_repeat: bool,
        mut next: impl FnMut(usize) -> Result<Chunk, E>,
    ) -> Result<Tail, E> {
        let block_bytes = self.block_bytes as u64;
        for _ in 0..size / block_bytes {
            self.progress.check()?;
            match next(self.block_bytes)? {
                Chunk::Bytes(block) if !is_zero(&block) => self.feed.compress(block, Piece::Block)?,
                Chunk::Bytes(_) | Chunk::Zeros => self.feed.send(Piece::Hole(block_bytes))?,
            }
            self.progress.bytes_read.fetch_add(block_bytes, Ordering::Relaxed);
        }
        if size >= block_bytes {
            self.feed.send(Piece::FileEnd { node })?;
        }
        let tail_bytes = usize::try_from(size % block_bytes).expect("a tail is shorter than a block");
        let mut place = Tail::NONE;
        if tail_bytes > 0 {
            self.progress.check()?;
            let tail = match next(tail_bytes)? {
                Chunk::Bytes(tail) => tail,
                Chunk::Zeros => vec![0; tail_bytes],
            };
            self.progress.bytes_read.fetch_add(tail_bytes as u64, Ordering::Relaxed);
            place = self.pack(&tail, may_repeat)?;
        }
        self.progress.files_done.fetch_add(1, Ordering::Relaxed);
        Ok(place)
    }

    /// Sends the last fragment.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        if self.fragment.is_empty() { Ok(()) } else { self.send_fragment() }
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
        self.feed.compress(std::mem::take(&mut self.fragment), Piece::Fragment)?;
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
