//! How this process treats registries and libraries: what the command line and the environment said, set once.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::credentials::{Credentials, Keyring, Secret};

/// What the user said about registries and libraries.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// Whether they are asked over http.
    pub plain_http: bool,
    /// Where credentials are found.
    pub keyring: Keyring,
    /// The file that was named for them.
    pub authfile: Option<PathBuf>,
    /// What is known of single registries, the most particular first.
    pub rules: Vec<Rule>,
    /// The library that is meant where none is named, as a URL.
    pub library: Option<String>,
    /// What stands in for Singularity Hub, as a URL.
    pub hub: Option<String>,
    /// Where the docker daemon listens: `unix://PATH` or `tcp://HOST:PORT`.
    pub docker_host: Option<String>,
    /// What a library is shown.
    pub library_token: Option<Secret>,
}

/// What is known of a registry, or of a part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// `HOST[:PORT][/PATH]`: names that begin with it.
    pub prefix: String,
    /// What takes the place of the prefix.
    pub location: String,
    /// Whether it is asked over http.
    pub plain_http: bool,
    /// Whether nothing is to be fetched from it.
    pub is_blocked: bool,
    /// Places to ask first.
    pub mirrors: Vec<Mirror>,
}

/// A place that has what another has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirror {
    /// What takes the place of the prefix.
    pub location: String,
    /// Whether it is asked over http.
    pub plain_http: bool,
    /// Whether it is asked for digests.
    pub has_digests: bool,
    /// Whether it is asked for tags.
    pub has_tags: bool,
}

impl Registries {
    /// The variables that say the same to a process that is started from here, and its children.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = Vec::new();
        if self.plain_http {
            variables.push(("SIPHON_NOHTTPS", "1".to_owned()));
        }
        if let Some(Credentials::Password { username, password }) = &self.keyring.explicit {
            variables.push(("SIPHON_DOCKER_USERNAME", username.clone()));
            variables.push(("SIPHON_DOCKER_PASSWORD", password.reveal().to_owned()));
        }
        if let Some(path) = self.authfile.as_ref().and_then(|path| path.to_str()) {
            variables.push(("SIPHON_AUTH_FILE", path.to_owned()));
        }
        for (name, value) in [
            ("SIPHON_LIBRARY", &self.library),
            ("SIPHON_SHUB_URL", &self.hub),
            ("SIPHON_DOCKER_HOST", &self.docker_host),
        ] {
            variables.extend(value.clone().map(|value| (name, value)));
        }
        variables
    }
}

static REGISTRIES: RwLock<Option<Arc<Registries>>> = RwLock::new(None);

/// Has this process treat registries so from now on.
pub fn configure(registries: Registries) {
    *REGISTRIES.write() = Some(Arc::new(registries));
}

/// How this process treats registries.
pub fn registries() -> Arc<Registries> {
    REGISTRIES.read().clone().unwrap_or_default()
}
