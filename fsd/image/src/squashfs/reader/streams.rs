//! Streams: which files are just being read from front to back, and how far ahead of their readers to decode.
//!
//! The kernel reads ahead on its own, in requests that follow each other but need not arrive in order. A stream is a
//! file and the offset at which its next request is expected; each request that keeps the expectation doubles how far
//! ahead it is decoded. A file has as many streams as it has readers at different places.

use crate::tree::NodeId;
use parking_lot::Mutex;
use std::ops::Range;

/// Streams that are told apart. More readers than this on one machine are busy without help.
const MAX_STREAMS: usize = 16;

/// A request this far beyond the expected one is still the stream's: another one overtook it. Two requests' worth.
const MAX_SKIP_BYTES: u64 = 256 << 10;

/// What is decoded ahead at first, and at most.
const MIN_WINDOW_BYTES: u64 = 128 << 10;
const MAX_WINDOW_BYTES: u64 = 2 << 20;

/// The streams of one image, most recent first.
#[derive(Debug, Default)]
pub(super) struct Streams {
    recent: Mutex<Vec<Stream>>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    node: NodeId,
    /// Byte offset that the next request is expected at.
    next: u64,
    /// 0 until a request came as expected.
    window_bytes: u64,
}

impl Streams {
    /// Takes note of a request for `range` of a file.
    pub(super) fn note(&self, node: NodeId, range: Range<u64>) {
        let mut recent = self.recent.lock();
        let expects = |stream: &Stream| stream.node == node && stream.expects(range.start);
        match recent.iter().position(expects) {
            Some(index) => {
                recent[..=index].rotate_right(1);
                let stream = &mut recent[0];
                stream.next = stream.next.max(range.end);
                stream.window_bytes = (2 * stream.window_bytes).clamp(MIN_WINDOW_BYTES, MAX_WINDOW_BYTES);
            }
            None => {
                recent.truncate(MAX_STREAMS - 1);
                recent.insert(0, Stream { node, next: range.end, window_bytes: 0 });
            }
        }
    }

    /// What to have decoded after a request that ended at `end`, if it is a stream's.
    pub(super) fn ahead(&self, node: NodeId, end: u64) -> Option<Range<u64>> {
        let recent = self.recent.lock();
        let stream = recent.iter().find(|stream| stream.node == node && stream.next >= end)?;
        (stream.window_bytes > 0).then(|| stream.next..stream.next.saturating_add(stream.window_bytes))
    }
}

impl Stream {
    fn expects(&self, start: u64) -> bool {
        let latest = self.next.saturating_add(if self.window_bytes > 0 { MAX_SKIP_BYTES } else { 0 });
        let earliest = self.next.saturating_sub(if self.window_bytes > 0 { MAX_SKIP_BYTES } else { 0 });
        (earliest..=latest).contains(&start)
    }
}
