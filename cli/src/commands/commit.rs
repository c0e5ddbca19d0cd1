//! `siphon commit`: a sandbox becomes a new read-only image.

use crate::args::CommitArgs;
use crate::build::{self, ImageRequest};
use crate::report::Report;
use crate::settings::{Common, Environment, ImageSettings};

/// Packs the sandbox's merged view into `args.target`.
///
/// # Errors
/// As [`build::image`].
pub fn commit(args: &CommitArgs, common: &Common, environment: &Environment, report: Report) -> anyhow::Result<()> {
    let settings = ImageSettings::resolve(&args.image, environment)?;
    let (source, target) = (args.sandbox.as_str(), args.target.as_path());
    let request = ImageRequest { source, overlay: None, target, as_it_is: false, when_told: false };
    build::image(request, &settings, common, report)
}
