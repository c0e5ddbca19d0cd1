//! Chunks of remote objects, kept on disk for all images and all processes of a user.
//!
//! A chunk is absent, being filled, or complete; only eviction takes it back. The first who wants an absent chunk gets a
//! [`Claim`] on it and on absent neighbours, and fetches them; whoever wants one of them meanwhile waits and gets the
//! same bytes, as soon as they are there, or the same error. After an error the chunk is absent again, and the next who
//! asks tries anew.
//!
//! ```text
//! DIR/v2/KEY/00012.pack  64 MiB of the object at their own offsets, a hole where a chunk is absent; behind them 8 bytes
//!                        for each chunk: zeros, or "DONE" and the CRC-32 of the chunk, little-endian
//! DIR/v2/KEY/meta.json   url (redacted), len_bytes, validator: for people, and for a start without network
//! DIR/v2/KEY/pinned      is never evicted
//! DIR/v2/names/NAME      which KEY an address led to, the last time that it could be asked
//! ```
//!
//! `KEY` stands for one content: the digest of the bytes where that is known, else one version of one object. So a chunk
//! has one possible content, two images with the same blob share it, and several processes, on several nodes if the
//! directory is on a shared file system, use it without locks: at worst two fetch a chunk and write the same bytes.
//!
//! A chunk's record is written after its bytes, but nothing is synced, which would cost a disk flush for each chunk: after
//! a crash, or from another node of a cluster, the record may be seen without the bytes. So each process checks a chunk
//! against its CRC-32 before it first serves from it, and takes a torn one for absent. The same goes for a chunk that the
//! disk fails to read. What is assumed of a file system is that a rename is whole or not at all, and that what one
//! process writes into a page does not change what another one wrote into a different page.
//!
//! The directory is kept to a quota by removing whole packs, the least recently used first (`cache/quota.rs`). A pack that
//! was removed is read on by whoever has it open, and is made anew by the next who stores.
//!
//! A disk that is full, or fails to write otherwise, is no reason to fail: there is one warning, the bytes are served all
//! the same, and the last ones are kept in memory, so that small reads in a row do not fetch their chunk each time. Now
//! and then it is tried again.
//!
//! Lock order: `fills`, then `unstored` or a fill's own, then that of the open packs. No lock is held during a fetch.
//! Nothing here knows about files or images: see [`crate::blob`] for ranges.

mod entries;
mod fill;
mod names;
mod packs;
mod pins;
mod quota;

use std::collections::{HashMap, VecDeque};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::source::SourceError;
use fill::{Fill, Outcome};
use packs::Packs;
use quota::Quota;

pub use entries::Entry;
pub use fill::Run;
pub use names::Named;
pub(crate) use packs::write_whole;
pub use quota::DEFAULT_QUOTA_BYTES;

/// The bytes of a chunk; the last one of an object may be shorter.
///
/// A block of squashfs with its default size is 50 KiB or so when stored. Larger chunks would fetch bytes nobody asked for
/// where a program jumps about; what is read in order is fetched in runs of many.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// The longest object taken, whatever length a server claims.
pub const MAX_OBJECT_BYTES: u64 = 4 << 40;

/// The version of the layout on disk, so that another one is never misread. It covers the chunk size too.
const LAYOUT: &str = "v2";

/// Bytes of runs that could not be stored and are kept in memory.
const MAX_UNSTORED_BYTES: usize = 32 << 20;

/// What arrived of a run is stored, and handed out, in steps of so many chunks: 256 KiB.
const STEP_CHUNKS: u32 = 4;

/// After a failure to write, nothing is stored for so long, in seconds.
const PAUSE_SECONDS: u64 = 30;

/// A directory of chunks.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    quota: Arc<Quota>,
}

/// How often the files of an object are opened while it is being removed.
const OPEN_ATTEMPTS: u32 = 8;

/// What an object is, for people who look into the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The redacted URL.
    pub url: String,
    /// The length in bytes.
    pub len_bytes: u64,
    /// What tells this version from others.
    pub validator: String,
}

