//! Containers that go on in the background, and runs that join them.
//!
//! ```text
//! siphon instance start   waits for word that the program has started, and ends
//!   keeper                a session of its own; the daemon's client; knows when the instance is over
//!     init                process 1 inside: made the mounts; passes signals on, reaps, stays when the program ends
//!       program
//! siphon exec instance:// stands for the program, which is in the instance's namespaces
//! ```

#![expect(unsafe_code, reason = "fork, and what happens between fork and exec, have no safe form")]

use super::processes::{FAILED, INIT_NAME, close_standard, enter_joined, fork_first};
use super::signals::Signals;
use super::{Place, build, execute, settle_privileges, start, start_by};
use crate::plan::Plan;
use crate::report::Report;
use anyhow::Context;
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, Pid, fork, setsid};
use siphon_fsd::daemon::Pretence;
use std::convert::Infallible;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::exit;

/// What process 1 says when the program runs. Anything else is why it does not.
const STARTED: &[u8] = b"started";

/// The two processes after [`into_background`].
#[derive(Debug)]
pub enum Background {
    /// The one that was called, and what the other one tells it, until that is all.
    Caller(PipeReader),
    /// The new one, and where it tells.
    Keeper(PipeWriter),
}

/// Makes a process that outlives the caller's session and terminal and has none of its descriptors but the standard
/// ones. There must be one thread.
///
/// # Errors
/// If the kernel refuses.
pub fn into_background() -> anyhow::Result<Background> {
    let (told, tell) = std::io::pipe().context("cannot make a pipe")?;
    // SAFETY: there is a single thread, or a user namespace could not be joined later: the child's memory is whole.
    match unsafe { fork() }.context("cannot start a process in the background")? {
        ForkResult::Parent { .. } => Ok(Background::Caller(told)),
        ForkResult::Child => {
            setsid().context("cannot leave the terminal")?;
            drop(told);
            close_above_standard(tell.as_raw_fd()).context("cannot close what the caller had open")?;
            Ok(Background::Keeper(tell))
        }
    }
}

/// A lock or a pipe of the caller that an instance held open would be held as long as it lives.
fn close_above_standard(kept: i32) -> std::io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > nix::libc::STDERR_FILENO && *number != kept)
        .collect();
    for number in open {
        // The number of the listing itself is among them and is closed by now.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// Closes all that is open but `kept`.
pub(super) fn close_all_but(kept: &PipeReader) -> std::io::Result<()> {
    close_above_standard(kept.as_raw_fd())?;
    close_standard();
    Ok(())
}

/// The two processes after [`split`].
#[derive(Debug)]
pub enum Part {
    /// The one that was called.
    Keeper(Keeper),
    /// Process 1 of a new PID namespace.
    First(First),
}

/// The process outside an instance.
#[derive(Debug)]
pub struct Keeper {
    first: Pid,
    signals: Signals,
    news: PipeReader,
}

/// The first process of an instance.
#[derive(Debug)]
pub struct First {
    signals: Signals,
    tell: PipeWriter,
}

/// What is open as the program's standard descriptors.
#[derive(Debug)]
pub struct Logs {
    /// Standard input.
    pub input: File,
    /// Standard output.
    pub output: File,
    /// Standard error.
    pub error: File,
}

/// Makes a PID namespace and its first process, which is killed when this one ends. There must be one thread.
///
/// # Errors
/// If the kernel refuses.
pub fn split() -> anyhow::Result<Part> {
    let signals = Signals::hold().context("cannot hold signals back")?;
    let (news, tell) = std::io::pipe().context("cannot make a pipe")?;
    Ok(match fork_first()? {
        Some(first) => Part::Keeper(Keeper { first, signals, news }),
        None => Part::First(First { signals, tell }),
    })
}

impl Keeper {
    /// The first process of the instance, as the host numbers it.
    pub fn first(&self) -> i32 {
        self.first.as_raw()
    }

    /// Waits until the program runs.
    ///
    /// # Errors
    /// Why it does not.
    pub fn wait_for_start(&mut self) -> anyhow::Result<()> {
        let mut news = Vec::new();
        self.news.read_to_end(&mut news).context("cannot hear from the instance")?;
        match news.as_slice() {
            STARTED => Ok(()),
            [] => anyhow::bail!("the instance was killed before it had started"),
            reason => anyhow::bail!("{}", String::from_utf8_lossy(reason)),
        }
    }

    /// Waits until the instance is over. Signals to this process go to it. Standard descriptors are closed.
    pub fn stand_by(&self) {
        close_standard();
        // If there is no waiting any more, the instance ends with this process.
        let _ = self.signals.stand_by(self.first, None, || ());
    }
}

impl First {
    /// Mounts, enters, starts the program and stays as the init of the instance until a signal asks for its end.
    pub fn run(mut self, plan: &Plan, place: Place, logs: Logs, report: Report) -> ! {
        let told = match self.start(plan, place, logs, report) {
            Ok(()) => self.tell.write_all(STARTED).is_ok(),
            Err(error) => {
                // If nobody listens, the keeper is gone, and this process goes too.
                let _ = self.tell.write_all(format!("{error:#}").as_bytes());
                false
            }
        };
        drop(self.tell);
        if !told {
            exit(FAILED);
        }
        close_standard();
        match self.signals.keep() {
            Ok(()) => exit(0),
            Err(_) => exit(FAILED),
        }
    }

    fn start(&self, plan: &Plan, place: Place, logs: Logs, report: Report) -> anyhow::Result<()> {
        build(plan, &place, report)?;
        settle_privileges(plan, place.pretence)?;
        // A convenience for readers of a list of processes.
        let _ = prctl::set_name(INIT_NAME);
        let before = self.signals.before();
        start_by(plan, |command| {
            command.stdin(logs.input.try_clone()?).stdout(logs.output.try_clone()?).stderr(logs.error.try_clone()?);
            // SAFETY: setting the signal mask is safe between fork and exec (signal-safety(7)).
            unsafe { command.pre_exec(move || Ok(before.thread_set_mask()?)) };
            command.spawn()
        })?;
        Ok(())
    }
}

/// Becomes a program in the container whose namespaces this process, which must have one thread, has joined. Returns
/// only if that fails.
///
/// # Errors
/// What failed.
pub fn become_program_inside(plan: &Plan, pretence: Option<Pretence>) -> anyhow::Result<Infallible> {
    enter_joined()?;
    start(&plan.start)?;
    if let Some(mask) = plan.umask {
        umask(Mode::from_bits_truncate(mask));
    }
    settle_privileges(plan, pretence)?;
    execute(plan)
}
