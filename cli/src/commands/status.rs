//! `siphon status`: the daemons, their mounts and how much was read and fetched.

use crate::args::StatusArgs;
use crate::host::runtime_dir;
use crate::report::{Report, human_bytes};
use crate::settings::Common;

/// Prints one paragraph a daemon, or a JSON array.
///
/// # Errors
/// If the directory of the sockets cannot be read.
pub fn status(args: &StatusArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let daemons = siphon_fsd::control::list(&runtime_dir(common))?;
    if args.json {
        return Ok(report.line(serde_json::to_string_pretty(&daemons)?)?);
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
        let read = human_bytes(daemon.bytes_read);
        report.line(format_args!("  read     {read} of a {} image", human_bytes(daemon.image_bytes)))?;
        if let Some(fetched) = daemon.bytes_fetched {
            report.line(format_args!("  fetched  {} over the network", human_bytes(fetched)))?;
        }
    }
    Ok(())
}
