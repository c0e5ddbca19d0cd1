//! `siphon mount`: an image onto a directory of the host.

use super::layers::{self, Layers};
use super::run::engine;
use crate::args::MountArgs;
use crate::build::sources::readable;
use crate::host::{cache_dir, runtime_dirs};
use crate::report::Report;
use crate::settings::{Common, OverlaySpec};
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
    let usable = readable(&args.image, common, report).with_context(context)?;
    let locator = Locator::parse(&usable).with_context(context)?;
    daemon::unmount_dead(&args.directory).with_context(context)?;
    let directory = args.directory.canonicalize().with_context(context)?;
    if !directory.is_dir() {
        bail!("{} is not a directory", args.directory.display());
    }
    let specs: Vec<_> = args.overlay.iter().flat_map(|list| list.split(',')).map(OverlaySpec::parse).collect();
    let layers = layers::find(&specs, report)?;
    let image = match &locator {
        Locator::Directory(path) | Locator::Sandbox(path) => Some(path.as_path()),
        Locator::File(_) | Locator::Url(_) | Locator::Elsewhere(_) | Locator::Layout(..) => None,
    };
    refuse_nesting(image, &layers, &directory).with_context(context)?;
    let spec = Spec {
        image: locator.to_string(),
        overlays: layers.read,
        layer: layers.written.map_or(Layer::ReadOnly, Layer::Overlay),
        memory_bytes: None,
        ids: if nix::unistd::geteuid().is_root() { Ids::Host } else { Ids::Caller },
        scope: common.scope.clone(),
        cache_dir: cache_dir(common),
        cache_bytes: common.cache_bytes,
        idle: common.idle,
        placement: Placement::HostMount(directory.clone()),
        engine: engine(common),
    };
    let executable = std::env::current_exe().context("cannot find the siphon program itself")?;
    daemon::join(&spec, &runtime_dirs(common), &executable).with_context(context)?;
    report.info(format_args!("Mounted on {0}; unmount with: siphon umount {0}", directory.display()));
    Ok(())
}

/// A mount below what it shows would wait for itself, and a layer within its image would change the image.
fn refuse_nesting(image: Option<&Path>, layers: &Layers, target: &Path) -> anyhow::Result<()> {
    for shown in image.into_iter().chain(layers.paths().map(PathBuf::as_path)) {
        if target.starts_with(shown) {
            bail!("the mount point is inside {}, which would be mounted", shown.display());
        }
    }
    for (image, overlay) in image.into_iter().flat_map(|image| layers.paths().map(move |overlay| (image, overlay))) {
        if image.starts_with(overlay) || overlay.starts_with(image) {
            bail!("the overlay {} and the image {} are inside each other", overlay.display(), image.display());
        }
    }
    Ok(())
}
