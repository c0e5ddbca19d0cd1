//! A made-up GPU driver: libraries, programs and a loader's cache below a directory of its own, as a driver that was
//! installed in a container has them.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version of the driver.
pub(crate) const VERSION: &str = "580.65.06";
/// Where its libraries lie below its root.
pub(crate) const LIBRARIES: &str = "usr/lib/driver";

/// A driver in a directory that everyone may read.
pub(crate) struct Driver {
    /// What `SIPHON_DRIVER_ROOT` is to be.
    pub(crate) root: PathBuf,
}

impl Driver {
    /// Makes one in `root`: libraries that say who they are, each as `NAME.so.VERSION` with the usual links.
    pub(crate) fn make(root: &Path, libraries: &[(&str, &str)]) -> Self {
        let driver = Self { root: root.to_owned() };
        for directory in [LIBRARIES, "usr/lib/narrow", "usr/bin", "etc", "usr/share/nvidia"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        let mut entries = Vec::new();
        for (stem, soname) in libraries {
            let file = format!("{stem}.so.{VERSION}");
            shared_library(&root.join(LIBRARIES).join(&file), soname);
            symlink(&file, root.join(LIBRARIES).join(soname)).unwrap();
            // The one for other programs comes first: the right one has to be chosen.
            std::fs::write(root.join("usr/lib/narrow").join(soname), narrow_header()).unwrap();
            entries.push((soname.to_string(), format!("/usr/lib/narrow/{soname}")));
            entries.push((soname.to_string(), format!("/{LIBRARIES}/{soname}")));
        }
        std::fs::write(root.join("etc/ld.so.cache"), loader_cache(&entries)).unwrap();
        driver.program("nvidia-smi", "#!/bin/sh\necho made-up driver\n");
        std::fs::write(root.join("usr/share/nvidia/nvoptix.bin"), "optix").unwrap();
        driver
    }

    /// Adds a program.
    pub(crate) fn program(&self, name: &str, script: &str) {
        let path = self.root.join("usr/bin").join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// The path of a library's file.
    pub(crate) fn library(&self, stem: &str) -> PathBuf {
        self.root.join(LIBRARIES).join(format!("{stem}.so.{VERSION}"))
    }
}

/// A library that programs ask for as `soname`.
fn shared_library(path: &Path, soname: &str) {
    let built = Command::new("cc")
        .args(["-shared", "-nostdlib", "-x", "c", "/dev/null", "-o"])
        .arg(path)
        .arg(format!("-Wl,-soname,{soname}"))
        .status()
        .expect("gcc is missing: run tests/setup first");
    assert!(built.success(), "cc -shared: {}", path.display());
}

/// The beginning of a library for 32-bit programs of this machine.
fn narrow_header() -> Vec<u8> {
    let machine: u16 = if cfg!(target_arch = "aarch64") { 40 } else { 3 };
    let mut header = b"\x7fELF\x01\x01\x01".to_vec();
    header.resize(18, 0);
    header.extend(machine.to_le_bytes());
    header
}

/// `ld.so.cache` as glibc's ldconfig writes it: names with paths, in order.
fn loader_cache(entries: &[(String, String)]) -> Vec<u8> {
    let number = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
    let start = 48 + entries.len() * 24;
    let (mut table, mut strings) = (Vec::new(), Vec::new());
    for (name, path) in entries {
        let name_at = start + strings.len();
        let path_at = name_at + name.len() + 1;
        strings.extend(format!("{name}\0{path}\0").into_bytes());
        table.extend([number(0x0303), number(name_at), number(path_at), [0; 4], [0; 4], [0; 4]].concat());
    }
    let header =
        [b"glibc-ld.so.cache1.1".as_slice(), &number(entries.len()), &number(strings.len()), &[0; 20]].concat();
    [header, table, strings].concat()
}
