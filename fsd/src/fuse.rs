//! The FUSE adaptor: decodes a request, calls [`FileSystem`], encodes the answer, and logs a failure once.
//!
//! The session is given a `/dev/fuse` descriptor that its caller opened and mounted, and never mounts or unmounts itself.
//!
//! ```text
//! session -> adaptor -> wire     requests, by the workers
//!    |          +-> convert
//!    +-> turns                   which of them takes the next one
//! ahead   -> store               what is likely to be asked for next, by threads of its own
//! ```

mod adaptor;
mod ahead;
mod convert;
mod session;
mod store;
mod turns;
mod wire;

use crate::fs::FileSystem;
use adaptor::Adaptor;
use ahead::ReadAhead;
use session::{Session, send};
use siphon_overlay::view::Ino;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use wire::{Answer, notice};

/// A mounted filesystem whose first exchange with the kernel is done.
#[derive(Debug)]
pub struct Mounted {
    session: Session,
    /// What messages go through that no request asked for.
    notices: Arc<OwnedFd>,
    ahead: Arc<ReadAhead>,
}

/// Tells the kernel to forget what it has cached.
#[derive(Debug, Clone)]
pub struct Notifier {
    device: Arc<OwnedFd>,
}

impl Mounted {
    /// Greets the kernel on `device`, an open `/dev/fuse` that is mounted already, for `workers` threads.
    ///
    /// # Errors
    /// If the kernel hangs up or speaks another protocol.
    pub fn new(filesystem: Arc<FileSystem>, device: OwnedFd, workers: usize) -> io::Result<Self> {
        // Who may come in is decided by the mount option: everyone is answered.
        let ahead = Arc::new(ReadAhead::new(filesystem.clone(), device.try_clone()?));
        let notices = Arc::new(device.try_clone()?);
        let session = Session::greet(Adaptor::new(filesystem, ahead.clone()), device, workers)?;
        Ok(Self { session, notices, ahead })
    }

    /// The way to invalidate what the kernel caches. It must not be used while a lock is held that a request needs.
    pub fn notifier(&self) -> Notifier {
        Notifier { device: self.notices.clone() }
    }

    /// Serves until the last mount of the filesystem is gone.
    ///
    /// # Errors
    /// If a worker cannot be started or the device fails.
    pub fn serve(self) -> io::Result<()> {
        let threads = self.ahead.start();
        let served = self.session.run();
        self.ahead.end(threads);
        served
    }
}

impl Notifier {
    /// Makes the kernel forget that `name` exists, or does not, in `parent`, and the parent's listing.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn forget_entry(&self, parent: Ino, name: &OsStr) -> io::Result<()> {
        self.send(notice::INVAL_ENTRY, |message| {
            message.u64(parent.0);
            message.u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
            message.u32(0);
            message.bytes(name.as_encoded_bytes());
            message.zeros(1);
        })?;
        // From the first byte to the last.
        self.send(notice::INVAL_INODE, |message| {
            message.u64(parent.0);
            message.u64(0);
            message.u64(0);
        })
    }

    /// That the kernel does not know what it is to forget is no failure.
    fn send(&self, code: i32, fill: impl FnOnce(&mut Answer)) -> io::Result<()> {
        let mut message = Answer::default();
        message.clear();
        fill(&mut message);
        match send(self.device.as_fd(), message.finish_notice(code, 0)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            sent => sent,
        }
    }
}

/// The first `count` bytes of a buffer that grows as needed and is used again.
fn first_bytes(buffer: &mut Vec<u8>, count: usize) -> &mut [u8] {
    if buffer.len() < count {
        buffer.resize(count, 0);
    }
    &mut buffer[..count]
}
