//! Ext3 file systems in image files: locked, mounted for a moment, and then reachable through a descriptor alone.
//!
//! Root's are mounted by the kernel, where it has ext4 and loop devices (5.8 and later); all others by `fuse2fs`. The mount is
//! detached at once: it goes with the last descriptor of it, however this process ends, and `fuse2fs` with it. The lock is
//! that of apptainer, so that neither program writes to what the other one has; the loop device or `fuse2fs` holds it too,
//! and so for as long as there is a mount.

use super::loop_device::LoopDevice;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::thread::{
    CapabilitySet, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set, set_capabilities,
};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// An xattr of the image file that says who writes to it, for those who may not.
const HOLDER: &str = "user.siphon.holder";
/// Who has a file that nobody writes to.
const READERS: &str = "processes that read it";
/// Longest value of it that is shown.
const MAX_HOLDER_BYTES: usize = 256;

/// How long a lock is waited for: `fuse2fs` writes out what it has after the last process is gone that used it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(50);

/// An ext3 file system could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image file cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Someone else has it.
    #[error(
        "{path} is currently in use{} by {}: one process may write to an ext3 file system while nobody else has it, and any \
         number may read it; an overlay directory knows no such limit for readers",
        if *.write { "" } else { " for writing" }, .holder.as_deref().unwrap_or("another process")
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// Whether it was to be written to.
        write: bool,
        /// Process and host of a writer, if it said so.
        holder: Option<String>,
    },
    /// The program that mounts it for users is not there.
    #[error("cannot mount the ext3 file system in {path}: that needs fuse2fs (package fuse2fs), which cannot be run")]
    NoFuse2fs {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It cannot be mounted.
    #[error("cannot mount the ext3 file system in {path}: {message}")]
    Mount {
        /// The file.
        path: PathBuf,
        /// What was said.
        message: String,
    },
    /// Where it was mounted cannot be used.
    #[error("cannot use {path}, where an ext3 file system is mounted")]
    Place {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// An ext3 file system in a file.
#[derive(Debug, Clone, Copy)]
pub struct ExtImage<'a> {
    /// The file.
    pub path: &'a Path,
    /// Where in it the file system begins, in bytes.
    pub offset_bytes: u64,
    /// How long it is.
    pub size_bytes: u64,
    /// Whether to write to it.
    pub write: bool,
}

/// A mounted one: there for as long as this is.
#[derive(Debug)]
pub struct ExtMount {
    /// Its root directory.
    pub root: File,
    /// Holds the lock.
    _file: File,
}

impl ExtImage<'_> {
    /// Locks and mounts it. `place` is an empty directory that it is mounted on for a moment. The process must have one
    /// thread.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn mount(&self, place: &Path) -> Result<ExtMount, Error> {
        let file = self.lock()?;
        let by_kernel = rustix::process::geteuid().is_root() && self.mount_by_kernel(&file, place);
        if !by_kernel {
            self.mount_by_fuse2fs(&file, place)?;
        }
        // Until it is asked, the kernel takes the root of a FUSE filesystem for root's, who may not exist here, and lets
        // nobody write to it.
        let root = File::open(place).and_then(|root| root.metadata().map(|_| root));
        let detached = detach(place);
        let failed = |source| Error::Place { path: place.into(), source };
        detached.map_err(failed)?;
        Ok(ExtMount { root: root.map_err(failed)?, _file: file })
    }

    /// Locks it as it is locked while it is mounted: for as long as the file is open.
    ///
    /// # Errors
    /// [`Error::Open`] or [`Error::Locked`].
    pub fn lock(&self) -> Result<File, Error> {
        let failed = |source| Error::Open { path: self.path.into(), source };
        let file = OpenOptions::new().read(true).write(self.write).open(self.path).map_err(failed)?;
        let kind = if self.write { libc::F_WRLCK } else { libc::F_RDLCK };
        let range = libc::flock {
            l_type: libc::c_short::try_from(kind).expect("a small constant"),
            l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("a small constant"),
            l_start: libc::off_t::try_from(self.offset_bytes).unwrap_or(libc::off_t::MAX),
            l_len: libc::off_t::try_from(self.size_bytes).unwrap_or(0),
            l_pid: 0,
        };
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&range)) {
                Ok(_) => break,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_INTERVAL);
                }
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
                    let holder = if is_written(&file, range) { holder(&file) } else { Some(READERS.to_owned()) };
                    return Err(Error::Locked { path: self.path.into(), write: self.write, holder });
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        if self.write {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let line = format!("process {} on {}", std::process::id(), host.trim());
            // Where the file can have no xattrs, others are told less.
            let _ = fsetxattr(&file, HOLDER, line.as_bytes(), XattrFlags::empty());
        }
        Ok(file)
    }

    /// Whether the kernel has mounted it: what is open and locked, whatever lies at the path by now.
    fn mount_by_kernel(&self, lock: &File, place: &Path) -> bool {
        let mounted = || -> io::Result<()> {
            let device = LoopDevice::new(lock, self.offset_bytes, self.size_bytes, self.write)?;
            let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            flags.set(MountFlags::RDONLY, !self.write);
            Ok(mount(device.path(), place, "ext4", flags, None)?)
        };
        let result = mounted();
        if let Err(error) = &result {
            tracing::debug!("the kernel does not mount {}: {error}", self.path.display());
        }
        result.is_ok()
    }

    /// It goes into the background by itself, once it is mounted. It inherits the lock, and so has it for as long as it has
    /// anything to write out.
    fn mount_by_fuse2fs(&self, lock: &File, place: &Path) -> Result<(), Error> {
        let mut options = format!("offset={}", self.offset_bytes);
        if !self.write {
            options.push_str(",ro");
        }
        let mut command = Command::new("fuse2fs");
        // By the locked descriptor, whatever lies at the path by now; nor are characters of the path options then.
        command.arg(format!("/proc/self/fd/{}", lock.as_raw_fd())).arg(place).args(["-o", &options]);
        let inherited = |flags| {
            fcntl_setfd(lock, flags).map_err(|errno| Error::Open { path: self.path.into(), source: errno.into() })
        };
        inherited(FdFlags::empty())?;
        let output = with_mount_capability(|| command.output());
        inherited(FdFlags::CLOEXEC)?;
        let output = output.map_err(|source| Error::NoFuse2fs { path: self.path.into(), source })?;
        if !output.status.success() {
            return Err(Error::Mount { path: self.path.into(), message: words(&output) });
        }
        Ok(())
    }
}

