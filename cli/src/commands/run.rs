//! `siphon exec`, `shell` and `run`: join the image's daemon, make the plan, become the program.

use super::instance::enter::{INSTANCE, enter};
use super::layers::{Layers, find};
use super::limits::limit;
use crate::build::sources::readable_apart;
use crate::host::{cache_dir, gather, runtime_dirs, subordinate_ids};
use crate::plan::{HostFacts, Plan, PlanError, SourceKind, home, plan};
use crate::report::Report;
use crate::runtime::{Place, apply};
use crate::settings::{Common, EngineArg, Environment, ImageBind, NOTE_MOUNT_POINTS, RunSettings, Writes};
use anyhow::{Context, bail};
use siphon_fsd::daemon::{
    self, DataImage, DataPlace, Ids, Joined, Layer, LayerEngine, MountPointKind, Placement, Spec,
};
use siphon_fsd::layers::{self, Overlay};
use siphon_fsd::locator::Locator;
use siphon_fsd::sys::subordinate_ids::SubordinateIds;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where files of other images are: [`HostFacts::images`].
type Images = BTreeMap<(PathBuf, ImageBind), (PathBuf, SourceKind)>;

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
    limit(&mut settings, common, &environment, report)?;
    if let Some(name) = settings.image.strip_prefix(INSTANCE) {
        let name = name.to_owned();
        return enter(&name, settings, common, environment);
    }
    let note = environment.get(NOTE_MOUNT_POINTS).map(PathBuf::from);
    let mut prepared = prepare(&mut settings, common, environment, report)?;
    if let Some(note) = note {
        let points: Vec<_> = prepared.plan.mount_points().into_iter().map(|(path, _)| path).collect();
        std::fs::write(&note, serde_json::to_vec(&points)?)
            .with_context(|| format!("cannot write {}", note.display()))?;
        std::process::exit(0);
    }
    let place = enter_daemon(&mut prepared)?;
    apply(&prepared.plan, place, report)
}

/// A run that only has to be started.
pub(super) struct Prepared {
    /// What to do.
    pub(super) plan: Plan,
    /// The daemon, which counts this process among its clients.
    pub(super) joined: Joined,
    /// The home directory inside.
    pub(super) home: PathBuf,
}

/// Joins the daemon of the image, or starts it, and plans the run. The image's name becomes absolute.
pub(super) fn prepare(
    settings: &mut RunSettings,
    common: &Common,
    environment: Environment,
    report: Report,
) -> anyhow::Result<Prepared> {
    let context = || format!("could not open image {}", settings.image);
    let usable = readable_apart(&settings.image, report).with_context(context)?;
    let locator = Locator::parse(&usable).with_context(context)?;
    settings.image = usable.into_owned();
    let layers = find(&settings.overlays, report)?;
    let layer = layer(settings, &locator, &layers)?;
    if layers.written.is_some() {
        settings.writes = Writes::Overlay;
    }
    let mut host = gather(settings, environment)?;
    match &locator {
        Locator::Url(_) | Locator::Elsewhere(_) => {}
        Locator::Layout(..) => settings.image = locator.to_string(),
        Locator::File(_) | Locator::Directory(_) | Locator::Sandbox(_) => {
            settings.image = host.cleaned(Path::new(&settings.image)).display().to_string();
        }
    }
    let (scope, idle) = sharing(settings, common);
    let spec = Spec {
        image: locator.to_string(),
        overlays: layers.read,
        layer,
        memory_bytes: settings.memory_bytes,
        ids: ids(settings, &host, report)?,
        scope,
        cache_dir: cache_dir(common),
        cache_bytes: common.cache_bytes,
        idle,
        placement: Placement::InNamespace,
        engine: engine(common),
    };
    let executable = std::env::current_exe().context("cannot find the siphon program itself")?;
    if let (Writes::Sandbox, Locator::Sandbox(directory) | Locator::Directory(directory)) = (settings.writes, &locator)
    {
        daemon::release_if_read_only(directory, &runtime_dirs(common));
    }
    let joined = daemon::join(&spec, &runtime_dirs(common), &executable)
        .with_context(|| format!("could not open image {}", settings.image))?;
    if let (Writes::Sandbox, Err(reason)) = (settings.writes, &joined.writable) {
        bail!("cannot write to {}: {reason}", settings.image);
    }
    if let (Ids::Root(others), Err(reason)) = (&spec.ids, &joined.other_ids)
        && !others.is_empty()
    {
        report.info(format_args!("{reason}, trying root-mapped namespace"));
    }
    host.other_ids = joined.other_ids.is_ok();
    let wanted = host.gpu.replaceable(&settings.gpu);
    if !wanted.is_empty() {
        let present = joined.libraries(&wanted).context("cannot tell which libraries the image has")?;
        host.gpu.leave_to_image(wanted.into_iter().zip(present).filter_map(|(wanted, has)| has.then_some(wanted)));
    }
    host.images = images(settings, &host, &joined, report)?;
    let plan = plan(settings, &joined.facts, &host)?;
    Ok(Prepared { plan, joined, home: home(settings, &host) })
}

