//! `siphon pin`: all of a remote image on this disk, to stay.

use crate::args::PinArgs;
use crate::host::cache_dir;
use crate::report::{Report, human_bytes};
use crate::settings::Common;
use anyhow::{Context, bail};
use siphon_fsd::locator::Locator;
use siphon_fsd::pin;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Pins an image, lets it go, or lists what is pinned.
///
/// # Errors
/// If it is no remote image, cannot be fetched, or there is no room for it.
pub fn pin(args: &PinArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let Some(image) = &args.image else { return list(common, report) };
    let locator = Locator::parse(image).with_context(|| format!("could not open image {image}"))?;
    if !matches!(locator, Locator::Url(_) | Locator::Elsewhere(_)) {
        bail!("{image} is a local image, which needs no network: only remote images are pinned");
    }
    if args.unpin {
        return unpin(&locator, common, report);
    }
    if args.background {
        return in_background(image, report);
    }
    fetch(&locator, common, report)
}

fn fetch(image: &Locator, common: &Common, report: Report) -> anyhow::Result<()> {
    let bar = report.progress("fetching", 0);
    let pinned = pin::pin(image, &cache_dir(common), &|done, total| bar.set(done, total))
        .with_context(|| format!("could not pin {image}"))?;
    drop(bar);
    let (pinned, counters) = pinned.with_context(|| format!("{image} is a local image, which needs no network"))?;
    let (size, fetched) = (human_bytes(pinned.len_bytes), human_bytes(counters.bytes_fetched));
    report.info(format_args!("Pinned {} ({size}, of which {fetched} were fetched now)", pinned.name));
    Ok(())
}

fn unpin(image: &Locator, common: &Common, report: Report) -> anyhow::Result<()> {
    let pinned = pin::unpin(image, &cache_dir(common))?;
    let pinned = pinned.with_context(|| format!("{image} is not pinned; \"siphon pin --list\" shows what is"))?;
    report.info(format_args!("Let go of {}; it stays cached until there is need for its room", pinned.name));
    Ok(())
}

fn list(common: &Common, report: Report) -> anyhow::Result<()> {
    let pinned = pin::pinned(&cache_dir(common))?;
    if pinned.is_empty() {
        report.info("Nothing is pinned.");
    }
    for image in pinned {
        report.line(format_args!("{:>10}  {}", human_bytes(image.len_bytes), image.name))?;
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
