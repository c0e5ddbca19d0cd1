//! The hidden verb that makes an image file of an OCI image, for a process that may have no threads.

use crate::build::sources::usable;
use crate::report::Report;
use crate::settings::Common;

/// Prints what to open for `image`.
///
/// # Errors
/// If there is no such image, or no file can be made of it.
pub fn convert(image: &str, common: &Common, report: Report) -> anyhow::Result<()> {
    Ok(report.line(usable(image, common, report)?)?)
}
