//! The `siphon` command: a drop-in for `singularity` and `apptainer` that never unpacks an image.
//!
//! ```text
//! args -> settings -> plan -> runtime            report: all that is printed
//!              commands: one file per verb, build: packs a tree into an image
//! ```

#![expect(unreachable_pub, reason = "a binary has no public items, and pub says what a module offers to the others")]

mod args;
mod build;
mod commands;
mod host;
mod inspection;
mod instance;
mod plan;
mod registries;
mod report;
mod runtime;
mod settings;

use args::{Cli, OverlayVerb, Verb};
use clap::CommandFactory;
use commands::doctor::Unfit;
use report::{EXIT_FATAL, EXIT_UNFIT, EXIT_USAGE, Report};
use settings::{Common, Environment, RegistrySettings, RunSettings, SettingsError};
use siphon_fsd::daemon::DaemonError;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut environment = Environment::new(std::env::vars_os());
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    environment.switch_off(&cli.switched_off);
    let verbosity = settings::verbosity(&cli.global, &environment);
    let report = Report::new(verbosity);
    report.log();
    if let Some(path) = cli.global.config {
        report.warning(format_args!("--config {} has no effect: siphon has no configuration file", path.display()));
    }
    match run(cli.verb, cli.global.limited, environment, report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        // The process that it happened in has said it.
        Err(error) if error.is::<build::Told>() => ExitCode::from(EXIT_FATAL),
        Err(error) if error.is::<Unfit>() => ExitCode::from(EXIT_UNFIT),
        Err(error) => match error.downcast_ref::<clap::Error>() {
            Some(error) => usage(error),
            None => fatal(&error, report),
        },
    }
}

fn run(verb: Verb, limited: bool, environment: Environment, report: Report) -> anyhow::Result<()> {
    let common = Common { limited, ..Common::resolve(verb.daemon(), &environment)? };
    commands::cache::keep_limit(&common, report);
    let registries = RegistrySettings::resolve(&verb.registries(), &environment, host::home().as_deref());
    registries::apply(registries, report)?;
    let become_program = |mut settings: RunSettings, environment| {
        settings.quiet = report.is_quiet();
        commands::run::run(settings, &common, environment, report)
    };
    match verb {
        Verb::Exec(args) => match become_program(RunSettings::exec(args, &environment)?, environment)? {},
        Verb::Shell(args) => match become_program(RunSettings::shell(args, &environment)?, environment)? {},
        Verb::Run(args) => match become_program(RunSettings::run(args, &environment)?, environment)? {},
        Verb::Test(args) => match become_program(RunSettings::test(args, &environment)?, environment)? {},
        Verb::RunHelp(args) => commands::run_help::run_help(&args, &common, report),
        Verb::Build(args) => commands::build::build(&args, &common, &environment, report),
        Verb::Commit(args) => commands::commit::commit(&args, &common, &environment, report),
        Verb::Pull(args) => commands::pull::pull(&args, &common, &environment, report),
        Verb::Push(args) => commands::push::push(&args, &common, report),
        Verb::Tag(args) => commands::push::tag(&args, report),
        Verb::Registry { verb } => commands::registry::registry(&verb, &environment, report),
        Verb::Diff(args) => commands::diff::diff(&args, &common, report),
        Verb::Layer { verb } => commands::layer::layer(&verb, &common, report),
        Verb::Mount(args) => commands::mount::mount(&args, &common, report),
        Verb::Umount(args) => commands::umount::umount(&args),
        Verb::Ls(args) => commands::ls::ls(&args, &common, report),
        Verb::Cat(args) => commands::cat::cat(&args, &common, report),
        Verb::Inspect(args) => commands::inspect::inspect(&args, &common, report),
        Verb::Status(args) => commands::status::status(&args, &common, report),
        Verb::Instance { verb } => commands::instance::instance(verb, &common, environment, report),
        Verb::Overlay { verb: OverlayVerb::Create(args) } => commands::overlay::create(&args, report),
        Verb::Sif { verb } => commands::sif::sif(&verb, report),
        Verb::Cache { verb } => commands::cache::cache(&verb, &common, report),
        Verb::Index(args) => commands::index::index(&args, &common, report),
        Verb::Pin(args) => commands::pin::pin(&args, &common, report),
        Verb::Doctor(args) => commands::doctor::doctor(&args, &common, &environment, report),
        Verb::Man { directory } => commands::man::man(directory.as_deref(), Cli::command(), report),
        Verb::Completion { shell } => commands::completion::completion(shell, Cli::command(), report),
        Verb::Version => Ok(report.line(env!("CARGO_PKG_VERSION"))?),
        Verb::Buildcfg { parameter } => {
            commands::configuration::buildcfg(parameter.as_deref(), Cli::whole(), &common, report)
        }
        Verb::Confgen { files } => commands::configuration::confgen(&files, report),
        Verb::Convert { image } => commands::convert::convert(&image, &common, report),
        Verb::BuildStep { job } => commands::build_step::build_step(&job, report),
        Verb::Daemon { state, .. } => commands::daemon::daemon(&state),
    }
}

/// What a failure ends with.
fn fatal(error: &anyhow::Error, report: Report) -> ExitCode {
    report.fatal(error);
    if error.chain().any(is_the_machines) {
        report.info("\"siphon doctor\" shows what this machine lacks, and what mends it");
    }
    let is_usage = error.downcast_ref().is_some_and(SettingsError::is_usage);
    ExitCode::from(if is_usage { EXIT_USAGE } else { EXIT_FATAL })
}

/// Help and version are no errors; a command line that cannot be understood exits with 1, as singularity does.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done where even the message cannot be printed.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
}

/// Whether the machine stands in the way, and not the image or what was asked for.
fn is_the_machines(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<DaemonError>().is_some_and(DaemonError::is_the_machines)
}

/// `siphon ls image | head` is not a failure of siphon.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
