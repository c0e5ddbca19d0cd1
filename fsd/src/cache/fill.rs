//! A fetch in progress, and those who wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use super::CHUNK_BYTES;
use crate::source::SourceError;

/// Neighbouring chunks that were fetched together, in memory.
pub struct Run {
    first: u32,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("first", &self.first).field("bytes", &self.bytes.len()).finish()
    }
}

impl Run {
    pub(super) fn new(first: u32, bytes: Vec<u8>) -> Self {
        Self { first, bytes }
    }

    /// Its bytes' number.
    pub(super) fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes of the run from `start_bytes` into `chunk` on; empty if the run does not have them.
    pub fn bytes_from(&self, chunk: u32, start_bytes: usize) -> &[u8] {
        let skipped = chunk.checked_sub(self.first).and_then(|chunks| usize::try_from(chunks).ok());
        let offset = skipped.and_then(|chunks| chunks.checked_mul(CHUNK_BYTES)?.checked_add(start_bytes));
        offset.and_then(|offset| self.bytes.get(offset..)).unwrap_or_default()
    }
}

/// How a fill ended for one of its chunks.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Filled(Arc<Run>),
    /// The chunk is on disk; others of the fill may not be yet.
    Stored,
    Failed(Arc<SourceError>),
    /// The filler gave up without saying why, as a panic makes it: whoever wants the chunk tries anew.
    Abandoned,
}

/// A fetch in progress.
#[derive(Debug)]
pub(super) struct Fill {
    state: Mutex<State>,
    changed: Condvar,
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct State {
    /// The chunks before this one are stored.
    stored: u32,
    outcome: Option<Outcome>,
}

impl Fill {
    /// A fetch of the chunks from `first` on.
    pub(super) fn new(first: u32) -> Self {
        let state = Mutex::new(State { stored: first, outcome: None });
        Self { state, changed: Condvar::new(), waiting: AtomicUsize::new(0) }
    }

    /// Says that the chunks before `until` are stored.
    pub(super) fn stored(&self, until: u32) {
        self.state.lock().stored = until;
        self.changed.notify_all();
    }

    pub(super) fn end(&self, outcome: Outcome) {
        self.state.lock().outcome = Some(outcome);
        self.changed.notify_all();
    }

    /// Blocks until `chunk` is there or the fill ends, which the bounds of its source see to.
    pub(super) fn wait(&self, chunk: u32) -> Outcome {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        let outcome = loop {
            if chunk < state.stored {
                break Outcome::Stored;
            }
            if let Some(outcome) = &state.outcome {
                break outcome.clone();
            }
            self.changed.wait(&mut state);
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    /// Whether somebody waits for some of it.
    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}
