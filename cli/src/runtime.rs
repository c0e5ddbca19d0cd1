//! Applies a [`Plan`] top to bottom and becomes the program. It decides nothing.
//!
//! The process is single-threaded throughout: a user namespace cannot be joined otherwise. It has joined the daemon's
//! namespaces when it gets here, and takes a mount namespace of its own from them, so that nothing that it mounts is
//! seen by others and all of it goes with the last process of the run.

mod mount;

use crate::plan::{Failure, Mount, Plan, Start};
use crate::report::Report;
use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, execve, fchdir, pivot_root};
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Where the image lies and where files can be kept, both as the joined namespaces name them.
#[derive(Debug, Clone)]
pub struct Place {
    /// The mounted image.
    pub root: PathBuf,
    /// An existing directory of our own, over which a temporary filesystem is mounted.
    pub session: PathBuf,
}

/// Mounts, enters and executes. Returns only if that fails.
///
/// # Errors
/// What failed, with the mount or program that it failed on.
pub fn apply(plan: &Plan, place: &Place, report: Report) -> anyhow::Result<std::convert::Infallible> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let root = mount::root(&place.root, plan.writable_root)?;
    let session = mount::Session::new(&place.session)?;
    for (index, file) in plan.files.iter().enumerate() {
        judge(file, session.mount(&root, index, file), report)?;
    }
    session.close()?;
    for bind in &plan.mounts {
        judge(bind, mount::bind_into(&root, bind), report)?;
    }
    for warning in &plan.warnings {
        report.warning(warning);
    }
    fchdir(&root).context("cannot enter the image")?;
    enter()?;
    start(&plan.start)?;
    execute(&plan.argv, &plan.environment)
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
            chdir(directory).with_context(|| format!("failed to set working directory: chdir {}", directory.display()))
        }
        Start::FirstOf(directories) => match directories.iter().any(|directory| chdir(directory.as_path()).is_ok()) {
            true => Ok(()),
            false => bail!("failed to set working directory: none of {directories:?} exists in the container"),
        },
    }
}

fn execute(argv: &[OsString], environment: &[(OsString, OsString)]) -> anyhow::Result<std::convert::Infallible> {
    let program = argv.first().context("there is no program to run")?;
    let arguments = argv.iter().map(|word| c_string(word)).collect::<anyhow::Result<Vec<_>>>()?;
    let variables = environment.iter().map(|(name, value)| {
        let mut pair = name.clone().into_vec();
        pair.push(b'=');
        pair.extend_from_slice(value.as_bytes());
        c_string(&OsString::from_vec(pair))
    });
    let variables = variables.collect::<anyhow::Result<Vec<_>>>()?;
    let mut failure = None;
    for candidate in candidates(program, environment) {
        match execve(&c_string(candidate.as_os_str())?, &arguments, &variables) {
            Ok(never) => match never {},
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) if failure.is_some() => {}
            Err(errno) => failure = Some((candidate, errno)),
        }
    }
    match failure {
        Some((candidate, errno)) if errno != nix::errno::Errno::ENOENT || program.as_bytes().contains(&b'/') => {
            Err(errno).with_context(|| format!("cannot execute {} in the container", candidate.display()))
        }
        _ => bail!("{program:?}: executable file not found in $PATH"),
    }
}

/// What `execvp` would try.
fn candidates(program: &OsStr, environment: &[(OsString, OsString)]) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(program)];
    }
    let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone()).unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(Path::new(program))).collect()
}

fn c_string(text: &OsStr) -> anyhow::Result<CString> {
    CString::new(text.as_bytes()).context("an argument or variable contains a NUL byte")
}
