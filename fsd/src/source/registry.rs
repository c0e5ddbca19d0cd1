//! Registries, by the distribution specification: manifests, blobs as [`Remote`] or as a stream, and logins.
//!
//! Docker's names have hosts of their own; this machine's registries may speak plain http, others only where the user
//! says so. Mirrors are asked first, in their order, and the first that has an image serves all of it.

use std::sync::Arc;

use reqwest::{Method, Response, StatusCode, Url, header};
use siphon_image::digest::{Hash, sha256};
use siphon_image::oci::blobs::Blobs;
use siphon_image::oci::select::is_manifest;
use siphon_image::oci::{Descriptor, ImageIndex};
use siphon_image::reference::Repository;
use std::io::{self, Cursor, Read};

use super::access::{Access, Authority};
use super::engine::{engine, is_local};
use super::origin::{Failure, Origin};
use super::setup::{Registries, registries};
use super::{Patience, Remote, SourceError, Whole};
use crate::credentials::{Credentials, DOCKER_HUB};
use crate::stream::{InOrder, PART_BYTES};

/// What registries themselves take at most, by the specification's advice.
const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// A registry's own words are cut here.
const MAX_REASON_CHARS: usize = 300;
/// Where docker's registry really is.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// What manifests of images and of single files are.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// What lists of manifests are.
pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// What we can read, for a registry to choose from.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest, whose bytes have its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// As it was sent.
    pub bytes: Vec<u8>,
    /// What the registry says it is.
    pub media_type: String,
    /// The digest of the bytes.
    pub digest: String,
}

/// A repository where it is served: by its registry, or by a mirror of that.
#[derive(Debug, Clone)]
pub struct Served {
    host: Arc<Host>,
    /// Its path there.
    path: String,
    /// As the user names it, without tag and digest.
    name: String,
    scope: &'static str,
    patience: Patience,
}

/// A server that speaks the registry's protocol.
#[derive(Debug)]
struct Host {
    base: Url,
    authority: Arc<Authority>,
}

impl Host {
    fn at(registry: &str, scheme: &str, given: Option<Credentials>) -> Result<Self, SourceError> {
        let real = if matches!(registry, DOCKER_HUB | "index.docker.io") { DOCKER_HUB_HOST } else { registry };
        let base = Url::parse(&format!("{scheme}://{real}/v2/"));
        let base = base.map_err(|error| SourceError::Url { reason: error.to_string() })?;
        let authority = Arc::new(Authority::new(registry, base.clone(), given));
        Ok(Self { base, authority })
    }

    /// Finds out how `registry` is spoken to. Only one on this machine is asked for that.
    fn find(
        registry: &str,
        plain_http: bool,
        given: Option<&Credentials>,
        patience: Patience,
    ) -> Result<Self, SourceError> {
        let secure = Self::at(registry, "https", given.cloned())?;
        if plain_http {
            return Self::at(registry, "http", given.cloned());
        }
        if !secure.base.host_str().is_some_and(is_local) {
            return Ok(secure);
        }
        let once = Patience { open_attempts: 1, ..patience };
        match secure.ping(once) {
            // It is spoken to in the clear where it speaks no TLS, but not where it may be another than it says.
            Err(error) if is_of_certificate(&error) => Err(error),
            Err(SourceError::Unreachable { .. }) => Self::at(registry, "http", given.cloned()),
            _ => Ok(secure),
        }
    }

    fn origin(&self, path: &str, name: &str, scope: String, patience: Patience) -> Result<Origin, SourceError> {
        let url = self.base.join(path).map_err(|error| SourceError::Url { reason: error.to_string() })?;
        Ok(self.origin_at(url, name, scope, patience))
    }

    fn origin_at(&self, url: Url, name: &str, scope: String, patience: Patience) -> Origin {
        let access = Access::Registry { authority: self.authority.clone(), scope };
        Origin::at(url, name.to_owned(), access, patience)
    }

