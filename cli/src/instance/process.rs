//! Processes that are told from later ones of the same number.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

/// One process of this machine, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number, as [`Process::namespace`] counts.
    pub pid: i32,
    /// When it started, in the kernel's ticks since the machine did.
    started: u64,
    /// Which start of the machine that was.
    boot: String,
    /// The PID namespace that the number is of.
    namespace: String,
    /// The user whose process it is.
    uid: u32,
}

/// Whether a process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It does.
    Alive,
    /// It does not, and never will.
    Dead,
    /// It cannot be told from here, where processes have other numbers.
    Unknown,
}

impl Process {
    /// The living process `pid`.
    ///
    /// # Errors
    /// `NotFound` if there is none, or if it has ended and only waits to be reaped.
    pub fn of(pid: i32) -> io::Result<Self> {
        let (started, state) = stat(pid)?;
        if matches!(state, b'Z' | b'X') {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(Self { pid, started, boot: boot()?, namespace: namespace()?, uid: owner(pid)? })
    }

    /// The living process `pid`, which has the same user as this one. In a user namespace that was joined meanwhile the
    /// user may go by another number.
    ///
    /// # Errors
    /// As [`Process::of`].
    pub fn of_same_user(&self, pid: i32) -> io::Result<Self> {
        Ok(Self { uid: self.uid, ..Self::of(pid)? })
    }

    /// Whether it lives. A process that is of another user than `owner` is none that `owner` may have written down.
    pub fn life(&self, owner: u32) -> Life {
        let elsewhere = namespace().map_or(true, |here| here != self.namespace);
        match Self::of(self.pid) {
            _ if boot().is_ok_and(|boot| boot != self.boot) => Life::Dead,
            _ if elsewhere => Life::Unknown,
            Ok(found) if found == *self && self.uid == owner => Life::Alive,
            // In another user namespace, which gives the same user another number.
            Ok(found) if found.started == self.started => Life::Unknown,
            Err(error)
                if error.kind() != ErrorKind::NotFound && error.raw_os_error() != Some(Errno::SRCH.raw_os_error()) =>
            {
                Life::Unknown
            }
            _ => Life::Dead,
        }
    }

    /// A descriptor for it.
    ///
    /// # Errors
    /// `NotFound` if it has ended.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let pid = Pid::from_raw(self.pid).filter(|pid| pid.as_raw_nonzero().get() > 0).ok_or(ErrorKind::NotFound)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| match errno {
            rustix::io::Errno::SRCH => ErrorKind::NotFound.into(),
            errno => io::Error::from(errno),
        })?;
        // The number may have gone to another one before it was opened, and cannot any more.
        if Self::of(self.pid)? != *self {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(descriptor)
    }
}

/// When process `pid` started, and its state (proc_pid_stat(5), fields 22 and 3).
fn stat(pid: i32) -> io::Result<(u64, u8)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program, in parentheses, may contain anything.
    let fields: Vec<_> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let started = fields.get(19).and_then(|field| field.parse().ok());
    let state = fields.first().and_then(|field| field.bytes().next());
    started.zip(state).ok_or_else(|| ErrorKind::InvalidData.into())
}

/// The real user of process `pid`.
fn owner(pid: i32) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = line.and_then(|ids| ids.split_whitespace().next()).and_then(|uid| uid.parse().ok());
    uid.ok_or_else(|| ErrorKind::InvalidData.into())
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The PID namespace of this process.
fn namespace() -> io::Result<String> {
    Ok(fs::read_link("/proc/self/ns/pid")?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn own() -> (Process, u32) {
        let own = Process::of(std::process::id().try_into().unwrap()).unwrap();
        let uid = own.uid;
        (own, uid)
    }

    #[test]
    fn a_process_is_dead_when_another_has_its_number() {
        let (own, uid) = own();

        assert_eq!(own.life(uid), Life::Alive);
        assert_eq!(Process { started: own.started + 1, ..own.clone() }.life(uid), Life::Dead);
        assert_eq!(Process { boot: "another".into(), ..own.clone() }.life(uid), Life::Dead);
        assert_eq!(own.life(uid + 1), Life::Unknown);
        let other = Process { started: own.started + 1, ..own };
        assert_eq!(other.open().unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_process_of_another_pid_namespace_is_not_taken_for_dead() {
        let (own, uid) = own();

        assert_eq!(Process { namespace: "pid:[1]".into(), pid: i32::MAX, ..own }.life(uid), Life::Unknown);
    }

    #[test]
    fn a_process_that_ended_is_dead_before_it_is_reaped() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::of(child.id().try_into().unwrap()).unwrap();
        let uid = process.uid;
        assert_eq!(process.life(uid), Life::Alive);

        drop(child.stdin.take());
        while process.life(uid) == Life::Alive {
            std::thread::yield_now();
        }

        assert_eq!(process.life(uid), Life::Dead);
        assert_eq!(process.open().unwrap_err().kind(), ErrorKind::NotFound);
        child.wait().unwrap();
    }
}
