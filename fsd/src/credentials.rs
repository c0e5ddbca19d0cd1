//! Who we are towards registries: names and passwords from the command line, from files of docker's form, and from the
//! programs that such files name (`docker-credential-*`).
//!
//! Nothing is kept in memory but what the command line gave: a registry asks again whenever a token has run out, and finds
//! what the files say then. A password is in no message, log or `Debug` output.

mod file;
mod helper;

pub use file::{Entry, list, remove, store};

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The registry that is meant where none is named.
pub const DOCKER_HUB: &str = "docker.io";
/// What docker's own files call it.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A password or token, which shows itself to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Gives it, to whoever sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Who a registry is asked as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user with a password.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A token that the registry's token server exchanges for others.
    Identity(Secret),
}

/// Where credentials are found, the first that has any for a registry.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// For every registry, from the command line or the environment.
    pub explicit: Option<Credentials>,
    /// Files of docker's form. One that is missing has nothing.
    pub files: Vec<PathBuf>,
}

/// Credentials cannot be found out, or kept.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// A file cannot be read.
    #[error("cannot read the credentials in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is none of docker's form. Its text is not quoted.
    #[error(
        "the credentials in {path} are damaged (line {line}): it has to be JSON as docker's config.json is; mend or remove it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Where it went wrong.
        line: usize,
    },
    /// A file cannot be written.
    #[error("cannot keep credentials in {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A program that keeps credentials did not give them.
    #[error(
        "docker-credential-{helper}, which {path} names for {registry}, failed: {reason}; run it yourself, or log in with --authfile FILE"
    )]
    Helper {
        /// The end of its name.
        helper: String,
        /// The file that names it.
        path: PathBuf,
        /// For which registry.
        registry: String,
        /// What it said, or why it could not be asked.
        reason: String,
    },
}

impl Keyring {
    /// What there is for `registry`, a host with its port if it has one.
    ///
    /// # Errors
    /// If a file or a program that may have some cannot be asked.
    pub fn find(&self, registry: &str) -> Result<Option<Credentials>, KeyringError> {
        if self.explicit.is_some() {
            return Ok(self.explicit.clone());
        }
        for path in &self.files {
            let found = file::find(path, registry)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// The names under which files may have `registry`, the usual one first.
fn keys(registry: &str) -> Vec<String> {
    let mut keys = Vec::new();
    if matches!(registry, DOCKER_HUB | "index.docker.io" | "registry-1.docker.io") {
        keys.extend([DOCKER_HUB_KEY, DOCKER_HUB, "index.docker.io", "registry-1.docker.io"].map(str::to_owned));
    } else {
        keys.push(registry.to_owned());
    }
    for key in keys.clone() {
        if !key.starts_with("https://") {
            keys.extend(["https", "http"].map(|scheme| format!("{scheme}://{key}")));
        }
    }
    keys
}