/// Why chunks cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory, or one below it, cannot be made or used.
    #[error("cannot use the cache directory {path}; check its permissions or choose another")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Someone else could put bytes into it.
    #[error("the cache directory {path} belongs to user {owner}; choose another that is yours")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// The object is longer than [`MAX_OBJECT_BYTES`].
    #[error("{url} claims {len_bytes} bytes, more than the {MAX_OBJECT_BYTES} an image may have; check the URL")]
    TooLong {
        /// The redacted URL.
        url: String,
        /// The length in bytes.
        len_bytes: u64,
    },
}

impl Cache {
    /// Opens the cache in `dir`, made with mode 0700 if it is missing and set to it if others may enter, as the directory
    /// of its objects is.
    ///
    /// # Errors
    /// If it cannot be used, or belongs to another user.
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        Self::open_with(dir, DEFAULT_QUOTA_BYTES)
    }

    /// The same as [`Cache::open`], kept to about `quota_bytes` of what is not pinned.
    ///
    /// # Errors
    /// The same as [`Cache::open`].
    pub fn open_with(dir: &Path, quota_bytes: u64) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Directory { path: dir.to_owned(), source };
        make_private(dir).map_err(failed)?;
        for directory in [dir, &dir.join(LAYOUT)] {
            let meta = match fs::metadata(directory) {
                // Made with the first object, which a full disk is no reason to refuse.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                meta => meta.map_err(failed)?,
            };
            check_owner(directory, &meta)?;
            if meta.mode() & 0o077 != 0 {
                fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed)?;
            }
        }
        Ok(Self { dir: dir.to_owned(), quota: Arc::new(Quota::new(&dir.join(LAYOUT), quota_bytes)) })
    }

    /// Opens the chunks of the object known by `key`, a hex string that stands for one content.
    ///
    /// A full disk is no error: the object then lives without it.
    ///
    /// # Errors
    /// If the object is too long or its files cannot be opened.
    pub fn object(&self, key: &str, description: &Description) -> Result<Arc<Object>, CacheError> {
        let Description { url, len_bytes, .. } = description;
        let chunks = u32::try_from(len_bytes.div_ceil(CHUNK_BYTES as u64)).ok();
        let chunks = chunks.filter(|_| *len_bytes <= MAX_OBJECT_BYTES);
        let chunks = chunks.ok_or_else(|| CacheError::TooLong { url: url.clone(), len_bytes: *len_bytes })?;
        let path = self.dir.join(LAYOUT).join(key);
        let packs = match open_packs(&path, description) {
            Ok(packs) => Some(packs),
            Err(error) if is_full(&error) => {
                tracing::warn!(url, dir = %path.display(), %error, "cannot cache; every read goes to the server");
                None
            }
            Err(source) => return Err(CacheError::Directory { path, source }),
        };
        self.quota.check();
        Ok(Arc::new(Object::new(description.clone(), chunks, packs, self.quota.clone())))
    }
}

/// Makes a directory that nobody else can enter, and those above it, if they are missing.
fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Nobody else's bytes are taken for ours.
fn check_owner(dir: &Path, meta: &fs::Metadata) -> Result<(), CacheError> {
    if meta.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(CacheError::Foreign { path: dir.to_owned(), owner: meta.uid() })
}

/// Opens the object in `dir`, which may be taken away between two steps of that.
fn open_packs(dir: &Path, description: &Description) -> io::Result<Packs> {
    let mut opened = Packs::open(dir, description);
    for _ in 1..OPEN_ATTEMPTS {
        match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => opened = Packs::open(dir, description),
            opened => return opened,
        }
    }
    opened
}

/// The chunks of one object. Chunks are numbered from 0.
#[derive(Debug)]
pub struct Object {
    description: Description,
    chunks: u32,
    packs: Option<Packs>,
    quota: Arc<Quota>,
    /// What went wrong with storing, if something did.
    trouble: Mutex<Option<Instant>>,
    warned: AtomicBool,
    stored_bytes: AtomicU64,
    fills: Mutex<HashMap<u32, Arc<Fill>>>,
    /// The runs fetched last that could not be stored, the latest first.
    unstored: Mutex<VecDeque<Arc<Run>>>,
}

