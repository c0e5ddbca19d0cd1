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

use crate::blob::{Blob, BlobError};
use crate::cache::CHUNK_BYTES;
use trace::Trace;

pub use trace::MAX_STORED_BYTES;

/// What [`fetch_all`] asks for at once, and over how many connections: 8 MiB fill a fast link, and are soon repeated.
const STEP: u32 = (8 << 20) / CHUNK_BYTES as u32;
const CONNECTIONS: usize = 4;

/// A blob whose first touches are noted, and foreseen.
#[derive(Debug)]
pub struct Prefetch {
    blob: Arc<Blob>,
    /// `None` until there is a program to follow.
    trace: Mutex<Option<Trace>>,
}

impl Prefetch {
    /// Notes nothing until [`Prefetch::follow`] is called.
    pub fn new(blob: Arc<Blob>) -> Self {
        Self { blob, trace: Mutex::default() }
    }

    /// The object itself.
    pub fn blob(&self) -> &Arc<Blob> {
        &self.blob
    }

    /// Notes what is touched from now on, and fetches ahead as `stored`, which [`Prefetch::trace`] gave, has it.
    pub fn follow(&self, stored: &[u8]) {
        *self.trace.lock() = Some(Trace::of(stored, self.blob.chunks()));
    }

    /// What was touched in this run and the earlier ones, at most [`MAX_STORED_BYTES`]; `None` if this one added nothing.
    pub fn trace(&self) -> Option<Vec<u8>> {
        self.trace.lock().as_ref()?.stored()
    }

    fn touch(&self, buf: &[u8], offset: u64) {
        if buf.is_empty() {
            return;
        }
        let mut trace = self.trace.lock();
        let Some(trace) = trace.as_mut() else { return };
        let chunks = chunk_of(offset)..chunk_of(offset.saturating_add(buf.len() as u64 - 1)).saturating_add(1);
        let due = trace.touched(chunks);
        // Who is followed needs no guesses.
        self.blob.set_foreseen(trace.is_followed());
        if self.blob.stores() {
            due.now.into_iter().for_each(|chunks| self.blob.fetch_now(chunks));
            self.blob.fetch_ahead(due.soon);
        }
    }
}

impl ReadAt for Prefetch {
    fn len(&self) -> u64 {
        self.blob.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.touch(buf, offset);
        self.blob.read_exact_at(buf, offset)
    }

    fn will_read(&self, range: Range<u64>) {
        self.blob.will_read(range);
    }

    fn may_read(&self, ranges: &[Range<u64>]) {
        self.blob.may_read(ranges);
    }
}

/// Fetches all of `blob` that is not there yet, over several connections, and tells `progress` how many bytes are.
///
/// # Errors
/// [`BlobError::Source`]; [`BlobError::Unstored`] if there is no room for it.
pub fn fetch_all(blob: &Blob, progress: &(dyn Fn(u64) + Sync)) -> Result<(), BlobError> {
    let (next, done) = (AtomicU32::new(0), AtomicU64::new(0));
    let fetch = || {
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
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(fetch)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(fetched) => fetched,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// The chunk that holds the byte at `offset`; one that does not exist for an offset beyond all objects.
fn chunk_of(offset: u64) -> u32 {
    u32::try_from(offset / CHUNK_BYTES as u64).unwrap_or(u32::MAX)
}