    /// Whether it lets us in, and speaks the protocol.
    fn ping(&self, patience: Patience) -> Result<(), SourceError> {
        let name = self.base.host_str().unwrap_or_default().to_owned();
        let origin = self.origin("", &name, String::new(), patience)?;
        let engine = engine()?;
        let asked = origin.persist(patience.open_attempts, async || {
            let response = origin.send(engine, Method::GET, |request| request).await?;
            match response.status() {
                status if status.is_success() => Ok(()),
                status => Err(origin.refused(status).into()),
            }
        });
        engine.runtime.block_on(asked)
    }
}

/// Asks `registry` whether it takes the credentials.
///
/// # Errors
/// [`SourceError::Login`] if it does not; others if it cannot be asked.
pub fn log_in(registry: &str, credentials: &Credentials) -> Result<(), SourceError> {
    let patience = Patience::default();
    let plain_http = registries().is_plain(registry);
    Host::find(registry, plain_http, Some(credentials), patience)?.ping(patience)
}

impl Registries {
    fn is_plain(&self, registry: &str) -> bool {
        self.plain_http || self.rules.iter().any(|rule| rule.prefix == registry && rule.plain_http)
    }

    /// Where `repository` may be fetched from, the best first: `HOST/PATH`, and whether over http.
    fn places(&self, repository: &Repository) -> Result<Vec<(String, bool)>, SourceError> {
        let whole = format!("{}/{}", repository.registry(), repository.path());
        let rest = |rule: &super::Rule| {
            let rest = whole.strip_prefix(&rule.prefix)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| rest.to_owned())
        };
        let Some((rule, rest)) = self.rules.iter().find_map(|rule| Some((rule, rest(rule)?))) else {
            return Ok(vec![(whole, self.plain_http)]);
        };
        if rule.is_blocked {
            return Err(SourceError::Blocked { name: whole });
        }
        let has_digest = repository.digest().is_some();
        let mirrors =
            rule.mirrors.iter().filter(|mirror| if has_digest { mirror.has_digests } else { mirror.has_tags });
        let mut places: Vec<_> = mirrors
            .map(|mirror| (format!("{}{rest}", mirror.location), self.plain_http || mirror.plain_http))
            .collect();
        places.push((format!("{}{rest}", rule.location), self.plain_http || rule.plain_http));
        Ok(places)
    }
}

impl Served {
    /// Finds `repository`, to fetch from it, with the manifest that its tag or digest names.
    ///
    /// # Errors
    /// If none of the places that may have it does.
    pub fn find(repository: &Repository) -> Result<(Self, Manifest), SourceError> {
        Self::find_with(repository, Patience::default())
    }

    /// The same as [`Served::find`] with other bounds on time and attempts, for this and all later requests.
    ///
    /// # Errors
    /// The same as [`Served::find`].
    pub fn find_with(repository: &Repository, patience: Patience) -> Result<(Self, Manifest), SourceError> {
        let places = registries().places(repository)?;
        let mut places = places.into_iter().peekable();
        loop {
            let (place, plain_http) = places.next().expect("the registry itself is the last place");
            let found = Self::at(&place, plain_http, repository, patience).and_then(|served| {
                let manifest = served.manifest(repository.version())?;
                Ok((served, manifest))
            });
            match found {
                Err(error) if places.peek().is_some() => tracing::info!(place, %error, "a mirror does not have it"),
                found => return found,
            }
        }
    }

    /// `repository`, to send something to it.
    ///
    /// # Errors
    /// If its registry cannot be reached.
    pub fn for_push(repository: &Repository) -> Result<Self, SourceError> {
        let plain_http = registries().is_plain(repository.registry());
        let place = format!("{}/{}", repository.registry(), repository.path());
        let served = Self::at(&place, plain_http, repository, Patience::default())?;
        Ok(Self { scope: "pull,push", ..served })
    }

