//! Image files in registries, libraries and on web servers.

use super::{Error, this_arch};
use crate::blob::FIRST_BYTES;
use crate::oras;
use crate::source::{Remote, hub_image, library_image};
use siphon_image::reference::Reference;
use std::sync::Arc;

/// The image file that `reference` names in a registry, in a library or on a web server, and the digest that its bytes have
/// to have where that is known: who reads only some of them cannot tell. `arch` is for machines of which, as Go names
/// them; this one's if `None`.
///
/// # Errors
/// If there is none, or it is of another kind.
pub fn elsewhere(reference: &Reference, arch: Option<&str>) -> Result<(Remote, Option<String>), Error> {
    let name = || reference.to_string();
    let failed = |source: oras::Error| Error::Elsewhere { name: name(), source };
    match reference {
        Reference::Oras(repository) => oras::image(repository).map_err(failed),
        Reference::Library(library) => {
            let arch = arch.unwrap_or_else(|| this_arch());
            let image = library_image(library, arch, FIRST_BYTES).map_err(|error| failed(error.into()))?;
            Ok((image.remote, image.digest))
        }
        Reference::Docker(_) => Err(Error::Unmade { name: name() }),
        Reference::Shub(image) => Ok((hub_image(image, FIRST_BYTES).map_err(|error| failed(error.into()))?, None)),
        Reference::Web(url) => {
            let remote = Remote::open(url, FIRST_BYTES).map_err(Arc::new);
            Ok((remote.map_err(|source| Error::Url { url: url.clone(), source: source.into() })?, None))
        }
    }
}
