//! `siphon cache`: what was kept of remote images, listed and cleaned as singularity does.

mod builds;
mod converted;

use crate::args::{CacheCleanArgs, CacheKind, CacheListArgs, CacheVerb};
use crate::build::keep::KeptLayer;
use crate::host::cache_dir;
use crate::report::{Report, human_bytes, utc};
use crate::settings::{Common, parse_size};
use anyhow::{Context, bail};
use serde::Serialize;
use siphon_fsd::cache::{Cache, CacheError, Entry};
use siphon_fsd::daemon::remove_traces;
use siphon_fsd::oci::remove_kept;
use std::time::{Duration, SystemTime};

/// What `cache clean` asks, to the letter: scripts answer it.
const QUESTION: &str = "This will delete everything in your cache (containers from all sources and OCI blobs).
Hint: You can see exactly what would be deleted by canceling and using the --dry-run option.
Do you want to continue? [y/N] ";
/// Columns of the listing are this wide, as singularity's; longer names are cut.
const NAME_WIDTH: usize = 22;
/// The kinds that siphon keeps parts of, and the traces of runs with them.
const PARTS: [CacheKind; 4] = [CacheKind::Net, CacheKind::Oras, CacheKind::Library, CacheKind::Blob];
const SECONDS_OF_A_DAY: u64 = 24 * 60 * 60;

/// Lists or cleans.
///
/// # Errors
/// If the directory cannot be read, or an entry not be removed.
pub fn cache(verb: &CacheVerb, common: &Common, report: Report) -> anyhow::Result<()> {
    match verb {
        CacheVerb::Clean(args) => clean(args, common, report),
        CacheVerb::List(args) => list(args, common, report),
        CacheVerb::Limit { size } => limit(size.as_deref(), common, report),
    }
}

/// Makes `SIPHON_CACHE_LIMIT` the limit of the cache directory, which other processes keep as well.
/// Where that cannot be, a command that needs the directory says so.
pub fn keep_limit(common: &Common, report: Report) {
    let Some(bytes) = common.cache_limit else { return };
    let keep = || match Cache::open(&cache_dir(common))? {
        cache if cache.quota_bytes() != bytes => cache.set_quota(bytes),
        _ => Ok(()),
    };
    if let Err(error) = keep() {
        report.warning(format_args!("SIPHON_CACHE_LIMIT is not kept: {:#}", anyhow::Error::from(error)));
    }
}

fn limit(text: Option<&str>, common: &Common, report: Report) -> anyhow::Result<()> {
    let cache = Cache::open(&cache_dir(common))?;
    if let Some(text) = text {
        let bytes = parse_size(text);
        cache.set_quota(
            bytes.with_context(|| format!("{text:?} is no size: give a number, alone or with K, M or G"))?,
        )?;
    }
    Ok(report.line(human_bytes(cache.quota_bytes()))?)
}

/// One image, as JSON.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    name: &'a str,
    r#type: &'static str,
    url: Option<&'a str>,
    created: String,
    stored_bytes: u64,
    image_bytes: Option<u64>,
    pinned: bool,
}

