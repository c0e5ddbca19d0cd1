//! What every image has besides the files of its system: directories to mount on, and `.singularity.d` with the scripts
//! that set the environment. What the base has already stays as it is.

use super::root::Root;
use super::scripts::{DIRECTORIES, EMPTY_FILES, LINKS, NO_RUNSCRIPT, SCRIPTS};
use rustix::fs::{AtFlags, statat};
use std::path::Path;

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
    let missing = |path: &str| anyhow::Ok(root.kind(Path::new(path))?.is_none() && !is_link(root, path));
    for path in EMPTY_FILES {
        if missing(path)? {
            root.put(path, b"", 0o644)?;
        }
    }
    for (name, content) in SCRIPTS.into_iter().chain([("runscript", NO_RUNSCRIPT)]) {
        let path = format!(".singularity.d/{name}");
        if missing(&path)? {
            root.put(&path, content.as_bytes(), 0o755)?;
        }
    }
    Ok(())
}

/// Whether there is something of this name, such as a link that leads nowhere.
fn is_link(root: &Root, path: &str) -> bool {
    let Ok((parent, name)) = root.parent(Path::new(path)) else { return true };
    statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}
