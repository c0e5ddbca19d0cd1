//! Our reader shows what the kernel's mount and libsquashfs show of the same image, and what was packed into it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it does")]

mod support;

use siphon_image::path::resolve;
use siphon_image::read_at::ReadAt;
use siphon_image::squashfs::format::Compressor;
use siphon_image::squashfs::reader::{Error, Squashfs};
use siphon_image::tree::{Kind, NodeId, Tree};
use squashfs_ng::read::{Archive, Data, Node, XattrType};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::compare::{Expect, assert_same};
use support::{Mount, is_root, mksquashfs, open, run, sample, skip};

/// Images of one sample, made with each compressor and with the options that change what is stored.
const VARIANTS: &[&[&str]] = &[
    &["-comp", "gzip"],
    &["-comp", "xz"],
    &["-comp", "lzo"],
    &["-comp", "lz4"],
    &["-comp", "zstd"],
    &["-comp", "xz", "-Xbcj", "x86"],
    &["-comp", "lz4", "-Xhc"],
    &["-comp", "gzip", "-no-fragments"],
    &["-comp", "zstd", "-noI", "-noD", "-noF", "-noX"],
    &["-comp", "zstd", "-noId"],
    &["-comp", "lzo", "-always-use-fragments"],
    &["-comp", "xz", "-b", "4096"],
    &["-comp", "zstd", "-b", "4096", "-always-use-fragments"],
    &["-comp", "gzip", "-b", "1M"],
    &["-comp", "xz", "-b", "1M", "-Xbcj", "x86"],
    &["-comp", "zstd", "-no-exports"],
    &["-comp", "zstd", "-no-duplicates"],
];

/// Compares `image` with its kernel mount in the directory `at` and with libsquashfs.
fn assert_same_as_others(image: &Path, at: &Path) -> Squashfs {
    let tree = open(image);
    if is_root() {
        let mount = at.join("mount");
        let _mounted = Mount::new(image, &mount);
        assert_same(&tree, &mount, Expect::MOUNT);
    } else {
        skip("a kernel mount needs root");
    }
    // libsquashfs leaves lzo out, because of its licence; only the tools built on it have it.
    if Compressor::from_id(tree.superblock().compressor_id) != Some(Compressor::Lzo) {
        assert_same_as_libsquashfs(&tree, image);
    }
    tree
}

/// The crate reads names as UTF-8 only, so other names, and directories that have them, are left out.
fn assert_same_as_libsquashfs(tree: &Squashfs, image: &Path) {
    let archive = Archive::open(image).unwrap();
    let mut pending = vec![(tree.root(), PathBuf::from("/"))];
    while let Some((node, path)) = pending.pop() {
        let attr = tree.attr(node).unwrap();
        let theirs = archive.get(&path).unwrap().unwrap_or_else(|| panic!("libsquashfs has no {}", path.display()));
        let name = path.display();
        assert_eq!(theirs.mode() & 0o7777, attr.mode, "{name}");
        assert_eq!(i64::from(theirs.mtime()), attr.mtime.seconds, "{name}");
        assert_eq!((theirs.uid().unwrap(), theirs.gid().unwrap()), (attr.uid, attr.gid), "{name}");
        if path.starts_with("/xattrs") {
            assert_eq!(tree.xattrs(node).unwrap().into_iter().collect::<HashMap<_, _>>(), xattrs(&theirs), "{name}");
        }
        match theirs.data().unwrap() {
            Data::File(mut file) => {
                assert_eq!(file.size(), attr.size, "{name}");
                assert_same_bytes(tree, node, &mut file, &path);
            }
            Data::Symlink(target) => assert_eq!(target.as_os_str(), tree.read_link(node).unwrap(), "{name}"),
            Data::BlockDev(major, minor) | Data::CharDev(major, minor) => {
                assert_eq!(minor & 0xff | major << 8 | (minor & !0xff) << 12, attr.rdev, "{name}");
            }
            Data::Fifo => assert_eq!(attr.kind, Kind::Fifo, "{name}"),
            Data::Socket => assert_eq!(attr.kind, Kind::Socket, "{name}"),
            Data::Dir(dir) => {
                let entries = tree.entries(node).unwrap();
                if entries.iter().all(|entry| entry.name.to_str().is_some()) {
                    let ours: Vec<_> = entries.iter().map(|entry| entry.name.clone().into_string().unwrap()).collect();
                    let theirs: Vec<_> = dir.map(|child| child.unwrap().name().unwrap()).collect();
                    assert_eq!(ours, theirs, "{name}");
                }
                // The crate builds its tables anew for each node, so a few of many are enough.
                let step = entries.len() / 50 + 1;
                let readable = entries.into_iter().filter(|entry| entry.name.to_str().is_some()).step_by(step);
                pending.extend(readable.map(|entry| (entry.node, path.join(entry.name))));
            }
        }
    }
}

