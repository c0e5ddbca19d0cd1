//! What is counted of one mount: what the kernel asks, what decoding does for it, and what is read from the storage
//! below. Names and units are the fields of [`Snapshot`] and of what it is made of.

use crate::storage::StorageUse;
use serde::{Deserialize, Serialize};
use siphon_image::tree::Activity;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of the requests to one mounted filesystem, raised by any thread without a lock.
#[derive(Debug, Default)]
pub struct Counters {
    lookups: AtomicU64,
    opens: AtomicU64,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    bytes_read_ahead: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    directory_reads: AtomicU64,
    failures: AtomicU64,
}

/// All values at one moment, as one flat object of JSON. Each is exact; they are not taken at the same instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What the kernel asked.
    #[serde(flatten)]
    pub requests: Requests,
    /// What the image's reader decoded, and what it found decoded.
    #[serde(flatten)]
    pub decoding: Activity,
    /// What the image's reader asked of the storage; all zero for a directory.
    #[serde(flatten)]
    pub storage: StorageUse,
}

/// What the kernel asked of a filesystem.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Names looked up, by `lookup` and by listings with attributes.
    pub lookups: u64,
    /// Files opened.
    pub opens: u64,
    /// Read requests of the kernel; reads that its page cache answers are not seen here.
    pub reads: u64,
    /// Bytes that those requests returned.
    pub bytes_read: u64,
    /// Bytes that were handed to the kernel before it asked for them.
    pub bytes_read_ahead: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes that they stored.
    pub bytes_written: u64,
    /// Directories listed.
    pub directory_reads: u64,
    /// Operations that failed because the image or the layer could not be read or written.
    pub failures: u64,
}

impl Counters {
    /// Counts one name looked up.
    pub fn lookup(&self) {
        self.lookups.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one file opened.
    pub fn open(&self) {
        self.opens.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one read of `bytes`.
    pub fn read(&self, bytes: usize) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts `bytes` that nobody asked for yet.
    pub fn read_ahead(&self, bytes: usize) {
        self.bytes_read_ahead.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts one write of `bytes`.
    pub fn write(&self, bytes: usize) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts one directory listed.
    pub fn directory_read(&self) {
        self.directory_reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one failure of the storage below.
    pub fn failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The present values.
    pub fn snapshot(&self) -> Requests {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Requests {
            lookups: get(&self.lookups),
            opens: get(&self.opens),
            reads: get(&self.reads),
            bytes_read: get(&self.bytes_read),
            bytes_read_ahead: get(&self.bytes_read_ahead),
            writes: get(&self.writes),
            bytes_written: get(&self.bytes_written),
            directory_reads: get(&self.directory_reads),
            failures: get(&self.failures),
        }
    }
}
