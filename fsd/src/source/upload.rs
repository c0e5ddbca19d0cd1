//! Blobs and manifests sent to a registry.
//!
//! A blob is sent in chunks, each of them again if its connection breaks, after asking the registry how far it is. So
//! neither its length nor its digest has to be known when it begins.

use std::io::Read;

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use siphon_image::digest::{Hash, sha256};

use super::engine::engine;
use super::error::SourceError;
use super::origin::{Failure, Origin};
use super::registry::{Served, rejected};

/// In memory once. Registries over object stores take no chunk below 5 MiB but the last; some take none above 20 MB.
const CHUNK_BYTES: usize = 16 << 20;

/// A blob that a registry took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// The digest of its bytes.
    pub digest: String,
    /// Their number.
    pub len_bytes: u64,
}

/// A blob on its way to a registry.
#[derive(Debug)]
pub struct Chunked<'a> {
    served: &'a Served,
    /// Where the next chunk goes.
    location: Url,
    name: String,
    sent_bytes: u64,
    hash: Hash,
}

impl Served {
    /// Whether the registry has the blob, so that it need not be sent.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn has_blob(&self, digest: &str) -> Result<bool, SourceError> {
        let origin = self.origin(&format!("blobs/{digest}"), &format!("{}@{digest}", self.name()))?;
        self.ask(
            &origin,
            Method::HEAD,
            |request| request,
            async |_, response| match response.status() {
                StatusCode::OK => Ok(true),
                // Some refuse to be asked so; then it is sent.
                status if status.is_client_error() && status != StatusCode::UNAUTHORIZED => Ok(false),
                status => Err(origin.refused(status).into()),
            },
        )
    }

    /// Has the registry take a blob over from another of its repositories; `false` if it does not.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn mount_blob(&self, digest: &str, from: &str) -> Result<bool, SourceError> {
        let path = format!("blobs/uploads/?mount={digest}&from={from}");
        let origin = self.origin_with(&path, &format!("{}@{digest}", self.name()), from)?;
        // What is not taken over begins an upload, which is left to the registry to forget.
        let empty = |request: RequestBuilder| request.header(header::CONTENT_LENGTH, "0");
        self.ask(&origin, Method::POST, empty, async |_, response| Ok(response.status() == StatusCode::CREATED))
    }

    /// Begins to send a blob.
    ///
    /// # Errors
    /// If the registry does not take one.
    pub fn begin_upload(&self, name: &str) -> Result<Chunked<'_>, SourceError> {
        let origin = self.origin("blobs/uploads/", name)?;
        let empty = |request: RequestBuilder| request.header(header::CONTENT_LENGTH, "0");
        let location = self.ask(&origin, Method::POST, empty, async |origin, response| match response.status() {
            StatusCode::ACCEPTED => Ok(location(origin, response.url(), response.headers())?),
            _ => Err(rejected(origin, response).await.into()),
        })?;
        Ok(Chunked { served: self, location, name: name.to_owned(), sent_bytes: 0, hash: Hash::sha256() })
    }

    /// Sends all that `reader` gives. `progress` is told how many bytes are there.
    ///
    /// # Errors
    /// If the registry does not take it, or the reader fails.
    pub fn upload(
        &self,
        name: &str,
        reader: &mut dyn Read,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Uploaded, SourceError> {
        let mut upload = self.begin_upload(name)?;
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        loop {
            chunk.clear();
            let failed = |source| SourceError::Input { name: name.to_owned(), source };
            reader.take(CHUNK_BYTES as u64).read_to_end(&mut chunk).map_err(failed)?;
            if chunk.is_empty() {
                return upload.finish();
            }
            upload.send(&chunk)?;
            progress(upload.sent_bytes);
        }
    }

    /// Sends a manifest, under a tag or its digest, and returns its digest.
    ///
    /// # Errors
    /// If the registry does not take it.
    pub fn put_manifest(&self, version: &str, media_type: &str, bytes: &[u8]) -> Result<String, SourceError> {
        let joint = if version.contains(':') { '@' } else { ':' };
        let origin = self.origin(&format!("manifests/{version}"), &format!("{}{joint}{version}", self.name()))?;
        let body = bytes.to_vec();
        let shape = |request: RequestBuilder| request.header(header::CONTENT_TYPE, media_type).body(body.clone());
        let digest = sha256(bytes);
        self.ask(&origin, Method::PUT, shape, async |origin, response| {
            if response.status() != StatusCode::CREATED {
                return Err(rejected(origin, response).await.into());
            }
            let told = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
            match told.filter(|told| told.starts_with("sha256:") && *told != digest) {
                Some(_) => Err(origin.untrusted("it took the manifest under another digest").into()),
                None => Ok(digest.clone()),
            }
        })
    }

    /// Sends one request until it is answered, and judges the answer.
    fn ask<T>(
        &self,
        origin: &Origin,
        method: Method,
        shape: impl Fn(RequestBuilder) -> RequestBuilder,
        judge: impl AsyncFn(&Origin, reqwest::Response) -> Result<T, Failure>,
    ) -> Result<T, SourceError> {
        let engine = engine()?;
        let asked = origin.persist(self.patience().attempts, async || {
            let response = origin.send(engine, method.clone(), &shape).await?;
            judge(origin, response).await
        });
        engine.runtime.block_on(asked)
    }
}

