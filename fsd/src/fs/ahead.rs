//! Reading ahead: which files are just being read from front to back, or one after the other, and what to have ready.
//!
//! The kernel reads ahead 128 KiB and no more where a daemon without privileges serves it. What is ready beyond that is
//! put into its page cache before it asks, in windows that reach further as long as a reader goes on. Before each
//! window a gap is left, so that the request for it says where the reader is.
//!
//! ```text
//! file:    | asked for | gap | window | gap | window | gap | window |
//! reader:         ^ here                          reach:            ^
//! ```
//!
//! Who reads small files in the order of the image, as `tar` and `grep -r` do, is served likewise, with files in place
//! of bytes. There is no need for gaps: the first file of the next directory is always asked for, because the kernel
//! stores nothing of a file that it has not seen in a listing yet.

use parking_lot::Mutex;
use siphon_overlay::view::Ino;
use std::ops::Range;

/// Streams, and walks, that are told apart. More readers than this on one machine are busy without help.
const MAX_READERS: usize = 32;

/// What the kernel asks for at first where it finds nothing in its cache.
const GAP_BYTES: u64 = 32 << 10;

/// Windows end at multiples of this, where blocks do, mostly.
const MIN_WINDOW_BYTES: u64 = 128 << 10;

/// Long enough that a gap seldom interrupts, and that threads read spans of storage of their own and do not wait for one
/// another's; short enough that several have one each.
const MAX_WINDOW_BYTES: u64 = 2 << 20;

/// Requests one after the other that make a stream: two are soon made by chance where a program is loaded.
const MIN_REQUESTS: usize = 3;

/// And what they ask for together, at least: those of a kernel that reads ahead little are short.
const MIN_STREAM_BYTES: u64 = 96 << 10;

/// Half of how far the first window reaches.
const FIRST_REACH_BYTES: u64 = MIN_WINDOW_BYTES / 2;

/// How far windows reach beyond the reader at most: twice as far from request to request, but no further than what it has read
/// since it began or jumped, so that never more is in vain than was of use. Enough to go on decoding while the reader is busy with
/// what it has.
const MAX_REACH_BYTES: u64 = 16 << 20;

/// Between two of these, so much is asked for at least: requests may be short.
const MIN_GROWTH_BYTES: u64 = 64 << 10;

/// Files up to this size are made ready whole, at first as many as this at a time, and at most.
pub(super) const MAX_SMALL_BYTES: u64 = 64 << 10;
const MIN_FILES: usize = 8;
const MAX_FILES: usize = 64;

/// A walk may leave so many files out and still go on: they are not all wanted.
pub(super) const MAX_LEFT_OUT: usize = 8;

/// A request this far beyond what is ready is still the stream's.
const MAX_SKIP_BYTES: u64 = 128 << 10;

/// And one this far before the expected place: the kernel has several under way at once, and who answers one may be told of it
/// once its reader has passed a window.
const MAX_LAG_BYTES: u64 = 2 * MAX_WINDOW_BYTES;

/// The readers of one mount, most recent first.
#[derive(Debug, Default)]
pub(super) struct Readers {
    streams: Mutex<Vec<Stream>>,
    walks: Mutex<Vec<Walk>>,
}

/// A reader of one file from front to back.
#[derive(Debug, Clone, Copy)]
struct Stream {
    ino: Ino,
    /// Byte offset of the first request; of the lowest of those that overtook each other before there was a window.
    start: u64,
    /// Bytes that were asked for in all.
    asked_bytes: u64,
    /// Where the reader was when the reach last grew.
    grown: u64,
    /// Byte offset that the next request is expected at.
    next: u64,
    /// Where the last window ends. 0 until there was one.
    ready: u64,
    reach_bytes: u64,
    /// Those that came as expected, and the first.
    requests: usize,
}

/// A reader of one small file after the other. Numbers of files grow in the order of the image.
#[derive(Debug, Clone, Copy)]
struct Walk {
    /// The last file that was asked for.
    asked: Ino,
    /// The last one that was, or is being, made ready.
    ready: Ino,
    /// The last one that it may ask for next.
    last: Ino,
    /// Files to make ready then.
    files: usize,
}

