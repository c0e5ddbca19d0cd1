//! `siphon man`: manual pages, from what the commands say of themselves.

use crate::report::Report;
use anyhow::Context;
use std::path::Path;

/// Prints the page of siphon, or writes one page for it and each command into a directory, which is made.
///
/// # Errors
/// If the pages cannot be written.
pub fn man(directory: Option<&Path>, command: clap::Command, report: Report) -> anyhow::Result<()> {
    let Some(directory) = directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return Ok(report.bytes(&page)?);
    };
    let failed = || format!("cannot write manual pages into {}", directory.display());
    std::fs::create_dir_all(directory).with_context(failed)?;
    clap_mangen::generate_to(command, directory).with_context(failed)
}
