//! `siphon umount`.

use crate::args::UmountArgs;
use anyhow::Context;

/// Unmounts what `siphon mount` mounted.
///
/// # Errors
/// If nothing of ours is mounted there, or it is in use.
pub fn umount(args: &UmountArgs) -> anyhow::Result<()> {
    siphon_fsd::daemon::unmount(&args.directory).with_context(|| format!("cannot unmount {}", args.directory.display()))
}
