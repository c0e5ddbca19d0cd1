//! One URL: how it is asked, how often, and where it was last redirected to.
//!
//! A redirect to another place, such as from a registry to a signed URL of an object store, is followed once and then
//! gone to directly until it expires or is refused. What lets requests through ([`Access`]) goes to the URL's own place
//! and nowhere else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header};
use tokio::time::timeout;

use super::access::{Access, same_place};
use super::answer;
use super::engine::{Engine, engine};
use super::error::{SourceError, TransportError};
use super::patience::{Patience, Tries};

/// How long a redirect is good for whose URL does not say so.
const REDIRECT_TIME: Duration = Duration::from_secs(60);
/// None is kept for longer, whatever it says.
const MAX_REDIRECT_TIME: Duration = Duration::from_secs(3600);

/// Where an object is, and what was asked of it.
pub(super) struct Origin {
    pub(super) url: Url,
    /// Fit for logs.
    pub(super) name: String,
    pub(super) patience: Patience,
    access: Access,
    redirect: Mutex<Option<Redirect>>,
    pub(super) requests: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Bytes that were asked for a second time while the first answer was late.
    pub(super) doubled_bytes: AtomicU64,
}

struct Redirect {
    url: Url,
    until: Instant,
}

/// Why one attempt gave less than was asked.
pub(super) enum Failure {
    /// Another attempt would meet the same.
    Lasting(SourceError),
    /// Another attempt may succeed, after the pause the server asked for.
    Passing { error: Passing, pause: Option<Duration> },
}

pub(super) enum Passing {
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

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Lasting(error)
    }
}

