//! Trees packed as layers: read again by us, by GNU tar and by umoci.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod memory_tree;
mod oci;

use memory_tree::{Content, MemoryTree};
use oci::{Memory, listing, squashfs};
use siphon_image::oci::Descriptor;
use siphon_image::oci::layers::Source;
use siphon_image::oci::pack::{self, Packed, compressed};
use siphon_image::read_at::FileAt;
use siphon_image::squashfs::reader::Squashfs;
use siphon_image::squashfs::writer::{Options, Progress, write};
use siphon_image::tree::{Kind, NodeId, Tree};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// An image of a tree with all that a header of 512 bytes has no room for.
fn awkward() -> Squashfs {
    let mut tree = MemoryTree::default();
    let root = NodeId(0);
    let mut parent = root;
    for level in 0..6 {
        parent = tree.directory(parent, format!("{level}{}", "d".repeat(60)));
    }
    let deep = tree.file(parent, "f".repeat(255), vec![7; 3_000_000]);
    tree.link(root, "of two names", deep);
    tree.node(deep).uid = 4_000_000_000;
    tree.node(deep).gid = 70_000;
    tree.node(deep).mode = 0o6755;
    let noted = tree.file(root, "noted", "x");
    tree.node(noted).xattrs = vec![("user.note".into(), b"a=b\n\0\xff".to_vec()), ("user.empty".into(), Vec::new())];
    tree.add(root, "far", Content::Symlink("t".repeat(3000).into()));
    tree.add(root, "character", Content::Special(Kind::CharDevice, 0x0ab1_2345));
    tree.add(root, "block", Content::Special(Kind::BlockDevice, 0x103));
    tree.add(root, "fifo", Content::Special(Kind::Fifo, 0));
    tree.add(root, "socket", Content::Special(Kind::Socket, 0));
    tree.file(root, "\u{1f6b0} \n\\ '\"", "odd name");
    tree.file(root, "empty", "");
    let file = tempfile::tempfile().unwrap();
    write(&tree, &file, 0, &Options::default(), &Progress::default()).unwrap();
    Squashfs::open(Arc::new(FileAt::new(file).unwrap())).unwrap()
}

fn packed(tree: &dyn Tree, threads: usize) -> (Packed, Vec<u8>) {
    let mut stored = Vec::new();
    let fill = |out: &mut dyn Write| pack::write(tree, None, &[], 0, out);
    let packed = compressed(NonZeroUsize::new(threads).unwrap(), fill, |member| {
        stored.extend_from_slice(member);
        Ok(())
    });
    (packed.unwrap(), stored)
}

#[test]
fn a_tree_comes_back_from_its_layer_but_for_its_sockets() {
    let tree = awkward();
    let (packed, stored) = packed(&tree, 2);
    let digest = oci::digest(&stored);
    let layer = Descriptor::new(
        "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        stored.len() as u64,
        digest.parse::<siphon_image::oci::Digest>().unwrap(),
    );
    let source = Source {
        blobs: Arc::new(Memory([(digest, stored.clone())].into())),
        layers: vec![layer],
        diff_ids: vec![packed.diff_id.parse().unwrap()],
        fetched_bytes: Arc::default(),
    };

    let (found, ..) = squashfs(&source, &Options::default()).unwrap();

    let mut expected = listing(&tree, i64::MAX);
    expected.remove(Path::new("/socket")).unwrap();
    assert_eq!(listing(&found, i64::MAX), expected);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("layer.tar.gz");
    std::fs::write(&file, stored).unwrap();
    let listed = Command::new("tar").arg("-tzf").arg(file).output().unwrap();
    assert!(listed.status.success() && listed.stderr.is_empty(), "{listed:?}");
    assert_eq!(listed.stdout.iter().filter(|byte| **byte == b'\n').count(), expected.len());
}

#[test]
fn a_layer_is_the_same_whatever_the_number_of_threads() {
    let tree = awkward();

    assert!(packed(&tree, 1) == packed(&tree, 5));
}

#[test]
fn who_takes_a_layer_can_stop_it() {
    let tree = awkward();
    let fill = |out: &mut dyn Write| pack::write(&tree, None, &[], 0, out);

    let refused = compressed(NonZeroUsize::MIN, fill, |_| Err(io::Error::from(io::ErrorKind::StorageFull).into()));

    let pack::Error::Output(error) = refused.unwrap_err() else { panic!("another error") };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}
