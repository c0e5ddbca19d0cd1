//! Mounts of FUSE filesystems, directly or through `fusermount3`, and the way to take them away again.

use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The filesystem type that the kernel shows for our mounts.
const TYPE: &str = "fuse.siphon";

/// A mount could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The FUSE device cannot be opened.
    #[error("cannot open /dev/fuse: the kernel module fuse is not loaded, or its device is not open to this user")]
    Device(#[source] io::Error),
    /// The kernel refused a mount.
    #[error("cannot mount on {path}")]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to unmount.
    #[error("cannot unmount {path}")]
    Unmount {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// `fusermount3`, which lets users mount into the host's tree, is not there.
    #[error("cannot run fusermount3, which an unprivileged mount needs (package fuse3)")]
    NoFusermount(#[source] io::Error),
    /// `fusermount3` refused.
    #[error("fusermount3 refused {path}: {message}")]
    Refused {
        /// Where.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// The directory is not a mount of ours.
    #[error("{path} is not a mount of siphon")]
    NotOurs {
        /// Where.
        path: PathBuf,
    },
}

impl Error {
    /// Whether the machine refuses what it would have to allow for any image.
    pub fn is_the_machines(&self) -> bool {
        match self {
            Self::Device(_) | Self::NoFusermount(_) => true,
            Self::Mount { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Unmount { .. } | Self::Refused { .. } | Self::NotOurs { .. } => false,
        }
    }
}

/// How a FUSE filesystem is mounted.
#[derive(Debug, Clone)]
pub struct FuseMount<'a> {
    /// What mount listings show as its source.
    pub source: &'a str,
    /// Where it goes.
    pub target: &'a Path,
    /// The kernel refuses every change.
    pub read_only: bool,
    /// Whether setuid bits and file capabilities count.
    pub setuid: bool,
    /// Whether device nodes lead to devices.
    pub devices: bool,
}

impl FuseMount<'_> {
    /// Opens `/dev/fuse` and mounts it with `mount(2)`, for all users of this user namespace.
    ///
    /// # Errors
    /// [`Error::Device`] or [`Error::Mount`].
    pub fn mount(&self, uid: u32, gid: u32) -> Result<OwnedFd, Error> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(Error::Device)?;
        let options = format!(
            "fd={},rootmode=40000,user_id={uid},group_id={gid},allow_other,default_permissions",
            device.as_raw_fd()
        );
        let options = CString::new(options).expect("numbers and words hold no NUL");
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::NODEV, !self.devices);
        flags.set(MountFlags::NOSUID, !self.setuid);
        flags.set(MountFlags::RDONLY, self.read_only);
        rustix::mount::mount(self.source, self.target, TYPE, flags, options.as_c_str())
            .map_err(|errno| Error::Mount { path: self.target.into(), source: errno.into() })?;
        Ok(device.into())
    }

    /// Has `fusermount3` mount, for the calling user only, and takes the device over from it.
    ///
    /// # Errors
    /// [`Error::NoFusermount`], [`Error::Refused`], or [`Error::Mount`] if it does not hand the device over.
    pub fn mount_by_fusermount(&self) -> Result<OwnedFd, Error> {
        let failed = |source| Error::Mount { path: self.target.into(), source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        // A comma or backslash in the source would start another option.
        let source = self.source.replace('\\', "\\\\").replace(',', "\\,");
        let access = if self.read_only { "ro" } else { "rw" };
        let options = format!("{access},nosuid,nodev,default_permissions,subtype=siphon,fsname={source}");
        // Standard input is the one descriptor that a child gets without any further arrangement.
        let output = Command::new("fusermount3")
            .arg("-o")
            .arg(options)
            .arg("--")
            .arg(self.target)
            .env("_FUSE_COMMFD", "0")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .output()
            .map_err(Error::NoFusermount)?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Refused { path: self.target.into(), message });
        }
        let device = super::descriptors::receive(&ours).map_err(failed)?;
        device.ok_or_else(|| failed(io::Error::other("fusermount3 did not hand the FUSE device over")))
    }
}

