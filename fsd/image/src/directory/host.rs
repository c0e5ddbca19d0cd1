//! Objects of the host's filesystem by descriptor: opened below a root without following any symbolic link.
//!
//! An object is held as an `O_PATH` descriptor, which exists for every kind of node and pins it. What needs a path goes
//! through `/proc/self/fd/N`, the kernel's own link to exactly that object: the last step is never a symbolic link in
//! the tree, so a hostile tree leads nowhere, however it is changed meanwhile. Descriptors live for one operation.

use crate::tree::{Attr, Kind, Timestamp, Xattr};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The kernel's limit on an xattr's value and on a list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_XATTR_BYTES: usize = 64 << 10;
/// How often a list or value that changes between the question for its size and the reading of it is tried again.
const XATTR_TRIES: usize = 8;

/// One name in a host directory.
#[derive(Debug)]
pub struct HostEntry {
    /// The name, never `.` or `..`.
    pub name: OsString,
    /// What it is; `None` where the filesystem does not tell in listings.
    pub kind: Option<Kind>,
    /// Its inode number.
    pub inode: u64,
}

/// Opens the object `name` in `dir` without following it.
///
/// # Errors
/// As `openat(2)`.
pub fn open_object(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens the directory `name` in `dir`, as a place to start from.
///
/// # Errors
/// `ENOTDIR` if it is anything else, a symbolic link too; otherwise as `openat(2)`.
pub fn open_directory(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(fs::openat(dir, name, flags, Mode::empty())?)
}

/// Opens the directory that `names` lead to from `root`, one component at a time: no path is too long.
///
/// # Errors
/// As [`open_directory`].
pub fn walk<N: AsRef<OsStr>>(root: BorrowedFd<'_>, names: &[N]) -> io::Result<OwnedFd> {
    let mut here = open_directory(root, OsStr::new("."))?;
    for name in names {
        here = open_directory(here.as_fd(), name.as_ref())?;
    }
    Ok(here)
}

/// The path that leads to the object behind `fd` itself, for calls that take no `O_PATH` descriptor.
pub fn path_of(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens a regular file or directory once more, with `flags` that are not `O_PATH`.
///
/// # Errors
/// As `open(2)`.
pub fn reopen(object: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(fs::open(path_of(object), flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK, Mode::empty())?)
}

/// The status of an object.
///
/// # Errors
/// As `fstat(2)`.
pub fn stat(object: BorrowedFd<'_>) -> io::Result<Stat> {
    Ok(fs::fstat(object)?)
}

/// The status of `name` in `dir`, not followed; `None` if there is no such name.
///
/// # Errors
/// As `fstatat(2)`.
pub fn stat_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Stat>> {
    match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The kind that a status tells.
pub fn kind_of(stat: &Stat) -> Kind {
    // The kernel reports no other types than these.
    kind_of_type(FileType::from_raw_mode(stat.st_mode)).unwrap_or(Kind::File)
}

fn kind_of_type(file_type: FileType) -> Option<Kind> {
    Some(match file_type {
        FileType::Directory => Kind::Directory,
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Symlink,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::Unknown => return None,
    })
}

/// A status as attributes.
pub fn attr_of(stat: &Stat) -> Attr {
    Attr {
        kind: kind_of(stat),
        mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        mtime: timestamp(stat.st_mtime, stat.st_mtime_nsec),
        ctime: timestamp(stat.st_ctime, stat.st_ctime_nsec),
        atime: timestamp(stat.st_atime, stat.st_atime_nsec),
        // The kernel's 64-bit stat has the same encoding, in 32 bits.
        rdev: u32::try_from(stat.st_rdev).unwrap_or(0),
    }
}

fn timestamp(seconds: i64, nanos: impl TryInto<u32>) -> Timestamp {
    Timestamp { seconds, nanos: nanos.try_into().unwrap_or(0) }
}

/// The names in a directory, unsorted.
///
/// # Errors
/// As `getdents(2)`.
pub fn list(directory: BorrowedFd<'_>) -> io::Result<Vec<HostEntry>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = fs::openat(directory, ".", flags, Mode::empty())?;
    let mut entries = Vec::new();
    for entry in fs::Dir::new(opened)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            entries.push(HostEntry {
                name: OsString::from_vec(name.to_vec()),
                kind: kind_of_type(entry.file_type()),
                inode: entry.ino(),
            });
        }
    }
    Ok(entries)
}

/// The target of a symbolic link.
///
/// # Errors
/// As `readlinkat(2)`.
pub fn read_link(object: BorrowedFd<'_>) -> io::Result<OsString> {
    let target = fs::readlinkat(object, "", Vec::new())?;
    Ok(OsString::from_vec(target.into_bytes()))
}

/// The names of an object's xattrs; none where the filesystem has no xattrs.
///
/// # Errors
/// As `listxattr(2)`.
pub fn xattr_names(object: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let path = path_of(object);
    let list = match sized(|| fs::listxattr_query(&path), |buf| fs::listxattr(&path, buf)) {
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => return Ok(Vec::new()),
        other => other?,
    };
    let names = list.split_inclusive(|byte| *byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok());
    Ok(names.map(|name| OsString::from_vec(name.to_bytes().to_vec())).collect())
}

/// The value of one xattr; `None` if it is not set or the filesystem has no xattrs.
///
/// # Errors
/// As `getxattr(2)`.
pub fn xattr(object: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let path = path_of(object);
    match sized(|| fs::getxattr_query(&path, name), |buf| fs::getxattr(&path, name, buf)) {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_no_xattr(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The value of one xattr of `name` in `dir`, not followed; `None` as for [`xattr`].
///
/// # Errors
/// As `lgetxattr(2)`.
pub fn xattr_at(dir: BorrowedFd<'_>, name: &OsStr, xattr: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let mut path = path_of(dir).into_bytes();
    path.push(b'/');
    path.extend_from_slice(name.as_bytes());
    match sized(|| fs::lgetxattr_query(&path, xattr), |buf| fs::lgetxattr(&path, xattr, buf)) {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_no_xattr(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All xattrs of an object. One that vanishes meanwhile or may not be read is left out.
///
/// # Errors
/// As `listxattr(2)` and `getxattr(2)`.
pub fn xattrs(object: BorrowedFd<'_>) -> io::Result<Vec<Xattr>> {
    let mut found = Vec::new();
    for name in xattr_names(object)? {
        match xattr(object, &name) {
            Ok(Some(value)) => found.push((name, value)),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn is_no_xattr(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    number == Some(Errno::NODATA.raw_os_error()) || number == Some(Errno::OPNOTSUPP.raw_os_error())
}

/// Asks for a size, then reads that much, again if it grew in between.
fn sized(
    size: impl Fn() -> rustix::io::Result<usize>,
    read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Vec<u8>> {
    for _ in 0..XATTR_TRIES {
        let mut buf = vec![0; size()?.min(MAX_XATTR_BYTES)];
        if buf.is_empty() {
            return Ok(buf);
        }
        match read(&mut buf) {
            Ok(read) => {
                buf.truncate(read);
                return Ok(buf);
            }
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::RANGE.into())
}

/// Whether `name` can be one component of a path.
pub fn is_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.iter().any(|byte| matches!(byte, b'/' | 0))
}
