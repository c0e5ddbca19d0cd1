//! The images of the cases: a busybox system with all that an image can say of itself, and its variants.
//!
//! Their files lie in `tests/compat/images`. Both runtimes get the same bytes.

use crate::support::WhileUsed;
use crate::support::environment::open_directory;
use crate::support::image::{make_system, pack, wrap};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// What git does not keep of the main image: directories without files.
const EMPTY_DIRECTORIES: [&str; 5] = ["data/empty", "data/real", "home", "scif/data/foo/input", "var/tmp"];

/// What makes the OCI images.
const OCI_MAKER: &str = include_str!("../support/oci_layout.py");

/// The directory that cases know as `$IMAGES`: `main.sif`, which is also `$IMAGE`, `main.sqfs`, `docker.sqfs`, `bare.sqfs` (nothing but the
/// system), `layer.sqfs` (what an overlay adds) `main`, the unpacked tree, `oci`
/// with a layout and archives of one image of two layers, and `recipes` with the definition files of the group `build`.
pub(crate) struct Images {
    directory: TempDir,
}

static IMAGES: WhileUsed<Images> = WhileUsed::new();

impl Images {
    /// The images, shared by the groups that run at one time.
    pub(crate) fn get() -> Arc<Self> {
        IMAGES.get(Self::make)
    }

    fn make() -> Self {
        let directory = open_directory("siphon-compat-images-");
        let path = |name: &str| directory.path().join(name);
        for (name, directories) in [("main", &EMPTY_DIRECTORIES[..]), ("docker", &["var/tmp"]), ("bare", &["var/tmp"])]
        {
            make_system(&path(name), directories);
        }
        std::fs::create_dir(path("layer")).unwrap();
        for name in ["main", "docker", "layer"] {
            copy_files(name, &path(name));
        }
        std::fs::remove_dir_all(path("bare/.singularity.d")).unwrap();
        for name in ["main", "docker", "bare", "layer"] {
            pack(&path(name), &path(&format!("{name}.sqfs")), "gzip");
        }
        let deffile = std::fs::read_to_string(path("main/.singularity.d/Singularity")).unwrap();
        wrap(&path("main.sqfs"), &deffile, &path("main.sif"));
        std::fs::create_dir(path("oci")).unwrap();
        let made = Command::new("python3").args(["-c", OCI_MAKER]).args([path("bare"), path("oci")]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        for name in ["docker", "bare", "layer"] {
            std::fs::remove_dir_all(path(name)).unwrap();
        }
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/compat/recipes");
        let copied = Command::new("cp").arg("-rP").arg(recipes).arg(path("recipes")).status().unwrap();
        assert!(copied.success());
        Self { directory }
    }

    /// Where they lie.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// All of them as a tar archive.
    pub(crate) fn archive(&self) -> Vec<u8> {
        let tar = Command::new("tar").arg("-C").arg(self.path()).args(["-c", "."]).output().unwrap();
        assert!(tar.status.success(), "{tar:?}");
        tar.stdout
    }
}

/// Copies the files of the image `name`, readable by everyone whatever the umask of the checkout was.
fn copy_files(name: &str, target: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/compat/images").join(name).join(".");
    for command in [
        Command::new("cp").arg("-rP").arg(source).arg(target),
        Command::new("chmod").args(["-R", "a+rX,u+w"]).arg(target),
    ] {
        assert!(command.status().unwrap().success(), "{command:?}");
    }
}
