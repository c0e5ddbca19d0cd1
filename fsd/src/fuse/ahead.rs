//! Reading ahead: threads that put into the kernel's page cache what is likely to be asked for next.
//!
//! They are threads of their own because the kernel lets the one who stores a page wait for who reads it, and he waits
//! for a worker. A request is answered by the worker that took it, so that none is slowed by this: only what nobody
//! asked for yet is handed over.

use super::store::{Batch, NotStored, Storer};
use crate::fs::{Expected, FileSystem};
use nix::libc;
use parking_lot::{Condvar, Mutex};
use siphon_overlay::view::Ino;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// What is read and stored at a time, at least if there is as much: two blocks of the usual size, and little enough for a processor's own cache.
const STORE_BYTES: usize = 256 << 10;

/// One thread for each processor and one more, since one waits for storage now and then; so many at most.
const MAX_THREADS: usize = 9;

/// What is waiting at most. What comes beyond is not read ahead: the readers are faster than these threads.
const MAX_WAITING: usize = 256;

/// What is to be read ahead for one mount, and the threads that do it.
#[derive(Debug)]
pub(super) struct ReadAhead {
    filesystem: Arc<FileSystem>,
    device: OwnedFd,
    /// `None` once the mount is gone.
    waiting: Mutex<Option<VecDeque<Expected>>>,
    changed: Condvar,
}

impl ReadAhead {
    /// For a mounted `/dev/fuse`.
    pub(super) fn new(filesystem: Arc<FileSystem>, device: OwnedFd) -> Self {
        Self { filesystem, device, waiting: Mutex::new(Some(VecDeque::new())), changed: Condvar::new() }
    }

    /// Starts the threads, which wait for something to do. With fewer than wanted, or none, less is read ahead.
    pub(super) fn start(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let threads = thread::available_parallelism().map_or(1, usize::from) + 1;
        let start = |_| {
            let ahead = self.clone();
            let started = thread::Builder::new().name("ahead".to_owned()).spawn(move || ahead.run());
            started.inspect_err(|error| tracing::warn!("cannot start a thread that reads ahead: {error}")).ok()
        };
        (0..threads.min(MAX_THREADS)).filter_map(start).collect()
    }

    /// Has `expected` read, each by one thread.
    pub(super) fn push(&self, expected: Vec<Expected>) {
        if expected.is_empty() {
            return;
        }
        if let Some(waiting) = &mut *self.waiting.lock() {
            for one in expected {
                if waiting.len() == MAX_WAITING {
                    self.give_up(&one);
                    continue;
                }
                match one {
                    // It is waited for already.
                    Expected::Loaded(..) => waiting.push_front(one),
                    Expected::InOrder(_) | Expected::Traced(_) | Expected::Beside(..) => waiting.push_back(one),
                }
                self.changed.notify_one();
            }
        }
    }

    /// Ends the threads, once the kernel has no request under way any more that one of them may wait for.
    pub(super) fn end(&self, threads: Vec<JoinHandle<()>>) {
        *self.waiting.lock() = None;
        self.changed.notify_all();
        for thread in threads {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }

    fn run(&self) {
        let mut storer = match Storer::start(self.device.as_fd()) {
            Ok(storer) => storer,
            Err(error) => return tracing::warn!("cannot read ahead: {error}"),
        };
        let mut batch = Batch::default();
        while let Some(expected) = self.next() {
            match expected {
                Expected::InOrder(pieces) => {
                    self.filesystem.will_read(&pieces);
                    if let Err(ino) = self.store_all(pieces, &mut storer, &mut batch) {
                        self.filesystem.not_made_ready(ino);
                    }
                }
                Expected::Beside(ino, offset) => {
                    let decoded = self.filesystem.decoded_around(ino, offset).map(|range| (ino, range));
                    if decoded.is_none() || self.store_all(decoded, &mut storer, &mut batch).is_err() {
                        self.filesystem.not_stored_around(ino, offset);
                    }
                }
                Expected::Loaded(ino, object) => self.filesystem.fetch_for_loader(ino, &object),
                Expected::Traced(pieces) => {
                    self.filesystem.decode_ahead(&pieces);
                    let mut known = HashMap::new();
                    for (ino, range) in pieces.into_iter().skip(1) {
                        // What the kernel does not know yet stays decoded.
                        if *known.entry(ino).or_insert_with(|| storer.is_known(ino)) {
                            let _ = self.store_all([(ino, range)], &mut storer, &mut batch);
                        }
                    }
                }
            }
        }
    }

    /// Stores the pieces one after the other.
    ///
    /// # Errors
    /// As [`ReadAhead::store`], of the first one that fails; then the others are left.
    fn store_all(
        &self,
        pieces: impl IntoIterator<Item = (Ino, Range<u64>)>,
        storer: &mut Storer,
        batch: &mut Batch,
    ) -> Result<(), Ino> {
        let read = pieces.into_iter().try_for_each(|(ino, range)| self.store(ino, range, storer, batch));
        let handed_over = self.hand_over(storer, batch);
        let settled = storer.settle().map_err(not_stored);
        handed_over.and(settled).and(read)
    }

    /// Has the storer take the batch over, less what its readers asked for meanwhile.
    fn hand_over(&self, storer: &mut Storer, batch: &mut Batch) -> Result<(), Ino> {
        let handed_over = storer.settle().and_then(|()| {
            batch.keep(|ino, range| self.filesystem.still_expected(ino, range));
            storer.store(batch)
        });
        batch.clear();
        handed_over.map_err(not_stored)
    }

    /// Waits for something to do. `None` once there will be nothing any more.
    fn next(&self) -> Option<Expected> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(expected) = waiting.as_mut()?.pop_front() {
                return Some(expected);
            }
            self.changed.wait(&mut waiting);
        }
    }

    fn give_up(&self, expected: &Expected) {
        match expected {
            Expected::InOrder(pieces) => {
                if let Some((ino, _)) = pieces.first() {
                    self.filesystem.not_made_ready(*ino);
                }
            }
            Expected::Beside(ino, offset) => self.filesystem.not_stored_around(*ino, *offset),
            Expected::Loaded(..) | Expected::Traced(_) => {}
        }
    }

    /// Reads `range` of a file, as far as it goes, and has it stored, but for the last bytes, which are left in the batch.
    ///
    /// # Errors
    /// The file that the kernel does not know, or whose bytes cannot be read, which will show to whoever asks for them:
    /// this one or one before.
    fn store(&self, ino: Ino, range: Range<u64>, storer: &mut Storer, batch: &mut Batch) -> Result<(), Ino> {
        let mut left = range;
        loop {
            left = self.filesystem.still_expected(ino, left);
            if left.is_empty() {
                return Ok(());
            }
            if batch.len_bytes() >= STORE_BYTES || (batch.len_bytes() > 0 && storer.is_idle()) {
                self.hand_over(storer, batch)?;
            }
            let wanted = usize::try_from(left.end - left.start).unwrap_or(usize::MAX).min(STORE_BYTES);
            let read = |buf: &mut [u8]| self.filesystem.read_ahead(ino, left.start, buf);
            match batch.add(ino, left.start, wanted, read).map_err(|_| ino)? {
                0 => return Ok(()),
                read => left.start += read as u64,
            }
        }
    }
}

fn not_stored(NotStored { ino, error }: NotStored) -> Ino {
    if error.raw_os_error() != Some(libc::ENOENT) {
        tracing::debug!(ino = ino.0, "cannot read ahead: {error}");
    }
    ino
}