fn xattrs(node: &Node<'_>) -> HashMap<OsString, Vec<u8>> {
    let prefixes = [(XattrType::User, "user."), (XattrType::Trusted, "trusted."), (XattrType::Security, "security.")];
    let in_space = |(space, prefix): (XattrType, &'static str)| {
        let named = |(name, value)| (OsString::from_vec([prefix.as_bytes(), name].concat()), value);
        node.xattrs(space)
            .unwrap()
            .iter()
            .map(|(name, value)| (&name[..], value.clone()))
            .map(named)
            .collect::<Vec<_>>()
    };
    prefixes.into_iter().flat_map(in_space).collect()
}

fn assert_same_bytes(tree: &Squashfs, node: NodeId, theirs: &mut dyn Read, path: &Path) {
    let (mut our_piece, mut their_piece) = (vec![1; 100_000], vec![2; 100_000]);
    let mut offset = 0;
    loop {
        let count = tree.read(node, offset, &mut our_piece).unwrap();
        if count == 0 {
            return;
        }
        theirs.read_exact(&mut their_piece[..count]).unwrap();
        assert!(our_piece[..count] == their_piece[..count], "{} from byte {offset}", path.display());
        offset += count as u64;
    }
}

#[test]
fn every_compressor_and_option_gives_what_was_packed() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    sample::make(&source);

    for options in VARIANTS {
        println!("mksquashfs {}", options.join(" "));
        let image = dir.path().join("image");
        mksquashfs(&source, &image, options);

        let tree = assert_same_as_others(&image, dir.path());
        assert_same(&tree, &source, Expect::SOURCE);
    }
}

#[test]
fn an_image_without_xattrs_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    std::fs::create_dir(&source).unwrap();
    sample::make(&source);
    mksquashfs(&source, &image, &["-no-xattrs"]);

    let tree = assert_same_as_others(&image, dir.path());

    assert_same(&tree, &source, Expect { xattrs: false, ..Expect::SOURCE });
    let node = resolve(&tree, Path::new("/xattrs/large"), true).unwrap().node.unwrap();
    assert_eq!(tree.xattrs(node).unwrap(), []);
}

#[test]
fn an_image_of_squashfs_tools_ng_gives_what_was_packed() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    sample::make(&source);

    for compressor in ["gzip", "xz", "lzo", "lz4", "zstd"] {
        println!("gensquashfs -c {compressor}");
        let image = dir.path().join("image");
        let mut command = Command::new("gensquashfs");
        command.args(["-q", "-f", "-k", "-x", "-c", compressor, "-D"]).args([&source, &image]);
        run(&mut command);

        let tree = assert_same_as_others(&image, dir.path());
        // gensquashfs 1.2 drops empty values and changes attributes; what it stored was compared above.
        assert_same(&tree, &source, Expect { stored: false, attributes: false, xattrs: false });
    }
}

#[test]
fn a_name_of_256_bytes_is_read_and_a_longer_one_is_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let (list, image) = (dir.path().join("list"), dir.path().join("image"));
    // No Linux filesystem makes such a name, but the format has room for it.
    let longest = "y".repeat(256);
    std::fs::write(&list, format!("dir /{longest} 0755 0 0\nslink /z 0777 0 0 target\n")).unwrap();
    run(Command::new("gensquashfs").args(["-q", "-F"]).args([&list, &image]));

    let tree = open(&image);

    assert_same_as_libsquashfs(&tree, &image);
    let names: Vec<_> = tree.entries(tree.root()).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [&*longest, "z"]);
    assert!(tree.lookup(tree.root(), longest.as_ref()).unwrap().is_some());
    assert_eq!(tree.lookup(tree.root(), format!("{longest}y").as_ref()).unwrap(), None);
}

