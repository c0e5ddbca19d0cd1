//! Fixed-size chunks of remote objects, kept on local disk.
//!
//! A chunk is absent, being filled, or complete. The first who wants an absent chunk gets a [`Claim`] on it and on
//! absent neighbours, and fetches them; whoever wants one of them meanwhile waits and gets the same bytes or the same
//! error. After an error the chunk is absent again, and the next who asks tries anew.
//!
//! ```text
//! DIR/v1/KEY/data       the object's bytes at their own offsets; a hole where a chunk is absent
//! DIR/v1/KEY/present    8 bytes for each chunk: zeros, or "DONE" and the CRC-32 of the chunk, little-endian
//! DIR/v1/KEY/meta.json  url (redacted), len_bytes, validator: for people and for later eviction
//! ```
//!
//! `KEY` stands for one version of one object, so a chunk has one possible content. Therefore several processes may
//! share the directory without locks: at worst two fetch a chunk and write the same bytes. A chunk's record is
//! written after its bytes, but nothing is synced, which would cost a disk flush for each chunk: after a power failure
//! the record may be there without the bytes. So each process checks a chunk against its CRC-32 before it first serves
//! from it, and takes a torn one for absent. The same goes for a chunk that the disk fails to read.
//!
//! A disk that is full, or fails to write otherwise, ends storing for this object in this process, with one warning;
//! the bytes are served all the same, and the run fetched last is kept in memory, so that small reads in a row do not
//! fetch their chunk each time.
//!
//! Lock order: `fills`, then `unstored` or a fill's own. No lock is held during a fetch, and complete chunks are read
//! without any. Nothing is evicted: the directory grows until someone takes objects out of it, which running daemons
//! survive. Nothing here knows about files or images: see [`crate::blob`] for ranges.

mod entries;
mod files;
mod fill;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::source::SourceError;
use files::Files;
use fill::{Fill, Outcome};

pub use entries::Entry;
pub use fill::Run;

/// The bytes of a chunk; the last one of an object may be shorter.
///
/// Two of squashfs's default blocks: a scattered small read costs 2 ms of a 1 Gbit/s link, a twentieth of a usual
/// round trip, so that larger chunks would fetch more bytes nobody asked for and save no time. Sequential reads are
/// fetched in runs of many chunks.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// The longest object taken. It bounds the bitmap in memory to 2 MiB, whatever length a server claims.
pub const MAX_OBJECT_BYTES: u64 = 4 << 40;

/// The version of the layout on disk, so that another one is never misread. It covers the chunk size too.
const LAYOUT: &str = "v1";

/// A directory of chunks.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
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
        let failed = |source| CacheError::Directory { path: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
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
        Ok(Self { dir: dir.to_owned() })
    }

    /// Opens the chunks of the object known by `key`, a hex string that stands for one content.
    ///
    /// A full disk is no error: the object then lives without it.
    ///
    /// # Errors
    /// If the object is too long or its files cannot be opened.
    pub fn object(&self, key: &str, description: &Description) -> Result<Object, CacheError> {
        let Description { url, len_bytes, .. } = description;
        let chunks = u32::try_from(len_bytes.div_ceil(CHUNK_BYTES as u64)).ok();
        let chunks = chunks.filter(|_| *len_bytes <= MAX_OBJECT_BYTES);
        let chunks = chunks.ok_or_else(|| CacheError::TooLong { url: url.clone(), len_bytes: *len_bytes })?;
        let path = self.dir.join(LAYOUT).join(key);
        let files = match open_files(&path, description) {
            Ok(files) => Some(files),
            Err(error) if is_full(&error) => {
                tracing::warn!(url, dir = %path.display(), %error, "cannot cache; every read goes to the server");
                None
            }
            Err(source) => return Err(CacheError::Directory { path, source }),
        };
        Ok(Object::new(description.clone(), chunks, files))
    }
}

/// Nobody else's bytes are taken for ours.
fn check_owner(dir: &Path, meta: &fs::Metadata) -> Result<(), CacheError> {
    if meta.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(CacheError::Foreign { path: dir.to_owned(), owner: meta.uid() })
}

