//! Puts content into the kernel's page cache, by a thread that has nothing open but a device of its own.
//!
//! Who stores a page waits for who reads it, and he waits for a worker. When the daemon is killed the workers are gone,
//! and only the closing of their devices ends what they were at. A thread that waits in the kernel keeps open what it
//! shares with them, and that would be for ever: so this one shares nothing.

use crate::sys::fuse_device;
use siphon_overlay::view::Ino;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

/// `FUSE_NOTIFY_STORE` of `linux/fuse.h`, where an answer has its error number.
const NOTIFY_STORE: i32 = 4;

/// `struct fuse_out_header` and `struct fuse_notify_store_out`.
const HEADER_BYTES: usize = 16 + 24;

/// What is to be stored: the content of a file from `offset` on, the first `len` bytes of `buffer`.
struct Job {
    ino: Ino,
    offset: u64,
    buffer: Vec<u8>,
    len: usize,
}

/// What became of one.
struct Done {
    ino: Ino,
    stored: io::Result<()>,
    buffer: Vec<u8>,
}

/// The thread, as the one that has work for it sees it: while one piece is stored, the next one is read.
#[derive(Debug)]
pub(super) struct Storer {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
    /// Whether something is being stored.
    is_busy: bool,
    /// The buffer that is not in use.
    spare: Vec<u8>,
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
        let (jobs, taken) = sync_channel::<Job>(1);
        let (finished, done) = sync_channel(1);
        let run = move || {
            let alone = fuse_device::keep_only(number);
            drop(ready);
            let device = match alone {
                Ok(device) => File::from(device),
                Err(error) => return tracing::warn!("cannot read ahead: {error}"),
            };
            for Job { ino, offset, buffer, len } in taken {
                let stored = notify(&device, ino, offset, &buffer[..len]);
                if finished.send(Done { ino, stored, buffer }).is_err() {
                    return;
                }
            }
        };
        let thread = Builder::new().name("store".to_owned()).spawn(run)?;
        // The thread has a copy of its own from then on, and this one is to be closed: the thread cannot.
        let _ = is_ready.recv();
        drop(device);
        Ok(Self { jobs: Some(jobs), done, thread: Some(thread), is_busy: false, spare: Vec::new() })
    }

    /// Has the first `len` bytes of `buffer`, which are the file's content from `offset` on, stored while the caller goes
    /// on with another buffer.
    ///
    /// # Errors
    /// If what was handed over before could not be stored; then this is not, either.
    pub(super) fn store(&mut self, ino: Ino, offset: u64, buffer: &mut Vec<u8>, len: usize) -> Result<(), NotStored> {
        self.settle()?;
        let gone = || NotStored { ino, error: io::ErrorKind::BrokenPipe.into() };
        let job = Job { ino, offset, buffer: std::mem::replace(buffer, std::mem::take(&mut self.spare)), len };
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        self.is_busy = true;
        Ok(())
    }

    /// Whether the kernel knows the file, as of now. Nothing may be under way.
    pub(super) fn is_known(&mut self, ino: Ino) -> bool {
        let mut buffer = std::mem::take(&mut self.spare);
        self.store(ino, 0, &mut buffer, 0).and_then(|()| self.settle()).is_ok()
    }

    /// Waits until nothing is being stored.
    ///
    /// # Errors
    /// If it could not be stored.
    pub(super) fn settle(&mut self) -> Result<(), NotStored> {
        if !std::mem::take(&mut self.is_busy) {
            return Ok(());
        }
        let gone = |_| NotStored { ino: Ino::ROOT, error: io::ErrorKind::BrokenPipe.into() };
        let Done { ino, stored, buffer } = self.done.recv().map_err(gone)?;
        self.spare = buffer;
        stored.map_err(|error| NotStored { ino, error })
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

/// Sends the message. The FUSE library can send the same, but copies all of its bytes into a fresh buffer first.
fn notify(mut device: &File, ino: Ino, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut header = [0; HEADER_BYTES];
    let len = |bytes: usize| u32::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    header[..4].copy_from_slice(&len(HEADER_BYTES + data.len())?.to_ne_bytes());
    header[4..8].copy_from_slice(&NOTIFY_STORE.to_ne_bytes());
    header[16..24].copy_from_slice(&ino.0.to_ne_bytes());
    header[24..32].copy_from_slice(&offset.to_ne_bytes());
    header[32..36].copy_from_slice(&len(data.len())?.to_ne_bytes());
    device.write_vectored(&[IoSlice::new(&header), IoSlice::new(data)]).map(drop)
}
