//! Runs of siphon itself and of the host's programs, and what an interrupt does to them: the run is told to end, is killed
//! when it does not, and the build cleans up.

use crate::report::Report;
use crate::settings::{Environment, is_own_variable};
use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often it is looked whether the user wants an end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// How long a run has to end by itself once it is told to.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the user wants an end.
#[derive(Debug, Clone)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over what happens at ^C and its like.
    pub(super) fn watch() -> anyhow::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
            signal_hook::flag::register(signal, flag.clone()).context("cannot watch for interrupts")?;
        }
        Ok(Self(flag))
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error once the user wants an end.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.is_set() {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Runs a command to its end. `tick` is called now and then with the time that it has run.
    pub(super) fn run(&self, command: &mut Command, tick: impl FnMut(Duration)) -> anyhow::Result<ExitStatus> {
        self.check()?;
        let program = command.get_program().to_owned();
        let mut child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        self.wait_for(&mut child, tick)
    }

    /// Waits for the end of a process. `tick` is called now and then with the time that has passed.
    pub(super) fn wait_for(&self, child: &mut Child, mut tick: impl FnMut(Duration)) -> anyhow::Result<ExitStatus> {
        let start = Instant::now();
        let mut told: Option<Instant> = None;
        loop {
            if let Some(status) = child.try_wait()? {
                return match told {
                    Some(_) => bail!("interrupted"),
                    None if self.is_set() => bail!("interrupted"),
                    None => Ok(status),
                };
            }
            match told {
                None if self.is_set() => {
                    tell(child, Signal::SIGTERM);
                    told = Some(Instant::now());
                }
                Some(since) if since.elapsed() > PATIENCE => tell(child, Signal::SIGKILL),
                _ => {}
            }
            wait(child);
            tick(start.elapsed());
        }
    }
}

/// Waits for the end of a process, a signal, or a moment.
fn wait(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
        // What comes of the wait is looked at anew in any case.
        Some(Ok(process)) => drop(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&LOOK))),
        _ => std::thread::sleep(Duration::from_millis(20)),
    }
}

fn tell(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// How a run ended, as apptainer says it.
pub(super) fn said(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

/// Siphon itself, with the caller's environment without the variables that are meant for this very build.
pub(super) fn siphon(executable: &PathBuf, environment: &Environment, report: Report) -> Command {
    let mut command = Command::new(executable);
    let passed = environment.variables().filter(|(name, _)| !is_own_variable(name));
    command.args(report.as_flags()).env_clear().envs(passed);
    command
}
