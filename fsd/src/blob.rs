//! A remote object as [`ReadAt`]: ranges are cut into chunks, chunks come from the cache, missing ones from the source.
//!
//! Neighbouring missing chunks of one read become one request, and a reader that goes on where an earlier fetch ended
//! gets some chunks ahead, more each time. The bytes of opening are kept as well, so that the header of an image costs
//! no second round trip.
//!
//! An object that was opened before can be opened without its server: what is cached is served, and the server is asked
//! when something is missing. It has to have the same version then; else reads of what is missing fail.

mod ahead;
mod check;
mod connection;
mod workers;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use siphon_image::read_at::ReadAt;

use crate::cache::{CHUNK_BYTES, Cache, CacheError, Claim, Description, Found, Named, Object, Run};
use crate::source::{Patience, Remote, SourceError};
use ahead::{Around, Readers};
use check::Check;
use connection::Connection;
use workers::Workers;

/// 8 MiB, the bound of one request: what is fetched at once is in memory at once, for each reader.
const MAX_RUN: u32 = (8 << 20) / CHUNK_BYTES as u32;

/// What opening a remote object is to bring: the header and descriptors of a SIF, and often the superblock of what is in it.
pub const FIRST_BYTES: u32 = CHUNK_BYTES as u32;

/// How often a chunk is fetched that does not stay on disk.
const MAX_STORE_ATTEMPTS: usize = 3;

/// Tables longer than this are not fetched at once: it may be that few of them are looked at.
const MAX_TABLES_BYTES: u64 = 64 << 20;

/// One version of a remote object, fetched as it is read.
#[derive(Debug)]
pub struct Blob {
    core: Arc<Core>,
    workers: Workers,
    cache: Cache,
    named: Named,
    readers: Mutex<Readers>,
    /// Whether a trace says what is read next, so that nothing is to be guessed.
    foreseen: AtomicBool,
    bytes_from_cache: AtomicU64,
    bytes_read: AtomicU64,
}

/// An object and the way to its server, for any thread.
#[derive(Debug)]
struct Core {
    connection: Connection,
    object: Arc<Object>,
    check: Check,
}

/// What a blob has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobCounters {
    /// HTTP requests, repeated ones included.
    pub requests: u64,
    /// Those of them that repeated a failed one.
    pub retries: u64,
    /// Bytes that came from the server, those read ahead included.
    pub bytes_fetched: u64,
    /// Bytes that were asked for twice, as the first answer was late: at most so many came beside those fetched.
    #[serde(default)]
    pub bytes_doubled: u64,
    /// Bytes given to readers from the disk.
    pub bytes_from_cache: u64,
    /// Bytes given to readers.
    pub bytes_read: u64,
    /// Whether all of it is kept, so that the server is not asked.
    pub pinned: bool,
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
    /// What was to be kept could not be stored.
    #[error(
        "there is no room for all of {url} in the cache directory; make some, or set SIPHON_CACHEDIR to a larger disk"
    )]
    Unstored {
        /// The redacted URL.
        url: String,
    },
}

