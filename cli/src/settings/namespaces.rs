//! What a run does not share with the host beyond its mounts.

use super::{Environment, SettingsError};
use crate::args::NamespaceFlags;

/// The longest host name (`__NEW_UTS_LEN` of the kernel), in bytes.
const MAX_HOSTNAME: usize = 64;

/// The namespaces of a run besides the one of its mounts, which it always has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespaces {
    /// Whose processes it sees.
    pub processes: Processes,
    /// Whether the host's IPC objects are hidden.
    pub ipc: bool,
    /// Whether its host name can be another than the host's.
    pub uts: bool,
    /// The host name to set; only with `uts`.
    pub hostname: Option<String>,
    /// Whether it has no network but a loopback device.
    pub network: bool,
}

/// Whose processes a run sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Processes {
    /// The host's: the program takes the place of siphon.
    #[default]
    Shared,
    /// Its own, below an init.
    Own,
    /// Its own, the program being process 1.
    OwnWithoutInit,
}

impl Namespaces {
    /// Reads flags and environment.
    ///
    /// # Errors
    /// [`SettingsError::Unsupported`] for networks other than `none`, [`SettingsError::Hostname`].
    pub(super) fn resolve(flags: NamespaceFlags, environment: &Environment) -> Result<Self, SettingsError> {
        let hide_processes = flags.pid || environment.switch(&["PID", "UNSHARE_PID"]);
        let share_processes = flags.no_pid || environment.switch(&["NO_PID"]);
        let without_init = flags.no_init || environment.switch(&["NOSHIMINIT"]);
        let processes = match (hide_processes && !share_processes, without_init) {
            (false, _) => Processes::Shared,
            (true, false) => Processes::Own,
            (true, true) => Processes::OwnWithoutInit,
        };
        let hostname = flags.hostname.clone().or_else(|| environment.text(&["HOSTNAME"]));
        if let Some(name) = hostname.iter().find(|name| name.is_empty() || name.len() > MAX_HOSTNAME) {
            return Err(SettingsError::Hostname(name.clone()));
        }
        Ok(Self {
            processes,
            ipc: flags.ipc || environment.switch(&["IPC", "UNSHARE_IPC"]),
            uts: flags.uts || hostname.is_some() || environment.switch(&["UTS", "UNSHARE_UTS"]),
            hostname,
            network: network(flags, environment)?,
        })
    }
}

/// Whether there is a network namespace. `--network` asks for one as `--net` does.
fn network(flags: NamespaceFlags, environment: &Environment) -> Result<bool, SettingsError> {
    let refused = |option: String, instead| Err(SettingsError::Unsupported { option, instead });
    if let Some(path) = flags.netns_path.or_else(|| environment.text(&["NETNS_PATH"])) {
        return refused(format!("--netns-path {path}"), "start siphon in that network: nsenter --net=PATH siphon ...");
    }
    if !flags.network_args.is_empty() || environment.setting(&["NETWORK_ARGS"]).is_some() {
        return refused("--network-args".into(), "there are no network plugins; leave it out");
    }
    let wanted = flags.net || environment.switch(&["NET", "UNSHARE_NET"]);
    match flags.network.or_else(|| environment.text(&["NETWORK"])) {
        None if !wanted => Ok(false),
        Some(name) if name == "none" => Ok(true),
        name => refused(
            format!("--net --network {}", name.as_deref().unwrap_or("bridge")),
            "use --network none for no network at all, or leave both out for the host's",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: NamespaceFlags, pairs: &[(&str, &str)]) -> Result<Namespaces, SettingsError> {
        Namespaces::resolve(flags, &Environment::made_up(pairs))
    }

    #[test]
    fn processes_are_shared_where_anything_says_so() {
        let flags = |pid, no_pid, no_init| NamespaceFlags { pid, no_pid, no_init, ..NamespaceFlags::default() };
        let cases = [
            (flags(false, false, false), &[][..], Processes::Shared),
            (flags(true, false, false), &[], Processes::Own),
            (flags(true, false, true), &[], Processes::OwnWithoutInit),
            (flags(true, true, false), &[], Processes::Shared),
            (flags(false, false, true), &[], Processes::Shared),
            (flags(false, false, false), &[("APPTAINER_UNSHARE_PID", "1")], Processes::Own),
            (flags(true, false, false), &[("SINGULARITY_NOSHIMINIT", "true")], Processes::OwnWithoutInit),
            (flags(true, false, false), &[("APPTAINER_NO_PID", "1")], Processes::Shared),
        ];
        for (flags, pairs, expected) in cases {
            let described = format!("{flags:?} {pairs:?}");
            assert_eq!(resolve(flags, pairs).unwrap().processes, expected, "{described}");
        }
    }

    #[test]
    fn a_host_name_brings_a_namespace_for_it() {
        let flags = NamespaceFlags { hostname: Some("node".into()), ..NamespaceFlags::default() };

        assert!(resolve(flags, &[]).unwrap().uts);
        assert!(resolve(NamespaceFlags::default(), &[("APPTAINER_HOSTNAME", "node")]).unwrap().uts);
        let flags = NamespaceFlags { hostname: Some("n".repeat(65)), ..NamespaceFlags::default() };
        assert!(matches!(resolve(flags, &[]), Err(SettingsError::Hostname(_))));
    }

    #[test]
    fn the_only_network_is_none() {
        let flags = |net, network: Option<&str>| NamespaceFlags {
            net,
            network: network.map(str::to_owned),
            ..NamespaceFlags::default()
        };

        assert!(resolve(flags(true, Some("none")), &[]).unwrap().network);
        assert!(resolve(flags(false, Some("none")), &[]).unwrap().network);
        assert!(resolve(flags(true, None), &[("APPTAINER_NETWORK", "none")]).unwrap().network);
        assert!(!resolve(flags(false, None), &[]).unwrap().network);
        for (flags, named) in [(flags(true, None), "bridge"), (flags(false, Some("ptp")), "ptp")] {
            let error = resolve(flags, &[]).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("--network none"), "{error}");
        }
        let path = NamespaceFlags { netns_path: Some("/run/netns/x".into()), ..NamespaceFlags::default() };
        assert!(resolve(path, &[]).unwrap_err().to_string().contains("/run/netns/x"));
    }
}
