//! Reading ahead: which files are just being read from front to back, or one after the other, and what to have ready.
//!
//! The kernel reads ahead 128 KiB and no more where a daemon without privileges serves it. What is ready beyond that is
//! put into its page cache before it asks, in windows that grow as long as a reader goes on. Between two windows a
//! gap is left, so that its request says where the reader is; what lies behind the gap is there by then.
//!
//! ```text
//! file:    | asked for | gap | window | gap |   window   | gap |      window      |
//! reader:         ^ here: the window behind the next gap is made ready
//! ```
//!
//! Who reads small files in the order of the image, as `tar` and `grep -r` do, is served likewise, with files in place
//! of bytes: some are made ready, and the first that is not is the gap.

use parking_lot::Mutex;
use siphon_overlay::view::Ino;
use std::ops::Range;

/// Streams that are told apart. More readers than this on one machine are busy without help.
const MAX_STREAMS: usize = 32;

/// What the kernel asks for at first where it finds nothing in its cache.
const GAP_BYTES: u64 = 32 << 10;

/// The first window, and the longest. Each is twice as long as the one before.
const MIN_WINDOW_BYTES: u64 = 128 << 10;
const MAX_WINDOW_BYTES: u64 = 1 << 20;

/// Files up to this size are made ready whole, at first as many as this at a time, and at most.
pub(super) const MAX_SMALL_BYTES: u64 = 64 << 10;
const MIN_FILES: usize = 8;
const MAX_FILES: usize = 64;

/// A request this far from the expected place is still the stream's: another one overtook it.
const MAX_SKIP_BYTES: u64 = 128 << 10;

/// The streams of one mount, most recent first.
#[derive(Debug, Default)]
pub(super) struct Streams {
    recent: Mutex<Vec<Stream>>,
    walks: Mutex<Vec<Walk>>,
}

/// A reader of one small file after the other.
#[derive(Debug, Clone, Copy)]
struct Walk {
    /// The file that it is expected to ask for.
    next: Ino,
    /// Files to make ready then.
    files: usize,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    ino: Ino,
    /// Byte offset that the next request is expected at.
    next: u64,
    /// Where the last window ends. 0 until a request came as expected.
    ready: u64,
    window_bytes: u64,
}

impl Streams {
    /// Takes note of a request for `asked`, and says what to have ready next, if it is time for that.
    pub(super) fn window_after(&self, ino: Ino, asked: Range<u64>) -> Option<Range<u64>> {
        let mut recent = self.recent.lock();
        let Some(index) = recent.iter().position(|stream| stream.ino == ino && stream.expects(asked.start)) else {
            recent.truncate(MAX_STREAMS - 1);
            recent.insert(0, Stream { ino, next: asked.end, ready: 0, window_bytes: MIN_WINDOW_BYTES / 2 });
            return None;
        };
        recent[..=index].rotate_right(1);
        recent[0].go_on(asked.end)
    }

    /// What is left of the window `range` that was due earlier: its reader may have come as far meanwhile.
    pub(super) fn left_of(&self, ino: Ino, range: Range<u64>) -> Range<u64> {
        let recent = self.recent.lock();
        let stream = recent.iter().find(|stream| stream.ino == ino && stream.ready >= range.end);
        match stream {
            Some(stream) if stream.next > range.start => (stream.next + MIN_WINDOW_BYTES).min(range.end)..range.end,
            _ => range,
        }
    }

    /// Takes note that the whole of the small file `ino` was asked for, and says how many of those after it to make
    /// ready. The one behind them is to be named to [`Streams::expect`].
    pub(super) fn files_after(&self, ino: Ino) -> usize {
        let mut walks = self.walks.lock();
        let Some(index) = walks.iter().position(|walk| walk.next == ino) else { return 0 };
        walks.remove(index).files
    }

    /// Expects `ino` to be asked for after `files` that were to be made ready.
    pub(super) fn expect(&self, ino: Ino, files: usize) {
        let mut walks = self.walks.lock();
        walks.truncate(MAX_STREAMS - 1);
        walks.insert(0, Walk { next: ino, files: (2 * files).clamp(MIN_FILES, MAX_FILES) });
    }
}

impl Stream {
    fn expects(&self, start: u64) -> bool {
        if self.ready == 0 {
            return start == self.next;
        }
        (self.next.saturating_sub(MAX_SKIP_BYTES)..=self.ready.saturating_add(MAX_SKIP_BYTES)).contains(&start)
    }

