//! `siphon commit`: a sandbox becomes a new read-only image.

use crate::args::CommitArgs;
use crate::build;
use crate::report::Report;
use crate::settings::{Common, Environment, ImageSettings};

/// Packs the sandbox's merged view into `args.target`.
///
/// # Errors
/// As [`build::image`].
pub fn commit(args: &CommitArgs, common: &Common, environment: &Environment, report: Report) -> anyhow::Result<()> {
    let settings = ImageSettings::resolve(&args.image, environment)?;
    build::image(&args.sandbox, None, &args.target, &settings, false, common, report)
}
