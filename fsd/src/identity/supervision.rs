//! Answers the calls of one container as they arrive.

use super::processes::{Kernel, Process, Processes};
use super::{Identity, Memory, QUESTIONS, Question};
use crate::sys::seccomp::{Call, Listener};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Answers until no process of the container is left.
///
/// # Errors
/// If the listener is none.
pub fn supervise(listener: &Listener) -> io::Result<()> {
    let (mut processes, kernel) = (Processes::default(), ProcFs::new()?);
    let mut members = Members::default();
    while let Some(call) = listener.next(|| members.are_there())? {
        members.learn_from(call.thread);
        let question = QUESTIONS.iter().find(|(number, _)| *number == call.number).map(|(_, question)| *question);
        let result = question.ok_or(Errno::ENOSYS).and_then(|question| {
            let mut at = At { processes: &mut processes, kernel: &kernel, listener };
            at.answer(&call, question)
        });
        listener.answer(&call, result.map_err(|errno| errno as i32))?;
    }
    Ok(())
}

/// The processes of a container, by the mount namespace that is their own.
#[derive(Default)]
struct Members {
    /// As `/proc/PID/ns/mnt` names it; `None` as long as nobody has called, and then they are taken to be there.
    namespace: Option<PathBuf>,
}

impl Members {
    /// The first one who calls is the process that becomes the program, and waits now.
    fn learn_from(&mut self, thread: u32) {
        if self.namespace.is_none() {
            self.namespace = fs::read_link(format!("/proc/{thread}/ns/mnt")).ok();
        }
    }

    /// Whether one of them lives. A program that went on into a mount namespace of its own is not seen, which only
    /// matters to kernels before 5.9, and after everything else in the container has ended.
    fn are_there(&self) -> bool {
        let (Some(namespace), Ok(processes)) = (&self.namespace, fs::read_dir("/proc")) else { return true };
        // An entry that is no process has no such link, and neither has one that has ended.
        let mut links = processes.filter_map(|entry| fs::read_link(entry.ok()?.path().join("ns/mnt")).ok());
        links.any(|link| link == *namespace)
    }
}

/// What an answer takes.
struct At<'a> {
    processes: &'a mut Processes,
    kernel: &'a ProcFs,
    listener: &'a Listener,
}

impl At<'_> {
    fn answer(&mut self, call: &Call, question: Question) -> Result<i64, Errno> {
        let memory = CallersMemory { call, listener: self.listener };
        // Most containers never have anyone but root.
        if self.processes.is_empty() {
            let mut identity = Identity::default();
            let answer = identity.answer(question, call.arguments, &memory)?;
            if identity != Identity::default() {
                self.processes.change(self.caller(call)?, identity, self.kernel);
            }
            return Ok(answer);
        }
        let process = self.caller(call)?;
        let old = self.processes.identity(process, self.kernel);
        let mut identity = old.clone();
        let answer = identity.answer(question, call.arguments, &memory)?;
        if identity != old {
            self.processes.change(process, identity, self.kernel);
        }
        Ok(answer)
    }

    fn caller(&self, call: &Call) -> Result<Process, Errno> {
        let process = self.kernel.process(call.thread).ok_or(Errno::ESRCH)?;
        // Only now is it sure that no other process has taken the number over.
        if self.listener.is_waiting(call) { Ok(process) } else { Err(Errno::ESRCH) }
    }
}

/// The memory of the process that waits for an answer.
struct CallersMemory<'a> {
    call: &'a Call,
    listener: &'a Listener,
}

impl CallersMemory<'_> {
    fn open(&self, options: &OpenOptions) -> Result<File, Errno> {
        let file = options.open(format!("/proc/{}/mem", self.call.thread)).map_err(|_| Errno::EFAULT)?;
        if self.listener.is_waiting(self.call) { Ok(file) } else { Err(Errno::ESRCH) }
    }
}

impl Memory for CallersMemory<'_> {
    fn read(&self, address: u64, words: u32) -> Result<Vec<u32>, Errno> {
        let mut bytes = vec![0; 4 * usize::try_from(words).map_err(|_| Errno::EINVAL)?];
        if !bytes.is_empty() {
            let file = self.open(OpenOptions::new().read(true))?;
            file.read_exact_at(&mut bytes, address).map_err(|_| Errno::EFAULT)?;
        }
        Ok(bytes.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]])).collect())
    }

    fn write(&self, address: u64, words: &[u32]) -> Result<(), Errno> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let file = self.open(OpenOptions::new().write(true))?;
        file.write_all_at(&bytes, address).map_err(|_| Errno::EFAULT)
    }
}

/// Processes as `/proc` has them.
struct ProcFs {
    ticks_per_second: u64,
}

impl ProcFs {
    fn new() -> io::Result<Self> {
        let ticks = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
        Ok(Self { ticks_per_second: ticks })
    }
}

impl Kernel for ProcFs {
    fn process(&self, thread: u32) -> Option<Process> {
        if thread == 0 {
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        let id = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
        parse_stat(id, &fs::read(format!("/proc/{id}/stat")).ok()?)
    }

    fn now(&self) -> u64 {
        // The clock that the kernel takes the time of a process's making from.
        let Ok(time) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return 0 };
        let part = |number: i64| u64::try_from(number).unwrap_or(0);
        let nanos_per_tick = 1_000_000_000 / self.ticks_per_second;
        part(time.tv_sec()) * self.ticks_per_second + part(time.tv_nsec()) / nanos_per_tick
    }
}

/// The fourth and the twenty-second field of `/proc/PID/stat`. The second, a name, may hold anything, but ends at the
/// last parenthesis.
fn parse_stat(id: u32, line: &[u8]) -> Option<Process> {
    let end = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(line.get(end + 1..)?).ok()?.split_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    Some(Process { id, parent, made: fields.nth(17)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_strange_name_is_read() {
        let line = b"7 (a) b) (c 1 2) S 5 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 9";

        assert_eq!(parse_stat(7, line), Some(Process { id: 7, parent: 5, made: 123_456 }));
        assert_eq!(parse_stat(7, b"7 (a) S"), None);
        assert_eq!(parse_stat(7, b""), None);
    }

    #[test]
    fn a_container_is_there_as_long_as_one_process_has_its_namespace() {
        let mut members = Members::default();

        assert!(members.are_there());
        members.learn_from(std::process::id());
        assert!(members.namespace.is_some() && members.are_there());
        assert!(!Members { namespace: Some("mnt:[1]".into()) }.are_there());
    }

    #[test]
    fn this_process_was_made_in_the_past() {
        let kernel = ProcFs::new().unwrap();

        let own = kernel.process(std::process::id()).unwrap();

        assert!(own.made > 0 && own.made <= kernel.now());
        assert_eq!(kernel.process(0), None);
    }
}