    /// Once less than a window is ready beyond `asked`, the next one is due.
    fn go_on(&mut self, asked: u64) -> Option<Range<u64>> {
        self.next = self.next.max(asked);
        let ready = self.ready.max(self.next);
        if self.ready > 0 && ready > self.next.saturating_add(self.window_bytes) {
            return None;
        }
        // What the kernel reads ahead on its own is already asked for.
        let gap_bytes = if self.ready == 0 { MIN_WINDOW_BYTES } else { GAP_BYTES };
        self.window_bytes = (2 * self.window_bytes).min(MAX_WINDOW_BYTES);
        let start = ready.saturating_add(gap_bytes);
        // Windows end where blocks do, mostly.
        let end = start.saturating_add(self.window_bytes) / MIN_WINDOW_BYTES * MIN_WINDOW_BYTES;
        self.ready = end;
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const FILE: Ino = Ino(20);

    #[test]
    fn one_request_is_no_stream() {
        let streams = Streams::default();

        assert_eq!(streams.window_after(FILE, 0..16 * KIB), None);
        assert_eq!(streams.window_after(FILE, 512 * KIB..516 * KIB), None);
        assert_eq!(streams.window_after(Ino(21), 16 * KIB..32 * KIB), None);
    }

    #[test]
    fn windows_grow_and_each_is_due_at_the_gap_before_the_last_one() {
        let streams = Streams::default();
        streams.window_after(FILE, 0..16 * KIB);

        let first = streams.window_after(FILE, 16 * KIB..48 * KIB).unwrap();
        let second = streams.window_after(FILE, 48 * KIB..128 * KIB).unwrap();
        let none = streams.window_after(FILE, 128 * KIB..160 * KIB);
        let third = streams.window_after(FILE, second.start - GAP_BYTES..second.start).unwrap();

        assert_eq!(first, 176 * KIB..256 * KIB);
        assert_eq!(second.start, first.end + GAP_BYTES);
        assert_eq!(none, None);
        assert_eq!(third.start, second.end + GAP_BYTES);
        assert!(third.end - third.start > second.end - second.start);
    }

    #[test]
    fn windows_stop_growing() {
        let streams = Streams::default();
        let mut asked = 0..16 * KIB;
        let mut longest = 0;

        for _ in 0..1000 {
            if let Some(window) = streams.window_after(FILE, asked.clone()) {
                longest = longest.max(window.end - window.start);
            }
            asked = asked.end..asked.end + 128 * KIB;
        }

        assert!((MAX_WINDOW_BYTES - MIN_WINDOW_BYTES..=MAX_WINDOW_BYTES).contains(&longest), "{longest}");
    }

    #[test]
    fn more_files_are_due_each_time_the_expected_one_is_asked_for() {
        let streams = Streams::default();

        assert_eq!(streams.files_after(FILE), 0);
        streams.expect(FILE, 0);
        assert_eq!(streams.files_after(FILE), MIN_FILES);
        assert_eq!(streams.files_after(FILE), 0, "once is enough");
        streams.expect(Ino(30), MIN_FILES);
        assert_eq!(streams.files_after(Ino(30)), 2 * MIN_FILES);
        streams.expect(Ino(40), 1000);
        assert_eq!(streams.files_after(Ino(40)), MAX_FILES);
    }

    #[test]
    fn what_its_reader_asked_for_meanwhile_is_left_out_of_a_window() {
        let streams = Streams::default();
        streams.window_after(FILE, 0..128 * KIB);
        let window = streams.window_after(FILE, 128 * KIB..256 * KIB).unwrap();
        assert_eq!(streams.left_of(FILE, window.clone()), window);

        streams.window_after(FILE, window.start..window.end);

        assert!(streams.left_of(FILE, window).is_empty());
    }

    #[test]
    fn two_readers_of_one_file_are_two_streams() {
        let streams = Streams::default();
        streams.window_after(FILE, 0..128 * KIB);
        streams.window_after(FILE, 1 << 30..(1 << 30) + 128 * KIB);

        assert!(streams.window_after(FILE, 128 * KIB..256 * KIB).is_some());
        assert!(streams.window_after(FILE, (1 << 30) + 128 * KIB..(1 << 30) + 256 * KIB).is_some());
    }
}
