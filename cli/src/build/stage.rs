//! One stage: its base, and its sections one after the other, each kept for the next build where it can be.

mod container;
mod key;

use super::bootstrap::{self, Base};
use super::definition::{Script, Stage, Transfer};
use super::job::{Action, Answer, Inside, Job, UMASK};
use super::keep::{Keep, Key, Note};
use super::sources;
use super::workspace::Workspace;
use super::{apps, child};
use crate::report::{Report, human_bytes};
use crate::settings::{Common, EngineArg, RecipeSettings};
use anyhow::{Context, bail};
use container::argv;
use nix::sys::stat::{Mode, umask};
use siphon_fsd::daemon::{self, Ids, Layer, LayerEngine, Placement, Spec};
use siphon_fsd::locator::Locator;
use siphon_image::oci::select::Wanted;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a daemon of the build stays without a step.
const IDLE: Duration = Duration::from_secs(20);

/// What all stages of a build share.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    pub(super) settings: &'a RecipeSettings,
    pub(super) common: &'a Common,
    pub(super) workspace: &'a Workspace<'a>,
    pub(super) keep: &'a Keep,
    pub(super) ids: Ids,
    pub(super) runtime_dir: PathBuf,
    pub(super) cache_dir: PathBuf,
    /// Which of an OCI base's images is taken.
    pub(super) platform: Wanted,
    /// The command that goes on with a failed `%post`.
    pub(super) again: String,
}

/// What of an earlier build a layer begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Earlier {
    None,
    /// What was kept of the sections before `%post`.
    Kept,
    /// What a `%post` that failed has left, and someone may have mended.
    Failed,
}

/// A stage up to its `%post`.
#[derive(Debug)]
pub(super) enum Begun {
    /// All of it was built before.
    Built(Built),
    BeforePost(BeforePost),
}

/// A stage whose `%post` is next.
#[derive(Debug)]
pub(super) struct BeforePost {
    name: Option<String>,
    pub(super) layer: PathBuf,
    post: Script,
    /// What the layer depends on, before and after `%post`, as far as that is known.
    before: Option<String>,
    after: Option<String>,
    /// Whether someone may have changed the layer by hand.
    is_mended: bool,
    /// Whether the layer is a sandbox of the user's.
    is_target: bool,
    is_whole: bool,
}

/// A stage that is built.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) name: Option<String>,
    /// The layer, which is an image to others.
    pub(super) layer: PathBuf,
    /// What it depends on, if that is known.
    key: Option<String>,
    /// Mount points in it that its runs made.
    pub(super) missing: Vec<PathBuf>,
    /// Whether the layer lies over nothing that the user knows of.
    pub(super) is_whole: bool,
}

