//! Runs in an instance: `siphon exec instance://NAME` and its like.

use crate::host::{gather, instances_dir};
use crate::instance::{Registry, RegistryError};
use crate::plan::{Running, plan_inside};
use crate::runtime::become_program_inside;
use crate::settings::{Common, Environment, GpuSettings, RunSettings};
use anyhow::Context;
use siphon_fsd::daemon;
use siphon_fsd::sys::namespaces;
use std::convert::Infallible;
use std::os::fd::AsFd;

/// What an instance is named by, where an image could stand.
pub(crate) const INSTANCE: &str = "instance://";

/// Becomes the program of `settings` in the instance `name`, with its namespaces, mounts and root. Options that would
/// change those have no effect. Returns only if that fails.
///
/// # Errors
/// If there is no such instance, or the program cannot be started in it.
pub(crate) fn enter(
    name: &str,
    mut settings: RunSettings,
    common: &Common,
    environment: Environment,
) -> anyhow::Result<Infallible> {
    let record = Registry::new(instances_dir(common)).find(name).context("While setting image/instance")?;
    settings.image.clone_from(&record.image);
    settings.instance = Some(record.name.clone());
    settings.binds.clear();
    settings.gpu = GpuSettings::default();
    let host = gather(&settings, environment)?;
    let running = Running {
        image: &record.facts,
        home: &record.home,
        library_path: &record.library_path,
        as_root: record.as_root,
        pretends_ids: record.pretends_at.is_some(),
    };
    let plan = plan_inside(&settings, running, &host)?;
    let first = record.process.open().map_err(|_| RegistryError::NotFound(name.to_owned()))?;
    let pretence = record.pretends_at.as_deref().map(daemon::pretence).transpose();
    let pretence = pretence.context("cannot pretend users and owners")?;
    namespaces::join_all(first.as_fd(), record.process.pid)?;
    become_program_inside(&plan, pretence)
}