/// What [`Object::read`] found.
#[derive(Debug)]
pub enum Found {
    /// The bytes were on disk and are in the buffer.
    Stored,
    /// The bytes were in memory, most often because another reader had just fetched them, and are in the buffer.
    Fetched,
    /// The chunk is absent, and this caller is to fetch it.
    Absent(Claim),
}

impl Object {
    fn new(description: Description, chunks: u32, packs: Option<Packs>, quota: Arc<Quota>) -> Self {
        let (trouble, fills, unstored) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (warned, stored_bytes) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { description, chunks, packs, quota, trouble, warned, stored_bytes, fills, unstored }
    }

    /// What it is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// How many chunks it has.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Fills `buf` from `start_bytes` into `chunk`, or gives a claim on it and on absent chunks next to it, of those that
    /// `around` names. Waits for a fill in progress. `around` is called only if `chunk` is absent.
    ///
    /// # Errors
    /// The error of the fill that was waited for.
    ///
    /// # Panics
    /// If the range is not within the chunk and the object.
    pub fn read(
        self: &Arc<Self>,
        chunk: u32,
        start_bytes: usize,
        buf: &mut [u8],
        around: impl Fn() -> Range<u32>,
    ) -> Result<Found, Arc<SourceError>> {
        let end = start_bytes.checked_add(buf.len());
        assert!(chunk < self.chunks && end.is_some_and(|end| end <= self.chunk_len(chunk)), "reads stay in a chunk");
        loop {
            if self.read_stored(chunk, start_bytes, buf) {
                return Ok(Found::Stored);
            }
            let run = match self.join_or_claim(chunk, around()) {
                Joined::Claimed(claim) => return Ok(Found::Absent(claim)),
                Joined::InMemory(run) => run,
                Joined::Filling(fill) => match fill.wait(chunk) {
                    Outcome::Filled(run) => run,
                    Outcome::Failed(error) => return Err(error),
                    Outcome::Stored | Outcome::Abandoned => continue,
                },
                Joined::JustStored => continue,
            };
            if let Some(bytes) = run.bytes_from(chunk, start_bytes).get(..buf.len()) {
                buf.copy_from_slice(bytes);
                return Ok(Found::Fetched);
            }
        }
    }

    /// A claim on the first of `chunks` and the absent ones after it; `None` if it is there or being filled.
    pub fn claim(self: &Arc<Self>, chunks: Range<u32>) -> Option<Claim> {
        if chunks.is_empty() || !self.is_absent(chunks.start) {
            return None;
        }
        match self.join_or_claim(chunks.start, chunks) {
            Joined::Claimed(claim) => Some(claim),
            Joined::InMemory(_) | Joined::Filling(_) | Joined::JustStored => None,
        }
    }

    /// A claim on all from the first absent of `chunks` to the last one, complete ones between them included: one request
    /// costs less than two. It ends before what is being filled. `None` if nothing is absent.
    pub fn claim_through(self: &Arc<Self>, chunks: Range<u32>) -> Option<Claim> {
        let chunks = chunks.start..chunks.end.min(self.chunks);
        let first = chunks.clone().find(|chunk| self.is_absent(*chunk))?;
        // The disk is asked before the lock is taken.
        let last = (first..chunks.end).rev().find(|chunk| !self.is_recorded(*chunk)).unwrap_or(first);
        let mut fills = self.fills.lock();
        // What was filled since is seen here: a fill leaves the map after it is stored.
        let is_had = |chunk: u32| fills.contains_key(&chunk) || self.is_verified(chunk);
        if is_had(first) || self.is_in_memory(first) {
            drop(fills);
            return self.claim_through(first + 1..chunks.end);
        }
        let last = (first..=last).rev().find(|chunk| !is_had(*chunk)).unwrap_or(first);
        let end = (first..=last).take_while(|chunk| !fills.contains_key(chunk)).last().unwrap_or(first) + 1;
        let fill = Arc::new(Fill::new(first));
        fills.extend((first..end).map(|claimed| (claimed, fill.clone())));
        Some(Claim { object: self.clone(), first, stored: first, end, fill, ended: false })
    }