/// Opens the files in `dir`, which may be taken away between two steps of that.
fn open_files(dir: &Path, description: &Description) -> io::Result<Files> {
    let mut opened = Files::open(dir, description);
    for _ in 1..OPEN_ATTEMPTS {
        match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => opened = Files::open(dir, description),
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
    files: Option<Files>,
    storing: AtomicBool,
    /// One bit for each chunk that this process wrote, or found complete and checked.
    verified: Box<[AtomicU64]>,
    fills: Mutex<HashMap<u32, Arc<Fill>>>,
    /// The run fetched last, if it could not be stored.
    unstored: Mutex<Option<Arc<Run>>>,
}

/// What [`Object::read`] found.
#[derive(Debug)]
pub enum Found<'a> {
    /// The bytes were on disk and are in the buffer.
    Stored,
    /// The bytes were in memory, most often because another reader had just fetched them, and are in the buffer.
    Fetched,
    /// The chunk is absent, and this caller is to fetch it.
    Absent(Claim<'a>),
}

impl Object {
    fn new(description: Description, chunks: u32, files: Option<Files>) -> Self {
        let verified = (0..chunks.div_ceil(u64::BITS)).map(|_| AtomicU64::new(0)).collect();
        let storing = AtomicBool::new(files.is_some());
        let (fills, unstored) = (Mutex::default(), Mutex::default());
        Self { description, chunks, files, storing, verified, fills, unstored }
    }

    /// Fills `buf` from `start_bytes` into `chunk`, or gives a claim on it and up to `most() - 1` absent chunks after
    /// it. Waits for a fill in progress. `most` is called only if `chunk` is absent.
    ///
    /// # Errors
    /// The error of the fill that was waited for.
    ///
    /// # Panics
    /// If the range is not within the chunk and the object.
    pub fn read(
        &self,
        chunk: u32,
        start_bytes: usize,
        buf: &mut [u8],
        most: impl Fn() -> u32,
    ) -> Result<Found<'_>, Arc<SourceError>> {
        let end = start_bytes.checked_add(buf.len());
        assert!(chunk < self.chunks && end.is_some_and(|end| end <= self.chunk_len(chunk)), "reads stay in a chunk");
        loop {
            if self.read_stored(chunk, start_bytes, buf) {
                return Ok(Found::Stored);
            }
            let run = match self.join_or_claim(chunk, most()) {
                Joined::Claimed(claim) => return Ok(Found::Absent(claim)),
                Joined::InMemory(run) => run,
                Joined::Filling(fill) => match fill.wait() {
                    Outcome::Filled(run) => run,
                    Outcome::Failed(error) => return Err(error),
                    Outcome::Abandoned => continue,
                },
                Joined::JustStored => continue,
            };
            if let Some(bytes) = run.bytes_from(chunk, start_bytes).get(..buf.len()) {
                buf.copy_from_slice(bytes);
                return Ok(Found::Fetched);
            }
        }
    }

    /// The length of `chunk` in bytes; less than [`CHUNK_BYTES`] only for the last one.
    fn chunk_len(&self, chunk: u32) -> usize {
        let start = u64::from(chunk) * CHUNK_BYTES as u64;
        let left = self.description.len_bytes.saturating_sub(start);
        usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES))
    }

    /// Whether `buf` could be filled from disk.
    fn read_stored(&self, chunk: u32, start_bytes: usize, buf: &mut [u8]) -> bool {
        let Some(files) = &self.files else { return false };
        let read = if self.is_verified(chunk) {
            files.read(chunk, start_bytes, buf).map(|()| true)
        } else {
            self.read_checked(files, chunk, start_bytes, buf)
        };
        read.unwrap_or_else(|error| {
            tracing::warn!(url = self.description.url, chunk, %error, "cannot read a cached chunk; fetching it again");
            self.set_verified(chunk, false);
            false
        })
    }

    /// Reads the whole chunk and compares it with its checksum.
    fn read_checked(&self, files: &Files, chunk: u32, start_bytes: usize, buf: &mut [u8]) -> io::Result<bool> {
        let Some(expected) = files.checksum(chunk)? else { return Ok(false) };
        let mut bytes = vec![0; self.chunk_len(chunk)];
        files.read(chunk, 0, &mut bytes)?;
        if files::checksum(&bytes) != expected {
            tracing::warn!(url = self.description.url, chunk, "a cached chunk fails its checksum; fetching it again");
            return Ok(false);
        }
        buf.copy_from_slice(&bytes[start_bytes..start_bytes + buf.len()]);
        self.set_verified(chunk, true);
        Ok(true)
    }

    fn join_or_claim(&self, chunk: u32, most: u32) -> Joined<'_> {
        // The disk is asked before the lock is taken.
        let absent = 1 + (1..most).take_while(|ahead| !self.is_recorded(chunk.saturating_add(*ahead))).count();
        let mut fills = self.fills.lock();
        if let Some(fill) = fills.get(&chunk) {
            return Joined::Filling(fill.clone());
        }
        // What was filled since the caller looked is seen here: a fill leaves the map after it is stored.
        if self.is_verified(chunk) {
            return Joined::JustStored;
        }
        if let Some(run) = self.unstored.lock().as_ref().filter(|run| !run.bytes_from(chunk, 0).is_empty()) {
            return Joined::InMemory(run.clone());
        }
        let fill = Arc::new(Fill::default());
        let free = |next: &u32| *next == chunk || !(fills.contains_key(next) || self.is_verified(*next));
        let end = (chunk..self.chunks).take(absent).take_while(free).last().map_or(chunk, |last| last + 1);
        fills.extend((chunk..end).map(|claimed| (claimed, fill.clone())));
        Joined::Claimed(Claim { object: self, first: chunk, end, fill, ended: false })
    }

    /// Whether the disk claims to have `chunk`, or there is no such chunk.
    fn is_recorded(&self, chunk: u32) -> bool {
        let recorded = |files: &Files| files.checksum(chunk).is_ok_and(|checksum| checksum.is_some());
        chunk >= self.chunks || self.is_verified(chunk) || self.files.as_ref().is_some_and(recorded)
    }

    fn store(&self, run: &Arc<Run>, first: u32, end: u32) {
        let stored = match &self.files {
            Some(files) if self.storing.load(Ordering::Relaxed) => files.write(first, run.bytes_from(first, 0)),
            _ => Err(io::ErrorKind::StorageFull.into()),
        };
        match stored {
            Ok(()) => (first..end).for_each(|chunk| self.set_verified(chunk, true)),
            Err(error) => {
                if self.storing.swap(false, Ordering::Relaxed) {
                    let url = &self.description.url;
                    tracing::warn!(url, %error, "cannot cache any more; reads of what is missing go to the server");
                }
                *self.unstored.lock() = Some(run.clone());
            }
        }
    }

    fn is_verified(&self, chunk: u32) -> bool {
        // Pairs with the release below: who sees the bit sees the bytes in the file.
        let (word, bit) = self.verified_bit(chunk);
        word.load(Ordering::Acquire) & bit != 0
    }

    fn set_verified(&self, chunk: u32, verified: bool) {
        let (word, bit) = self.verified_bit(chunk);
        if verified {
            word.fetch_or(bit, Ordering::Release);
        } else {
            word.fetch_and(!bit, Ordering::Release);
        }
    }

    fn verified_bit(&self, chunk: u32) -> (&AtomicU64, u64) {
        (&self.verified[(chunk / u64::BITS) as usize], 1 << (chunk % u64::BITS))
    }
}

