//! `siphon instance start` and `run`.
//!
//! The called process waits until the instance has started. The one that keeps it is written down, with the name, before
//! anything else is done, so that there is no moment in which an instance lives that nobody can find.

use super::enter::INSTANCE;
use crate::args::InstanceStartArgs;
use crate::commands::limits::limit;
use crate::commands::run::{Prepared, enter_daemon, prepare};
use crate::host::instances_dir;
use crate::instance::{Process, Record, Registry, RegistryError, is_valid_name};
use crate::plan::gpu::library_path;
use crate::report::Report;
use crate::runtime::{Background, Logs, Part, into_background, split};
use crate::settings::{Common, Environment, RunSettings};
use anyhow::{Context, bail};
use siphon_image::open::Facts;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::path::PathBuf;
use std::process::exit;

/// What the keeper tells of the start: the id of the first process, or what went wrong.
type Started = Result<i32, String>;

/// Starts an instance and returns when its script runs.
///
/// # Errors
/// If the name is taken or none, or the container cannot be started.
pub(super) fn start(
    mut args: InstanceStartArgs,
    runscript: bool,
    common: &Common,
    environment: Environment,
    report: Report,
) -> anyhow::Result<()> {
    if args.boot || environment.switch(&["BOOT"]) {
        bail!("--boot is not supported: an init system needs a whole machine; name its services in the startscript");
    }
    let pid_file = args.pid_file.take().or_else(|| environment.setting(&["PID_FILE"]).map(PathBuf::from));
    let mut settings = RunSettings::instance(args, runscript, &environment)?;
    settings.quiet = report.is_quiet();
    if settings.image.starts_with(INSTANCE) {
        bail!("While setting image/instance: starting an instance from another is not allowed");
    }
    let name = settings.instance.clone().unwrap_or_default();
    if !is_valid_name(&name) {
        return Err(RegistryError::Name(name).into());
    }
    limit(&mut settings, common, &environment, report)?;
    match into_background()? {
        Background::Caller(told) => {
            let pid = wait(told)?;
            if let Some(path) = pid_file {
                let written = std::fs::write(&path, format!("{pid}\n"));
                written.with_context(|| format!("instance {name} runs, but cannot write {}", path.display()))?;
            }
            report.info("instance started successfully");
            Ok(())
        }
        Background::Keeper(tell) => {
            let mut caller = Caller(Some(tell));
            if let Err(error) = keep(&name, settings, common, environment, &mut caller, report) {
                caller.tell(&Err(format!("{error:#}")));
            }
            exit(0)
        }
    }
}

fn wait(mut told: PipeReader) -> anyhow::Result<i32> {
    let mut text = Vec::new();
    told.read_to_end(&mut text).context("cannot hear whether the instance has started")?;
    let Ok(started) = serde_json::from_slice::<Started>(&text) else {
        bail!("the instance was killed before it had started");
    };
    started.map_err(anyhow::Error::msg)
}

/// Who waits for the start, until it is told.
struct Caller(Option<PipeWriter>);

impl Caller {
    /// Tells, once. The caller may have been killed: the instance is listed all the same.
    fn tell(&mut self, started: &Started) {
        let Some(mut pipe) = self.0.take() else { return };
        let _ = serde_json::to_writer(&mut pipe, started).map(|()| pipe.flush());
    }
}

/// Starts the instance and stays until it is over. Its record is there as long as this process is.
fn keep(
    name: &str,
    mut settings: RunSettings,
    common: &Common,
    environment: Environment,
    caller: &mut Caller,
    report: Report,
) -> anyhow::Result<()> {
    let registry = Registry::new(instances_dir(common));
    let [(output, output_path), (error, error_path)] = registry.open_logs(name)?;
    let input = File::open("/dev/null").context("cannot open /dev/null")?;
    let own = Process::of(nix::unistd::getpid().as_raw()).context("cannot find the own process in /proc")?;
    let mut record = Record {
        name: name.to_owned(),
        image: settings.image.clone(),
        process: own,
        ready: false,
        facts: Facts::default(),
        home: PathBuf::new(),
        library_path: library_path(&settings.gpu),
        as_root: settings.fakeroot.is_some(),
        pretends_at: None,
        overlays: overlays(&settings)?,
        output: output_path,
        error: error_path,
    };
    registry.claim(&record)?;
    let logs = Logs { input, output, error };
    let result = prepare(&mut settings, common, environment, report).and_then(|prepared| {
        record.image.clone_from(&settings.image);
        serve(&registry, &mut record, prepared, logs, caller, report)
    });
    registry.remove(&record)?;
    result
}

fn overlays(settings: &RunSettings) -> anyhow::Result<Vec<PathBuf>> {
    let paths = settings.overlays.iter().map(|overlay| std::path::absolute(&overlay.path));
    paths.collect::<Result<_, _>>().context("cannot find out the working directory")
}

/// Runs the container and waits for its end.
fn serve(
    registry: &Registry,
    record: &mut Record,
    mut prepared: Prepared,
    logs: Logs,
    caller: &mut Caller,
    report: Report,
) -> anyhow::Result<()> {
    let place = enter_daemon(&mut prepared)?;
    let mut keeper = match split()? {
        Part::First(first) => {
            // Only the keeper speaks: the caller waits until nobody can any more.
            drop(caller.0.take());
            first.run(&prepared.plan, place, logs, report)
        }
        Part::Keeper(keeper) => keeper,
    };
    drop(logs);
    keeper.wait_for_start()?;
    let process =
        record.process.of_same_user(keeper.first()).context("the instance ended as soon as it had started")?;
    let claimed = std::mem::replace(&mut record.process, process);
    let facts = &prepared.joined.facts;
    record.facts = Facts {
        has_shell: facts.has_shell,
        // Only without a shell are they read outside.
        env_scripts: if facts.has_shell { Vec::new() } else { facts.env_scripts.clone() },
        ..Facts::default()
    };
    record.home = prepared.home;
    record.pretends_at = prepared.plan.pretends_ids.then(|| prepared.joined.socket.clone());
    record.ready = true;
    if let Err(error) = registry.update(record) {
        record.process = claimed;
        return Err(error.into());
    }
    caller.tell(&Ok(keeper.first()));
    keeper.stand_by();
    Ok(())
}
