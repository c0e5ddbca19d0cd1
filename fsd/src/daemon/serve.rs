//! The daemon's side: sets everything up while there is one thread, then waits for clients, their ends, and its own.

mod conversation;
mod setup;

use super::join::Ready;
use super::state::StateDirectory;
use super::{DaemonError, Placement, Spec};
use crate::sys::{mounts, processes};
use conversation::Shared;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// More conversations than this wait in the socket's queue.
const MAX_CONVERSATIONS: usize = 64;

/// A forced leave waits this long for a client that is joining.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// Serves what the state directory says, in the background: the calling process ends, and a new one returns when
/// nothing is left to serve. The caller must have one thread, its standard output is told of the success, and its
/// standard input, which may hold a lock, stays open until then.
///
/// # Errors
/// Any [`DaemonError`]; one before the mount is ready is also reported on standard output.
pub fn serve(state_dir: &Path) -> Result<(), DaemonError> {
    let started = processes::into_background()
        .map_err(|source| DaemonError::Process { step: "go into the background", source })?;
    let mut ready = File::from(started.output);
    let server = match setup::set_up(StateDirectory::at(state_dir)) {
        Ok(server) => server,
        Err(error) => {
            report(&mut ready, &Ready::Failed(chain(&error)));
            return Err(error);
        }
    };
    report(&mut ready, &Ready::Ready);
    drop(ready);
    server.run()
}

/// A client that no longer listens is no reason to fail: the next one will.
fn report(ready: &mut File, message: &Ready) {
    let sent = serde_json::to_vec(message).map_err(io::Error::from).and_then(|line| ready.write_all(&line));
    if let Err(error) = sent {
        tracing::warn!("nobody waits for this daemon: {error}");
    }
}

/// An error and what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

/// Everything that the main thread holds.
#[derive(Debug)]
struct Server {
    state: StateDirectory,
    spec: Spec,
    shared: Arc<Shared>,
    listener: UnixListener,
    signals: SignalFd,
    /// Readable when a conversation changed something.
    woken: PipeReader,
    /// At its end when the filesystem is not served any more.
    session_over: PipeReader,
    session: JoinHandle<()>,
}

/// Why the main thread woke up.
#[derive(Debug, Default)]
struct Events {
    connection: bool,
    told_to_leave: bool,
    session_over: bool,
}

impl Server {
    fn run(mut self) -> Result<(), DaemonError> {
        let failed = |source| DaemonError::Process { step: "wait for clients", source };
        let mut last_used = Instant::now();
        loop {
            let events = self.wait(last_used).map_err(failed)?;
            if events.connection {
                self.accept();
            }
            if self.shared.is_in_use() {
                last_used = Instant::now();
            }
            if events.session_over {
                return self.finish();
            }
            let told = events.told_to_leave || self.shared.take_stop();
            if (told || self.is_idle(last_used)) && self.leave(told)? {
                drop(self.listener);
                return join_session(self.session);
            }
            if !told && self.is_idle(last_used) {
                // Someone is just joining.
                last_used = Instant::now();
            }
        }
    }

    fn is_idle(&self, last_used: Instant) -> bool {
        self.spec.placement == Placement::InNamespace
            && !self.shared.is_in_use()
            && last_used.elapsed() >= self.spec.idle
    }

    /// Sleeps until something happens or the daemon has been idle for long enough.
    fn wait(&mut self, last_used: Instant) -> io::Result<Events> {
        let clients = self.shared.clients();
        let may_accept = self.shared.conversations() < MAX_CONVERSATIONS;
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.woken, PollFlags::IN),
            PollFd::new(&self.session_over, PollFlags::IN),
            PollFd::new(&self.listener, if may_accept { PollFlags::IN } else { PollFlags::empty() }),
        ];
        fds.extend(clients.iter().map(|client| PollFd::from_borrowed_fd(client.as_fd(), PollFlags::IN)));
        let timeout = self.timeout(last_used);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Events::default()),
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        self.shared.remove_clients(|client| {
            clients.iter().zip(&ready[4..]).any(|(known, ended)| *ended && Arc::ptr_eq(known, client))
        });
        if ready[1] {
            // What it says is in the shared state; the bytes only wake.
            self.woken.read_exact(&mut [0])?;
        }
        let told_to_leave = ready[0] && self.read_signal()?;
        Ok(Events { connection: may_accept && ready[3], told_to_leave, session_over: ready[2] })
    }

    /// Time until the daemon is idle; none while it is used.
    fn timeout(&self, last_used: Instant) -> Option<Timespec> {
        if self.spec.placement != Placement::InNamespace || self.shared.is_in_use() {
            return None;
        }
        let left = self.spec.idle.saturating_sub(last_used.elapsed()) + Duration::from_millis(1);
        Timespec::try_from(left).ok()
    }

    /// Whether a signal asks for leaving: the terminal that is gone is no reason to.
    fn read_signal(&mut self) -> io::Result<bool> {
        let signal = self.signals.read_signal()?;
        let hangup = i32::from(Signal::SIGHUP as u8);
        Ok(signal.is_some_and(|signal| i32::try_from(signal.ssi_signo).is_ok_and(|number| number != hangup)))
    }

    fn accept(&self) {
        match self.listener.accept() {
            Ok((stream, _)) => Shared::converse(&self.shared, stream),
            Err(error) => tracing::warn!("cannot accept a client: {error}"),
        }
    }

    /// Makes this daemon unfindable and detaches its mount. `false` if a client is joining and it may stay.
    fn leave(&self, told: bool) -> Result<bool, DaemonError> {
        let started = Instant::now();
        let lock = loop {
            match self.state.try_lock()? {
                Some(lock) => break Some(lock),
                None if told && started.elapsed() < LEAVE_PATIENCE => std::thread::sleep(Duration::from_millis(20)),
                None => break None,
            }
        };
        let Some(lock) = lock else { return Ok(false) };
        if !told && (self.shared.is_in_use() || self.serves_background_programs()) {
            return Ok(false);
        }
        match &self.spec.placement {
            Placement::InNamespace => mounts::detach(&self.state.root())?,
            Placement::HostMount(directory) => {
                if let Err(error) = mounts::unmount(directory) {
                    tracing::warn!("staying: {}", chain(&error));
                    return Ok(false);
                }
            }
        }
        self.state.remove(&lock)?;
        Ok(true)
    }

    /// Whether programs that a container left running still use the mount.
    fn serves_background_programs(&self) -> bool {
        mounts::is_seen_by_others(&self.state.root()).unwrap_or_else(|error| {
            tracing::warn!("cannot tell who uses the mount: {error}");
            false
        })
    }

    /// The filesystem was unmounted by someone else.
    fn finish(self) -> Result<(), DaemonError> {
        if let Some(lock) = self.state.try_lock()? {
            // The mount point may still be ours in this namespace: then there is nothing behind it any more.
            let _ = mounts::detach(&self.state.root());
            self.state.remove(&lock)?;
        }
        join_session(self.session)
    }
}

fn join_session(session: JoinHandle<()>) -> Result<(), DaemonError> {
    session.join().map_err(|_| DaemonError::Process {
        step: "serve the filesystem",
        source: io::Error::other("a worker panicked"),
    })
}

/// Signals that end the daemon, as a descriptor. They must be blocked before any thread exists.
fn signal_descriptor() -> nix::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
