//! Container libraries: the interface behind `library://`.
//!
//! `GET v1/images/PATH:TAG?arch=` says what an image is, and `GET v1/imagefile/PATH:TAG?arch=` gives the file, most often
//! by way of an object store.

use reqwest::header::HeaderValue;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use siphon_image::digest::sha256_hex;
use siphon_image::reference::LibraryName;

use super::access::Access;
use super::origin::Origin;
use super::setup::registries;
use super::{Patience, Remote, SourceError};

/// A description is some kilobytes.
const MAX_DESCRIPTION_BYTES: usize = 1 << 20;

/// An image in a library.
#[derive(Debug)]
pub struct LibraryImage {
    /// The file.
    pub remote: Remote,
    /// The digest that its bytes have to have, `sha256:HEX`, where the library says it.
    pub digest: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    data: Option<Description>,
}

#[derive(Deserialize)]
struct Description {
    hash: Option<String>,
    size: Option<u64>,
    uploaded: Option<bool>,
}

/// Finds an image for machines of `arch`, as Go names them, within the bounds of `patience`.
///
/// # Errors
/// [`SourceError::NoLibrary`] if there is no library to ask; others if it does not have it.
pub fn library_image(
    image: &LibraryName,
    arch: &str,
    first_bytes: u32,
    patience: Patience,
) -> Result<LibraryImage, SourceError> {
    let setup = registries();
    let scheme = if setup.plain_http { "http" } else { "https" };
    let named = image.host.as_ref().map(|host| format!("{scheme}://{host}"));
    let base =
        named.or_else(|| setup.library.clone()).ok_or_else(|| SourceError::NoLibrary { name: image.to_string() })?;
    let name = format!("library://{image}");
    let at = |kind: &str| {
        let url = format!("{}/v1/{kind}/{}:{}", base.trim_end_matches('/'), image.path, image.tag);
        let mut url = Url::parse(&url).map_err(|error| SourceError::Url { reason: error.to_string() })?;
        url.query_pairs_mut().append_pair("arch", arch);
        // A token is for the library that the user logged in to, and for no other host.
        let is_ours = setup.library.as_deref().and_then(|library| Url::parse(library).ok());
        let is_ours = is_ours.is_some_and(|library| super::access::same_place(&library, &url));
        let token = setup.library_token.as_ref().filter(|_| is_ours);
        let access = match token.map(|token| HeaderValue::try_from(format!("Bearer {}", token.reveal()))) {
            Some(Ok(mut value)) => {
                value.set_sensitive(true);
                Access::Token(value)
            }
            _ => Access::Open,
        };
        Ok::<_, SourceError>(Origin::at(url, name.clone(), access, patience))
    };
    let described = describe(&at("images")?)?;
    let remote = Remote::open_at(at("imagefile")?, first_bytes)?;
    let digest = described.hash.as_deref().and_then(|hash| hash.strip_prefix("sha256."));
    let digest = digest.map(|hex| format!("sha256:{hex}"));
    if digest.as_deref().is_some_and(|digest| sha256_hex(digest).is_none()) {
        return Err(SourceError::Protocol { name, detail: "the hash that the library names is no SHA-256" });
    }
    if described.size.is_some_and(|size| size != remote.len_bytes()) {
        return Err(SourceError::Protocol { name, detail: "the file's length is not the one that the library names" });
    }
    Ok(LibraryImage { remote: remote.with_digest(digest.clone()), digest })
}

fn describe(origin: &Origin) -> Result<Description, SourceError> {
    let body = origin.get(origin.patience.open_attempts, MAX_DESCRIPTION_BYTES)?;
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|_| origin.untrusted("its description is not what a library sends"))?;
    let missing = || SourceError::NotFound { name: origin.name.clone(), status: StatusCode::NOT_FOUND.as_u16() };
    answer.data.filter(|data| data.uploaded != Some(false)).ok_or_else(missing)
}
