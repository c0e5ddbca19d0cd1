//! Traces: what was read of an image when it was last used, in the order of first use.
//!
//! A program that is loaded jumps about in its files, so that no request tells the next one. But it jumps in the same
//! way each time. So what no other rule expected is remembered by file and range, and the next daemon of the same image
//! follows: two requests that come as they came then make a follower, which has what comes next made ready, twice as far
//! with each further one, and never much more than was confirmed. Who does otherwise is not followed.
//!
//! ```text
//! trace:    | a | b | c | d | e | f | g | h | i | ...
//! asked:      ^   ^
//! ready:              (c)  d   e  (f)  g   h          in batches; the first of each is decoded, but left to be asked
//! ```
//!
//! The kernel says nothing of what it finds in its cache. So the first range of a batch is only decoded: the request for
//! it says how far the program is.

use siphon_overlay::view::Ino;
use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that are remembered at most: what a large program needs three times over, and read in a millisecond.
const MAX_PIECES: usize = 1 << 14;

/// Bytes that are remembered at most: who reads more reads from front to back, mostly.
const MAX_BYTES: u64 = 4 << 30;

/// A range that goes on is remembered up to here: what is beyond is expected of any reader from front to back.
const MAX_PIECE_BYTES: u64 = 512 << 10;

/// Programs that are told apart.
const MAX_FOLLOWERS: usize = 16;

/// A request this many pieces from the expected one is still the follower's: threads overtake each other, and not all is
/// wanted each time.
const MAX_SKIP: usize = 64;

/// Requests one after the other that no follower expects until nothing is made ready any more: more than the programs of
/// a script, each of which begins with one; less than what hits a long trace by chance.
const MAX_TRUST: i32 = 32;

/// Half of how far the first batch reaches, and how far batches reach beyond the program at most, in bytes.
const FIRST_REACH_BYTES: u64 = 256 << 10;
const MAX_REACH_BYTES: u64 = 16 << 20;

/// What is made ready by one thread at a time.
const BATCH_BYTES: u64 = 2 << 20;

/// The first bytes of a stored trace, with the version of the form.
const MAGIC: &[u8; 8] = b"siphtr01";

/// Bytes of a stored piece: number of the file, offset, length.
const STORED_BYTES: usize = 8 + 8 + 4;

/// The longest trace on disk.
pub const MAX_STORED_BYTES: usize = MAGIC.len() + MAX_PIECES * STORED_BYTES;

/// A range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    ino: Ino,
    start: u64,
    end: u64,
}

/// What is to be made ready by one thread. The first is only decoded, and left to be asked for.
type Batch = Vec<(Ino, Range<u64>)>;

/// The trace of earlier uses, and what this one adds to it.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pieces: Vec<Piece>,
    /// Bytes of all pieces before each one.
    bytes_before: Vec<u64>,
    /// Which were asked for, or made ready, in this use.
    seen: Vec<bool>,
    places: BTreeMap<(Ino, u64), usize>,
    /// Requests for pieces that came as expected less those that did not, within bounds.
    trust: i32,
    /// Most recent first.
    followers: Vec<Follower>,
    /// What was asked for that is not in the trace, and where in the trace that was.
    added: Vec<(usize, Piece)>,
    added_places: BTreeMap<(Ino, u64), usize>,
    added_bytes: u64,
}

/// A program that reads as an earlier one did.
#[derive(Debug, Clone, Copy)]
struct Follower {
    /// The piece that is expected next.
    next: usize,
    /// The first one that is not being made ready yet.
    ready: usize,
    reach_bytes: u64,
}