impl Readers {
    /// Takes note of a request for `asked` that does not end with the file, and says what to have ready next: `None` if it is
    /// not of a reader from front to back, as far as is known.
    pub(super) fn windows_after(&self, ino: Ino, asked: Range<u64>) -> Option<Vec<Range<u64>>> {
        let mut streams = self.streams.lock();
        let Some(index) = streams.iter().position(|stream| stream.ino == ino && stream.expects(&asked)) else {
            // Who jumps about in a file, as a program that is loaded does, may go on from where it was, but not far.
            for stream in streams.iter_mut().filter(|stream| stream.ino == ino) {
                *stream = Stream { ready: stream.ready, ..Stream::new(ino, stream.next..stream.next) };
            }
            remember(&mut streams, Stream::new(ino, asked));
            return None;
        };
        streams[..=index].rotate_right(1);
        streams[0].go_on(&asked)
    }

    /// Takes note that the small file `ino` was asked for, and says how many of those after it to make ready; `None` if
    /// that is being done already. What comes of it is to be told to [`Readers::expect`].
    pub(super) fn files_after(&self, ino: Ino) -> Option<usize> {
        let mut walks = self.walks.lock();
        let Some(index) = walks.iter().position(|walk| (walk.asked..=walk.last).contains(&ino)) else { return Some(0) };
        walks[..=index].rotate_right(1);
        walks[0].asked = ino;
        if ino <= walks[0].ready { None } else { Some(walks.remove(0).files) }
    }

    /// Expects that who asked for `asked` goes on up to `last`, while the `files` up to `ready` are made ready.
    pub(super) fn expect(&self, asked: Ino, ready: Ino, last: Ino, files: usize) {
        let files = (2 * files).clamp(MIN_FILES, MAX_FILES);
        remember(&mut self.walks.lock(), Walk { asked, ready, last, files });
    }

    /// Takes note that `ino` and what was to be made ready after it is not.
    pub(super) fn stopped_at(&self, ino: Ino) {
        for walk in self.walks.lock().iter_mut() {
            if (walk.asked..=walk.ready).contains(&ino) {
                walk.ready = Ino(ino.0 - 1);
            }
        }
    }

    /// What is left of `range`, which was to be made ready earlier: its reader may have come as far meanwhile.
    pub(super) fn left_of(&self, ino: Ino, range: Range<u64>) -> Range<u64> {
        if range.start == 0 {
            let passed = self.walks.lock().iter().any(|walk| walk.has_passed(ino));
            return if passed { 0..0 } else { range };
        }
        let streams = self.streams.lock();
        let ends = range.end..=range.end.saturating_add(MAX_REACH_BYTES + MAX_WINDOW_BYTES);
        let stream = streams.iter().find(|stream| stream.ino == ino && ends.contains(&stream.ready));
        match stream {
            Some(stream) if stream.next > range.start => (stream.next + MIN_WINDOW_BYTES).min(range.end)..range.end,
            _ => range,
        }
    }
}

fn remember<T>(readers: &mut Vec<T>, reader: T) {
    readers.truncate(MAX_READERS - 1);
    readers.insert(0, reader);
}

impl Walk {
    /// Whether it was to come to `ino`, and did.
    fn has_passed(&self, ino: Ino) -> bool {
        let near = self.asked.0.saturating_sub(2 * MAX_FILES as u64)..=self.asked.0;
        near.contains(&ino.0) && self.asked <= self.ready
    }
}

impl Stream {
    fn new(ino: Ino, asked: Range<u64>) -> Self {
        let (start, next, asked_bytes) = (asked.start, asked.end, asked.end - asked.start);
        let reach_bytes = FIRST_REACH_BYTES;
        Self { ino, start, asked_bytes, grown: start, next, ready: 0, reach_bytes, requests: 1 }
    }

    /// Whether it has been a stream already.
    fn is_known(&self) -> bool {
        self.reach_bytes > FIRST_REACH_BYTES
    }

    fn expects(&self, asked: &Range<u64>) -> bool {
        if self.ready == 0 {
            // The kernel has several requests under way at once, and they overtake each other: so half may be missing.
            let all = self.start.min(asked.start)..self.next.max(asked.end);
            return all.end - all.start <= 2 * (self.asked_bytes + (asked.end - asked.start));
        }
        let begins_again = asked.start == 0 && self.next > MAX_WINDOW_BYTES;
        // Who jumped about is not yet known to read on.
        let lag_bytes = if self.is_known() { MAX_LAG_BYTES } else { MAX_SKIP_BYTES };
        let near = self.next.saturating_sub(lag_bytes)..=self.ready.saturating_add(MAX_SKIP_BYTES);
        near.contains(&asked.start) && !begins_again
    }

