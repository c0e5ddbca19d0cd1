//! What lets requests through: nothing, the token of a library, or what a registry asks for.
//!
//! A registry answers 401 and says what it wants: a name and a password with each request, or a token that its token
//! server gives for a scope, for some minutes. Tokens are shared by all that is asked of a registry, and got anew before
//! they end, or when the registry says that they have. Credentials are looked up each time, so that a mount that lives
//! for days follows a new login.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::Deserialize;

use super::engine::Engine;
use super::error::SourceError;
use super::origin::{Failure, Origin};
use super::setup::registries;
use crate::credentials::{Credentials, Secret};

/// A token is at most some kilobytes, and comes with little else.
const MAX_TOKEN_BYTES: usize = 1 << 20;
/// What a token lives for that does not say so, by the protocol.
const DEFAULT_TOKEN_SECONDS: u64 = 60;
/// None is kept for longer.
const MAX_TOKEN_SECONDS: u64 = 24 * 3600;
/// Who asks, for token servers that want to know.
const CLIENT_ID: &str = "siphon";

/// What lets requests for an object through.
pub(super) enum Access {
    /// Nothing, or what its URL carries.
    Open,
    /// A token that does not change.
    Token(HeaderValue),
    /// A registry, asked for something of the scope.
    Registry { authority: Arc<Authority>, scope: String },
}

/// One registry, and what it gave us.
#[derive(Debug)]
pub(super) struct Authority {
    /// What credentials are looked up by.
    registry: String,
    base: Url,
    /// What it said it wants.
    challenge: Mutex<Option<Challenge>>,
    tokens: Mutex<HashMap<String, Token>>,
    /// Held while a token is got, so that readers that wait for the same one cause one request.
    getting: tokio::sync::Mutex<()>,
    /// Credentials to try in place of those that are kept.
    given: Option<Credentials>,
}

#[derive(Debug, Clone)]
struct Token {
    value: HeaderValue,
    until: Instant,
}

/// What a registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

#[derive(Deserialize)]
struct Granted {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Access {
    /// The name of the registry, for advice.
    pub(super) fn place(&self) -> Option<&str> {
        match self {
            Self::Registry { authority, .. } => Some(&authority.registry),
            Self::Open | Self::Token(_) => None,
        }
    }

    /// What to send along, as far as is known what is wanted. A token that is missing or about to end is got.
    pub(super) async fn header(&self, engine: &Engine, origin: &Origin) -> Result<Option<HeaderValue>, Failure> {
        match self {
            Self::Open => Ok(None),
            Self::Token(value) => Ok(Some(value.clone())),
            // An upload may be sent on to another host, which is none of this registry's.
            Self::Registry { authority, .. } if !same_place(&origin.url, &authority.base) => Ok(None),
            Self::Registry { authority, scope } => authority.header(engine, origin, scope).await,
        }
    }

    /// Takes in what an answer of 401 to a request that was sent with `used` asks for. Whether another request may do
    /// better.
    pub(super) fn learn(&self, headers: &HeaderMap, used: Option<&HeaderValue>) -> bool {
        let Self::Registry { authority, scope } = self else { return false };
        authority.learn(headers, scope, used)
    }
}

impl Authority {
    /// The registry whose interface is at `base`. `given` is tried in place of the credentials that are kept for it.
    pub(super) fn new(registry: &str, base: Url, given: Option<Credentials>) -> Self {
        let (challenge, tokens, getting) = (Mutex::default(), Mutex::default(), tokio::sync::Mutex::default());
        Self { registry: registry.to_owned(), base, challenge, tokens, getting, given }
    }

    fn credentials(&self) -> Result<Option<Credentials>, SourceError> {
        if self.given.is_some() {
            return Ok(self.given.clone());
        }
        Ok(registries().keyring.find(&self.registry)?)
    }