/// Whether the lock that is in the way is a writer's.
fn is_written(file: &File, mut range: libc::flock) -> bool {
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut range));
    asked.is_err() || i32::from(range.l_type) == libc::F_WRLCK
}

/// Who said that it writes to the file.
fn holder(file: &File) -> Option<String> {
    let mut value = vec![0; MAX_HOLDER_BYTES];
    let len = fgetxattr(file, HOLDER, &mut value).ok()?;
    value.truncate(len);
    let text = String::from_utf8(value).ok()?;
    (!text.is_empty() && !text.chars().any(char::is_control)).then_some(text)
}

/// All that a program said, on one line.
fn words(output: &Output) -> String {
    let bytes = [output.stderr.as_slice(), &output.stdout].concat();
    let lines = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { output.status.to_string() } else { lines.join("; ") }
}

/// Has programs that `start` starts keep the right to mount in a user namespace that this process made: without it they
/// would lose it where this process is not root there.
fn with_mount_capability<T>(start: impl FnOnce() -> T) -> T {
    let admin = CapabilitySet::SYS_ADMIN;
    let own = capabilities(None).ok().filter(|own| own.permitted.contains(admin));
    if let Some(mut own) = own {
        own.inheritable |= admin;
        let raised = set_capabilities(None, own).and_then(|()| configure_capability_in_ambient_set(admin, true));
        if let Err(errno) = raised {
            tracing::debug!("cannot pass the right to mount on: {errno}");
        }
    }
    let started = start();
    if let Some(own) = own {
        // Both only take away, which is always allowed.
        let _ = clear_ambient_capability_set();
        let _ = set_capabilities(None, own);
    }
    started
}

/// Takes away what is mounted on `place`, as soon as nobody uses it.
///
/// # Errors
/// If nothing is, or it may not be taken away.
pub(crate) fn detach(place: &Path) -> io::Result<()> {
    match unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // In the host's own namespace a user may not, but fusermount3 does.
        Err(rustix::io::Errno::PERM) => {
            let output = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(place).output()?;
            if output.status.success() { Ok(()) } else { Err(io::Error::other(words(&output))) }
        }
        other => Ok(other?),
    }
}

/// An ext3 file system to make.
#[derive(Debug, Clone)]
pub struct NewExt<'a> {
    /// A file of the length that it is to have.
    pub file: &'a Path,
    /// What is in it.
    pub content: &'a Path,
    /// Whether what is in it belongs to root, and not to the caller.
    pub as_root: bool,
    /// Whether what is not used takes no room.
    pub sparse: bool,
}

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The program that makes it is not there.
    #[error("cannot make an ext3 file system: that needs mke2fs (package e2fsprogs), which cannot be run")]
    NoMke2fs(#[source] io::Error),
    /// It could not.
    #[error("cannot make an ext3 file system: mke2fs said: {0}")]
    Refused(String),
}

/// Where `mke2fs` is for those whose `PATH` leaves the directories of administrators out.
const ADMINISTRATORS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The exit code of `unshare` for a program that is not there.
const NOT_FOUND: i32 = 127;

/// Makes an ext3 file system, as apptainer does.
///
/// # Errors
/// Any [`MakeError`].
pub fn make(new: &NewExt<'_>) -> Result<(), MakeError> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    for directory in ADMINISTRATORS {
        path.push(OsString::from(format!(":{directory}")));
    }
    // In a user namespace where the caller is root, its files belong to root.
    let mut command = Command::new(if new.as_root { "unshare" } else { "mke2fs" });
    if new.as_root {
        command.args(["--map-root-user", "--", "mke2fs"]);
    }
    let discard = if new.sparse { "discard" } else { "nodiscard" };
    command.env("PATH", path).args(["-q", "-F", "-t", "ext3", "-E", discard, "-d"]).arg(new.content).arg(new.file);
    let output = command.output().map_err(MakeError::NoMke2fs)?;
    if output.status.code() == Some(NOT_FOUND) {
        return Err(MakeError::NoMke2fs(io::ErrorKind::NotFound.into()));
    }
    if output.status.success() { Ok(()) } else { Err(MakeError::Refused(words(&output))) }
}
