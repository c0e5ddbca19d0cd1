//! Builds an image or a sandbox from a definition file: each stage in a layer of its own over a mounted base, then what
//! the image says of itself in a layer over the last one, and both become the image.

use super::ahead;
use super::child::{self, Interrupt};
use super::definition::{self, BuildArguments, Recipe, Stage};
use super::finish::{Finish, with_interpreter};
use super::job::{Action, Job};
use super::keep::{self, Keep};
use super::sources;
use super::stage::{Begun, Builder, Built};
use super::workspace::{Told, Workspace};
use crate::host::{cache_dir, runtime_dir, subordinate_ids};
use crate::report::{Report, human_bytes};
use crate::settings::{Common, Environment, ImageSettings, RecipeSettings};
use anyhow::{Context, bail};
use siphon_fsd::daemon::{Ids, Layer};
use siphon_fsd::sys::subordinate_ids::SubordinateIds;
use siphon_image::sif::Arch;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A build, as asked for.
#[derive(Debug)]
pub struct Request<'a> {
    /// The definition file.
    pub source: &'a str,
    /// What to make.
    pub target: &'a Path,
    /// Whether that is a sandbox.
    pub sandbox: bool,
    /// How the recipe is read and built.
    pub settings: &'a RecipeSettings,
    /// How the image is made.
    pub image: &'a ImageSettings,
    /// The options of that, as typed.
    pub image_options: Vec<String>,
    /// Where state lies.
    pub common: &'a Common,
    /// The caller's variables.
    pub environment: &'a Environment,
}

/// Reads a definition file.
///
/// # Errors
/// If it cannot be read, or is not a recipe.
pub fn read(source: &str, settings: &RecipeSettings, report: Report) -> anyhow::Result<Recipe> {
    let text = text_of(Path::new(source)).with_context(|| format!("unable to build from {source}"))?;
    let arguments =
        settings.build_arg_file.as_deref().map(text_of).transpose().context("while reading the build args")?;
    let mut warnings = Vec::new();
    let given = BuildArguments::new(arguments.as_deref(), &settings.build_args, settings.may_be_unused, &mut warnings)
        .map_err(|why| anyhow::anyhow!("while processing the definition file: {why}; --build-arg takes NAME=VALUE"))?;
    let is_json = settings.json || text.trim_start().starts_with('{');
    let recipe = if is_json { definition::from_json(&text) } else { definition::parse(&text, &given) };
    let recipe = recipe.map_err(|error| error.of(source)).with_context(|| format!("unable to build from {source}"))?;
    for warning in warnings.iter().chain(&recipe.warnings).chain(&settings.warnings) {
        report.warning(warning);
    }
    Ok(recipe)
}

/// Only reads it.
///
/// # Errors
/// As [`read`].
pub fn check(source: &str, settings: &RecipeSettings, report: Report) -> anyhow::Result<()> {
    let recipe = read(source, settings, report)?;
    for stage in &recipe.stages {
        // What the agent needs of the header is part of what can be known now.
        super::bootstrap::base(stage).with_context(|| format!("unable to build from {source}"))?;
    }
    let count = recipe.stages.len();
    report.info(format_args!("{source} is fine: {count} stage{}", if count == 1 { "" } else { "s" }));
    Ok(())
}

fn text_of(path: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read {}", path.display());
    let mut text = String::new();
    File::open(path)
        .with_context(context)?
        .take(definition::MAX_RECIPE_BYTES + 1)
        .read_to_string(&mut text)
        .with_context(context)?;
    if text.len() as u64 > definition::MAX_RECIPE_BYTES {
        bail!("{} is larger than {} bytes", path.display(), definition::MAX_RECIPE_BYTES);
    }
    Ok(text)
}

