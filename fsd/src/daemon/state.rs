//! The directory of one daemon: who may touch it, and who holds it.

use super::{DaemonError, Layer, Spec};
use crate::control::SOCKET;
use crate::locator::Locator;
use crate::sys::{ext, namespaces};
use base16ct::lower::encode_string as hex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Raised with every change of the control messages or of what a daemon promises.
const PROTOCOL_VERSION: u32 = 6;

/// Bytes of a key: enough to tell the few daemons of a user apart.
const KEY_BYTES: usize = 8;

/// The files of one daemon.
#[derive(Debug, Clone)]
pub(super) struct StateDirectory {
    path: PathBuf,
}

/// The lock, released when dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// A descriptor that keeps the lock held until it is closed too.
    pub(super) fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl StateDirectory {
    /// Where the daemon for `spec` has its state.
    pub(super) fn of(spec: &Spec, runtime_dir: &Path) -> Result<Self, DaemonError> {
        let failed = |source| DaemonError::Process { step: "name the state of the daemon", source };
        let locator = Locator::parse(&spec.image)?;
        // A sandbox that was moved is the same sandbox, and its daemon still writes to it.
        let (name, layer) = match (&locator, &spec.layer) {
            (Locator::Sandbox(_), Layer::Directory(_)) => (String::new(), None),
            (_, layer) => (locator.to_string(), Some(layer)),
        };
        let identity = match (&locator, &spec.layer) {
            // What is written to its overlay partition changes the file, which stays the same image.
            (Locator::File(image), Layer::Overlay(layer)) if image == layer => {
                let data = fs::metadata(image).map_err(failed)?;
                format!("{}:{}:{}", data.dev(), data.ino(), data.len())
            }
            _ => locator.identity()?,
        };
        let overlays = spec.overlays.iter().map(|overlay| {
            let locator = Locator::parse(&overlay.to_string_lossy())?;
            Ok((overlay, locator.identity()?))
        });
        let overlays: Vec<_> = overlays.collect::<Result<_, crate::locator::Error>>()?;
        // A daemon that was started in another container sees other files under the same names.
        let namespaces = namespaces::identity().map_err(failed)?;
        // One that was made anew under its name is another overlay.
        let written = match &spec.layer {
            Layer::Overlay(path) => fs::metadata(path).ok().map(|data| (data.dev(), data.ino())),
            Layer::ReadOnly | Layer::Temporary | Layer::Directory(_) => None,
        };
        let distinguishing = (
            (PROTOCOL_VERSION, env!("CARGO_PKG_VERSION"), namespaces),
            (name, identity, overlays),
            (layer, written, &spec.ids, &spec.scope, &spec.placement, spec.engine),
        );
        let text = serde_json::to_vec(&distinguishing).map_err(|error| failed(error.into()))?;
        let key = hex(&Sha256::digest(&text)[..KEY_BYTES]);
        Ok(Self { path: runtime_dir.join(key) })
    }

    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.into() }
    }

    /// Those of the user's other daemons.
    pub(super) fn siblings(&self) -> Vec<Self> {
        let mut all = self.path.parent().map(Self::all).unwrap_or_default();
        all.retain(|other| other.path != self.path);
        all
    }

    /// Whether it is there, in a directory that is ours alone, and ours alone itself: others could put sockets of theirs
    /// where they can write.
    pub(super) fn is_private(&self) -> bool {
        self.path.parent().is_some_and(is_private) && is_private(&self.path)
    }

    /// Those in `runtime_dir`; none if others could meddle with it.
    pub(super) fn all(runtime_dir: &Path) -> Vec<Self> {
        let entries = is_private(runtime_dir).then(|| fs::read_dir(runtime_dir)).into_iter().flatten().flatten();
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let is_state = |path: &PathBuf| path.is_dir() && path.file_name().is_some_and(is_key);
        paths.filter(is_state).map(|path| Self { path }).collect()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    pub(super) fn root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// Where other images are mounted.
    pub(super) fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// An empty directory over which a client mounts files of its own, in a mount namespace of its own.
    pub(super) fn session(&self) -> PathBuf {
        self.path.join("session")
    }

    /// Where the image alone is mounted for a moment, for the kernel to merge it with a layer.
    pub(super) fn lower(&self) -> PathBuf {
        self.path.join("lower")
    }

    /// Where a layer in memory is mounted for a moment.
    pub(super) fn memory(&self) -> PathBuf {
        self.path.join("memory")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(super) fn spec(&self) -> PathBuf {
        self.path.join("spec.json")
    }

    /// Makes the directories that are missing, checks that they are ours alone, and waits for the lock.
    pub(super) fn create_and_lock(&self) -> Result<Lock, DaemonError> {
        loop {
            if let Some(runtime_dir) = self.path.parent() {
                private_directory(runtime_dir)?;
            }
            private_directory(&self.path)?;
            if let Some(lock) = self.lock(FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock if nobody has it.
    pub(super) fn try_lock(&self) -> Result<Option<Lock>, DaemonError> {
        self.lock(FlockOperation::NonBlockingLockExclusive)
    }

    /// `None` if someone else has it, or took the directory away while this process waited.
    fn lock(&self, operation: FlockOperation) -> Result<Option<Lock>, DaemonError> {
        let path = self.path.join("lock");
        let failed = |source: io::Error| DaemonError::State { path: path.clone(), source };
        let file = match OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        loop {
            match flock(&file, operation) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        let held = file.metadata().map_err(failed)?;
        let still_there = fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino()));
        Ok(still_there.then_some(Lock { file }))
    }

    /// Takes the traces of a dead daemon away. The lock must be held.
    pub(super) fn clear(&self) -> Result<(), DaemonError> {
        for path in [self.socket(), self.spec(), self.log()] {
            ignore_missing(fs::remove_file(&path)).map_err(|source| DaemonError::State { path, source })?;
        }
        let images = fs::read_dir(self.images()).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let own = [self.images(), self.root(), self.session(), self.lower(), self.memory()];
        for path in images.chain(own) {
            ignore_missing(remove_place(&path)).map_err(|source| DaemonError::State { path, source })?;
        }
        Ok(())
    }

    /// Takes away what killed daemons left beside this one. Where no two runs have the same mount, as with writes that
    /// are forgotten or in a container that is gone, nobody comes by who would replace them. What cannot be taken away
    /// is left to the next start.
    pub(super) fn sweep(&self) {
        for sibling in self.siblings() {
            if is_listened_to(&sibling.socket()) {
                continue;
            }
            // Whoever is just starting a daemon there has the lock, until that listens.
            if let Ok(Some(lock)) = sibling.try_lock()
                && !is_listened_to(&sibling.socket())
                && let Err(error) = sibling.remove(&lock)
            {
                tracing::debug!("left {}: {error}", sibling.path.display());
            }
        }
    }

    /// Takes everything away, the lock last. The lock must be held.
    pub(super) fn remove(&self, _held: &Lock) -> Result<(), DaemonError> {
        self.clear()?;
        let lock = self.path.join("lock");
        ignore_missing(fs::remove_file(&lock)).map_err(|source| DaemonError::State { path: lock, source })?;
        ignore_missing(fs::remove_dir(&self.path))
            .map_err(|source| DaemonError::State { path: self.path.clone(), source })
    }

    /// Reads what the daemon was started for.
    pub(super) fn read_spec(&self) -> Result<Spec, DaemonError> {
        let path = self.spec();
        let failed = |source| DaemonError::State { path: path.clone(), source };
        let text = fs::read(&path).map_err(failed)?;
        serde_json::from_slice(&text).map_err(|error| failed(error.into()))
    }

    /// Writes it.
    pub(super) fn write_spec(&self, spec: &Spec) -> Result<(), DaemonError> {
        let path = self.spec();
        let write = || -> io::Result<()> { fs::write(&path, serde_json::to_vec(spec)?) };
        write().map_err(|source| DaemonError::State { path: path.clone(), source })
    }

    /// The last lines of the log, for a daemon that cannot speak for itself.
    pub(super) fn last_words(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(2000)..];
        String::from_utf8_lossy(tail).trim().replace('\n', " | ")
    }
}

/// Whether a name is one that [`StateDirectory::of`] gives.
fn is_key(name: &OsStr) -> bool {
    name.len() == 2 * KEY_BYTES && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
}

/// Whether a daemon lives that listens at `socket`. It is not waited for, however busy it is.
fn is_listened_to(socket: &Path) -> bool {
    let connect = || -> rustix::io::Result<()> {
        let stream =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&stream, &SocketAddrUnix::new(socket)?)
    };
    !matches!(connect(), Err(Errno::CONNREFUSED | Errno::NOENT))
}

/// Whether `path` is a directory of ours that nobody else can enter.
fn is_private(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|data| is_ours_alone(&data))
}

fn is_ours_alone(data: &Metadata) -> bool {
    data.is_dir() && data.uid() == rustix::process::geteuid().as_raw() && data.mode() & 0o077 == 0
}

/// Makes `path` with mode 0700 if it is missing, and makes sure that it is ours and nobody else can enter it.
fn private_directory(path: &Path) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::State { path: path.into(), source };
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let data = match fs::symlink_metadata(path) {
        // Its daemon left in between: the caller starts over when it finds no lock file to open.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        data => data.map_err(failed)?,
    };
    if !is_ours_alone(&data) {
        return Err(DaemonError::Unsafe { path: path.into(), uid: rustix::process::geteuid().as_raw() });
    }
    Ok(())
}

/// Removes a mount point. What was to be mounted there for a moment in the host's own namespace may still be.
fn remove_place(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            ext::detach(path)?;
            fs::remove_dir(path)
        }
        removed => removed,
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
