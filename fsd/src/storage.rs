//! What an image's bytes are read from, with a count of what is asked of it and of the time that takes.
//!
//! The count is of the image's reader, not of the disk or the network: a local file may answer from the page cache, and
//! a remote object from the chunks on disk.

use serde::{Deserialize, Serialize};
use siphon_image::read_at::ReadAt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Another [`ReadAt`], counted by any number of threads without a lock.
#[derive(Debug)]
pub struct Storage {
    inner: Arc<dyn ReadAt>,
    reads: AtomicU64,
    bytes: AtomicU64,
    nanos: AtomicU64,
}

/// What was asked of a storage. The names are those of `siphon status --json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageUse {
    /// Reads, those that failed included.
    pub storage_reads: u64,
    /// Bytes that they returned.
    pub storage_bytes: u64,
    /// Nanoseconds that readers waited for their bytes, added up over all threads.
    pub storage_nanos: u64,
}

impl StorageUse {
    /// That of two storages together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            storage_reads: self.storage_reads + other.storage_reads,
            storage_bytes: self.storage_bytes + other.storage_bytes,
            storage_nanos: self.storage_nanos + other.storage_nanos,
        }
    }
}

impl Storage {
    /// Counts what is asked of `inner` from now on.
    pub fn new(inner: Arc<dyn ReadAt>) -> Self {
        let zero = AtomicU64::default;
        Self { inner, reads: zero(), bytes: zero(), nanos: zero() }
    }

    /// The present values. Each is exact; they are not taken at the same instant.
    pub fn usage(&self) -> StorageUse {
        StorageUse {
            storage_reads: self.reads.load(Ordering::Relaxed),
            storage_bytes: self.bytes.load(Ordering::Relaxed),
            storage_nanos: self.nanos.load(Ordering::Relaxed),
        }
    }

    fn count(&self, bytes: usize, read: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let start = Instant::now();
        let result = read();
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
        if result.is_ok() {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        result
    }
}

impl ReadAt for Storage {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.count(buf.len(), || self.inner.read_exact_at(buf, offset))
    }

    fn read_stream_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.count(buf.len(), || self.inner.read_stream_at(buf, offset))
    }

    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.count(buf.len(), || self.inner.read_once_at(buf, offset))
    }

    fn will_read(&self, range: Range<u64>) {
        self.inner.will_read(range);
    }

    fn may_read(&self, ranges: &[Range<u64>]) -> bool {
        self.inner.may_read(ranges)
    }

    fn discard(&self, range: Range<u64>) {
        self.inner.discard(range);
    }

    fn file_at(&self, offset: u64) -> Option<(&File, u64)> {
        self.inner.file_at(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a while to fill a buffer, unless it is read as a stream.
    #[derive(Debug)]
    struct Slow;

    impl ReadAt for Slow {
        fn len(&self) -> u64 {
            10
        }

        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            std::thread::sleep(std::time::Duration::from_millis(2));
            (0..10).collect::<Vec<u8>>().read_exact_at(buf, offset)
        }

        fn read_stream_at(&self, buf: &mut [u8], _offset: u64) -> io::Result<()> {
            buf.fill(99);
            Ok(())
        }
    }

    #[test]
    fn what_is_read_is_counted_and_passed_on() {
        let storage = Storage::new(Arc::new(Slow));
        let (mut buf, mut streamed) = ([0; 4], [0; 3]);

        storage.read_exact_at(&mut buf, 2).unwrap();
        storage.read_exact_at(&mut buf, 8).unwrap_err();
        storage.read_stream_at(&mut streamed, 0).unwrap();

        let usage = storage.usage();
        assert_eq!((buf, streamed, storage.len()), ([2, 3, 4, 5], [99; 3], 10));
        assert_eq!((usage.storage_reads, usage.storage_bytes), (3, 7));
        assert!(usage.storage_nanos >= 4_000_000, "{usage:?}");
    }
}