/// How an absent chunk is to be had.
enum Joined<'a> {
    Claimed(Claim<'a>),
    Filling(Arc<Fill>),
    InMemory(Arc<Run>),
    JustStored,
}

/// The duty to fetch some neighbouring chunks. Others wait for it to end; dropped without one, they try themselves.
#[derive(Debug)]
pub struct Claim<'a> {
    object: &'a Object,
    first: u32,
    end: u32,
    fill: Arc<Fill>,
    ended: bool,
}

impl Claim<'_> {
    /// The offset of the first claimed byte in the object.
    pub fn offset(&self) -> u64 {
        u64::from(self.first) * CHUNK_BYTES as u64
    }

    /// The claimed bytes' number.
    pub fn len_bytes(&self) -> usize {
        (self.first..self.end).map(|chunk| self.object.chunk_len(chunk)).sum()
    }

    /// The number of the chunk after the last claimed one.
    pub fn end_chunk(&self) -> u32 {
        self.end
    }

    /// Stores `bytes`, all that was claimed, and hands them to those who wait.
    ///
    /// # Panics
    /// If `bytes` are more or fewer than were claimed.
    pub fn complete(mut self, bytes: Vec<u8>) -> Arc<Run> {
        assert_eq!(bytes.len(), self.len_bytes(), "a claim is completed with all of its bytes");
        let run = Arc::new(Run::new(self.first, bytes));
        self.object.store(&run, self.first, self.end);
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
        for chunk in self.first..self.end {
            fills.remove(&chunk);
        }
        drop(fills);
        self.fill.end(outcome);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Outcome::Abandoned);
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
