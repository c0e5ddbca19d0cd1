//! Steps of a build that happen in other namespaces, or that start threads: each in a process of its own, the same binary
//! with a hidden verb. What it is to do is in a file, and so is its answer.

use super::apps::App;
use super::definition::Transfer;
use super::finish::{self, Finish};
use super::root::Root;
use super::{agents, apps, base_files, copy};
use crate::report::Report;
use anyhow::{Context, bail};
use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};
use siphon_fsd::daemon::{self, Spec};
use siphon_fsd::locator::{self, Locator};
use siphon_overlay::upper::{Base, Upper};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// More than a job takes: it carries the sections of a recipe.
const MAX_JOB_BYTES: u64 = 256 << 20;
/// As apptainer's builds: what the group may do is not taken away.
pub(super) const UMASK: u32 = 0o002;

/// A step.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Job {
    /// Makes the layer `layer` over `image`.
    Create { image: String, layer: PathBuf, cache_dir: PathBuf, cache_bytes: Option<u64> },
    /// Copies a layer with all owners and marks.
    Copy { from: PathBuf, to: PathBuf },
    /// Removes directories, whoever owns what is in them.
    Remove { paths: Vec<PathBuf> },
    /// Lets the user at everything in a directory.
    FixPermissions { path: PathBuf },
    /// Works on a mounted root file system.
    Inside(Box<Inside>),
}

/// Work on a mounted root file system, as root of its namespace.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Inside {
    /// What is mounted.
    pub(super) spec: Spec,
    /// Where the daemons are.
    pub(super) runtime_dir: PathBuf,
    /// What is done, in order.
    pub(super) actions: Vec<Action>,
}

/// What is done on a mounted root file system.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Action {
    /// Fills it by a program of the host.
    Bootstrap(agents::Bootstrap),
    /// Makes what every image has.
    BaseFiles,
    /// Writes SCIF apps.
    Apps(Vec<App>),
    /// Copies out of another stage.
    FilesFrom { stage: String, image: String, cache_dir: PathBuf, transfers: Vec<(String, String)> },
    /// Runs a section on the host.
    Script { name: String, argv: Vec<String>, text: String, scratch: PathBuf },
    /// Copies from the host.
    Files(Vec<(String, String)>),
    /// Writes the script of a section.
    Put { path: String, text: String, mode: u32 },
    /// Takes a file away.
    Take { path: String },
    /// Takes empty mount points away, the deepest first.
    TakeMountPoints(Vec<PathBuf>),
    /// Says which parts of these paths are missing.
    Missing(Vec<PathBuf>),
    /// Writes what the image says of itself.
    Finish(Box<Finish>),
    /// Copies everything to a directory of the host.
    CopyOut { to: PathBuf },
}

/// What came of a step.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    /// What tells the base from any other.
    pub(super) identity: String,
    /// Whether nobody is expected to change the base.
    pub(super) is_stable: bool,
    /// Paths that are missing, the outermost first.
    pub(super) missing: Vec<PathBuf>,
}

/// Does what the file `path` says, and writes the answer beside it.
///
/// # Errors
/// What went wrong.
pub fn perform(path: &Path, report: Report) -> anyhow::Result<()> {
    let length = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    if length > MAX_JOB_BYTES {
        bail!("{} is no job of a build", path.display());
    }
    let job =
        serde_json::from_slice(&std::fs::read(path)?).with_context(|| format!("cannot read {}", path.display()))?;
    let answer = match job {
        Job::Create { image, layer, cache_dir, cache_bytes } => create(&image, &layer, &cache_dir, cache_bytes)?,
        Job::Copy { from, to } => {
            super::own_what_is_ours();
            copy_layer(&from, &to)?;
            Answer::default()
        }
        Job::Remove { paths } => {
            super::own_what_is_ours();
            paths.iter().try_for_each(|path| remove(path))?;
            Answer::default()
        }
        Job::FixPermissions { path } => {
            super::own_what_is_ours();
            run(Command::new("chmod").args(["-R", "u+rwX"]).arg(&path))?;
            Answer::default()
        }
        Job::Inside(inside) => work_inside(*inside, report)?,
    };
    std::fs::write(answer_of(path), serde_json::to_vec(&answer)?)?;
    Ok(())
}

/// Where the answer to the job in `path` is.
pub(super) fn answer_of(path: &Path) -> PathBuf {
    path.with_extension("answer")
}

fn create(image: &str, layer: &Path, cache_dir: &Path, cache_bytes: Option<u64>) -> anyhow::Result<Answer> {
    let context = || format!("could not open image {image}");
    let locator = Locator::parse(image).with_context(context)?;
    let opened = locator::open(&locator, cache_dir, cache_bytes).with_context(context)?;
    if let Locator::Sandbox(path) = &locator {
        // Layers do not stack: the new one begins as a copy.
        super::own_what_is_ours();
        copy_layer(path, layer)?;
        return Ok(Answer { identity: opened.identity, is_stable: false, ..Answer::default() });
    }
    let base = Base { version: Base::VERSION, image: locator.to_string(), identity: opened.identity.clone() };
    Upper::create(layer, &base).with_context(|| format!("cannot make the layer {}", layer.display()))?;
    Ok(Answer { identity: opened.identity, is_stable: opened.is_stable, ..Answer::default() })
}

