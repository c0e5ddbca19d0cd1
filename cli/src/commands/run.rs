//! `siphon exec`, `shell` and `run`: join the image's daemon, make the plan, become the program.

use crate::host::{cache_dir, gather, runtime_dir};
use crate::plan::{PlanError, SourceKind, plan};
use crate::report::Report;
use crate::runtime::{Place, apply};
use crate::settings::{Common, Environment, RunSettings, Writes};
use anyhow::{Context, bail};
use siphon_fsd::daemon::{self, Ids, Layer, MountPointKind, Placement, Spec};
use siphon_fsd::locator::Locator;
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

/// Runs. Returns only if that fails.
///
/// # Errors
/// Whatever stands between the command line and the program.
pub fn run(
    mut settings: RunSettings,
    common: &Common,
    environment: Environment,
    report: Report,
) -> anyhow::Result<Infallible> {
    let locator =
        Locator::parse(&settings.image).with_context(|| format!("could not open image {}", settings.image))?;
    let layer = layer(&settings, &locator)?;
    let mut host = gather(&settings, environment)?;
    if !matches!(locator, Locator::Url(_)) {
        settings.image = host.cleaned(Path::new(&settings.image)).display().to_string();
    }
    let (scope, idle) = sharing(&settings, common);
    let spec = Spec {
        image: locator.to_string(),
        layer,
        ids: if host.uid == 0 { Ids::Host } else { Ids::Caller },
        scope,
        cache_dir: cache_dir(common),
        cache_bytes: common.cache_bytes,
        idle,
        placement: Placement::InNamespace,
    };
    let executable = std::env::current_exe().context("cannot find the siphon program itself")?;
    let joined = daemon::join(&spec, &runtime_dir(common), &executable)
        .with_context(|| format!("could not open image {}", settings.image))?;
    if let (Writes::Sandbox, Err(reason)) = (settings.writes, &joined.writable) {
        bail!("cannot write to {}: {reason}", settings.image);
    }
    let wanted = host.gpu.replaceable(&settings.gpu);
    if !wanted.is_empty() {
        let present = joined.libraries(&wanted).context("cannot tell which libraries the image has")?;
        host.gpu.leave_to_image(wanted.into_iter().zip(present).filter_map(|(wanted, has)| has.then_some(wanted)));
    }
    let plan = plan(&settings, &joined.facts, &host)?;
    let points: Vec<_> = plan
        .mount_points()
        .into_iter()
        .map(|(path, kind)| match kind {
            SourceKind::Directory => (path, MountPointKind::Directory),
            SourceKind::File => (path, MountPointKind::File),
        })
        .collect();
    joined.make_mount_points(&points).context("cannot make the mount points")?;
    let place = Place { root: joined.root.clone(), session: joined.session.clone() };
    joined.enter().context("cannot join the namespaces of the image's daemon")?;
    apply(&plan, &place, report)
}

/// Who shares the daemon, and how long it waits for more. Changes that are to be forgotten belong to one run alone.
fn sharing(settings: &RunSettings, common: &Common) -> (String, Duration) {
    match settings.writes {
        Writes::Temporary => (format!("run {}", uuid::Uuid::new_v4()), Duration::ZERO),
        Writes::Refused | Writes::Sandbox => (common.scope.clone(), common.idle),
    }
}

/// What the daemon puts over the image. A sandbox brings its own layer.
fn layer(settings: &RunSettings, locator: &Locator) -> Result<Layer, PlanError> {
    match (settings.writes, locator) {
        (Writes::Temporary, _) => Ok(Layer::Temporary),
        (Writes::Refused, _) | (Writes::Sandbox, Locator::Sandbox(_)) => Ok(Layer::ReadOnly),
        (Writes::Sandbox, Locator::Directory(path)) => Ok(Layer::Directory(path.clone())),
        (Writes::Sandbox, Locator::File(_) | Locator::Url(_)) => {
            Err(PlanError::ReadOnlyImage { image: settings.image.clone() })
        }
    }
}
