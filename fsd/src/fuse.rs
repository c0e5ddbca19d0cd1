//! The FUSE adaptor: decodes a request, calls [`FileSystem`], encodes the reply, and logs a failure once.
//!
//! The session is given a `/dev/fuse` descriptor that its caller opened and mounted, and never mounts or unmounts
//! itself: the library's own teardown can unmount a stranger's filesystem.
//!
//! ```text
//! adaptor -> replies -> convert        requests, by the workers
//! ahead   -> store                     what is likely to be asked for next, by threads of its own
//! ```

mod adaptor;
mod ahead;
mod convert;
mod replies;
mod store;

use crate::fs::FileSystem;
use adaptor::Adaptor;
use ahead::ReadAhead;
use fuser::{Config, INodeNo, Session, SessionACL};
use siphon_overlay::view::Ino;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A mounted filesystem whose first exchange with the kernel is done.
#[derive(Debug)]
pub struct Mounted {
    session: Session<Adaptor>,
    ahead: Arc<ReadAhead>,
}

/// Tells the kernel to forget what it has cached.
#[derive(Debug, Clone)]
pub struct Notifier {
    inner: fuser::Notifier,
}

impl Mounted {
    /// Greets the kernel on `device`, an open `/dev/fuse` that is mounted already, for `workers` threads.
    ///
    /// # Errors
    /// If the kernel hangs up or speaks another protocol.
    pub fn new(filesystem: Arc<FileSystem>, device: OwnedFd, workers: usize) -> io::Result<Self> {
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(workers);
        config.clone_fd = true;
        // Who may come in is decided by the mount option: the session itself admits everyone.
        let ahead = Arc::new(ReadAhead::new(filesystem.clone(), device.try_clone()?));
        let adaptor = Adaptor::new(filesystem, ahead.clone());
        let session = Session::from_fd(adaptor, device, SessionACL::All, config)?;
        Ok(Self { session, ahead })
    }

    /// The way to invalidate what the kernel caches. It must not be used while a lock is held that a request needs.
    pub fn notifier(&self) -> Notifier {
        Notifier { inner: self.session.notifier() }
    }

    /// Serves until the last mount of the filesystem is gone.
    ///
    /// # Errors
    /// If a worker cannot be started or the device fails.
    pub fn serve(self) -> io::Result<()> {
        let threads = self.ahead.start();
        self.session.run()?;
        self.ahead.end(threads);
        Ok(())
    }
}

impl Notifier {
    /// Makes the kernel forget that `name` exists, or does not, in `parent`, and the parent's listing.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn forget_entry(&self, parent: Ino, name: &OsStr) -> io::Result<()> {
        self.inner.inval_entry(INodeNo(parent.0), name)?;
        self.inner.inval_inode(INodeNo(parent.0), 0, 0)
    }
}

/// The first `count` bytes of a buffer that grows as needed and is used again.
fn first_bytes(buffer: &mut Vec<u8>, count: usize) -> &mut [u8] {
    if buffer.len() < count {
        buffer.resize(count, 0);
    }
    &mut buffer[..count]
}