fn list(args: &CacheListArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let wanted = |kind| is_wanted(&args.kinds, kind);
    let mut entries =
        Cache::existing(&cache_dir(common))?.map(|cache| cache.entries()).transpose()?.unwrap_or_default();
    entries.retain(|entry| wanted(kind(entry)));
    let (layers, layer_bytes) =
        if wanted(CacheKind::Build) { builds::all(&cache_dir(common))? } else { Default::default() };
    if args.json {
        let listed: Vec<_> = entries.iter().map(listed).chain(layers.iter().map(listed_layer)).collect();
        return Ok(report.line(serde_json::to_string_pretty(&listed)?)?);
    }
    if args.verbose {
        report.line(format_args!("{:<24} {:<22} {:<16} {:<7} SOURCE", "NAME", "DATE CREATED", "SIZE", "TYPE"))?;
        for entry in &entries {
            let Listed { name, r#type, url, created, stored_bytes, .. } = listed(entry);
            let (size, url) = (size(stored_bytes), url.unwrap_or("unknown"));
            report.line(format_args!("{name:<24.NAME_WIDTH$} {created:<22} {size:<16} {type:<7} {url}"))?;
        }
        for layer in &layers {
            let (created, size) = (builds::created(layer), size(layer.bytes));
            let (name, recipe) = (&layer.name, &layer.recipe);
            report.line(format_args!("{name:<24.NAME_WIDTH$} {created:<22} {size:<16} {:<7} {recipe}", "build"))?;
        }
        report.line("")?;
    }
    let converted = if wanted(CacheKind::Oci) { converted::all(&cache_dir(common))? } else { Vec::new() };
    let (blobs, images): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| kind(entry) == CacheKind::Blob);
    let sum = |entries: &[&Entry]| -> u64 { entries.iter().map(|entry| entry.stored_bytes).sum() };
    let image_bytes = sum(&images) + converted.iter().map(|image| image.bytes).sum::<u64>();
    let stored = image_bytes + sum(&blobs);
    let images = format!("{} container file(s) using {}", images.len() + converted.len(), size(image_bytes));
    let blobs = format!("{} oci blob file(s) using {}", blobs.len(), size(sum(&blobs)));
    let is_image = |kind: &CacheKind| !matches!(kind, CacheKind::Blob);
    match (args.kinds.iter().any(is_image), wanted(CacheKind::Blob)) {
        (true, true) => report.line(format_args!("There are {images} and {blobs} of space"))?,
        (true, false) => report.line(format_args!("There are {images} of space"))?,
        (false, _) => report.line(format_args!("There are {blobs} of space"))?,
    }
    if !layers.is_empty() {
        report.line(format_args!(
            "There are {} layer(s) of builds using {} of space",
            layers.len(),
            size(layer_bytes)
        ))?;
    }
    Ok(report.line(format_args!("Total space used: {}", size(stored + layer_bytes)))?)
}

fn listed(entry: &Entry) -> Listed<'_> {
    let seconds = entry.created.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    Listed {
        name: &entry.key,
        r#type: match kind(entry) {
            CacheKind::Oras => "oras",
            CacheKind::Library => "library",
            CacheKind::Blob => "blob",
            _ => "net",
        },
        url: entry.description.as_ref().map(|description| description.url.as_str()),
        created: utc(i64::try_from(seconds).unwrap_or(i64::MAX)),
        stored_bytes: entry.stored_bytes,
        image_bytes: entry.description.as_ref().map(|description| description.len_bytes),
        pinned: entry.pinned,
    }
}

fn listed_layer(layer: &KeptLayer) -> Listed<'_> {
    Listed {
        name: &layer.name,
        r#type: "build",
        url: None,
        created: builds::created(layer),
        stored_bytes: layer.bytes,
        image_bytes: None,
        pinned: false,
    }
}

/// What singularity would keep it as. What cannot be told is of the web.
fn kind(entry: &Entry) -> CacheKind {
    let url = entry.description.as_ref().map(|description| description.url.as_str()).unwrap_or_default();
    match url.split_once("://").map(|(scheme, _)| scheme) {
        Some("oras") => CacheKind::Oras,
        Some("library") => CacheKind::Library,
        Some("docker") => CacheKind::Blob,
        _ => CacheKind::Net,
    }
}

