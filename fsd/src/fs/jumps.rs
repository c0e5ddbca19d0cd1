//! Readers that jump about in big files, for a few bytes at each place, as databases and sets of samples are read.
//!
//! Each such request costs the decoding of a whole block. Who comes back to a block will do so again: then it is the
//! kernel that should have all of it, as it has from its own squashfs. It holds far more than this process does, and gives
//! it up when memory is needed. Who comes but once costs no more than the decoding.
//!
//! ```text
//! request of a block:   first -> seen   second -> stored   further ones -> stored in vain: the kernel gave it up
//! ```
//!
//! If many are in vain, memory does not last until a reader comes back, and nothing is stored for a while.

use parking_lot::Mutex;
use siphon_overlay::view::Ino;
use std::ops::Range;

/// Who asks for more at a time is read ahead of by the kernel, or has most of the block.
const MAX_ASKED_BYTES: u64 = 16 << 10;

/// What is one place: the usual block.
const PLACE_BYTES: u64 = 128 << 10;

/// Bits for places, 128 KiB of memory, and how many places are told apart by them: 32 GiB of content.
const BITS: u64 = 1 << 20;
const MAX_PLACES: u32 = 1 << 18;

/// Places that were stored less twice those that were in vain, until nothing is stored any more: at first, and at most.
const FIRST_TRUST: i32 = 64;
const MAX_TRUST: i32 = 256;

/// Requests until it is tried again.
const PAUSE: u32 = 1 << 14;

/// The readers of one mount.
#[derive(Debug, Default)]
pub(super) struct Jumps {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    seen: Places,
    stored: Places,
    trust: i32,
    /// Requests that are left of the present pause.
    pause: u32,
}

/// A set of places that may say of one that is not in it that it is.
#[derive(Debug, Default)]
struct Places {
    /// Empty, or so many words that all bits are there.
    words: Vec<u64>,
    count: u32,
}

impl Jumps {
    /// Takes note of a request for `asked` that no other rule expected, and says whether to have all ready that was decoded
    /// with it.
    pub(super) fn comes_back(&self, ino: Ino, asked: &Range<u64>) -> bool {
        if asked.is_empty() || asked.end - asked.start > MAX_ASKED_BYTES {
            return false;
        }
        self.state.lock().comes_back(ino, asked.start)
    }

    /// Takes note that what was to be stored around `offset` was not.
    pub(super) fn not_stored(&self, ino: Ino, offset: u64) {
        self.state.lock().stored.remove(ino, offset);
    }
}

impl State {
    fn comes_back(&mut self, ino: Ino, offset: u64) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        if self.seen.add(ino, offset) {
            return false;
        }
        let change = if self.stored.add(ino, offset) { 1 } else { -2 };
        self.trust = (self.trust + change).min(MAX_TRUST);
        if self.trust <= 0 {
            *self = Self { pause: PAUSE, ..Self::default() };
            return false;
        }
        true
    }
}

impl Default for State {
    fn default() -> Self {
        Self { seen: Places::default(), stored: Places::default(), trust: FIRST_TRUST, pause: 0 }
    }
}

impl Places {
    /// Adds a place, and says whether it is new. All others are forgotten where they are too many.
    fn add(&mut self, ino: Ino, offset: u64) -> bool {
        if self.count == MAX_PLACES {
            *self = Self::default();
        }
        self.words.resize(usize::try_from(BITS / 64).expect("it is a small number"), 0);
        let (word, bit) = place(ino, offset);
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u32::from(is_new);
        is_new
    }

    fn remove(&mut self, ino: Ino, offset: u64) {
        let (word, bit) = place(ino, offset);
        if let Some(word) = self.words.get_mut(word) {
            *word &= !bit;
        }
    }
}

/// The word and the bit that stand for a place.
fn place(ino: Ino, offset: u64) -> (usize, u64) {
    // Fibonacci hashing: the upper bits of a product depend on all bits of what is hashed.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let hash = (ino.0.wrapping_mul(FACTOR).rotate_left(32) ^ (offset / PLACE_BYTES)).wrapping_mul(FACTOR);
    let index = hash >> (64 - BITS.trailing_zeros());
    (usize::try_from(index / 64).expect("it is a small number"), 1 << (index % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const FILE: Ino = Ino(20);

    /// Requests of `kib` KiB for 1000 places from `first` on; how many of them come back.
    fn jumps(readers: &Jumps, first: u64, kib: u64) -> usize {
        let starts = (first..first + 1000).map(|place| place * PLACE_BYTES + 8 * KIB);
        starts.filter(|start| readers.comes_back(FILE, &(*start..*start + kib * KIB))).count()
    }

    #[test]
    fn a_second_request_for_a_place_is_worth_all_of_it() {
        let readers = Jumps::default();

        assert!(jumps(&readers, 0, 4) < 10, "few are taken for others");
        assert!(jumps(&readers, 0, 16) > 990);
    }

    #[test]
    fn who_asks_for_more_is_left_to_the_kernel() {
        let readers = Jumps::default();

        for _ in 0..3 {
            assert_eq!(jumps(&readers, 0, 32), 0);
            assert!(!readers.comes_back(FILE, &(0..0)));
        }
    }

    #[test]
    fn where_memory_does_not_last_nothing_is_stored_for_a_while() {
        let readers = Jumps::default();
        jumps(&readers, 0, 4);
        jumps(&readers, 0, 4);

        let in_vain = jumps(&readers, 0, 4);

        assert!(in_vain < 150, "{in_vain}: all were stored before");
        let while_paused: usize = (0..15).map(|_| jumps(&readers, 5000, 4)).sum();
        assert_eq!(while_paused, 0);
        jumps(&readers, 9000, 4);
        assert!(jumps(&readers, 20_000, 4) < 10);
        assert!(jumps(&readers, 20_000, 4) > 990, "it is tried again");
    }

    #[test]
    fn what_was_not_stored_after_all_is_not_held_against_it() {
        let readers = Jumps::default();
        jumps(&readers, 0, 4);
        for _ in 0..5 {
            assert!(jumps(&readers, 0, 4) > 990);
            for place in 0..1000 {
                readers.not_stored(FILE, place * PLACE_BYTES);
            }
        }
    }
}
