//! Values as the FUSE library has them, from and to ours.

use crate::fs::Node;
use fuser::{FileAttr, FileType, INodeNo, OpenAccMode, OpenFlags, TimeOrNow};
use nix::libc;
use siphon_image::tree::{Kind, Timestamp};
use siphon_overlay::view::{OpenMode, Permissions, SetTime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What `stat` names as the best size for reads: the kernel asks for pages and up to its readahead.
const BLOCK_SIZE: u32 = 4096;

pub(super) fn attr_out(node: &Node) -> FileAttr {
    let attr = &node.attr;
    FileAttr {
        ino: INodeNo(node.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: time_out(attr.atime),
        mtime: time_out(attr.mtime),
        ctime: time_out(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind_out(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// The attributes of an entry that stands for "there is no such name": inode number 0.
pub(super) fn no_node() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub(super) fn kind_out(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::CharDevice => FileType::CharDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// What the type bits of a mode say, for the kinds that `mknod` makes.
pub(super) fn node_kind(mode: u32) -> Option<Kind> {
    match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Some(Kind::File),
        libc::S_IFCHR => Some(Kind::CharDevice),
        libc::S_IFBLK => Some(Kind::BlockDevice),
        libc::S_IFIFO => Some(Kind::Fifo),
        libc::S_IFSOCK => Some(Kind::Socket),
        _ => None,
    }
}

/// The low 12 bits of a mode.
pub(super) fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).expect("12 bits fit 16")
}

pub(super) fn made_with(mode: u32, umask: u32) -> Permissions {
    Permissions { mode: permissions(mode), umask: permissions(umask) }
}

pub(super) fn open_in(flags: OpenFlags) -> OpenMode {
    OpenMode {
        write: flags.acc_mode() != OpenAccMode::O_RDONLY,
        append: flags.0 & libc::O_APPEND != 0,
        truncate: flags.0 & libc::O_TRUNC != 0,
    }
}

pub(super) fn mode_in(flags: i32) -> OpenMode {
    open_in(OpenFlags(flags))
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(time_in(time)),
    }
}

/// Times beyond what the clock type holds are clamped to the epoch: they only come from damaged images.
fn time_out(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos.min(999_999_999)));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds >= 0 { UNIX_EPOCH.checked_add(seconds) } else { UNIX_EPOCH.checked_sub(seconds) };
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// fuser 0.18 turns the kernel's -2 s + 0.8 s into -2 s - 0.8 s; taking seconds and nanoseconds apart again gives the
/// kernel's own numbers back.
fn time_in(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            Timestamp { seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() }
        }
        Err(error) => {
            let before = error.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
            Timestamp { seconds, nanos: before.subsec_nanos() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let out = time_out(Timestamp { seconds: -2, nanos: 800_000_000 });

        assert_eq!(UNIX_EPOCH.duration_since(out).unwrap(), Duration::from_millis(1200));
    }

    #[test]
    fn a_time_that_no_clock_holds_does_not_panic() {
        assert_eq!(
            time_out(Timestamp { seconds: i64::MIN, nanos: u32::MAX }),
            time_out(Timestamp { seconds: i64::MIN, nanos: 999_999_999 })
        );
        assert_eq!(
            time_out(Timestamp { seconds: i64::MAX, nanos: u32::MAX }),
            time_out(Timestamp { seconds: i64::MAX, nanos: 999_999_999 })
        );
    }

    #[test]
    fn the_kernels_truncating_open_is_recognised() {
        let mode = open_in(OpenFlags(libc::O_WRONLY | libc::O_TRUNC));

        assert_eq!(mode, OpenMode { write: true, append: false, truncate: true });
    }
}
