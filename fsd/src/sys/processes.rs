//! Becoming a background process, and watching other ones.

#![expect(unsafe_code, reason = "fork has no safe form, and neither has an end without exit handlers")]

use nix::libc;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, fork, setsid};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::marker::PhantomData;
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

/// A child that does one thing when it is told to, as this process was when it forked. Let go of, it does nothing.
#[derive(Debug)]
pub struct StandBy<Order, Answer> {
    child: nix::unistd::Pid,
    told: Option<PipeWriter>,
    answer: PipeReader,
    speaks: PhantomData<fn(Order) -> Answer>,
}

/// Forks a child that waits with `work`, for what to do it with.
///
/// # Errors
/// If there is more than one thread, or the kernel refuses a step.
pub fn stand_by<Order, Answer>(work: impl FnOnce(Order) -> Result<Answer, String>) -> io::Result<StandBy<Order, Answer>>
where
    Order: Serialize + DeserializeOwned,
    Answer: Serialize + DeserializeOwned,
{
    if thread_count()? != 1 {
        return Err(io::Error::other("a process with several threads cannot fork"));
    }
    let ((mut waiting, told), (answer, mut reply)) = (io::pipe()?, io::pipe()?);
    // SAFETY: there is a single thread, checked above, so that the child's memory is whole: no lock is held in it.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(StandBy { child, told: Some(told), answer, speaks: PhantomData }),
        ForkResult::Child => {
            drop((told, answer));
            let mut line = Vec::new();
            let read = waiting.read_to_end(&mut line);
            // The end of the pipe without a word means that this process is not needed.
            if let (Ok(1..), Ok(order)) = (read, serde_json::from_slice(&line)) {
                let result = serde_json::to_vec(&work(order)).unwrap_or_default();
                // Without a reader there is nobody to tell.
                let _ = reply.write_all(&result);
            }
            // SAFETY: this ends the process, without running what the parent has registered for its own end.
            unsafe { libc::_exit(0) }
        }
    }
}

impl<Order, Answer> StandBy<Order, Answer>
where
    Order: Serialize + DeserializeOwned,
    Answer: Serialize + DeserializeOwned,
{
    /// Has the child do it, and waits.
    ///
    /// # Errors
    /// What the work returned, or that the child could not do it.
    pub fn act(mut self, order: &Order) -> Result<Answer, String> {
        let mut ask = || -> io::Result<_> {
            let mut line = Vec::new();
            if let Some(mut told) = self.told.take() {
                told.write_all(&serde_json::to_vec(order)?)?;
            }
            self.answer.read_to_end(&mut line)?;
            Ok(serde_json::from_slice(&line)?)
        };
        ask().unwrap_or_else(|error| Err(format!("the process that was to do it died ({error})")))
    }
}

impl<Order, Answer> Drop for StandBy<Order, Answer> {
    fn drop(&mut self) {
        self.told = None;
        // It ends by itself; who else would wait for it is none of ours.
        let _ = nix::sys::wait::waitpid(self.child, None);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    // The tests themselves have several threads, so that what forks is tested with whole daemons.
    #[test]
    fn a_process_with_threads_does_not_fork() {
        let _other = std::thread::spawn(std::thread::park);

        assert!(stand_by(|(): ()| Ok(())).is_err());
    }
}
