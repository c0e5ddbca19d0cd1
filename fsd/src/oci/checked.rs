//! What tells that a file is the one that was held against its digest before.
//!
//! Who changes a file can set the time of its modification as he likes, but not that of its last change of any kind, which
//! the kernel takes from its clock. So a file with the same number, length and times has the same bytes, if three things
//! hold: its file system is one that keeps these times so, for changes by mapped memory too; nothing was left in such memory
//! that the times do not tell; and they were not taken so soon after a change that another one could come within the same
//! tick of that clock. Elsewhere the file is read whole each time.
//!
//! It says as much as holding the file against its digest anew would: that it was right when it was opened. What changes
//! afterwards is noticed by [`crate::local`], as far as it can be.

use rustix::fs::fstatfs;
use serde::{Deserialize, Serialize};
use siphon_image::read_at::ReadAt;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// As long as a tick of any file system: those of ext3 and NFS 2 are a second.
const TICK: Duration = Duration::from_secs(2);

/// File systems by the number that `statfs(2)` gives: ext2 to ext4, XFS, Btrfs, F2FS, NFS and Lustre. Not tmpfs, where memory
/// that is mapped changes no time, and so not overlayfs, which may lie on it; nor those of servers and programs that say what
/// they like, as FUSE and SMB.
const TIMED: [u32; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x6969, 0x0bd0_0bd0];

/// What a file was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// Device and number.
    pub(super) place: (u64, u64),
    len_bytes: u64,
    /// Seconds and nanoseconds of the last modification of the content.
    modified: (i64, i64),
    /// The same of the last change of any kind.
    changed: (i64, i64),
}

impl Stamp {
    /// Of an open file. `None` where it would not tell whether the file changes.
    pub(super) fn of(bytes: &dyn ReadAt) -> Option<Self> {
        let (file, _) = bytes.file_at(0)?;
        // The kernel's numbers have 32 bits, in a field that is wider or signed on some machines.
        let kind = u32::try_from(fstatfs(file).ok()?.f_type as u64 & u64::from(u32::MAX)).ok()?;
        let data = file.metadata().ok().filter(|_| TIMED.contains(&kind))?;
        Some(Self {
            place: (data.dev(), data.ino()),
            len_bytes: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }

    /// The same, if any change from now on gives another one.
    pub(super) fn settled(bytes: &dyn ReadAt) -> Option<Self> {
        // A page that is mapped and written to sets the times once, and again only after it went to the disk.
        bytes.file_at(0)?.0.sync_data().ok()?;
        Self::of(bytes).filter(|stamp| stamp.is_settled(SystemTime::now()))
    }

    /// Whether any change from `now` on, which is when it was taken, gives another one.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds)) else { return false };
        // A time that is to come says that clocks differ.
        let age = now.duration_since(UNIX_EPOCH + Duration::new(seconds, nanoseconds));
        age.is_ok_and(|age| age >= TICK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_settles_once_the_next_change_is_sure_to_have_another_time() {
        let stamp = Stamp { place: (1, 2), len_bytes: 3, modified: (0, 0), changed: (1000, 500_000_000) };

        for (now_millis, expected) in [(1_000_000, false), (1_000_500, false), (1_002_499, false), (1_002_500, true)] {
            let now = UNIX_EPOCH + Duration::from_millis(now_millis);

            assert_eq!(stamp.is_settled(now), expected, "{now_millis}");
        }
        assert!(!Stamp { changed: (-1, 0), ..stamp }.is_settled(UNIX_EPOCH + Duration::from_secs(9)), "no such time");
    }

    #[test]
    fn what_is_no_file_has_no_stamp() {
        assert_eq!(Stamp::of(&b"bytes".to_vec()), None);
    }
}
