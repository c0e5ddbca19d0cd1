//! `siphon run-help`: the help text of an image or of one of its apps.

use crate::args::RunHelpArgs;
use crate::report::Report;
use crate::settings::Common;
use siphon_image::open::{app_facts, facts};

/// Prints it.
///
/// # Errors
/// If the image cannot be opened.
pub fn run_help(args: &RunHelpArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let tree = super::open_tree(&args.image, common, report)?;
    let help = match &args.app {
        Some(app) => app_facts(tree.as_ref(), app).helpfile,
        None => facts(tree.as_ref())?.helpfile,
    };
    // As singularity has it, an image without help is no failure.
    Ok(report.line(help.as_deref().map_or("No help sections were defined for this image", str::trim_end))?)
}
