//! `siphon commit`: a sandbox becomes a new read-only image.

use crate::args::CommitArgs;
use crate::build;
use crate::report::Report;
use crate::settings::Common;

/// Packs the sandbox's merged view into `args.target`.
///
/// # Errors
/// As [`build::image`].
pub fn commit(args: &CommitArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    build::image(&args.sandbox, &args.target, args.force, common, report)
}