/// Builds.
///
/// # Errors
/// Whatever stands between the recipe and the image. The target is then as it was.
pub fn build(request: &Request<'_>, report: Report) -> anyhow::Result<()> {
    let recipe = read(request.source, request.settings, report)?;
    // Where the user is told of a wrong header before anything runs.
    // The last header of an update is not looked at.
    let started = recipe.stages.len() - usize::from(request.settings.update);
    for stage in recipe.stages.iter().take(started) {
        super::bootstrap::base(stage).context("unable to create build")?;
    }
    let is_there = request.target.symlink_metadata().is_ok();
    if is_there && !request.settings.update && !request.image.force {
        bail!("build target '{}' already exists. Use --force if you want to overwrite it", request.target.display());
    }
    if request.settings.update && !request.target.is_dir() {
        bail!("--update runs the sections in a sandbox that is there, and {} is none", request.target.display());
    }
    let builds = keep::directory(&cache_dir(request.common));
    std::fs::create_dir_all(&builds).with_context(|| format!("cannot build in {}", builds.display()))?;
    let place = request.settings.tmpdir.clone().unwrap_or_else(|| builds.clone());
    let keep = Keep::new(&builds, !request.settings.no_cache, request.settings.resume, request.source)?;
    let workspace = Workspace::create(&place, request.settings.no_cleanup, request.environment, report)?;
    let result = build_in(request, &recipe, &workspace, &keep);
    // What a step has said already is not said again.
    if workspace.interrupt.is_set() {
        bail!("interrupted; {} is as it was", request.target.display());
    }
    result.map_err(|error| match error.is::<Told>() {
        true => error,
        false => error.context("while performing build"),
    })
}

fn build_in(request: &Request<'_>, recipe: &Recipe, workspace: &Workspace<'_>, keep: &Keep) -> anyhow::Result<()> {
    let Request { settings, common, target, .. } = *request;
    let report = workspace.report;
    keep.prune(workspace)?;
    let builder = Builder {
        settings,
        common,
        workspace,
        keep,
        ids: ids(settings, report),
        runtime_dir: runtime_dir(common),
        cache_dir: cache_dir(common),
        platform: sources::platform(settings.arch.as_deref(), settings.arch_variant.as_deref())?,
        again: again(request),
    };
    report.info("Starting build...");
    let target_path = || target.canonicalize().with_context(|| format!("cannot open {}", target.display()));
    let mut packing = None;
    if let (false, false, Some(last)) = (settings.update, request.sandbox, recipe.stages.last()) {
        packing = Some(Packing::new(&builder, request, !last.test.is_empty())?);
    }
    let mut built: Vec<Built> = Vec::new();
    for (index, stage) in recipe.stages.iter().enumerate() {
        let is_last = index + 1 == recipe.stages.len();
        let into = (settings.update && is_last).then(target_path).transpose()?;
        if let (Some(name), true) = (stage.name(), recipe.stages.len() > 1) {
            report.info(format_args!("Stage {name}"));
        }
        built.push(match builder.begin_stage(index, stage, &built, into.as_deref())? {
            Begun::Built(built) => built,
            Begun::BeforePost(begun) => {
                if let (Some(packing), true) = (&mut packing, is_last) {
                    packing.begin(&begun.layer)?;
                }
                builder.finish_stage(begun)?
            }
        });
    }
    let (Some(stage), Some(last)) = (recipe.stages.last(), built.last()) else { bail!("the recipe has no stage") };
    let finish = finish(request, recipe, stage);
    match packing {
        Some(packing) => image(&builder, request, stage, last, (finish, packing)),
        None => sandbox(&builder, request, stage, last, finish),
    }
}

/// The ids of the sections' containers.
fn ids(settings: &RecipeSettings, report: Report) -> Ids {
    if nix::unistd::geteuid().is_root() {
        return Ids::Host;
    }
    let others = if settings.subordinate_ids { subordinate_ids() } else { SubordinateIds::default() };
    if others.is_empty() {
        report.info("No subordinate ids (/etc/subuid): other users and owners are pretended");
    }
    Ids::Root(others)
}

/// The command line that goes on with what a failed section has left.
fn again(request: &Request<'_>) -> String {
    let sandbox = if request.sandbox { " --sandbox" } else { "" };
    let force = if request.image.force { " --force" } else { "" };
    let arguments: String = request.settings.build_args.iter().map(|pair| format!(" --build-arg '{pair}'")).collect();
    format!("siphon build --resume{sandbox}{force}{arguments} {} {}", request.target.display(), request.source)
}