impl BlobCounters {
    /// Those of two objects together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            retries: self.retries + other.retries,
            bytes_fetched: self.bytes_fetched + other.bytes_fetched,
            bytes_doubled: self.bytes_doubled + other.bytes_doubled,
            bytes_from_cache: self.bytes_from_cache + other.bytes_from_cache,
            bytes_read: self.bytes_read + other.bytes_read,
            pinned: self.pinned && other.pinned,
        }
    }
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
        let cache = Cache::open(cache_dir)?;
        let (named, remote) = match cache.named(url) {
            Some(known) if cache.is_pinned(&known.key) => (known, None),
            Some(known) => match connection::open_known(url, patience).map_err(Arc::new)? {
                Some(remote) => (named(&remote), Some(remote)),
                None => (known, None),
            },
            None => {
                let remote = Remote::open_with(url, FIRST_BYTES, patience).map_err(Arc::new)?;
                (named(&remote), Some(remote))
            }
        };
        if remote.is_some()
            && let Err(error) = cache.remember(url, &named)
        {
            tracing::debug!(%error, "cannot remember what a URL leads to");
        }
        let address = url.to_owned();
        let open = move || Remote::open_with(&address, FIRST_BYTES, patience);
        Self::connected(Connection::new(open, named, remote), cache)
    }

    /// An object that is open, with its chunks under `cache_dir`.
    ///
    /// # Errors
    /// If the cache directory cannot be used.
    pub fn over(remote: Remote, cache_dir: &Path) -> Result<Self, BlobError> {
        // It is connected for good, so that this is never asked.
        let name = remote.name().to_owned();
        let open = move || Err(SourceError::NotFound { name: name.clone(), status: 410 });
        Self::connected(Connection::new(open, named(&remote), Some(remote)), Cache::open(cache_dir)?)
    }

    /// The object `known`, with its chunks under `cache_dir`. `open` opens it at its server, which is asked once something
    /// is missing.
    ///
    /// # Errors
    /// If the cache directory cannot be used.
    pub fn apart(
        known: Named,
        open: impl Fn() -> Result<Remote, SourceError> + Send + Sync + 'static,
        cache_dir: &Path,
    ) -> Result<Self, BlobError> {
        Self::connected(Connection::new(open, known, None), Cache::open(cache_dir)?)
    }

    fn connected(connection: Connection, cache: Cache) -> Result<Self, BlobError> {
        let named = connection.named().clone();
        let object = cache.object(&named.key, &named.description)?;
        if let Some(remote) = connection.connected().filter(|remote| remote.is_opened()) {
            keep_first_chunks(&object, &remote);
        }
        let core = Arc::new(Core { connection, object, check: Check::of(&named) });
        // An earlier run may have fetched all of it, and not have come to this.
        core.check_soon();
        let (workers, readers, counter) = (Workers::new(core.clone()), Mutex::default(), AtomicU64::default);
        let (bytes_from_cache, bytes_read) = (counter(), counter());
        let foreseen = AtomicBool::new(false);
        Ok(Self { core, workers, cache, named, readers, foreseen, bytes_from_cache, bytes_read })
    }

    /// What this version of the object is known by: 64 hex digits. Equal ones mean equal bytes.
    pub fn identity(&self) -> &str {
        &self.named.key
    }

    /// What it is.
    pub fn named(&self) -> &Named {
        &self.named
    }

    /// The URL without credentials, query and fragment: fit for logs.
    pub fn name(&self) -> &str {
        &self.core.object.description().url
    }

    /// The length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.core.object.description().len_bytes
    }

    /// Whether it is served without its server ever being asked, until something is missing.
    pub fn is_pinned(&self) -> bool {
        self.cache.is_pinned(self.identity())
    }

    /// Has it kept in the cache, whatever the quota, or no longer.
    ///
    /// # Errors
    /// [`BlobError::Cache`] if that cannot be written down.
    pub fn set_pinned(&self, pinned: bool) -> Result<(), BlobError> {
        Ok(self.cache.set_pinned(self.identity(), pinned)?)
    }

    /// How many chunks it has.
    pub fn chunks(&self) -> u32 {
        self.core.object.chunks()
    }

    /// Whether `chunk` is neither there nor being fetched.
    pub fn is_absent(&self, chunk: u32) -> bool {
        self.core.object.is_absent(chunk)
    }

    /// Whether what is fetched is stored, so that fetching ahead is of use.
    pub fn stores(&self) -> bool {
        self.core.object.stores()
    }

    /// Fetches what is absent of `chunks`, in one request where nobody else is fetching some of them.
    ///
    /// # Errors
    /// [`BlobError::Source`].
    pub fn fetch(&self, chunks: Range<u32>) -> Result<(), BlobError> {
        self.core.fetch_range(chunks)
    }

    /// Has all of `chunks` on disk: fetches what is absent, and what fails its checksum.
    ///
    /// # Errors
    /// [`BlobError::Source`]; [`BlobError::Unstored`] if the disk does not take it.
    pub fn fetch_and_check(&self, chunks: Range<u32>) -> Result<(), BlobError> {
        self.fetch(chunks.clone())?;
        for chunk in chunks {
            let mut attempts = 0..MAX_STORE_ATTEMPTS;
            loop {
                match self.core.object.read(chunk, 0, &mut [], || chunk..chunk + 1)? {
                    Found::Stored => break,
                    _ if !self.stores() || attempts.next().is_none() => {
                        return Err(BlobError::Unstored { url: self.name().to_owned() });
                    }
                    // Someone else has just fetched it.
                    Found::Fetched => {}
                    Found::Absent(claim) => drop(self.core.fetch(claim, false)?),
                }
            }
        }
        Ok(())
    }

    /// Holds all of it against its digest, if that is known and was not done before. All of it has to be here.
    ///
    /// # Errors
    /// [`BlobError::Source`] if it is not what it should be; then what was cached is gone.
    pub fn check(&self) -> Result<(), BlobError> {
        Ok(self.core.check()?)
    }

    /// Says that someone else has held all of it against its digest.
    pub fn set_checked(&self) {
        if self.core.object.is_complete() {
            self.core.object.set_checked();
        }
    }

    /// Has what is absent of `chunks` fetched at once, without waiting for it: whoever reads some of it does.
    pub fn fetch_now(&self, chunks: Range<u32>) {
        let mut next = chunks.start;
        while next < chunks.end {
            let Some(claim) = self.core.object.claim_through(next..chunks.end) else { return };
            next = claim.end_chunk();
            // Without a thread, it is fetched when it is read.
            drop(self.workers.fetch(claim));
        }
    }

    /// Has what is absent of these chunks fetched some time, in this order, while readers go first.
    pub fn fetch_ahead(&self, ranges: impl IntoIterator<Item = Range<u32>>) {
        self.workers.fetch_ahead(ranges);
    }

    /// Says whether it is known what is read next: then nothing is guessed.
    pub fn set_foreseen(&self, foreseen: bool) {
        self.foreseen.store(foreseen, Ordering::Relaxed);
    }

    /// Whether nothing is left to be fetched ahead.
    pub fn is_idle(&self) -> bool {
        self.workers.is_idle()
    }

    /// What was done so far.
    pub fn counters(&self) -> BlobCounters {
        let traffic = self.core.connection.traffic();
        BlobCounters {
            requests: traffic.requests,
            retries: traffic.retries,
            bytes_fetched: traffic.bytes,
            bytes_doubled: traffic.doubled_bytes,
            bytes_from_cache: self.bytes_from_cache.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            pinned: self.is_pinned(),
        }
    }

    /// Fills the start of `buf`, at least one byte and at most up to the next chunk or the end of a fetch.
    fn read_some(&self, buf: &mut [u8], offset: u64) -> Result<usize, BlobError> {
        let chunk = chunk_of(offset);
        let start = usize::try_from(offset % CHUNK_BYTES as u64).expect("it is less than a chunk");
        let in_chunk = buf.len().min(CHUNK_BYTES - start);
        let needed = chunk_of(offset + buf.len() as u64 - 1) - chunk + 1;
        let around = || {
            let guessed = || self.readers.lock().missed(chunk);
            let around = if self.foreseen.load(Ordering::Relaxed) { Around::default() } else { guessed() };
            // Who needs as much as that anyway gets it without neighbours.
            let around = if needed > around.before + around.after { Around::default() } else { around };
            let end = chunk.saturating_add(needed.max(1 + around.after).min(MAX_RUN));
            chunk.saturating_sub(around.before)..end
        };
        loop {
            match self.core.object.read(chunk, start, &mut buf[..in_chunk], around)? {
                Found::Stored => {
                    self.bytes_from_cache.fetch_add(in_chunk as u64, Ordering::Relaxed);
                    return Ok(in_chunk);
                }
                Found::Fetched => return Ok(in_chunk),
                Found::Absent(claim) => {
                    let is_exact = claim.first_chunk() == chunk && claim.end_chunk() - chunk <= needed;
                    // What nobody asked for yet need not be waited for.
                    let claim = match if is_exact { Err(claim) } else { self.workers.fetch(claim) } {
                        Ok(()) => continue,
                        Err(claim) => claim,
                    };
                    let run = self.core.fetch(claim, true)?;
                    let bytes = run.bytes_from(chunk, start);
                    let len = bytes.len().min(buf.len());
                    if len == 0 {
                        // Another process has brought it.
                        continue;
                    }
                    buf[..len].copy_from_slice(&bytes[..len]);
                    return Ok(len);
                }
            }
        }
    }
}