impl Trace {
    /// Takes a trace as [`Trace::stored`] gives it. Anything else is an empty one: a trace makes reading faster, and
    /// nothing depends on it.
    pub(super) fn of(stored: &[u8]) -> Self {
        let (pieces, _) = stored.strip_prefix(MAGIC).unwrap_or_default().as_chunks::<STORED_BYTES>();
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let piece = |stored: &[u8; STORED_BYTES]| {
            let (ino, start) = (Ino(number(&stored[..8])), number(&stored[8..16]));
            Some(Piece { ino, start, end: start.checked_add(number(&stored[16..]))? })
        };
        let mut trace = Self::default();
        let mut bytes = 0_u64;
        for piece in pieces.iter().take(MAX_PIECES).filter_map(piece) {
            let len_bytes = (piece.end - piece.start).min(MAX_PIECE_BYTES);
            trace.places.insert((piece.ino, piece.start), trace.pieces.len());
            trace.pieces.push(Piece { end: piece.start + len_bytes, ..piece });
            trace.bytes_before.push(bytes);
            bytes += len_bytes;
        }
        trace.seen = vec![false; trace.pieces.len()];
        trace.trust = MAX_TRUST;
        trace
    }

    /// The trace for the next use, with what this one added; `None` if that is nothing, or so much that it was no program that
    /// was loaded but content that was read at random, which is not read so again.
    pub(super) fn stored(&self) -> Option<Vec<u8>> {
        if self.added.is_empty() || self.added.len() == MAX_PIECES {
            return None;
        }
        let mut added: Vec<_> = self.added.iter().collect();
        added.sort_by_key(|(place, _)| *place);
        let mut added = added.into_iter().peekable();
        let mut stored = MAGIC.to_vec();
        for index in 0..=self.pieces.len() {
            while let Some((_, piece)) = added.next_if(|(place, _)| *place == index) {
                store(piece, &mut stored);
            }
            if let Some(piece) = self.pieces.get(index) {
                store(piece, &mut stored);
            }
        }
        stored.truncate(MAX_STORED_BYTES);
        Some(stored)
    }

    /// Takes note of a request for the file `ino` from `start` on, and says what to make ready next: `None` for a program
    /// that is not followed.
    pub(super) fn batches_after(&mut self, ino: Ino, start: u64) -> Option<Vec<Batch>> {
        let place = self.place_of(ino, start)?;
        self.seen[place] = true;
        let index = self.followers.iter().position(|follower| follower.expects(place));
        self.trust = (self.trust + if index.is_some() { 1 } else { -1 }).clamp(-MAX_TRUST, MAX_TRUST);
        let Some(index) = index else {
            self.followers.truncate(MAX_FOLLOWERS - 1);
            let next = place + 1;
            self.followers.insert(0, Follower { next, ready: next, reach_bytes: FIRST_REACH_BYTES });
            return None;
        };
        self.followers[..=index].rotate_right(1);
        let mut follower = self.followers[0];
        follower.pass(place);
        let batches = (self.trust > 0).then(|| self.follow(&mut follower));
        self.followers[0] = follower;
        batches
    }

    fn place_of(&self, ino: Ino, start: u64) -> Option<usize> {
        let (_, place) = self.places.range((ino, 0)..=(ino, start)).next_back()?;
        (start < self.pieces[*place].end).then_some(*place)
    }

    /// Adds a request for `asked` that no other rule expected, or that goes on with a stream, unless it is known: the
    /// kernel may have dropped it from its cache.
    pub(super) fn add(&mut self, ino: Ino, asked: Range<u64>, goes_on: bool) {
        if self.place_of(ino, asked.start).is_some() {
            return;
        }
        let known = self.added_places.range((ino, 0)..=(ino, asked.start)).next_back();
        if let Some((_, index)) = known {
            let piece = &mut self.added[*index].1;
            if asked.start < piece.end {
                return;
            }
            // What a stream was given between two requests was read as well. What is far from its start, another one is given
            // likewise.
            if goes_on {
                if asked.end - piece.start <= MAX_PIECE_BYTES {
                    self.added_bytes += asked.end - piece.end;
                    piece.end = asked.end;
                }
                return;
            }
        }
        let len_bytes = asked.end.saturating_sub(asked.start).min(MAX_PIECE_BYTES);
        if len_bytes == 0 || self.added.len() == MAX_PIECES || self.added_bytes + len_bytes > MAX_BYTES {
            return;
        }
        self.added_bytes += len_bytes;
        let place = self.followers.first().map_or(self.pieces.len(), |follower| follower.next);
        self.added_places.insert((ino, asked.start), self.added.len());
        self.added.push((place, Piece { ino, start: asked.start, end: asked.start + len_bytes }));
    }

