//! Singularity Hub, or what stands in for it: `GET api/container/USER/NAME:TAG` says where the file of an image is.
//!
//! The service itself ended in 2021. Whoever keeps an archive of it under the same interface names that.

use reqwest::Url;
use serde::Deserialize;

use super::access::Access;
use super::origin::Origin;
use super::setup::registries;
use super::{Patience, Remote, SourceError};

/// Where the service was.
const HUB: &str = "https://singularity-hub.org";
/// A description is some kilobytes.
const MAX_DESCRIPTION_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct Description {
    image: String,
}

/// Finds the image `name`: `USER/NAME[:TAG]`, within the bounds of `patience`.
///
/// # Errors
/// [`SourceError::NoHub`] if the service does not answer as it should, which it does no more unless another one is named; others
/// if it does not have the image.
pub fn hub_image(name: &str, first_bytes: u32, patience: Patience) -> Result<Remote, SourceError> {
    let named = registries().hub.clone();
    let base = named.as_deref().unwrap_or(HUB);
    let shown = format!("shub://{name}");
    let gone = |error| match named {
        None => SourceError::NoHub { name: shown.clone() },
        Some(_) => error,
    };
    let url = Url::parse(&format!("{}/api/container/{name}", base.trim_end_matches('/')));
    let url = url.map_err(|error| SourceError::Url { reason: error.to_string() })?;
    let origin = Origin::at(url, shown.clone(), Access::Open, patience);
    let described = describe(&origin).map_err(gone)?;
    Remote::open_with(&described.image, first_bytes, patience)
}

fn describe(origin: &Origin) -> Result<Description, SourceError> {
    let body = origin.get(1, MAX_DESCRIPTION_BYTES)?;
    serde_json::from_slice(&body).map_err(|_| origin.untrusted("its description names no file"))
}