    fn learn(&self, headers: &HeaderMap, scope: &str, used: Option<&HeaderValue>) -> bool {
        let found =
            headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| challenge(value.to_str().ok()?));
        // A token is preferred to sending a password with each request.
        let Some(wanted) = found.max_by_key(|found| matches!(found, Challenge::Bearer { .. })) else { return false };
        let mut known = self.challenge.lock();
        let is_new = known.as_ref() != Some(&wanted);
        *known = Some(wanted.clone());
        drop(known);
        let Some(used) = used else { return true };
        let mut tokens = self.tokens.lock();
        if tokens.get(scope).is_some_and(|token| token.value == *used) {
            tokens.remove(scope);
        }
        // A password that was refused stays wrong; a token may just have ended.
        is_new || matches!(wanted, Challenge::Bearer { .. })
    }

    async fn header(&self, engine: &Engine, origin: &Origin, scope: &str) -> Result<Option<HeaderValue>, Failure> {
        let Some(wanted) = self.challenge.lock().clone() else { return Ok(None) };
        let Challenge::Bearer { realm, service } = wanted else {
            return Ok(match self.credentials()? {
                Some(Credentials::Password { username, password }) => Some(basic(&username, &password)),
                Some(Credentials::Identity(_)) | None => None,
            });
        };
        if let Some(token) = self.valid(scope) {
            return Ok(Some(token));
        }
        let _getting = self.getting.lock().await;
        if let Some(token) = self.valid(scope) {
            return Ok(Some(token));
        }
        let token = self.token(engine, origin, &realm, service.as_deref(), scope).await?;
        let value = token.value.clone();
        self.tokens.lock().insert(scope.to_owned(), token);
        Ok(Some(value))
    }

    fn valid(&self, scope: &str) -> Option<HeaderValue> {
        self.tokens.lock().get(scope).filter(|token| token.until > Instant::now()).map(|token| token.value.clone())
    }

    /// Gets a token of the server at `realm`.
    async fn token(
        &self,
        engine: &Engine,
        origin: &Origin,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<Token, Failure> {
        let realm = Url::parse(realm).map_err(|_| origin.untrusted("it names no usable token server"))?;
        let is_safe = realm.scheme() == "https" || (realm.scheme() == "http" && self.base.scheme() == "http");
        if !is_safe {
            return Err(origin
                .untrusted("its token server is not reached over https, as the registry itself is")
                .into());
        }
        let request = self.token_request(engine, realm, service, scope)?;
        let mut response = origin.head(request).await?;
        let status = response.status();
        if super::answer::is_passing(status) {
            let pause = super::answer::retry_after(response.headers());
            return Err(Failure::Passing { error: super::origin::Passing::Status(status), pause });
        }
        if !status.is_success() {
            // 400 is what some answer to a wrong password, too.
            let is_login = matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            return Err(origin.refused(if is_login { StatusCode::UNAUTHORIZED } else { status }).into());
        }
        let body = origin.body(&mut response, MAX_TOKEN_BYTES).await?;
        let unusable = || origin.untrusted("its token server sent no token");
        let granted: Granted = serde_json::from_slice(&body).map_err(|_| unusable())?;
        let filled = |token: &String| !token.is_empty();
        let token = granted.token.filter(filled).or(granted.access_token.filter(filled)).ok_or_else(unusable)?;
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| unusable())?;
        value.set_sensitive(true);
        let seconds = granted.expires_in.filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_TOKEN_SECONDS);
        // Nine tenths, so that none ends on its way.
        let until = Instant::now() + Duration::from_secs(seconds.min(MAX_TOKEN_SECONDS)) * 9 / 10;
        Ok(Token { value, until })
    }

    fn token_request(
        &self,
        engine: &Engine,
        mut realm: Url,
        service: Option<&str>,
        scope: &str,
    ) -> Result<RequestBuilder, SourceError> {
        let scopes = scope.split(' ').filter(|scope| !scope.is_empty());
        let credentials = self.credentials()?;
        let client = engine.client(&realm);
        if let Some(Credentials::Identity(token)) = credentials {
            let mut form = reqwest::Url::parse("x:/").expect("the constant is a URL");
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("client_id", CLIENT_ID)
                .append_pair("service", service.unwrap_or_default())
                .append_pair("scope", scope)
                .append_pair("refresh_token", token.reveal());
            let body = form.query().unwrap_or_default().to_owned();
            return Ok(client.post(realm).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(body));
        }
        {
            let mut pairs = realm.query_pairs_mut();
            if let Some(service) = service {
                pairs.append_pair("service", service);
            }
            for scope in scopes {
                pairs.append_pair("scope", scope);
            }
            if let Some(Credentials::Password { username, .. }) = &credentials {
                pairs.append_pair("account", username);
            }
        }
        let request = client.get(realm);
        Ok(match credentials {
            Some(Credentials::Password { username, password }) => {
                request.header(header::AUTHORIZATION, basic(&username, &password))
            }
            _ => request,
        })
    }
}

