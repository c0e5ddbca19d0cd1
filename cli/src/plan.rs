//! From image facts, settings and host facts to a [`Plan`]: a value that [`crate::runtime`] applies top to bottom.
//!
//! Everything here is pure: no system call, no file, no environment.

mod accounts;
pub mod contain;
pub mod environment;
pub mod gpu;
mod host_facts;
mod mounts;

pub use crate::settings::{Namespaces, Processes};
use environment::Program;
use gpu::Library;
use gpu::cdi::CdiError;
pub use host_facts::HostFacts;

use crate::settings::{RunSettings, Writes};
use siphon_image::open::Facts;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What Docker sets, for those who do not want the caller's umask.
const DEFAULT_UMASK: u32 = 0o022;

/// All that happens between joining the daemon and the first instruction of the contained program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is not shared with the host.
    pub namespaces: Namespaces,
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
    /// The umask, if it is not to be the caller's.
    pub umask: Option<u32>,
    /// Whether setuid programs and file capabilities stop counting, for this program and its children.
    pub no_new_privileges: bool,
    /// Whether programs may be any user by their own words, and give files to anyone, without any of it being so.
    pub pretends_ids: bool,
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
    /// Files of another image, read-only.
    Image {
        /// Where the daemon of the run has them mounted.
        source: PathBuf,
        /// What it is.
        kind: SourceKind,
    },
    /// A file with this content.
    File(Vec<u8>),
    /// A directory that holds these files of the host, each under its own name, read-only.
    Libraries(Vec<Library>),
    /// An empty directory of this run alone, which takes writes and forgets them.
    Empty {
        /// Its permissions.
        mode: u32,
    },
    /// A directory of the host that keeps what this run writes; made if it is missing.
    Kept {
        /// The directory of the host, absolute.
        source: PathBuf,
        /// Its permissions if it is made.
        mode: u32,
    },
    /// A small `/dev`.
    Devices(Devices),
    /// The processes of the run's PID namespace, as `/proc` shows them.
    Processes,
}

/// What a small `/dev` holds besides shared memory and links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// Devices of the host, and directories of them, each with a place below `/dev`; none has the place of another.
    pub nodes: Vec<gpu::Device>,
    /// Whether there are pseudo terminals, those of the container alone.
    pub terminals: bool,
    /// The terminal of the host that the run has, which is the console inside.
    pub console: Option<PathBuf>,
    /// Whether there are message queues, those of an IPC namespace of its own.
    pub queues: bool,
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
            Self::Bind { kind, .. } | Self::Image { kind, .. } => *kind,
            Self::File(_) => SourceKind::File,
            Self::Libraries(_) | Self::Empty { .. } | Self::Kept { .. } | Self::Devices(_) | Self::Processes => {
                SourceKind::Directory
            }
        }
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// A bind's source does not exist.
    #[error("while mounting {0}: mount source {0} doesn't exist")]
    NoSource(PathBuf),
    /// The directory that is to keep what a contained run writes does not exist.
    #[error("the directory {0} of --workdir doesn't exist")]
    NoWorkdir(PathBuf),
    /// A SIF image without a place for writes.
    #[error(
        "no SIF writable overlay partition found in {image}; add one (siphon overlay create {image}), make a sandbox of it to \
         keep changes (siphon build --sandbox DIR {image}), keep them in an overlay (--overlay DIR), or use --writable-tmpfs \
         to forget them"
    )]
    NoOverlayPartition {
        /// The image.
        image: String,
    },
    /// The image cannot be written to.
    #[error(
        "{image} is read-only; make a sandbox of it to keep changes (siphon build --sandbox DIR {image}), keep them in an \
         overlay (--overlay DIR), or use --writable-tmpfs to forget them"
    )]
    ReadOnlyImage {
        /// The image.
        image: String,
    },
    /// Root would keep what it asked to lose.
    #[error("{0} is not supported for root; run siphon as another user and without --fakeroot, with nothing to lose")]
    LessForRoot(&'static str),
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
    let inside = settings.fakeroot.map(|_| accounts::as_root(host));
    let host = inside.as_ref().unwrap_or(host);
    if let Some(option) = settings.less_for_root.first().filter(|_| host.uid == 0) {
        return Err(PlanError::LessForRoot(option));
    }
    contain::check(settings, host)?;
    let mut warnings = settings.warnings.clone();
    let home = home(settings, host);
    let files = mounts::files(settings, image, host, &home, &mut warnings);
    let mounts = mounts::mounts(settings, host, &home, &mut warnings)?;
    let settings = &gpu::with_variables(settings, &host.gpu);
    let libraries = gpu::library_path(&settings.gpu);
    let Program { argv, environment } = environment::program(settings, image, host, &home, &libraries, &mut warnings)?;
    let start = first_directory(settings, host, &home);
    Ok(Plan {
        namespaces: settings.namespaces.clone(),
        writable_root: settings.writes != Writes::Refused,
        files,
        mounts,
        environment,
        argv,
        start,
        umask: settings.contain.default_umask.then_some(DEFAULT_UMASK),
        // Root loses nothing by them, and its programs may well drop privileges and take them up again.
        no_new_privileges: host.uid != 0,
        pretends_ids: accounts::are_pretended(settings.fakeroot, host),
        warnings,
    })
}

