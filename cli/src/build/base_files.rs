//! What every image has besides the files of its system: directories to mount on, and `.singularity.d` with the scripts
//! that set the environment. What the base has already stays as it is.

use super::root::Root;
use rustix::fs::{AtFlags, statat};
use siphon_image::oci::own::{DIRECTORIES, EMPTY_FILES, LINKS, SCRIPTS};
use std::path::Path;

/// The runscript of an image that has none.
const RUNSCRIPT: (&str, &str) =
    (".singularity.d/runscript", "#!/bin/sh\n\necho \"There is no runscript defined for this container\"\n");

/// Makes what is missing.
pub(super) fn complete(root: &Root) -> anyhow::Result<()> {
    for directory in DIRECTORIES {
        // A link that leads nowhere, such as /var/tmp of some images, is the image's own matter.
        if root.kind(Path::new(directory))?.is_none() && !is_link(root, directory) {
            root.make_directory(Path::new(directory), 0o755)?;
        }
    }
    for (path, target) in LINKS {
        root.link(path, target)?;
    }
    let empty = EMPTY_FILES.map(|path| (path, 0o644, ""));
    let scripts = SCRIPTS.into_iter().chain([RUNSCRIPT]).map(|(path, content)| (path, 0o755, content));
    for (path, mode, content) in empty.into_iter().chain(scripts) {
        if root.kind(Path::new(path))?.is_none() && !is_link(root, path) {
            root.put(path, content.as_bytes(), mode)?;
        }
    }
    Ok(())
}

/// Whether there is something of this name, such as a link that leads nowhere.
fn is_link(root: &Root, path: &str) -> bool {
    let Ok((parent, name)) = root.parent(Path::new(path)) else { return true };
    statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}
