//! A fetch in progress, and those who wait for it.

use std::sync::Arc;

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

    /// The bytes of the run from `start_bytes` into `chunk` on; empty if the run does not have them.
    pub fn bytes_from(&self, chunk: u32, start_bytes: usize) -> &[u8] {
        let skipped = chunk.checked_sub(self.first).and_then(|chunks| usize::try_from(chunks).ok());
        let offset = skipped.and_then(|chunks| chunks.checked_mul(CHUNK_BYTES)?.checked_add(start_bytes));
        offset.and_then(|offset| self.bytes.get(offset..)).unwrap_or_default()
    }
}

/// How a fill ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Filled(Arc<Run>),
    Failed(Arc<SourceError>),
    /// The filler gave up without saying why, as a panic makes it: whoever wants the chunk tries anew.
    Abandoned,
}

/// A fetch in progress.
#[derive(Debug, Default)]
pub(super) struct Fill {
    outcome: Mutex<Option<Outcome>>,
    ended: Condvar,
}

impl Fill {
    pub(super) fn end(&self, outcome: Outcome) {
        *self.outcome.lock() = Some(outcome);
        self.ended.notify_all();
    }

    /// Blocks until the fill ends, which the bounds of its source see to.
    pub(super) fn wait(&self) -> Outcome {
        let mut outcome = self.outcome.lock();
        loop {
            if let Some(outcome) = outcome.as_ref() {
                return outcome.clone();
            }
            self.ended.wait(&mut outcome);
        }
    }
}
