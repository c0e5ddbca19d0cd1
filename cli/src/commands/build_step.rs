//! The hidden verb that does a step of a build, in a process of its own.

use crate::build;
use crate::report::Report;
use std::path::Path;

/// Does what the file `job` says.
///
/// # Errors
/// What went wrong.
pub fn build_step(job: &Path, report: Report) -> anyhow::Result<()> {
    build::job::perform(job, report)
}