    /// The windows that are due now that `asked` was asked for as well.
    fn go_on(&mut self, asked: &Range<u64>) -> Option<Vec<Range<u64>>> {
        if self.ready == 0 {
            self.start = self.start.min(asked.start);
            self.grown = self.start;
        }
        self.next = self.next.max(asked.end);
        self.asked_bytes += asked.end - asked.start;
        self.requests += 1;
        let reached_bytes = self.next - self.start;
        if !self.is_known() {
            // Between windows of earlier not all is asked for.
            let is_whole = self.ready > 0 || self.asked_bytes >= reached_bytes / 4 * 3;
            if self.requests < MIN_REQUESTS || reached_bytes < MIN_STREAM_BYTES || !is_whole {
                return None;
            }
        }
        if self.ready == 0 {
            // What the kernel reads ahead on its own is already asked for.
            self.ready = self.next.saturating_add(MIN_WINDOW_BYTES - GAP_BYTES);
        }
        self.ready = self.ready.max(self.next);
        if self.next - self.grown >= MIN_GROWTH_BYTES {
            self.reach_bytes = (2 * self.reach_bytes).min(reached_bytes).clamp(MIN_WINDOW_BYTES, MAX_REACH_BYTES);
            self.grown = self.next;
        }
        // Each window ends beyond the one before it, as none is shorter than what ends are multiples of.
        let window_bytes = self.reach_bytes.clamp(MIN_WINDOW_BYTES, MAX_WINDOW_BYTES);
        let reach = self.next.saturating_add(self.reach_bytes);
        let mut windows = Vec::new();
        while self.ready < reach {
            let start = self.ready.saturating_add(GAP_BYTES);
            self.ready = start.saturating_add(window_bytes) / MIN_WINDOW_BYTES * MIN_WINDOW_BYTES;
            windows.push(start..self.ready);
        }
        Some(windows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::{prop_assert, proptest};

    const KIB: u64 = 1 << 10;
    const FILE: Ino = Ino(20);

    /// What is due after the last of `asked`, which follow each other.
    fn after_all(readers: &Readers, asked: &[Range<u64>]) -> Vec<Range<u64>> {
        asked.iter().fold(None, |_, asked| readers.windows_after(FILE, asked.clone())).unwrap_or_default()
    }

    #[test]
    fn requests_here_and_there_are_no_stream() {
        let readers = Readers::default();

        assert_eq!(readers.windows_after(FILE, 0..16 * KIB), None);
        assert_eq!(readers.windows_after(FILE, 512 * KIB..516 * KIB), None);
        assert_eq!(readers.windows_after(Ino(21), 16 * KIB..32 * KIB), None);
        assert_eq!(readers.windows_after(FILE, 16 * KIB..32 * KIB), None, "two may be chance");
    }

    #[test]
    fn short_requests_are_a_stream_once_they_are_many() {
        let readers = Readers::default();
        let requests: Vec<_> = (0..6).map(|step| step * 16 * KIB..(step + 1) * 16 * KIB).collect();

        assert_eq!(after_all(&readers, &requests[..5]), []);
        assert!(!after_all(&readers, &requests[5..]).is_empty());
    }

    #[test]
    fn windows_reach_twice_as_far_as_a_reader_goes_on() {
        let readers = Readers::default();

        let mut windows = after_all(&readers, &[0..16 * KIB, 16 * KIB..48 * KIB, 48 * KIB..112 * KIB]);
        for passed in 0..40 {
            let gap = windows[passed].end;
            windows.extend(after_all(&readers, std::slice::from_ref(&(gap..gap + GAP_BYTES))));
        }

        assert!(windows.iter().all(|window| window.end % MIN_WINDOW_BYTES == 0), "{windows:?}");
        // The first gap was reached before there was another window.
        assert_eq!(windows[1].start, windows[0].end + 2 * GAP_BYTES, "{windows:?}");
        assert!(windows[1..].windows(2).all(|pair| pair[1].start == pair[0].end + GAP_BYTES), "{windows:?}");
        let lengths: Vec<u64> = windows.iter().map(|window| window.end - window.start).collect();
        let longest = *lengths.last().unwrap();
        assert!(lengths.is_sorted() && longest >= MAX_WINDOW_BYTES - MIN_WINDOW_BYTES, "{windows:?}");
    }

    #[test]
    fn windows_reach_no_further_than_the_bound() {
        let readers = Readers::default();
        let mut asked = 0..16 * KIB;
        let (mut ahead, mut longest) = (0, 0);

        for _ in 0..1000 {
            for window in readers.windows_after(FILE, asked.clone()).unwrap_or_default() {
                ahead = ahead.max(window.end - asked.end);
                longest = longest.max(window.end - window.start);
            }
            asked = asked.end..asked.end + 128 * KIB;
        }

        assert!((MAX_REACH_BYTES..=MAX_REACH_BYTES + MAX_WINDOW_BYTES).contains(&ahead), "{ahead}");
        assert!(longest <= MAX_WINDOW_BYTES, "{longest}");
    }

    #[test]
    fn who_jumps_about_in_a_file_starts_anew() {
        let readers = Readers::default();
        let steps: Vec<_> = (0..20).map(|step| step * 128 * KIB..(step + 1) * 128 * KIB).collect();
        after_all(&readers, &steps);
        let far = readers.streams.lock()[0].ready;

        readers.windows_after(FILE, 1 << 30..(1 << 30) + 4 * KIB);

        assert_eq!(readers.windows_after(FILE, far..far + GAP_BYTES), None);
    }

    #[test]
    fn what_is_read_far_behind_who_jumped_about_does_not_count_for_it() {
        let readers = Readers::default();
        after_all(&readers, &(0..20).map(|step| step * 128 * KIB..(step + 1) * 128 * KIB).collect::<Vec<_>>());
        let next = 2560 * KIB;

        for start in [1 << 30, next - 1024 * KIB, next - 2048 * KIB] {
            assert_eq!(readers.windows_after(FILE, start..start + 4 * KIB), None);
        }

        assert_eq!(readers.windows_after(FILE, next..next + 128 * KIB), None);
    }

    #[test]
    fn more_files_are_due_each_time_a_walk_comes_to_one_that_is_not_ready() {
        let readers = Readers::default();

        assert_eq!(readers.files_after(Ino(20)), Some(0));
        readers.expect(Ino(20), Ino(20), Ino(29), 0);
        assert_eq!(readers.files_after(Ino(21)), Some(MIN_FILES));
        readers.expect(Ino(21), Ino(29), Ino(38), MIN_FILES);
        assert_eq!(readers.files_after(Ino(25)), None, "it is being made ready");
        assert_eq!(readers.files_after(Ino(31)), Some(2 * MIN_FILES));
        readers.expect(Ino(31), Ino(47), Ino(56), 1000);
        assert_eq!(readers.files_after(Ino(48)), Some(MAX_FILES));
    }

    #[test]
    fn who_reads_files_here_and_there_is_on_no_walk() {
        let readers = Readers::default();

        for ino in [300, 200, 100, 500] {
            assert_eq!(readers.files_after(Ino(ino)), Some(0), "{ino}");
            readers.expect(Ino(ino), Ino(ino), Ino(ino + 9), 0);
        }
    }

    #[test]
    fn files_are_due_again_from_where_the_last_time_stopped() {
        let readers = Readers::default();
        readers.expect(Ino(20), Ino(40), Ino(49), 20);

        readers.stopped_at(Ino(30));

        assert_eq!(readers.files_after(Ino(29)), None);
        assert_eq!(readers.files_after(Ino(30)), Some(40));
    }

    #[test]
    fn what_its_reader_asked_for_meanwhile_is_left_out() {
        let readers = Readers::default();
        let steps = [0..128 * KIB, 128 * KIB..256 * KIB, 256 * KIB..384 * KIB];
        let window = after_all(&readers, &steps).remove(0);
        assert_eq!(readers.left_of(FILE, window.clone()), window);
        readers.expect(Ino(30), Ino(40), Ino(49), 10);
        assert_eq!(readers.left_of(Ino(33), 0..100), 0..100);

        readers.windows_after(FILE, window.start..window.end);
        readers.files_after(Ino(33));

        assert!(readers.left_of(FILE, window).is_empty());
        assert!(readers.left_of(Ino(33), 0..100).is_empty());
        assert_eq!(readers.left_of(Ino(34), 0..100), 0..100);
    }

    #[test]
    fn what_is_to_be_made_ready_is_left_where_other_readers_are_further_on() {
        let readers = Readers::default();
        readers.expect(Ino(30), Ino(40), Ino(49), 10);
        readers.expect(Ino(500), Ino(500), Ino(509), 0);
        let steps = |from: u64| (0..4).map(move |step| from + step * 128 * KIB..from + (step + 1) * 128 * KIB);
        let window = after_all(&readers, &steps(100 << 20).collect::<Vec<_>>()).remove(0);
        after_all(&readers, &steps(1 << 30).collect::<Vec<_>>());

        assert_eq!(readers.left_of(Ino(33), 0..100), 0..100);
        assert_eq!(readers.left_of(FILE, window.clone()), window);
    }

    #[test]
    fn who_begins_a_file_again_is_a_new_reader() {
        let readers = Readers::default();
        let steps: Vec<_> = (0..24).map(|step| step * 128 * KIB..(step + 1) * 128 * KIB).collect();
        after_all(&readers, &steps);

        assert!(!after_all(&readers, &steps[..4]).is_empty());
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_stream() {
        let readers = Readers::default();
        after_all(&readers, &[0..16 * KIB, 48 * KIB..112 * KIB, 16 * KIB..48 * KIB]);

        for pair in 0..40 {
            let start = (112 + pair * 512) * KIB;
            assert!(readers.windows_after(FILE, start + 256 * KIB..start + 512 * KIB).is_some(), "{pair}");
            assert!(readers.windows_after(FILE, start..start + 256 * KIB).is_some(), "{pair}");
        }

        assert_eq!(readers.streams.lock()[0].reach_bytes, MAX_REACH_BYTES);
    }

    #[test]
    fn requests_from_back_to_front_are_no_stream_for_long() {
        let readers = Readers::default();
        let back =
            |from: u64, count: u64| (1..=count).map(move |step| from - step * 32 * KIB..from - (step - 1) * 32 * KIB);

        let due = |from: u64| -> usize {
            back(from, 64).filter_map(|asked| readers.windows_after(FILE, asked)).map(|windows| windows.len()).sum()
        };

        assert!(due(4096 * KIB) <= 1);

        // Behind where a reader was that has left.
        after_all(&readers, &(0..20).map(|step| step * 128 * KIB..(step + 1) * 128 * KIB).collect::<Vec<_>>());
        readers.windows_after(FILE, 1 << 30..(1 << 30) + 4 * KIB);
        assert!(due(2560 * KIB) <= 1);
    }

    #[test]
    fn no_window_begins_further_ahead_than_was_read() {
        let readers = Readers::default();
        let start = 1 << 30;

        for step in 0..100 {
            let asked = start + step * 64 * KIB..start + (step + 1) * 64 * KIB;
            let read_bytes = asked.end - start;
            for window in readers.windows_after(FILE, asked.clone()).unwrap_or_default() {
                let ahead_bytes = window.start - asked.end;
                assert!(ahead_bytes < read_bytes + GAP_BYTES, "{window:?} after {read_bytes} bytes");
            }
        }
    }

    proptest! {
        #[test]
        fn windows_lie_one_after_the_other_and_not_far(requests in vec((0..512_u64, 1..32_u64), 1..60)) {
            let readers = Readers::default();
            let mut furthest = 0;
            for (start, length) in requests {
                let asked = start * 16 * KIB..(start + length) * 16 * KIB;
                furthest = asked.end.max(furthest);
                let windows = readers.windows_after(FILE, asked).unwrap_or_default();

                prop_assert!(windows.iter().all(|window| window.start < window.end), "{windows:?}");
                prop_assert!(windows.windows(2).all(|pair| pair[0].end < pair[1].start), "{windows:?}");
                let bound = furthest + MAX_REACH_BYTES + MAX_WINDOW_BYTES;
                prop_assert!(windows.last().is_none_or(|last| last.end <= bound), "{windows:?}");
            }
        }
    }

    #[test]
    fn two_readers_of_one_file_are_two_streams() {
        let readers = Readers::default();
        for step in 0..2 {
            for start in [0, 1 << 30] {
                readers.windows_after(FILE, start + step * 128 * KIB..start + (step + 1) * 128 * KIB);
            }
        }

        for start in [0, 1 << 30] {
            readers.windows_after(FILE, start + 256 * KIB..start + 384 * KIB);
            let windows = readers.windows_after(FILE, start + 384 * KIB..start + 512 * KIB);
            assert!(windows.is_some_and(|windows| !windows.is_empty()), "{start}");
        }
    }
}