fn basic(username: &str, password: &Secret) -> HeaderValue {
    let encoded = STANDARD.encode(format!("{username}:{}", password.reveal()));
    let mut value = HeaderValue::try_from(format!("Basic {encoded}")).expect("base64 is fit for a header");
    value.set_sensitive(true);
    value
}

/// Whether two URLs are of one server.
pub(super) fn same_place(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// Reads one value of WWW-Authenticate; `None` for what we cannot do.
fn challenge(value: &str) -> Option<Challenge> {
    let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let parameters = parameters(rest);
    let named =
        |wanted: &str| parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, it)| it.clone());
    Some(Challenge::Bearer { realm: named("realm")?, service: named("service") })
}

/// `name="value",name=value`: quotes may hold commas, and a backslash takes the next character as it is.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        let name: String = std::iter::from_fn(|| rest.next_if(|next| *next != '=')).collect();
        if rest.next().is_none() {
            return found;
        }
        while rest.next_if(|next| next.is_whitespace()).is_some() {}
        let mut value = String::new();
        if rest.next_if_eq(&'"').is_some() {
            while let Some(next) = rest.next().filter(|next| *next != '"') {
                value.extend(if next == '\\' { rest.next() } else { Some(next) });
            }
            while rest.next_if(|next| *next != ',').is_some() {}
        } else {
            value.extend(std::iter::from_fn(|| rest.next_if(|next| *next != ',')));
        }
        found.push((name.trim().trim_start_matches(',').trim().to_owned(), value.trim().to_owned()));
        rest.next_if_eq(&',');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read_whatever_its_form() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        let cases = [
            (
                r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push""#,
                bearer("https://a/t", Some("s")),
            ),
            (r#"bearer scope="a,b=c", realm = "https://a/t\"""#, bearer("https://a/t\"", None)),
            ("Bearer realm=https://a,service=", bearer("https://a", Some(""))),
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            ("BASIC", Some(Challenge::Basic)),
            ("Bearer", None),
            ("Bearer scope", None),
            ("Negotiate", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(challenge(text), expected, "{text}");
        }
    }

    #[test]
    fn a_token_is_preferred_to_a_password_and_dropped_once_it_is_refused() {
        let authority = Authority::new("h", Url::parse("https://h/").unwrap(), None);
        let mut headers = HeaderMap::new();
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"https://t\""));
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
        let value = HeaderValue::from_static("Bearer old");

        assert!(authority.learn(&headers, "s", None));
        assert!(matches!(*authority.challenge.lock(), Some(Challenge::Bearer { .. })));
        let until = Instant::now() + Duration::from_secs(9);
        authority.tokens.lock().insert("s".to_owned(), Token { value: value.clone(), until });
        assert_eq!(authority.valid("s"), Some(value.clone()));
        assert!(authority.learn(&headers, "s", Some(&value)));
        assert_eq!(authority.valid("s"), None);
    }

    #[test]
    fn a_password_that_was_refused_is_not_sent_again() {
        let authority = Authority::new("h", Url::parse("https://h/").unwrap(), None);
        let headers = HeaderMap::from_iter([(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic"))]);

        assert!(authority.learn(&headers, "s", None));
        assert!(!authority.learn(&headers, "s", Some(&HeaderValue::from_static("Basic x"))));
    }
}