    fn at(place: &str, plain_http: bool, repository: &Repository, patience: Patience) -> Result<Self, SourceError> {
        let (registry, path) = place.split_once('/').unwrap_or((place, ""));
        let host = Arc::new(Host::find(registry, plain_http, None, patience)?);
        let name = format!("{}/{}", repository.registry(), repository.path());
        Ok(Self { host, path: path.to_owned(), name, scope: "pull", patience })
    }

    /// As the user names it, without tag and digest.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    fn scope(&self) -> String {
        format!("repository:{}:{}", self.path, self.scope)
    }

    /// What is at `path` of this repository, called `name` in messages.
    pub(super) fn origin(&self, path: &str, name: &str) -> Result<Origin, SourceError> {
        self.host.origin(&format!("{}/{path}", self.path), name, self.scope(), self.patience)
    }

    /// The same, where it may also be fetched from another repository.
    pub(super) fn origin_with(&self, path: &str, name: &str, other: &str) -> Result<Origin, SourceError> {
        let scope = format!("{} repository:{other}:pull", self.scope());
        self.host.origin(&format!("{}/{path}", self.path), name, scope, self.patience)
    }

    /// What is at `location`, which an answer to a request for `from` named.
    pub(super) fn origin_at(&self, from: &Url, location: &str, name: &str) -> Result<Origin, SourceError> {
        let url = from.join(location).map_err(|error| SourceError::Url { reason: error.to_string() })?;
        if !matches!(url.scheme(), "http" | "https") || (from.scheme() == "https" && url.scheme() == "http") {
            return Err(SourceError::Url { reason: "the registry names an insecure place to send to".to_owned() });
        }
        Ok(self.host.origin_at(url, name, self.scope(), self.patience))
    }

    /// The same, with other bounds on time and attempts from now on.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The path in its registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The manifest that a tag or a digest names.
    ///
    /// # Errors
    /// If there is none, or its bytes do not have the digest.
    pub fn manifest(&self, version: &str) -> Result<Manifest, SourceError> {
        let joint = if version.contains(':') { '@' } else { ':' };
        let origin = self.origin(&format!("manifests/{version}"), &format!("{}{joint}{version}", self.name))?;
        let engine = engine()?;
        let asked = origin.persist(self.patience.open_attempts, async || {
            let accept = |request: reqwest::RequestBuilder| request.header(header::ACCEPT, MANIFEST_TYPES);
            let mut response = origin.send(engine, Method::GET, accept).await?;
            if !response.status().is_success() {
                return Err(Failure::Lasting(origin.refused(response.status())));
            }
            let text = |name| response.headers().get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
            let media_type = text(header::CONTENT_TYPE).unwrap_or_default();
            let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
            let claimed = text(header::HeaderName::from_static("docker-content-digest")).map(str::to_owned);
            let bytes = origin.body(&mut response, MAX_MANIFEST_BYTES).await?;
            Ok((bytes, media_type, claimed))
        });
        let (bytes, media_type, claimed) = engine.runtime.block_on(asked)?;
        let expected = Some(version.to_owned()).filter(|version| version.contains(':')).or(claimed);
        if let Some(expected) = expected {
            let mut hash = Hash::like(&expected).ok_or_else(|| origin.untrusted("its digest is of no known kind"))?;
            hash.update(&bytes);
            let found = hash.finish();
            if found != expected {
                return Err(SourceError::Digest { name: origin.name, expected, found });
            }
        }
        let digest = sha256(&bytes);
        Ok(Manifest { bytes, media_type, digest })
    }

    /// What refers to the manifest with `digest` and is of the kind `artifact_type`: by the registry's own list, or by the
    /// tag that stands for it where a registry has none.
    ///
    /// # Errors
    /// If the registry cannot be asked. That there is nothing is no error.
    pub fn referrers(&self, digest: &str, artifact_type: &str) -> Result<Vec<Descriptor>, SourceError> {
        let name = format!("{}@{digest}", self.name);
        let origin = self.origin(&format!("referrers/{digest}?artifactType={artifact_type}"), &name)?;
        let engine = engine()?;
        let asked = origin.persist(self.patience.open_attempts, async || {
            let accept = |request: reqwest::RequestBuilder| request.header(header::ACCEPT, INDEX_TYPE);
            let mut response = origin.send(engine, Method::GET, accept).await?;
            match response.status() {
                status if status.is_success() => Ok(Some(origin.body(&mut response, MAX_MANIFEST_BYTES).await?)),
                // It has no such list, whatever it says of that.
                status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => Ok(None),
                status => Err(origin.refused(status).into()),
            }
        });
        let listed = match engine.runtime.block_on(asked)? {
            Some(bytes) => Some(bytes),
            None => match self.manifest(&referrers_tag(digest)) {
                Ok(manifest) => Some(manifest.bytes),
                Err(SourceError::NotFound { .. }) => None,
                Err(error) => return Err(error),
            },
        };
        // One that is no list, as some proxies answer, has nothing in it.
        let listed = listed.and_then(|bytes| serde_json::from_slice::<ImageIndex>(&bytes).ok());
        let found = listed.iter().flat_map(|index| index.manifests());
        let is_wanted =
            |found: &&Descriptor| found.artifact_type().as_ref().is_some_and(|kind| kind.as_ref() == artifact_type);
        Ok(found.filter(is_wanted).cloned().collect())
    }

    /// Whether the registry keeps a list itself of what refers to the manifest with `digest`.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn lists_referrers(&self, digest: &str) -> Result<bool, SourceError> {
        let origin = self.origin(&format!("referrers/{digest}"), &format!("{}@{digest}", self.name))?;
        let engine = engine()?;
        let asked = origin.persist(self.patience.open_attempts, async || {
            let response = origin.send(engine, Method::GET, |request| request).await?;
            match response.status() {
                status if status.is_success() => Ok(true),
                status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => Ok(false),
                status => Err(origin.refused(status).into()),
            }
        });
        engine.runtime.block_on(asked)
    }

    /// A blob, read in ranges. Nothing is asked before it is read. `name` is what messages and the cache call it.
    ///
    /// # Errors
    /// If its digest is none.
    pub fn blob(&self, blob: &Descriptor, name: &str) -> Result<Remote, SourceError> {
        let digest = blob.digest().to_string();
        Remote::known(self.origin(&format!("blobs/{digest}"), name)?, &digest, blob.size())
    }

    /// The bytes of a blob from the first on: in parts, several at a time, if there are many and the registry serves
    /// parts; else in one answer, gone on with where that breaks.
    ///
    /// # Errors
    /// If the registry does not have it.
    pub fn stream(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, SourceError> {
        let name = format!("{}@{}", self.name, blob.digest());
        if blob.size() > PART_BYTES as u64 {
            let remote = self.blob(blob, &name)?;
            let mut first = vec![0; PART_BYTES];
            match remote.fetch(0, &mut first) {
                Ok(()) => return Ok(Box::new(InOrder::after(Arc::new(remote), first))),
                Err(SourceError::NoRanges { .. }) => {}
                Err(error) => return self.foreign(blob, &name, error),
            }
        }
        let origin = self.origin(&format!("blobs/{}", blob.digest()), &name)?;
        match Whole::open_at(origin, Some(blob.size())) {
            Ok(whole) => Ok(Box::new(whole)),
            Err(error) => self.foreign(blob, &name, error),
        }
    }

    /// A blob that its registry does not have, from where its descriptor says that it is: asked with no credentials.
    fn foreign(&self, blob: &Descriptor, name: &str, error: SourceError) -> Result<Box<dyn Read + Send>, SourceError> {
        let urls = blob.urls().as_deref().unwrap_or_default();
        if !matches!(error, SourceError::NotFound { .. }) {
            return Err(error);
        }
        for url in urls.iter().filter(|url| url.starts_with("https://")) {
            let Ok(url) = Url::parse(url) else { continue };
            let origin = Origin::at(url, name.to_owned(), Access::Open, self.patience);
            if let Ok(whole) = Whole::open_at(origin, Some(blob.size())) {
                return Ok(Box::new(whole));
            }
        }
        Err(error)
    }
}