impl Core {
    /// Fetches what was claimed. `is_read` says that a reader waits for it, beside those who wait for the claim.
    fn fetch(self: &Arc<Self>, mut claim: Claim, is_read: bool) -> Result<Arc<Run>, BlobError> {
        if !claim.take_turn() {
            let run = claim.complete(Vec::new());
            self.check_soon();
            return Ok(run);
        }
        let mut bytes = vec![0; claim.len_bytes()];
        let fetched = self.connection.remote().and_then(|remote| {
            let (offset, others_wait) = (claim.offset(), claim.is_waited_for());
            let is_waited_for = || is_read || others_wait();
            let fetched = remote.fetch_with(offset, &mut bytes, &mut |arrived| claim.advance(arrived), &is_waited_for);
            fetched.map_err(Arc::new)
        });
        match fetched {
            Ok(()) => {
                let run = claim.complete(bytes);
                self.check_soon();
                Ok(run)
            }
            Err(error) => {
                claim.fail(error.clone());
                Err(error.into())
            }
        }
    }

    fn fetch_range(self: &Arc<Self>, chunks: Range<u32>) -> Result<(), BlobError> {
        let mut next = chunks.start;
        while let Some(claim) = self.object.claim_through(next..chunks.end) {
            next = claim.end_chunk();
            self.fetch(claim, false)?;
        }
        Ok(())
    }
}