    /// Has these chunks be absent: what is stored of them is not what it should be.
    pub fn discard(&self, chunks: Range<u32>) {
        self.unstored.lock().retain(|run| chunks.clone().all(|chunk| run.bytes_from(chunk, 0).is_empty()));
        let Some(packs) = &self.packs else { return };
        for chunk in chunks.start..chunks.end.min(self.chunks) {
            if let Err(error) = packs.discard(chunk) {
                tracing::warn!(url = self.description.url, chunk, %error, "cannot discard a cached chunk");
            }
        }
    }

    /// Whether nobody has `chunk` yet, nor is fetching it.
    pub fn is_absent(&self, chunk: u32) -> bool {
        !self.is_recorded(chunk) && !self.fills.lock().contains_key(&chunk) && !self.is_in_memory(chunk)
    }

    /// Whether what is fetched is stored at present.
    pub fn stores(&self) -> bool {
        let is_over = |since: Instant| since.elapsed().as_secs() >= PAUSE_SECONDS;
        self.packs.is_some() && self.trouble.lock().is_none_or(is_over)
    }

    /// The length of `chunk` in bytes; less than [`CHUNK_BYTES`] only for the last one.
    fn chunk_len(&self, chunk: u32) -> usize {
        let start = u64::from(chunk) * CHUNK_BYTES as u64;
        let left = self.description.len_bytes.saturating_sub(start);
        usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES))
    }

    /// Whether `buf` could be filled from disk.
    fn read_stored(&self, chunk: u32, start_bytes: usize, buf: &mut [u8]) -> bool {
        let Some(packs) = &self.packs else { return false };
        let read = packs.read_verified(chunk, start_bytes, buf).and_then(|read| match read {
            true => Ok(true),
            false => Ok(packs.read_checked(chunk, self.chunk_len(chunk))?.is_some_and(|bytes| {
                buf.copy_from_slice(&bytes[start_bytes..start_bytes + buf.len()]);
                true
            })),
        });
        read.unwrap_or_else(|error| {
            tracing::warn!(url = self.description.url, chunk, %error, "cannot read a cached chunk; fetching it again");
            packs.forget(chunk);
            false
        })
    }

    fn join_or_claim(self: &Arc<Self>, chunk: u32, around: Range<u32>) -> Joined {
        // The disk is asked before the lock is taken.
        let after = (chunk + 1..around.end.min(self.chunks)).take_while(|next| !self.is_recorded(*next)).count();
        let before = (around.start..chunk).rev().take_while(|next| !self.is_recorded(*next)).count();
        let mut fills = self.fills.lock();
        if let Some(fill) = fills.get(&chunk) {
            return Joined::Filling(fill.clone());
        }
        // What was filled since the caller looked is seen here: a fill leaves the map after it is stored.
        if self.is_verified(chunk) {
            return Joined::JustStored;
        }
        if let Some(run) = self.unstored.lock().iter().find(|run| !run.bytes_from(chunk, 0).is_empty()) {
            return Joined::InMemory(run.clone());
        }
        let is_free = |next: &u32| !(fills.contains_key(next) || self.is_verified(*next));
        let end = (chunk + 1..self.chunks).take(after).take_while(is_free).last().unwrap_or(chunk) + 1;
        let first = (around.start..chunk).rev().take(before).take_while(is_free).last().unwrap_or(chunk);
        let fill = Arc::new(Fill::new(first));
        fills.extend((first..end).map(|claimed| (claimed, fill.clone())));
        Joined::Claimed(Claim { object: self.clone(), first, stored: first, end, fill, ended: false })
    }

    /// Whether the disk claims to have `chunk`, or there is no such chunk.
    fn is_recorded(&self, chunk: u32) -> bool {
        chunk >= self.chunks || self.packs.as_ref().is_some_and(|packs| packs.is_recorded(chunk))
    }

    fn is_in_memory(&self, chunk: u32) -> bool {
        self.unstored.lock().iter().any(|run| !run.bytes_from(chunk, 0).is_empty())
    }

    fn is_verified(&self, chunk: u32) -> bool {
        self.packs.as_ref().is_some_and(|packs| packs.is_verified(chunk))
    }

    /// Whether `bytes`, which begin with `chunk`, are on disk now.
    fn store(&self, chunk: u32, bytes: &[u8]) -> bool {
        let Some(packs) = self.packs.as_ref().filter(|_| self.stores()) else { return false };
        match packs.write(chunk, bytes) {
            Ok(()) => {
                self.stored_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                self.quota.stored(bytes.len() as u64);
                true
            }
            Err(error) => {
                *self.trouble.lock() = Some(Instant::now());
                if !self.warned.swap(true, Ordering::Relaxed) {
                    let (url, dir) = (&self.description.url, packs.dir().display());
                    tracing::warn!(url, %dir, %error, "cannot cache; what is missing is read from the server");
                }
                false
            }
        }
    }

    fn keep_in_memory(&self, run: &Arc<Run>) {
        let mut unstored = self.unstored.lock();
        unstored.push_front(run.clone());
        let mut bytes = 0;
        unstored.retain(|run| {
            let fits = bytes == 0 || bytes + run.len_bytes() <= MAX_UNSTORED_BYTES;
            bytes += run.len_bytes();
            fits
        });
    }
}

