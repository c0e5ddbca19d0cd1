//! Copies one lower node, without its children, to a finished node in `.siphon/work`.
//!
//! Content first, then owner, xattrs, mode and times: a change of owner clears setuid bits and capabilities, and
//! nothing is visible before the node is renamed into place.

use crate::error::Error;
use crate::upper::Upper;
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::{Attr, Kind, NodeId, Timestamp, Tree};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// The xattr of a program's capabilities (capabilities(7)).
const CAPABILITY: &str = "security.capability";

/// Bytes copied at once: as much as the largest squashfs block.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes that the kernel is asked to copy at once, so that a signal is soon heard.
const MAX_AT_ONCE: usize = 64 << 20;
/// Blocks of zeros this large become holes.
const HOLE_BYTES: usize = 4096;

/// What of a file is copied.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content<'a> {
    /// The first bytes, at most this many.
    UpTo(u64),
    /// None: it stays in the image, at this path. All of it where the layer cannot write that down.
    Stays(&'a [OsString]),
}

/// A finished copy.
#[derive(Debug)]
pub(crate) struct Staged {
    /// Its name in `work`.
    pub(crate) name: OsString,
    /// Whether its content stayed in the image.
    pub(crate) is_stub: bool,
}

/// Copies `node` to a new name in `work`.
pub(crate) fn stage(upper: &Upper, lower: &dyn Tree, node: NodeId, content: Content<'_>) -> Result<Staged, Error> {
    let attr = lower.attr(node)?;
    let name = upper.temporary();
    let staged = fill(upper, lower, node, &attr, &name, content);
    if staged.is_err() {
        // The first failure is the one to report; what is left is cleared when the layer is next locked.
        let _ = upper.discard(&name);
    }
    staged.map(|is_stub| Staged { name, is_stub })
}

fn fill(
    upper: &Upper,
    lower: &dyn Tree,
    node: NodeId,
    attr: &Attr,
    name: &OsStr,
    content: Content<'_>,
) -> Result<bool, Error> {
    match attr.kind {
        Kind::Symlink => fs::symlinkat(lower.read_link(node)?, upper.work()?, name)?,
        kind => make(upper.work()?, name, kind, 0o700, attr.rdev)?,
    }
    let object = host::open_object(upper.work()?, name)?;
    let mut is_stub = false;
    if attr.kind == Kind::File && attr.size > 0 {
        let file = File::from(host::reopen(object.as_fd(), OFlags::WRONLY)?);
        let limit = match content {
            Content::UpTo(limit) => limit,
            Content::Stays(path) => {
                file.set_len(attr.size)?;
                is_stub = upper.mark_stub(object.as_fd(), path)?;
                if is_stub { 0 } else { u64::MAX }
            }
        };
        if limit > 0 {
            copy_content(lower, node, &file, attr.size.min(limit))?;
        }
    }
    if matches!(attr.kind, Kind::File | Kind::Directory) {
        upper.set_origin(object.as_fd(), node)?;
    }
    change_owner(object.as_fd(), attr.uid, attr.gid)?;
    if upper.has_xattrs() {
        for (name, value) in lower.xattrs(node)? {
            set_xattr(object.as_fd(), &name, &value)?;
        }
    }
    if attr.kind != Kind::Symlink {
        fs::chmod(host::path_of(object.as_fd()), Mode::from_raw_mode(attr.mode.into()))?;
    }
    set_times(object.as_fd(), attr.atime, attr.mtime)?;
    Ok(is_stub)
}

/// Gives the stub `object` the content of the image's file `node`, as far as it is long, and then makes it a file like
/// any other. Its times stay.
pub(crate) fn complete(upper: &Upper, lower: &dyn Tree, node: NodeId, object: BorrowedFd<'_>) -> Result<(), Error> {
    let before = host::attr_of(&host::stat(object)?);
    if before.size > 0 {
        let capability = host::xattr(object, OsStr::new(CAPABILITY))?;
        let file = File::from(host::reopen(object, OFlags::WRONLY)?);
        copy_content(lower, node, &file, before.size)?;
        // A write takes them away.
        fs::chmod(host::path_of(object), Mode::from_raw_mode(before.mode.into()))?;
        if let Some(capability) = capability {
            set_xattr(object, OsStr::new(CAPABILITY), &capability)?;
        }
    }
    set_times(object, before.atime, before.mtime)?;
    Ok(upper.unmark_stub(object)?)
}

/// Makes an empty node of any kind but a symbolic link in `directory`.
pub(crate) fn make(directory: BorrowedFd<'_>, name: &OsStr, kind: Kind, mode: u16, rdev: u32) -> Result<(), Error> {
    let mode = Mode::from_raw_mode(mode.into());
    let file_type = match kind {
        Kind::Directory => return Ok(fs::mkdirat(directory, name, mode)?),
        Kind::Symlink => return Err(Errno::INVAL.into()),
        // It would be a whiteout.
        Kind::CharDevice if rdev == 0 => return Err(Errno::PERM.into()),
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::File => FileType::RegularFile,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    };
    Ok(fs::mknodat(directory, name, file_type, mode, rdev.into())?)
}

