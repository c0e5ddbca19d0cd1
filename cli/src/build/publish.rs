//! A new file under its name only when it is whole.
//!
//! Until then it has no name at all where the filesystem can do that (`O_TMPFILE`), so that whatever is killed leaves nothing
//! behind; else a name of its own beside the target, which is removed if anything fails.

use anyhow::{Context, bail};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::linkat;
use siphon_image::squashfs::writer;
use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What names of files begin with that are not whole yet.
const PREFIX: &str = ".siphon-";

/// Has `make` fill a file, and puts it in the place of `target` with the permissions `mode`. `make` gets a switch that is set
/// when the user interrupts it.
///
/// # Errors
/// Those of `make`, and if the file cannot be made, synced or named. `target` is then as it was.
pub fn publish(
    target: &Path,
    mode: u32,
    make: impl FnOnce(&File, &AtomicBool) -> anyhow::Result<u64>,
) -> anyhow::Result<u64> {
    Draft::beside(target)?.publish(target, mode, make)
}

/// A file that is not whole.
pub(super) struct Draft {
    content: Content,
    directory: PathBuf,
    interrupted: Arc<AtomicBool>,
}

enum Content {
    Unnamed(File),
    Named(tempfile::NamedTempFile),
}

impl Draft {
    /// An empty one where `target` is to be.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn beside(target: &Path) -> anyhow::Result<Self> {
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let content = Content::create(directory).with_context(|| format!("cannot write to {}", directory.display()))?;
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
            signal_hook::flag::register(signal, interrupted.clone())?;
        }
        Ok(Self { content, directory: directory.to_owned(), interrupted })
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        match &self.content {
            Content::Unnamed(file) => file,
            Content::Named(file) => file.as_file(),
        }
    }

    /// Whether the user wants an end.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// As [`publish`], of what is in it already.
    ///
    /// # Errors
    /// As [`publish`].
    pub(super) fn publish(
        self,
        target: &Path,
        mode: u32,
        make: impl FnOnce(&File, &AtomicBool) -> anyhow::Result<u64>,
    ) -> anyhow::Result<u64> {
        let bytes = make(self.file(), &self.interrupted)?;
        self.file().set_permissions(Permissions::from_mode(mode & !umask()))?;
        self.file().sync_all()?;
        if self.is_interrupted() {
            bail!(writer::Error::Cancelled);
        }
        self.content.name(&self.directory, target)?;
        File::open(&self.directory)?.sync_all()?;
        Ok(bytes)
    }
}

impl Content {
    fn create(directory: &Path) -> std::io::Result<Self> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        if let Ok(unnamed) = open(directory, flags, Mode::from_bits_truncate(0o600)) {
            return Ok(Self::Unnamed(unnamed.into()));
        }
        Ok(Self::Named(tempfile::Builder::new().prefix(PREFIX).tempfile_in(directory)?))
    }

    fn name(self, directory: &Path, target: &Path) -> anyhow::Result<()> {
        let file = match self {
            Self::Named(file) => {
                file.persist(target)?;
                return Ok(());
            }
            Self::Unnamed(file) => file,
        };
        // A link replaces nothing: it gets a name first, for a moment, and takes the target's place with that.
        let own: PathBuf = ["/proc/self/fd", &file.as_raw_fd().to_string()].iter().collect();
        let name = directory.join(format!("{PREFIX}{}", uuid::Uuid::new_v4()));
        linkat(AT_FDCWD, &own, AT_FDCWD, &name, AtFlags::AT_SYMLINK_FOLLOW)
            .with_context(|| format!("cannot name a file in {}", directory.display()))?;
        let renamed = std::fs::rename(&name, target);
        if renamed.is_err() {
            let _the_first_error_is_told = std::fs::remove_file(&name);
        }
        Ok(renamed?)
    }
}

fn umask() -> u32 {
    let present = nix::sys::stat::umask(Mode::empty());
    nix::sys::stat::umask(present);
    present.bits()
}
