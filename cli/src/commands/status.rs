//! `siphon status`: the daemons, their mounts and how much was read and fetched.

mod prometheus;

use crate::args::StatusArgs;
use crate::host::runtime_dirs;
use crate::report::{Report, human_bytes};
use crate::settings::Common;
use siphon_fsd::blob::BlobCounters;
use siphon_fsd::daemon::EngineName;
use siphon_fsd::storage::StorageUse;
use siphon_image::tree::Activity;
use std::time::Duration;

/// Prints one paragraph a daemon, a JSON array, or metrics.
///
/// # Errors
/// If a directory of sockets cannot be read.
pub fn status(args: &StatusArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let daemons = siphon_fsd::control::list(&runtime_dirs(common))?;
    if args.json {
        return Ok(report.line(serde_json::to_string_pretty(&daemons)?)?);
    }
    if args.prometheus {
        return Ok(report.bytes(prometheus::exposition(&daemons).as_bytes())?);
    }
    if daemons.is_empty() {
        report.info("No daemon runs.");
    }
    for daemon in daemons {
        report.line(format_args!("{}", daemon.image))?;
        report.line(format_args!("  daemon   pid {}, {} clients", daemon.pid, daemon.clients))?;
        report.line(format_args!("  mount    {}", daemon.mount.display()))?;
        let access = if daemon.writable { "writable" } else { "read-only" };
        report.line(format_args!("  access   {access}"))?;
        if let Some(engine) = &daemon.engine {
            report.line(format_args!(
                "  layer    {} by {}: {}",
                daemon.layer,
                engine_word(engine.name),
                engine.reason
            ))?;
        }
        let read = human_bytes(daemon.bytes_read);
        report.line(format_args!("  read     {read} of a {} image", human_bytes(daemon.image_bytes)))?;
        if daemon.cache_bytes > 0 {
            report.line(format_args!("  storage  {}", storage(&daemon.counters.storage)))?;
            report.line(format_args!("  decoded  {}", decoding(&daemon.counters.decoding, daemon.cache_bytes)))?;
        }
        if let Some(network) = &daemon.network {
            report.line(format_args!("  fetched  {}", fetched(network, daemon.image_bytes)))?;
        }
    }
    Ok(())
}

/// `120.00 MiB of 3.00 GiB (3.9 %) over the network in 41 requests; 90.00 MiB read from the cache`.
fn fetched(network: &BlobCounters, image_bytes: u64) -> String {
    let BlobCounters { requests, retries, bytes_fetched, bytes_doubled, bytes_from_cache, pinned, .. } = *network;
    let share = bytes_fetched as f64 * 100.0 / image_bytes.max(1) as f64;
    let (fetched, image, cached) =
        (human_bytes(bytes_fetched), human_bytes(image_bytes), human_bytes(bytes_from_cache));
    let repeated = if retries > 0 { format!(", {retries} of them repeated") } else { String::new() };
    let doubled = match bytes_doubled {
        0 => String::new(),
        bytes => format!(", up to {} more in late answers that were given up", human_bytes(bytes)),
    };
    let kept = if pinned { "; pinned" } else { "" };
    format!(
        "{fetched} of {image} ({share:.1} %) over the network in {requests} requests{repeated}{doubled}; {cached} read \
         from the cache{kept}"
    )
}

fn engine_word(name: EngineName) -> &'static str {
    match name {
        EngineName::Kernel => "kernel",
        EngineName::Fuse => "fuse",
    }
}

/// `12.00 MiB in 420 reads, 0.31 s waited`.
fn storage(usage: &StorageUse) -> String {
    let waited = Duration::from_nanos(usage.storage_nanos).as_secs_f64();
    format!("{} in {} reads, {waited:.2} s waited", human_bytes(usage.storage_bytes), usage.storage_reads)
}

/// `35.00 MiB in 300 blocks; 91 % found in a cache of 64.00 MiB`. What was waited for counts as found:
/// it is decoded once for all.
fn decoding(activity: &Activity, cache_bytes: u64) -> String {
    let Activity { decoded_blocks, cache_hits, cache_misses, cache_waits, .. } = *activity;
    let decoded = human_bytes(activity.decoded_bytes);
    let found = cache_hits + cache_waits;
    let percent = (found * 100).checked_div(found + cache_misses).unwrap_or(0);
    let cache = human_bytes(cache_bytes);
    format!("{decoded} in {decoded_blocks} blocks; {percent} % found in a cache of {cache}")
}
