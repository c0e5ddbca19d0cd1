//! Images in the cache directory that were made of OCI images, and the sandboxes that lie on them.
//!
//! A sandbox is nothing without the image below it. So it is noted beside the image, and as long as it is where it was made and
//! names that image, the image is not cleaned away.

use anyhow::Context;
use base16ct::lower::encode_string as hex;
use sha2::{Digest, Sha256};
use siphon_overlay::upper::Base;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Where in the cache directory they are.
pub const CONVERTED: &str = "oci-tmp";
/// What the directory of an image's sandboxes is called, behind the image's name.
const SANDBOXES: &str = ".sandboxes";
/// No path is longer.
const MAX_PATH_BYTES: u64 = 4096;

/// Notes that `sandbox` lies on `image`, if that is one of the cache directory `cache`.
///
/// # Errors
/// If it cannot be written down.
pub fn note_sandbox(cache: &Path, image: &Path, sandbox: &Path) -> anyhow::Result<()> {
    if fs::canonicalize(cache.join(CONVERTED)).ok().as_deref() != image.parent() {
        return Ok(());
    }
    let notes = notes(image);
    let context = || format!("cannot write to {}", notes.display());
    let sandbox = fs::canonicalize(sandbox).with_context(context)?;
    let path = sandbox.as_os_str().as_bytes();
    let name = hex(&Sha256::digest(path));
    fs::create_dir_all(&notes).with_context(context)?;
    fs::write(notes.join(name), path).with_context(context)
}

/// A sandbox that lies on `image`. Notes of those that are gone, or lie on something else now, are removed.
pub fn sandbox_on(image: &Path) -> Option<PathBuf> {
    let image = &fs::canonicalize(image).ok()?;
    let notes = notes(image);
    for note in fs::read_dir(&notes).into_iter().flatten().flatten() {
        let sandbox = read(&note.path()).map(PathBuf::from);
        let lies_on = |sandbox: &PathBuf| {
            let base = Base::read(sandbox).ok().flatten();
            base.is_some_and(|base| OsStr::new(&base.image) == image.as_os_str())
        };
        if let Some(sandbox) = sandbox.filter(lies_on) {
            return Some(sandbox);
        }
        let _the_directory_stays_then = fs::remove_file(note.path());
    }
    let _what_is_not_empty_stays = fs::remove_dir(&notes);
    None
}

fn read(note: &Path) -> Option<OsString> {
    let is_plain = fs::symlink_metadata(note).ok().is_some_and(|data| data.is_file() && data.len() <= MAX_PATH_BYTES);
    is_plain.then(|| fs::read(note).ok()).flatten().map(OsString::from_vec)
}

fn notes(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(SANDBOXES);
    PathBuf::from(name)
}

/// Removes `image`.
///
/// # Errors
/// If it is there and cannot be removed.
pub fn remove(image: &Path) -> anyhow::Result<()> {
    match fs::remove_file(image) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", image.display()))
        }
        _ => Ok(()),
    }
}
