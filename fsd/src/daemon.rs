//! The process that serves an image, and the way to it: joined where it runs, started where it does not.
//!
//! ```text
//! <runtime_dir>/<key>/   one daemon; the key is a digest of all that distinguishes it
//!     lock               flock: held while a client joins or starts it, and while it leaves
//!     socket             control
//!     spec.json          what it was started for
//!     log                its standard error
//!     root/              the mount point, in the daemon's own mount namespace
//!     images/            where other images are mounted whose files clients bind, in the daemon's own mount namespace
//!     session/           empty: a client may mount files of its own over it, in a mount namespace of its own
//! ```
//!
//! A daemon without clients, whose mount no background program sees any more, leaves after a while: with the lock held,
//! it takes its directory away and detaches the mount from its own namespace. What killed ones left beside it is taken
//! away whenever one starts or leaves. Told to leave, it does so at once, and
//! goes on serving the programs that have copies of the mount, unseen, until the last of them is gone.

mod engine;
mod join;
mod mount_points;
mod pretence;
mod serve;
mod state;
mod traces;

use serde::{Deserialize, Serialize};
use siphon_image::libraries::Wanted;
use siphon_image::open::Facts;
use siphon_overlay::error::Error as OverlayError;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::{self, Reply, Request};
use crate::sys::subordinate_ids::SubordinateIds;
use crate::sys::{mounts, namespaces};

pub use crate::control::{DataImage, DataPlace, Engine, EngineName, MountPointKind};
pub use engine::{LayerEngine, try_kernel};
pub use join::{join, release, release_if_read_only};
pub use pretence::Pretence;
pub use serve::serve;
pub use traces::{chunk_trace, remove_traces};

/// What a daemon serves, and how. Everything but `idle`, `cache_dir` and `cache_bytes` is part of its
/// key: a daemon that runs already keeps its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The image, as a user names it: [`crate::locator::Locator::parse`] understands it.
    pub image: String,
    /// Layers that are only read, between the image and where writes go, lowest first:
    /// [`crate::layers::Overlay::find`] understands them.
    pub overlays: Vec<PathBuf>,
    /// Where writes go.
    pub layer: Layer,
    /// How much memory a temporary layer may take, in bytes; the kernel's default, half of all, if `None`.
    pub memory_bytes: Option<u64>,
    /// Which ids exist in its namespace.
    pub ids: Ids,
    /// Runs of different scopes, such as batch jobs, do not share a daemon.
    pub scope: String,
    /// Takes the bytes of remote images.
    pub cache_dir: PathBuf,
    /// Bytes of decoded content to keep at most; chosen by the memory there is if `None`.
    pub cache_bytes: Option<u64>,
    /// How long it stays without clients.
    pub idle: Duration,
    /// Where it mounts.
    pub placement: Placement,
    /// Who merges the image and the layer.
    pub engine: LayerEngine,
}

/// Where writes go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layer {
    /// Nowhere: they are refused. A run of a sandbox is served the sandbox's own layer all the same, which it shares
    /// with runs that write, and refuses writes by itself.
    ReadOnly,
    /// Into memory, until the daemon leaves.
    Temporary,
    /// Into this directory: a sandbox, or a plain directory that is the image itself.
    Directory(PathBuf),
    /// Into this overlay, of any kind that takes writes; the image's own path for its own overlay partition. It is written
    /// to, or there is no daemon.
    Overlay(PathBuf),
}

impl Layer {
    /// The directory or image file that only one daemon may write to.
    pub(crate) fn directory(&self) -> Option<&Path> {
        match self {
            Self::ReadOnly | Self::Temporary => None,
            Self::Directory(directory) | Self::Overlay(directory) => Some(directory),
        }
    }
}

/// Which ids exist in the daemon's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ids {
    /// The caller's own only, in a user namespace: everything belongs to the caller.
    Caller,
    /// The caller is root in a user namespace, and these are the other users and groups, from 1 on. Without any, or
    /// where the host does not let them be mapped, root is alone and everything belongs to it.
    Root(SubordinateIds),
    /// All that the starting process has, for root: no user namespace.
    Host,
}

/// Where the daemon mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// In its own mount namespace, for clients that join it.
    InNamespace,
    /// On this directory of the host's tree, until it is unmounted.
    HostMount(PathBuf),
}

