//! `siphon pin`: all of a remote image on this disk, to stay.

use crate::args::PinArgs;
use crate::host::cache_dir;
use crate::report::{Report, human_bytes};
use crate::settings::Common;
use anyhow::{Context, bail};
use siphon_fsd::blob::Blob;
use siphon_fsd::cache::Cache;
use siphon_fsd::locator::Locator;
use siphon_fsd::prefetch::fetch_all;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Pins an image, lets it go, or lists what is pinned.
///
/// # Errors
/// If it is no remote image, cannot be fetched, or there is no room for it.
pub fn pin(args: &PinArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let Some(image) = &args.image else { return list(common, report) };
    let url = match Locator::parse(image).with_context(|| format!("could not open image {image}"))? {
        Locator::Url(url) => url,
        Locator::Elsewhere(_) => bail!("{image} cannot be pinned yet; have a file of it instead: siphon pull {image}"),
        _ => bail!("{image} is a local image, which needs no network: only remote images are pinned"),
    };
    if args.unpin {
        return unpin(&url, common, report);
    }
    if args.background {
        return in_background(image, report);
    }
    fetch(&url, common, report)
}

fn fetch(url: &str, common: &Common, report: Report) -> anyhow::Result<()> {
    let blob = Blob::open(url, &cache_dir(common)).with_context(|| format!("could not open image {url}"))?;
    let total = blob.len_bytes();
    let bar = report.progress("fetching", total);
    fetch_all(&blob, &|done| bar.set(done, total))
        .with_context(|| format!("could not fetch all of {}", blob.name()))?;
    drop(bar);
    blob.set_pinned(true)?;
    let (size, fetched) = (human_bytes(total), human_bytes(blob.counters().bytes_fetched));
    report.info(format_args!("Pinned {} ({size}, of which {fetched} were fetched now)", blob.name()));
    Ok(())
}

fn unpin(url: &str, common: &Common, report: Report) -> anyhow::Result<()> {
    let cache = Cache::existing(&cache_dir(common))?;
    let pinned =
        cache.as_ref().and_then(|cache| Some((cache, cache.named(url).filter(|named| cache.is_pinned(&named.key))?)));
    let Some((cache, named)) = pinned else { bail!("{url} is not pinned; \"siphon pin --list\" shows what is") };
    cache.set_pinned(&named.key, false)?;
    report.info(format_args!("Let go of {}; it stays cached until there is need for its room", named.description.url));
    Ok(())
}

fn list(common: &Common, report: Report) -> anyhow::Result<()> {
    let entries = Cache::existing(&cache_dir(common))?.map(|cache| cache.entries()).transpose()?.unwrap_or_default();
    let pinned: Vec<_> = entries.iter().filter(|entry| entry.pinned).collect();
    if pinned.is_empty() {
        report.info("Nothing is pinned.");
    }
    for entry in pinned {
        let url = entry.description.as_ref().map_or("unknown", |description| description.url.as_str());
        report.line(format_args!("{:>10}  {url}", human_bytes(entry.stored_bytes)))?;
    }
    Ok(())
}

/// Goes on in a process of its own, which nothing of this terminal ends.
fn in_background(image: &str, report: Report) -> anyhow::Result<()> {
    let siphon = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(siphon);
    command.args(["--silent", "pin", "--", image]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Not of the terminal's foreground group, which an interrupt ends.
    let child = command.process_group(0).spawn().context("cannot start the process that fetches")?;
    report.info(format_args!(
        "Fetching in the background (process {}); \"siphon pin --list\" shows when it is done",
        child.id()
    ));
    Ok(())
}
