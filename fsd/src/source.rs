//! Byte ranges of a named object over http and https.
//!
//! An object is opened with one GET of its first bytes, which tells everything: length, whether ranges work, which
//! version this is. HEAD would tell the same, but registries and signed URLs refuse it. Every later request names that
//! version and every answer is compared with it, so that bytes of two versions never mix: an object that is replaced
//! on its server gives [`SourceError::Changed`] from then on.
//!
//! A version is told by a strong `ETag`, else by `Last-Modified`, and always by the length. A server that sends
//! neither is accepted, with the first bytes as the third witness at opening (the headers of SIF and squashfs carry
//! identifiers and times): a replacement of equal length under a running mount goes unnoticed there, and only there.
//!
//! Passing failures (connections, timeouts, 5xx, 429) are repeated within the bounds of [`Patience`]; bytes that came
//! are kept and the rest is asked for. Proxies are taken from the environment. Credentials in the URL go to that host
//! only, and neither they nor the query, which may hold a signature, are in any error or log line.
//!
//! This is the only module that knows of the async runtime and the HTTP client. Its functions block; do not call them
//! on a thread of an async runtime. Nothing here keeps bytes: see [`crate::cache`] for that.

mod access;
mod answer;
mod docker_daemon;
mod engine;
mod error;
mod hedge;
mod library;
mod origin;
mod patience;
mod registry;
mod setup;
mod shub;
mod upload;
mod whole;

use base16ct::lower::encode_string as hex;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::{Method, Response, StatusCode, header};
use sha2::{Digest, Sha256};
use siphon_image::digest::sha256;
use siphon_image::read_at::ReadAt;
use std::io;

use answer::{Part, Validator};
use engine::{Engine, engine};
use hedge::Hedges;
use origin::{Failure, Origin};
use patience::Tries;

pub use docker_daemon::{SavedImage, saved_image};
pub use error::{SourceError, TransportError};
pub use library::{LibraryImage, library_image};
pub use patience::Patience;
pub use registry::{INDEX_TYPE, MANIFEST_TYPE, Manifest, Served, log_in, referrers_tag};
pub use setup::{Mirror, Registries, Rule, configure, registries};
pub use shub::hub_image;
pub use upload::{Chunked, Uploaded};
pub use whole::Whole;

/// One version of one object on a server.
pub struct Remote {
    origin: Origin,
    engine: &'static Engine,
    len_bytes: u64,
    validator: Validator,
    /// What all of its bytes have to have, where that is known.
    digest: Option<String>,
    hedges: Hedges,
    first_bytes: Vec<u8>,
}

impl std::fmt::Debug for Remote {
    // The URL itself may carry credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// What was asked of a server so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// HTTP requests, repeated ones included, redirects not.
    pub requests: u64,
    /// Those of them that repeated a failed one.
    pub retries: u64,
    /// Bytes of bodies that arrived and were kept.
    pub bytes: u64,
    /// Bytes that were asked for a second time beside a request whose answer was late: at most so many more came over the
    /// network, of whichever answer was given up.
    pub doubled_bytes: u64,
}

impl Remote {
    /// Opens the object at `url` and keeps its first `first_bytes` bytes, or all of a shorter one.
    ///
    /// # Errors
    /// If the URL is unusable, the server does not serve ranges of it, or it cannot be reached.
    pub fn open(url: &str, first_bytes: u32) -> Result<Self, SourceError> {
        Self::open_with(url, first_bytes, Patience::default())
    }

    /// The same as [`Remote::open`] with other bounds on time and attempts, for this and all later requests.
    ///
    /// # Errors
    /// The same as [`Remote::open`].
    pub fn open_with(url: &str, first_bytes: u32, patience: Patience) -> Result<Self, SourceError> {
        let origin = Origin::new(url, patience)?;
        Self::open_at(origin, first_bytes)
    }

    fn open_at(origin: Origin, first_bytes: u32) -> Result<Self, SourceError> {
        let engine = engine()?;
        engine.runtime.block_on(origin.open(engine, u64::from(first_bytes.max(1))))
    }

