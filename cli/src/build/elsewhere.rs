//! Images that are elsewhere: fetched into a file, or named so that they can be opened.

use super::publish::publish;
use crate::host::cache_dir;
use crate::report::{Report, human_bytes};
use crate::settings::Common;
use anyhow::{Context, bail};
use siphon_fsd::blob::{Blob, BlobError};
use siphon_fsd::locator;
use siphon_fsd::source::{SourceError, Whole};
use siphon_fsd::stream::InOrder;
use siphon_image::digest::Hash;
use siphon_image::oci::select::Wanted;
use siphon_image::open;
use siphon_image::read_at::{FileAt, ReadAt};
use siphon_image::reference::Reference;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that are written, hashed and counted at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// A pull.
#[derive(Debug)]
pub struct Pull<'a> {
    /// Where the image is.
    pub reference: &'a Reference,
    /// For which machines.
    pub wanted: Wanted,
    /// The file to make.
    pub target: &'a Path,
    /// Whether what is fetched is kept for later, and what was kept is used.
    pub uses_cache: bool,
}

/// Fetches an image into a file, which has its name once all of it is there and verified.
///
/// # Errors
/// If it cannot be had or written, or is none. The target is then as it was.
pub fn pull(pull: &Pull<'_>, common: &Common, report: Report) -> anyhow::Result<()> {
    let (mut bytes, len_bytes, digest) = open(pull, &cache_dir(common))?;
    write(bytes.as_mut(), len_bytes, digest.as_deref(), pull, report)
}

/// The bytes of an image, how many there are, and their digest, as far as these are known.
type Source = (Box<dyn Read>, Option<u64>, Option<String>);

fn open(pull: &Pull<'_>, cache: &Path) -> anyhow::Result<Source> {
    let (remote, digest) = match locator::elsewhere(pull.reference, Some(&pull.wanted.arch)) {
        Ok(found) => found,
        Err(error) => match pull.reference {
            // It cannot be read in parts, but as a whole.
            Reference::Web(url) if serves_no_ranges(&error) => {
                let whole = Whole::open(url)?;
                let len_bytes = whole.len_bytes();
                return Ok((Box::new(whole), len_bytes, None));
            }
            _ => return Err(error.into()),
        },
    };
    let object: Arc<dyn ReadAt> = match pull.uses_cache {
        true => Arc::new(Blob::over(remote, cache)?),
        false => Arc::new(remote),
    };
    let len_bytes = Some(object.len());
    Ok((Box::new(InOrder::new(object)), len_bytes, digest))
}

fn serves_no_ranges(error: &locator::Error) -> bool {
    let locator::Error::Url { source: BlobError::Source(source), .. } = error else { return false };
    matches!(**source, SourceError::NoRanges { .. })
}

fn write(
    bytes: &mut dyn Read,
    len_bytes: Option<u64>,
    expected: Option<&str>,
    pull: &Pull<'_>,
    report: Report,
) -> anyhow::Result<()> {
    let reference = shown(pull.reference);
    let made = publish(pull.target, 0o777, |file, interrupted| {
        let found = copy(bytes, file, len_bytes, interrupted, report)?;
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            bail!("{reference} has the digest {found} and not {expected}; its server or a proxy has damaged it");
        }
        let file = FileAt::new(file.try_clone()?)?;
        let len_bytes = file.len();
        open::open(Arc::new(file)).with_context(|| format!("what {reference} gave is no image"))?;
        Ok(len_bytes)
    });
    made.with_context(|| format!("cannot make {} from {reference}", pull.target.display())).map(drop)
}

/// Copies all of `from`, and returns its digest.
fn copy(
    from: &mut dyn Read,
    mut to: &File,
    len_bytes: Option<u64>,
    interrupted: &AtomicBool,
    report: Report,
) -> anyhow::Result<String> {
    let bar = report.progress("fetching", len_bytes.unwrap_or(0));
    let mut hash = Hash::sha256();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut done = 0;
    loop {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted; what was fetched is kept in the cache");
        }
        let len = from.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        hash.update(&buffer[..len]);
        to.write_all(&buffer[..len]).with_context(|| format!("no room for more than {}", human_bytes(done)))?;
        done += len as u64;
        bar.set(done, len_bytes.unwrap_or(done).max(done));
    }
    Ok(hash.finish())
}

/// A reference without what may be secret in a URL.
pub fn shown(reference: &Reference) -> String {
    let Reference::Web(url) = reference else { return reference.to_string() };
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    match plain.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, rest)| rest)),
        None => plain.to_owned(),
    }
}
