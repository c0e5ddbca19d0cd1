//! Who we are towards registries, and how they are spoken to.

use super::Environment;
use crate::args::RegistryFlags;
use std::path::{Path, PathBuf};

/// What was said about registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrySettings {
    /// Whether they are asked over http.
    pub plain_http: bool,
    /// A name and a password for all of them: from the command line, else from the environment.
    pub explicit: Option<(String, String)>,
    /// Whether to ask for a name and a password.
    pub asks: bool,
    /// The only file with credentials.
    pub authfile: Option<PathBuf>,
    /// Files with credentials, the first that has any for a registry counts.
    pub files: Vec<PathBuf>,
    /// The library that is meant where none is named.
    pub library: Option<String>,
    /// What stands in for Singularity Hub.
    pub hub: Option<String>,
    /// Where the docker daemon listens.
    pub docker_host: Option<String>,
    /// Where the configuration of registries is, as containers-registries.conf(5) has it, the first that exists.
    pub configuration: Vec<PathBuf>,
}

impl RegistrySettings {
    /// Reads the flags and the environment. `home` is the user's own, where the environment does not say.
    pub fn resolve(flags: &RegistryFlags, environment: &Environment, home: Option<&Path>) -> Self {
        let home = environment.get("HOME").map(PathBuf::from).or_else(|| home.map(Path::to_owned));
        let authfile = flags.authfile.clone().or_else(|| environment.setting(&["AUTH_FILE"]).map(PathBuf::from));
        let given = flags.docker_username.clone().zip(flags.docker_password.clone());
        let docker = environment
            .get("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| Some(home.as_ref()?.join(".docker")))
            .map(|directory| directory.join("config.json"));
        let docker_host = || Some(environment.get("DOCKER_HOST")?.to_string_lossy().into_owned());
        let own = credentials_file(environment, home.as_deref());
        let named = environment.get("CONTAINERS_REGISTRIES_CONF").map(PathBuf::from);
        let users = home.map(|home| home.join(".config/containers/registries.conf"));
        let system = Some(PathBuf::from("/etc/containers/registries.conf"));
        let is_named = named.is_some();
        Self {
            plain_http: flags.no_https || environment.switch(&["NOHTTPS", "NO_HTTPS"]),
            explicit: given.or_else(|| from_environment(environment)),
            asks: flags.docker_login || environment.switch(&["DOCKER_LOGIN"]),
            files: match &authfile {
                Some(file) => vec![file.clone()],
                None => own.into_iter().chain(docker).collect(),
            },
            authfile,
            library: flags.library.clone().or_else(|| environment.text(&["LIBRARY"])),
            hub: environment.text(&["SHUB_URL"]),
            docker_host: flags.docker_host.clone().or_else(|| environment.text(&["DOCKER_HOST"])).or_else(docker_host),
            configuration: named.into_iter().chain(users.into_iter().chain(system).filter(|_| !is_named)).collect(),
        }
    }
}

/// Where `registry login` keeps what it is told, as apptainer does.
pub fn credentials_file(environment: &Environment, home: Option<&Path>) -> Option<PathBuf> {
    let directory = environment.setting(&["CONFIGDIR"]).map(PathBuf::from);
    let home =
        || Some(environment.get("HOME").map(PathBuf::from).or_else(|| home.map(Path::to_owned))?.join(".apptainer"));
    Some(directory.or_else(home)?.join("docker-config.json"))
}

/// A name and its password by the first prefix that has both, the empty one last.
fn from_environment(environment: &Environment) -> Option<(String, String)> {
    let pair = |prefix: &str| {
        let text = |key: &str| Some(environment.get(&format!("{prefix}{key}"))?.to_string_lossy().into_owned());
        Some((text("DOCKER_USERNAME")?, text("DOCKER_PASSWORD")?))
    };
    ["SIPHON_", "APPTAINER_", "SINGULARITY_", ""].into_iter().find_map(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &RegistryFlags, pairs: &[(&str, &str)]) -> RegistrySettings {
        RegistrySettings::resolve(flags, &Environment::made_up(pairs), Some(Path::new("/home/me")))
    }

    #[test]
    fn a_password_of_the_command_line_wins_over_the_environment_and_that_by_its_prefix() {
        let variables = [
            ("DOCKER_USERNAME", "plain"),
            ("DOCKER_PASSWORD", "p"),
            ("APPTAINER_DOCKER_USERNAME", "own"),
            ("APPTAINER_DOCKER_PASSWORD", "o"),
            ("SIPHON_DOCKER_USERNAME", "without a password"),
        ];
        let flags = RegistryFlags {
            docker_username: Some("flag".into()),
            docker_password: Some("f".into()),
            ..RegistryFlags::default()
        };
        let pair = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));

        assert_eq!(resolve(&flags, &variables).explicit, pair("flag", "f"));
        assert_eq!(resolve(&RegistryFlags::default(), &variables).explicit, pair("own", "o"));
        assert_eq!(resolve(&RegistryFlags::default(), &variables[..2]).explicit, pair("plain", "p"));
        assert_eq!(resolve(&RegistryFlags::default(), &[]).explicit, None);
    }

    #[test]
    fn an_authfile_is_the_only_file() {
        let files = |flags: &RegistryFlags, pairs| resolve(flags, pairs).files;
        let named = RegistryFlags { authfile: Some("/a".into()), ..RegistryFlags::default() };
        let usual = ["/home/me/.apptainer/docker-config.json", "/home/me/.docker/config.json"].map(PathBuf::from);
        let moved = [("APPTAINER_CONFIGDIR", "/c"), ("DOCKER_CONFIG", "/d")];

        assert_eq!(files(&named, &[]), [PathBuf::from("/a")]);
        assert_eq!(files(&RegistryFlags::default(), &[("APPTAINER_AUTH_FILE", "/b")]), [PathBuf::from("/b")]);
        assert_eq!(files(&RegistryFlags::default(), &[]), usual);
        let expected = ["/c/docker-config.json", "/d/config.json"].map(PathBuf::from);
        assert_eq!(files(&RegistryFlags::default(), &moved), expected);
    }
}
