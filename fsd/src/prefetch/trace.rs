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

/// A program is an earlier one's likeness after so many touches that came as expected, and no longer after so many in a row
/// that did not.
const MIN_CONFIRMED: usize = 8;
const MAX_STRAYED: usize = 32;

/// What is fetched beyond the program, in chunks of the trace: at first, as a multiple of what it confirmed, and at most.
/// The last one is half a second of a 1 Gbit/s link.
const FIRST_REACH: usize = chunks(2 << 20);
const CONFIRMED_FACTOR: usize = 4;
const MAX_REACH: usize = chunks(64 << 20);

/// Chunks that are not in the trace are fetched with those on both sides, if they are no more than what a request costs: as
/// much as 1 Gbit/s carries in a round trip of 20 ms, and servers count requests. A start of PyTorch, 235 MB of chunks, takes
/// 56 requests and 378 MB with this; with 1 MiB it would take 104 and 291, with none 350 and 235.
const MAX_GAP: u32 = chunks(3 << 20) as u32;
/// All that is fetched, as a multiple of what is wanted, bounds that.
const MAX_WASTE: usize = 2;
/// So few are always fetched.
const MIN_GAP: u32 = chunks(256 << 10) as u32;

/// The longest request. Each of the threads that fetch ahead has one in memory.
const MAX_RUN: u32 = chunks(32 << 20) as u32;

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
    /// What to fetch, in the order of the first use of any of it.
    requests: Vec<Request>,
    /// One for each chunk of the object, set once it was touched in this run.
    touched: Vec<u64>,
    /// Most recent first.
    followers: Vec<Follower>,
    /// What was touched that is not in the trace, and where in the trace that was.
    added: Vec<(usize, u32)>,
}

/// A part of the object that is fetched at once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    first_place: usize,
    chunks: Range<u32>,
    is_made: bool,
}

/// A program that touches what an earlier one did.
#[derive(Debug, Clone, Copy)]
struct Follower {
    /// The place that is expected next.
    next: usize,
    confirmed: usize,
    /// Touches in a row since the last one that came as expected.
    strayed: usize,
}

/// What to fetch for a program that is followed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// What it waits for now.
    pub(super) now: Vec<Range<u32>>,
    /// What it will want.
    pub(super) soon: Vec<Range<u32>>,
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
        trace.requests = requests(&trace.order);
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

    /// Takes note that these chunks are read, and says what to fetch.
    pub(super) fn touched(&mut self, chunks: Range<u32>) -> Due {
        let mut due = Due::default();
        for chunk in chunks {
            if self.is_first_touch(chunk) {
                match self.places.get(&chunk).copied() {
                    Some(place) => self.follow(place, chunk, &mut due),
                    None => self.add(chunk),
                }
            }
        }
        due
    }

    /// Whether the program that touched something last does as an earlier one did.
    pub(super) fn is_followed(&self) -> bool {
        self.followers
            .first()
            .is_some_and(|follower| follower.confirmed >= MIN_CONFIRMED && follower.strayed < MAX_STRAYED)
    }

    fn is_first_touch(&mut self, chunk: u32) -> bool {
        let Some(word) = self.touched.get_mut((chunk / u64::BITS) as usize) else { return false };
        let bit = 1 << (chunk % u64::BITS);
        let is_first = *word & bit == 0;
        *word |= bit;
        is_first
    }

    fn stray(&mut self) {
        if let Some(follower) = self.followers.first_mut() {
            follower.strayed += 1;
        }
    }

    fn add(&mut self, chunk: u32) {
        self.stray();
        if self.order.len() + self.added.len() < MAX_PLACES {
            let place = self.followers.first().map_or(self.order.len(), |follower| follower.next);
            self.added.push((place, chunk));
        }
    }

    /// Adds what is due now that the program came to `chunk`, at `place`.
    fn follow(&mut self, place: usize, chunk: u32, due: &mut Due) {
        let Some(index) = self.followers.iter().position(|follower| follower.expects(place)) else {
            self.followers.truncate(MAX_FOLLOWERS - 1);
            self.stray();
            self.followers.insert(0, Follower { next: place + 1, confirmed: 0, strayed: 0 });
            return;
        };
        self.followers[..=index].rotate_right(1);
        let follower = &mut self.followers[0];
        follower.next = follower.next.max(place + 1);
        follower.confirmed += 1;
        follower.strayed = 0;
        let reach = (follower.confirmed * CONFIRMED_FACTOR).clamp(FIRST_REACH, MAX_REACH);
        let (from, until) = (follower.next.saturating_sub(MAX_SKIP), follower.next + reach);
        for request in self.requests.iter_mut().filter(|request| !request.is_made) {
            let is_here = request.chunks.contains(&chunk);
            if is_here || (from..until).contains(&request.first_place) {
                request.is_made = true;
                if is_here { &mut due.now } else { &mut due.soon }.push(request.chunks.clone());
            }
        }
    }
}