/// How the kernel's overlayfs is mounted. The layers are named by paths that the calling process can follow.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OverlayMount {
    /// What mount listings show as its source.
    pub source: String,
    /// Where it goes.
    pub target: PathBuf,
    /// What is only read.
    pub lower: PathBuf,
    /// Takes the changes.
    pub upper: PathBuf,
    /// Empty, on the filesystem of `upper`.
    pub work: PathBuf,
    /// Whether setuid bits and file capabilities count.
    pub setuid: bool,
}

impl OverlayMount {
    /// Mounts it. Marks are in extended attributes that every user may write, as in the layers of a view. Inode numbers
    /// of lower and upper files share one space, so that a file keeps its own when it is copied up.
    ///
    /// # Errors
    /// [`Error::Mount`].
    pub fn mount(&self) -> Result<(), Error> {
        let failed = |source: io::Error| Error::Mount { path: self.target.clone(), source };
        let mut options = b"userxattr,xino=on".to_vec();
        for (name, path) in [("lowerdir", &self.lower), ("upperdir", &self.upper), ("workdir", &self.work)] {
            options.extend_from_slice(format!(",{name}=").as_bytes());
            for byte in path.as_os_str().as_bytes() {
                if matches!(byte, b'\\' | b',' | b':') {
                    options.push(b'\\');
                }
                options.push(*byte);
            }
        }
        let options = CString::new(options).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let mut flags = MountFlags::NODEV;
        flags.set(MountFlags::NOSUID, !self.setuid);
        rustix::mount::mount(&self.source, &self.target, "overlay", flags, options.as_c_str())
            .map_err(|errno| failed(errno.into()))
    }
}

/// Hides what is in the directory `place` behind an empty one that nobody can write to.
///
/// # Errors
/// [`Error::Mount`].
pub fn cover(place: &Path) -> Result<(), Error> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("siphon", place, "tmpfs", flags, c"mode=0555,size=4k")
        .map_err(|errno| Error::Mount { path: place.into(), source: errno.into() })
}

/// A writable directory in memory, `capacity_bytes` large, which no path leads to: it lives while the returned
/// descriptor, or a file below it, is open. `place` is an empty directory that it is mounted on for a moment.
///
/// # Errors
/// [`Error::Mount`].
pub fn memory_directory(place: &Path, capacity_bytes: Option<u64>) -> Result<File, Error> {
    let directory = mount_memory(place, capacity_bytes)?;
    detach(place)?;
    Ok(directory)
}

/// As [`memory_directory`], but `place` leads to it until that is detached.
///
/// # Errors
/// [`Error::Mount`].
pub fn mount_memory(place: &Path, capacity_bytes: Option<u64>) -> Result<File, Error> {
    let failed = |source: io::Error| Error::Mount { path: place.into(), source };
    let size = capacity_bytes.map_or_else(String::new, |bytes| format!(",size={bytes}"));
    let options = CString::new(format!("mode=0755{size}")).expect("numbers and words hold no NUL");
    rustix::mount::mount("siphon", place, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
        .map_err(|errno| failed(errno.into()))?;
    File::open(place).map_err(failed)
}

/// Takes the mount at `path` away from this mount namespace, now or when its last user is done.
///
/// # Errors
/// [`Error::Unmount`].
pub fn detach(path: &Path) -> Result<(), Error> {
    rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(|errno| Error::Unmount { path: path.into(), source: errno.into() })
}

/// Unmounts a mount of ours from the host's tree, as root or through `fusermount3`.
///
/// # Errors
/// [`Error::NotOurs`], [`Error::Unmount`] if it is busy, [`Error::NoFusermount`] or [`Error::Refused`].
pub fn unmount(path: &Path) -> Result<(), Error> {
    // The last component cannot be resolved where a dead daemon's mount is, but its parent can.
    let path = resolve_parent(path).map_err(|source| Error::Unmount { path: path.into(), source })?;
    if !is_ours(&path).map_err(|source| Error::Unmount { path: path.clone(), source })? {
        return Err(Error::NotOurs { path });
    }
    if rustix::process::geteuid().is_root() {
        return rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW)
            .map_err(|errno| Error::Unmount { path, source: errno.into() });
    }
    let output = Command::new("fusermount3").arg("-u").arg("--").arg(&path).output().map_err(Error::NoFusermount)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Refused { path, message })
}

