//! Limits of a run: by systemd, or by a cgroup that this program makes.

use super::instance::enter::INSTANCE;
use super::run::prepare;
use crate::host::{Limiter, delegated_controllers, disk_numbers, limiter, limits_file};
use crate::report::Report;
use crate::runtime::{CgroupFile, enter_cgroup, start_again};
use crate::settings::{Common, Environment, Limit, RunSettings, Verbosity, Writes, Written, limits_of_file};
use anyhow::{anyhow, bail};

/// Puts this process under the limits of the settings. With systemd it becomes the same command line in a scope, and comes
/// back here with nothing to do.
///
/// # Errors
/// What stands in the way: without its limits a run does not start.
pub(super) fn limit(
    settings: &mut RunSettings,
    common: &Common,
    environment: &Environment,
    report: Report,
) -> anyhow::Result<()> {
    if common.limited {
        return Ok(());
    }
    if let Some(path) = &settings.limits_file {
        let (limits, others) =
            limits_of_file(&limits_file(path)?).map_err(|reason| anyhow!("{}: {reason}", path.display()))?;
        for other in others {
            report.warning(format_args!("{other} in {} has no effect", path.display()));
        }
        settings.limits.extend(limits);
    }
    if settings.limits.is_empty() {
        return Ok(());
    }
    let limiter = limiter(common, environment);
    if let Limiter::Systemd { as_user: true } = limiter {
        check_delegated(&settings.limits)?;
    }
    // A daemon that others may join is not to be limited, nor counted, with the run that happens to start it.
    if settings.writes != Writes::Temporary && !settings.image.starts_with(INSTANCE) {
        prepare(&mut settings.clone(), common, environment.clone(), Report::new(Verbosity::Silent))?;
    }
    match limiter {
        Limiter::Systemd { as_user } => {
            let properties: Vec<_> = settings.limits.iter().map(property).collect::<anyhow::Result<_>>()?;
            match start_again(&properties, as_user)? {}
        }
        Limiter::Itself => enter(settings.limits.clone()),
    }
}

fn property(limit: &Limit) -> anyhow::Result<String> {
    let refused = || anyhow!("systemd cannot set {} for a run", limit.version_2().file);
    limit.property().ok_or_else(refused)
}

/// systemd takes limits of what is not delegated without a word, and they do nothing.
fn check_delegated(limits: &[Limit]) -> anyhow::Result<()> {
    let Some(delegated) = delegated_controllers() else { return Ok(()) };
    for Written { controller, .. } in limits.iter().map(Limit::version_2) {
        if !delegated.contains(&controller) {
            bail!(
                "cannot limit a run: the controller {controller} is not delegated to users; an administrator can do so \
                 with Delegate=cpu cpuset io memory pids in /etc/systemd/system/user@.service.d/delegate.conf"
            );
        }
    }
    Ok(())
}

fn enter(mut limits: Vec<Limit>) -> anyhow::Result<()> {
    for disk in limits.iter_mut().filter_map(Limit::disk).filter(|disk| disk.starts_with('/')) {
        *disk = disk_numbers(disk)?;
    }
    let files = |written: Vec<Written>| -> Vec<CgroupFile> {
        let file = |Written { controller, file, value }| CgroupFile { controller, name: file, value };
        written.into_iter().map(file).collect()
    };
    let version_2 = files(limits.iter().map(Limit::version_2).collect());
    let older: Vec<_> = limits.iter().map(Limit::version_1).collect();
    let version_1 = older.iter().all(|limit| !limit.is_empty()).then(|| files(older.concat()));
    enter_cgroup(&version_2, version_1.as_deref())
}
