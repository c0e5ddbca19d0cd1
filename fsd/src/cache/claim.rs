//! The duty to fetch chunks, and what comes of it.

use std::ops::Range;
use std::sync::Arc;

use super::fill::{Fill, Outcome};
use super::object::Object;
use super::turns::Turn;
use super::{CHUNK_BYTES, Run};
use crate::source::SourceError;

/// What arrived of a run is stored, and handed out, in steps of so many chunks: 256 KiB.
const STEP_CHUNKS: u32 = 4;

/// The duty to fetch some neighbouring chunks. Others wait for it to end; dropped without one, they try themselves.
#[derive(Debug)]
pub struct Claim {
    object: Arc<Object>,
    first: u32,
    /// The first chunk that is not stored yet.
    stored: u32,
    end: u32,
    fill: Arc<Fill>,
    /// Keeps other processes from fetching the same.
    turn: Option<Turn>,
    ended: bool,
}

impl Claim {
    pub(super) fn new(object: Arc<Object>, chunks: Range<u32>, fill: Arc<Fill>) -> Self {
        Self { object, first: chunks.start, stored: chunks.start, end: chunks.end, fill, turn: None, ended: false }
    }

    /// Waits for other processes that fetch some of the same, and leaves out what they brought at either end. `false` if that
    /// is all: the claim is then to be completed with no bytes.
    pub fn take_turn(&mut self) -> bool {
        self.turn = self.object.take_turn(self.first..self.end);
        let claimed = self.first..self.end;
        let is_here = |chunk: u32| self.object.is_recorded(chunk) && self.object.has(chunk);
        let here = claimed.clone().take_while(|chunk| is_here(*chunk)).last();
        let first = here.map_or(claimed.start, |last| last + 1);
        let end = (first..claimed.end).rev().find(|chunk| !is_here(*chunk)).map_or(first, |last| last + 1);
        self.object.end_fill(claimed.start..first);
        self.object.end_fill(end..claimed.end);
        (self.first, self.stored, self.end) = (first, first, end);
        self.fill.stored(first);
        first < end
    }

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

    /// What says whether somebody waits for some of it, for as long as it is being fetched.
    pub fn is_waited_for(&self) -> impl Fn() -> bool + Sync + use<> {
        let fill = self.fill.clone();
        move || fill.is_waited_for()
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
            self.object.end_fill(self.stored..until);
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
        self.turn = None;
        self.object.end_fill(self.stored..self.end);
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
