//! What every image has besides the files of its system: directories to mount on, and `.singularity.d` with the scripts
//! that set the environment. What the base has already stays as it is.

use super::root::Root;
use rustix::fs::{AtFlags, statat};
use std::path::Path;

/// Places to mount on, and to hold our own files.
pub(super) const DIRECTORIES: [&str; 12] = [
    "dev",
    "etc",
    "home",
    "proc",
    "root",
    "sys",
    "tmp",
    "var/tmp",
    ".singularity.d",
    ".singularity.d/actions",
    ".singularity.d/env",
    ".singularity.d/libs",
];
/// Files that the host's are mounted on.
pub(super) const EMPTY_FILES: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];
/// Names at the top and what they lead to.
pub(super) const LINKS: [(&str, &str); 6] = [
    (".exec", ".singularity.d/actions/exec"),
    (".run", ".singularity.d/actions/run"),
    (".shell", ".singularity.d/actions/shell"),
    (".test", ".singularity.d/actions/test"),
    ("environment", ".singularity.d/env/90-environment.sh"),
    ("singularity", ".singularity.d/runscript"),
];
/// Scripts that are the same in all images. No runtime of today runs the actions; images of all others have them.
pub(super) const SCRIPTS: [(&str, &str); 12] = [
    (".singularity.d/actions/exec", include_str!("base_files/exec")),
    (".singularity.d/actions/run", include_str!("base_files/run")),
    (".singularity.d/actions/shell", include_str!("base_files/shell")),
    (".singularity.d/actions/start", include_str!("base_files/start")),
    (".singularity.d/actions/test", include_str!("base_files/test")),
    (".singularity.d/env/01-base.sh", "#!/bin/sh\n"),
    (".singularity.d/env/90-environment.sh", NO_ENVIRONMENT),
    (".singularity.d/env/94-appsbase.sh", ""),
    (".singularity.d/env/95-apps.sh", include_str!("base_files/95-apps.sh")),
    (".singularity.d/env/99-base.sh", include_str!("base_files/99-base.sh")),
    (".singularity.d/env/99-runtimevars.sh", include_str!("base_files/99-runtimevars.sh")),
    (".singularity.d/startscript", "#!/bin/sh\n"),
];
/// The environment of an image that sets none.
pub(super) const NO_ENVIRONMENT: &str = "#!/bin/sh\n# Custom environment shell code should follow\n\n";
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
