//! Directories that a build works in, and the steps that it has done there.
//!
//! ```text
//! BUILDS/work-XXXX/     one build; its lock is held for as long as it lives, and what a killed one left goes with the next
//!     lock
//!     job, job.answer   the step that is under way
//!     N/layer           what stage N writes
//! ```

use super::child::{self, Interrupt};
use super::job::{Answer, Job, answer_of};
use super::keep::locked;
use crate::report::Report;
use crate::settings::Environment;
use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

const PREFIX: &str = "work-";
const LOCK: &str = "lock";

/// Where a build works.
#[derive(Debug)]
pub(super) struct Workspace<'a> {
    pub(super) path: PathBuf,
    pub(super) interrupt: Interrupt,
    pub(super) report: Report,
    environment: &'a Environment,
    executable: PathBuf,
    /// Whether it stays.
    keep: bool,
    _lock: File,
}

impl<'a> Workspace<'a> {
    /// Makes one below `parent`, after clearing away what dead builds left there.
    pub(super) fn create(
        parent: &Path,
        keep: bool,
        environment: &'a Environment,
        report: Report,
    ) -> anyhow::Result<Self> {
        let failed = || format!("cannot build in {}", parent.display());
        std::fs::create_dir_all(parent).with_context(failed)?;
        let parent = parent.canonicalize().with_context(failed)?;
        let path = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent).with_context(failed)?.keep();
        let lock = File::create(path.join(LOCK)).with_context(failed)?;
        locked(flock(&lock, FlockOperation::NonBlockingLockExclusive)).with_context(failed)?;
        let executable = std::env::current_exe().context("cannot find the siphon program itself")?;
        let interrupt = Interrupt::watch()?;
        let workspace = Self { path, interrupt, report, environment, executable, keep, _lock: lock };
        let dead = dead(&parent);
        if !dead.is_empty() {
            workspace.step(&Job::Remove { paths: dead })?;
        }
        Ok(workspace)
    }

    /// Siphon itself.
    pub(super) fn siphon(&self) -> Command {
        child::siphon(&self.executable, self.environment, self.report)
    }

    /// Does a step in a process of its own.
    pub(super) fn step(&self, job: &Job) -> anyhow::Result<Answer> {
        self.interrupt.check()?;
        self.step_after_all(job)
    }

    /// The same, for cleaning up after an interrupt.
    fn step_after_all(&self, job: &Job) -> anyhow::Result<Answer> {
        let path = self.path.join("job");
        std::fs::write(&path, serde_json::to_vec(job)?).with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = self.siphon();
        // The caller's own variables are what %setup is to see.
        command.envs(self.environment.variables()).arg("build-step").arg(&path);
        let status = if self.interrupt.is_set() {
            command.status().context("cannot run siphon itself")?
        } else {
            self.interrupt.run(&mut command, |_| {})?
        };
        if !status.success() {
            bail!(Told);
        }
        let answer = std::fs::read(answer_of(&path)).context("a step of the build left no answer")?;
        Ok(serde_json::from_slice(&answer)?)
    }
}

/// A step has said itself what went wrong.
#[derive(Debug, thiserror::Error)]
#[error("the build has failed")]
pub struct Told;

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        if self.keep {
            self.report.info(format_args!("The build's directories are kept: {}", self.path.display()));
            return;
        }
        if let Err(error) = self.step_after_all(&Job::Remove { paths: self.layers() }) {
            self.report.warning(format_args!("{} is left behind: {error:#}", self.path.display()));
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            self.report.warning(format_args!("{} is left behind: {error}", self.path.display()));
        }
    }
}

impl Workspace<'_> {
    /// All of it but what the removing itself needs.
    fn layers(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()).collect()
    }
}

/// Workspaces whose builds are dead.
fn dead(parent: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let old = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()));
    let is_dead = |path: &PathBuf| {
        let Ok(lock) = File::open(path.join(LOCK)) else { return false };
        flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
    };
    old.map(|entry| entry.path()).filter(is_dead).collect()
}
