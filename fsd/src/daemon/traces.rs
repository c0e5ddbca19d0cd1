//! Where traces of what was read are kept: one small file for each image, beside the cache of remote bytes.
//!
//! ```text
//! CACHE_DIR/traces/<key>   the key is a digest of the image's identity, which is the same on every machine; of remote
//!                          images there is another one, of the stored chunks that were touched
//! ```
//!
//! Nothing depends on a trace, so that whatever is wrong with one, or with its place, is a line of the log at most. The
//! cache directory may be one that others write to: no link is followed in it, and nothing else is touched.

use crate::fs::MAX_TRACE_BYTES;
use crate::prefetch;
use base16ct::lower::encode_string as hex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, mkdirat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Images whose traces are kept; the one that was written longest ago goes first. Less than 100 MiB, whatever they are.
const MAX_TRACES: usize = 256;

/// The longest trace of either kind.
const MAX_STORED_BYTES: usize =
    if MAX_TRACE_BYTES > prefetch::MAX_STORED_BYTES { MAX_TRACE_BYTES } else { prefetch::MAX_STORED_BYTES };

/// Below the cache directory.
const DIRECTORY: &str = "traces";

/// Bytes of the digest in the name.
const KEY_BYTES: usize = 16;

/// The place of one image's trace.
#[derive(Debug)]
pub(super) struct Traces {
    cache_dir: PathBuf,
    name: String,
}

impl Traces {
    /// For the image that `identity` tells from all others.
    pub(super) fn of(cache_dir: &Path, identity: &str) -> Self {
        Self { cache_dir: cache_dir.to_owned(), name: hex(&Sha256::digest(identity)[..KEY_BYTES]) }
    }

    /// For what is touched of the stored bytes of that image, if it is a remote one.
    pub(super) fn of_chunks(cache_dir: &Path, identity: &str) -> Self {
        Self::of(cache_dir, &format!("chunks of {identity}"))
    }

    /// What earlier daemons wrote; empty if that is nothing.
    pub(super) fn read(&self) -> Vec<u8> {
        let mut trace = Vec::new();
        let read = open_directory(&self.cache_dir).and_then(|directory| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = File::from(openat(directory, &self.name, flags, Mode::empty())?);
            file.take(MAX_STORED_BYTES as u64).read_to_end(&mut trace)
        });
        if let Err(error) = read.map(drop).or_else(ignore_missing) {
            tracing::debug!("cannot read the trace of earlier uses: {error}");
        }
        trace
    }

    /// Writes `trace`, if there is one, in place of the one that is there.
    pub(super) fn write(&self, trace: Option<Vec<u8>>) {
        let Some(trace) = trace else { return };
        let write = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.cache_dir)?;
            match mkdirat(CWD, self.cache_dir.join(DIRECTORY), Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            let directory = open_directory(&self.cache_dir)?;
            let new = format!("{}.{}", self.name, std::process::id());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&directory, &new, flags, Mode::RUSR | Mode::WUSR)?);
            let written = file.write_all(&trace);
            let kept = written.and_then(|()| Ok(renameat(&directory, &new, &directory, &self.name)?));
            if let Err(error) = kept {
                // It is of no use, and it is ours.
                let _ = unlinkat(&directory, &new, AtFlags::empty());
                return Err(error);
            }
            let found = found(&directory)?;
            remove(&directory, &found[..found.len().saturating_sub(MAX_TRACES)])
        };
        if let Err(error) = write() {
            tracing::debug!("cannot keep a trace of what was read: {error}");
        }
    }
}

/// What runs on this machine touched of the stored bytes of the remote image with this identity; empty if none did.
pub fn chunk_trace(cache_dir: &Path, identity: &str) -> Vec<u8> {
    Traces::of_chunks(cache_dir, identity).read()
}

/// Takes away the traces below a cache directory that were written at least `age` ago.
///
/// # Errors
/// If one cannot be removed, or the directory is another user's.
pub fn remove_traces(cache_dir: &Path, age: Duration) -> io::Result<()> {
    let directory = match open_directory(cache_dir) {
        Err(error) => return ignore_missing(error),
        Ok(directory) => directory,
    };
    let mut found = found(&directory)?;
    // A clock that was set back makes a trace new.
    found.retain(|(written, _)| SystemTime::now().duration_since(*written).unwrap_or_default() >= age);
    remove(&directory, &found)
}

/// The directory of traces, which is ours.
fn open_directory(cache_dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(CWD, cache_dir.join(DIRECTORY), flags, Mode::empty())?;
    if fstat(&directory)?.st_uid == rustix::process::geteuid().as_raw() {
        Ok(directory)
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the directory of traces is another user's"))
    }
}

/// All traces, and what interrupted writes left of some, the oldest first.
fn found(directory: &OwnedFd) -> io::Result<Vec<(SystemTime, String)>> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().ok().filter(|name| is_ours(name)) else { continue };
        // One that is gone meanwhile is none.
        let Ok(data) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let written = UNIX_EPOCH + Duration::from_secs(u64::try_from(data.st_mtime).unwrap_or(0));
        found.push((written, name.to_owned()));
    }
    found.sort();
    Ok(found)
}

fn remove(directory: &OwnedFd, traces: &[(SystemTime, String)]) -> io::Result<()> {
    for (_, name) in traces {
        unlinkat(directory, name, AtFlags::empty()).map_err(io::Error::from).or_else(ignore_missing)?;
    }
    Ok(())
}

/// Whether a name is `KEY` or `KEY.PID`.
fn is_ours(name: &str) -> bool {
    let (key, pid) = name.split_once('.').unwrap_or((name, "0"));
    let is_key = key.len() == 2 * KEY_BYTES && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_key && pid.bytes().all(|byte| byte.is_ascii_digit())
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_others_put_into_the_directory_is_not_followed_nor_removed() {
        let cache = tempfile::tempdir().unwrap();
        let precious = cache.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        let traces = Traces::of(cache.path(), "image");
        traces.write(Some(b"first".to_vec()));
        let directory = cache.path().join(DIRECTORY);
        fs::write(directory.join("notes"), "notes").unwrap();
        let own = directory.join(format!("{}.{}", traces.name, std::process::id()));
        symlink(&precious, &own).unwrap();

        traces.write(Some(b"second".to_vec()));
        assert_eq!(traces.read(), b"first");
        fs::remove_file(&own).unwrap();
        fs::remove_file(directory.join(&traces.name)).unwrap();
        symlink(&precious, directory.join(&traces.name)).unwrap();
        assert_eq!(traces.read(), b"");
        remove_traces(cache.path(), Duration::ZERO).unwrap();

        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        let left: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes"]);
    }

    #[test]
    fn a_directory_elsewhere_is_not_used() {
        let (cache, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(elsewhere.path(), cache.path().join(DIRECTORY)).unwrap();
        let traces = Traces::of(cache.path(), "image");
        fs::write(elsewhere.path().join(&traces.name), "theirs").unwrap();

        traces.write(Some(b"ours".to_vec()));

        assert_eq!(traces.read(), b"");
        assert!(remove_traces(cache.path(), Duration::ZERO).is_err());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1);
    }
}
