//! `siphon mount`: an image onto a directory of the host.

use crate::args::MountArgs;
use crate::host::{cache_dir, runtime_dir};
use crate::report::Report;
use crate::settings::Common;
use anyhow::{Context, bail};
use siphon_fsd::daemon::{self, Ids, Layer, Placement, Spec};
use siphon_fsd::locator::Locator;

/// Mounts `args.image` read-only on `args.directory`; its daemon leaves when it is unmounted.
///
/// # Errors
/// If the image cannot be opened or the directory not be mounted on.
pub fn mount(args: &MountArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let context = || format!("cannot mount {} on {}", args.image, args.directory.display());
    let locator = Locator::parse(&args.image).with_context(context)?;
    daemon::unmount_dead(&args.directory).with_context(context)?;
    let directory = args.directory.canonicalize().with_context(context)?;
    if !directory.is_dir() {
        bail!("{} is not a directory", args.directory.display());
    }
    let spec = Spec {
        image: locator.to_string(),
        layer: Layer::ReadOnly,
        ids: if nix::unistd::geteuid().is_root() { Ids::Host } else { Ids::Caller },
        scope: common.scope.clone(),
        cache_dir: cache_dir(common),
        cache_bytes: common.cache_bytes,
        idle: common.idle,
        placement: Placement::HostMount(directory.clone()),
    };
    let executable = std::env::current_exe().context("cannot find the siphon program itself")?;
    daemon::join(&spec, &runtime_dir(common), &executable).with_context(context)?;
    report.info(format_args!("Mounted on {0}; unmount with: siphon umount {0}", directory.display()));
    Ok(())
}
