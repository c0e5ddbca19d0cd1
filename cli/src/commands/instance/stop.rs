//! `siphon instance stop`.

use super::{no_instance_found, registry};
use crate::args::InstanceStopArgs;
use crate::instance::Record;
use crate::report::Report;
use crate::settings::Common;
use anyhow::{Context, anyhow};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal as Sent, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long a killed instance may take to go: the kernel ends all of its processes first.
const KILL_PATIENCE: Duration = Duration::from_secs(60);

/// An instance that was told to end.
struct Ending {
    record: Record,
    /// Its first process.
    first: OwnedFd,
}

/// Signals the instances and waits until they have ended; kills those that have not after a while.
///
/// # Errors
/// If there is no such instance, or it cannot be signalled.
pub(super) fn stop(args: &InstanceStopArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let signal = match (args.force, &args.signal) {
        (true, _) => Sent::KILL,
        (false, Some(name)) => signal(name)?,
        (false, None) => Sent::INT,
    };
    let registry = registry(args.user.as_deref(), "stop", common)?;
    let pattern = args.name.as_deref().filter(|_| !args.all).unwrap_or("*");
    let records = registry.live(pattern)?;
    if records.is_empty() {
        return Err(no_instance_found());
    }
    let mut endings = Vec::new();
    for record in records {
        // One that has just ended by itself has stopped.
        let Ok(first) = record.process.open() else { continue };
        report.info(format_args!("Stopping {}", described(&record)));
        send(&first, signal, &record)?;
        endings.push(Ending { record, first });
    }
    let mut left: Vec<&Ending> = endings.iter().collect();
    wait(&mut left, Duration::from_secs(args.timeout))?;
    for ending in &left {
        report.info(format_args!("Killing {} (Timeout)", described(&ending.record)));
        send(&ending.first, Sent::KILL, &ending.record)?;
    }
    wait(&mut left, KILL_PATIENCE)?;
    if let Some(ending) = left.first() {
        return Err(anyhow!("instance {} was killed and does not end", ending.record.name));
    }
    for ending in &endings {
        registry.remove(&ending.record)?;
    }
    Ok(())
}

fn described(record: &Record) -> String {
    format!("{} instance of {} (PID={})", record.name, record.image, record.process.pid)
}

fn send(first: &OwnedFd, signal: Sent, record: &Record) -> anyhow::Result<()> {
    match pidfd_send_signal(first, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("cannot signal {}", described(record))),
    }
}

/// Waits until all of `left` have ended and are taken out of it, or the time is over.
fn wait(left: &mut Vec<&Ending>, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !left.is_empty() {
        let rest = deadline.saturating_duration_since(Instant::now());
        let mut waiting: Vec<_> = left.iter().map(|ending| PollFd::new(&ending.first, PollFlags::IN)).collect();
        match poll(&mut waiting, Some(&Timespec::try_from(rest)?)) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the instances"),
        }
        let mut ended = waiting.iter().map(|waited| !waited.revents().is_empty()).collect::<Vec<_>>().into_iter();
        drop(waiting);
        left.retain(|_| !ended.next().unwrap_or(false));
    }
    Ok(())
}

/// `TERM`, `SIGTERM` or `15`.
fn signal(name: &str) -> anyhow::Result<Sent> {
    let refused = || anyhow!("Could not convert stop signal: {name} is not a number");
    let full = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
    let number = match Signal::from_str(&full) {
        Ok(signal) => signal as i32,
        Err(_) => name.parse().map_err(|_| refused())?,
    };
    Sent::from_named_raw(number).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_in_three_ways() {
        for name in ["TERM", "SIGTERM", "15"] {
            assert_eq!(signal(name).unwrap(), Sent::TERM);
        }
        for name in ["FOO", "0", "-9", "999", ""] {
            let error = signal(name).unwrap_err().to_string();
            assert_eq!(error, format!("Could not convert stop signal: {name} is not a number"));
        }
    }
}
