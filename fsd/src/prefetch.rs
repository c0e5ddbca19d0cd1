//! Prefetch: which parts of a remote image a run touches, in order, and fetching them ahead of the next one.
//!
//! A program that starts touches some thousand places of its image, one after the other, and each would cost a round trip
//! to the server. It touches the same ones each time. So the chunks that are touched for the first time are noted in
//! their order, and the next run is followed along that trace: two touches that come as they came then make a follower, for
//! which more and more of what comes next is fetched, in the fewest requests that do it.
//!
//! ```text
//! trace:    c7 c8 | c900 c901 c12 c905 c13 c14 | ...     in order of first use
//! window:          '------------------------'
//! fetched:          c12-c14  c900-c905                   neighbours together, small gaps with them
//! ```
//!
//! What is fetched beyond the program is bounded by a multiple of what it confirmed, so that another program of the same
//! image, which begins in the same way, does not cost the whole trace. Traces of several programs lie in one: what one of
//! them touches that is not in the trace yet is put where it left the trace.

mod trace;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use siphon_image::read_at::ReadAt;

use crate::blob::{Blob, BlobCounters, BlobError};
use crate::cache::CHUNK_BYTES;
use trace::Trace;

pub use trace::MAX_STORED_BYTES;

/// What [`fetch_all`] asks for at once, and over how many connections: 8 MiB fill a fast link, and are soon repeated.
const STEP: u32 = (8 << 20) / CHUNK_BYTES as u32;
const CONNECTIONS: usize = 4;

/// Chunks that a trace tells apart: of 4 TiB.
const MAX_TRACED_CHUNKS: u32 = 1 << 26;

/// The objects of an image, whose first touches are noted, and foreseen. Their chunks are numbered through.
#[derive(Debug)]
pub struct Prefetch {
    parts: Vec<Part>,
    chunks: u32,
    /// `None` until there is a program to follow.
    trace: Mutex<Option<Trace>>,
}

#[derive(Debug)]
struct Part {
    blob: Arc<Blob>,
    /// The number of its first chunk among those of all.
    first: u32,
}

/// One of the objects of an image.
#[derive(Debug, Clone)]
pub struct Object {
    all: Arc<Prefetch>,
    number: usize,
}

impl Prefetch {
    /// Notes nothing until [`Prefetch::follow`] is called.
    pub fn new(blobs: impl IntoIterator<Item = Arc<Blob>>) -> Arc<Self> {
        let mut chunks = 0_u32;
        let mut part = |blob: Arc<Blob>| {
            let first = chunks;
            chunks = chunks.saturating_add(blob.chunks());
            Part { blob, first }
        };
        let parts = blobs.into_iter().map(&mut part).collect();
        Arc::new(Self { parts, chunks: chunks.min(MAX_TRACED_CHUNKS), trace: Mutex::default() })
    }

    /// The objects themselves.
    pub fn blobs(&self) -> impl Iterator<Item = &Arc<Blob>> {
        self.parts.iter().map(|part| &part.blob)
    }

    /// What reads them, in the same order.
    pub fn objects(self: &Arc<Self>) -> impl Iterator<Item = Object> {
        (0..self.parts.len()).map(|number| Object { all: self.clone(), number })
    }

    /// What was done for all of them.
    pub fn counters(&self) -> BlobCounters {
        let all = self.blobs().map(|blob| blob.counters());
        all.reduce(BlobCounters::and).unwrap_or_default()
    }

    /// Notes what is touched from now on, and fetches ahead as `stored`, which [`Prefetch::trace`] gave, has it.
    pub fn follow(&self, stored: &[u8]) {
        *self.trace.lock() = Some(Trace::of(stored, self.chunks));
    }

    /// What was touched in this run and the earlier ones, at most [`MAX_STORED_BYTES`]; `None` if this one added nothing.
    pub fn trace(&self) -> Option<Vec<u8>> {
        self.trace.lock().as_ref()?.stored()
    }

    fn touch(&self, part: &Part, buf: &[u8], offset: u64) {
        if buf.is_empty() {
            return;
        }
        let mut trace = self.trace.lock();
        let Some(trace) = trace.as_mut() else { return };
        let chunk = |offset: u64| part.first.saturating_add(chunk_of(offset));
        let due = trace.touched(chunk(offset)..chunk(offset.saturating_add(buf.len() as u64 - 1)).saturating_add(1));
        // Who is followed needs no guesses.
        part.blob.set_foreseen(trace.is_followed());
        for chunks in due.now {
            self.for_each_part(chunks, |blob, chunks| blob.fetch_now(chunks));
        }
        for chunks in due.soon {
            self.for_each_part(chunks, |blob, chunks| blob.fetch_ahead([chunks]));
        }
    }

    /// Cuts a range of chunks where another object begins.
    fn for_each_part(&self, chunks: Range<u32>, fetch: impl Fn(&Blob, Range<u32>)) {
        let next = self.parts.partition_point(|part| part.first <= chunks.start);
        for part in &self.parts[next.saturating_sub(1)..] {
            let end = chunks.end.min(part.first.saturating_add(part.blob.chunks()));
            let start = chunks.start.max(part.first);
            if part.first >= chunks.end {
                return;
            }
            if start < end && part.blob.stores() {
                fetch(&part.blob, start - part.first..end - part.first);
            }
        }
    }
}

impl Object {
    fn part(&self) -> &Part {
        &self.all.parts[self.number]
    }
}

impl ReadAt for Object {
    fn len(&self) -> u64 {
        self.part().blob.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let part = self.part();
        self.all.touch(part, buf, offset);
        part.blob.read_exact_at(buf, offset)
    }

    fn will_read(&self, range: Range<u64>) {
        self.part().blob.will_read(range);
    }

    fn may_read(&self, ranges: &[Range<u64>]) -> bool {
        self.part().blob.may_read(ranges)
    }

    fn discard(&self, range: Range<u64>) {
        self.part().blob.discard(range);
    }
}

/// Fetches all of `blob` that is not there yet, over several connections, and tells `progress` how many bytes are. All of it
/// is held against its digest then, where that is known.
///
/// # Errors
/// [`BlobError::Source`], also if it is not what it should be; [`BlobError::Unstored`] if there is no room for it.
pub fn fetch_all(blob: &Blob, progress: &(dyn Fn(u64) + Sync)) -> Result<(), BlobError> {
    let (next, done) = (AtomicU32::new(0), AtomicU64::new(0));
    let fetch = || -> Result<(), BlobError> {
        loop {
            let first = next.fetch_add(STEP, Ordering::Relaxed);
            if first >= blob.chunks() {
                return Ok(());
            }
            let chunks = first..(first + STEP).min(blob.chunks());
            let bytes = (u64::from(chunks.end) * CHUNK_BYTES as u64).min(blob.len_bytes());
            let bytes = bytes - u64::from(chunks.start) * CHUNK_BYTES as u64;
            blob.fetch_and_check(chunks)?;
            progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes);
        }
    };
    std::thread::scope(|scope| -> Result<(), BlobError> {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(fetch)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(fetched) => fetched,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    blob.check()
}

/// The chunk that holds the byte at `offset`; one that does not exist for an offset beyond all objects.
fn chunk_of(offset: u64) -> u32 {
    u32::try_from(offset / CHUNK_BYTES as u64).unwrap_or(u32::MAX)
}