#[test]
fn a_directory_of_100000_entries_is_listed_and_searched() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    std::fs::create_dir(&source).unwrap();
    for number in 0..100_000 {
        File::create(source.join(format!("a file whose number is {number}"))).unwrap();
    }
    mksquashfs(&source, &image, &["-comp", "zstd"]);

    let tree = open(&image);

    assert_eq!(assert_same(&tree, &source, Expect::SOURCE), 100_001);
    if is_root() {
        let mount = dir.path().join("mount");
        let _mounted = Mount::new(&image, &mount);
        assert_same(&tree, &mount, Expect::MOUNT);
    } else {
        skip("a kernel mount needs root");
    }
}

#[test]
fn a_file_above_4_gib_is_read_across_its_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    std::fs::create_dir(&source).unwrap();
    let mut file = File::create(source.join("large")).unwrap();
    let places = [(0, 1), (1_000_000_000, 2), ((1 << 32) - 500, 3), ((1 << 32) + 300_000_000, 4)];
    for (place, seed) in places {
        file.seek(SeekFrom::Start(place)).unwrap();
        file.write_all(&sample::noise(150_000, seed)).unwrap();
    }
    mksquashfs(&source, &image, &["-comp", "lz4"]);

    let tree = assert_same_as_others_without_libsquashfs(&image, dir.path());

    let node = tree.lookup(tree.root(), "large".as_ref()).unwrap().unwrap();
    for (place, seed) in places.into_iter().rev() {
        let mut content = vec![0; 150_000];
        assert_eq!(tree.read(node, place, &mut content).unwrap(), content.len());
        assert!(content == sample::noise(150_000, seed), "content at byte {place}");
    }
    assert_eq!(tree.attr(node).unwrap().size, (1 << 32) + 300_150_000);
}

/// libsquashfs takes minutes for gigabytes of holes.
fn assert_same_as_others_without_libsquashfs(image: &Path, at: &Path) -> Squashfs {
    let tree = open(image);
    if is_root() {
        let mount = at.join("mount");
        let _mounted = Mount::new(image, &mount);
        assert_same(&tree, &mount, Expect::MOUNT);
    } else {
        skip("a kernel mount needs root");
    }
    tree
}

#[test]
fn what_was_prepared_is_not_decoded_again() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    std::fs::create_dir(&source).unwrap();
    for seed in [1, 3, 5] {
        // Text, since blocks of noise are stored as they are.
        let text = sample::noise(150_000, seed).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        std::fs::write(source.join(seed.to_string()), text).unwrap();
    }
    mksquashfs(&source, &image, &["-comp", "gzip"]);
    let tree = open(&image);
    let files: Vec<_> = tree.entries(tree.root()).unwrap().iter().map(|entry| (entry.node, 10..299_000)).collect();

    tree.prepare(&files);
    let prepared = tree.activity().decoded_blocks;
    for (node, _) in &files {
        assert_eq!(tree.read(*node, 0, &mut vec![0; 299_990]).unwrap(), 299_990);
    }

    assert!(prepared > 3 * 2, "{prepared}");
    assert_eq!(tree.activity().decoded_blocks, prepared);
}

#[test]
fn what_was_decoded_around_a_few_bytes_is_known_until_all_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    std::fs::create_dir(&source).unwrap();
    let text = sample::noise(150_000, 1).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    std::fs::write(source.join("text"), text).unwrap();
    mksquashfs(&source, &image, &["-comp", "gzip", "-no-fragments"]);
    let tree = open(&image);
    let node = tree.entries(tree.root()).unwrap()[0].node;
    let read = |offset: u64, count: usize| assert_eq!(tree.read(node, offset, &mut vec![0; count]).unwrap(), count);
    assert_eq!(tree.decoded_around(node, 200_000), None);

    read(200_000, 10);
    assert_eq!(tree.decoded_around(node, 200_000), Some(131_072..262_144));
    assert_eq!(tree.decoded_around(node, 131_071), None);
    read(299_999, 1);
    assert_eq!(tree.decoded_around(node, 270_000), Some(262_144..300_000), "the last block is shorter");

    read(131_072, 131_072);
    assert_eq!(tree.decoded_around(node, 200_000), None, "the reader has all of it");
    assert_eq!(tree.decoded_around(tree.root(), 0), None);
}

/// An image that says how many bytes of it were read.
#[derive(Debug)]
struct Counted {
    bytes: Vec<u8>,
    read: AtomicUsize,
}