impl Origin {
    /// The object at a URL that a user wrote, which may carry credentials.
    pub(super) fn new(url: &str, patience: Patience) -> Result<Self, SourceError> {
        let url = Url::parse(url).map_err(|error| SourceError::Url { reason: error.to_string() })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SourceError::Url { reason: format!("scheme {} is not http or https", url.scheme()) });
        }
        let name = redacted(&url);
        Ok(Self::at(url, name, Access::Open, patience))
    }

    /// The object at `url`, which messages call `name`.
    pub(super) fn at(url: Url, name: String, access: Access, patience: Patience) -> Self {
        let counter = || AtomicU64::new(0);
        let redirect = Mutex::new(None);
        let (requests, retries, bytes, doubled_bytes) = (counter(), counter(), counter(), counter());
        Self { url, name, patience, access, redirect, requests, retries, bytes, doubled_bytes }
    }

    /// Sends a request that `shape` finishes, and waits for the head of the answer. What the access asks for is done
    /// on the way.
    pub(super) async fn send(
        &self,
        engine: &Engine,
        method: Method,
        shape: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Failure> {
        let mut was_refused = false;
        loop {
            let target =
                self.redirect.lock().as_ref().filter(|found| found.until > Instant::now()).map(|it| it.url.clone());
            let is_direct = target.is_none();
            let url = target.unwrap_or_else(|| self.url.clone());
            self.requests.fetch_add(1, Ordering::Relaxed);
            let client = engine.client(&url);
            let mut request = shape(client.request(method.clone(), url));
            let mut sent_with = None;
            if is_direct && let Some(value) = self.access.header(engine, self).await? {
                request = request.header(header::AUTHORIZATION, value.clone());
                sent_with = Some(value);
            }
            let response = self.head(request).await?;
            let status = response.status();
            if !is_direct && is_refusal(status) {
                *self.redirect.lock() = None;
                continue;
            }
            let is_own = same_place(response.url(), &self.url);
            if status == StatusCode::UNAUTHORIZED && is_own && !was_refused {
                was_refused = true;
                if self.access.learn(response.headers(), sent_with.as_ref()) {
                    continue;
                }
            }
            if answer::is_passing(status) {
                let pause = answer::retry_after(response.headers());
                return Err(Failure::Passing { error: Passing::Status(status), pause });
            }
            if is_direct && !is_own && method == Method::GET && status.is_success() {
                let until = Instant::now() + life(response.url());
                *self.redirect.lock() = Some(Redirect { url: response.url().clone(), until });
            }
            return Ok(response);
        }
    }

    /// Sends a finished request and waits for the head of the answer.
    pub(super) async fn head(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let sent = timeout(self.patience.stall, request.send()).await;
        sent.map_err(|_| self.stalled())?.map_err(|error| self.not_sent(error))
    }

    pub(super) async fn next_bytes(
        &self,
        response: &mut Response,
    ) -> Result<Option<impl std::ops::Deref<Target = [u8]> + use<>>, Failure> {
        let bytes = timeout(self.patience.stall, response.chunk()).await.map_err(|_| self.stalled())?;
        let bytes = bytes.map_err(TransportError::from)?;
        self.bytes.fetch_add(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64), Ordering::Relaxed);
        Ok(bytes)
    }

    /// All of a body of at most `most` bytes.
    pub(super) async fn body(&self, response: &mut Response, most: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(bytes) = self.next_bytes(response).await? {
            if body.len() + bytes.len() > most {
                return Err(self.untrusted("it is longer than such an answer may be").into());
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    /// All of what is there, of at most `most_bytes`, in at most `attempts`.
    pub(super) fn get(&self, attempts: u32, most_bytes: usize) -> Result<Vec<u8>, SourceError> {
        let engine = engine()?;
        let asked = self.persist(attempts, async || {
            let mut response = self.send(engine, Method::GET, |request| request).await?;
            match response.status() {
                StatusCode::OK => {}
                status => return Err(Failure::Lasting(self.refused(status))),
            }
            self.body(&mut response, most_bytes).await
        });
        engine.runtime.block_on(asked)
    }

    /// Makes attempts until one succeeds, at most `most`.
    pub(super) async fn persist<T>(
        &self,
        most: u32,
        mut attempt: impl AsyncFnMut() -> Result<T, Failure>,
    ) -> Result<T, SourceError> {
        let mut tries = Tries::new(self.patience, most);
        loop {
            match self.within_attempt(attempt()).await {
                Ok(done) => return Ok(done),
                Err(failure) => self.pause_or_fail(&mut tries, failure).await?,
            }
        }
    }

    pub(super) async fn within_attempt<T>(
        &self,
        attempt: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let late = |_| Err(TransportError::Stalled(self.patience.attempt).into());
        timeout(self.patience.attempt, attempt).await.unwrap_or_else(late)
    }

    /// Sleeps before the next attempt, or returns the error if there is to be none.
    pub(super) async fn pause_or_fail(&self, tries: &mut Tries, failure: Failure) -> Result<(), SourceError> {
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

    pub(super) fn refused(&self, status: StatusCode) -> SourceError {
        let (name, code) = (self.name.clone(), status.as_u16());
        match (status, self.access.place()) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(registry)) => {
                SourceError::Login { name, registry: registry.to_owned(), status: code }
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, None) => SourceError::Denied { name, status: code },
            (StatusCode::NOT_FOUND | StatusCode::GONE, _) => SourceError::NotFound { name, status: code },
            _ => SourceError::Status { name, status: code, attempts: 1 },
        }
    }

    pub(super) fn untrusted(&self, detail: &'static str) -> SourceError {
        SourceError::Protocol { name: self.name.clone(), detail }
    }
}

/// Whether an object store's answer means that a signed URL is no longer good, rather than something about the object.
fn is_refusal(status: StatusCode) -> bool {
    let about_object = [StatusCode::PRECONDITION_FAILED, StatusCode::RANGE_NOT_SATISFIABLE];
    status.is_client_error() && !about_object.contains(&status) && !answer::is_passing(status)
}

/// How long a redirect to `url` may be gone to directly: nine tenths of what a signed URL says.
fn life(url: &Url) -> Duration {
    let named = |wanted: &str| {
        let mut pairs = url.query_pairs();
        pairs.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).and_then(|(_, value)| value.parse::<u64>().ok())
    };
    let seconds = named("X-Amz-Expires").or_else(|| named("X-Goog-Expires")).or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        named("Expires").map(|end| end.saturating_sub(now))
    });
    let life = seconds.map_or(REDIRECT_TIME, |seconds| Duration::from_secs(seconds.min(1 << 20)) * 9 / 10);
    life.min(MAX_REDIRECT_TIME)
}

/// `url` without what may be secret.
pub(super) fn redacted(url: &Url) -> String {
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

    #[test]
    fn a_signed_url_says_how_long_it_is_good_for() {
        let life = |query: &str| life(&Url::parse(&format!("https://store/x?{query}")).unwrap()).as_secs();

        assert_eq!(life("X-Amz-Date=20260101T000000Z&X-Amz-Expires=1200&X-Amz-Signature=x"), 1080);
        assert_eq!(life("Expires=17"), 0);
        assert_eq!(life("x-goog-expires=999999999"), MAX_REDIRECT_TIME.as_secs());
        assert_eq!(life("token=x"), REDIRECT_TIME.as_secs());
    }
}
