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

mod answer;
mod engine;
mod error;
mod patience;

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::{Response, StatusCode, Url, header};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use answer::{Part, Validator};
use engine::{Engine, engine};
use patience::Tries;

pub use error::{SourceError, TransportError};
pub use patience::Patience;

/// One version of one object on a server.
pub struct Remote {
    origin: Origin,
    engine: &'static Engine,
    len_bytes: u64,
    validator: Validator,
    first_bytes: Vec<u8>,
}

/// Where the object is, and what was asked of it.
struct Origin {
    url: Url,
    name: String,
    patience: Patience,
    requests: AtomicU64,
    retries: AtomicU64,
    bytes: AtomicU64,
}

impl std::fmt::Debug for Remote {
    // The URL itself may carry credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// What was asked of a server so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// HTTP requests, repeated ones included, redirects not.
    pub requests: u64,
    /// Those of them that repeated a failed one.
    pub retries: u64,
    /// Bytes of bodies that arrived and were kept.
    pub bytes: u64,
}

/// Why one attempt gave less than was asked.
enum Failure {
    /// Another attempt would meet the same.
    Lasting(SourceError),
    /// Another attempt may succeed, after the pause the server asked for.
    Passing { error: Passing, pause: Option<Duration> },
}

enum Passing {
    Transport(TransportError),
    Status(StatusCode),
}

