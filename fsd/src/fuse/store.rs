//! Puts content into the kernel's page cache, by a thread that has nothing open but a device of its own.
//!
//! Who stores a page waits for who reads it, and he waits for a worker. When the daemon is killed the workers are gone,
//! and only the closing of their devices ends what they were at. A thread that waits in the kernel keeps open what it
//! shares with them, and that would be for ever: so this one shares nothing.

use super::first_bytes;
use super::wire::{Answer, notice};
use crate::sys::fuse_device;
use siphon_overlay::view::Ino;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

/// Pieces of files to be stored, which share a buffer: handing one over by itself takes as long as storing a small file.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pieces: Vec<Piece>,
    buffer: Vec<u8>,
    len_bytes: usize,
}

/// Content of a file from `offset` on, which lies in a buffer.
#[derive(Debug)]
struct Piece {
    ino: Ino,
    offset: u64,
    bytes: Range<usize>,
}

/// What became of a batch, which can be used again.
struct Done {
    stored: Result<(), NotStored>,
    batch: Batch,
}

impl Batch {
    /// How many bytes it has.
    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Adds up to `len_bytes` bytes of a file from `offset` on, which `read` fills in, and returns how many there were.
    ///
    /// # Errors
    /// What `read` says; then nothing is added.
    pub(super) fn add<E>(
        &mut self,
        ino: Ino,
        offset: u64,
        len_bytes: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let start = self.len_bytes;
        let count = read(&mut first_bytes(&mut self.buffer, start + len_bytes)[start..])?;
        self.len_bytes += count;
        self.pieces.push(Piece { ino, offset, bytes: start..self.len_bytes });
        Ok(count)
    }

    /// Leaves out what `wanted` does, which takes a range of a file and returns what is left of its front.
    pub(super) fn keep(&mut self, wanted: impl Fn(Ino, Range<u64>) -> Range<u64>) {
        self.pieces.retain_mut(|piece| {
            let end = piece.offset + piece.bytes.len() as u64;
            let left = wanted(piece.ino, piece.offset..end);
            let passed = usize::try_from(left.start.saturating_sub(piece.offset)).unwrap_or(usize::MAX);
            if left.is_empty() || passed >= piece.bytes.len() {
                return false;
            }
            (piece.offset, piece.bytes.start) = (left.start, piece.bytes.start + passed);
            true
        });
    }

    /// Leaves out all of it.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.len_bytes = 0;
    }
}

/// The thread, as the one that has work for it sees it: while one batch is stored, the next one is read.
#[derive(Debug)]
pub(super) struct Storer {
    jobs: Option<SyncSender<Batch>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
    /// Whether something is being stored.
    is_busy: bool,
    /// The batch that is not in use, empty.
    spare: Batch,
    /// What became of the last one.
    outcome: Result<(), NotStored>,
}

/// A file of which something could not be stored.
#[derive(Debug)]
pub(super) struct NotStored {
    pub(super) ino: Ino,
    /// `ENOENT` if the kernel does not know the file; else the connection is gone or the kernel has no memory.
    pub(super) error: io::Error,
}

impl Storer {
    /// Starts it for the connection that `device` is of.
    ///
    /// # Errors
    /// If there is no thread to be had, or no further device.
    pub(super) fn start(device: BorrowedFd<'_>) -> io::Result<Self> {
        let device = fuse_device::clone(device)?;
        let number = device.as_raw_fd();
        let (ready, is_ready) = sync_channel::<()>(1);
        let (jobs, taken) = sync_channel::<Batch>(1);
        let (finished, done) = sync_channel(1);
        let run = move || {
            let alone = fuse_device::keep_only(number);
            drop(ready);
            let device = match alone {
                Ok(device) => File::from(device),
                Err(error) => return tracing::warn!("cannot read ahead: {error}"),
            };
            let mut message = Answer::default();
            for mut batch in taken {
                let stored = batch.pieces.iter().try_for_each(|piece| {
                    notify(&device, &mut message, piece.ino, piece.offset, &batch.buffer[piece.bytes.clone()])
                        .map_err(|error| NotStored { ino: piece.ino, error })
                });
                batch.clear();
                if finished.send(Done { stored, batch }).is_err() {
                    return;
                }
            }
        };
        let thread = Builder::new().name("store".to_owned()).spawn(run)?;
        // The thread has a copy of its own from then on, and this one is to be closed: the thread cannot.
        let _ = is_ready.recv();
        drop(device);
        Ok(Self {
            jobs: Some(jobs),
            done,
            thread: Some(thread),
            is_busy: false,
            spare: Batch::default(),
            outcome: Ok(()),
        })
    }

