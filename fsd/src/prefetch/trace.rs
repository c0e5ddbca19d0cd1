//! The order of first touches, and who follows it.

use std::collections::HashMap;
use std::ops::Range;

use crate::cache::CHUNK_BYTES;

/// Chunks that are remembered at most: 4 GiB of them, and half a MiB on disk.
const MAX_PLACES: usize = 1 << 16;

/// Programs that are told apart.
const MAX_FOLLOWERS: usize = 16;

/// A touch this many places from the expected one is still the follower's: threads overtake each other, and not all is
/// wanted each time.
const MAX_SKIP: usize = 256;

/// What is fetched beyond the program: at first, as a multiple of what it confirmed, and at most. The last one is half a
/// second of a 1 Gbit/s link.
const FIRST_REACH: usize = chunks(2 << 20);
const CONFIRMED_FACTOR: usize = 4;
const MAX_REACH: usize = chunks(64 << 20);

/// A window shorter than this share of the reach waits for more: long ones make fewer requests.
const WINDOW_SHARE: usize = 4;

/// Chunks that are not in the trace are fetched with those on both sides if they are so few.
const MAX_GAP: u32 = chunks(256 << 10) as u32;

/// The longest request.
const MAX_RUN: u32 = chunks(8 << 20) as u32;

/// The first bytes of a stored trace, with the version of the form.
const MAGIC: &[u8; 8] = b"siphnt01";

/// The longest trace on disk: four bytes for each place.
pub const MAX_STORED_BYTES: usize = MAGIC.len() + 4 * MAX_PLACES;

const fn chunks(bytes: usize) -> usize {
    bytes / CHUNK_BYTES
}

/// The trace of earlier runs, and what this one adds to it.
#[derive(Debug, Default)]
pub(super) struct Trace {
    /// Chunks in the order of first use.
    order: Vec<u32>,
    places: HashMap<u32, usize>,
    /// One for each chunk of the object, set once it was touched in this run.
    touched: Vec<u64>,
    /// Most recent first.
    followers: Vec<Follower>,
    /// What was touched that is not in the trace, and where in the trace that was.
    added: Vec<(usize, u32)>,
}

/// A program that touches what an earlier one did.
#[derive(Debug, Clone, Copy)]
struct Follower {
    /// The place that is expected next.
    next: usize,
    /// The first one that is not being fetched yet.
    ready: usize,
    confirmed: usize,
}

impl Trace {
    /// Takes a trace as [`Trace::stored`] gives it, of an object of so many chunks. Anything else is an empty one: a trace
    /// makes reading faster, and nothing depends on it.
    pub(super) fn of(stored: &[u8], chunks: u32) -> Self {
        let (numbers, _) = stored.strip_prefix(MAGIC).unwrap_or_default().as_chunks::<4>();
        let mut trace = Self { touched: vec![0; chunks.div_ceil(u64::BITS) as usize], ..Self::default() };
        for number in numbers.iter().take(MAX_PLACES).map(|bytes| u32::from_le_bytes(*bytes)) {
            if number < chunks && !trace.places.contains_key(&number) {
                trace.places.insert(number, trace.order.len());
                trace.order.push(number);
            }
        }
        trace
    }

    /// The trace for the next run, with what this one added; `None` if that is nothing.
    pub(super) fn stored(&self) -> Option<Vec<u8>> {
        if self.added.is_empty() {
            return None;
        }
        let mut added = self.added.clone();
        added.sort_by_key(|(place, _)| *place);
        let mut added = added.into_iter().peekable();
        let mut stored = MAGIC.to_vec();
        for index in 0..=self.order.len() {
            while let Some((_, chunk)) = added.next_if(|(place, _)| *place == index) {
                stored.extend_from_slice(&chunk.to_le_bytes());
            }
            stored.extend(self.order.get(index).into_iter().flat_map(|chunk| chunk.to_le_bytes()));
        }
        stored.truncate(MAX_STORED_BYTES);
        Some(stored)
    }

    /// Takes note that these chunks are read, and says what to fetch now.
    pub(super) fn touched(&mut self, chunks: Range<u32>) -> Vec<Range<u32>> {
        let mut due = Vec::new();
        for chunk in chunks {
            if self.is_first_touch(chunk) {
                match self.places.get(&chunk).copied() {
                    Some(place) => due.extend(self.follow(place)),
                    None => self.add(chunk),
                }
            }
        }
        due
    }

    fn is_first_touch(&mut self, chunk: u32) -> bool {
        let Some(word) = self.touched.get_mut((chunk / u64::BITS) as usize) else { return false };
        let bit = 1 << (chunk % u64::BITS);
        let is_first = *word & bit == 0;
        *word |= bit;
        is_first
    }

    fn add(&mut self, chunk: u32) {
        if self.order.len() + self.added.len() < MAX_PLACES {
            let place = self.followers.first().map_or(self.order.len(), |follower| follower.next);
            self.added.push((place, chunk));
        }
    }

    /// What is due now that the program came to `place`.
    fn follow(&mut self, place: usize) -> Vec<Range<u32>> {
        let Some(index) = self.followers.iter().position(|follower| follower.expects(place)) else {
            self.followers.truncate(MAX_FOLLOWERS - 1);
            self.followers.insert(0, Follower { next: place + 1, ready: place + 1, confirmed: 0 });
            return Vec::new();
        };
        self.followers[..=index].rotate_right(1);
        let mut follower = self.followers[0];
        follower.next = follower.next.max(place + 1);
        follower.ready = follower.ready.max(follower.next);
        follower.confirmed += 1;
        let reach = (follower.confirmed * CONFIRMED_FACTOR).clamp(FIRST_REACH, MAX_REACH);
        let end = (follower.next + reach).min(self.order.len());
        let is_short = end.saturating_sub(follower.ready) < reach / WINDOW_SHARE && end < self.order.len();
        let window = follower.ready..if is_short { follower.ready } else { end.max(follower.ready) };
        follower.ready = window.end;
        self.followers[0] = follower;
        self.requests(&self.order[window])
    }

