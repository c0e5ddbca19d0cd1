//! The bytes of an object in their order, fetched in parts by several threads at a time.
//!
//! ```text
//! reader:  part 3        threads:  parts 4, 5, 6, 7 at once; the next one begins as soon as part 3 is read
//! ```
//! At most four parts are in memory, whatever the object's length and the reader's pace.

use parking_lot::{Condvar, Mutex};
use siphon_image::read_at::ReadAt;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Large enough that a request's round trip is small beside its transfer, small enough for several in memory.
pub const PART_BYTES: usize = 4 << 20;
/// Parts that are fetched or waiting to be read at one time: a connection to an object store is often slower than the
/// network, and a few make up for it.
const PARTS: u64 = 4;

/// Reads an object from front to back.
#[derive(Debug)]
pub struct InOrder {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    current: Vec<u8>,
    start: usize,
    parts: u64,
    has_failed: bool,
}

struct Shared {
    object: Arc<dyn ReadAt>,
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    /// The next part that no thread has taken.
    next: u64,
    /// The part that the reader wants.
    wanted: u64,
    ready: BTreeMap<u64, io::Result<Vec<u8>>>,
    /// Memory of parts that were read, for others.
    spare: Vec<Vec<u8>>,
    is_over: bool,
}

impl InOrder {
    /// Reads `object` from its first byte on.
    pub fn new(object: Arc<dyn ReadAt>) -> Self {
        Self::begin(object, 0, Vec::new())
    }

    /// The same, where the first part is there already.
    pub fn after(object: Arc<dyn ReadAt>, first: Vec<u8>) -> Self {
        Self::begin(object, 1, first)
    }

    fn begin(object: Arc<dyn ReadAt>, first: u64, current: Vec<u8>) -> Self {
        let parts = object.len().div_ceil(PART_BYTES as u64);
        let state = State { next: first, wanted: first, ..State::default() };
        let shared = Arc::new(Shared { object, state: Mutex::new(state), changed: Condvar::new() });
        let threads = (first..parts).take(PARTS as usize).filter_map(|_| {
            let shared = shared.clone();
            std::thread::Builder::new().name("fetch".to_owned()).spawn(move || shared.fetch(parts)).ok()
        });
        let threads = threads.collect();
        Self { shared, threads, current, start: 0, parts, has_failed: false }
    }

    /// Waits for the next part; `false` at the end.
    fn advance(&mut self) -> io::Result<bool> {
        if self.has_failed {
            return Err(io::Error::other("an earlier part could not be fetched"));
        }
        let mut state = self.shared.state.lock();
        if state.wanted >= self.parts {
            return Ok(false);
        }
        if self.threads.is_empty() {
            return Err(io::Error::other("there are no threads to be had for fetching"));
        }
        let wanted = state.wanted;
        let part = loop {
            if let Some(part) = state.ready.remove(&wanted) {
                break part;
            }
            self.shared.changed.wait(&mut state);
        };
        state.wanted += 1;
        state.spare.push(std::mem::take(&mut self.current));
        self.start = 0;
        self.shared.changed.notify_all();
        drop(state);
        self.has_failed = part.is_err();
        self.current = part?;
        Ok(true)
    }
}

impl Shared {
    /// Fetches parts until there are no more to be had.
    fn fetch(&self, parts: u64) {
        loop {
            let mut state = self.state.lock();
            while !state.is_over && state.next < parts && state.next >= state.wanted + PARTS {
                self.changed.wait(&mut state);
            }
            if state.is_over || state.next >= parts {
                return;
            }
            let part = state.next;
            state.next += 1;
            let memory = state.spare.pop().unwrap_or_default();
            drop(state);
            let bytes = self.read(part, memory);
            let mut state = self.state.lock();
            state.is_over |= bytes.is_err();
            // Parts are taken in their order, so that all before one that fails are on their way.
            state.ready.insert(part, bytes);
            self.changed.notify_all();
        }
    }

    fn read(&self, part: u64, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let start = part * PART_BYTES as u64;
        let left = self.object.len() - start;
        bytes.resize(usize::try_from(left).map_or(PART_BYTES, |left| left.min(PART_BYTES)), 0);
        self.object.read_exact_at(&mut bytes, start)?;
        Ok(bytes)
    }
}

impl Read for InOrder {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || (self.start == self.current.len() && !self.advance()?) {
            return Ok(0);
        }
        let pending = &self.current[self.start..];
        let len = pending.len().min(buf.len());
        buf[..len].copy_from_slice(&pending[..len]);
        self.start += len;
        Ok(len)
    }
}

impl Drop for InOrder {
    fn drop(&mut self) {
        self.shared.state.lock().is_over = true;
        self.shared.changed.notify_all();
        // A thread that is fetching ends when its request does; nobody waits for it.
        self.threads.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Numbers its bytes by their part, and fails at one.
    #[derive(Debug)]
    struct Numbered {
        len: u64,
        fails_at: Option<u64>,
        reads: AtomicU64,
    }

    impl ReadAt for Numbered {
        fn len(&self) -> u64 {
            self.len
        }

        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.reads.fetch_add(1, Ordering::SeqCst);
            let part = offset / PART_BYTES as u64;
            if self.fails_at == Some(part) {
                return Err(io::Error::other("as told"));
            }
            buf.fill(part as u8);
            Ok(())
        }
    }

    fn numbered(len: u64, fails_at: Option<u64>) -> Arc<Numbered> {
        Arc::new(Numbered { len, fails_at, reads: AtomicU64::new(0) })
    }

    #[test]
    fn every_byte_comes_once_and_in_its_place() {
        let len = 9 * PART_BYTES + 5;
        let mut read = Vec::new();

        InOrder::new(numbered(len as u64, None)).read_to_end(&mut read).unwrap();

        assert_eq!(read.len(), len);
        assert!(read.chunks(PART_BYTES).enumerate().all(|(part, bytes)| bytes.iter().all(|byte| *byte == part as u8)));
    }

    #[test]
    fn a_reader_that_stands_still_is_not_read_ahead_of_without_bound() {
        let object = numbered(100 * PART_BYTES as u64, None);
        let mut reader = InOrder::after(object.clone(), vec![7; PART_BYTES]);
        let mut byte = [0];

        reader.read_exact(&mut byte).unwrap();
        while object.reads.load(Ordering::SeqCst) < PARTS {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        std::thread::sleep(std::time::Duration::from_millis(100));

        assert_eq!(byte, [7]);
        assert_eq!(object.reads.load(Ordering::SeqCst), PARTS);
    }

    #[test]
    fn a_failure_reaches_the_reader_and_no_read_hangs() {
        let object = numbered(50 * PART_BYTES as u64, Some(6));
        let mut reader = InOrder::new(object);
        let mut read = Vec::new();

        let error = reader.read_to_end(&mut read).unwrap_err();

        assert!(read.len() <= 6 * PART_BYTES, "{error}");
        assert!(reader.read(&mut [0]).is_err());
    }

    #[test]
    fn an_empty_object_has_no_bytes() {
        assert_eq!(InOrder::new(numbered(0, None)).read(&mut [0]).unwrap(), 0);
    }
}