/// What the image says of itself.
fn finish(request: &Request<'_>, recipe: &Recipe, stage: &Stage) -> Finish {
    let has = |name: &str| request.settings.sections.has(name);
    let scripts = [("startscript", &stage.startscript), ("runscript", &stage.runscript), ("test", &stage.test)];
    let scripts = scripts.into_iter().filter(|(name, script)| !script.is_empty() && has(name));
    let is_new = !request.settings.update || request.image.force;
    let arch =
        Arch::from_name(request.settings.arch.as_deref().unwrap_or(std::env::consts::ARCH)).unwrap_or(Arch::UNKNOWN);
    Finish {
        recipe: recipe.text.clone(),
        help: (!stage.help.is_empty() && has("help")).then(|| stage.help.text.clone()),
        labels: if has("labels") { stage.labels.clone() } else { Default::default() },
        environment: (!stage.environment.is_empty() && has("environment")).then(|| stage.environment.text.clone()),
        scripts: scripts.map(|(name, script)| (name.to_owned(), with_interpreter(script))).collect(),
        header: if is_new { stage.header.clone() } else { Default::default() },
        force: request.image.force,
        architecture: arch.name().to_owned(),
        seconds: super::seconds(request.image).unwrap_or_default(),
    }
}

/// How the image is packed: by a process of its own, which begins while `%post` runs.
struct Packing<'a> {
    command: Command,
    begun: Option<ahead::Packing>,
    /// Where the image is, until it was tested and gets its name.
    untested: Option<(TempDir, PathBuf)>,
    /// The layer with what the image says of itself.
    over: PathBuf,
    interrupt: &'a Interrupt,
}

impl<'a> Packing<'a> {
    fn new(builder: &Builder<'a>, request: &Request<'_>, has_test: bool) -> anyhow::Result<Self> {
        let workspace = builder.workspace;
        let over = workspace.path.join("finish");
        let mut untested = None;
        if has_test && builder.settings.sections.runs_test() {
            // What is tested is the image itself, before it has its name.
            let (parent, name) = parent_and_name(request.target)?;
            let beside = tempfile::Builder::new().prefix(".siphon-").tempdir_in(&parent);
            let beside = beside.with_context(|| format!("cannot write to {}", parent.display()))?;
            let packed = beside.path().join(name);
            untested = Some((beside, packed));
        }
        let mut command = workspace.siphon();
        command.args(untested.is_some().then_some("--quiet"));
        command.args(["build", "--as-it-is", "--overlay"]).arg(&over).args(&request.image_options);
        command.arg(untested.as_ref().map_or(request.target, |(_, packed)| packed));
        Ok(Self { command, begun: None, untested, over, interrupt: &workspace.interrupt })
    }

    /// Begins with the base of `layer`, which is still written to.
    fn begin(&mut self, layer: &Path) -> anyhow::Result<()> {
        self.begun = Some(ahead::Packing::begin(self.command.arg(layer).arg("--when-told"))?);
        Ok(())
    }

    /// Packs `layer`, which is whole now.
    fn finish(&mut self, layer: &Path) -> anyhow::Result<()> {
        let status = match &mut self.begun {
            Some(begun) => self.interrupt.wait_for(begun.tell(layer), |_| {})?,
            None => self.interrupt.run(self.command.arg(layer), |_| {})?,
        };
        if status.success() { Ok(()) } else { Err(anyhow::Error::from(Told)) }
    }
}

