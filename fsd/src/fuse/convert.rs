//! Values as the kernel has them, to ours.

use nix::libc;
use siphon_image::tree::{Kind, Timestamp};
use siphon_overlay::view::{OpenMode, Permissions, SetTime};

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

/// The flags of `open(2)`.
pub(super) fn open_mode(flags: i32) -> OpenMode {
    OpenMode {
        write: flags & libc::O_ACCMODE != libc::O_RDONLY,
        append: flags & libc::O_APPEND != 0,
        truncate: flags & libc::O_TRUNC != 0,
    }
}

/// A time that is to be set, if it is: `is_now` overrules what it is.
pub(super) fn set_time(is_set: bool, is_now: bool, seconds: i64, nanos: u32) -> Option<SetTime> {
    match (is_set, is_now) {
        (false, _) => None,
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(Timestamp { seconds, nanos })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_truncating_open_is_recognised() {
        let mode = open_mode(libc::O_WRONLY | libc::O_TRUNC);

        assert_eq!(mode, OpenMode { write: true, append: false, truncate: true });
    }

    #[test]
    fn the_present_overrules_a_time() {
        let time = Timestamp { seconds: -2, nanos: 800_000_000 };

        assert_eq!(set_time(false, true, 0, 0), None);
        assert_eq!(set_time(true, true, time.seconds, time.nanos), Some(SetTime::Now));
        assert_eq!(set_time(true, false, time.seconds, time.nanos), Some(SetTime::At(time)));
    }
}
