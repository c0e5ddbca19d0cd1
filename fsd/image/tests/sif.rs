//! SIF images made by hand, byte by byte, and by the writer; what an opened image says of itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod memory_tree;

use memory_tree::{Content, MemoryTree};
use siphon_image::open::{Error as OpenError, Facts, Script, app_facts, facts, open};
use siphon_image::read_at::{FileAt, ReadAt};
use siphon_image::sif::append::{AppendError, append_partition, partition_start};
use siphon_image::sif::writer::{Error as WriteError, SifWriter};
use siphon_image::sif::{Arch, DataType, Descriptor, Error, FilesystemType, Link, Partition, PartitionType, Sif};
use siphon_image::tree::NodeId;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use uuid::Uuid;

/// A descriptor of a SIF made by hand.
#[derive(Clone, Copy)]
struct Raw {
    data_type: i32,
    id: u32,
    group: u32,
    link: u32,
    offset: i64,
    size: i64,
    name: &'static str,
    filesystem: i32,
    partition: i32,
}

const OLD_PARTITION: Raw = Raw {
    data_type: 0x4004,
    id: 2,
    group: 0xf000_0001,
    link: 0,
    offset: 36864,
    size: 8,
    name: "",
    filesystem: 1,
    partition: 2,
};

const SIGNATURE: Raw = Raw {
    data_type: 0x4005,
    id: 3,
    group: 0xf000_0000,
    link: 0xf000_0001,
    offset: 40960,
    size: 4,
    name: ".",
    filesystem: 0,
    partition: 0,
};

