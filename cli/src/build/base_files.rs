//! What every image has besides the files of its system: directories to mount on, and `.singularity.d` with the scripts
//! that set the environment. What the base has already stays as it is.

use super::root::Root;
use rustix::fs::{AtFlags, statat};
use std::path::Path;

const DIRECTORIES: [&str; 11] = [
    ".singularity.d/libs",
    ".singularity.d/actions",
    ".singularity.d/env",
    "dev",
    "proc",
    "root",
    "var/tmp",
    "tmp",
    "etc",
    "sys",
    "home",
];

const FILES: [(&str, u32, &str); 14] = [
    ("etc/hosts", 0o644, ""),
    ("etc/resolv.conf", 0o644, ""),
    (".singularity.d/actions/exec", 0o755, include_str!("base_files/exec")),
    (".singularity.d/actions/run", 0o755, include_str!("base_files/run")),
    (".singularity.d/actions/shell", 0o755, include_str!("base_files/shell")),
    (".singularity.d/actions/start", 0o755, include_str!("base_files/start")),
    (".singularity.d/actions/test", 0o755, include_str!("base_files/test")),
    (".singularity.d/env/01-base.sh", 0o755, include_str!("base_files/01-base.sh")),
    (".singularity.d/env/90-environment.sh", 0o755, include_str!("base_files/90-environment.sh")),
    (".singularity.d/env/95-apps.sh", 0o755, include_str!("base_files/95-apps.sh")),
    (".singularity.d/env/99-base.sh", 0o755, include_str!("base_files/99-base.sh")),
    (".singularity.d/env/99-runtimevars.sh", 0o755, include_str!("base_files/99-runtimevars.sh")),
    (".singularity.d/runscript", 0o755, include_str!("base_files/runscript")),
    (".singularity.d/startscript", 0o755, include_str!("base_files/startscript")),
];

const LINKS: [(&str, &str); 6] = [
    ("singularity", ".singularity.d/runscript"),
    (".run", ".singularity.d/actions/run"),
    (".exec", ".singularity.d/actions/exec"),
    (".test", ".singularity.d/actions/test"),
    (".shell", ".singularity.d/actions/shell"),
    ("environment", ".singularity.d/env/90-environment.sh"),
];

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
    for (path, mode, content) in FILES {
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
