//! Storage: how often the image is read, and in which pieces.
//!
//! Blocks are small, 50 KiB or so, and storage wants large reads. What is read one after the other is therefore read
//! in spans that grow from one to the next, whether it is one large file or many small neighbours; what is read here
//! and there is read as it is, and nothing beside it.
//!
//! ```text
//! wanted:  | block | block |          | block | block | block | block | ...
//! read:    | alone | span  |          | alone |     span      |          span          |
//!                                       a new place      twice as long
//! ```
//!
//! Who knows in advance what will be read says so, and has spans of full length from the start.
//!
//! A span is read by one thread while others that want bytes of it wait. One lock guards the list of spans; it is not
//! held while anything is read.

use crate::read_at::ReadAt;
use crate::squashfs::reader::error::{Error, Part};
use crate::squashfs::reader::frames::{Frame, Frames};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// The longest span: storage gives its full speed to reads of this size.
const MAX_SPAN: usize = 1 << 20;
const MAX_SPAN_BYTES: u64 = MAX_SPAN as u64;

/// Places that are remembered, and at most as many spans in memory.
const MAX_PLACES: usize = 12;

/// What is read this many bytes after an earlier read still goes on from there. Not further: who leaves out a block, as
/// a program that is loaded does, would be given blocks that it leaves out.
const MAX_GAP_BYTES: u64 = 4 << 10;

/// From this length on, a reader has shown that it goes on, and storage may read ahead as well.
const MIN_STREAM_BYTES: u64 = 256 << 10;

/// Buffers of former spans that are kept for the next ones.
const MAX_FREE_FRAMES: usize = 2;

thread_local! {
    /// Stored bytes on their way to a codec: at most one block for each thread.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The bytes of an image.
#[derive(Debug)]
pub(super) struct Storage {
    bytes: Arc<dyn ReadAt>,
    frames: Arc<Frames>,
    /// Most recently used first.
    places: Mutex<Vec<Place>>,
}

/// Whether bytes are likely to be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// They are: only a part of what they decode to was asked for.
    Repeated,
    /// They are not: whoever asked has all that they decode to.
    Once,
}

/// Where something was read.
#[derive(Debug, Clone)]
struct Place {
    start: u64,
    end: u64,
    /// What was read there, if it was more than was wanted.
    span: Option<Arc<Span>>,
}

/// A piece of the image that is in memory, or is being read.
#[derive(Debug)]
struct Span {
    start: u64,
    len_bytes: usize,
    /// Whether it follows one that was as long as a stream's.
    is_stream: bool,
    /// `None` if it could not be read.
    content: OnceLock<Option<Frame>>,
}

impl Storage {
    pub(super) fn new(bytes: Arc<dyn ReadAt>) -> Self {
        Self { bytes, frames: Frames::new(MAX_SPAN, MAX_FREE_FRAMES), places: Mutex::default() }
    }

    pub(super) fn bytes(&self) -> &dyn ReadAt {
        self.bytes.as_ref()
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len()
    }

    /// Fills `buf` from `offset` bytes into the image, of which `part` is there, and reads nothing else.
    pub(super) fn read(&self, part: Part, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.read_for(Use::Repeated, part, offset, buf)
    }

    fn read_for(&self, purpose: Use, part: Part, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let (needed, len) = (buf.len() as u64, self.len());
        if offset.checked_add(needed).is_none_or(|end| end > len) {
            return Err(Error::Truncated { part, offset, needed, len });
        }
        let failed = |source| Error::Read { part, offset, needed, source: Arc::new(source) };
        let read = match purpose {
            Use::Repeated => self.bytes.read_exact_at(buf, offset),
            Use::Once => self.bytes.read_once_at(buf, offset),
        };
        read.map_err(failed)
    }