/// How an absent chunk is to be had.
enum Joined {
    Claimed(Claim),
    Filling(Arc<Fill>),
    InMemory(Arc<Run>),
    JustStored,
}

/// The duty to fetch some neighbouring chunks. Others wait for it to end; dropped without one, they try themselves.
#[derive(Debug)]
pub struct Claim {
    object: Arc<Object>,
    first: u32,
    /// The first chunk that is not stored yet.
    stored: u32,
    end: u32,
    fill: Arc<Fill>,
    ended: bool,
}

impl Claim {
    /// The offset of the first claimed byte in the object.
    pub fn offset(&self) -> u64 {
        u64::from(self.first) * CHUNK_BYTES as u64
    }

    /// The claimed bytes' number.
    pub fn len_bytes(&self) -> usize {
        (self.first..self.end).map(|chunk| self.object.chunk_len(chunk)).sum()
    }

    /// The number of the first claimed chunk.
    pub fn first_chunk(&self) -> u32 {
        self.first
    }

    /// The number of the chunk after the last claimed one.
    pub fn end_chunk(&self) -> u32 {
        self.end
    }

    /// Stores what of the claimed bytes has `arrived`, from the first one on, and hands it to those who wait for it.
    pub fn advance(&mut self, arrived: &[u8]) {
        let whole = u32::try_from(arrived.len() / CHUNK_BYTES).unwrap_or(u32::MAX);
        let until = self.first.saturating_add(whole).min(self.end);
        if until.saturating_sub(self.stored) < STEP_CHUNKS {
            return;
        }
        let chunks = |count: u32| count as usize * CHUNK_BYTES;
        let new = &arrived[chunks(self.stored - self.first)..chunks(until - self.first)];
        if self.object.store(self.stored, new) {
            let mut fills = self.object.fills.lock();
            for chunk in self.stored..until {
                fills.remove(&chunk);
            }
            drop(fills);
            self.stored = until;
            self.fill.stored(until);
        }
    }

    /// Stores `bytes`, all that was claimed, and hands them to those who wait.
    ///
    /// # Panics
    /// If `bytes` are more or fewer than were claimed.
    pub fn complete(mut self, bytes: Vec<u8>) -> Arc<Run> {
        assert_eq!(bytes.len(), self.len_bytes(), "a claim is completed with all of its bytes");
        let run = Arc::new(Run::new(self.first, bytes));
        let rest = run.bytes_from(self.stored, 0);
        if !rest.is_empty() && !self.object.store(self.stored, rest) {
            self.object.keep_in_memory(&run);
        }
        self.end(Outcome::Filled(run.clone()));
        run
    }

    /// Hands `error` to those who wait.
    pub fn fail(mut self, error: Arc<SourceError>) {
        self.end(Outcome::Failed(error));
    }

    fn end(&mut self, outcome: Outcome) {
        self.ended = true;
        let mut fills = self.object.fills.lock();
        for chunk in self.stored..self.end {
            fills.remove(&chunk);
        }
        drop(fills);
        self.fill.end(outcome);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Outcome::Abandoned);
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
