//! Turns between processes: what one of them fetches, the others that use the directory wait for.
//!
//! ```text
//! DIR/v2/KEY/fetching    empty; byte N is locked by who fetches chunk N
//! ```
//!
//! The locks are the kernel's (`F_OFD_SETLK`, fcntl(2)), so that they go with their process, however it ends, and on a
//! shared file system hold between nodes. They lie in a file of their own: taking one on NFS drops what the page cache has
//! of that file. They are advice. Who waited for long fetches the chunk all the same, and where there are no locks
//! everybody does: then a chunk is fetched twice, and the same bytes are written.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

const FILE: &str = "fetching";
/// Another process that has nothing to show for so long is not waited for. A long request over a slow link brings some
/// chunks in that time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at what the other process has brought: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_millis(20);

/// The locks of one object, as one process has them.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// `None` once it was found that there are no locks here.
    file: OnceLock<Option<Arc<File>>>,
}

/// Chunks that no other process fetches meanwhile.
#[derive(Debug)]
pub(super) struct Turn {
    file: Arc<File>,
    chunks: Range<u32>,
}

impl Turns {
    /// Waits until no other process fetches any of `chunks`, or all of them are there, or the other has nothing to show for a
    /// while. `first_absent` says which is the first that is not there. `None` if the chunks are to be fetched, or not, without
    /// a turn.
    pub(super) fn take(&self, dir: &Path, chunks: Range<u32>, first_absent: impl Fn() -> u32) -> Option<Turn> {
        let file = self.file.get_or_init(|| open(dir)).clone()?;
        let (mut since, mut seen, mut pause) = (Instant::now(), chunks.start, FIRST_PAUSE);
        loop {
            match lock(&file, &chunks, libc::F_WRLCK) {
                Ok(()) => return Some(Turn { file, chunks }),
                Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "no locks in the cache directory");
                    return None;
                }
            }
            thread::sleep(pause);
            pause = (pause * 2).min(MAX_PAUSE);
            let absent = first_absent();
            if absent >= chunks.end {
                return None;
            }
            if absent > seen {
                (since, seen) = (Instant::now(), absent);
            }
            if since.elapsed() > PATIENCE {
                return None;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // It goes with the file at the latest.
        let _ = lock(&self.file, &self.chunks, libc::F_UNLCK);
    }
}

fn open(dir: &Path) -> Option<Arc<File>> {
    let opened =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join(FILE));
    let opened = opened.inspect_err(|error: &io::Error| tracing::debug!(%error, "no locks in the cache directory"));
    opened.ok().map(Arc::new)
}

fn lock(file: &File, chunks: &Range<u32>, kind: i32) -> nix::Result<()> {
    let range = libc::flock {
        l_type: libc::c_short::try_from(kind).expect("kinds of locks are small numbers"),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("it is 0"),
        l_start: i64::from(chunks.start),
        l_len: i64::from(chunks.end - chunks.start),
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&range)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_elsewhere_is_waited_for_until_it_is_there_or_given_up() {
        let directory = tempfile::tempdir().unwrap();
        // Each has a file of its own, as another process would.
        let [one, two] = [(), ()].map(|()| Turns::default());
        let turn = one.take(directory.path(), 3..7, || 3).unwrap();

        assert!(two.take(directory.path(), 7..9, || 7).is_some(), "others are free");
        let began = Instant::now();
        assert!(two.take(directory.path(), 6..9, || 9).is_none(), "they have come");
        assert!(began.elapsed() < PATIENCE);
        assert!(two.take(directory.path(), 6..9, || 6).is_none());
        assert!(began.elapsed() >= PATIENCE, "one that has nothing to show is waited for so long");
        drop(turn);

        assert!(two.take(directory.path(), 6..9, || 6).is_some());
    }
}