    /// Hands the `needed` bytes at `offset` to `take`. What follows them up to `wanted`, an offset in the image, will
    /// be asked for next, and is read with them.
    pub(super) fn with<R>(
        &self,
        purpose: Use,
        part: Part,
        offset: u64,
        needed: usize,
        wanted: u64,
        take: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Error> {
        let end = offset.saturating_add(needed as u64);
        if end > self.len() {
            return Err(Error::Truncated { part, offset, needed: needed as u64, len: self.len() });
        }
        let span = self.place(offset, end, wanted);
        let held = span.as_ref().and_then(|span| span.bytes_from(self, offset)).unwrap_or_default();
        if let Some(bytes) = held.get(..needed) {
            return Ok(take(bytes));
        }
        with_scratch(needed, |scratch| {
            let (front, rest) = scratch.split_at_mut(held.len());
            front.copy_from_slice(held);
            match held.len() {
                0 => self.read_for(purpose, part, offset, rest)?,
                held => self.read_rest(part, offset + held as u64, wanted, rest)?,
            }
            Ok(take(scratch))
        })
    }

    /// Has each of these ranges, which are about to be read from front to back, read in spans of full length. Of what does not
    /// lie in memory at once, that is the first.
    pub(super) fn will_read(&self, ranges: &[Range<u64>]) {
        let cut = |range: &Range<u64>| {
            let end = range.end.min(self.len());
            (range.start..end).step_by(MAX_SPAN).map(move |start| start..end.min(start + MAX_SPAN_BYTES))
        };
        let mut places = self.places.lock();
        for span in ranges.iter().flat_map(cut).take(MAX_PLACES) {
            if !places.iter().any(|place| place.span.is_some() && place.overlaps(&span)) {
                let content = Some(Arc::new(Span::new(span.clone(), true)));
                places.insert(0, Place { start: span.start, end: span.end, span: content });
            }
        }
        places.truncate(MAX_PLACES);
    }

    /// Fills `buf` with what follows a span that ended in the middle of it.
    fn read_rest(&self, part: Part, offset: u64, wanted: u64, buf: &mut [u8]) -> Result<(), Error> {
        let span = self.place(offset, offset + buf.len() as u64, wanted);
        let held = span.as_ref().and_then(|span| span.bytes_from(self, offset)).unwrap_or_default();
        match held.get(..buf.len()) {
            Some(bytes) => buf.copy_from_slice(bytes),
            None => self.read(part, offset, buf)?,
        }
        Ok(())
    }

    /// Finds the span that holds what is at `offset`, or decides what to read for it: `None` if that is up to `end` only.
    fn place(&self, offset: u64, end: u64, wanted: u64) -> Option<Arc<Span>> {
        let mut places = self.places.lock();
        if let Some(index) = places.iter().position(|place| place.span.is_some() && place.contains(offset)) {
            places[..=index].rotate_right(1);
            return places[0].span.clone();
        }
        let mut grown_bytes = 0;
        if let Some(index) = places.iter().position(|place| place.is_followed_by(offset)) {
            // It is the first to go: only a thread that lags behind may still want bytes of it.
            let before = places.remove(index);
            grown_bytes = 2 * (before.end - before.start);
            places.truncate(MAX_PLACES - 2);
            places.extend(before.span.is_some().then_some(before));
        }
        let reach = wanted.max(offset.saturating_add(grown_bytes)).min(offset.saturating_add(MAX_SPAN_BYTES));
        // Another thread that is further on in the same stream reads what it is at.
        let beyond =
            places.iter().filter(|place| place.span.is_some() && place.start > offset).map(|place| place.start);
        let reach = reach.min(self.len()).min(beyond.min().unwrap_or(u64::MAX)).max(end);
        let span = (reach > end).then(|| Arc::new(Span::new(offset..reach, grown_bytes >= MIN_STREAM_BYTES)));
        places.truncate(MAX_PLACES - 1);
        places.insert(0, Place { start: offset, end: reach, span: span.clone() });
        span
    }
}

impl Place {
    fn contains(&self, offset: u64) -> bool {
        (self.start..self.end).contains(&offset)
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.start < range.end && range.start < self.end
    }