/// A daemon could not be started or joined, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The image.
    #[error(transparent)]
    Image(#[from] crate::locator::Error),
    /// The layer.
    #[error("cannot use the layer {path}")]
    Layer {
        /// Its directory.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: OverlayError,
    },
    /// A file that another image was to have.
    #[error("{inside} doesn't exist in image {image}")]
    NotInside {
        /// The image.
        image: PathBuf,
        /// The path in it.
        inside: PathBuf,
    },
    /// The kernel's overlayfs was asked for and cannot be used.
    #[error("the kernel cannot merge the image and its layer: {reason}")]
    Engine {
        /// Why.
        reason: String,
    },
    /// The directories that daemons keep their state in.
    #[error("cannot use {path} for the state of a daemon")]
    State {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// Someone else could meddle with the state.
    #[error("{path} must be a directory of user {uid} that nobody else can enter")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Whose it must be.
        uid: u32,
    },
    /// Namespaces.
    #[error(transparent)]
    Namespace(#[from] namespaces::Error),
    /// What lies between the image and where writes go, or where they go.
    #[error(transparent)]
    Overlay(#[from] crate::layers::Error),
    /// Mounts.
    #[error(transparent)]
    Mount(#[from] mounts::Error),
    /// The socket of a running daemon.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// A system call of the process itself.
    #[error("cannot {step}")]
    Process {
        /// What was attempted.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A started daemon said why it cannot serve.
    #[error("{message}")]
    Start {
        /// What it said.
        message: String,
        /// As [`DaemonError::is_the_machines`] there.
        is_the_machines: bool,
    },
    /// A started daemon ended without a word.
    #[error("the daemon ended before it was ready; its last words are: {log}")]
    Died {
        /// The end of its log.
        log: String,
    },
}

impl DaemonError {
    /// Whether the filesystem where daemons have their state is full or read-only.
    fn takes_no_files(&self) -> bool {
        use rustix::io::Errno;
        let Self::State { source, .. } = self else { return false };
        let reasons = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS];
        Errno::from_io_error(source).is_some_and(|errno| reasons.contains(&errno))
    }

    /// Whether the machine does not let siphon do what every run needs, whatever the image.
    pub fn is_the_machines(&self) -> bool {
        match self {
            Self::Namespace(_) => true,
            Self::Mount(error) => error.is_the_machines(),
            Self::Start { is_the_machines, .. } => *is_the_machines,
            _ => false,
        }
    }
}

/// A running daemon that counts this process among its clients.
#[derive(Debug)]
pub struct Joined {
    /// The root of the image: a path in the daemon's mount namespace, or in the host's for a host mount.
    pub root: PathBuf,
    /// The sandbox that writes go to, if they go to one.
    pub sandbox: Option<PathBuf>,
    /// An empty directory to mount over.
    pub session: PathBuf,
    /// The directory that has a mount for each of the other images that clients of the daemon bind from, if it exists.
    pub images: PathBuf,
    /// What the image says of itself.
    pub facts: Facts,
    /// Whether writes are taken; if not, why.
    pub writable: Result<(), String>,
    /// Whether there are other ids than the caller's; if not, why.
    pub other_ids: Result<(), String>,
    /// What merges the image and the layer; none without a layer.
    pub engine: Option<Engine>,
    /// The daemon's process id.
    pub pid: i32,
    /// The daemon's process: readable when it ends.
    pub pidfd: OwnedFd,
    /// Where it is asked.
    pub socket: PathBuf,
}

impl Joined {
    /// Has places to mount on, which are made where the image lacks them, and returns them with every
    /// link followed, relative to [`Joined::root`].
    ///
    /// # Errors
    /// [`DaemonError::Control`] if one cannot be made, such as below a file.
    pub fn make_mount_points(&self, points: &[(PathBuf, MountPointKind)]) -> Result<Vec<PathBuf>, DaemonError> {
        if self.engine.as_ref().is_some_and(|engine| engine.name == EngineName::Kernel) {
            return mount_points::make_merged(self, points);
        }
        match control::ask(&self.socket, &Request::MountPoints(points.to_vec()))? {
            Reply::MountPoints(paths) => Ok(paths),
            _ => Err(control::Error::Refused("the daemon answered something else".to_owned()).into()),
        }
    }

    /// Has another image mounted and returns where the files in it are, below [`Joined::images`], links followed within
    /// the image.
    ///
    /// # Errors
    /// [`DaemonError::Control`] if that is no such image, or has no such file.
    pub fn image(&self, image: &DataImage) -> Result<DataPlace, DaemonError> {
        match control::ask(&self.socket, &Request::Image(image.clone()))? {
            Reply::Image(place) => Ok(place),
            _ => Err(control::Error::Refused("the daemon answered something else".to_owned()).into()),
        }
    }

    /// Of each library, whether the programs of the image find it in there, as it is now.
    ///
    /// # Errors
    /// [`DaemonError::Control`] if the daemon does not answer.
    pub fn libraries(&self, wanted: &[Wanted]) -> Result<Vec<bool>, DaemonError> {
        match control::ask(&self.socket, &Request::Libraries(wanted.to_vec()))? {
            Reply::Libraries(present) => Ok(present),
            _ => Err(control::Error::Refused("the daemon answered something else".to_owned()).into()),
        }
    }

    /// Moves this process, which must have one thread, into the daemon's namespaces. What it mounts from then on is
    /// seen by all clients, until it makes a mount namespace of its own.
    ///
    /// # Errors
    /// [`DaemonError::Namespace`].
    pub fn enter(&self) -> Result<(), DaemonError> {
        use std::os::fd::AsFd;
        Ok(namespaces::join(self.pidfd.as_fd(), self.pid)?)
    }
}

/// Has the daemon that is asked at `socket` wait for a run's system calls that concern ids. To be called before the run
/// joins any namespace.
///
/// # Errors
/// [`DaemonError::Control`].
pub fn pretence(socket: &Path) -> Result<Pretence, DaemonError> {
    match control::begin(socket, &Request::Pretend)? {
        (Reply::Pretending, stream) => Ok(Pretence::new(stream)),
        _ => Err(control::Error::Refused("the daemon answered something else".to_owned()).into()),
    }
}

/// Takes away what a daemon that was killed left on `directory`; does nothing where there is no dead mount of ours.
///
/// # Errors
/// [`DaemonError::Mount`] if it cannot be unmounted.
pub fn unmount_dead(directory: &Path) -> Result<(), DaemonError> {
    // A request that is under way when the daemon dies is aborted; later ones find nobody connected.
    let dead = [rustix::io::Errno::NOTCONN, rustix::io::Errno::CONNABORTED].map(|errno| Some(errno.raw_os_error()));
    match std::fs::metadata(directory) {
        Err(error) if dead.contains(&error.raw_os_error()) => unmount(directory),
        _ => Ok(()),
    }
}

/// Takes a mount that `siphon` made on `directory` away. Its daemon leaves by itself.
///
/// # Errors
/// [`DaemonError::Mount`] if it is busy or not ours.
pub fn unmount(directory: &Path) -> Result<(), DaemonError> {
    Ok(mounts::unmount(directory)?)
}
