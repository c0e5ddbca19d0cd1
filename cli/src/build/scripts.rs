//! The files that every image has, whatever it is made of, under the names that apptainer gives them.

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
/// The environment where there is none.
pub(super) const NO_ENVIRONMENT: &str = "#!/bin/sh\n# Custom environment shell code should follow\n";
/// The runscript where there is none.
pub(super) const NO_RUNSCRIPT: &str = include_str!("scripts/runscript.sh");
/// Scripts that are the same in all images, below `.singularity.d`. No runtime of today runs the actions; images of all others
/// have them.
pub(super) const SCRIPTS: [(&str, &str); 12] = [
    ("actions/exec", include_str!("scripts/exec.sh")),
    ("actions/run", include_str!("scripts/run.sh")),
    ("actions/shell", include_str!("scripts/shell.sh")),
    ("actions/start", include_str!("scripts/start.sh")),
    ("actions/test", include_str!("scripts/test.sh")),
    ("env/01-base.sh", "#!/bin/sh\n"),
    ("env/90-environment.sh", NO_ENVIRONMENT),
    ("env/94-appsbase.sh", ""),
    ("env/95-apps.sh", include_str!("scripts/95-apps.sh")),
    ("env/99-base.sh", include_str!("scripts/99-base.sh")),
    ("env/99-runtimevars.sh", include_str!("scripts/99-runtimevars.sh")),
    ("startscript", "#!/bin/sh\n"),
];