    fn is_followed_by(&self, offset: u64) -> bool {
        (self.end..=self.end.saturating_add(MAX_GAP_BYTES)).contains(&offset)
    }
}

impl Span {
    fn new(range: Range<u64>, is_stream: bool) -> Self {
        let len_bytes = usize::try_from(range.end - range.start).expect("spans are at most 1 MiB");
        Self { start: range.start, len_bytes, is_stream, content: OnceLock::new() }
    }

    /// Its bytes from `offset` on, which is within it. As [`Span::bytes`].
    fn bytes_from(&self, storage: &Storage, offset: u64) -> Option<&[u8]> {
        self.bytes(storage)?.get(usize::try_from(offset - self.start).ok()?..)
    }

    /// Its bytes, read now or by the thread that came first. A failure is not the reader's who asks: it may be in a
    /// part of the span that nobody needs, so that each reads its own bytes again.
    fn bytes(&self, storage: &Storage) -> Option<&[u8]> {
        let content = self.content.get_or_init(|| {
            let mut frame = storage.frames.take();
            let buf = frame.get_mut(..self.len_bytes)?;
            let read = match self.is_stream {
                true => storage.bytes.read_stream_at(buf, self.start),
                false => storage.bytes.read_exact_at(buf, self.start),
            };
            read.ok()?;
            frame.truncate(self.len_bytes);
            Some(frame)
        });
        content.as_deref()
    }
}

fn with_scratch<R>(bytes: usize, work: impl FnOnce(&mut [u8]) -> Result<R, Error>) -> Result<R, Error> {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < bytes {
            scratch.resize(bytes, 0);
        }
        work(&mut scratch[..bytes])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    const KIB: u64 = 1 << 10;

    /// Bytes that are known by their offset, a log of what was read, and a place that cannot be read.
    #[derive(Debug, Default)]
    struct Logged {
        reads: Mutex<Vec<Range<u64>>>,
        broken: Option<u64>,
    }

    impl ReadAt for Logged {
        fn len(&self) -> u64 {
            64 << 20
        }

        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            let range = offset..offset + buf.len() as u64;
            if self.broken.is_some_and(|broken| range.contains(&broken)) {
                return Err(io::Error::other("broken"));
            }
            for (byte, at) in buf.iter_mut().zip(range.clone()) {
                *byte = content(at);
            }
            self.reads.lock().push(range);
            Ok(())
        }
    }

    fn content(offset: u64) -> u8 {
        u8::try_from(offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).unwrap()
    }

    fn storage(broken: Option<u64>) -> (Storage, Arc<Logged>) {
        let logged = Arc::new(Logged { broken, ..Logged::default() });
        (Storage::new(logged.clone()), logged)
    }

    /// Reads a block and checks it.
    fn block(storage: &Storage, offset: u64, bytes: u64, wanted: u64) -> Result<(), Error> {
        let needed = usize::try_from(bytes).unwrap();
        storage.with(Use::Once, Part::DataBlock, offset, needed, wanted, |found| {
            let expected: Vec<u8> = (offset..offset + bytes).map(content).collect();
            assert_eq!(found, expected, "{bytes} bytes at {offset}");
        })
    }

    #[test]
    fn what_is_read_here_and_there_is_read_exactly() {
        let (storage, logged) = storage(None);

        for place in [40, 3, 21, 9, 55] {
            block(&storage, place << 20, 50_000, 0).unwrap();
        }

        assert!(logged.reads.lock().iter().all(|read| read.end - read.start == 50_000));
        assert_eq!(logged.reads.lock().len(), 5);
    }

    #[test]
    fn a_walk_is_read_once_in_few_growing_spans() {
        let (storage, logged) = storage(None);

        for index in 0..400 {
            block(&storage, 100 + index * 50_001, 50_001, 0).unwrap();
        }

        let reads = logged.reads.lock();
        assert!(reads.len() < 30, "{} reads of 20 MB", reads.len());
        assert!(reads.iter().all(|read| read.end - read.start <= MAX_SPAN_BYTES));
        assert!(reads.windows(2).all(|pair| pair[0].end == pair[1].start), "{reads:?}");
    }