impl Blobs for Served {
    fn open(&self, blob: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        if is_manifest(blob.media_type().as_ref()) {
            let manifest = self.manifest(blob.digest().as_ref()).map_err(io::Error::other)?;
            return Ok(Box::new(Cursor::new(manifest.bytes)));
        }
        self.stream(blob).map_err(io::Error::other)
    }
}

/// The tag under which what refers to the manifest with `digest` is listed where a registry keeps no list itself.
pub fn referrers_tag(digest: &str) -> String {
    digest.replace(':', "-")
}

/// What the server says of a refusal: the first of the errors that the specification has it send, made safe to print.
pub(super) async fn reason(origin: &Origin, response: &mut Response) -> String {
    let body = origin.body(response, 64 << 10).await.unwrap_or_default();
    let parsed: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let first = &parsed["errors"][0];
    let words = [&first["code"], &first["message"]].map(|word| word.as_str().unwrap_or_default());
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let text = if words.is_empty() { "it does not say why".to_owned() } else { words.join(": ") };
    text.chars().filter(|character| !character.is_control()).take(MAX_REASON_CHARS).collect()
}

/// The error of an answer that refuses what was sent.
pub(super) async fn rejected(origin: &Origin, mut response: Response) -> SourceError {
    let status = response.status();
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND | StatusCode::GONE) {
        return origin.refused(status);
    }
    let reason = reason(origin, &mut response).await;
    SourceError::Rejected { name: origin.name.clone(), status: status.as_u16(), reason }
}

