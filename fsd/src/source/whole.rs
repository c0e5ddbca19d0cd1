//! All of an object in one answer, for servers that do not serve ranges, and for objects that are not worth more requests.
//!
//! Where the connection breaks, the rest is asked for; a server that sends everything again has what came already skipped.

use std::io::{self, Read};

use reqwest::{Method, Response, StatusCode, header};

use super::answer::{self, Validator};
use super::engine::{Engine, engine};
use super::origin::{Failure, Origin};
use super::patience::Tries;
use super::{Patience, SourceError, TransportError};

/// The bytes of an object, from the first on.
pub struct Whole {
    origin: Origin,
    engine: &'static Engine,
    len_bytes: Option<u64>,
    validator: Validator,
    position: u64,
    /// Bytes to leave out of the answer, which came before.
    skip: u64,
    response: Option<Response>,
    /// What came and was not read yet.
    pending: Vec<u8>,
    pending_start: usize,
    tries: Tries,
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Whole")
            .field("name", &self.origin.name)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Whole {
    /// Opens the object at `url`.
    ///
    /// # Errors
    /// If the URL is unusable, or the server cannot be reached or does not have it.
    pub fn open(url: &str) -> Result<Self, SourceError> {
        Self::open_at(Origin::new(url, Patience::default())?, None)
    }

    /// Opens an object, of `len_bytes` if that is known.
    pub(super) fn open_at(origin: Origin, len_bytes: Option<u64>) -> Result<Self, SourceError> {
        let engine = engine()?;
        let sent = origin.persist(origin.patience.open_attempts, async || {
            let response = origin.send(engine, Method::GET, |request| request).await?;
            match response.status() {
                StatusCode::OK => Ok(response),
                status => Err(Failure::Lasting(origin.refused(status))),
            }
        });
        let response = engine.runtime.block_on(sent)?;
        let told = response.content_length();
        if len_bytes.is_some() && told.is_some() && told != len_bytes {
            return Err(origin.untrusted("its length is not the one that was named"));
        }
        let validator = Validator::from_headers(response.headers());
        let tries = Tries::new(origin.patience, origin.patience.attempts);
        Ok(Self {
            origin,
            engine,
            len_bytes: len_bytes.or(told),
            validator,
            position: 0,
            skip: 0,
            response: Some(response),
            pending: Vec::new(),
            pending_start: 0,
            tries,
        })
    }

    /// The length in bytes, if the server said it.
    pub fn len_bytes(&self) -> Option<u64> {
        self.len_bytes
    }

    /// Fit for logs.
    pub fn name(&self) -> &str {
        &self.origin.name
    }

    /// What tells this version from others, in words.
    pub fn validator(&self) -> String {
        self.validator.to_string()
    }

    /// Waits for more bytes; `false` at the end.
    async fn fill(&mut self) -> Result<bool, SourceError> {
        loop {
            match self.fill_once().await {
                Ok(more) => return Ok(more),
                Err(failure) => {
                    self.response = None;
                    self.origin.pause_or_fail(&mut self.tries, failure).await?;
                }
            }
        }
    }

    async fn fill_once(&mut self) -> Result<bool, Failure> {
        if self.response.is_none() {
            self.response = Some(self.reopen().await?);
        }
        let Some(response) = &mut self.response else { return Ok(false) };
        loop {
            let Some(bytes) = self.origin.next_bytes(response).await? else {
                return match self.len_bytes {
                    Some(len) if self.position < len => Err(TransportError::Short.into()),
                    _ => Ok(false),
                };
            };
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
            self.skip -= skipped as u64;
            if skipped == bytes.len() {
                continue;
            }
            self.pending.clear();
            self.pending.extend_from_slice(&bytes[skipped..]);
            self.pending_start = 0;
            self.position += self.pending.len() as u64;
            if self.len_bytes.is_some_and(|len| self.position > len) {
                return Err(self.origin.untrusted("the body is longer than was said").into());
            }
            // What counts is how often in a row nothing comes.
            self.tries = Tries::new(self.origin.patience, self.origin.patience.attempts);
            return Ok(true);
        }
    }

    /// Asks for the rest.
    async fn reopen(&mut self) -> Result<Response, Failure> {
        let (position, validator) = (self.position, self.validator.clone());
        let shape = |request: reqwest::RequestBuilder| match position {
            0 => request,
            _ => validator.condition(request.header(header::RANGE, format!("bytes={position}-"))),
        };
        let response = self.origin.send(self.engine, Method::GET, shape).await?;
        let changed = |detail| Failure::Lasting(SourceError::Changed { name: self.origin.name.clone(), detail });
        let status = response.status();
        let is_part = status == StatusCode::PARTIAL_CONTENT && position > 0;
        if status != StatusCode::OK && !is_part {
            return Err(match status {
                StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => {
                    changed("it is another version now")
                }
                status => self.origin.refused(status).into(),
            });
        }
        if !self.validator.matches(response.headers()) {
            return Err(changed("its ETag or Last-Modified differs"));
        }
        if is_part {
            let part = answer::part(&response).filter(|part| part.start == position);
            let part = part.ok_or_else(|| self.origin.untrusted("the range is not the one asked for"))?;
            if self.len_bytes.is_some_and(|len| len != part.total) {
                return Err(changed("its length differs"));
            }
        }
        self.skip = if is_part { 0 } else { position };
        Ok(response)
    }
}

impl Read for Whole {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.pending_start == self.pending.len() {
            let engine = self.engine;
            if !engine.runtime.block_on(self.fill()).map_err(io::Error::other)? {
                return Ok(0);
            }
        }
        let pending = &self.pending[self.pending_start..];
        let len = pending.len().min(buf.len());
        buf[..len].copy_from_slice(&pending[..len]);
        self.pending_start += len;
        Ok(len)
    }
}