/// The layer, and one over it with what the image says of itself, become an image file.
fn image(
    builder: &Builder<'_>,
    request: &Request<'_>,
    stage: &Stage,
    last: &Built,
    (finish, mut packing): (Finish, Packing<'_>),
) -> anyhow::Result<()> {
    let report = builder.workspace.report;
    let over = packing.over.clone();
    std::fs::create_dir(&over).context("cannot make a directory for the build")?;
    let actions = vec![Action::TakeMountPoints(last.missing.clone()), Action::Finish(Box::new(finish))];
    builder.inside_with(&last.layer, Layer::Overlay(over.clone()), actions)?;
    builder.release(&over);
    if packing.untested.is_some() {
        report.info("Creating SIF file...");
    }
    packing.finish(&last.layer)?;
    let Some((beside, packed)) = packing.untested.take() else { return Ok(()) };
    test(builder, stage, &packed)?;
    let (parent, name) = parent_and_name(request.target)?;
    let bytes = std::fs::metadata(&packed)?.len();
    std::fs::rename(&packed, parent.join(name)).with_context(|| format!("cannot make {}", request.target.display()))?;
    drop(beside);
    report.info(format_args!("Build complete: {} ({})", request.target.display(), human_bytes(bytes)));
    Ok(())
}

/// Where a file or directory is to be, and its name there.
fn parent_and_name(target: &Path) -> anyhow::Result<(PathBuf, &OsStr)> {
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = parent.canonicalize().with_context(|| format!("cannot write to {}", parent.display()))?;
    let name = target.file_name().with_context(|| format!("{} is no name for an image", target.display()))?;
    Ok((parent, name))
}

/// The layer becomes the sandbox. Over a base that is nobody's own, all of it does.
fn sandbox(
    builder: &Builder<'_>,
    request: &Request<'_>,
    stage: &Stage,
    last: &Built,
    finish: Finish,
) -> anyhow::Result<()> {
    let workspace = builder.workspace;
    let actions = vec![Action::TakeMountPoints(last.missing.clone()), Action::Finish(Box::new(finish))];
    if request.settings.update {
        builder.inside(&last.layer, actions)?;
        test(builder, stage, &last.layer)?;
        builder.release(&last.layer);
    } else {
        let layer = own_copy(builder, last)?;
        builder.inside(&layer, actions)?;
        test(builder, stage, &layer)?;
        let whole = workspace.path.join("whole");
        if last.is_whole {
            builder.inside(&layer, vec![Action::CopyOut { to: whole.clone() }])?;
        }
        builder.release(&layer);
        place(builder, request, if last.is_whole { &whole } else { &layer })?;
    }
    if request.settings.fix_perms {
        workspace.step(&Job::FixPermissions { path: request.target.canonicalize()? })?;
    }
    workspace.report.info(format_args!("Build complete: {}", request.target.display()));
    Ok(())
}

/// The layer in the workspace: as it is, or a copy of one that is kept.
fn own_copy(builder: &Builder<'_>, last: &Built) -> anyhow::Result<PathBuf> {
    if last.layer.starts_with(&builder.workspace.path) {
        return Ok(last.layer.clone());
    }
    let copy = builder.workspace.path.join("sandbox");
    builder.workspace.step(&Job::Copy { from: last.layer.clone(), to: copy.clone() })?;
    Ok(copy)
}

/// Moves a directory to where it was asked for, in place of what is there.
fn place(builder: &Builder<'_>, request: &Request<'_>, directory: &Path) -> anyhow::Result<()> {
    let target = request.target;
    let (parent, name) = parent_and_name(target)?;
    let target = parent.join(name);
    if target.symlink_metadata().is_ok() {
        super::check_replaceable(&target)?;
        builder.release(&target);
        builder.workspace.step(&Job::Remove { paths: vec![target.clone()] })?;
    }
    if std::fs::rename(directory, &target).is_err() {
        // Another file system.
        builder.workspace.step(&Job::Copy { from: directory.to_owned(), to: target })?;
    }
    Ok(())
}

/// Runs `%test`, in the container as it is going to be.
fn test(builder: &Builder<'_>, stage: &Stage, layer: &Path) -> anyhow::Result<()> {
    if stage.test.is_empty() || !builder.settings.sections.runs_test() {
        return Ok(());
    }
    let mut command = builder.container("test", layer)?;
    if builder.settings.writable_tmpfs {
        command.arg("--writable-tmpfs");
    }
    command.arg(layer);
    builder.workspace.report.info("Running testscript");
    let status = builder.run_in_container(&mut command, "%test", layer)?;
    if !status.success() {
        bail!("failed to execute %test script: {}", child::said(status));
    }
    Ok(())
}
