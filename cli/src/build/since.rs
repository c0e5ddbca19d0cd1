//! What an image differs in from the OCI image that it goes back to: what a push need not send again.

use siphon_image::oci::base::{Base, Changed};
use siphon_image::oci::own::{Origin, Own};
use siphon_image::oci::select::ImageFacts;
use siphon_image::reference::Repository;
use siphon_image::squashfs::writer::Owners;
use siphon_image::tree::Tree;
use siphon_overlay::diff::paths;
use std::path::Path;

/// The base of an image that is made of the OCI image `facts` with the files `own`; `None` if that is not from a registry, or
/// cannot be written down.
pub(super) fn of_conversion(origin: &Origin, facts: &ImageFacts, own: &[Own]) -> Option<Base> {
    let repository = Repository::parse(&origin.from).ok().filter(|_| origin.bootstrap == "docker")?;
    let mut changed = Changed::default();
    let whole = changed.add(Path::new(".singularity.d"), true);
    let all = own.iter().all(|own| changed.add(Path::new(&own.path), false));
    (whole && all).then_some(())?;
    Some(Base {
        repository: format!("{}/{}", repository.registry(), repository.path()),
        manifest: facts.digest.clone(),
        layers: facts.layers.clone(),
        config: serde_json::from_slice(&facts.config_json).ok()?,
        changed,
    })
}

/// `base` of the image `old`, with what differs in `new`, whose owners are mapped by `owners`. `None` if that cannot be told:
/// then all of the image will be sent.
pub(super) fn carried_on(mut base: Base, old: &dyn Tree, new: &dyn Tree, owners: Owners) -> Option<Base> {
    match paths(old, new, owners, &mut base.changed) {
        Ok(true) => Some(base),
        Ok(false) => {
            tracing::info!("a name is not UTF-8: a push will send the whole image");
            None
        }
        Err(error) => {
            tracing::info!("cannot tell what changed, a push will send the whole image: {error}");
            None
        }
    }
}
