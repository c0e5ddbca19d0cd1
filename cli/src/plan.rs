//! From image facts, settings and host facts to a [`Plan`]: a value that [`crate::runtime`] applies top to bottom.
//!
//! Everything here is pure: no system call, no file, no environment.

pub mod environment;
pub mod gpu;
mod host_facts;
mod mounts;

use environment::Program;
use gpu::Library;
use gpu::cdi::CdiError;
pub use host_facts::HostFacts;

use crate::settings::{RunSettings, Writes};
use siphon_image::open::Facts;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// All that happens between joining the daemon and the first instruction of the contained program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Whether the root filesystem takes writes.
    pub writable_root: bool,
    /// Files that are made for the run, mounted first.
    pub files: Vec<Mount>,
    /// Mounts of the host's files in the order in which they are made.
    pub mounts: Vec<Mount>,
    /// The whole environment of the first program.
    pub environment: Vec<(OsString, OsString)>,
    /// Program and arguments; the program is found through `PATH` if it has no slash.
    pub argv: Vec<OsString>,
    /// Where to start.
    pub start: Start,
    /// Whether setuid programs and file capabilities stop counting, for this program and its children.
    pub no_new_privileges: bool,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// This one, or the run fails.
    At(PathBuf),
    /// The first of these that exists inside.
    FirstOf(Vec<PathBuf>),
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where: an absolute path inside, whose links are followed inside.
    pub target: PathBuf,
    /// What.
    pub what: What,
    /// What a failure means.
    pub failure: Failure,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A path of the host.
    Bind {
        /// The path of the host, absolute.
        source: PathBuf,
        /// What it is.
        kind: SourceKind,
        /// Whether writes fail.
        read_only: bool,
        /// Whether device nodes and setuid bits count; not for what users bind.
        trusted: bool,
    },
    /// A file with this content.
    File(Vec<u8>),
    /// A directory that holds these files of the host, each under its own name, read-only.
    Libraries(Vec<Library>),
    /// An empty directory of this run alone, which takes writes and forgets them.
    Empty,
}

/// What a mount's source, and so its target, is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// What a mount's failure means for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The user asked for it: its target is made if another mount lacks it, and a failure ends the run.
    Fatal,
    /// A warning.
    Warning,
    /// Nothing: it was a convenience.
    Silent,
}

impl What {
    /// What the target has to be.
    pub fn kind(&self) -> SourceKind {
        match self {
            Self::Bind { kind, .. } => *kind,
            Self::File(_) => SourceKind::File,
            Self::Libraries(_) | Self::Empty => SourceKind::Directory,
        }
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// A bind's source does not exist.
    #[error("while mounting {0}: mount source {0} doesn't exist")]
    NoSource(PathBuf),
    /// The image cannot be written to.
    #[error(
        "{image} is read-only; make a sandbox of it to keep changes (siphon build --sandbox DIR {image}), or use --writable-tmpfs to forget them"
    )]
    ReadOnlyImage {
        /// The image.
        image: String,
    },
    /// `shell` or `run` in an image without `/bin/sh`.
    #[error("the image has no /bin/sh, which \"{0}\" needs; \"exec\" works without one")]
    NoShell(&'static str),
    /// A device of a CDI specification.
    #[error(transparent)]
    Cdi(#[from] CdiError),
}

/// Makes the plan.
///
/// # Errors
/// [`PlanError`] for what cannot work.
pub fn plan(settings: &RunSettings, image: &Facts, host: &HostFacts) -> Result<Plan, PlanError> {
    let mut warnings = settings.warnings.clone();
    let home = mounts::container_home(settings, host);
    let files = mounts::files(settings, image, host, &home, &mut warnings);
    let mounts = mounts::mounts(settings, host, &home, &mut warnings)?;
    let settings = &gpu::with_variables(settings, &host.gpu);
    let Program { argv, environment } = environment::program(settings, image, host, &home)?;
    let start = match &settings.cwd {
        Some(directory) => Start::At(directory.clone()),
        None => Start::FirstOf(vec![host.cwd.clone(), home, PathBuf::from("/")]),
    };
    Ok(Plan {
        writable_root: settings.writes != Writes::Refused,
        files,
        mounts,
        environment,
        argv,
        start,
        // Root loses nothing by them, and its programs may well drop privileges and take them up again.
        no_new_privileges: host.uid != 0,
        warnings,
    })
}

impl Plan {
    /// The mount points that the image's layer has to have. What lies below an earlier mount is that mount's to have.
    pub fn mount_points(&self) -> Vec<(PathBuf, SourceKind)> {
        let all: Vec<&Mount> = self.files.iter().chain(&self.mounts).collect();
        let covered = |index: usize, target: &Path| {
            all[..index].iter().any(|mount| target != mount.target && target.starts_with(&mount.target))
        };
        let needed = all.iter().enumerate().filter(|(index, mount)| !covered(*index, &mount.target));
        needed.map(|(_, mount)| (mount.target.clone(), mount.what.kind())).collect()
    }
}

#[cfg(test)]
mod tests;