/// A SIF as singularity 3.8 lays it out: data from 32768, everything aligned to 4096.
fn by_hand(descriptors: &[Raw]) -> Vec<u8> {
    let mut bytes = vec![0; 45056];
    bytes[..31].copy_from_slice(b"#!/usr/bin/env run-singularity\n");
    bytes[32..42].copy_from_slice(b"SIF_MAGIC\0");
    bytes[42..48].copy_from_slice(b"01\x0002\0");
    bytes[48..64].copy_from_slice(&[7; 16]);
    for (offset, value) in [(64, 1000i64), (72, 2000), (80, 45), (88, 48), (96, 4096), (104, 28080), (112, 32768)] {
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    for (slot, raw) in descriptors.iter().enumerate() {
        let at = 4096 + 585 * slot;
        let mut put =
            |offset: usize, field: &[u8]| bytes[at + offset..at + offset + field.len()].copy_from_slice(field);
        put(0, &raw.data_type.to_le_bytes());
        put(4, &[1]);
        put(5, &raw.id.to_le_bytes());
        put(9, &raw.group.to_le_bytes());
        put(13, &raw.link.to_le_bytes());
        put(17, &raw.offset.to_le_bytes());
        put(25, &raw.size.to_le_bytes());
        put(73, raw.name.as_bytes());
        put(201, &raw.filesystem.to_le_bytes());
        put(205, &raw.partition.to_le_bytes());
        put(209, b"02\0");
    }
    bytes[36864..36872].copy_from_slice(b"hsqs....");
    bytes
}

fn opened(bytes: Vec<u8>) -> Result<Sif, Error> {
    Sif::open(Arc::new(bytes))
}

fn content(sif: &Sif, descriptor: &Descriptor) -> Vec<u8> {
    let object = sif.object(descriptor);
    let mut bytes = vec![0; usize::try_from(object.len()).unwrap()];
    object.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn an_image_of_an_old_writer_is_read() {
    let deffile = Raw { data_type: 0x4001, id: 1, offset: 32768, size: 5, ..OLD_PARTITION };
    let sif = opened(by_hand(&[deffile, OLD_PARTITION, SIGNATURE])).unwrap();

    let primary = sif.primary_partition().unwrap();

    assert_eq!(sif.header().arch.name(), "amd64");
    assert_eq!(sif.header().id, Uuid::from_bytes([7; 16]));
    assert_eq!((sif.header().created_seconds, sif.header().modified_seconds), (1000, 2000));
    assert_eq!((primary.id, primary.group, primary.link), (2, Some(1), None));
    assert_eq!(content(&sif, primary), b"hsqs....");
    let signature = sif.find(DataType::Signature).unwrap();
    assert_eq!((signature.group, signature.link, signature.name.as_str()), (None, Some(Link::Group(1)), "."));
    assert_eq!(sif.descriptors().len(), 3);
}

#[test]
fn every_kind_of_partition_is_told_apart() {
    for (code, expected) in [
        (1, FilesystemType::Squashfs),
        (2, FilesystemType::Ext3),
        (5, FilesystemType::EncryptedSquashfs),
        (6, FilesystemType::GocryptfsSquashfs),
        (99, FilesystemType::Unknown(99)),
    ] {
        let sif = opened(by_hand(&[Raw { filesystem: code, ..OLD_PARTITION }])).unwrap();

        let partition = sif.primary_partition().unwrap().partition().unwrap();

        assert_eq!((partition.filesystem, partition.kind), (expected, PartitionType::PrimarySystem));
    }
    let overlay = opened(by_hand(&[Raw { partition: 4, ..OLD_PARTITION }])).unwrap();
    assert!(overlay.primary_partition().is_none());
}

#[test]
fn a_truncated_image_is_refused() {
    let whole = by_hand(&[OLD_PARTITION]);

    assert!(matches!(opened(whole[..36870].to_vec()), Err(Error::Truncated { end: 36872, len: 36870, .. })));
    assert!(matches!(opened(whole[..20000].to_vec()), Err(Error::Truncated { .. })));
    assert!(matches!(opened(whole[..100].to_vec()), Err(Error::NotSif)));
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    for (offset, value) in [(88, -1i64), (88, i64::MAX), (88, 5000), (96, -4096), (96, i64::MAX)] {
        let mut bytes = by_hand(&[OLD_PARTITION]);
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());

        assert!(opened(bytes).is_err(), "{value} at {offset}");
    }
    for (offset, size) in [(-1, 5), (5, -1), (i64::MAX, i64::MAX), (0, i64::MAX)] {
        assert!(opened(by_hand(&[Raw { offset, size, ..OLD_PARTITION }])).is_err(), "{offset} {size}");
    }
    let mut version = by_hand(&[]);
    version[43] = b'2';
    assert!(matches!(opened(version), Err(Error::Version(text)) if text == "02"));
}

#[test]
fn what_is_written_is_read_back() {
    let file = tempfile::tempfile().unwrap();
    let arch = Arch::from_name("x86_64").unwrap();
    let mut writer = SifWriter::new(&file, arch, Uuid::from_bytes([3; 16]), 1_700_000_000);
    writer.add_object(DataType::Deffile, "", b"Bootstrap: scratch\n").unwrap();
    writer.add_object(DataType::GenericJson, "inspect-metadata.json", b"{}").unwrap();
    let start = writer.partition_start();
    file.write_all_at(&[9; 8192], start).unwrap();

    writer.add_partition(8192);
    writer.add_object(DataType::GenericJson, "oci-base.json", b"[]").unwrap();
    let length = writer.finish().unwrap();

    assert_eq!((start, length), (32768, 32768 + 8192 + 2));
    let sif = Sif::open(Arc::new(FileAt::new(file).unwrap())).unwrap();
    assert_eq!((sif.header().arch, sif.header().created_seconds), (arch, 1_700_000_000));
    assert_eq!(content(&sif, sif.find(DataType::Deffile).unwrap()), b"Bootstrap: scratch\n");
    let json = sif.find_named(DataType::GenericJson, "inspect-metadata.json").unwrap();
    assert_eq!((json.id, json.offset_bytes, json.group), (2, 32176 + 19, Some(1)));
    assert!(sif.find_named(DataType::GenericJson, "oci-config.json").is_none());
    let primary = sif.primary_partition().unwrap();
    assert_eq!(primary.padded_bytes, 8192 + start - (32176 + 19 + 2));
    assert_eq!(content(&sif, primary), [9; 8192]);
    let behind = sif.find_named(DataType::GenericJson, "oci-base.json").unwrap();
    assert_eq!((behind.id, behind.offset_bytes, content(&sif, behind).as_slice()), (4, start + 8192, &b"[]"[..]));
}

#[test]
fn a_full_table_is_refused() {
    let file: File = tempfile::tempfile().unwrap();
    let mut writer = SifWriter::new(&file, Arch::UNKNOWN, Uuid::nil(), 0);
    for _ in 0..47 {
        writer.add_object(DataType::Generic, "", b"x").unwrap();
    }

    assert!(matches!(writer.add_object(DataType::Generic, "", b"x"), Err(WriteError::TooManyObjects)));
    writer.add_partition(0);
    writer.finish().unwrap();
}

#[test]
fn an_image_without_readable_root_is_refused_by_what_it_is() {
    type Expected = fn(&OpenError) -> bool;
    let oci = Raw { data_type: 0x400a, ..OLD_PARTITION };
    let cases: [(Raw, Expected); 6] = [
        (Raw { filesystem: 2, ..OLD_PARTITION }, |error| matches!(error, OpenError::Ext(_))),
        (Raw { filesystem: 5, ..OLD_PARTITION }, |error| matches!(error, OpenError::Encrypted)),
        (Raw { filesystem: 6, ..OLD_PARTITION }, |error| matches!(error, OpenError::Encrypted)),
        (Raw { filesystem: 4, ..OLD_PARTITION }, |error| matches!(error, OpenError::Filesystem(FilesystemType::Raw))),
        (oci, |error| matches!(error, OpenError::OciSif)),
        (SIGNATURE, |error| matches!(error, OpenError::NoRoot)),
    ];
    for (raw, expected) in cases {
        let error = open(Arc::new(by_hand(&[raw]))).unwrap_err();

        assert!(expected(&error), "{error:?}");
    }
}

#[test]
fn a_bare_tree_says_nothing_of_itself() {
    assert_eq!(facts(&MemoryTree::default()).unwrap(), Facts::default());
}

#[test]
fn a_built_image_tells_what_it_is() {
    let mut tree = MemoryTree::default();
    let root = NodeId(0);
    let usr = tree.directory(root, "usr");
    let bin = tree.directory(usr, "bin");
    tree.file(bin, "dash", "");
    tree.add(bin, "sh", Content::Symlink("dash".into()));
    tree.add(root, "bin", Content::Symlink("usr/bin".into()));
    let meta = tree.directory(root, ".singularity.d");
    let env = tree.directory(meta, "env");
    tree.file(env, "90-environment.sh", "export A=1");
    tree.file(env, "10-docker2singularity.sh", b"export B=\xff".as_slice());
    tree.file(env, "README", "");
    tree.file(meta, "runscript", "exec x");
    tree.add(meta, "test", Content::File(Vec::new(), (1 << 20) + 1));
    tree.file(meta, "labels.json", r#"{"a":"b","n":3}"#);
    let etc = tree.directory(root, "etc");
    tree.file(etc, "passwd", "root:x:0:0::/:/bin/sh\n");
    let scif = tree.directory(root, "scif");
    let apps = tree.directory(scif, "apps");
    tree.directory(apps, "foo");
    tree.file(apps, "not an app", "");

    let facts = facts(&tree).unwrap();

    let script = |name: &str, text: &str| Script { name: name.into(), text: text.into() };
    assert!(facts.has_shell);
    assert_eq!(
        facts.env_scripts,
        [script("10-docker2singularity.sh", "export B=\u{fffd}"), script("90-environment.sh", "export A=1")]
    );
    assert_eq!(facts.environment.as_deref(), Some("export A=1"));
    assert_eq!(facts.runscript.as_deref(), Some("exec x"));
    assert_eq!((&facts.test, &facts.helpfile, &facts.group), (&None, &None, &None));
    assert_eq!(facts.labels, [("a".into(), "b".into()), ("n".into(), "3".into())].into());
    assert_eq!(facts.passwd.as_deref(), Some("root:x:0:0::/:/bin/sh\n"));
    assert_eq!(facts.apps, ["foo"]);
}

#[test]
fn an_app_says_of_itself_what_an_image_does() {
    let mut tree = MemoryTree::default();
    let scif = tree.directory(NodeId(0), "scif");
    let apps = tree.directory(scif, "apps");
    let app = tree.directory(apps, "foo");
    let meta = tree.directory(app, "scif");
    let env = tree.directory(meta, "env");
    tree.file(env, "90-environment.sh", "export A=1");
    tree.file(meta, "runscript", "exec foo");
    tree.file(meta, "labels.json", r#"{"a":"b"}"#);

    let facts = app_facts(&tree, "foo");

    assert_eq!(facts.env_scripts, [Script { name: "90-environment.sh".into(), text: "export A=1".into() }]);
    assert_eq!((facts.runscript.as_deref(), &facts.test), (Some("exec foo"), &None));
    assert_eq!(facts.labels, [("a".into(), "b".into())].into());
    assert_eq!(app_facts(&tree, "bar"), Facts::default());
}

#[test]
fn a_very_old_image_has_one_environment_file() {
    let mut tree = MemoryTree::default();
    tree.file(NodeId(0), "environment", "A=1");

    let facts = facts(&tree).unwrap();

    assert_eq!(facts.env_scripts, [Script { name: "environment".into(), text: "A=1".into() }]);
}

#[test]
fn an_added_partition_is_found_and_changes_nothing_else() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&by_hand(&[OLD_PARTITION]), 0).unwrap();
    let reopened = || Sif::open(Arc::new(FileAt::new(file.try_clone().unwrap()).unwrap())).unwrap();
    let before = reopened();
    let start = partition_start(file.metadata().unwrap().len());
    file.write_all_at(b"content", start).unwrap();
    let arch = before.header().arch;
    let partition = Partition { filesystem: FilesystemType::Ext3, kind: PartitionType::Overlay, arch };

    let id = append_partition(&file, &before, partition, Some(1), (start, 7), 99).unwrap();

    let after = reopened();
    let added = after.descriptors().iter().find(|descriptor| descriptor.id == id).unwrap();
    assert_eq!(start % 4096, 0);
    assert_eq!(
        (added.partition(), added.group, added.offset_bytes, added.size_bytes),
        (Some(partition), Some(1), start, 7)
    );
    assert_eq!(after.header().modified_seconds, 99);
    let mut content = [0; 7];
    after.object(added).read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"content");
    let others: Vec<_> = after.descriptors().iter().filter(|descriptor| descriptor.id != id).collect();
    assert_eq!(others, before.descriptors().iter().collect::<Vec<_>>());
}

#[test]
fn a_full_table_takes_no_partition() {
    let file = tempfile::tempfile().unwrap();
    let mut sif = SifWriter::new(&file, Arch::UNKNOWN, Uuid::nil(), 0);
    for _ in 0..47 {
        sif.add_object(DataType::Generic, "", b"x").unwrap();
    }
    sif.add_partition(0);
    sif.finish().unwrap();
    let sif = Sif::open(Arc::new(FileAt::new(file.try_clone().unwrap()).unwrap())).unwrap();
    let len = file.metadata().unwrap().len();
    let partition = Partition { filesystem: FilesystemType::Ext3, kind: PartitionType::Overlay, arch: Arch::UNKNOWN };

    let refused = append_partition(&file, &sif, partition, None, (partition_start(len), 0), 0);

    assert!(matches!(refused, Err(AppendError::Full)), "{refused:?}");
}