    /// The same object, with other bounds on time and attempts from now on.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.origin.patience = patience;
        self
    }

    /// The object that is known by its digest and of `len_bytes`: nothing has to be asked to open it.
    fn known(origin: Origin, digest: &str, len_bytes: u64) -> Result<Self, SourceError> {
        let validator = Validator::Digest(digest.to_owned());
        let (digest, hedges) = (Some(digest.to_owned()), Hedges::new());
        Ok(Self { origin, engine: engine()?, len_bytes, validator, digest, hedges, first_bytes: Vec::new() })
    }

    /// The length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The URL without credentials, query and fragment: fit for logs.
    pub fn name(&self) -> &str {
        &self.origin.name
    }

    /// What tells this version from others, in words: the digest of its bytes where that is known.
    pub fn validator(&self) -> String {
        self.digest.clone().unwrap_or_else(|| self.validator.to_string())
    }

    /// The same object, of which another than its server has said which digest its bytes have.
    fn with_digest(self, digest: Option<String>) -> Self {
        Self { digest, ..self }
    }

    /// The bytes that opening brought.
    pub fn first_bytes(&self) -> &[u8] {
        &self.first_bytes
    }

    /// What this version of the object is known by: its digest, else the hex SHA-256 of its URL (without credentials), its validator
    /// and its length. Where the server offers no validator, the first bytes stand in for it.
    pub fn identity(&self) -> String {
        if let Some(digest) = &self.digest {
            // The same bytes are kept once, from whichever registry they come.
            let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
            return hex.map_or_else(|| sha256(digest.as_bytes()).split_off(7), str::to_owned);
        }
        let mut url = self.origin.url.clone();
        url.set_fragment(None);
        // Neither can fail: a URL with a host takes an empty user and no password.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let mut hash = Sha256::new();
        hash.update(format!("{url}\n{}\n{}\n", self.validator, self.len_bytes));
        if self.validator == Validator::Length {
            hash.update(&self.first_bytes);
        }
        hex(&hash.finalize())
    }

    /// What was asked of the server for this object since it was opened, opening included.
    pub fn traffic(&self) -> Traffic {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            requests: load(&self.origin.requests),
            retries: load(&self.origin.retries),
            bytes: load(&self.origin.bytes),
            doubled_bytes: load(&self.origin.doubled_bytes),
        }
    }

    /// Fills all of `buf` from `offset` bytes into the object. Blocks until the bytes are there.
    ///
    /// # Errors
    /// [`SourceError::Changed`] if the object was replaced; others if it cannot be had within the bounds of
    /// [`Patience`]. What `buf` then holds is not specified.
    ///
    /// # Panics
    /// If the range ends after the object, or on a thread of an async runtime.
    pub fn fetch(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        self.fetch_with(offset, buf, &mut |_| {}, &|| false)
    }

    /// Whether opening brought the first bytes.
    pub fn is_opened(&self) -> bool {
        !self.first_bytes.is_empty()
    }

    /// As [`Remote::fetch`], and hands what of `buf` is filled to `arrived` each time that more is, on this thread. If bytes are
    /// late, `is_waited_for` is asked whether they are worth a second request beside the first.
    ///
    /// # Errors
    /// As [`Remote::fetch`]; what was handed to `arrived` is right all the same.
    ///
    /// # Panics
    /// As [`Remote::fetch`].
    pub fn fetch_with(
        &self,
        offset: u64,
        buf: &mut [u8],
        arrived: &mut dyn FnMut(&[u8]),
        is_waited_for: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), SourceError> {
        let end = offset.checked_add(buf.len() as u64);
        assert!(end.is_some_and(|end| end <= self.len_bytes), "a range is asked for only within the object");
        self.engine.runtime.block_on(self.fetch_all(offset, buf, arrived, is_waited_for))
    }

    async fn fetch_all(
        &self,
        offset: u64,
        buf: &mut [u8],
        arrived: &mut dyn FnMut(&[u8]),
        is_waited_for: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), SourceError> {
        let mut tries = Tries::new(self.origin.patience, self.origin.patience.attempts);
        let mut done = 0;
        while done < buf.len() {
            let attempt = self.attempt(offset, buf, &mut done, arrived, is_waited_for);
            let outcome = self.origin.within_attempt(attempt).await;
            if let Err(failure) = outcome {
                self.origin.pause_or_fail(&mut tries, failure).await?;
            }
        }
        Ok(())
    }

    /// Asks for what is missing of `buf`, once or twice at a time, and moves `done` on by what came.
    async fn attempt(
        &self,
        offset: u64,
        buf: &mut [u8],
        done: &mut usize,
        arrived: &mut dyn FnMut(&[u8]),
        is_waited_for: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Failure> {
        let mut response = None;
        while *done < buf.len() {
            let asked = Part { start: offset + *done as u64, end: offset + buf.len() as u64, total: self.len_bytes };
            let second = async || {
                tracing::debug!(
                    name = self.origin.name,
                    start = asked.start,
                    "an answer is late; asking a second time"
                );
                let engine = self.engine.second()?;
                self.origin.doubled_bytes.fetch_add(asked.end - asked.start, Ordering::Relaxed);
                self.next(engine, None, asked).await
            };
            let is_new = response.is_none();
            let first = self.next(self.engine, response.take(), asked);
            let (answering, bytes) = self.hedges.first_of(is_new, first, is_waited_for, second).await?;
            let Some(room) = buf[*done..].get_mut(..bytes.len()) else {
                return Err(Failure::Lasting(self.origin.untrusted("the body is longer than its range")));
            };
            room.copy_from_slice(&bytes);
            response = Some(answering);
            *done += bytes.len();
            arrived(&buf[..*done]);
        }
        Ok(())
    }

    /// The next bytes of an answer, or the first ones of the answer to a new request for what is `asked`.
    async fn next(
        &self,
        engine: &Engine,
        response: Option<Response>,
        asked: Part,
    ) -> Result<(Response, impl std::ops::Deref<Target = [u8]> + use<>), Failure> {
        let mut response = match response {
            Some(response) => response,
            None => {
                let response = self.origin.range(engine, asked.start, asked.end, &self.validator).await?;
                self.check(&response, asked).map_err(Failure::Lasting)?;
                response
            }
        };
        let bytes = self.origin.next_bytes(&mut response).await?.ok_or(TransportError::Short)?;
        Ok((response, bytes))
    }

    /// Whether `response` carries the bytes `asked` for, of the version that was opened.
    fn check(&self, response: &Response, asked: Part) -> Result<(), SourceError> {
        let changed = |detail| Err(SourceError::Changed { name: self.origin.name.clone(), detail });
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK if matches!(self.validator, Validator::Digest(_)) => {
                return Err(SourceError::NoRanges { name: self.origin.name.clone() });
            }
            StatusCode::OK => return changed("the server answered with a whole object"),
            StatusCode::PRECONDITION_FAILED => return changed("the server no longer has the version in use"),
            StatusCode::RANGE_NOT_SATISFIABLE => return changed("it is shorter now"),
            status => return Err(self.origin.refused(status)),
        }
        if !self.validator.matches(response.headers()) {
            return changed("its ETag or Last-Modified differs");
        }
        match answer::part(response) {
            Some(part) if part == asked => Ok(()),
            Some(part) if part.total != asked.total => changed("its length differs"),
            _ => Err(self.origin.untrusted("the range is not the one asked for")),
        }
    }
}

