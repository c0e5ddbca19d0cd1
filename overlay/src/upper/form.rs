//! How the absence of a lower name, or of all lower names of a directory, is written down.
//!
//! | form | whiteout of `NAME` | opaque directory | where |
//! |---|---|---|---|
//! | device | character device 0:0 `NAME` | `user.overlay.opaque` = `y` | any local filesystem, Linux 5.8 |
//! | xattr | empty file `NAME` with `user.overlay.whiteout`, its directory's `user.overlay.opaque` = `x` | the same | no device nodes |
//! | marker | empty file `.wh.NAME` | file `.wh..wh..opq` in it | no xattrs or no swapping of names: NFS, Lustre, exFAT |
//!
//! The first two are the kernel's own (`Documentation/filesystems/overlayfs.rst`, `userxattr`), though it lists the names
//! of whiteouts of the second form when such a layer is its upper and not one of its lowers; the third is that of
//! AUFS and of image layers. The form to write is probed; all are read, markers only where they were once written, since
//! `.wh.x` is a name like any other elsewhere. A whiteout gives way to a node of its name: both may exist for a moment.
//! A name that has no room for the prefix is marked by `.wh..wh.` and 192 bytes and a digest of it; the file holds the name.

use super::Upper;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, XattrFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::Kind;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

pub(super) const MARKERS_NAME: &str = "markers";
const MARKER_PREFIX: &str = ".wh.";
/// The kernel's `NAME_MAX`.
const MAX_NAME_BYTES: usize = 255;
/// How much of a long name its marker's own name repeats.
const LONG_NAME_BYTES: usize = 192;
const OPAQUE_MARKER: &str = ".wh..wh..opq";
/// The xattr that the kernel shows a POSIX ACL as.
const ACL_OF_FILES: &str = "system.posix_acl_access";
/// The last is that of fuse-overlayfs, which writes whiteouts as markers where it may make no devices.
const OPAQUE: [&str; 3] = ["user.overlay.opaque", "trusted.overlay.opaque", "user.fuseoverlayfs.opaque"];
/// What is in the names of all marks.
const OVERLAY: &[u8] = b"overlay";
/// The names of xattrs that nearly all nodes have fit into this.
const LISTED_BYTES: usize = 512;
const WHITEOUT: [&str; 2] = ["user.overlay.whiteout", "trusted.overlay.whiteout"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Device,
    Xattr,
    Marker,
}

/// What the layer has at a name.
#[derive(Debug)]
pub(crate) enum Place {
    /// Nothing: the lower shows.
    Absent,
    /// A whiteout: there is no such name.
    Whiteout,
    /// A node of its own.
    Object(Stat),
}

/// What the filesystem of a layer can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abilities {
    pub(super) form: Form,
    pub(super) has_xattrs: bool,
    pub(super) has_acls: bool,
}

