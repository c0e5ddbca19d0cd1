//! The one runtime and the one HTTP client of the process, started by the first request.
//!
//! They are lazy because `unshare` and `setns` of a user namespace want a process that has no thread yet: a process
//! that has opened no remote object has none from here.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, ClientBuilder, Url, header};
use tokio::runtime::{Builder, Runtime};

use super::error::{SourceError, TransportError};

/// Enough for TLS of several streams: the readers block on their own threads, these only move bytes.
const WORKER_THREADS: usize = 2;
/// TCP and TLS set-up, each address tried; above any healthy link, below a user's patience.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Registries and object stores need one or two.
const MAX_REDIRECTS: usize = 8;

/// Drives requests.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) runtime: &'static Runtime,
    client: Client,
    /// For this machine itself, which no proxy reaches.
    local_client: Client,
    /// The same, with connections of its own.
    second: OnceLock<Box<Self>>,
}

impl Engine {
    /// The client that is to ask `url`.
    pub(super) fn client(&self, url: &Url) -> &Client {
        if url.host_str().is_some_and(is_local) { &self.local_client } else { &self.client }
    }

    /// An engine over the same threads that shares no connection with this one, as all requests to a server of HTTP/2 would.
    pub(super) fn second(&self) -> Result<&Self, TransportError> {
        if let Some(second) = self.second.get() {
            return Ok(second);
        }
        let second = Box::new(over(self.runtime)?);
        Ok(self.second.get_or_init(|| second))
    }

    /// The client that asks without a proxy.
    pub(super) fn plain_client(&self) -> &Client {
        &self.local_client
    }

    /// A client that asks who listens on the socket at `path`, whatever host it is told.
    pub(super) fn on_socket(&self, path: &Path) -> Result<Client, SourceError> {
        let built = client().no_proxy().unix_socket(path).build();
        built.map_err(|error| SourceError::Engine(error.into()))
    }
}

/// Whether a host, as a URL has it, is this machine by name or by a loopback address.
pub(super) fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The engine of this process, started if it is not yet.
pub(super) fn engine() -> Result<&'static Engine, SourceError> {
    static ENGINE: Mutex<Option<&'static Engine>> = Mutex::new(None);

    let mut engine = ENGINE.lock();
    if let Some(engine) = *engine {
        return Ok(engine);
    }
    let started: &'static Engine = Box::leak(Box::new(start().map_err(SourceError::Engine)?));
    Ok(engine.insert(started))
}

fn start() -> Result<Engine, TransportError> {
    // An error means that the process already has a provider, which then serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime =
        Builder::new_multi_thread().worker_threads(WORKER_THREADS).thread_name("siphon-net").enable_all().build()?;
    over(Box::leak(Box::new(runtime)))
}

fn over(runtime: &'static Runtime) -> Result<Engine, TransportError> {
    let (client, local_client) = (client().build()?, client().no_proxy().build()?);
    Ok(Engine { runtime, client, local_client, second: OnceLock::new() })
}

fn client() -> ClientBuilder {
    // Ranges are of the stored bytes, so no proxy may compress them on the way.
    let headers = [(header::ACCEPT_ENCODING, header::HeaderValue::from_static("identity"))].into_iter().collect();
    Client::builder()
        .user_agent(concat!("siphon/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .connect_timeout(CONNECT_TIME)
        // The referer would carry the query of a signed URL to the host redirected to.
        .referer(false)
        .redirect(Policy::custom(follow))
}

fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    let was_secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if was_secure && attempt.url().scheme() != "https" {
        return attempt.error("redirected from https to an insecure address");
    }
    attempt.follow()
}