/// Whether the uppermost mount on exactly `path` is one of ours.
///
/// # Errors
/// If the list of mounts cannot be read.
pub fn is_ours(path: &Path) -> io::Result<bool> {
    let listing = fs::read("/proc/self/mountinfo")?;
    // Later lines lie on top of earlier ones.
    let last = mounts(&listing).rfind(|mount| mount.target == path);
    Ok(last.is_some_and(|mount| mount.kind == TYPE))
}

/// A process that sees an overlayfs that was mounted with `option`, in words; `None` if there is none.
pub fn seen_overlayfs(option: &str) -> Option<String> {
    let wanted = |mount: Mount<'_>| mount.kind == "overlay" && mount.has_option(option.as_bytes());
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // A process that has ended meanwhile sees nothing.
    let sees = |pid: &u32| fs::read(format!("/proc/{pid}/mountinfo")).is_ok_and(|list| mounts(&list).any(wanted));
    let pid = pids.into_iter().find(sees)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("process {pid} ({}), which is left of a run whose daemon was killed", name.trim()))
}

/// Whether another process sees the filesystem that is mounted on `path` here. A program in a container does, in a
/// mount namespace of its own, for as long as it runs.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn is_seen_by_others(path: &Path) -> io::Result<bool> {
    let own = fs::read("/proc/self/mountinfo")?;
    let Some(here) = mounts(&own).rfind(|mount| mount.target == path) else { return Ok(false) };
    let own_pid = std::process::id();
    let own_namespace = fs::read_link("/proc/self/ns/mnt")?;
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that has ended meanwhile sees nothing.
        let Ok(listing) = fs::read(format!("/proc/{pid}/mountinfo")) else { continue };
        // What serves this process, such as with the files of a layer, has no mounts of its own.
        let is_ours = || fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|namespace| namespace == own_namespace);
        if pid != own_pid && mounts(&listing).any(|mount| mount.device == here.device) && !is_ours() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// One line of `mountinfo`.
struct Mount<'a> {
    device: &'a [u8],
    target: PathBuf,
    kind: &'a OsStr,
    /// Separated by commas, those of the filesystem.
    options: &'a [u8],
}

impl Mount<'_> {
    fn has_option(&self, wanted: &[u8]) -> bool {
        self.options.split(|byte| *byte == b',').any(|option| option == wanted)
    }
}

fn mounts(listing: &[u8]) -> impl DoubleEndedIterator<Item = Mount<'_>> {
    listing.split(|byte| *byte == b'\n').filter_map(parse_mount)
}

/// `36 35 98:0 /root /target rw,noatime master:1 - type source opts`
fn parse_mount(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let target = fields.nth(1)?;
    let mut filesystem = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = OsStr::from_bytes(filesystem.next()?);
    let options = filesystem.nth(1).unwrap_or_default();
    Some(Mount { device, target: unescape(target), kind, options })
}

/// Undoes the kernel's `\040` for space, tab, line feed and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if byte == b'\\' => {
                out.push(code);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

fn resolve_parent(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
        _ => Ok(absolute),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_spaces_is_found() {
        let line = br"36 35 98:0 / /mnt/a\040b\134c rw,nosuid shared:1 - fuse.siphon image.sif rw,user_id=0";

        let mount = parse_mount(line).unwrap();

        assert_eq!(mount.target, Path::new(r"/mnt/a b\c"));
        assert_eq!(mount.kind, TYPE);
        assert!(mount.has_option(b"user_id=0") && !mount.has_option(b"user_id"));
    }

    #[test]
    fn a_directory_that_is_not_our_mount_is_not_unmounted() {
        assert!(matches!(unmount(Path::new("/proc")), Err(Error::NotOurs { .. })));
    }
}
