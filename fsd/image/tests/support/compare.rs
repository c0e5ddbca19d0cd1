//! Compares a [`Tree`] with the same tree on a filesystem, node by node and byte by byte.

use rustix::fs::{lgetxattr, llistxattr};
use siphon_image::tree::{Attr, Kind, NodeId, Tree, Xattr};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What has to be equal besides names, kinds, content and link targets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expect {
    /// Size of directories, blocks, link counts of directories and order of entries: only the kernel's mount has them.
    pub(crate) stored: bool,
    /// Owners, modes, times and hard links.
    pub(crate) attributes: bool,
    /// Extended attributes.
    pub(crate) xattrs: bool,
}

impl Expect {
    /// All that `stat` and its kin show.
    pub(crate) const MOUNT: Self = Self { stored: true, attributes: true, xattrs: true };
    /// All that a directory has in common with an image made of it.
    pub(crate) const SOURCE: Self = Self { stored: false, attributes: true, xattrs: true };
}

/// The same inode must be the same node, and the other way round.
#[derive(Default)]
struct Links {
    node_of: HashMap<u64, NodeId>,
    inode_of: HashMap<NodeId, u64>,
}

/// Fails if `tree` differs from the directory `path` in what is expected. Returns the number of names compared.
pub(crate) fn assert_same(tree: &dyn Tree, path: &Path, expect: Expect) -> usize {
    let mut links = Links::default();
    let mut names = 0;
    let mut pending = vec![(tree.root(), path.to_owned())];
    while let Some((node, path)) = pending.pop() {
        compare_node(tree, node, &path, expect, &mut links);
        names += 1;
        if tree.attr(node).unwrap().kind == Kind::Directory {
            for (name, child) in compare_listing(tree, node, &path, expect) {
                pending.push((child, path.join(name)));
            }
        }
    }
    names
}

fn compare_listing(tree: &dyn Tree, node: NodeId, path: &Path, expect: Expect) -> Vec<(OsString, NodeId)> {
    let entries = tree.entries(node).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
    let mut ours: Vec<OsString> = entries.iter().map(|entry| entry.name.clone()).collect();
    let mut theirs: Vec<OsString> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    if !expect.stored {
        ours.sort();
        theirs.sort();
    }
    assert_eq!(ours, theirs, "listing of {}", path.display());
    // Looking up every name of a huge directory would take most of the test's time.
    let step = entries.len() / 1000 + 1;
    for entry in entries.iter().step_by(step) {
        assert_eq!(tree.lookup(node, &entry.name).unwrap(), Some(entry.node), "{:?} in {}", entry.name, path.display());
        assert_eq!(tree.attr(entry.node).unwrap().kind, entry.kind, "{:?} in {}", entry.name, path.display());
    }
    for missing in ["", "!", "no such name", "zzzz", "\u{ff}\u{ff}"] {
        assert_eq!(tree.lookup(node, OsStr::new(missing)).unwrap(), None, "{missing:?} in {}", path.display());
    }
    entries.into_iter().map(|entry| (entry.name, entry.node)).collect()
}

fn compare_node(tree: &dyn Tree, node: NodeId, path: &Path, expect: Expect, links: &mut Links) {
    let attr = tree.attr(node).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
    let metadata = std::fs::symlink_metadata(path).unwrap();
    compare_attr(&attr, &metadata, path, expect);
    if expect.attributes {
        let known = *links.node_of.entry(metadata.ino()).or_insert(node);
        let inode = *links.inode_of.entry(node).or_insert(metadata.ino());
        assert_eq!((known, inode), (node, metadata.ino()), "hard links of {}", path.display());
    }
    match attr.kind {
        Kind::File => compare_content(tree, node, attr.size, path),
        Kind::Symlink => assert_eq!(tree.read_link(node).unwrap(), std::fs::read_link(path).unwrap().into_os_string()),
        _ => {}
    }
    if expect.xattrs {
        let mut ours = tree.xattrs(node).unwrap();
        ours.sort();
        assert!(ours == xattrs(path), "xattrs of {}", path.display());
    }
}