    /// What is due now that the program goes on as expected.
    fn follow(&mut self, follower: &mut Follower) -> Vec<Batch> {
        follower.reach_bytes = (2 * follower.reach_bytes).min(MAX_REACH_BYTES);
        let Some(here) = self.bytes_before.get(follower.next) else { return Vec::new() };
        let reach = here + follower.reach_bytes;
        let mut batches = Vec::new();
        while self.bytes_before.get(follower.ready).is_some_and(|bytes| *bytes < reach) {
            let mut batch = Batch::new();
            let end = self.bytes_before[follower.ready] + BATCH_BYTES;
            while self.bytes_before.get(follower.ready).is_some_and(|bytes| *bytes < end.min(reach)) {
                let (piece, seen) = (self.pieces[follower.ready], &mut self.seen[follower.ready]);
                follower.ready += 1;
                if std::mem::replace(seen, true) {
                    continue;
                }
                batch.push((piece.ino, piece.start..piece.end));
            }
            if !batch.is_empty() {
                batches.push(batch);
            }
        }
        batches
    }
}

impl Follower {
    /// Takes note that the program asked for the piece at `place`.
    fn pass(&mut self, place: usize) {
        self.next = self.next.max(place + 1);
        self.ready = self.ready.max(self.next);
    }

    fn expects(&self, place: usize) -> bool {
        (self.next.saturating_sub(MAX_SKIP)..=self.ready.max(self.next).saturating_add(MAX_SKIP)).contains(&place)
    }
}

