//! `siphon instance`: containers that run in the background.

pub(super) mod enter;
mod list;
mod start;
mod stats;
mod stop;

use crate::args::InstanceVerb;
use crate::host::{become_user, instances_dir};
use crate::instance::Registry;
use crate::report::Report;
use crate::settings::{Common, Environment};
use anyhow::bail;
use clap::CommandFactory;
use clap::error::ErrorKind;

/// Starts, lists, stops or measures.
///
/// # Errors
/// Whatever stands in the way of it.
pub fn instance(verb: InstanceVerb, common: &Common, environment: Environment, report: Report) -> anyhow::Result<()> {
    match verb {
        InstanceVerb::Start(args) => start::start(args, false, common, environment, report),
        InstanceVerb::Run(args) => start::start(args, true, common, environment, report),
        InstanceVerb::List(args) => list::list(&args, common, report),
        InstanceVerb::Stop(args) => stop::stop(&args, common, report),
        InstanceVerb::Stats(args) => stats::stats(&args, common, report),
    }
}

/// The registry of the caller, or of `user`, whom only root may name. `what` is done with instances, for the message.
fn registry(user: Option<&str>, what: &str, common: &Common) -> anyhow::Result<Registry> {
    let Some(user) = user else { return Ok(Registry::new(instances_dir(common))) };
    if !nix::unistd::geteuid().is_root() {
        bail!("Only root user can {what} user's instances");
    }
    // Root would follow whatever links and records that user made, with all of its rights.
    Ok(Registry::new(become_user(user)?))
}

/// As singularity has it, a name that nothing has is a wrong command line, with the exit code of one.
fn no_instance_found() -> anyhow::Error {
    crate::args::Cli::command().error(ErrorKind::InvalidValue, "no instance found").into()
}