impl Passing {
    fn into_error(self, name: String, attempts: u32) -> SourceError {
        match self {
            Self::Transport(cause) => SourceError::Unreachable { name, attempts, cause },
            Self::Status(status) => SourceError::Status { name, status: status.as_u16(), attempts },
        }
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        Self::Passing { error: Passing::Transport(error), pause: None }
    }
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
        let engine = engine()?;
        engine.runtime.block_on(origin.open(engine, u64::from(first_bytes.max(1))))
    }

    /// The same object, with other bounds on time and attempts from now on.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.origin.patience = patience;
        self
    }

    /// The length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The URL without credentials, query and fragment: fit for logs.
    pub fn name(&self) -> &str {
        &self.origin.name
    }

    /// What tells this version from others, in words.
    pub fn validator(&self) -> String {
        self.validator.to_string()
    }

    /// The bytes that opening brought.
    pub fn first_bytes(&self) -> &[u8] {
        &self.first_bytes
    }

    /// What this version of the object is known by: the hex SHA-256 of its URL (without credentials), its validator
    /// and its length. Where the server offers no validator, the first bytes stand in for it.
    pub fn identity(&self) -> String {
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
        hash.finalize().iter().fold(String::new(), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// What was asked of the server for this object since it was opened, opening included.
    pub fn traffic(&self) -> Traffic {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            requests: load(&self.origin.requests),
            retries: load(&self.origin.retries),
            bytes: load(&self.origin.bytes),
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
        self.fetch_with(offset, buf, &mut |_| {})
    }

    /// As [`Remote::fetch`], and hands what of `buf` is filled to `arrived` each time that more is, on this thread.
    ///
    /// # Errors
    /// As [`Remote::fetch`]; what was handed to `arrived` is right all the same.
    ///
    /// # Panics
    /// As [`Remote::fetch`].
    pub fn fetch_with(&self, offset: u64, buf: &mut [u8], arrived: &mut dyn FnMut(&[u8])) -> Result<(), SourceError> {
        let end = offset.checked_add(buf.len() as u64);
        assert!(end.is_some_and(|end| end <= self.len_bytes), "a range is asked for only within the object");
        self.engine.runtime.block_on(self.fetch_all(offset, buf, arrived))
    }

    async fn fetch_all(&self, offset: u64, buf: &mut [u8], arrived: &mut dyn FnMut(&[u8])) -> Result<(), SourceError> {
        let mut tries = Tries::new(self.origin.patience, self.origin.patience.attempts);
        let mut done = 0;
        while done < buf.len() {
            let attempt = self.attempt(offset, buf, &mut done, arrived);
            let outcome = self.origin.within_attempt(attempt).await;
            if let Err(failure) = outcome {
                self.origin.pause_or_fail(&mut tries, failure).await?;
            }
        }
        Ok(())
    }

    /// Asks once for what is missing of `buf` and moves `done` on by what came.
    async fn attempt(
        &self,
        offset: u64,
        buf: &mut [u8],
        done: &mut usize,
        arrived: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Failure> {
        let asked = Part { start: offset + *done as u64, end: offset + buf.len() as u64, total: self.len_bytes };
        let mut response = self.origin.send(self.engine, asked.start, asked.end, &self.validator).await?;
        self.check(&response, asked).map_err(Failure::Lasting)?;
        while *done < buf.len() {
            let Some(bytes) = self.origin.next_bytes(&mut response).await? else {
                return Err(TransportError::Short.into());
            };
            let Some(room) = buf[*done..].get_mut(..bytes.len()) else {
                return Err(Failure::Lasting(self.origin.untrusted("the body is longer than its range")));
            };
            room.copy_from_slice(&bytes);
            *done += bytes.len();
            arrived(&buf[..*done]);
        }
        Ok(())
    }

    /// Whether `response` carries the bytes `asked` for, of the version that was opened.
    fn check(&self, response: &Response, asked: Part) -> Result<(), SourceError> {
        let changed = |detail| Err(SourceError::Changed { name: self.origin.name.clone(), detail });
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
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

impl Origin {
    fn new(url: &str, patience: Patience) -> Result<Self, SourceError> {
        let url = Url::parse(url).map_err(|error| SourceError::Url { reason: error.to_string() })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SourceError::Url { reason: format!("scheme {} is not http or https", url.scheme()) });
        }
        let name = redacted(&url);
        let counter = || AtomicU64::new(0);
        Ok(Self { url, name, patience, requests: counter(), retries: counter(), bytes: counter() })
    }

    async fn open(self, engine: &'static Engine, most: u64) -> Result<Remote, SourceError> {
        let mut tries = Tries::new(self.patience, self.patience.open_attempts);
        let (total, validator, first_bytes) = loop {
            match self.within_attempt(self.open_once(engine, most)).await {
                Ok(opened) => break opened,
                Err(failure) => self.pause_or_fail(&mut tries, failure).await?,
            }
        };
        Ok(Remote { origin: self, engine, len_bytes: total, validator, first_bytes })
    }

    async fn open_once(&self, engine: &Engine, most: u64) -> Result<(u64, Validator, Vec<u8>), Failure> {
        let mut response = self.send(engine, 0, most, &Validator::Length).await?;
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
    async fn send(&self, engine: &Engine, start: u64, end: u64, version: &Validator) -> Result<Response, Failure> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        // The client takes the credentials out of the URL into a header, and drops that when redirected elsewhere.
        let request = engine.client.get(self.url.clone()).header(header::RANGE, format!("bytes={start}-{}", end - 1));
        let sent = timeout(self.patience.stall, version.condition(request).send()).await;
        let response = sent.map_err(|_| self.stalled())?.map_err(|error| self.not_sent(error))?;
        if answer::is_passing(response.status()) {
            let pause = answer::retry_after(response.headers());
            return Err(Failure::Passing { error: Passing::Status(response.status()), pause });
        }
        Ok(response)
    }

    async fn next_bytes(
        &self,
        response: &mut Response,
    ) -> Result<Option<impl std::ops::Deref<Target = [u8]>>, Failure> {
        let bytes = timeout(self.patience.stall, response.chunk()).await.map_err(|_| self.stalled())?;
        let bytes = bytes.map_err(TransportError::from)?;
        self.bytes.fetch_add(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64), Ordering::Relaxed);
        Ok(bytes)
    }

    async fn within_attempt<T>(&self, attempt: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let late = |_| Err(TransportError::Stalled(self.patience.attempt).into());
        timeout(self.patience.attempt, attempt).await.unwrap_or_else(late)
    }

    /// Sleeps before the next attempt, or returns the error if there is to be none.
    async fn pause_or_fail(&self, tries: &mut Tries, failure: Failure) -> Result<(), SourceError> {
        tries.made += 1;
        let (error, asked) = match failure {
            Failure::Lasting(error) => return Err(error),
            Failure::Passing { error, pause } => (error, pause),
        };
        let Some(pause) = tries.next_pause(asked) else {
            return Err(error.into_error(self.name.clone(), tries.made));
        };
        self.retries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn not_sent(&self, error: reqwest::Error) -> Failure {
        if error.is_builder() || error.is_redirect() {
            let (name, cause) = (self.name.clone(), error.into());
            return Failure::Lasting(SourceError::Unreachable { name, attempts: 1, cause });
        }
        TransportError::from(error).into()
    }

    fn stalled(&self) -> Failure {
        TransportError::Stalled(self.patience.stall).into()
    }

    fn refused(&self, status: StatusCode) -> SourceError {
        let (name, code) = (self.name.clone(), status.as_u16());
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => SourceError::Denied { name, status: code },
            StatusCode::NOT_FOUND | StatusCode::GONE => SourceError::NotFound { name, status: code },
            _ => SourceError::Status { name, status: code, attempts: 1 },
        }
    }

    fn untrusted(&self, detail: &'static str) -> SourceError {
        SourceError::Protocol { name: self.name.clone(), detail }
    }
}

/// `url` without what may be secret.
fn redacted(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_errors_carry_no_secret() {
        let origin = Origin::new("https://me:pass@host:8443/a/b.sif?sig=secret#frag", Patience::default()).unwrap();

        assert_eq!(origin.name, "https://host:8443/a/b.sif");
    }

    #[test]
    fn only_http_urls_are_taken() {
        for bad in ["ftp://host/x", "/some/file", "http://", "file:///x"] {
            assert!(matches!(Origin::new(bad, Patience::default()), Err(SourceError::Url { .. })), "{bad}");
        }
    }
}
