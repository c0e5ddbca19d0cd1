//! Changes as the paths that a layer of an OCI image has to have.

use super::{Changes, Error};
use siphon_image::oci::base::Changed;
use siphon_image::squashfs::writer::Owners;
use siphon_image::tree::{Attr, Kind, Tree};

/// Adds to `changed` where `new`, whose owners are mapped by `owners`, differs from `old`. `false` if a name cannot be written
/// down: then what is in `changed` is not all.
///
/// # Errors
/// If a tree cannot be read.
pub fn paths(old: &dyn Tree, new: &dyn Tree, owners: Owners, changed: &mut Changed) -> Result<bool, Error> {
    let is_directory = |attr: Option<Attr>| attr.is_some_and(|attr| attr.kind == Kind::Directory);
    for change in Changes::between(old, new, owners) {
        let change = change?;
        // A directory that is new, or gone, has nothing of what was below it, or may have been, in the layers below.
        let is_whole = is_directory(change.old) != is_directory(change.new);
        if !changed.add(&change.path, is_whole) {
            return Ok(false);
        }
    }
    Ok(true)
}