    #[test]
    fn neighbours_that_are_wanted_are_read_together() {
        let (storage, logged) = storage(None);

        block(&storage, 0, 60 * KIB, 120 * KIB).unwrap();
        block(&storage, 60 * KIB, 60 * KIB, 120 * KIB).unwrap();

        assert_eq!(logged.reads.lock().first(), Some(&(0..120 * KIB)));
        assert_eq!(logged.reads.lock().len(), 1);
    }

    #[test]
    fn what_is_announced_is_read_in_spans_of_full_length_and_once() {
        let (storage, logged) = storage(None);
        let announced = 5000..5000 + 5 * MAX_SPAN_BYTES / 2;

        storage.will_read(std::slice::from_ref(&announced));
        storage.will_read(std::slice::from_ref(&(announced.start + 100..announced.end)));
        let mut offset = announced.start;
        while offset < announced.end {
            let bytes = 50_000.min(announced.end - offset);
            block(&storage, offset, bytes, 0).unwrap();
            offset += bytes;
        }

        let second = announced.start + MAX_SPAN_BYTES;
        let third = second + MAX_SPAN_BYTES;
        assert_eq!(*logged.reads.lock(), [announced.start..second, second..third, third..announced.end]);
    }

    #[test]
    fn no_more_is_announced_than_may_lie_in_memory() {
        let (storage, _) = storage(None);

        storage.will_read(std::slice::from_ref(&(0..64 << 20)));

        assert_eq!(storage.places.lock().len(), MAX_PLACES);
        assert!(storage.places.lock().iter().any(|place| place.start == 0), "the first is read first");
    }

    #[test]
    fn two_walks_side_by_side_do_not_hinder_each_other() {
        let (storage, logged) = storage(None);

        for index in 0..100 {
            block(&storage, index * 50_000, 50_000, 0).unwrap();
            block(&storage, (32 << 20) + index * 50_000, 50_000, 0).unwrap();
        }

        assert!(logged.reads.lock().len() < 30);
    }

    #[test]
    fn a_thread_that_lags_behind_reads_only_up_to_where_another_is() {
        let (storage, logged) = storage(None);

        block(&storage, 200_000, 50_000, 400_000).unwrap();
        block(&storage, 100_000, 50_000, 400_000).unwrap();
        block(&storage, 150_000, 50_000, 400_000).unwrap();

        assert_eq!(*logged.reads.lock(), [200_000..400_000, 100_000..200_000]);
    }

    #[test]
    fn a_place_that_cannot_be_read_fails_only_who_needs_it() {
        let (storage, _) = storage(Some(150_000));

        block(&storage, 0, 50_000, 200_000).unwrap();
        block(&storage, 50_000, 50_000, 200_000).unwrap();
        assert!(matches!(block(&storage, 130_000, 50_000, 0), Err(Error::Read { .. })));
        block(&storage, 180_000, 50_000, 0).unwrap();
    }

    #[test]
    fn many_threads_read_a_span_once() {
        let (storage, logged) = storage(None);

        std::thread::scope(|scope| {
            for index in 0..8 {
                let storage = &storage;
                scope.spawn(move || block(storage, index * 50_000, 50_000, 400_000).unwrap());
            }
        });

        let bytes: u64 = logged.reads.lock().iter().map(|read| read.end - read.start).sum();
        assert!(bytes <= 2 * 400_000, "{bytes} bytes were read");
    }

    #[test]
    fn nothing_is_read_beyond_the_end() {
        let (storage, _) = storage(None);
        let end = 64 << 20;

        block(&storage, end - 100_000, 50_000, u64::MAX).unwrap();
        block(&storage, end - 50_000, 50_000, u64::MAX).unwrap();

        assert!(matches!(block(&storage, end - 10, 11, 0), Err(Error::Truncated { .. })));
    }
}