impl ReadAt for Counted {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.fetch_add(buf.len(), Ordering::Relaxed);
        self.bytes.read_exact_at(buf, offset)
    }
}

#[test]
fn a_page_of_a_block_that_is_not_compressed_is_read_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    std::fs::create_dir(&source).unwrap();
    let noise = sample::noise(1_000_000, 9);
    std::fs::write(source.join("noise"), &noise).unwrap();
    mksquashfs(&source, &image, &["-comp", "zstd"]);
    let bytes = Arc::new(Counted { bytes: std::fs::read(&image).unwrap(), read: AtomicUsize::new(0) });
    let tree = Squashfs::open(bytes.clone()).unwrap();
    let node = tree.entries(tree.root()).unwrap()[0].node;
    let read = |offset: usize, count: usize| {
        let before = bytes.read.load(Ordering::Relaxed);
        let mut buf = vec![0; count];
        assert_eq!(tree.read(node, offset as u64, &mut buf).unwrap(), count);
        assert_eq!(buf, noise[offset..offset + count]);
        bytes.read.load(Ordering::Relaxed) - before
    };
    read(0, 4096);

    assert_eq!(read(300_000, 4096), 4096);
    assert_eq!(read(400_000, 16 << 10), 128 << 10, "who may go on has the whole block");
    assert_eq!(read(500_000, 4096), 0, "what is in memory is not read");
    assert!(read((128 << 10) * 5 - 2048, 4096) > 4096, "two blocks");
}

#[test]
fn many_threads_read_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    std::fs::create_dir(&source).unwrap();
    sample::make(&source);
    mksquashfs(&source, &image, &["-comp", "zstd"]);
    let tree = open(&image);

    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_same(&tree, &source, Expect::SOURCE));
        }
    });
}

#[test]
fn what_squashfs_4_does_not_define_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    std::fs::create_dir(&source).unwrap();
    mksquashfs(&source, &image, &["-comp", "gzip"]);
    let good = std::fs::read(&image).unwrap();
    let error_with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        Squashfs::open(Arc::new(image)).unwrap_err()
    };

    assert!(matches!(error_with(0, b"sqsh"), Error::BigEndian));
    assert!(matches!(error_with(0, b"\x7fELF"), Error::BadMagic { found: [0x7f, b'E', b'L', b'F'] }));
    assert!(matches!(error_with(28, &[3, 0, 1, 0]), Error::UnsupportedVersion { major: 3, minor: 1 }));
    assert!(matches!(error_with(20, &[2, 0]), Error::UnsupportedCompressor));
    assert!(matches!(error_with(20, &[7, 0]), Error::UnknownCompressor { id: 7 }));
    assert!(matches!(error_with(12, &[0, 8, 0, 0]), Error::BadBlockSize { block_size: 2048, .. }));
    assert!(matches!(error_with(22, &[16, 0]), Error::BadBlockSize { block_log: 16, .. }));
    let cut = Squashfs::open(Arc::new(good[..good.len() / 100].to_vec())).unwrap_err();
    assert!(matches!(cut, Error::Truncated { .. }), "{cut}");
}

#[test]
fn an_id_that_names_no_node_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    std::fs::create_dir(&source).unwrap();
    mksquashfs(&source, &image, &[]);
    let tree = open(&image);

    for id in [1, 0x1fff, 0xffff, 1 << 16, 1 << 40, u64::MAX] {
        assert!(tree.attr(NodeId(id)).is_err() || id == tree.root().0, "{id:#x}");
        assert!(tree.xattrs(NodeId(id)).is_err() || id == tree.root().0, "{id:#x}");
    }
}

/// The whole of large images: set `SIPHON_IMAGES` to their paths, with `:` between them.
#[test]
#[ignore = "reads large images that are not in the repository"]
fn large_images_are_as_the_kernel_shows_them() {
    let images = std::env::var_os("SIPHON_IMAGES").expect("SIPHON_IMAGES names the images");
    let dir = tempfile::tempdir().unwrap();
    for image in images.as_bytes().split(|byte| *byte == b':') {
        let image = Path::new(std::ffi::OsStr::from_bytes(image));
        let mount = dir.path().join("mount");
        let _mounted = Mount::new(image, &mount);
        println!("{}: {} names", image.display(), assert_same(&open(image), &mount, Expect::MOUNT));
    }
}
