//! One stage: its base, and its sections one after the other, each kept for the next build where it can be.

use super::bootstrap::{self, Base};
use super::copy;
use super::definition::{Script, Stage, Transfer};
use super::job::{Action, Answer, Inside, Job, UMASK};
use super::keep::{Keep, Key, Note};
use super::sources;
use super::workspace::Workspace;
use super::{apps, child};
use crate::report::{Report, human_bytes};
use crate::settings::{Common, EngineArg, RecipeSettings};
use anyhow::{Context, bail};
use nix::sys::stat::{Mode, umask};
use siphon_fsd::daemon::{self, Ids, Layer, LayerEngine, Placement, Spec};
use siphon_fsd::locator::Locator;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a long section tells how far it is.
const NEWS: Duration = Duration::from_secs(30);
/// How long a daemon of the build stays without a step.
const IDLE: Duration = Duration::from_secs(20);
/// Where `%post` lies while it runs.
const POST: &str = ".post.script";
/// What `%post` may know, under both prefixes.
const VARIABLES: [(&str, &str); 2] =
    [("ENVIRONMENT", "/.singularity.d/env/91-environment.sh"), ("LABELS", "/.build.labels")];

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

    /// Builds a stage. `target` is the sandbox that its sections run in, if one is there.
    pub(super) fn build(
        &self,
        number: usize,
        stage: &Stage,
        earlier: &[Built],
        target: Option<&Path>,
    ) -> anyhow::Result<Built> {
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
        let built =
            |layer, key, missing| Built { name: stage.name().map(str::to_owned), layer, key, missing, is_whole };
        if let Some((layer, note)) = self.keep.find(after.as_deref()) {
            self.report().info(format_args!(
                "The sections up to %post are as they were: taken from an earlier build ({}, which took {:.1} s)",
                human_bytes(size(&layer)),
                note.seconds
            ));
            return Ok(built(layer, after, note.missing));
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
        let mut note = Note::default();
        if !post.is_empty() {
            note = self.post(&post, before.as_deref(), &layer, target.is_some())?;
        }
        self.release(&layer);
        if target.is_some() {
            return Ok(built(layer, None, note.missing));
        }
        let layer = self.keep.store(after.as_deref(), &layer, &note)?;
        let key = if earlier_layer == Earlier::Failed { None } else { after.or(before.filter(|_| post.is_empty())) };
        Ok(built(layer, key, note.missing))
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
                let usable = sources::usable(image, self.common, self.report())?;
                let Answer { identity, is_stable, .. } = create(usable.into_owned())?;
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

    /// What everything before `%post` depends on. Nothing where that cannot be known: `%setup` may do anything.
    fn before_post_key(&self, start: Option<Key>, stage: &Stage, earlier: &[Built]) -> anyhow::Result<Option<Key>> {
        let Some(mut key) = start else { return Ok(None) };
        if self.settings.no_cache || (!stage.setup.is_empty() && self.settings.sections.has("setup")) {
            return Ok(None);
        }
        let apps: Vec<_> = stage.apps.iter().map(apps::App::from).collect();
        key = key.and(serde_json::to_vec(&apps)?);
        if self.settings.sections.has("files") {
            for files in &stage.files {
                key = key.and(files.from.as_deref().unwrap_or_default());
                if let Some(from) = &files.from {
                    let Some(other) = find(earlier, from)?.key.clone() else { return Ok(None) };
                    key = key.and(other);
                }
                for transfer in &files.transfers {
                    key = key.and(&transfer.source).and(&transfer.destination);
                    if files.from.is_none() {
                        digest(transfer, &mut key)?;
                    }
                }
            }
        }
        for transfer in stage.apps.iter().flat_map(|app| &app.files) {
            digest(transfer, &mut key)?;
        }
        Ok(Some(key))
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

    fn post(&self, post: &Script, key: Option<&str>, layer: &Path, is_target: bool) -> anyhow::Result<Note> {
        let path = format!("/{POST}");
        let argv = argv("post", &path, post)?;
        let put = Action::Put { path: path.clone(), text: post.text.clone(), mode: 0o755 };
        let targets =
            [PathBuf::from("/etc/localtime")].into_iter().chain(self.settings.bind_targets.iter().cloned()).collect();
        let missing = self.inside(layer, vec![Action::Missing(targets), put])?.missing;
        let mut command = self.container("exec", layer)?;
        command.args(["--writable", "--cleanenv"]);
        for (name, value) in VARIABLES {
            command.arg("--env").arg(format!("APPTAINER_{name}={value},SINGULARITY_{name}={value}"));
        }
        command.arg(layer).args(&argv);
        self.report().info("Running post scriptlet");
        let start = Instant::now();
        let status = self.run_in_container(&mut command, "%post", layer);
        let took = start.elapsed();
        if let Err(error) = &status {
            tracing::debug!("{error:#}");
        }
        let status = status?;
        self.inside(layer, vec![Action::Take { path }])?;
        if !status.success() {
            self.release(layer);
            self.tell("%post", layer, took);
            self.keep_failed(key, layer, is_target)?;
            bail!("while running engine: while running %post section: {}", child::said(status));
        }
        self.tell("%post", layer, took);
        if let Some(key) = key {
            self.keep.forget_failed(self.workspace, key)?;
        }
        Ok(Note { missing, seconds: took.as_secs_f64() })
    }

    fn keep_failed(&self, key: Option<&str>, layer: &Path, is_target: bool) -> anyhow::Result<()> {
        if self.settings.no_cache || is_target {
            return Ok(());
        }
        // Without a digest of what came before it can only be looked at.
        let unknown = Key::new().and(layer.as_os_str().as_encoded_bytes()).text();
        let place = self.keep.store_failed(self.workspace, key.unwrap_or(&unknown), layer)?;
        let fakeroot = if matches!(self.ids, Ids::Host) { "" } else { " --fakeroot" };
        self.report().info(format_args!(
            "What %post has done is kept. Look at it with:\n           siphon shell{fakeroot} --writable {}",
            place.display()
        ));
        if key.is_some() {
            self.report().info(format_args!("Run %post again on top of it with:\n           {}", self.again));
        }
        Ok(())
    }

    /// A run of this stage's container, up to its options.
    pub(super) fn container(&self, verb: &str, layer: &Path) -> anyhow::Result<std::process::Command> {
        let mut command = self.workspace.siphon();
        command.arg(verb).args(["--pwd", "/", "--no-mount", "home,cwd"]);
        if !matches!(self.ids, Ids::Host) {
            command.arg("--fakeroot");
        }
        if matches!(&self.ids, Ids::Root(others) if others.is_empty()) {
            command.arg("--ignore-subuid");
        }
        if can_have_processes() {
            command.arg("--pid");
        }
        for (name, warning) in [("resolv.conf", "Name resolution could fail"), ("hosts", "Host resolution could fail")]
        {
            let staged = self.workspace.path.join(name);
            // Package managers leave a file alone that is not as their package has it, and this one cannot be replaced.
            match std::fs::read(Path::new("/etc").join(name)) {
                Ok(content) => {
                    std::fs::write(&staged, [&content[..], b"\n"].concat())?;
                    command.arg("--bind").arg(format!("{}:/etc/{name}", staged.display()));
                }
                Err(error) => self.report().warning(format_args!("{warning}: /etc/{name}: {error}")),
            }
        }
        command.args(&self.settings.run_options).current_dir("/");
        tracing::debug!("{verb} in {}", layer.display());
        Ok(command)
    }

    /// Runs it, and tells now and then how far it is.
    pub(super) fn run_in_container(
        &self,
        command: &mut std::process::Command,
        what: &str,
        layer: &Path,
    ) -> anyhow::Result<std::process::ExitStatus> {
        let tells = self.report().is_watched();
        let mut next = NEWS;
        let before = umask(Mode::from_bits_truncate(UMASK));
        let status = self.workspace.interrupt.run(command, |elapsed| {
            if tells && elapsed >= next {
                next = elapsed + NEWS;
                self.tell_so_far(what, layer, elapsed);
            }
        });
        umask(before);
        status
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

/// The words that run a section: `-c SHELL...` has that shell run it.
fn argv(name: &str, path: &str, script: &Script) -> anyhow::Result<Vec<String>> {
    let mut argv = vec!["/bin/sh".to_owned(), "-ex".to_owned()];
    let words: Vec<_> = script.words().collect();
    match words.iter().position(|word| *word == "-c") {
        Some(at) if at + 1 == words.len() => {
            bail!(
                "bad {name} section '-c' parameter: missing arguments; it takes a shell, such as \"%{name} -c /bin/bash\""
            )
        }
        Some(at) => {
            argv.extend(words[..=at].iter().map(|&word| word.to_owned()));
            argv.push(format!("{} {path}", words[at + 1..].join(" ")));
        }
        None => {
            argv.extend(words.iter().map(|&word| word.to_owned()));
            argv.push(path.to_owned());
        }
    }
    Ok(argv)
}

fn find<'b>(earlier: &'b [Built], name: &str) -> anyhow::Result<&'b Built> {
    let found = earlier.iter().find(|stage| stage.name.as_deref() == Some(name));
    found.with_context(|| format!("stage {name} was not found"))
}

/// What a line of `%files` copies, into the digest.
fn digest(transfer: &Transfer, key: &mut Key) -> anyhow::Result<()> {
    for source in copy::sources_on_host(transfer)? {
        key.update(source.as_os_str().as_encoded_bytes());
        copy::digest(&source, &mut |part| key.update(part), 0)
            .with_context(|| format!("cannot read {}", source.display()))?;
    }
    Ok(())
}

/// Whether a `/proc` of a container's own can be mounted: not where the host's is covered in parts, as in containers of
/// Docker (`mount_too_revealing` of the kernel).
fn can_have_processes() -> bool {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return false };
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    !targets.into_iter().any(|target| target.starts_with("/proc/") && target != "/proc/sys/fs/binfmt_misc")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_run_by_the_shell_that_its_arguments_name() {
        let cases = [
            ("", &["/bin/sh", "-ex", "/x"][..]),
            ("-v", &["/bin/sh", "-ex", "-v", "/x"]),
            ("-c /bin/bash -e", &["/bin/sh", "-ex", "-c", "/bin/bash -e /x"]),
            ("-u -c /bin/busybox sh", &["/bin/sh", "-ex", "-u", "-c", "/bin/busybox sh /x"]),
        ];
        for (arguments, expected) in cases {
            let script = Script { arguments: arguments.into(), text: String::new() };
            assert_eq!(argv("post", "/x", &script).unwrap(), expected, "{arguments}");
        }
        assert!(argv("post", "/x", &Script { arguments: "-c".into(), text: String::new() }).is_err());
    }
}