/// Whether the server was reached, and what it showed was not believed.
fn is_of_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    // An error of input and output is silent on the one that it stands for, and names that one's source.
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => is_of_certificate(inner),
        None => error.source().is_some_and(is_of_certificate),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Mirror, Rule};
    use super::*;

    fn places(registries: &Registries, name: &str) -> Vec<(String, bool)> {
        registries.places(&Repository::parse(name).unwrap()).unwrap()
    }

    #[test]
    fn mirrors_come_before_the_registry_and_a_prefix_ends_with_a_word() {
        let mirror = |location: &str, has_tags| Mirror {
            location: location.to_owned(),
            plain_http: true,
            has_digests: true,
            has_tags,
        };
        let rule = Rule {
            prefix: "docker.io/library".to_owned(),
            location: "docker.io/library".to_owned(),
            mirrors: vec![mirror("m:5000/hub", true), mirror("digests", false)],
            ..Rule::default()
        };
        let registries = Registries { rules: vec![rule], ..Registries::default() };
        let digest = format!("sha256:{}", "0a".repeat(32));
        let own = ("docker.io/library/alpine".to_owned(), false);

        assert_eq!(places(&registries, "alpine:3"), [("m:5000/hub/alpine".to_owned(), true), own.clone()]);
        assert_eq!(places(&registries, &format!("alpine@{digest}")).len(), 3);
        assert_eq!(places(&registries, "docker.io/library2/x"), [("docker.io/library2/x".to_owned(), false)]);
    }

    #[test]
    fn a_blocked_registry_gives_nothing() {
        let rule = Rule { prefix: "bad".to_owned(), location: "bad".to_owned(), is_blocked: true, ..Rule::default() };
        let registries =
            Registries { rules: vec![Rule { prefix: "bad.org".to_owned(), ..rule }], ..Registries::default() };

        let found = registries.places(&Repository::parse("bad.org/x").unwrap());

        assert!(matches!(found, Err(SourceError::Blocked { .. })));
    }
}