fn copy_content(lower: &dyn Tree, node: NodeId, file: &File, size: u64) -> Result<(), Error> {
    if let Some(source) = lower.host_file(node)?
        && clone_content(&source, file, size)?
    {
        return Ok(file.sync_data()?);
    }
    let mut buf = vec![0; usize::try_from(size).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
    let mut offset = 0;
    while offset < size {
        let want = usize::try_from(size - offset).unwrap_or(CHUNK_BYTES).min(buf.len());
        let read = lower.read(node, offset, &mut buf[..want])?;
        if read == 0 {
            break;
        }
        let is_zero = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
        let blocks: Vec<&[u8]> = buf[..read].chunks(HOLE_BYTES).collect();
        let mut at = 0;
        for run in blocks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let bytes: usize = run.iter().map(|block| block.len()).sum();
            if !run.first().is_some_and(is_zero) {
                file.write_all_at(&buf[at..at + bytes], offset + at as u64)?;
            }
            at += bytes;
        }
        offset += read as u64;
    }
    file.set_len(size)?;
    // Without this a power failure after the rename can leave an empty copy that hides the image's file; the kernel's
    // overlayfs syncs here too.
    Ok(file.sync_data()?)
}

/// Has the filesystem copy the first `size` bytes, by reference where it can, in the kernel where not. `false` if it can
/// do neither, and where all has to be read to find holes.
fn clone_content(source: &OwnedFd, file: &File, size: u64) -> Result<bool, Error> {
    if fs::fstat(source)?.st_size.cast_unsigned() == size && fs::ioctl_ficlone(file, source).is_ok() {
        return Ok(true);
    }
    let mut at = 0;
    while at < size {
        // Holes stay holes: only data is copied.
        let mut from = match fs::seek(source, SeekFrom::Data(at)) {
            Ok(data) if data < size => data,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(_) => return Ok(false),
        };
        at = fs::seek(source, SeekFrom::Hole(from))?.min(size);
        let mut to = from;
        while from < at {
            let want = usize::try_from(at - from).unwrap_or(MAX_AT_ONCE).min(MAX_AT_ONCE);
            match fs::copy_file_range(source, Some(&mut from), file, Some(&mut to), want) {
                Ok(0) | Err(_) => return Ok(false),
                Ok(_) => {}
            }
        }
    }
    file.set_len(size)?;
    Ok(true)
}

/// Changes the owner as far as this process may: an unprivileged one keeps what it makes, and an id that is not mapped
/// into its user namespace cannot be given away.
pub(crate) fn change_owner(object: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Error> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    match fs::chownat(object, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH) {
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn set_xattr(object: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> Result<(), Error> {
    match fs::setxattr(host::path_of(object), escaped(name), value, XattrFlags::empty()) {
        // Name spaces that only a privileged process may write, or that the upper's filesystem lacks.
        Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sets both times, of a symbolic link itself too.
pub(crate) fn set_times(object: BorrowedFd<'_>, atime: Timestamp, mtime: Timestamp) -> Result<(), Errno> {
    let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
    fs::utimensat(fs::CWD, host::path_of(object), &times, AtFlags::empty())
}

pub(crate) fn timespec(time: Timestamp) -> Timespec {
    Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() }
}

const ESCAPED: [&str; 2] = ["user.overlay.", "trusted.overlay."];

/// The on-disk name of an xattr of the view: names that are overlayfs's own get one more `overlay.`, as the kernel does
/// for overlays on overlays.
pub(crate) fn escaped(name: &OsStr) -> OsString {
    for prefix in ESCAPED {
        if let Some(rest) = name.as_bytes().strip_prefix(prefix.as_bytes()) {
            let mut escaped = OsString::from(format!("{prefix}overlay."));
            escaped.push(OsStr::from_bytes(rest));
            return escaped;
        }
    }
    name.to_owned()
}

/// The view's name of an xattr on disk; `None` for overlayfs's own.
pub(crate) fn unescaped(name: &OsStr) -> Option<OsString> {
    for prefix in ESCAPED {
        if let Some(rest) = name.as_bytes().strip_prefix(prefix.as_bytes()) {
            let rest = rest.strip_prefix(b"overlay.")?;
            let mut unescaped = OsString::from(prefix);
            unescaped.push(OsStr::from_bytes(rest));
            return Some(unescaped);
        }
    }
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlayfs_names_of_the_view_are_escaped_and_its_own_are_hidden() {
        for (view, disk) in [
            ("user.note", "user.note"),
            ("user.overlay.opaque", "user.overlay.overlay.opaque"),
            ("trusted.overlay.x", "trusted.overlay.overlay.x"),
            ("user.overlay.overlay.x", "user.overlay.overlay.overlay.x"),
        ] {
            assert_eq!(escaped(OsStr::new(view)), disk);
            assert_eq!(unescaped(OsStr::new(disk)), Some(view.into()));
        }
        assert_eq!(unescaped(OsStr::new("user.overlay.opaque")), None);
    }
}
