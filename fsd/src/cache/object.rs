//! The chunks of one object: what is on disk, what is being fetched, and what could not be stored.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::claim::Claim;
use super::fill::{Fill, Outcome};
use super::packs::Packs;
use super::quota::Quota;
use super::turns::{Turn, Turns};
use super::{CHUNK_BYTES, Description, Run};
use crate::source::SourceError;

/// Bytes of runs that could not be stored and are kept in memory.
const MAX_UNSTORED_BYTES: usize = 32 << 20;

/// After a failure to write, nothing is stored for so long, in seconds.
const PAUSE_SECONDS: u64 = 30;

/// The chunks of one object. Chunks are numbered from 0.
#[derive(Debug)]
pub struct Object {
    description: Description,
    chunks: u32,
    pub(super) packs: Option<Packs>,
    quota: Arc<Quota>,
    /// All chunks before it were on disk when that was asked.
    pub(super) first_absent: AtomicU32,
    turns: Turns,
    /// Whether this process stored something since all was held against its digest.
    pub(super) stored_since_check: AtomicBool,
    /// What went wrong with storing, if something did.
    trouble: Mutex<Option<Instant>>,
    warned: AtomicBool,
    fills: Mutex<HashMap<u32, Arc<Fill>>>,
    /// The runs fetched last that could not be stored, the latest first.
    pub(super) unstored: Mutex<VecDeque<Arc<Run>>>,
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
    pub(super) fn new(description: Description, chunks: u32, packs: Option<Packs>, quota: Arc<Quota>) -> Self {
        let (trouble, fills, unstored) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (warned, stored_since_check) = (AtomicBool::new(false), AtomicBool::new(false));
        let first_absent = AtomicU32::new(0);
        let turns = Turns::default();
        Self {
            description,
            chunks,
            packs,
            quota,
            first_absent,
            turns,
            stored_since_check,
            trouble,
            warned,
            fills,
            unstored,
        }
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
        Some(Claim::new(self.clone(), first..end, fill))
    }

    /// Has these chunks be absent: what is stored of them is not what it should be.
    pub fn discard(&self, chunks: Range<u32>) {
        self.unstored.lock().retain(|run| chunks.clone().all(|chunk| run.bytes_from(chunk, 0).is_empty()));
        let Some(packs) = &self.packs else { return };
        self.misses(chunks.start);
        self.will_store();
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
    pub fn chunk_len(&self, chunk: u32) -> usize {
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
        Joined::Claimed(Claim::new(self.clone(), first..end, fill))
    }

    /// Says that nobody is fetching these chunks any more.
    pub(super) fn end_fill(&self, chunks: Range<u32>) {
        let mut fills = self.fills.lock();
        for chunk in chunks {
            fills.remove(&chunk);
        }
    }

    /// Waits for other processes that fetch some of these chunks. What has to be kept while they are fetched here, if anything.
    pub(super) fn take_turn(&self, chunks: Range<u32>) -> Option<Turn> {
        let packs = self.packs.as_ref().filter(|_| self.stores())?;
        let first_absent = || packs.first_absent(chunks.start, chunks.end).unwrap_or(chunks.start);
        self.turns.take(packs.dir(), chunks.clone(), first_absent)
    }

    /// Whether `chunk` is on disk, as it should be.
    pub(super) fn has(&self, chunk: u32) -> bool {
        let Some(packs) = &self.packs else { return false };
        packs.is_verified(chunk) || matches!(packs.read_checked(chunk, self.chunk_len(chunk)), Ok(Some(_)))
    }

    /// Whether the disk claims to have `chunk`, or there is no such chunk.
    pub(super) fn is_recorded(&self, chunk: u32) -> bool {
        chunk >= self.chunks || self.packs.as_ref().is_some_and(|packs| packs.is_recorded(chunk))
    }

    fn is_in_memory(&self, chunk: u32) -> bool {
        self.unstored.lock().iter().any(|run| !run.bytes_from(chunk, 0).is_empty())
    }

    fn is_verified(&self, chunk: u32) -> bool {
        self.packs.as_ref().is_some_and(|packs| packs.is_verified(chunk))
    }

    /// Whether `bytes`, which begin with `chunk`, are on disk now.
    pub(super) fn store(&self, chunk: u32, bytes: &[u8]) -> bool {
        let Some(packs) = self.packs.as_ref().filter(|_| self.stores()) else { return false };
        self.will_store();
        match packs.write(chunk, bytes) {
            Ok(()) => {
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

    pub(super) fn keep_in_memory(&self, run: &Arc<Run>) {
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
