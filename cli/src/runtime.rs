//! Applies a [`Plan`] top to bottom and becomes the program. It decides nothing.
//!
//! The process is single-threaded throughout: a user namespace cannot be joined otherwise. It has joined the daemon's
//! namespaces when it gets here, and takes a mount namespace of its own from them, so that nothing that it mounts is
//! seen by others and all of it goes with the last process of the run.

mod cgroups;
mod instance;
mod limits;
mod mount;
mod namespaces;
mod processes;
mod signals;

pub use cgroups::{CgroupFile, enter_cgroup};
pub use instance::{Background, Logs, Part, become_program_inside, into_background, split};
pub use limits::start_again;

use crate::plan::{Failure, Mount, Plan, Processes, Start};
use crate::report::Report;
use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, fchdir, pivot_root};
use siphon_fsd::daemon::Pretence;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Where the image lies and where files can be kept, both as the joined namespaces name them.
#[derive(Debug)]
pub struct Place {
    /// The mounted image.
    pub root: PathBuf,
    /// An existing directory of our own, over which a temporary filesystem is mounted.
    pub session: PathBuf,
    /// Where other images are mounted, if there is such a directory.
    pub images: PathBuf,
    /// Who pretends ids, where the plan says so.
    pub pretence: Option<Pretence>,
}

/// Mounts, enters and executes. Returns only if that fails.
///
/// # Errors
/// What failed, with the mount or program that it failed on.
pub fn apply(plan: &Plan, place: Place, report: Report) -> anyhow::Result<std::convert::Infallible> {
    // What follows happens in the container's first process, where there is one: only such a one can mount its /proc.
    let first = match plan.namespaces.processes {
        Processes::Shared => None,
        Processes::Own | Processes::OwnWithoutInit => Some(processes::enter_own()?),
    };
    build(plan, &place, report)?;
    match first {
        Some(first) if plan.namespaces.processes == Processes::Own => first.become_init()?,
        Some(first) => first.become_program()?,
        None => {}
    }
    settle_privileges(plan, place.pretence)?;
    execute(plan)
}

/// Everything up to the program: namespaces, mounts, root, working directory.
fn build(plan: &Plan, place: &Place, report: Report) -> anyhow::Result<()> {
    namespaces::separate(&plan.namespaces)?;
    // What is made for the run is readable whatever the caller's umask.
    let callers_umask = umask(Mode::S_IWGRP | Mode::S_IWOTH);
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let images = mount::Images::take(&place.images, &plan.mounts)?;
    let root = mount::root(&place.root, plan.writable_root)?;
    let session = mount::Session::new(&place.session)?;
    for (index, file) in plan.files.iter().enumerate() {
        judge(file, session.mount(&root, index, file), report)?;
    }
    session.close()?;
    for bind in &plan.mounts {
        judge(bind, mount::place(&root, bind, &images), report)?;
    }
    drop(images);
    for warning in &plan.warnings {
        report.warning(warning);
    }
    fchdir(&root).context("cannot enter the image")?;
    enter()?;
    start(&plan.start)?;
    umask(plan.umask.map_or(callers_umask, Mode::from_bits_truncate));
    Ok(())
}

/// What the program may do: nothing by setuid programs, or whatever it asks for, by word only.
fn settle_privileges(plan: &Plan, pretence: Option<Pretence>) -> anyhow::Result<()> {
    if plan.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().context("cannot give up gaining privileges")?;
    }
    if let Some(pretence) = pretence {
        pretence.begin().context("cannot pretend users and owners; --ignore-fakeroot-command runs without them")?;
    }
    Ok(())
}

/// What comes of a mount, by what its failure was planned to mean.
fn judge(mount: &Mount, result: anyhow::Result<()>, report: Report) -> anyhow::Result<()> {
    let target = mount.target.display();
    match (result, mount.failure) {
        (Err(error), Failure::Fatal) => return Err(error.context(format!("while mounting {target}"))),
        (Err(error), Failure::Warning) => report.warning(format_args!("Skipping mount {target}: {error:#}")),
        (Err(error), Failure::Silent) => tracing::debug!("skipped mount {target}: {error:#}"),
        (Ok(()), _) => {}
    }
    Ok(())
}

/// Makes the current directory the root. The old root is stacked below the new one for a moment and then detached, so
/// that no directory of the image has to hold it (`pivot_root(2)`, "pivot_root(".", ".")").
fn enter() -> anyhow::Result<()> {
    pivot_root(".", ".").context("cannot make the image the root directory")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot leave the host's root directory")?;
    chdir("/").context("cannot enter the new root directory")?;
    mount::bindable_root().context("cannot let the root directory be bound")
}

fn start(start: &Start) -> anyhow::Result<()> {
    match start {
        Start::At(directory) => {
            let failed = || format!("failed to set working directory: chdir {}", directory.display());
            chdir(directory).map_err(std::io::Error::from).with_context(failed)
        }
        Start::FirstOf(directories) => match directories.iter().any(|directory| chdir(directory.as_path()).is_ok()) {
            true => Ok(()),
            false => bail!("failed to set working directory: none of {directories:?} exists in the container"),
        },
    }
}

/// Becomes the program.
fn execute(plan: &Plan) -> anyhow::Result<std::convert::Infallible> {
    start_by(plan, |command| Err(command.exec()))
}

/// Has `start` start the program, from each place where it could be in turn. It gets the default answer to a closed
/// pipe, which the start of a Rust program takes away.
fn start_by<T>(plan: &Plan, mut start: impl FnMut(&mut Command) -> io::Result<T>) -> anyhow::Result<T> {
    let (program, arguments) = plan.argv.split_first().context("there is no program to run")?;
    let mut failure = None;
    for candidate in candidates(program, &plan.environment) {
        let variables = plan.environment.iter().map(|(name, value)| (name, value));
        let mut command = Command::new(&candidate);
        command.arg0(program).args(arguments).env_clear().envs(variables);
        let error = match start(&mut command) {
            Ok(started) => return Ok(started),
            Err(error) => error,
        };
        let absent = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        if !(absent && failure.is_some()) {
            failure = Some((candidate, error));
        }
    }
    match failure {
        Some((candidate, error)) if error.kind() != ErrorKind::NotFound || program.as_bytes().contains(&b'/') => {
            Err(error).with_context(|| format!("cannot execute {} in the container", candidate.display()))
        }
        _ => bail!("{program:?}: executable file not found in $PATH"),
    }
}

/// What `execvp` would try, each with a slash so that it is not looked for again.
fn candidates(program: &OsStr, environment: &[(OsString, OsString)]) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(program)];
    }
    let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone()).unwrap_or_default();
    let here = |directory: PathBuf| if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
    std::env::split_paths(&path).map(|directory| here(directory).join(program)).collect()
}
