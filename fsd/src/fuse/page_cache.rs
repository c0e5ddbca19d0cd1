//! Puts bytes of a file into the kernel's page cache before anyone asks for them (`FUSE_NOTIFY_STORE`).
//!
//! The FUSE library can send the same message, but copies all of its bytes into a fresh buffer first.

use nix::libc;
use siphon_overlay::view::Ino;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

/// `FUSE_NOTIFY_STORE` of `linux/fuse.h`, where an answer has its error number.
const NOTIFY_STORE: i32 = 4;

/// `struct fuse_out_header` and `struct fuse_notify_store_out`.
const HEADER_BYTES: usize = 16 + 24;

/// The page cache of one mount.
#[derive(Debug)]
pub(super) struct PageCache {
    device: File,
    /// Threads that may put something into it now.
    free: AtomicUsize,
}

/// The permission to put something into the page cache.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    cache: &'a PageCache,
}

impl PageCache {
    /// For a mounted `/dev/fuse` that `workers` threads serve. The kernel lets the one who stores a page wait for who
    /// reads it, so that half of the workers are always left to answer.
    pub(super) fn new(device: File, workers: usize) -> Self {
        Self { device, free: AtomicUsize::new(workers / 2) }
    }

    /// Lets the caller store, unless too many threads do it already.
    pub(super) fn permit(&self) -> Option<Permit<'_>> {
        let taken = self.free.fetch_update(Ordering::Acquire, Ordering::Relaxed, |free| free.checked_sub(1));
        taken.ok().map(|_| Permit { cache: self })
    }
}

impl Permit<'_> {
    /// Stores `data`, which is the file's content from `offset` on. `false` if the kernel does not know the file.
    ///
    /// # Errors
    /// If the connection is gone or the kernel has no memory.
    pub(super) fn store(&self, ino: Ino, offset: u64, data: &[u8]) -> io::Result<bool> {
        let mut header = [0; HEADER_BYTES];
        let len = |bytes: usize| u32::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        header[..4].copy_from_slice(&len(HEADER_BYTES + data.len())?.to_ne_bytes());
        header[4..8].copy_from_slice(&NOTIFY_STORE.to_ne_bytes());
        header[16..24].copy_from_slice(&ino.0.to_ne_bytes());
        header[24..32].copy_from_slice(&offset.to_ne_bytes());
        header[32..36].copy_from_slice(&len(data.len())?.to_ne_bytes());
        match (&self.cache.device).write_vectored(&[IoSlice::new(&header), IoSlice::new(data)]) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            outcome => outcome.map(|_| true),
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.cache.free.fetch_add(1, Ordering::Release);
    }
}
