//! Ext file systems that `mke2fs` made are read as the directory that they were made of.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it does")]

mod support;

use siphon_image::ext::{Error, Ext};
use siphon_image::open::{Format, open};
use siphon_image::read_at::FileAt;
use siphon_image::tree::Tree;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use support::compare::{Expect, assert_same};
use support::{run, sample};

/// Makes a file system of `source`.
fn mke2fs(source: &Path, image: &Path, options: &[&str]) {
    File::create(image).unwrap().set_len(160 << 20).unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut command = Command::new("mke2fs");
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let owner = format!("root_owner={uid}:{gid}");
    run(command.env("PATH", path).args(["-q", "-F", "-E", &owner]).args(options).arg("-d").arg(source).arg(image));
}

/// The sample, with the directory that every ext file system has.
fn source(dir: &Path) -> PathBuf {
    let source = dir.join("source");
    std::fs::create_dir(&source).unwrap();
    sample::make(&source);
    std::fs::create_dir(source.join("lost+found")).unwrap();
    std::fs::set_permissions(source.join("lost+found"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    // Times after 2106 do not fit into ext3.
    std::fs::remove_file(source.join("attributes/nothing")).unwrap();
    // mke2fs takes neither so long a link nor such values.
    std::fs::remove_file(source.join("links/long")).unwrap();
    std::os::unix::fs::symlink("t/".repeat(400), source.join("links/long")).unwrap();
    std::fs::remove_dir_all(source.join("xattrs")).unwrap();
    std::fs::write(source.join("large"), sample::noise(30 << 20, 3)).unwrap();
    source
}

fn read(image: &Path) -> Result<Ext, Error> {
    Ext::open(Arc::new(FileAt::new(File::open(image).unwrap()).unwrap()))
}

#[test]
fn a_file_system_is_read_as_what_it_was_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    let kinds: &[&[&str]] = &[
        &["-t", "ext3", "-b", "1024"],
        &["-t", "ext3", "-b", "4096"],
        &["-t", "ext2", "-b", "2048", "-I", "128"],
        &["-t", "ext4"],
        &["-t", "ext4", "-b", "1024", "-O", "^flex_bg,^has_journal"],
    ];
    for options in kinds {
        let image = dir.path().join("image");
        mke2fs(&source, &image, options);

        let tree = read(&image).unwrap_or_else(|error| panic!("{options:?}: {error}"));

        // The root directory itself has the time at which it was made.
        let made = u64::try_from(tree.attr(tree.root()).unwrap().mtime.seconds).unwrap();
        let made = std::time::UNIX_EPOCH + std::time::Duration::from_secs(made);
        File::open(&source).unwrap().set_modified(made).unwrap();
        let expect = Expect { xattrs: false, ..Expect::SOURCE };
        let names = assert_same(&tree, &source, expect);
        println!("{options:?}: {names} names");
        assert_eq!(open(Arc::new(FileAt::new(File::open(&image).unwrap()).unwrap())).unwrap().format, Format::Ext);
    }
}

#[test]
fn extended_attributes_are_read_from_inodes_and_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for (name, len) in [("short", 8), ("long", 600)] {
        let path = source.join(name);
        std::fs::write(&path, name).unwrap();
        let value = vec![b'v'; len];
        let set = rustix::fs::lsetxattr(&path, "user.siphon", &value, rustix::fs::XattrFlags::empty());
        if set.is_err() {
            return support::skip("this filesystem takes no xattrs");
        }
    }
    let image = dir.path().join("image");
    mke2fs(&source, &image, &["-t", "ext3", "-I", "256"]);

    let tree = read(&image).unwrap();

    for (name, len) in [("short", 8), ("long", 600)] {
        let node = tree.lookup(tree.root(), name.as_ref()).unwrap().unwrap();
        assert_eq!(tree.xattrs(node).unwrap(), [("user.siphon".into(), vec![b'v'; len])], "{name}");
    }
}

#[test]
fn what_is_cut_off_or_has_a_journal_to_play_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let image = dir.path().join("image");
    mke2fs(&source, &image, &["-t", "ext3"]);
    let whole = std::fs::read(&image).unwrap();
    let opened = |bytes: Vec<u8>| Ext::open(Arc::new(bytes)).unwrap_err();
    let with = |offset: usize, bit: u8| {
        let mut bytes = whole.clone();
        bytes[offset] |= bit;
        bytes
    };

    assert!(matches!(opened(whole[..whole.len() - 1].to_vec()), Error::Truncated { .. }));
    // s_feature_incompat is 96 bytes into the superblock.
    assert!(matches!(opened(with(1024 + 96, 4)), Error::NotClean));
    assert!(matches!(opened(with(1024 + 98, 1)), Error::Features(0x1_0000)));
}
