//! Options that siphon knows and does not have: what ignoring would do no harm is taken, with a warning where it would
//! have an effect elsewhere; the rest is refused, with what to do instead.

use super::{Environment, SettingsError};
use crate::args::OtherFlags;

/// What comes of the options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    /// For the user to know.
    pub(super) warnings: Vec<String>,
    /// Options that take something away from root, and nothing from others, who have nothing to lose.
    pub(super) less_for_root: Vec<&'static str>,
}

const CGROUPS: &str = "limit the whole of siphon instead: systemd-run --user --scope -p MemoryMax=4G -p CPUQuota=200% \
                       siphon ..., or the limits of your batch system";
const SETUID: &str = "setuid programs of an image never count";
const SECURITY: &str = "start siphon itself under the profile or the ids, such as with aa-exec or setpriv";
const CHECKPOINT: &str = "there are no checkpoints";
const FUSE: &str = "mount it on the host and bind that directory";
const LIBRARIES: &str = "bind them: -B LIBRARY:/.singularity.d/libs/NAME";
const ENCRYPTION: &str = "has no effect: encrypted images cannot be opened yet";
const CAPABILITIES: &str = "has no effect: a container has the capabilities of its caller";
const UNDERLAY: &str = "has no effect: missing mount points are always made";

/// Judges flags and variables. One that is refused ends the run.
///
/// # Errors
/// [`SettingsError::Unsupported`] for the first that is refused.
pub(super) fn judge(flags: &OtherFlags, environment: &Environment) -> Result<Judged, SettingsError> {
    let text = |flag: &Option<String>, key| flag.is_some() || environment.setting(&[key]).is_some();
    let list = |flag: &[String], key| !flag.is_empty() || environment.setting(&[key]).is_some();
    let switch = |flag: bool, key| flag || environment.switch(&[key]);
    let refused = [
        ("--allow-setuid", switch(flags.allow_setuid, "ALLOW_SETUID"), SETUID),
        ("--security", list(&flags.security, "SECURITY"), SECURITY),
        ("--containlibs", list(&flags.containlibs, "CONTAINLIBS"), LIBRARIES),
        ("--fusemount", list(&flags.fusemount, "FUSESPEC"), FUSE),
        ("--dmtcp-launch", text(&flags.dmtcp_launch, "DMTCP_LAUNCH"), CHECKPOINT),
        ("--dmtcp-restart", text(&flags.dmtcp_restart, "DMTCP_RESTART"), CHECKPOINT),
        ("--apply-cgroups", text(&flags.apply_cgroups, "APPLY_CGROUPS"), CGROUPS),
        ("--blkio-weight", text(&flags.blkio_weight, "BLKIO_WEIGHT"), CGROUPS),
        ("--blkio-weight-device", list(&flags.blkio_weight_device, "BLKIO_WEIGHT_DEVICE"), CGROUPS),
        ("--cpu-shares", text(&flags.cpu_shares, "CPU_SHARES"), CGROUPS),
        ("--cpus", text(&flags.cpus, "CPUS"), CGROUPS),
        ("--cpuset-cpus", text(&flags.cpuset_cpus, "CPUSET_CPUS"), CGROUPS),
        ("--cpuset-mems", text(&flags.cpuset_mems, "CPUSET_MEMS"), CGROUPS),
        ("--memory", text(&flags.memory, "MEMORY"), CGROUPS),
        ("--memory-reservation", text(&flags.memory_reservation, "MEMORY_RESERVATION"), CGROUPS),
        ("--memory-swap", text(&flags.memory_swap, "MEMORY_SWAP"), CGROUPS),
        ("--oom-kill-disable", switch(flags.oom_kill_disable, "OOM_KILL_DISABLE"), CGROUPS),
        ("--pids-limit", text(&flags.pids_limit, "PIDS_LIMIT"), CGROUPS),
    ];
    if let Some((option, _, instead)) = refused.into_iter().find(|(_, given, _)| *given) {
        return Err(SettingsError::Unsupported { option: option.into(), instead });
    }
    let pem = text(&flags.pem_path, "ENCRYPTION_PEM_PATH") || environment.setting(&["ENCRYPTION_PEM_DATA"]).is_some();
    let passphrase = flags.passphrase || environment.setting(&["ENCRYPTION_PASSPHRASE"]).is_some();
    let warned = [
        ("--underlay", switch(flags.underlay, "UNDERLAY"), UNDERLAY),
        ("--passphrase", passphrase, ENCRYPTION),
        ("--pem-path", pem, ENCRYPTION),
        ("--add-caps", text(&flags.add_caps, "ADD_CAPS"), CAPABILITIES),
    ];
    let root =
        [("--drop-caps", text(&flags.drop_caps, "DROP_CAPS")), ("--no-privs", switch(flags.no_privs, "NO_PRIVS"))];
    Ok(Judged {
        warnings: warned
            .into_iter()
            .filter(|(_, given, _)| *given)
            .map(|(option, _, why)| format!("{option} {why}"))
            .collect(),
        less_for_root: root.into_iter().filter(|(_, given)| *given).map(|(option, _)| option).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(flags: &OtherFlags, pairs: &[(&str, &str)]) -> Result<Judged, SettingsError> {
        judge(flags, &Environment::made_up(pairs))
    }

    #[test]
    fn what_would_be_missed_is_refused_by_name_and_with_another_way() {
        let memory = OtherFlags { memory: Some("1G".into()), ..OtherFlags::default() };

        for refused in [judged(&memory, &[]), judged(&OtherFlags::default(), &[("APPTAINER_MEMORY", "1G")])] {
            let error = refused.unwrap_err().to_string();
            assert!(error.starts_with("--memory is not supported; ") && error.contains("systemd-run"), "{error}");
        }
    }

    #[test]
    fn what_does_no_harm_is_taken() {
        let silent = OtherFlags {
            userns: true,
            unsquash: true,
            sharens: true,
            keep_privs: true,
            tmpdir: Some("/x".into()),
            runscript_timeout: Some("5s".into()),
            ..OtherFlags::default()
        };
        let warned = OtherFlags { underlay: true, no_privs: true, ..OtherFlags::default() };

        assert_eq!(judged(&silent, &[]).unwrap(), Judged::default());
        let judged = judged(&warned, &[]).unwrap();
        assert_eq!(judged.warnings, [format!("--underlay {UNDERLAY}")]);
        assert_eq!(judged.less_for_root, ["--no-privs"]);
    }
}
