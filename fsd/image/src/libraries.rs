//! Which shared libraries the programs of an image find in it by themselves.

use crate::elf::{ElfKind, HEADER_BYTES};
use crate::ld_cache;
use crate::path::{read_file, resolve};
use crate::tree::{Kind, NodeId, Tree};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

/// Where loaders look whatever is configured: glibc's directories on Debian, Fedora, Arch and their kin, and musl's.
const DIRECTORIES: [&str; 14] = [
    "/lib64",
    "/usr/lib64",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/i386-linux-gnu",
    "/usr/lib/i386-linux-gnu",
    "/lib/arm-linux-gnueabihf",
    "/usr/lib/arm-linux-gnueabihf",
    "/lib32",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
];

/// A library by the name that programs ask for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wanted {
    /// Such as `libGL.so.1`.
    pub name: String,
    /// What it has to be to be of use.
    pub kind: ElfKind,
}

/// Of each wanted library, whether the image's loader finds it: by the image's `ld.so.cache`, or in the directories that
/// loaders know. What cannot be read counts as missing.
pub fn present(tree: &dyn Tree, wanted: &[Wanted]) -> Vec<bool> {
    let cache = read_file(tree, Path::new(ld_cache::PATH), ld_cache::MAX_BYTES).ok().flatten();
    let entries = cache.and_then(|bytes| ld_cache::parse(&bytes)).unwrap_or_default();
    let mut cached: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for entry in &entries {
        cached.entry(&entry.name).or_default().push(&entry.path);
    }
    let directories: Vec<_> = DIRECTORIES.iter().filter_map(|path| resolve(tree, Path::new(path), true).ok()).collect();
    let has = |wanted: &Wanted| {
        let in_cache = cached.get(wanted.name.as_str()).into_iter().flatten().map(|path| Path::new(path).to_owned());
        let in_directories = directories.iter().filter(|directory| {
            directory.node.is_some_and(|node| matches!(tree.lookup(node, OsStr::new(&wanted.name)), Ok(Some(_))))
        });
        let paths = in_cache.chain(in_directories.map(|directory| directory.path.join(&wanted.name)));
        paths.into_iter().any(|path| kind_of(tree, &path) == Some(wanted.kind))
    };
    wanted.iter().map(has).collect()
}

fn kind_of(tree: &dyn Tree, path: &Path) -> Option<ElfKind> {
    let node: NodeId = resolve(tree, path, true).ok()?.node?;
    if tree.attr(node).ok()?.kind != Kind::File {
        return None;
    }
    let mut header = [0; HEADER_BYTES];
    let length = tree.read(node, 0, &mut header).ok()?;
    ElfKind::of_header(&header[..length])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Directory;
    use crate::elf::{I386, X86_64};
    use std::fs;
    use std::os::unix::fs::symlink;

    fn header(kind: ElfKind) -> Vec<u8> {
        let mut header = vec![0x7f, b'E', b'L', b'F', kind.class, 1];
        header.resize(18, 0);
        header.extend(kind.machine.to_le_bytes());
        header
    }

    #[test]
    fn a_library_is_present_if_the_loader_would_take_it() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("usr/lib/x86_64-linux-gnu");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("libGL.so.1.7.0"), header(X86_64)).unwrap();
        symlink("libGL.so.1.7.0", directory.join("libGL.so.1")).unwrap();
        fs::write(directory.join("libEGL.so.1"), header(I386)).unwrap();
        fs::write(directory.join("libOpenGL.so.0"), "INPUT(-lGL)").unwrap();
        symlink("nowhere", directory.join("libGLX.so.0")).unwrap();
        let tree = Directory::open(root.path()).unwrap();
        let wanted = |name: &str, kind| Wanted { name: name.into(), kind };

        let found = present(
            &tree,
            &[
                wanted("libGL.so.1", X86_64),
                wanted("libEGL.so.1", X86_64),
                wanted("libEGL.so.1", I386),
                wanted("libOpenGL.so.0", X86_64),
                wanted("libGLX.so.0", X86_64),
                wanted("libOpenCL.so.1", X86_64),
            ],
        );

        assert_eq!(found, [true, false, true, false, false, false]);
    }
}
