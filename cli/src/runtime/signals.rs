//! Signals and ends of processes, for a process that only stands by while another one is the program.

#![expect(unsafe_code, reason = "kill and waitpid by number: nix knows no real-time signals")]

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, PipeReader, Read};

/// Signals that say that this very process did something wrong: they cannot be put off.
const FAULTS: [Signal; 7] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGTRAP, Signal::SIGSYS, Signal::SIGABRT];

/// Signals that say nothing about ending.
const NO_ENDS: [i32; 6] = [libc::SIGCONT, libc::SIGWINCH, libc::SIGURG, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
/// How often it is looked whether all have ended, some of whom are nobody's children here.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// All signals, held back from the process and readable one by one. Held back they also reach a process 1, which the
/// kernel otherwise spares them.
#[derive(Debug)]
pub(super) struct Signals {
    descriptor: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Holds back what comes from now on. A child inherits that, until it calls [`Signals::release`].
    pub(super) fn hold() -> nix::Result<Self> {
        // Ends of children that are ignored, as some callers have it, cannot be waited for.
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: no handler is installed.
        unsafe { sigaction(Signal::SIGCHLD, &default)? };
        let mut held = SigSet::all();
        FAULTS.iter().for_each(|fault| held.remove(*fault));
        let before = held.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
        let descriptor = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { descriptor, before })
    }

    /// Lets signals through again, as they were before.
    pub(super) fn release(&self) -> nix::Result<()> {
        self.before.thread_set_mask()
    }

    /// Stands by until the child `main` ends, and returns its exit code, 128 and the number after a signal.
    ///
    /// Every child is reaped, those too that were left to a process 1. A signal that was sent to this process is passed
    /// on to `main`; one of the terminal is not, as it went to all of the foreground. `on_stop` is called when `main`
    /// is stopped, or whenever a byte comes from `stops`.
    ///
    /// # Errors
    /// If the kernel refuses to wait.
    pub(super) fn stand_by(
        &self,
        main: Pid,
        mut stops: Option<PipeReader>,
        mut on_stop: impl FnMut(),
    ) -> io::Result<i32> {
        loop {
            let mut waiting = vec![PollFd::new(&self.descriptor, PollFlags::IN)];
            waiting.extend(stops.as_ref().map(|stops| PollFd::new(stops, PollFlags::IN)));
            match poll(&mut waiting, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let told = waiting.get(1).is_some_and(|stops| !stops.revents().is_empty());
            drop(waiting);
            while let Some(signal) = self.descriptor.read_signal()? {
                let number = signal.ssi_signo.cast_signed();
                if number == libc::SIGCHLD {
                    if let Some(code) = reap(main, &mut on_stop) {
                        return Ok(code);
                    }
                } else if signal.ssi_code != libc::SI_KERNEL {
                    // SAFETY: it touches no memory. `main` is not reaped yet, so that the number is still its own.
                    unsafe { libc::kill(main.as_raw(), number) };
                }
            }
            if told {
                match stops.as_mut().map(|stops| stops.read(&mut [0])) {
                    Some(Ok(1)) => on_stop(),
                    _ => stops = None,
                }
            }
        }
    }

    /// What signals were held back before.
    pub(super) fn before(&self) -> SigSet {
        self.before
    }

    /// Stands by as process 1 until a signal asked for the end and nobody else is left in the PID namespace. Each signal
    /// is passed on to all, and children are reaped.
    ///
    /// # Errors
    /// If the kernel refuses to wait.
    pub(super) fn keep(&self) -> io::Result<()> {
        let mut ending = false;
        loop {
            let mut waiting = [PollFd::new(&self.descriptor, PollFlags::IN)];
            match poll(&mut waiting, ending.then_some(&LOOK_AGAIN)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            while let Some(signal) = self.descriptor.read_signal()? {
                let number = signal.ssi_signo.cast_signed();
                if number == libc::SIGCHLD {
                    reap(Pid::this(), &mut || ());
                } else {
                    to_all(number);
                    ending |= !NO_ENDS.contains(&number);
                }
            }
            // Nothing is sent: only asked whether there is anybody.
            if ending && !to_all(0) {
                return Ok(());
            }
        }
    }
}

/// Sends a signal to all processes of this PID namespace but its first, which this is. Whether there is one.
fn to_all(number: i32) -> bool {
    // SAFETY: it touches no memory.
    let sent = unsafe { libc::kill(-1, number) };
    sent == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Takes notice of all children that changed. Gives the exit code of `main` if it ended.
fn reap(main: Pid, on_stop: &mut impl FnMut()) -> Option<i32> {
    let mut code = None;
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the status.
        let child = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED) };
        if child <= 0 {
            return code;
        }
        if child != main.as_raw() {
            continue;
        }
        if libc::WIFEXITED(status) {
            code = Some(libc::WEXITSTATUS(status));
        } else if libc::WIFSIGNALED(status) {
            code = Some(128 + libc::WTERMSIG(status));
        } else if libc::WIFSTOPPED(status) {
            on_stop();
        }
    }
}