impl ReadAt for Remote {
    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len_bytes);
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.fetch(offset, buf).map_err(io::Error::other)
    }
}

impl Origin {
    async fn open(self, engine: &'static Engine, most: u64) -> Result<Remote, SourceError> {
        let opened = self.persist(self.patience.open_attempts, async || self.open_once(engine, most).await).await;
        let (total, validator, first_bytes) = opened?;
        let (digest, hedges) = (None, Hedges::new());
        Ok(Remote { origin: self, engine, len_bytes: total, validator, digest, hedges, first_bytes })
    }

    async fn open_once(&self, engine: &Engine, most: u64) -> Result<(u64, Validator, Vec<u8>), Failure> {
        let mut response = self.range(engine, 0, most, &Validator::Length).await?;
        let part = self.check_opened(&response, most).map_err(Failure::Lasting)?;
        let validator = Validator::from_headers(response.headers());
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < part.end {
            let Some(more) = self.next_bytes(&mut response).await? else {
                return Err(TransportError::Short.into());
            };
            if (bytes.len() + more.len()) as u64 > part.end {
                return Err(Failure::Lasting(self.untrusted("the body is longer than its range")));
            }
            bytes.extend_from_slice(&more);
        }
        Ok((part.total, validator, bytes))
    }

    fn check_opened(&self, response: &Response, most: u64) -> Result<Part, SourceError> {
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            // The body, which is the whole image, is not read.
            StatusCode::OK => return Err(SourceError::NoRanges { name: self.name.clone() }),
            StatusCode::RANGE_NOT_SATISFIABLE if answer::says_empty(response.headers()) => {
                return Err(SourceError::Empty { name: self.name.clone() });
            }
            status => return Err(self.refused(status)),
        }
        let part = answer::part(response).ok_or_else(|| self.untrusted("it does not say which bytes it carries"))?;
        if part.start == 0 && part.end == most.min(part.total) {
            Ok(part)
        } else {
            Err(self.untrusted("the range is not the one asked for"))
        }
    }

    /// Asks for the bytes `start..end` and waits for the head of the answer.
    async fn range(&self, engine: &Engine, start: u64, end: u64, version: &Validator) -> Result<Response, Failure> {
        let range = format!("bytes={start}-{}", end - 1);
        let shape = |request: reqwest::RequestBuilder| version.condition(request.header(header::RANGE, &range));
        self.send(engine, Method::GET, shape).await
    }
}
