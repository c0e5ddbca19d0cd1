//! A remote object as [`ReadAt`]: ranges are cut into chunks, chunks come from the cache, missing ones from the source.
//!
//! Neighbouring missing chunks of one read become one request, and a reader that goes on where an earlier fetch ended
//! gets some chunks ahead, more each time. The bytes of opening, which are exactly the first chunk, are kept as well,
//! so that the header of an image costs no second round trip.

mod ahead;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;
use siphon_image::read_at::ReadAt;

use crate::cache::{CHUNK_BYTES, Cache, CacheError, Claim, Description, Found, Object, Run};
use crate::source::{Patience, Remote, SourceError};
use ahead::Streams;

/// 8 MiB, the bound of one request: what is fetched at once is in memory at once, for each reader.
const MAX_RUN: u32 = 32;

/// What opening a remote object is to bring: exactly the first chunk.
pub const FIRST_BYTES: u32 = CHUNK_BYTES as u32;

/// One version of a remote object, fetched as it is read.
#[derive(Debug)]
pub struct Blob {
    remote: Remote,
    object: Object,
    identity: String,
    streams: Mutex<Streams>,
    bytes_from_cache: AtomicU64,
    bytes_read: AtomicU64,
}

/// What a blob has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BlobCounters {
    /// HTTP requests, repeated ones included.
    pub requests: u64,
    /// Those of them that repeated a failed one.
    pub retries: u64,
    /// Bytes that came from the server, those read ahead included.
    pub bytes_fetched: u64,
    /// Bytes given to readers from the disk.
    pub bytes_from_cache: u64,
    /// Bytes given to readers.
    pub bytes_read: u64,
}

/// Why a remote object cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The server, the network, or a change of the object. Shared, because all who waited for the fetch get it.
    #[error(transparent)]
    Source(#[from] Arc<SourceError>),
    /// The cache directory.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Blob {
    /// Opens the object at `url` and its chunks under `cache_dir`. Blocks for one request.
    ///
    /// # Errors
    /// If the object cannot be read in ranges, or the cache directory cannot be used.
    pub fn open(url: &str, cache_dir: &Path) -> Result<Self, BlobError> {
        Self::open_with(url, cache_dir, Patience::default())
    }

    /// The same as [`Blob::open`] with other bounds on time and attempts.
    ///
    /// # Errors
    /// The same as [`Blob::open`].
    pub fn open_with(url: &str, cache_dir: &Path, patience: Patience) -> Result<Self, BlobError> {
        // The directory first: its errors are found without the network.
        Cache::open(cache_dir)?;
        Self::over(Remote::open_with(url, FIRST_BYTES, patience).map_err(Arc::new)?, cache_dir)
    }

    /// An object that is open, with its chunks under `cache_dir`.
    ///
    /// # Errors
    /// If the cache directory cannot be used.
    pub fn over(remote: Remote, cache_dir: &Path) -> Result<Self, BlobError> {
        let cache = Cache::open(cache_dir)?;
        let identity = remote.identity();
        let description =
            Description { url: remote.name().to_owned(), len_bytes: remote.len_bytes(), validator: remote.validator() };
        let object = cache.object(&identity, &description)?;
        if remote.is_opened() {
            keep_first_chunk(&object, &remote)?;
        }
        let (streams, counter) = (Mutex::default(), AtomicU64::default);
        Ok(Self { remote, object, identity, streams, bytes_from_cache: counter(), bytes_read: counter() })
    }

    /// What this version of the object is known by: 64 hex digits. Equal ones mean equal bytes.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The URL without credentials, query and fragment: fit for logs.
    pub fn name(&self) -> &str {
        self.remote.name()
    }

    /// What was done so far.
    pub fn counters(&self) -> BlobCounters {
        let traffic = self.remote.traffic();
        BlobCounters {
            requests: traffic.requests,
            retries: traffic.retries,
            bytes_fetched: traffic.bytes,
            bytes_from_cache: self.bytes_from_cache.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
        }
    }

    /// Fills the start of `buf`, at least one byte and at most up to the next chunk or the end of a fetch.
    fn read_some(&self, buf: &mut [u8], offset: u64) -> Result<usize, BlobError> {
        let chunk = chunk_of(offset);
        let start = usize::try_from(offset % CHUNK_BYTES as u64).expect("it is less than a chunk");
        let in_chunk = buf.len().min(CHUNK_BYTES - start);
        let needed = chunk_of(offset + buf.len() as u64 - 1) - chunk + 1;
        let most = || needed.saturating_add(self.streams.lock().window_at(chunk)).min(MAX_RUN);
        match self.object.read(chunk, start, &mut buf[..in_chunk], most)? {
            Found::Stored => {
                self.bytes_from_cache.fetch_add(in_chunk as u64, Ordering::Relaxed);
                Ok(in_chunk)
            }
            Found::Fetched => Ok(in_chunk),
            Found::Absent(claim) => {
                let run = self.fetch(claim, chunk)?;
                let bytes = run.bytes_from(chunk, start);
                let len = bytes.len().min(buf.len());
                buf[..len].copy_from_slice(&bytes[..len]);
                Ok(len)
            }
        }
    }

    fn fetch(&self, claim: Claim<'_>, chunk: u32) -> Result<Arc<Run>, BlobError> {
        let mut bytes = vec![0; claim.len_bytes()];
        if let Err(error) = self.remote.fetch(claim.offset(), &mut bytes) {
            let error = Arc::new(error);
            claim.fail(error.clone());
            return Err(error.into());
        }
        self.streams.lock().fetched(chunk, claim.end_chunk());
        Ok(claim.complete(bytes))
    }
}

impl ReadAt for Blob {
    fn len(&self) -> u64 {
        self.remote.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len());
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buf.len() {
            done += self.read_some(&mut buf[done..], offset + done as u64).map_err(io::Error::other)?;
        }
        self.bytes_read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Puts what opening brought into the cache, if it is not there.
fn keep_first_chunk(object: &Object, remote: &Remote) -> Result<(), BlobError> {
    if let Found::Absent(claim) = object.read(0, 0, &mut [], || 1)? {
        claim.complete(remote.first_bytes().to_vec());
    }
    Ok(())
}

/// The chunk that holds the byte at `offset`, which is within an object that the cache took.
fn chunk_of(offset: u64) -> u32 {
    u32::try_from(offset / CHUNK_BYTES as u64).expect("the cache takes no object of so many chunks")
}