    /// Has `batch` stored, piece after piece, while the caller goes on with another one, which takes its place. Nothing
    /// else may be under way.
    ///
    /// # Errors
    /// If the thread is gone.
    pub(super) fn store(&mut self, batch: &mut Batch) -> Result<(), NotStored> {
        if batch.pieces.is_empty() {
            return Ok(());
        }
        let jobs = self.jobs.as_ref().ok_or_else(lost)?;
        jobs.send(std::mem::replace(batch, std::mem::take(&mut self.spare))).map_err(|_| lost())?;
        self.is_busy = true;
        Ok(())
    }

    /// Whether the kernel knows the file, as of now. Nothing may be under way.
    pub(super) fn is_known(&mut self, ino: Ino) -> bool {
        let mut nothing =
            Batch { pieces: vec![Piece { ino, offset: 0, bytes: 0..0 }], ..std::mem::take(&mut self.spare) };
        self.store(&mut nothing).and_then(|()| self.settle()).is_ok()
    }

    /// Whether nothing is being stored any more.
    pub(super) fn is_idle(&mut self) -> bool {
        if self.is_busy
            && let Ok(done) = self.done.try_recv()
        {
            self.take_back(done);
        }
        !self.is_busy
    }

    /// Waits until nothing is being stored.
    ///
    /// # Errors
    /// If some of what was handed over since the last call could not be stored.
    pub(super) fn settle(&mut self) -> Result<(), NotStored> {
        if self.is_busy {
            let done = self.done.recv().map_err(|_| lost())?;
            self.take_back(done);
        }
        std::mem::replace(&mut self.outcome, Ok(()))
    }

    fn take_back(&mut self, Done { stored, batch }: Done) {
        (self.is_busy, self.spare) = (false, batch);
        self.outcome = stored;
    }
}

impl Drop for Storer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// The thread is gone.
fn lost() -> NotStored {
    NotStored { ino: Ino::ROOT, error: io::ErrorKind::BrokenPipe.into() }
}

/// Sends the message, with the bytes from where they lie.
fn notify(mut device: &File, message: &mut Answer, ino: Ino, offset: u64, data: &[u8]) -> io::Result<()> {
    let len = u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    message.clear();
    // `struct fuse_notify_store_out`.
    message.u64(ino.0);
    message.u64(offset);
    message.u32(len);
    message.u32(0);
    let head = message.finish_notice(notice::STORE, data.len());
    device.write_vectored(&[IoSlice::new(head), IoSlice::new(data)]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_meanwhile_is_left_out_of_a_batch() {
        let mut batch = Batch::default();
        for (ino, offset) in [(1, 0), (2, 4096), (3, 0)] {
            let read = |buf: &mut [u8]| {
                buf.fill(u8::try_from(ino).unwrap());
                Ok::<_, ()>(buf.len())
            };
            assert_eq!(batch.add(Ino(ino), offset, 8192, read), Ok(8192));
        }
        assert_eq!(batch.add(Ino(4), 0, 10, |_| Err("broken")), Err("broken"));
        assert_eq!(batch.len_bytes(), 3 * 8192);

        batch.keep(|ino, range| match ino.0 {
            1 => range,
            2 => range.start + 4096..range.end,
            _ => 0..0,
        });

        let left: Vec<_> = batch.pieces.iter().map(|piece| (piece.ino.0, piece.offset, piece.bytes.clone())).collect();
        assert_eq!(left, [(1, 0, 0..8192), (2, 8192, 12_288..16_384)]);
        assert!(
            left.iter().all(|(ino, _, bytes)| batch.buffer[bytes.clone()].iter().all(|byte| u64::from(*byte) == *ino))
        );
    }
}
