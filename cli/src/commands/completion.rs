//! `siphon completion`: completions for a shell.

use crate::report::Report;

/// Prints the script that `shell` is to source.
///
/// # Errors
/// If stdout is closed.
pub fn completion(shell: clap_complete::Shell, mut command: clap::Command, report: Report) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "siphon", &mut script);
    Ok(report.bytes(&script)?)
}
