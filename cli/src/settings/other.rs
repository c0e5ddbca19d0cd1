//! Options that siphon knows and does not have: what ignoring would do no harm is taken, with a warning where it would
//! have an effect elsewhere; the rest is refused, with what to do instead.

use super::{Environment, SettingsError};
use crate::args::OtherFlags;
use std::ffi::OsStr;

/// What comes of the options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    /// For the user to know.
    pub(super) warnings: Vec<String>,
    /// Options that take something away from root, and nothing from others, who have nothing to lose.
    pub(super) less_for_root: Vec<&'static str>,
}

const OOM: &str = "has no effect: cgroup v2 knows no such thing";
const SETUID: &str = "setuid programs of an image never count";
const SECURITY: &str = "start siphon itself under the profile or the ids, such as with aa-exec or setpriv";
const CHECKPOINT: &str = "there are no checkpoints";
const FUSE: &str = "mount it on the host and bind that directory";
const LIBRARIES: &str = "bind them: -B LIBRARY:/.singularity.d/libs/NAME";
const ENCRYPTION: &str = "has no effect: encrypted images cannot be opened yet";
const CAPABILITIES: &str = "has no effect: a container has the capabilities of its caller";
const CACHE: &str = "has no effect: of a remote image only what is read is fetched, and kept until \"cache clean\"";
const CREDENTIALS: &str = "have no effect: they are for registries, and this image comes from a web server";
const UNDERLAY: &str = "has no effect: missing mount points are always made";

/// Judges flags and variables for a run of `image`. One that is refused ends the run.
///
/// # Errors
/// [`SettingsError::Unsupported`] for the first that is refused.
pub(super) fn judge(flags: &OtherFlags, image: &OsStr, environment: &Environment) -> Result<Judged, SettingsError> {
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
    ];
    if let Some((option, _, instead)) = refused.into_iter().find(|(_, given, _)| *given) {
        return Err(SettingsError::Unsupported { option: option.into(), instead });
    }
    let pem = text(&flags.pem_path, "ENCRYPTION_PEM_PATH") || environment.setting(&["ENCRYPTION_PEM_DATA"]).is_some();
    let passphrase = flags.passphrase || environment.setting(&["ENCRYPTION_PASSPHRASE"]).is_some();
    // What is on this machine needs neither cache nor credentials.
    let remote = image.as_encoded_bytes().starts_with(b"http://") || image.as_encoded_bytes().starts_with(b"https://");
    let registry = &flags.registry;
    let credentials = registry.authfile.is_some()
        || environment.setting(&["AUTH_FILE"]).is_some()
        || switch(registry.docker_login, "DOCKER_LOGIN")
        || text(&registry.docker_username, "DOCKER_USERNAME")
        || text(&registry.docker_password, "DOCKER_PASSWORD");
    let warned = [
        ("--disable-cache", remote && switch(flags.disable_cache, "DISABLE_CACHE"), CACHE),
        ("--authfile, --docker-login and the like", remote && credentials, CREDENTIALS),
        ("--oom-kill-disable", switch(flags.oom_kill_disable, "OOM_KILL_DISABLE"), OOM),
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
    use crate::args::RegistryFlags;

    fn judged(flags: &OtherFlags, pairs: &[(&str, &str)]) -> Result<Judged, SettingsError> {
        judge(flags, OsStr::new("a.sif"), &Environment::made_up(pairs))
    }

    #[test]
    fn what_would_be_missed_is_refused_by_name_and_with_another_way() {
        let fuse = OtherFlags { fusemount: vec!["x".into()], ..OtherFlags::default() };

        for refused in [judged(&fuse, &[]), judged(&OtherFlags::default(), &[("APPTAINER_FUSESPEC", "x")])] {
            let error = refused.unwrap_err().to_string();
            assert!(error.starts_with("--fusemount is not supported; ") && error.contains("bind"), "{error}");
        }
    }

    #[test]
    fn what_is_for_remote_images_is_taken_for_all_and_has_no_effect_on_those_of_web_servers() {
        let flags = OtherFlags {
            disable_cache: true,
            registry: RegistryFlags {
                no_https: true,
                authfile: Some("/x".into()),
                docker_login: true,
                docker_host: Some("tcp://x".into()),
                ..RegistryFlags::default()
            },
            ..OtherFlags::default()
        };

        assert_eq!(judged(&flags, &[]).unwrap(), Judged::default());
        let environment = Environment::made_up(&[]);
        let remote = judge(&flags, OsStr::new("https://host/a.sif"), &environment).unwrap().warnings;
        assert_eq!(remote.len(), 2, "{remote:?}");
        assert!(remote[0].starts_with("--disable-cache has no effect"), "{remote:?}");
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