impl ReadAt for Blob {
    fn len(&self) -> u64 {
        self.core.object.description().len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len());
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if buf.is_empty() {
            return Ok(());
        }
        self.core.check.passed().map_err(|error| io::Error::other(BlobError::from(error)))?;
        let chunks = chunk_of(offset)..chunk_of(offset + buf.len() as u64 - 1) + 1;
        if self.foreseen.load(Ordering::Relaxed) {
            // What is to be fetched soon with others is fetched with them now, rather than alone and then once more around.
            if self.core.object.is_absent(chunks.start)
                && let Some(range) = self.workers.take_waiting(chunks.start)
            {
                self.fetch_now(range);
            }
        } else {
            let due = self.readers.lock().read(chunks);
            self.workers.fetch_ahead((!due.is_empty()).then_some(due));
        }
        let mut done = 0;
        while done < buf.len() {
            done += self.read_some(&mut buf[done..], offset + done as u64).map_err(io::Error::other)?;
        }
        self.bytes_read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn will_read(&self, range: Range<u64>) {
        let end = range.end.min(self.len());
        if range.start >= end || end - range.start > MAX_TABLES_BYTES {
            return;
        }
        let (first, end) = (chunk_of(range.start), chunk_of(end - 1) + 1);
        (first..end).step_by(MAX_RUN as usize).for_each(|chunk| self.fetch_now(chunk..end.min(chunk + MAX_RUN)));
    }

    fn discard(&self, range: Range<u64>) {
        let end = range.end.min(self.len());
        if range.start < end {
            self.core.object.discard(chunk_of(range.start)..chunk_of(end - 1) + 1);
        }
    }

    fn may_read(&self, ranges: &[Range<u64>]) -> bool {
        let within = ranges.iter().map(|range| range.start..range.end.min(self.len()));
        let within = within.filter(|range| range.start < range.end);
        if self.stores() && !self.foreseen.load(Ordering::Relaxed) {
            self.workers.fetch_ahead(within.map(|range| chunk_of(range.start)..chunk_of(range.end - 1) + 1));
        }
        true
    }
}

fn named(remote: &Remote) -> Named {
    let (url, len_bytes, validator) = (remote.name().to_owned(), remote.len_bytes(), remote.validator());
    Named { key: remote.identity(), description: Description { url, len_bytes, validator } }
}

/// Puts what opening brought into the cache, as far as it is not there.
fn keep_first_chunks(object: &Arc<Object>, remote: &Remote) {
    if let Some(claim) = object.claim(0..FIRST_BYTES / CHUNK_BYTES as u32) {
        let brought = claim.len_bytes();
        claim.complete(remote.first_bytes()[..brought].to_vec());
    }
}

/// The chunk that holds the byte at `offset`, which is within an object that the cache took.
fn chunk_of(offset: u64) -> u32 {
    u32::try_from(offset / CHUNK_BYTES as u64).expect("the cache takes no object of so many chunks")
}
