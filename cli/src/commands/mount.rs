//! `siphon mount`: an image onto a directory of the host.

use crate::args::MountArgs;
use crate::host::{cache_dir, runtime_dir};
use crate::report::Report;
use crate::settings::Common;
use anyhow::{Context, bail};
use siphon_fsd::daemon::{self, Ids, Layer, Placement, Spec};
use siphon_fsd::locator::Locator;
use std::path::{Path, PathBuf};

/// Mounts `args.image` on `args.directory`, read-only without an overlay; its daemon leaves when it is unmounted.
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
    let overlay = args.overlay.as_deref().map(canonical_overlay).transpose()?;
    let image = match &locator {
        Locator::Directory(path) | Locator::Sandbox(path) => Some(path.as_path()),
        Locator::File(_) | Locator::Url(_) => None,
    };
    refuse_nesting(image, overlay.as_deref(), &directory).with_context(context)?;
    let spec = Spec {
        image: locator.to_string(),
        layer: overlay.map_or(Layer::ReadOnly, Layer::Overlay),
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

fn canonical_overlay(overlay: &Path) -> anyhow::Result<PathBuf> {
    let context = || format!("cannot use the overlay {}", overlay.display());
    let overlay = overlay.canonicalize().with_context(context)?;
    if !overlay.is_dir() {
        bail!("cannot use the overlay {}: it is not a directory", overlay.display());
    }
    Ok(overlay)
}

/// A mount below what it shows would wait for itself, and a layer within its image would change the image.
fn refuse_nesting(image: Option<&Path>, overlay: Option<&Path>, target: &Path) -> anyhow::Result<()> {
    for shown in [image, overlay].into_iter().flatten() {
        if target.starts_with(shown) {
            bail!("the mount point is inside {}, which would be mounted", shown.display());
        }
    }
    if let (Some(image), Some(overlay)) = (image, overlay)
        && (image.starts_with(overlay) || overlay.starts_with(image))
    {
        bail!("the overlay {} and the image {} are inside each other", overlay.display(), image.display());
    }
    Ok(())
}
