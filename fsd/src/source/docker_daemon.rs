//! Images of a docker daemon on this machine, or of podman in its place: `GET images/NAME/get` of its interface gives what
//! `docker save` writes.

use std::io::{self, Read};
use std::path::Path;

use reqwest::{Client, Response, StatusCode, Url};

use super::engine::{Engine, engine};
use super::error::{SourceError, TransportError};
use super::setup::registries;

/// Where docker's daemon listens unless told otherwise.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// An archive of an image, from its first byte on.
pub struct SavedImage {
    engine: &'static Engine,
    response: Response,
    /// What came and was not read yet.
    pending: Vec<u8>,
    read: usize,
}

impl std::fmt::Debug for SavedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SavedImage").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

/// Has the docker daemon send the image `name`, which has a tag, or is an id.
///
/// # Errors
/// If there is no daemon, or it has no such image.
pub fn saved_image(name: &str) -> Result<SavedImage, SourceError> {
    let engine = engine()?;
    let host = registries().docker_host.clone().unwrap_or_else(|| DEFAULT_HOST.to_owned());
    let shown = format!("docker-daemon:{name}");
    let unusable = |reason: &str| SourceError::Url { reason: format!("{reason}, in the docker host {host:?}") };
    let (client, base) = match host.split_once("://") {
        Some(("unix", path)) => (engine.on_socket(Path::new(path))?, "http://docker".to_owned()),
        Some(("tcp" | "http", place)) => (Client::clone(engine.plain_client()), format!("http://{place}")),
        _ => return Err(unusable("only unix:// and tcp:// are understood")),
    };
    let url = format!("{}/images/{name}/get", base.trim_end_matches('/'));
    let url = Url::parse(&url).map_err(|error| unusable(&error.to_string()))?;
    let sent = engine.runtime.block_on(client.get(url).send());
    let failed = |error: reqwest::Error| SourceError::Unreachable {
        name: format!("{shown} ({host})"),
        attempts: 1,
        cause: TransportError::from(error),
    };
    let response = sent.map_err(failed)?;
    match response.status() {
        StatusCode::OK => Ok(SavedImage { engine, response, pending: Vec::new(), read: 0 }),
        StatusCode::NOT_FOUND => Err(SourceError::NotFound { name: shown, status: 404 }),
        status => Err(SourceError::Status { name: shown, status: status.as_u16(), attempts: 1 }),
    }
}

impl Read for SavedImage {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.read == self.pending.len() {
            match self.engine.runtime.block_on(self.response.chunk()).map_err(io::Error::other)? {
                Some(chunk) => (self.pending, self.read) = (chunk.into(), 0),
                None => return Ok(0),
            }
        }
        let read = (&self.pending[self.read..]).read(buf)?;
        self.read += read;
        Ok(read)
    }
}