impl Chunked<'_> {
    /// Bytes that the registry has.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Sends more.
    ///
    /// # Errors
    /// If the registry does not take it.
    pub fn send(&mut self, chunk: &[u8]) -> Result<(), SourceError> {
        self.hash.update(chunk);
        let origin = self.served.origin_at(&self.location, self.location.as_str(), &self.name)?;
        let engine = engine()?;
        let end = self.sent_bytes + chunk.len() as u64;
        let sent = origin.persist(self.served.patience().attempts, async || {
            // How far an attempt came that ended without an answer is for the registry to say.
            let at = if origin.retries.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                self.taken(&origin).await?.unwrap_or(self.sent_bytes)
            } else {
                self.sent_bytes
            };
            let start = at.checked_sub(self.sent_bytes).and_then(|start| usize::try_from(start).ok());
            let Some(rest) = start.and_then(|start| chunk.get(start..)) else {
                return Err(origin.untrusted("it claims to have bytes that were not sent").into());
            };
            if rest.is_empty() {
                return Ok(origin.url.clone());
            }
            let body = rest.to_vec();
            let shape = |request: RequestBuilder| {
                request
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_RANGE, format!("{at}-{}", end - 1))
                    .body(body.clone())
            };
            let response = origin.send(engine, Method::PATCH, shape).await?;
            match response.status() {
                StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => {
                    Ok(location(&origin, response.url(), response.headers())?)
                }
                _ => Err(rejected(&origin, response).await.into()),
            }
        });
        self.location = engine.runtime.block_on(sent)?;
        self.sent_bytes = end;
        Ok(())
    }

    /// How many bytes the registry has of this blob, if it says so.
    async fn taken(&self, origin: &Origin) -> Result<Option<u64>, Failure> {
        let response = origin.send(engine()?, Method::GET, |request| request).await?;
        if !response.status().is_success() {
            return Ok(None);
        }
        let range = response.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
        let last = range.and_then(|range| range.trim_start_matches("bytes=").split_once('-'));
        // A registry that has nothing has to say 0-0 all the same, which may as well be one byte.
        let last = last.and_then(|(_, last)| last.parse::<u64>().ok()).filter(|last| *last > 0);
        Ok(last.and_then(|last| last.checked_add(1)))
    }

    /// Ends the blob and has the registry check it.
    ///
    /// # Errors
    /// If the registry does not take it.
    pub fn finish(self) -> Result<Uploaded, SourceError> {
        let digest = self.hash.clone().finish();
        let mut location = self.location.clone();
        location.query_pairs_mut().append_pair("digest", &digest);
        let origin = self.served.origin_at(&location, location.as_str(), &self.name)?;
        let empty = |request: RequestBuilder| request.header(header::CONTENT_LENGTH, "0");
        let len_bytes = self.sent_bytes;
        self.served.ask(&origin, Method::PUT, empty, async |origin, response| match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            _ => Err(rejected(origin, response).await.into()),
        })?;
        Ok(Uploaded { digest, len_bytes })
    }
}

/// Where an answer says that the upload goes on.
fn location(origin: &Origin, from: &Url, headers: &HeaderMap) -> Result<Url, SourceError> {
    let value: Option<&HeaderValue> = headers.get(HeaderName::from_static("location"));
    let place = value.and_then(|value| from.join(value.to_str().ok()?).ok());
    place.ok_or_else(|| origin.untrusted("it does not say where the upload goes on"))
}