fn clean(args: &CacheCleanArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    if args.dry_run {
        report.line("User requested a dry run. Not actually deleting any data!")?;
    } else if !args.force {
        let answer = report.confirm(QUESTION);
        if !answer.context("Handle clean failed: could not prompt user; --force asks nothing")? {
            report.info("Handle cleanup canceled");
            return Ok(());
        }
    }
    let directory = cache_dir(common);
    let is_kept =
        |kind: &CacheKind| PARTS.contains(kind) || matches!(kind, CacheKind::Oci | CacheKind::Build | CacheKind::All);
    for kind in args.kinds.iter().filter(|kind| !is_kept(kind)) {
        let (kind, place) = (format!("{kind:?}").to_lowercase(), directory.display());
        report.info(format_args!("No cached files to remove at {place}: siphon keeps none of type {kind}"));
    }
    let age = Duration::from_secs(args.days.unwrap_or(0).saturating_mul(SECONDS_OF_A_DAY));
    if is_wanted(&args.kinds, CacheKind::Blob) {
        let freed = remove_kept(&directory, age, args.dry_run).context("cannot remove the indexes of layers")?;
        if freed > 0 {
            report.info(format_args!("Removing indexes of layers, and what names led to ({})", size(freed)));
        }
    }
    if is_wanted(&args.kinds, CacheKind::Oci) {
        converted::clean(&directory, args.days, args.dry_run, report)?;
    }
    if is_wanted(&args.kinds, CacheKind::Build) {
        builds::clean(&directory, args.days, args.dry_run, report)?;
    }
    if !PARTS.iter().any(|kind| is_wanted(&args.kinds, *kind)) {
        return Ok(());
    }
    if !args.dry_run {
        remove_traces(&directory, age).context("cannot remove what is known of earlier runs")?;
    }
    let cache = Cache::existing(&directory)?;
    let mut left = 0;
    let mut judge = |result: Result<(), CacheError>| {
        if let Err(error) = result {
            left += 1;
            report.warning(format_args!("{:#}", anyhow::Error::from(error)));
        }
    };
    if let Some(cache) = cache.as_ref().filter(|_| !args.dry_run) {
        judge(cache.sweep());
    }
    let mut entries = cache.as_ref().map(Cache::entries).transpose()?.unwrap_or_default();
    entries.retain(|entry| is_wanted(&args.kinds, kind(entry)));
    if entries.is_empty() {
        report.info(format_args!("No cached files to remove at {}", directory.display()));
    }
    let Some(cache) = cache else { return Ok(()) };
    for entry in entries.iter().filter(|entry| args.days.is_none_or(|days| is_older(entry, days))) {
        let url = entry.description.as_ref().map(|description| format!(" ({})", description.url)).unwrap_or_default();
        if entry.pinned {
            report.info(format_args!(
                "Keeping what is pinned: {}{url}; let it go with \"siphon pin --unpin\"",
                entry.key
            ));
            continue;
        }
        report.info(format_args!("Removing {} cache entry: {}{url}", listed(entry).r#type, entry.key));
        if !args.dry_run {
            judge(cache.remove(entry));
        }
    }
    if left > 0 {
        bail!("{left} of what was to be removed could not be");
    }
    Ok(())
}

fn is_wanted(kinds: &[CacheKind], kind: CacheKind) -> bool {
    kinds.contains(&kind) || kinds.contains(&CacheKind::All)
}

/// A clock that was set back makes an entry new.
fn is_older(entry: &Entry, days: u64) -> bool {
    let age = SystemTime::now().duration_since(entry.created).unwrap_or_default();
    age >= Duration::from_secs(days.saturating_mul(SECONDS_OF_A_DAY))
}

/// A size as singularity writes it in listings of its cache: in KiB at least.
fn size(bytes: u64) -> String {
    let kib = bytes as f64 / 1024.0;
    match bytes {
        0..0x10_0000 => format!("{kib:.2} KiB"),
        0x10_0000..0x4000_0000 => format!("{:.2} MiB", kib / 1024.0),
        _ => format!("{:.2} GiB", kib / 1024.0 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_singularity_does() {
        let cases = [(0, "0.00 KiB"), (3_000_000, "2.86 MiB"), (1 << 20, "1.00 MiB"), (3 << 29, "1.50 GiB")];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }
}