/// A container that runs already, as far as a run in it has to know it.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    /// What its image says of itself.
    pub image: &'a Facts,
    /// The home directory inside.
    pub home: &'a Path,
    /// The directories that hold libraries of the host.
    pub library_path: &'a str,
    /// Whether the caller is root inside.
    pub as_root: bool,
    /// Whether it pretends users and owners.
    pub pretends_ids: bool,
}

/// Makes the plan of a run in an instance, which mounts nothing: the instance has its mounts, its ids and its home.
///
/// # Errors
/// [`PlanError::NoShell`].
pub fn plan_inside(settings: &RunSettings, running: Running<'_>, host: &HostFacts) -> Result<Plan, PlanError> {
    let inside = running.as_root.then(|| accounts::as_root(host));
    let host = inside.as_ref().unwrap_or(host);
    let mut warnings = settings.warnings.clone();
    let (image, home, libraries) = (running.image, running.home, running.library_path);
    let Program { argv, environment } = environment::program(settings, image, host, home, libraries, &mut warnings)?;
    Ok(Plan {
        namespaces: Namespaces::default(),
        writable_root: settings.writes != Writes::Refused,
        files: Vec::new(),
        mounts: Vec::new(),
        environment,
        argv,
        start: first_directory(settings, host, home),
        umask: settings.contain.default_umask.then_some(DEFAULT_UMASK),
        no_new_privileges: host.uid != 0,
        pretends_ids: running.pretends_ids,
        warnings,
    })
}

fn first_directory(settings: &RunSettings, host: &HostFacts, home: &Path) -> Start {
    match &settings.cwd {
        Some(directory) => Start::At(directory.clone()),
        None if settings.contain.contained && settings.left_out.contains("home") => Start::At("/".into()),
        None if settings.contain.contained => Start::FirstOf(vec![home.to_owned(), PathBuf::from("/")]),
        None => Start::FirstOf(vec![host.cwd.clone(), home.to_owned(), PathBuf::from("/")]),
    }
}

/// The home directory inside.
pub fn home(settings: &RunSettings, host: &HostFacts) -> PathBuf {
    mounts::container_home(settings, host)
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

    /// Leaves mounts out that nobody asked for where a link of the image leads them over an earlier one: `/var/tmp` that is a
    /// link to `/tmp`. `places` has what mount points are without links.
    pub fn leave_out_repeated(&mut self, places: &BTreeMap<PathBuf, PathBuf>) {
        let mut taken = BTreeSet::new();
        self.mounts.retain(|mount| {
            let place = places.get(&mount.target).unwrap_or(&mount.target);
            taken.insert(place.clone()) || mount.failure == Failure::Fatal
        });
    }
}

#[cfg(test)]
mod tests;
