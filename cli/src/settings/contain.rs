//! How much of the host's files a run sees.

use super::{Environment, SettingsError};
use crate::args::{ContainFlags, RunFlags};
use std::net::IpAddr;
use std::path::PathBuf;

/// What a run sees of the host's devices, home and temporary directories.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contain {
    /// Few devices, and a home and temporary directories of its own.
    pub contained: bool,
    /// Where the directories of its own lie, which are forgotten otherwise; made absolute by whoever knows the working
    /// directory.
    pub workdir: Option<PathBuf>,
    /// More directories of its own: absolute paths inside.
    pub scratch: Vec<PathBuf>,
    /// Whether its umask is 0022 instead of the caller's.
    pub default_umask: bool,
    /// Its name servers, if not the host's.
    pub name_servers: Vec<IpAddr>,
}

impl Contain {
    /// Reads flags and environment.
    ///
    /// # Errors
    /// [`SettingsError::Scratch`] and [`SettingsError::NameServer`].
    pub(super) fn resolve(flags: &ContainFlags, environment: &Environment) -> Result<Self, SettingsError> {
        let listed = |flag: Option<&String>, keys| flag.cloned().or_else(|| environment.text(keys));
        let scratch = match flags.scratch.is_empty() {
            true => environment.text(&["SCRATCH", "SCRATCHDIR"]).iter().flat_map(|list| words(list)).collect(),
            false => flags.scratch.clone(),
        };
        if let Some(path) = scratch.iter().find(|path| !path.starts_with('/')) {
            return Err(SettingsError::Scratch(path.clone()));
        }
        let name_servers = listed(flags.dns.as_ref(), &["DNS"]).map(|list| words(&list)).unwrap_or_default();
        let address = |text: String| text.parse().map_err(|_| SettingsError::NameServer(text));
        Ok(Self {
            contained: flags.contain || environment.switch(&["CONTAIN"]),
            workdir: listed(flags.workdir.as_ref(), &["WORKDIR"]).map(PathBuf::from),
            scratch: scratch.into_iter().map(PathBuf::from).collect(),
            default_umask: flags.no_umask || environment.switch(&["NO_UMASK"]),
            name_servers: name_servers.into_iter().map(address).collect::<Result<_, _>>()?,
        })
    }
}

/// Sets what `--containall` and `--compat` stand for.
pub(super) fn expand(flags: &mut RunFlags, environment: &Environment) {
    let contain = &mut flags.contain;
    if contain.compat || environment.switch(&["COMPAT"]) {
        contain.containall = true;
        contain.no_umask = true;
        flags.namespaces.no_init = true;
        flags.no_eval = true;
        flags.writable_tmpfs = true;
    }
    if contain.containall || environment.switch(&["CONTAINALL"]) {
        contain.contain = true;
        flags.namespaces.pid = true;
        flags.namespaces.ipc = true;
        flags.cleanenv = true;
    }
}

/// The parts of a comma-separated list that are not empty.
fn words(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Processes, RunSettings, Writes};
    use super::*;
    use crate::args::ExecArgs;

    fn resolve(contain: ContainFlags, pairs: &[(&str, &str)]) -> Result<RunSettings, SettingsError> {
        let flags = RunFlags { contain, ..RunFlags::default() };
        let words = vec!["image.sif".into(), "true".into()];
        RunSettings::exec(ExecArgs { flags, image_and_command: words }, &Environment::made_up(pairs))
    }

    #[test]
    fn containing_all_hides_processes_and_variables_too() {
        let contain = ContainFlags { containall: true, ..ContainFlags::default() };
        for settings in [resolve(contain, &[]), resolve(ContainFlags::default(), &[("APPTAINER_CONTAINALL", "1")])] {
            let settings = settings.unwrap();

            assert!(settings.contain.contained && settings.clean_env && settings.namespaces.ipc);
            assert_eq!(settings.namespaces.processes, Processes::Own);
            assert_eq!(settings.writes, Writes::Refused);
            assert!(settings.variables.evaluate && !settings.contain.default_umask);
        }
    }

    #[test]
    fn being_compatible_is_the_sum_of_its_parts() {
        let settings = resolve(ContainFlags { compat: true, ..ContainFlags::default() }, &[]).unwrap();

        assert!(settings.contain.contained && settings.clean_env && settings.contain.default_umask);
        assert_eq!(settings.namespaces.processes, Processes::OwnWithoutInit);
        assert_eq!(settings.writes, Writes::Temporary);
        assert!(!settings.variables.evaluate);
    }

    #[test]
    fn name_servers_are_addresses_and_scratch_directories_absolute() {
        let dns = |list: &str| ContainFlags { dns: Some(list.into()), ..ContainFlags::default() };
        let scratch = |path: &str| ContainFlags { scratch: vec![path.into()], ..ContainFlags::default() };

        let servers = resolve(dns("1.2.3.4, ::1"), &[]).unwrap().contain.name_servers;
        assert_eq!(servers, ["1.2.3.4".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert!(matches!(resolve(dns("x"), &[]), Err(SettingsError::NameServer(_))));
        assert!(matches!(resolve(scratch("x"), &[]), Err(SettingsError::Scratch(_))));
        let listed = resolve(ContainFlags::default(), &[("APPTAINER_SCRATCH", "/a,/b")]).unwrap().contain.scratch;
        assert_eq!(listed, [PathBuf::from("/a"), PathBuf::from("/b")]);
    }
}
