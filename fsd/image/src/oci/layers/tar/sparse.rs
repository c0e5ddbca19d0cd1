//! Where a file with holes has data.

use super::pax::decimal;
use std::ops::Range;

/// Pieces of data that a file may have: a file of 64 GiB with every other 32 KiB a hole.
const MAX_PIECES: usize = 1 << 20;
/// Digits of the longest number and its line feed.
const MAX_LINE_BYTES: usize = 21;

/// Pieces of data, in order, apart from each other.
#[derive(Debug, Default)]
pub(super) struct Map(Vec<Range<u64>>);

impl Map {
    /// A file without holes.
    pub(super) fn whole(size: u64) -> Self {
        Self(Vec::from_iter((size > 0).then_some(0..size)))
    }

    /// Appends a piece; `None` if it is not behind the last one, or one too many.
    pub(super) fn add(&mut self, offset: u64, length: u64) -> Option<()> {
        let end = offset.checked_add(length)?;
        if offset < self.0.last().map_or(0, |last| last.end) || self.0.len() >= MAX_PIECES {
            return None;
        }
        if length > 0 {
            self.0.push(offset..end);
        }
        Some(())
    }

    /// Appends pieces, each as its offset and its length.
    pub(super) fn add_all(&mut self, numbers: &[u64]) -> Option<()> {
        let pieces = numbers.chunks_exact(2);
        if !pieces.remainder().is_empty() {
            return None;
        }
        pieces.into_iter().try_for_each(|piece| self.add(piece[0], piece[1]))
    }

    /// Whether this can be a file of `size` bytes with `stored` bytes of data.
    pub(super) fn fits(&self, size: u64, stored: u64) -> bool {
        let data: u64 = self.0.iter().map(|piece| piece.end - piece.start).sum();
        data == stored && self.0.last().is_none_or(|last| last.end <= size)
    }

    /// Whether there is no data in `range`.
    pub(super) fn is_hole(&self, range: &Range<u64>) -> bool {
        let next = self.0.partition_point(|piece| piece.end <= range.start);
        self.0.get(next).is_none_or(|piece| piece.start >= range.end)
    }

    /// Whether there is data at `offset`, and up to where, at most `end`, it stays so.
    pub(super) fn at(&self, offset: u64, end: u64) -> (bool, u64) {
        let next = self.0.partition_point(|piece| piece.end <= offset);
        match self.0.get(next) {
            Some(piece) if piece.start <= offset => (true, piece.end.min(end)),
            Some(piece) => (false, piece.start.min(end)),
            None => (false, end),
        }
    }
}

/// A map as lines of decimal numbers, the first of which says how many pairs follow.
#[derive(Debug, Default)]
pub(super) struct Lines {
    numbers: Vec<u64>,
    line: Vec<u8>,
}

impl Lines {
    /// Whether all lines are there; `None` if there are too many to come.
    pub(super) fn is_complete(&self) -> Option<bool> {
        let Some(pieces) = self.numbers.first() else { return Some(false) };
        let pieces = usize::try_from(*pieces).ok().filter(|pieces| *pieces <= MAX_PIECES)?;
        Some(self.numbers.len() > 2 * pieces)
    }

    /// Takes in the next bytes; `None` if they are no such lines.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Option<()> {
        for byte in bytes {
            if self.is_complete()? {
                // What fills the block.
                return Some(());
            }
            if *byte == b'\n' {
                self.numbers.push(decimal(&self.line)?);
                self.line.clear();
            } else {
                self.line.push(*byte);
            }
            if self.line.len() > MAX_LINE_BYTES {
                return None;
            }
        }
        Some(())
    }

    /// Offset and length of each piece.
    pub(super) fn numbers(&self) -> &[u64] {
        self.numbers.get(1..).unwrap_or_default()
    }
}