    /// The fewest requests for the untouched of these chunks, in the order of their first use.
    fn requests(&self, window: &[u32]) -> Vec<Range<u32>> {
        let is_touched = |chunk: u32| {
            let word = self.touched.get((chunk / u64::BITS) as usize);
            word.is_none_or(|word| word & 1 << (chunk % u64::BITS) != 0)
        };
        let mut wanted: Vec<(u32, usize)> =
            window.iter().enumerate().map(|(place, chunk)| (*chunk, place)).filter(|(chunk, _)| !is_touched(*chunk)).collect();
        wanted.sort_unstable();
        let mut requests: Vec<(usize, Range<u32>)> = Vec::new();
        for (chunk, place) in wanted {
            match requests.last_mut() {
                Some((first, range)) if chunk - range.end <= MAX_GAP && chunk - range.start < MAX_RUN => {
                    *first = place.min(*first);
                    range.end = chunk + 1;
                }
                _ => requests.push((place, chunk..chunk + 1)),
            }
        }
        requests.sort_unstable_by_key(|(first, _)| *first);
        requests.into_iter().map(|(_, range)| range).collect()
    }
}

impl Follower {
    fn expects(&self, place: usize) -> bool {
        (self.next.saturating_sub(MAX_SKIP)..=self.ready.max(self.next).saturating_add(MAX_SKIP)).contains(&place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKS: u32 = 1 << 16;

    /// Places here and there, in pairs of neighbours.
    fn jumps(count: u32) -> Vec<u32> {
        (0..count).map(|step| (step / 2).wrapping_mul(7919) % 30000 * 2 + step % 2).collect()
    }

    fn recorded(touched: &[u32]) -> Vec<u8> {
        let mut trace = Trace::of(b"", CHUNKS);
        for chunk in touched {
            assert_eq!(trace.touched(*chunk..*chunk + 1), []);
        }
        trace.stored().unwrap()
    }

    fn order(stored: &[u8]) -> Vec<u32> {
        Trace::of(stored, CHUNKS).order
    }

    #[test]
    fn what_was_touched_is_fetched_the_next_time_in_few_requests() {
        let touched = jumps(4000);
        let mut trace = Trace::of(&recorded(&touched), CHUNKS);
        let (mut fetched, mut requests, mut missed) = (vec![false; CHUNKS as usize], 0, 0);

        for chunk in &touched {
            let due = trace.touched(*chunk..*chunk + 1);
            missed += usize::from(!fetched[*chunk as usize]);
            requests += due.len();
            due.into_iter().flatten().for_each(|chunk| fetched[chunk as usize] = true);
        }

        assert!(missed < 10, "{missed} were asked for");
        assert!(requests < 2000, "{requests} requests for 2000 pairs");
        assert_eq!(trace.stored(), None, "nothing new was touched");
    }

    #[test]
    fn never_much_more_is_fetched_than_was_confirmed() {
        let touched = jumps(4000);
        let mut trace = Trace::of(&recorded(&touched), CHUNKS);

        let due: Vec<_> = touched[..40].iter().flat_map(|chunk| trace.touched(*chunk..*chunk + 1)).flatten().collect();

        let wanted = due.iter().filter(|chunk| touched.contains(chunk)).count();
        assert!((FIRST_REACH..=40 * CONFIRMED_FACTOR + FIRST_REACH).contains(&wanted), "{wanted}");
    }

    #[test]
    fn neighbours_and_small_gaps_are_one_request() {
        let near = [10, 5000, 11, 13, 13 + MAX_GAP + 1, 13 + 2 * MAX_GAP + 3];
        let trace = Trace { touched: vec![0; 1024], ..Trace::default() };

        let far = near[5];
        assert_eq!(trace.requests(&near), [10..14 + MAX_GAP + 1, 5000..5001, far..far + 1]);
    }

    #[test]
    fn what_another_program_touches_is_put_where_it_left_the_trace() {
        let (touched, others) = (jumps(10), [60_000, 61_000]);
        let mut trace = Trace::of(&recorded(&touched), CHUNKS);

        trace.touched(touched[4]..touched[4] + 1);
        for other in others {
            trace.touched(other..other + 1);
        }

        assert_eq!(order(&trace.stored().unwrap()), [&touched[..5], &others[..], &touched[5..]].concat());
    }

    #[test]
    fn what_is_no_trace_is_an_empty_one() {
        let stored = recorded(&jumps(10));
        for bytes in [&b""[..], &stored[..7], &stored[1..], b"siphnt99 and so on"] {
            assert!(order(bytes).is_empty());
        }
        assert_eq!(order(&stored[..stored.len() - 1]).len(), 9);
        let wild = [MAGIC, &[0xff; 12][..]].concat();
        assert!(order(&wild).is_empty(), "chunks beyond the object");
    }

    #[test]
    fn a_trace_has_a_bound() {
        let chunks = MAX_PLACES as u32 + 100;
        let mut trace = Trace::of(b"", chunks);

        trace.touched(0..chunks);

        assert_eq!(trace.stored().unwrap().len(), MAX_STORED_BYTES);
    }
}