/// Has the daemon mount the images that files are to be bound out of.
fn images(settings: &RunSettings, host: &HostFacts, joined: &Joined, report: Report) -> anyhow::Result<Images> {
    let mut images = Images::new();
    for bind in &settings.binds {
        let Some(image) = &bind.image else { continue };
        let path = host.absolute(&bind.source);
        let wanted = DataImage { path: path.clone(), id: image.id, inside: image.inside.clone() };
        let found = joined.image(&wanted);
        let DataPlace { path: place, kind, is_partition } =
            found.with_context(|| format!("could not use {} for image binding", path.display()))?;
        if !bind.read_only && !is_partition {
            report.warning(format_args!("Data image {} is not writable, proceeding with read-only", path.display()));
        }
        let kind = match kind {
            MountPointKind::Directory => SourceKind::Directory,
            MountPointKind::File => SourceKind::File,
        };
        images.insert((path, image.clone()), (place, kind));
    }
    Ok(images)
}

/// Has the places made that the plan mounts on, and joins the namespaces of the daemon.
pub(super) fn enter_daemon(Prepared { plan, joined, .. }: &mut Prepared) -> anyhow::Result<Place> {
    let points: Vec<_> = plan
        .mount_points()
        .into_iter()
        .map(|(path, kind)| match kind {
            SourceKind::Directory => (path, MountPointKind::Directory),
            SourceKind::File => (path, MountPointKind::File),
        })
        .collect();
    let places = joined.make_mount_points(&points).context("cannot make the mount points")?;
    let without_links =
        points.into_iter().map(|(path, _)| path).zip(places.into_iter().map(|place| Path::new("/").join(place)));
    plan.leave_out_repeated(&without_links.collect());
    let pretence = plan.pretends_ids.then(|| daemon::pretence(&joined.socket)).transpose();
    let pretence = pretence.context("cannot pretend users and owners")?;
    joined.enter().context("cannot join the namespaces of the image's daemon")?;
    Ok(Place { root: joined.root.clone(), session: joined.session.clone(), images: joined.images.clone(), pretence })
}

/// The ids of the container. Root has its own already: all of the host's, or those of the user namespace that it is in.
fn ids(settings: &RunSettings, host: &HostFacts, report: Report) -> anyhow::Result<Ids> {
    let Some(fakeroot) = settings.fakeroot.filter(|_| host.uid != 0) else {
        return Ok(if host.uid == 0 { Ids::Host } else { Ids::Caller });
    };
    let others = match fakeroot.subordinate_ids {
        true => subordinate_ids(),
        false => SubordinateIds::default(),
    };
    if others.is_empty() {
        report.info("User not listed in /etc/subuid, trying root-mapped namespace");
        if !fakeroot.alone {
            bail!("--fakeroot requires either being in /etc/subuid or unprivileged user namespaces");
        }
    }
    Ok(Ids::Root(others))
}

/// Who shares the daemon, and how long it waits for more. Changes that are to be forgotten belong to one run alone.
fn sharing(settings: &RunSettings, common: &Common) -> (String, Duration) {
    match settings.writes {
        Writes::Temporary => (format!("run {}", uuid::Uuid::new_v4()), Duration::ZERO),
        Writes::Refused | Writes::Sandbox | Writes::Overlay => (common.scope.clone(), common.idle),
    }
}

/// Who merges the image and the layer.
pub(super) fn engine(common: &Common) -> LayerEngine {
    match common.layer_engine {
        EngineArg::Auto => LayerEngine::Auto,
        EngineArg::Kernel => LayerEngine::Kernel,
        EngineArg::Fuse => LayerEngine::Fuse,
    }
}

/// What the daemon puts over the image. A sandbox brings its own layer.
fn layer(settings: &RunSettings, locator: &Locator, layers: &Layers) -> anyhow::Result<Layer> {
    if let Some(path) = &layers.written {
        if settings.writes == Writes::Temporary {
            bail!(
                "while loading overlay images: you can't specify --writable-tmpfs with another writable overlay image ({})",
                path.display()
            );
        }
        return Ok(Layer::Overlay(path.clone()));
    }
    let image = || settings.image.clone();
    match (settings.writes, locator) {
        (Writes::Temporary, _) => Ok(Layer::Temporary),
        (Writes::Refused | Writes::Overlay, _) | (Writes::Sandbox, Locator::Sandbox(_)) => Ok(Layer::ReadOnly),
        (Writes::Sandbox, Locator::Directory(path)) => Ok(Layer::Directory(path.clone())),
        (Writes::Sandbox, Locator::File(path)) => match Overlay::find(path) {
            Ok(own) if own.is_writable() => Ok(Layer::Overlay(path.clone())),
            Err(layers::Error::NoPartition { .. }) => Err(PlanError::NoOverlayPartition { image: image() }.into()),
            Ok(_) | Err(layers::Error::Kind { .. }) => Err(PlanError::ReadOnlyImage { image: image() }.into()),
            Err(error) => Err(error.into()),
        },
        (Writes::Sandbox, Locator::Url(_) | Locator::Elsewhere(_) | Locator::Layout(..)) => {
            Err(PlanError::ReadOnlyImage { image: image() }.into())
        }
    }
}
