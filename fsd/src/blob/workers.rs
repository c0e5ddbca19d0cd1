//! Threads that fetch what nobody waits for yet, or of which a reader waits for the first bytes only.
//!
//! What a reader waits for goes first. Of the rest only some is fetched at a time, so that the readers keep a part of
//! the link. Threads start when there is work for them and end when there was none for a while.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Core;
use crate::cache::Claim;

/// Fetches at a time: as many as a mount has workers that may wait.
const MAX_THREADS: usize = 16;
/// Those of them that nobody waits for.
const MAX_AHEAD: usize = 4;
/// Ranges that wait to be fetched; what comes beyond is left to be asked for.
const MAX_WAITING: usize = 4096;
/// Chunks that a reader waits for which come before the one that it wants: 2 MiB.
const MAX_BEFORE: u32 = 32;
/// A thread without work ends after this.
const IDLE_TIME: Duration = Duration::from_secs(5);

/// The threads of one object.
#[derive(Debug)]
pub(super) struct Workers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    core: Arc<Core>,
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    claimed: VecDeque<Claim>,
    ahead: VecDeque<Range<u32>>,
    threads: usize,
    idle: usize,
    /// Threads that fetch what nobody waits for.
    ahead_now: usize,
    ended: bool,
}

enum Task {
    Claimed(Claim),
    Ahead(Range<u32>),
}

impl Workers {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { shared: Arc::new(Shared { core, work: Mutex::default(), changed: Condvar::new() }) }
    }

    /// Has what was claimed fetched; whoever wants some of it waits for that. Gives it back if nobody can.
    pub(super) fn fetch(&self, claim: Claim) -> Result<(), Claim> {
        let mut work = self.shared.work.lock();
        if !self.shared.has_thread_for(&mut work) {
            return Err(claim);
        }
        work.claimed.push_back(claim);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Has what of these chunks is absent fetched some time, in this order.
    pub(super) fn fetch_ahead(&self, ranges: impl IntoIterator<Item = Range<u32>>) {
        let mut work = self.shared.work.lock();
        for range in ranges {
            if work.ahead.len() == MAX_WAITING || !self.shared.has_thread_for(&mut work) {
                return;
            }
            work.ahead.push_back(range);
            self.shared.changed.notify_one();
        }
    }

    /// Takes the range that waits to be fetched and has `chunk` in it, for it to be fetched at once. What is far before
    /// that goes on waiting, as the next.
    pub(super) fn take_waiting(&self, chunk: u32) -> Option<Range<u32>> {
        let mut work = self.shared.work.lock();
        let index = work.ahead.iter().position(|range| range.contains(&chunk))?;
        let range = work.ahead.remove(index)?;
        if chunk - range.start <= MAX_BEFORE {
            return Some(range);
        }
        work.ahead.push_front(range.start..chunk);
        Some(chunk..range.end)
    }

    /// Whether nothing is left to be fetched ahead.
    pub(super) fn is_idle(&self) -> bool {
        let work = self.shared.work.lock();
        work.ahead.is_empty() && work.ahead_now == 0
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut work = self.shared.work.lock();
        work.ended = true;
        // Who waits for one of them tries by himself.
        work.claimed.clear();
        work.ahead.clear();
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Starts one more thread if all are busy. `false` if there is none at all.
    fn has_thread_for(self: &Arc<Self>, work: &mut Work) -> bool {
        let queued = work.claimed.len() + work.ahead.len().min(MAX_AHEAD);
        if work.idle <= queued && work.threads < MAX_THREADS {
            let shared = self.clone();
            let started = thread::Builder::new().name("fetch".to_owned()).spawn(move || shared.run());
            match started {
                Ok(_) => work.threads += 1,
                Err(error) => tracing::debug!(%error, "cannot start a thread that fetches"),
            }
        }
        work.threads > 0
    }

    fn run(&self) {
        while let Some(task) = self.next() {
            match task {
                Task::Claimed(claim) => {
                    // Its error is told to those who wait for it.
                    let _ = self.core.fetch(claim, false);
                }
                Task::Ahead(range) => {
                    let fetched = self.core.fetch_range(range);
                    let mut work = self.work.lock();
                    work.ahead_now -= 1;
                    if let Err(error) = fetched {
                        // The next ones would fail as well, and hold up those that somebody needs.
                        work.ahead.clear();
                        tracing::debug!(%error, "cannot fetch ahead");
                    }
                    // Another thread may have left one waiting.
                    self.changed.notify_one();
                }
            }
        }
    }

    /// Waits for something to do. `None` when this thread is to end.
    fn next(&self) -> Option<Task> {
        let mut work = self.work.lock();
        loop {
            if !work.ended {
                if let Some(claim) = work.claimed.pop_front() {
                    return Some(Task::Claimed(claim));
                }
                if work.ahead_now < MAX_AHEAD
                    && let Some(range) = work.ahead.pop_front()
                {
                    work.ahead_now += 1;
                    return Some(Task::Ahead(range));
                }
            }
            work.idle += 1;
            let waited = if work.ended { None } else { Some(self.changed.wait_for(&mut work, IDLE_TIME)) };
            work.idle -= 1;
            let has_work = !work.claimed.is_empty() || !work.ahead.is_empty();
            if waited.is_none_or(|waited| waited.timed_out() && !has_work) {
                work.threads -= 1;
                return None;
            }
        }
    }
}