fn store(piece: &Piece, stored: &mut Vec<u8>) {
    let len_bytes = u32::try_from(piece.end - piece.start).unwrap_or(u32::MAX);
    stored.extend_from_slice(&piece.ino.0.to_le_bytes());
    stored.extend_from_slice(&piece.start.to_le_bytes());
    stored.extend_from_slice(&len_bytes.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    /// Requests of a program that jumps about: 64 KiB at each place.
    fn jumps(count: u64) -> Vec<(Ino, Range<u64>)> {
        let place = |step: u64| (Ino(2 + step * 7 % 5), (step * 37 % 101) << 20);
        (0..count).map(place).map(|(ino, start)| (ino, start..start + 64 * KIB)).collect()
    }

    fn recorded(asked: &[(Ino, Range<u64>)]) -> Vec<u8> {
        let mut trace = Trace::default();
        for (ino, range) in asked {
            assert_eq!(trace.batches_after(*ino, range.start), None);
            trace.add(*ino, range.clone(), false);
        }
        trace.stored().unwrap()
    }

    /// Asks for what is not made ready, as a program does, and returns how many requests were left to it, and all that
    /// was made ready.
    fn repeated(trace: &mut Trace, asked: &[(Ino, Range<u64>)]) -> (usize, Vec<(Ino, Range<u64>)>) {
        let (mut requests, mut ready) = (0, Vec::new());
        for (ino, range) in asked {
            if ready.contains(&(*ino, range.clone())) {
                continue;
            }
            requests += 1;
            for batch in trace.batches_after(*ino, range.start).unwrap_or_default() {
                ready.extend(batch.into_iter().skip(1));
            }
        }
        (requests, ready)
    }

    #[test]
    fn what_was_asked_for_is_ready_the_next_time() {
        let asked = jumps(100);
        let mut trace = Trace::of(&recorded(&asked));

        let (requests, ready) = repeated(&mut trace, &asked);

        assert!(requests < 20, "{requests} of 100 were asked for");
        assert!(ready.iter().all(|piece| asked.contains(piece)));
        assert_eq!(trace.stored(), None, "nothing new was asked for");
    }

    #[test]
    fn never_much_more_is_ready_than_was_confirmed() {
        let asked = jumps(100);
        let mut trace = Trace::of(&recorded(&asked));

        let (_, ready) = repeated(&mut trace, &asked[..3]);

        let bytes: u64 = ready.iter().map(|(_, range)| range.end - range.start).sum();
        assert!((1..=4 * FIRST_REACH_BYTES + BATCH_BYTES).contains(&bytes), "{bytes}");
    }

    #[test]
    fn who_jumps_about_in_what_was_read_before_is_not_followed_for_long() {
        let places: Vec<_> = (0..10_000).map(|step| (Ino(2), step * 128 * KIB..step * 128 * KIB + 4 * KIB)).collect();
        let mut trace = Trace::of(&recorded(&places));

        let mut state = 1_u64;
        let (mut ready, mut followed) = (0, 0);
        for _ in 0..5000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let batches = trace.batches_after(Ino(2), state % 10_000 * 128 * KIB);
            followed += u32::from(batches.is_some());
            ready += batches.unwrap_or_default().into_iter().flatten().count();
        }

        assert!(followed < 50 && ready < 5000, "{followed} times, {ready} pieces");
        let (requests, _) = repeated(&mut trace, &places[..2000]);
        assert!(requests < 2000, "who then reads as before is followed again");
    }

    #[test]
    fn who_does_otherwise_is_not_followed_and_adds_to_the_trace_where_it_did() {
        let (asked, others) = (jumps(10), [(Ino(50), 0..KIB), (Ino(51), 0..KIB), (Ino(52), 0..KIB)]);
        let mut trace = Trace::of(&recorded(&asked));

        trace.batches_after(asked[4].0, asked[4].1.start);
        for (ino, range) in &others {
            assert_eq!(trace.batches_after(*ino, range.start), None);
            trace.add(*ino, range.clone(), false);
        }

        let stored = trace.stored().unwrap();
        let pieces: Vec<_> =
            Trace::of(&stored).pieces.iter().map(|piece| (piece.ino, piece.start..piece.end)).collect();
        assert_eq!(pieces, [&asked[..5], &others[..], &asked[5..]].concat());
    }

    #[test]
    fn the_front_of_a_stream_is_one_range_and_the_rest_left_out() {
        let mut trace = Trace::default();
        let step = 128 * KIB;

        for start in (0..8).map(|index| index * step) {
            trace.add(Ino(7), start..start + step, start > 0);
        }

        let lengths: Vec<_> = trace.added.iter().map(|(_, piece)| piece.end - piece.start).collect();
        assert_eq!(lengths, [MAX_PIECE_BYTES]);
    }

    #[test]
    fn what_is_no_trace_is_an_empty_one() {
        let stored = recorded(&jumps(10));
        let damaged = [&b""[..], &stored[..7], &stored[1..], b"siphtr99 and so on and so on and so on"];

        for bytes in damaged {
            assert!(Trace::of(bytes).pieces.is_empty());
        }
        assert_eq!(Trace::of(&stored[..stored.len() - 1]).pieces.len(), 9);
        let wild = [MAGIC, &[0xff; 3 * STORED_BYTES][..]].concat();
        assert!(Trace::of(&wild).pieces.is_empty(), "an offset beyond all files");
    }

    #[test]
    fn a_trace_has_a_bound() {
        let (mut trace, pieces) = (Trace::default(), MAX_PIECES as u64 - 1);
        (0..pieces).for_each(|step| trace.add(Ino(step), 0..KIB, false));
        let stored = trace.stored().unwrap();

        let mut longer = Trace::of(&stored);
        (pieces..pieces + 10).for_each(|step| longer.add(Ino(step), 0..KIB, false));

        assert_eq!(stored.len(), MAX_STORED_BYTES - STORED_BYTES);
        assert_eq!(longer.stored().unwrap().len(), MAX_STORED_BYTES);
        (0..pieces).for_each(|step| trace.add(Ino(step), KIB..u64::MAX, false));
        assert!(trace.added_bytes <= MAX_BYTES);
    }

    #[test]
    fn what_is_read_at_random_for_long_leaves_no_trace() {
        let mut trace = Trace::of(&recorded(&jumps(10)));

        (0..MAX_PIECES as u64).for_each(|step| trace.add(Ino(1000), step * 1_000_000..step * 1_000_000 + KIB, false));

        assert_eq!(trace.stored(), None);
    }
}
