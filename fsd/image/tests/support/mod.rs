//! What the tests of whole images share: trees to pack, programs that pack them, mounts, and the comparison of a
//! [`Tree`] with a directory.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod compare;
pub(crate) mod sample;

use siphon_image::read_at::FileAt;
use siphon_image::squashfs::reader::Squashfs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Prints why a check is left out. In CI nothing may be left out.
pub(crate) fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "CI has to be able to do this: {reason}");
    println!("skipped: {reason}");
}

/// Whether this process may mount and make device nodes.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a program and fails with its output if it fails.
pub(crate) fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
}

/// Packs `source` into `image` with `mksquashfs`.
pub(crate) fn mksquashfs(source: &Path, image: &Path, options: &[&str]) {
    run(Command::new("mksquashfs").args([source, image]).args(["-noappend", "-no-progress", "-quiet"]).args(options));
}

/// Opens an image with our reader.
pub(crate) fn open(image: &Path) -> Squashfs {
    let bytes = FileAt::new(File::open(image).unwrap()).unwrap();
    Squashfs::open(Arc::new(bytes)).unwrap_or_else(|error| panic!("{}: {error}", image.display()))
}

/// A kernel mount of an image, gone when dropped.
pub(crate) struct Mount {
    path: PathBuf,
}

impl Mount {
    /// Mounts `image` at the new directory `path`.
    pub(crate) fn new(image: &Path, path: &Path) -> Self {
        std::fs::create_dir(path).unwrap();
        run(Command::new("mount").args(["-t", "squashfs", "-o", "loop,ro"]).args([image, path]));
        Self { path: path.to_owned() }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.path));
        std::fs::remove_dir(&self.path).unwrap();
    }
}
