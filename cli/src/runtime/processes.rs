//! Process ids of the container's own, and the processes that this takes.
//!
//! ```text
//! siphon           outside: stands for the program; its caller waits for it, signals it, stops and continues it
//!   init           process 1 inside: made the mounts; reaps what programs leave behind
//!     program      or this one is process 1, where no init is wanted
//! ```
//!
//! Nothing outlives anything: the kernel kills all of a PID namespace with its process 1, and process 1 asks to be
//! killed with the process outside.

#![expect(unsafe_code, reason = "fork has no safe form")]

use super::signals::Signals;
use anyhow::Context;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, raise};
use nix::unistd::{ForkResult, Pid, fork, setpgid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::process::exit;

/// What process 1 of a PID namespace has from the process outside.
#[derive(Debug)]
pub(super) struct First {
    signals: Signals,
    /// Takes a byte whenever the program is stopped.
    stops: PipeWriter,
}

/// Makes a PID namespace and returns as its process 1. The calling process, which must have one thread, never returns:
/// it stands for process 1, and ends with its exit code.
///
/// # Errors
/// If the kernel refuses one of the steps.
pub(super) fn enter_own() -> anyhow::Result<First> {
    let signals = Signals::hold().context("cannot hold signals back")?;
    let (notices, stops) = std::io::pipe().context("cannot make a pipe")?;
    match fork_first()? {
        Some(child) => {
            drop(stops);
            stand_for(child, &signals, Some(notices))
        }
        None => Ok(First { signals, stops }),
    }
}

/// Returns in a child, which is in the PID namespace that the calling process joined, with signals as they were. The
/// calling process, which must have one thread, never returns: it stands for the child, and ends with its exit code.
///
/// # Errors
/// If the kernel refuses one of the steps.
pub(super) fn enter_joined() -> anyhow::Result<()> {
    let signals = Signals::hold().context("cannot hold signals back")?;
    match fork_bound()? {
        Some(child) => stand_for(child, &signals, None),
        None => signals.release().context("cannot let signals through"),
    }
}

/// Makes a PID namespace and its process 1: gives that one's id, and nothing there.
///
/// # Errors
/// If the kernel refuses one of the steps.
pub(super) fn fork_first() -> anyhow::Result<Option<Pid>> {
    unshare(CloneFlags::CLONE_NEWPID).context("cannot make a PID namespace")?;
    fork_bound()
}

/// Makes a process that is killed when this one ends: gives its id, and nothing there.
fn fork_bound() -> anyhow::Result<Option<Pid>> {
    let outside = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).context("cannot watch siphon itself")?;
    // SAFETY: there is a single thread, or the daemon's user namespace could not have been joined: the child's memory
    // is whole.
    match unsafe { fork() }.context("cannot start a process of the container")? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => {
            prctl::set_pdeathsig(Signal::SIGKILL).context("cannot bind the container to siphon")?;
            if has_ended(&outside) {
                exit(128 + libc::SIGKILL);
            }
            Ok(None)
        }
    }
}

impl First {
    /// Becomes the program, as process 1: signals get through to it again.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn become_program(self) -> anyhow::Result<()> {
        self.signals.release().context("cannot let signals through")
    }

    /// Becomes the init, and returns in a child that is to be the program. The init never returns: it reaps what is
    /// left to it, passes signals on to that child, and ends with its exit code, and the container with it.
    ///
    /// # Errors
    /// If the kernel refuses one of the steps.
    pub(super) fn become_init(mut self) -> anyhow::Result<()> {
        // SAFETY: the process is a fork of one with a single thread, and has started none.
        match unsafe { fork() }.context("cannot start a process in the container")? {
            ForkResult::Child => self.signals.release().context("cannot let signals through"),
            ForkResult::Parent { child } => {
                // What is sent to the program's group reaches the program by itself. Both calls are conveniences.
                let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
                let _ = prctl::set_name(INIT_NAME);
                close_standard();
                let Self { signals, stops } = &mut self;
                let code = signals.stand_by(child, None, || drop(stops.write(&[0])));
                exit(code.unwrap_or(FAILED))
            }
        }
    }
}

/// What `ps` shows of an init.
pub(super) const INIT_NAME: &std::ffi::CStr = c"siphon-init";

/// Exit code where the end of the program cannot be learnt.
pub(super) const FAILED: i32 = 255;

/// Does outside what happens to the program inside: stops, and ends with its exit code.
fn stand_for(first: Pid, signals: &Signals, notices: Option<PipeReader>) -> ! {
    close_standard();
    // The caller's shell sees this process stop, takes the terminal back, and continues it in the end.
    let stop = || {
        // A process may always stop itself.
        let _ = raise(Signal::SIGSTOP);
    };
    let code = signals.stand_by(first, notices, stop);
    exit(code.unwrap_or(FAILED))
}

/// Leaves standard input, output and error to the program: who reads what it writes waits for the last copy to close.
pub(super) fn close_standard() {
    for descriptor in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        let _ = nix::unistd::close(descriptor);
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut waiting = [PollFd::new(process, PollFlags::IN)];
    poll(&mut waiting, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
