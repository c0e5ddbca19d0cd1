//! Images that were converted from OCI images, and kept in the cache directory.

use super::SECONDS_OF_A_DAY;
use crate::build::converted::{CONVERTED, remove, sandbox_on};
use crate::report::Report;
use anyhow::Context;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// One of them.
pub(super) struct Converted {
    path: PathBuf,
    pub(super) bytes: u64,
    made: SystemTime,
}

/// All in the cache directory.
pub(super) fn all(cache_dir: &Path) -> anyhow::Result<Vec<Converted>> {
    let directory = cache_dir.join(CONVERTED);
    let context = || format!("cannot read {}", directory.display());
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(context)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(context)?;
        // What goes away meanwhile was removed by another.
        let Ok(data) = entry.metadata() else { continue };
        if data.is_file() {
            let made = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(Converted { path: entry.path(), bytes: data.len(), made });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Removes those that were made before so many days, and on which no sandbox lies. Mounted ones go on being served.
pub(super) fn clean(cache_dir: &Path, days: Option<u64>, dry_run: bool, report: Report) -> anyhow::Result<()> {
    let least = Duration::from_secs(days.unwrap_or(0).saturating_mul(SECONDS_OF_A_DAY));
    for converted in all(cache_dir)? {
        // A clock that was set back makes an entry new.
        if SystemTime::now().duration_since(converted.made).unwrap_or_default() < least {
            continue;
        }
        let name = converted.path.file_name().unwrap_or_default().display();
        if let Some(sandbox) = sandbox_on(&converted.path) {
            report.info(format_args!("Keeping {name}: the sandbox {} lies on it", sandbox.display()));
            continue;
        }
        report.info(format_args!("Removing oci cache entry: {name}"));
        if !dry_run {
            remove(&converted.path)?;
        }
    }
    Ok(())
}
