//! What can go wrong between a server and us.

use std::time::Duration;

use crate::credentials::KeyringError;

/// Why bytes of a remote object are not to be had.
///
/// `name` is always the redacted URL: no credentials, no query string.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The URL cannot be used at all. It is not quoted, because what does not parse cannot be redacted.
    #[error("not a usable image URL: {reason}; give http://HOST/PATH or https://HOST/PATH")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// The server sends the whole object whatever range is asked for.
    #[error(
        "{name} cannot be read lazily: its server ignores range requests; download the image first (curl -O) and use the file"
    )]
    NoRanges {
        /// The redacted URL.
        name: String,
    },
    /// The object is not the one that was opened.
    #[error("{name} was replaced on its server while in use ({detail}); stop what uses the image and start it again")]
    Changed {
        /// The redacted URL.
        name: String,
        /// How it was noticed.
        detail: &'static str,
    },
    /// The server wants other credentials: status 401 or 403.
    #[error(
        "{name} was refused with status {status}; check the user and password in the URL, or that the link has not expired"
    )]
    Denied {
        /// The redacted URL.
        name: String,
        /// The HTTP status.
        status: u16,
    },
    /// The registry wants other credentials, or none will do: status 401 or 403.
    #[error(
        "{name} was refused with status {status}; check the name, or log in with \"siphon registry login {registry}\": a \
         registry refuses what does not exist, too"
    )]
    Login {
        /// What was asked for.
        name: String,
        /// The registry.
        registry: String,
        /// The HTTP status.
        status: u16,
    },
    /// The credentials cannot be found out.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The configuration forbids it.
    #[error("{name} is blocked by registries.conf")]
    Blocked {
        /// What was asked for.
        name: String,
    },
    /// The bytes are not those that were named.
    #[error(
        "{name} was sent with the digest {found} where {expected} was asked for; its server or a proxy has damaged it"
    )]
    Digest {
        /// What was asked for.
        name: String,
        /// The digest that it has to have.
        expected: String,
        /// The digest that it has.
        found: String,
    },
    /// No library was named, and there is none by default.
    #[error(
        "there is no library to fetch {name} from: name its server (library://HOST/ENTITY/COLLECTION/CONTAINER:TAG, or \
         --library URL)"
    )]
    NoLibrary {
        /// What was asked for.
        name: String,
    },
    /// Singularity Hub does not answer for it any more.
    #[error(
        "{name} cannot be had: Singularity Hub is gone; SIPHON_SHUB_URL names a server that stands in for it, if you know one"
    )]
    NoHub {
        /// What was asked for.
        name: String,
    },
    /// The server took it not, and said why.
    #[error("{name} was not taken (status {status}): {reason}")]
    Rejected {
        /// What was sent.
        name: String,
        /// The HTTP status.
        status: u16,
        /// What the server says.
        reason: String,
    },
    /// What is to be sent cannot be read.
    #[error("cannot read what is sent as {name}")]
    Input {
        /// What was to be sent.
        name: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// There is no such object: status 404 or 410.
    #[error("{name} does not exist on its server (status {status}); check the URL or name")]
    NotFound {
        /// The redacted URL.
        name: String,
        /// The HTTP status.
        status: u16,
    },
    /// The object has no bytes.
    #[error("{name} is empty; check that the upload of the image was complete")]
    Empty {
        /// The redacted URL.
        name: String,
    },
    /// Any other status, after the attempts that it deserves.
    #[error("{name} was answered with status {status} ({attempts} attempts); retry later or ask who runs the server")]
    Status {
        /// The redacted URL.
        name: String,
        /// The HTTP status.
        status: u16,
        /// Requests made, the first one included.
        attempts: u32,
    },
    /// The answer contradicts the request or itself.
    #[error("the server of {name} sent an answer that cannot be trusted: {detail}; a proxy may be rewriting it")]
    Protocol {
        /// The redacted URL.
        name: String,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// No connection, or one that broke, or a body that ended early, as often as we tried.
    #[error("cannot read {name} after {attempts} attempts; check the network and that the server is up")]
    Unreachable {
        /// The redacted URL.
        name: String,
        /// Requests made, the first one included.
        attempts: u32,
        /// What the last attempt met.
        #[source]
        cause: TransportError,
    },
    /// The network engine of this process did not start.
    #[error("cannot start the HTTP client of this process; check its thread limit and the system's CA certificates")]
    Engine(#[source] TransportError),
}

/// What one attempt met below HTTP.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The HTTP client's own error, without its URL.
    #[error(transparent)]
    Http(reqwest::Error),
    /// The body ended before the range did.
    #[error("the body ended early")]
    Short,
    /// No byte came for this long, or all of them came too slowly.
    #[error("the server sent too little within {0:?}")]
    Stalled(Duration),
    /// Threads or event descriptors are not to be had.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl SourceError {
    /// Whether the server did not say anything about the object.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Status { .. })
    }
}

impl From<reqwest::Error> for TransportError {
    fn from(error: reqwest::Error) -> Self {
        // The client's error quotes the URL with its query, which may be a signature.
        Self::Http(error.without_url())
    }
}
