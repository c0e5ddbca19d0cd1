//! The client's side of pretended users and groups.

use super::DaemonError;
use crate::identity;
use crate::sys::descriptors;
use crate::sys::seccomp;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// A daemon that waits for the system calls of one run.
#[derive(Debug)]
pub struct Pretence {
    stream: UnixStream,
}

impl Pretence {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// From now on this process and all that it starts can be any user by its own words, and give files to anyone: the
    /// daemon remembers the users, and the files stay root's. The process must be root in its user namespace. Does
    /// nothing where this is so already.
    ///
    /// # Errors
    /// [`DaemonError::Process`] if the kernel refuses, as it does where a container engine around this one answers
    /// system calls itself, or the daemon is gone.
    pub fn begin(mut self) -> Result<(), DaemonError> {
        let failed = |step| move |source: io::Error| DaemonError::Process { step, source };
        let installed = seccomp::install(&identity::answered_calls()).map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => failed(
                "filter system calls: a program that this one was started by, such as a container engine, answers some \
                 of them itself, and the kernel lets only one do so",
            )(source),
            _ => failed("filter system calls (seccomp)")(source),
        });
        let Some(listener) = installed? else { return Ok(()) };
        let hand_over = || {
            descriptors::send(&self.stream, OwnedFd::from(listener).as_fd())?;
            self.stream.read_exact(&mut [0])
        };
        hand_over().map_err(failed("hand system calls over to the daemon"))?;
        // The first answer: it shows the daemon whose calls it waits for.
        let _ = rustix::process::getuid();
        Ok(())
    }
}