/// Tries out in `work` what its filesystem can do. Whatever it answers to what it cannot do, it cannot.
pub(super) fn probe(work: BorrowedFd<'_>) -> io::Result<Abilities> {
    let [name, other] = ["probe", "other"].map(|word| format!("{word}-{}", std::process::id()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(work, &name, flags, Mode::from_raw_mode(0o600))?;
    let has_xattrs = fs::fsetxattr(&file, WHITEOUT[0], b"", XattrFlags::empty()).is_ok();
    fs::openat(work, &other, flags, Mode::from_raw_mode(0o600))?;
    let swaps = fs::renameat_with(work, &name, work, &other, RenameFlags::EXCHANGE).is_ok();
    fs::unlinkat(work, &name, AtFlags::empty())?;
    fs::unlinkat(work, &other, AtFlags::empty())?;
    // It has none yet: what differs is the answer where there can be none.
    let has_acls = matches!(fs::getxattr_query(host::path_of(work), ACL_OF_FILES), Ok(_) | Err(Errno::NODATA));
    if !has_xattrs || !swaps {
        // Only markers can be written before the node is taken away that they stand in for.
        return Ok(Abilities { form: Form::Marker, has_xattrs, has_acls });
    }
    let form = match fs::mknodat(work, &name, FileType::CharacterDevice, Mode::empty(), 0) {
        Ok(()) => {
            // Some networks' filesystems make something else of it.
            let made = host::stat_at(work, OsStr::new(&name))?;
            fs::unlinkat(work, &name, AtFlags::empty())?;
            let is_device = made.is_some_and(|made| host::kind_of(&made) == Kind::CharDevice && made.st_rdev == 0);
            if is_device { Form::Device } else { Form::Xattr }
        }
        Err(_) => Form::Xattr,
    };
    Ok(Abilities { form, has_xattrs, has_acls })
}

fn marker(name: &OsStr) -> OsString {
    let mut marker = OsString::from(MARKER_PREFIX);
    let bytes = name.as_bytes();
    if bytes.len() + MARKER_PREFIX.len() <= MAX_NAME_BYTES {
        marker.push(name);
    } else {
        marker.push(MARKER_PREFIX);
        marker.push(OsStr::from_bytes(&bytes[..LONG_NAME_BYTES]));
        marker.push(format!("{:016x}", digest(bytes)));
    }
    marker
}

/// FNV-1a: who makes two names of this length that differ at their ends alone and collide hides only what is theirs.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Upper {
    pub(crate) fn uses_markers(&self) -> bool {
        self.markers.load(Ordering::Relaxed)
    }

    /// Whether `name` is a mark in this layer and can be no node's name.
    pub(crate) fn is_mark(&self, name: &OsStr) -> bool {
        self.uses_markers() && name.as_bytes().starts_with(MARKER_PREFIX.as_bytes())
    }

    /// Whether a marker file says that `name` is absent.
    pub(crate) fn is_marked(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
        Ok(self.uses_markers() && marker_exists(directory, name)?)
    }

    /// Whether `name` is that of a marker for the absence of another one.
    pub(crate) fn is_whiteout_marker(&self, name: &OsStr) -> bool {
        self.is_mark(name) && name != OPAQUE_MARKER
    }

    /// The name that the marker file `name` in `directory` says is absent; `None` if it is none.
    pub(crate) fn marked_name(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<OsString>> {
        let Some(marked) = name.as_bytes().strip_prefix(MARKER_PREFIX.as_bytes()) else { return Ok(None) };
        if !self.is_whiteout_marker(name) {
            return Ok(None);
        }
        if !marked.starts_with(MARKER_PREFIX.as_bytes()) {
            return Ok(Some(OsStr::from_bytes(marked).to_owned()));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut held = [0; MAX_NAME_BYTES];
        let length = rustix::io::pread(fs::openat(directory, name, flags, Mode::empty())?, &mut held[..], 0)?;
        let long = OsStr::from_bytes(&held[..length]);
        // Else it is that of a name which begins as markers do.
        Ok(Some(if marker(long) == name { long.to_owned() } else { OsStr::from_bytes(marked).to_owned() }))
    }

    /// What the layer has at `name` in `directory`.
    pub(crate) fn place(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Place> {
        self.place_of(directory, name, self.node_at(directory, name)?)
    }

    /// The node at `name`, whatever it stands for.
    pub(crate) fn node_at(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Stat>> {
        if self.is_mark(name) { Ok(None) } else { host::stat_at(directory, name) }
    }

    /// What the node at `name` in `directory`, which was just looked at, stands for.
    pub(crate) fn place_of(&self, directory: BorrowedFd<'_>, name: &OsStr, node: Option<Stat>) -> io::Result<Place> {
        if self.is_mark(name) {
            return Ok(Place::Absent);
        }
        match node {
            Some(stat) if is_whiteout(directory, name, &stat)? => Ok(Place::Whiteout),
            Some(stat) => Ok(Place::Object(stat)),
            None if self.is_marked(directory, name)? => Ok(Place::Whiteout),
            None => Ok(Place::Absent),
        }
    }

    /// Whether nothing of the lower shows in `directory`.
    pub(crate) fn is_opaque(&self, directory: BorrowedFd<'_>) -> io::Result<bool> {
        if !self.uses_markers() && !may_have_marks(directory, OsStr::new("."))? {
            return Ok(false);
        }
        for name in OPAQUE {
            if host::xattr(directory, OsStr::new(name))?.is_some_and(|value| value == b"y") {
                return Ok(true);
            }
        }
        Ok(self.uses_markers() && host::stat_at(directory, OsStr::new(OPAQUE_MARKER))?.is_some())
    }

    pub(crate) fn make_opaque(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        if self.form == Form::Marker {
            return self.write_marker(directory, OsStr::new(OPAQUE_MARKER), OsStr::new(""));
        }
        Ok(fs::setxattr(host::path_of(directory), OPAQUE[0], b"y", XattrFlags::empty())?)
    }

    /// Puts a whiteout at `name`, in place of the node there if there is one.
    pub(crate) fn whiteout(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        if self.form == Form::Marker {
            self.write_marker(directory, &marker(name), name)?;
            return self.remove(directory, name);
        }
        let staged = self.temporary();
        self.stage_whiteout(directory, &staged)?;
        match fs::renameat(self.work()?, &staged, directory, name) {
            Err(Errno::ISDIR) => self.swap_out(&staged, directory, name),
            other => Ok(other?),
        }
    }

    fn stage_whiteout(&self, directory: BorrowedFd<'_>, staged: &OsStr) -> io::Result<()> {
        if self.form == Form::Device {
            return Ok(fs::mknodat(self.work()?, staged, FileType::CharacterDevice, Mode::empty(), 0)?);
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(self.work()?, staged, flags, Mode::from_raw_mode(0o600))?;
        fs::fsetxattr(&file, WHITEOUT[0], b"", XattrFlags::empty())?;
        self.expect_whiteouts(directory)
    }

    /// Notes that `directory` may hold whiteouts, where their form asks for it.
    pub(crate) fn expect_whiteouts(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        if self.form != Form::Xattr {
            return Ok(());
        }
        if host::xattr(directory, OsStr::new(OPAQUE[0]))?.is_none() {
            fs::setxattr(host::path_of(directory), OPAQUE[0], b"x", XattrFlags::empty())?;
        }
        Ok(())
    }

    /// Says that `absent` is not there by the file `name`, which holds it where the name alone does not tell.
    fn write_marker(&self, directory: BorrowedFd<'_>, name: &OsStr, absent: &OsStr) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(self.private()?.directory.as_fd(), MARKERS_NAME, flags, Mode::from_raw_mode(0o644))?;
        self.markers.store(true, Ordering::Relaxed);
        let file = fs::openat(directory, name, flags, Mode::from_raw_mode(0o600))?;
        if absent.len() + MARKER_PREFIX.len() > MAX_NAME_BYTES {
            rustix::io::pwrite(file, absent.as_bytes(), 0)?;
        }
        Ok(())
    }

    /// Moves the finished node `staged` to `name`, where there may be a whiteout or a node that it may replace.
    pub(crate) fn install(&self, staged: &OsStr, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        match fs::renameat(self.work()?, staged, directory, name) {
            // A directory cannot replace the device that is a whiteout.
            Err(Errno::NOTDIR | Errno::EXIST | Errno::NOTEMPTY) => self.swap_out(staged, directory, name)?,
            other => other?,
        }
        self.unmark(directory, name)
    }

    /// Takes the marker away that says that a name is absent, once there is a node of that name.
    pub(crate) fn unmark(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        if self.uses_markers() {
            match fs::unlinkat(directory, marker(name), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Swaps `staged` with the node at `name` and throws that away. Where names cannot be swapped, there is a marker
    /// while nothing is at the name, so that nothing of the lower shows, whenever this ends.
    fn swap_out(&self, staged: &OsStr, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let work = self.work()?;
        if self.form == Form::Marker {
            self.whiteout(directory, name)?;
            return Ok(fs::renameat(work, staged, directory, name)?);
        }
        fs::renameat_with(work, staged, directory, name, RenameFlags::EXCHANGE)?;
        self.discard(staged)
    }

    /// Whether a rename may leave a device behind as a whiteout.
    pub(crate) fn moves_leaving_devices(&self) -> bool {
        self.form == Form::Device
    }

    /// Marks `name` as absent while its node is still there: it counts once that is gone.
    pub(crate) fn mark_beforehand(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.write_marker(directory, &marker(name), name)
    }

    /// Whether names can be swapped, atomically.
    pub(crate) fn swaps(&self) -> bool {
        self.form != Form::Marker
    }

    /// Takes the node or whiteout at `name` away, with all that is in it; nothing shows in its place but the lower.
    pub(crate) fn remove(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        match fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                let old = self.temporary();
                fs::renameat(directory, name, self.work()?, &old)?;
                self.discard(&old)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn is_whiteout(directory: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> io::Result<bool> {
    match host::kind_of(stat) {
        Kind::CharDevice => Ok(stat.st_rdev == 0),
        Kind::File if stat.st_size == 0 => {
            if !may_have_marks(directory, name)? {
                return Ok(false);
            }
            for xattr in WHITEOUT {
                if host::xattr_at(directory, name, OsStr::new(xattr))?.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// Whether `name` in `directory`, not followed, has xattrs of an overlay's: one question for all that is asked otherwise.
pub(super) fn may_have_marks(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    let mut path = host::path_of(directory).into_bytes();
    path.push(b'/');
    path.extend_from_slice(name.as_bytes());
    let mut names = [0; LISTED_BYTES];
    match fs::llistxattr(&path, &mut names) {
        Ok(length) => Ok(names[..length].windows(OVERLAY.len()).any(|part| part == OVERLAY)),
        Err(Errno::NOENT) => Err(Errno::NOENT.into()),
        // More than that, or a filesystem that does not list what it has.
        Err(_) => Ok(true),
    }
}

fn marker_exists(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    Ok(host::stat_at(directory, &marker(name))?.is_some())
}
