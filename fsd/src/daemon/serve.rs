//! The daemon's side: sets everything up while there is one thread, then waits for clients, their ends, and its own.

mod conversation;
mod images;
mod setup;

use super::join::Ready;
use super::state::StateDirectory;
use super::traces::Traces;
use super::{DaemonError, Placement, Spec};
use crate::errno::chain;
use crate::sys::{mounts, processes};
use conversation::Shared;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// More conversations than this wait in the socket's queue.
const MAX_CONVERSATIONS: usize = 64;

/// How often a daemon that is not to wait at all looks whether background programs still use its mounts.
const RECHECK: Duration = Duration::from_secs(1);

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
            let is_the_machines = error.is_the_machines();
            report(&mut ready, &Ready::Failed { message: chain(&error), is_the_machines });
            return Err(error);
        }
    };
    report(&mut ready, &Ready::Ready);
    drop(ready);
    // The lock of the state directory, which a client that is gone meanwhile cannot hold.
    drop(started.input);
    server.run()
}

/// A client that no longer listens is no reason to fail: the next one will.
fn report(ready: &mut File, message: &Ready) {
    let sent = serde_json::to_vec(message).map_err(io::Error::from).and_then(|line| ready.write_all(&line));
    if let Err(error) = sent {
        tracing::warn!("nobody waits for this daemon: {error}");
    }
}

/// Everything that the main thread holds.
#[derive(Debug)]
struct Server {
    state: StateDirectory,
    spec: Spec,
    traces: Traces,
    shared: Arc<Shared>,
    listener: UnixListener,
    /// Device and inode number of the socket: another daemon may have taken the state directory over.
    socket: (u64, u64),
    signals: SignalFd,
    /// Readable when a conversation changed something.
    woken: PipeReader,
    /// At its end when the filesystem is not served any more.
    session_over: PipeReader,
    session: JoinHandle<()>,
}

/// For how long there was no client, and for how long that is waited for.
#[derive(Debug, Clone, Copy)]
struct Quiet {
    since: Instant,
    patience: Duration,
}

impl Quiet {
    fn left(self) -> Duration {
        self.patience.saturating_sub(self.since.elapsed())
    }
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
        let mut quiet = Quiet { since: Instant::now(), patience: self.spec.idle };
        loop {
            let had_clients = self.shared.has_clients();
            let events = self.wait(quiet).map_err(failed)?;
            if events.connection {
                self.accept();
            }
            // Who only connects, as a start beside it does to see whether this daemon lives, asks for no more time.
            if had_clients || self.shared.has_clients() {
                quiet = Quiet { since: Instant::now(), patience: self.spec.idle };
            }
            if events.session_over {
                return self.finish();
            }
            if !self.shared.is_in_use() && self.shared.take_request_to_leave() {
                quiet.patience = Duration::ZERO;
            }
            let told = events.told_to_leave;
            if (told || self.is_idle(quiet)) && self.leave(told)? {
                drop(self.listener);
                join_session(self.session)?;
                return self.shared.images.wait().into_iter().try_for_each(join_session);
            }
            if !told && self.is_idle(quiet) {
                // Someone is just joining, or a background program goes on.
                quiet = Quiet { since: Instant::now(), patience: self.spec.idle.max(RECHECK) };
            }
        }
    }

    fn is_idle(&self, quiet: Quiet) -> bool {
        self.spec.placement == Placement::InNamespace && !self.shared.is_in_use() && quiet.left().is_zero()
    }

    /// Sleeps until something happens or the daemon has been idle for long enough.
    fn wait(&mut self, quiet: Quiet) -> io::Result<Events> {
        let clients = self.shared.clients();
        let may_accept = self.shared.conversations() < MAX_CONVERSATIONS;
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.woken, PollFlags::IN),
            PollFd::new(&self.session_over, PollFlags::IN),
            PollFd::new(&self.listener, if may_accept { PollFlags::IN } else { PollFlags::empty() }),
        ];
        fds.extend(clients.iter().map(|client| PollFd::from_borrowed_fd(client.as_fd(), PollFlags::IN)));
        let images = self.shared.images.let_go(self.spec.idle.max(RECHECK));
        let timeout = [self.timeout(quiet), images].into_iter().flatten().min();
        // A moment more, so that what is waited for is over.
        let timeout = timeout.map(|left| left.saturating_add(Duration::from_millis(1)));
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
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
    fn timeout(&self, quiet: Quiet) -> Option<Duration> {
        (self.spec.placement == Placement::InNamespace && !self.shared.is_in_use()).then(|| quiet.left())
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
        let is_ours = self.owns_state();
        if lock.is_none() && is_ours {
            return Ok(false);
        }
        if !told && (self.shared.is_in_use() || self.serves_background_programs()) {
            return Ok(false);
        }
        self.shared.images.detach();
        match &self.spec.placement {
            // Its directory may be gone, and the mount with it.
            Placement::InNamespace if !is_ours => drop(mounts::detach(&self.state.root())),
            Placement::InNamespace => mounts::detach(&self.state.root())?,
            Placement::HostMount(directory) => {
                if let Err(error) = mounts::unmount(directory) {
                    tracing::warn!("staying: {}", chain(&error));
                    return Ok(false);
                }
            }
        }
        self.keep_traces();
        if let Some(lock) = lock.filter(|_| is_ours) {
            self.state.remove(&lock)?;
        }
        // A daemon that was killed a moment ago may have been dying still when another one started.
        self.state.sweep();
        Ok(true)
    }

    /// Writes down what was read, for the next daemon.
    fn keep_traces(&self) {
        self.traces.write(self.shared.filesystem.trace());
        if let Some(remote) = self.shared.opened.remote() {
            let traces = Traces::of_chunks(&self.spec.cache_dir, &self.shared.opened.identity);
            traces.write(remote.trace());
        }
    }

    /// Whether the state directory is still this daemon's: it may have been removed, and made anew for another one.
    fn owns_state(&self) -> bool {
        std::fs::metadata(self.state.socket()).is_ok_and(|found| (found.dev(), found.ino()) == self.socket)
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
        self.keep_traces();
        if let Some(lock) = self.state.try_lock()?.filter(|_| self.owns_state()) {
            // The mount point may still be ours in this namespace: then there is nothing behind it any more.
            let _ = mounts::detach(&self.state.root());
            self.shared.images.detach();
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