impl Builder<'_> {
    fn report(&self) -> Report {
        self.workspace.report
    }

    /// Does what comes before `%post` of a stage. `target` is the sandbox that its sections run in, if one is there.
    pub(super) fn begin_stage(
        &self,
        number: usize,
        stage: &Stage,
        earlier: &[Built],
        target: Option<&Path>,
    ) -> anyhow::Result<Begun> {
        self.pre(stage)?;
        let base = match target {
            Some(_) => None,
            None => Some(bootstrap::base(stage).context("unable to create build")?),
        };
        let directory = self.workspace.path.join(number.to_string());
        std::fs::create_dir(&directory).context("cannot make a directory for the build")?;
        let layer = target.map_or_else(|| directory.join("layer"), Path::to_owned);
        let is_whole = matches!(base, Some(Base::Scratch | Base::Made(_)));
        let start = match &base {
            Some(base) => self.begin(base, &layer)?,
            None => None,
        };
        let before_post = self.before_post_key(start, stage, earlier)?;
        let post = self.post_of(stage);
        let after_post = before_post.clone().filter(|_| !post.is_empty()).map(|key| {
            let key = key.and(&post.arguments).and(&post.text);
            self.settings.run_options.iter().fold(key, Key::and)
        });
        let (before, mut after) = (before_post.map(|key| key.text()), after_post.map(|key| key.text()));
        let name = stage.name().map(str::to_owned);
        if let Some((layer, note)) = self.keep.find(after.as_deref()) {
            self.report().info(format_args!(
                "The sections up to %post are as they were: taken from an earlier build ({}, which took {:.1} s)",
                human_bytes(size(&layer)),
                note.seconds
            ));
            return Ok(Begun::Built(Built { name, layer, key: after, missing: note.missing, is_whole }));
        }
        let earlier_layer = self.take_earlier(before.as_deref(), &layer)?;
        if earlier_layer == Earlier::Failed {
            // What was mended by hand is not what the recipe makes.
            after = None;
        }
        if earlier_layer == Earlier::None {
            self.sections_before_post(stage, earlier, &layer)?;
            let copies = stage.files.iter().any(|files| !files.transfers.is_empty()) || !stage.apps.is_empty();
            if copies && !post.is_empty() {
                self.release(&layer);
                self.keep.store_copy(self.workspace, before.as_deref(), &layer, &Note::default())?;
            }
        }
        let is_mended = earlier_layer == Earlier::Failed;
        let is_target = target.is_some();
        Ok(Begun::BeforePost(BeforePost { name, layer, post, before, after, is_mended, is_target, is_whole }))
    }

    /// Runs `%post`, and leaves the layer for later builds.
    pub(super) fn finish_stage(&self, begun: BeforePost) -> anyhow::Result<Built> {
        let BeforePost { name, layer, post, before, after, is_mended, is_target, is_whole } = begun;
        let mut note = Note::default();
        if !post.is_empty() {
            note = self.post(&post, before.as_deref(), &layer, is_target)?;
        }
        self.release(&layer);
        if is_target {
            return Ok(Built { name, layer, key: None, missing: note.missing, is_whole });
        }
        let layer = self.keep.store(after.as_deref(), &layer, &note)?;
        let key = if is_mended { None } else { after.or(before.filter(|_| post.is_empty())) };
        Ok(Built { name, layer, key, missing: note.missing, is_whole })
    }

    /// `%pre`, which runs on the host before anything is there.
    fn pre(&self, stage: &Stage) -> anyhow::Result<()> {
        if stage.pre.is_empty() || !self.settings.sections.has("pre") {
            return Ok(());
        }
        let path = self.workspace.path.join("pre");
        std::fs::write(&path, &stage.pre.text)?;
        let argv = argv("pre", &path.display().to_string(), &stage.pre)?;
        self.report().info("Running pre scriptlet");
        let before = umask(Mode::from_bits_truncate(UMASK));
        let status = self.workspace.interrupt.run(std::process::Command::new(&argv[0]).args(&argv[1..]), |_| {});
        umask(before);
        let status = status?;
        if !status.success() {
            bail!("failed to run %pre script: {}", child::said(status));
        }
        Ok(())
    }

    /// Makes the layer. Gives what the base is, if it stays what it is.
    fn begin(&self, base: &Base, layer: &Path) -> anyhow::Result<Option<Key>> {
        let create = |image: String| {
            self.workspace.step(&Job::Create {
                image,
                layer: layer.to_owned(),
                cache_dir: self.cache_dir.clone(),
                cache_bytes: self.common.cache_bytes,
            })
        };
        let ids = match &self.ids {
            Ids::Host => "host",
            Ids::Root(others) if others.is_empty() => "alone",
            Ids::Root(_) | Ids::Caller => "root",
        };
        let key = Key::new().and(env!("CARGO_PKG_VERSION")).and(ids);
        let empty = || Ok::<_, anyhow::Error>(self.keep.empty()?.display().to_string());
        match base {
            Base::Image(image) => {
                self.report().info(format_args!("Starting from {image}"));
                let usable = match sources::open(image, &self.platform)? {
                    Some(oci) => {
                        let made = sources::cached(&oci, self.common, self.report())?;
                        made.into_os_string().into_string().ok().context("the cache directory's name is not UTF-8")?
                    }
                    None => image.clone(),
                };
                let Answer { identity, is_stable, .. } = create(usable)?;
                Ok(is_stable.then(|| key.and(image).and(identity)))
            }
            Base::Scratch => {
                create(empty()?)?;
                Ok(Some(key.and("scratch")))
            }
            Base::Made(bootstrap) => {
                let key = key.and(serde_json::to_vec(bootstrap)?);
                if let Some((kept, note)) = self.keep.find(Some(&key.text())) {
                    let size = human_bytes(size(&kept));
                    self.report().info(format_args!(
                        "The base system is taken from an earlier build ({size}, which took {:.1} s)",
                        note.seconds
                    ));
                    self.workspace.step(&Job::Copy { from: kept, to: layer.to_owned() })?;
                    return Ok(Some(key));
                }
                bootstrap.check()?;
                let start = Instant::now();
                create(empty()?)?;
                self.inside(layer, vec![Action::Bootstrap(bootstrap.clone()), Action::BaseFiles])?;
                self.release(layer);
                self.tell("the base system", layer, start.elapsed());
                let note = Note { seconds: start.elapsed().as_secs_f64(), ..Note::default() };
                self.keep.store_copy(self.workspace, Some(&key.text()), layer, &note)?;
                Ok(Some(key))
            }
        }
    }

    /// Begins with a layer of an earlier build, if there is one.
    fn take_earlier(&self, key: Option<&str>, layer: &Path) -> anyhow::Result<Earlier> {
        if let Some(failed) = key.and_then(|key| self.keep.failed(key)) {
            self.report().info("Going on with what the failed %post has left");
            self.workspace.step(&Job::Remove { paths: vec![layer.to_owned()] })?;
            std::fs::rename(&failed, layer).with_context(|| format!("cannot go on in {}", failed.display()))?;
            return Ok(Earlier::Failed);
        }
        if self.settings.resume {
            self.report().warning("no failed %post of this recipe is kept: everything runs from the beginning");
        }
        let Some((kept, _)) = self.keep.find(key) else { return Ok(Earlier::None) };
        self.report().info(format_args!(
            "The sections before %post are as they were: taken from an earlier build ({})",
            human_bytes(size(&kept))
        ));
        self.workspace.step(&Job::Remove { paths: vec![layer.to_owned()] })?;
        self.workspace.step(&Job::Copy { from: kept, to: layer.to_owned() })?;
        Ok(Earlier::Kept)
    }

    fn sections_before_post(&self, stage: &Stage, earlier: &[Built], layer: &Path) -> anyhow::Result<()> {
        let has = |name| self.settings.sections.has(name);
        let mut actions = Vec::new();
        if stage.agent() == "scratch" && !self.settings.update {
            // What says that there is no runscript needs a shell, which an image from nothing may not get.
            let (path, text) = (".singularity.d/runscript".to_owned(), "#!/bin/sh\n".to_owned());
            actions.push(Action::Put { path, text, mode: 0o755 });
        }
        actions.push(Action::BaseFiles);
        if !stage.apps.is_empty() {
            actions.push(Action::Apps(stage.apps.iter().map(apps::App::from).collect()));
        }
        let transfers =
            |all: &[Transfer]| all.iter().map(|one| (one.source.clone(), one.destination.clone())).collect();
        for files in stage.files.iter().filter(|_| has("files")) {
            let Some(from) = &files.from else { continue };
            let image = find(earlier, from)?.layer.display().to_string();
            let (stage, transfers) = (from.clone(), transfers(&files.transfers));
            actions.push(Action::FilesFrom { stage, image, cache_dir: self.cache_dir.clone(), transfers });
        }
        if !stage.setup.is_empty() && has("setup") {
            let scratch = self.workspace.path.clone();
            let argv = argv("setup", &scratch.join("setup").display().to_string(), &stage.setup)?;
            let text = stage.setup.text.clone();
            actions.push(Action::Script { name: "setup".to_owned(), argv, text, scratch });
        }
        for files in stage.files.iter().filter(|files| has("files") && files.from.is_none()) {
            actions.push(Action::Files(transfers(&files.transfers)));
        }
        let start = Instant::now();
        let tells = !matches!(actions.last(), Some(Action::BaseFiles));
        self.inside(layer, actions)?;
        if tells {
            self.tell("the sections before %post", layer, start.elapsed());
        }
        Ok(())
    }

    /// `%post` and what the apps install.
    fn post_of(&self, stage: &Stage) -> Script {
        let apps = if stage.apps.is_empty() { &[][..] } else { &stage.apps };
        match self.settings.sections.has("post") {
            true => apps::with_installs(&stage.post, apps),
            false => Script::default(),
        }
    }

    fn tell(&self, what: &str, layer: &Path, took: Duration) {
        let seconds = took.as_secs_f64();
        self.report().info(format_args!("{what}: {seconds:.1} s, the layer has {}", human_bytes(size(layer))));
    }

    fn tell_so_far(&self, what: &str, layer: &Path, elapsed: Duration) {
        let seconds = elapsed.as_secs();
        self.report().info(format_args!("{what}: {seconds} s so far, the layer has {}", human_bytes(size(layer))));
    }

    /// Works on the mounted layer.
    pub(super) fn inside(&self, layer: &Path, actions: Vec<Action>) -> anyhow::Result<Answer> {
        let over = match Locator::parse(&layer.display().to_string())? {
            Locator::Directory(path) => Layer::Directory(path),
            _ => Layer::ReadOnly,
        };
        self.inside_with(layer, over, actions)
    }

    /// Works on the mounted layer with another over it.
    pub(super) fn inside_with(&self, layer: &Path, over: Layer, actions: Vec<Action>) -> anyhow::Result<Answer> {
        let spec = Spec {
            image: Locator::parse(&layer.display().to_string())?.to_string(),
            overlays: Vec::new(),
            layer: over,
            memory_bytes: None,
            ids: self.ids.clone(),
            scope: self.common.scope.clone(),
            cache_dir: self.cache_dir.clone(),
            cache_bytes: self.common.cache_bytes,
            idle: IDLE.min(self.common.idle),
            placement: Placement::InNamespace,
            engine: match self.common.layer_engine {
                EngineArg::Auto => LayerEngine::Auto,
                EngineArg::Kernel => LayerEngine::Kernel,
                EngineArg::Fuse => LayerEngine::Fuse,
            },
        };
        self.workspace.step(&Job::Inside(Box::new(Inside { spec, runtime_dir: self.runtime_dir.clone(), actions })))
    }

    /// Has the daemon of a layer leave, so that the layer can be moved.
    pub(super) fn release(&self, layer: &Path) {
        daemon::release(layer, std::slice::from_ref(&self.runtime_dir));
    }
}

fn find<'b>(earlier: &'b [Built], name: &str) -> anyhow::Result<&'b Built> {
    let found = earlier.iter().find(|stage| stage.name.as_deref() == Some(name));
    found.with_context(|| format!("stage {name} was not found"))
}

/// Bytes of storage below a directory, as far as the caller may look.
pub(super) fn size(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut pending = vec![directory.to_owned()];
    let mut bytes = 0;
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            bytes += found.blocks() * 512;
            if found.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    bytes
}
