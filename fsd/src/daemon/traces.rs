//! Where traces of what was read are kept: one small file for each image, beside the cache of remote bytes.
//!
//! ```text
//! CACHE_DIR/traces/<key>   the key is a digest of the image's identity, which is the same on every machine
//! ```
//!
//! Nothing depends on a trace, so that whatever is wrong with one, or with its place, is a line of the log at most.

use crate::fs::MAX_TRACE_BYTES;
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Images whose traces are kept; the one that was written longest ago goes first. Less than 100 MiB, whatever they are.
const MAX_TRACES: usize = 256;

/// Below the cache directory.
const DIRECTORY: &str = "traces";

/// Bytes of the digest in the name.
const KEY_BYTES: usize = 16;

/// The place of one image's trace.
#[derive(Debug)]
pub(super) struct Traces {
    directory: PathBuf,
    name: String,
}

impl Traces {
    /// For the image that `identity` tells from all others.
    pub(super) fn of(cache_dir: &Path, identity: &str) -> Self {
        let digest = Sha256::digest(identity);
        let name = digest.iter().take(KEY_BYTES).map(|byte| format!("{byte:02x}")).collect();
        Self { directory: cache_dir.join(DIRECTORY), name }
    }

    /// What earlier daemons wrote; empty if that is nothing.
    pub(super) fn read(&self) -> Vec<u8> {
        let mut trace = Vec::new();
        let read = File::open(self.directory.join(&self.name))
            .and_then(|file| file.take(MAX_TRACE_BYTES as u64).read_to_end(&mut trace));
        if let Err(error) = read.map(drop).or_else(ignore_missing) {
            tracing::debug!("cannot read the trace of earlier uses: {error}");
        }
        trace
    }

    /// Writes `trace`, if there is one, in place of the one that is there.
    pub(super) fn write(&self, trace: Option<Vec<u8>>) {
        let Some(trace) = trace else { return };
        let write = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
            let new = self.directory.join(format!("{}.{}", self.name, std::process::id()));
            let written = File::create(&new).and_then(|mut file| file.write_all(&trace));
            let kept = written.and_then(|()| fs::rename(&new, self.directory.join(&self.name)));
            kept.or_else(|error| fs::remove_file(&new).and(Err(error)))?;
            self.make_room()
        };
        if let Err(error) = write() {
            tracing::debug!("cannot keep a trace of what was read: {error}");
        }
    }

    fn make_room(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            // One that is gone meanwhile needs no room.
            let written = entry.metadata().and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            found.push((written, entry.path()));
        }
        found.sort();
        for (_, path) in &found[..found.len().saturating_sub(MAX_TRACES)] {
            fs::remove_file(path).or_else(ignore_missing)?;
        }
        Ok(())
    }
}

/// Takes away the traces below a cache directory that were written at least `age` ago.
///
/// # Errors
/// If one cannot be removed.
pub fn remove_traces(cache_dir: &Path, age: Duration) -> io::Result<()> {
    let entries = match fs::read_dir(cache_dir.join(DIRECTORY)) {
        Err(error) => return ignore_missing(error),
        Ok(entries) => entries,
    };
    for entry in entries {
        let entry = entry?;
        let written = entry.metadata().and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        // A clock that was set back makes a trace new.
        if SystemTime::now().duration_since(written).unwrap_or_default() >= age {
            fs::remove_file(entry.path()).or_else(ignore_missing)?;
        }
    }
    Ok(())
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
