//! Becoming a background process, and watching other ones.

#![expect(unsafe_code, reason = "fork has no safe form")]

use nix::libc;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, fork, setsid};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process;

/// What the standard descriptors of a process were before it went into the background.
#[derive(Debug)]
pub struct Standard {
    /// Standard output, replaced by standard error.
    pub output: OwnedFd,
    /// Standard input, replaced by nothing.
    pub input: OwnedFd,
}

/// Leaves the caller's session, terminal, directory and descriptors behind, and returns in the new process; the old
/// one exits.
///
/// # Errors
/// If there is more than one thread, or the kernel refuses a step.
pub fn into_background() -> io::Result<Standard> {
    if thread_count()? != 1 {
        return Err(io::Error::other("a process with several threads cannot go into the background"));
    }
    // SAFETY: there is a single thread, checked above, so that the child's memory is whole: no lock is held in it.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => process::exit(0),
        ForkResult::Child => setsid()?,
    };
    std::env::set_current_dir("/")?;
    umask(Mode::empty());
    close_above_stderr()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(Standard { output, input })
}

/// How many threads this process has.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// A descriptor for the process `pid`, readable when it has ended.
///
/// # Errors
/// `ESRCH` if there is no such process.
pub fn open_process(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 0).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Closes what was inherited from whoever started us: a pipe held open by a daemon makes its reader wait for ever.
fn close_above_stderr() -> io::Result<()> {
    let inherited: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > libc::STDERR_FILENO)
        .collect();
    for number in inherited {
        // The number of the listing itself is among them and is closed by now.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}