/// Few requests for all of these chunks, which are in the order of their first use, as the requests are.
fn requests(order: &[u32]) -> Vec<Request> {
    let mut wanted: Vec<(u32, usize)> = order.iter().enumerate().map(|(place, chunk)| (*chunk, place)).collect();
    wanted.sort_unstable();
    let gap = widest_gap(&wanted);
    let mut requests: Vec<Request> = Vec::new();
    for (chunk, place) in wanted {
        match requests.last_mut() {
            Some(last) if chunk - last.chunks.end <= gap && chunk - last.chunks.start < MAX_RUN => {
                last.first_place = place.min(last.first_place);
                last.chunks.end = chunk + 1;
            }
            _ => requests.push(Request { first_place: place, chunks: chunk..chunk + 1, is_made: false }),
        }
    }
    requests.sort_unstable_by_key(|request| request.first_place);
    requests
}

/// Which gaps between these chunks, which are sorted, are fetched too.
fn widest_gap(wanted: &[(u32, usize)]) -> u32 {
    let mut gaps: Vec<u32> = wanted.windows(2).map(|pair| pair[1].0 - pair[0].0 - 1).filter(|gap| *gap > 0).collect();
    gaps.sort_unstable();
    let most = wanted.len() * (MAX_WASTE - 1);
    let (mut passed_over, mut widest) = (0, MIN_GAP);
    for equal in gaps.chunk_by(|one, other| one == other) {
        let gap = equal[0];
        passed_over += gap as usize * equal.len();
        if gap > MAX_GAP || passed_over > most {
            break;
        }
        widest = widest.max(gap);
    }
    widest
}

impl Follower {
    fn expects(&self, place: usize) -> bool {
        (self.next.saturating_sub(MAX_SKIP)..=self.next.saturating_add(MAX_SKIP)).contains(&place)
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
            assert_eq!(trace.touched(*chunk..*chunk + 1), Due::default());
        }
        trace.stored().unwrap()
    }

    fn order(stored: &[u8]) -> Vec<u32> {
        Trace::of(stored, CHUNKS).order
    }

    /// All that is due once these chunks were touched.
    fn due(trace: &mut Trace, touched: &[u32]) -> Vec<Range<u32>> {
        let due = touched.iter().map(|chunk| trace.touched(*chunk..*chunk + 1));
        due.flat_map(|due| [due.now, due.soon].concat()).collect()
    }

    #[test]
    fn what_was_touched_is_fetched_the_next_time_in_few_requests() {
        // Near enough to each other for gaps to be fetched with them: four of seven chunks.
        let touched: Vec<u32> = (0..4000).map(|step| step / 2 * 919 % 3500 * 2 + step % 2).collect();
        let mut trace = Trace::of(&recorded(&touched), CHUNKS);
        let (mut fetched, mut requests, mut missed) = (vec![false; CHUNKS as usize], 0, 0);

        for chunk in &touched {
            missed += usize::from(!fetched[*chunk as usize]);
            for range in due(&mut trace, &[*chunk]) {
                requests += 1;
                range.for_each(|chunk| fetched[chunk as usize] = true);
            }
        }

        assert!(missed < 10, "{missed} were asked for");
        assert!(requests < 80, "{requests} requests for 2000 pairs");
        assert_eq!(trace.stored(), None, "nothing new was touched");
        let bytes = fetched.iter().filter(|fetched| **fetched).count();
        assert!(bytes <= MAX_WASTE * touched.len(), "{bytes} chunks of {}", touched.len());
    }

    #[test]
    fn only_what_is_near_is_fetched_for_a_program_that_has_confirmed_little() {
        let touched = jumps(4000);
        let mut trace = Trace::of(&recorded(&touched), CHUNKS);

        let due: Vec<u32> = due(&mut trace, &touched[..20]).into_iter().flatten().collect();

        let wanted = due.iter().filter(|chunk| touched.contains(chunk)).count();
        assert!((1..10 * FIRST_REACH).contains(&wanted), "{wanted}");
    }

    #[test]
    fn one_touch_is_no_program() {
        let mut trace = Trace::of(&recorded(&jumps(100)), CHUNKS);

        assert_eq!(trace.touched(jumps(1)[0]..jumps(1)[0] + 1), Due::default());
    }

    #[test]
    fn neighbours_and_small_gaps_are_one_request() {
        let near = [10, 5000, 11, 13, 13 + MIN_GAP + 1];

        let chunks: Vec<_> = requests(&near).into_iter().map(|request| request.chunks).collect();

        assert_eq!(chunks, [10..14 + MIN_GAP + 1, 5000..5001]);
    }

    #[test]
    fn wider_gaps_are_bridged_where_there_are_many_and_they_cost_little() {
        let dense: Vec<u32> = (0..100).flat_map(|group| (0..30).map(move |chunk| group * 50 + chunk)).collect();
        let sparse: Vec<u32> = (0..100).map(|group| group * 50).collect();

        assert!(requests(&dense).len() < 60);
        assert_eq!(requests(&sparse).len(), 100);
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