/// Copies a layer: owners, times, attributes and marks of what is gone. Where the file system can, blocks are shared.
fn copy_layer(from: &Path, to: &Path) -> anyhow::Result<()> {
    run(Command::new("cp").args(["-a", "--reflink=auto", "-T", "--"]).arg(from).arg(to))
        .with_context(|| format!("cannot copy the layer {}", from.display()))
}

/// Removes a directory, whatever permissions are in it; nothing if there is none.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    // A directory without permissions is still its owner's.
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(_) => {
            run(Command::new("chmod").args(["-R", "u+rwX", "--"]).arg(path))?;
            std::fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) => Ok(()),
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_owned();
    let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}", program.display(), said.lines().last().unwrap_or("it said nothing"));
    }
    Ok(())
}

fn work_inside(inside: Inside, report: Report) -> anyhow::Result<Answer> {
    let executable = std::env::current_exe().context("cannot find the siphon program itself")?;
    let joined = daemon::join(&inside.spec, std::slice::from_ref(&inside.runtime_dir), &executable)
        .with_context(|| format!("could not open image {}", inside.spec.image))?;
    if let Err(reason) = &joined.writable {
        bail!("cannot write to {}: {reason}", inside.spec.image);
    }
    let pretends = joined.other_ids.is_err() && matches!(inside.spec.ids, daemon::Ids::Root(_));
    let pretence = pretends.then(|| daemon::pretence(&joined.socket)).transpose()?;
    joined.enter().context("cannot join the namespaces of the image's daemon")?;
    umask(Mode::from_bits_truncate(UMASK));
    if let Some(pretence) = pretence {
        // Without it root is alone, which most sections can live with.
        if let Err(error) = pretence.begin() {
            tracing::warn!("users and owners are not pretended: {error}");
        }
    }
    let root = Root::open(&joined.root)?;
    let mut answer = Answer::default();
    for action in inside.actions {
        act(action, &root, &mut answer, report)?;
    }
    Ok(answer)
}

fn act(action: Action, root: &Root, answer: &mut Answer, report: Report) -> anyhow::Result<()> {
    match action {
        Action::Bootstrap(bootstrap) => agents::run(&bootstrap, root, report),
        Action::BaseFiles => base_files::complete(root),
        Action::Apps(all) => apps::write(root, &all),
        Action::FilesFrom { stage, image, cache_dir, transfers } => {
            let opened = locator::open(&Locator::parse(&image)?, &cache_dir, None)?;
            let tree = opened.tree()?;
            for transfer in transfers.into_iter().map(transfer) {
                report.info(format_args!("Copying {} to {}", transfer.source, transfer.destination));
                copy::from_tree(root, tree.as_ref(), &stage, &transfer)?;
            }
            Ok(())
        }
        Action::Script { name, argv, text, scratch } => script(root, &name, &argv, &text, &scratch, report),
        Action::Files(transfers) => transfers.into_iter().map(transfer).try_for_each(|transfer| {
            report.info(format_args!("Copying {} to {}", transfer.source, transfer.destination));
            copy::from_host(root, &transfer)
        }),
        Action::Put { path, text, mode } => root.put(path, text.as_bytes(), mode),
        Action::Take { path } => root.remove(path),
        Action::TakeMountPoints(paths) => {
            paths.iter().rev().for_each(|path| root.remove_empty(path));
            Ok(())
        }
        Action::Missing(paths) => {
            for path in paths {
                // What goes round in circles cannot be mounted on.
                answer.missing.extend(root.missing(&path).unwrap_or_default());
            }
            answer.missing.sort();
            answer.missing.dedup();
            Ok(())
        }
        Action::Finish(what) => finish::finish(root, &what, report),
        Action::CopyOut { to } => {
            run(Command::new("cp").args(["-a", "--reflink=auto", "-T", "--"]).arg(&root.path).arg(&to))
        }
    }
}

fn transfer((source, destination): (String, String)) -> Transfer {
    Transfer { source, destination }
}

/// Runs a section on the host, with the root file system at hand.
fn script(root: &Root, name: &str, argv: &[String], text: &str, scratch: &Path, report: Report) -> anyhow::Result<()> {
    let path = scratch.join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    report.info(format_args!("Running {name} scriptlet"));
    let (program, arguments) = argv.split_first().context("a script needs a shell")?;
    let mut command = Command::new(program);
    command.args(arguments).arg0(program);
    for prefix in ["APPTAINER", "SINGULARITY"] {
        command.env(format!("{prefix}_ROOTFS"), &root.path);
        command.env(format!("{prefix}_ENVIRONMENT"), "/.singularity.d/env/91-environment.sh");
    }
    let status = command.status().with_context(|| format!("cannot run {program} for %{name}"))?;
    let _ = std::fs::remove_file(&path);
    if !status.success() {
        bail!("failed to run %{name} script: {}", super::child::said(status));
    }
    Ok(())
}