fn compare_attr(attr: &Attr, metadata: &Metadata, path: &Path, expect: Expect) {
    let path = path.display();
    assert_eq!(attr.kind, kind(metadata), "{path}");
    if expect.stored || attr.kind != Kind::Directory {
        assert_eq!(attr.size, metadata.size(), "size of {path}");
    }
    if expect.stored {
        assert_eq!(attr.blocks, metadata.blocks(), "blocks of {path}");
    }
    if expect.attributes {
        assert_eq!(u32::from(attr.mode), metadata.mode() & 0o7777, "mode of {path}");
        assert_eq!((attr.uid, attr.gid), (metadata.uid(), metadata.gid()), "owner of {path}");
        assert_eq!(attr.mtime.seconds, metadata.mtime(), "mtime of {path}");
        let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        assert_eq!(attr.rdev, minor & 0xff | major << 8 | (minor & !0xff) << 12, "device of {path}");
        if expect.stored || attr.kind != Kind::Directory {
            assert_eq!(u64::from(attr.nlink), metadata.nlink(), "links of {path}");
        }
    }
    if expect.stored {
        assert_eq!((attr.atime, attr.ctime), (attr.mtime, attr.mtime), "times of {path}");
        assert_eq!((metadata.atime(), metadata.ctime()), (metadata.mtime(), metadata.mtime()), "times of {path}");
    }
}

fn kind(metadata: &Metadata) -> Kind {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => Kind::Directory,
        () if kind.is_symlink() => Kind::Symlink,
        () if kind.is_block_device() => Kind::BlockDevice,
        () if kind.is_char_device() => Kind::CharDevice,
        () if kind.is_fifo() => Kind::Fifo,
        () if kind.is_socket() => Kind::Socket,
        () => Kind::File,
    }
}

/// Reads in pieces that fit no block, and then some ranges again that lie across the borders of blocks.
fn compare_content(tree: &dyn Tree, node: NodeId, size: u64, path: &Path) {
    const PIECE_BYTES: usize = (1 << 20) + 4321;
    let mut file = std::fs::File::open(path).unwrap();
    let piece_bytes = room(size, PIECE_BYTES);
    let mut ours = vec![0xaa; piece_bytes];
    let mut theirs = vec![0x55; piece_bytes];
    let mut offset = 0;
    loop {
        let count = tree.read(node, offset, &mut ours).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
        let wanted = usize::try_from(size - offset).unwrap().min(piece_bytes);
        assert_eq!(count, wanted, "{} at {offset}", path.display());
        file.read_exact(&mut theirs[..count]).unwrap();
        assert!(ours[..count] == theirs[..count], "content of {} from byte {offset}", path.display());
        offset += count as u64;
        if count == 0 {
            break;
        }
    }
    compare_ranges(tree, node, size, &file, path);
}

/// Buffers are at most a byte longer than what is left: most files are small, and clearing memory takes time.
fn room(left: u64, count: usize) -> usize {
    usize::try_from(left + 1).unwrap().min(count)
}

fn compare_ranges(tree: &dyn Tree, node: NodeId, size: u64, file: &std::fs::File, path: &Path) {
    use std::os::unix::fs::FileExt;
    for (offset, count) in [(0, 1), (4095, 2), (size / 2, 10_000), (131_071, 131_074), (131_072, 131_072)] {
        let left = size.saturating_sub(offset);
        let count = room(left, count);
        let mut ours = vec![1; count];
        let mut theirs = vec![2; count];
        let read = tree.read(node, offset, &mut ours).unwrap();
        assert_eq!(read, count.min(usize::try_from(left).unwrap()), "{} at {offset}", path.display());
        file.read_exact_at(&mut theirs[..read], offset).unwrap();
        assert!(ours[..read] == theirs[..read], "{read} bytes of {} from byte {offset}", path.display());
    }
    assert_eq!(tree.read(node, size, &mut [0; 8]).unwrap(), 0);
    assert_eq!(tree.read(node, u64::MAX, &mut [0; 8]).unwrap(), 0);
}

fn xattrs(path: &Path) -> Vec<Xattr> {
    let mut names = vec![0_u8; 64 << 10];
    let Ok(count) = llistxattr(path, &mut names[..]) else { return Vec::new() };
    let mut xattrs: Vec<Xattr> = names[..count]
        .split(|byte| *byte == 0)
        // What a security module adds to each file of a mount is not in the image.
        .filter(|name| !name.is_empty() && !name.starts_with(b"system.") && *name != b"security.selinux")
        .map(|name| {
            let mut value = vec![0_u8; 64 << 10];
            let length = lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            value.truncate(length);
            (OsString::from_vec(name.to_vec()), value)
        })
        .collect();
    xattrs.sort();
    xattrs
}
