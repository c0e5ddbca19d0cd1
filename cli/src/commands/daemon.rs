//! The hidden verb that serves one mount.

use std::path::Path;

/// Serves the mount that `state` describes until nobody needs it.
///
/// # Errors
/// What went wrong; whoever started the daemon has been told already.
pub fn daemon(state: &Path) -> anyhow::Result<()> {
    Ok(siphon_fsd::daemon::serve(state)?)
}
