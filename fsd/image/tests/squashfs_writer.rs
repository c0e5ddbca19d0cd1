//! What the squashfs writer writes, read by the kernel, by squashfs-tools and by libsquashfs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a check left out is told")]

mod memory_tree;

use memory_tree::{Content, MemoryTree, assert_same};
use siphon_image::squashfs::format::{Compressor, SUPERBLOCK_BYTES, Superblock};
use siphon_image::squashfs::writer::{Error, Options, Owners, Progress, Summary, write};
use siphon_image::tree::{Kind, NodeId, Tree};
use std::ffi::OsStr;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

const BLOCK: usize = 128 << 10;
const COMPRESSORS: [Compressor; 5] =
    [Compressor::Gzip, Compressor::Zstd, Compressor::Xz, Compressor::Lz4, Compressor::Lzo];

/// Bytes that compress somewhat, different for each seed.
fn text(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::from_fn(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some(format!("{:x} ", state >> 44))
    });
    words.flat_map(String::into_bytes).take(length).collect()
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    std::iter::from_fn(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(state.to_le_bytes())
    })
    .flatten()
    .take(length)
    .collect()
}

/// A tree with every kind of node, basic and extended, and every layout of content.
fn everything() -> MemoryTree {
    let mut tree = MemoryTree::default();
    let root = NodeId(0);
    add_files(&mut tree, root);
    add_special_nodes(&mut tree, root);
    for level in 0..20u32 {
        let parent = NodeId(if level == 0 { 0 } else { tree.nodes.len() as u64 - 2 });
        let directory = tree.directory(parent, format!("deep{level}"));
        tree.file(directory, "same", text(9, 5000));
        tree.node(directory).uid = 1000 + level;
        tree.node(directory).gid = 2_000_000_000 + level;
        tree.node(directory).mtime = i64::from(level) * 200_000_000;
    }
    let owned = tree.directory(root, "with xattrs");
    tree.node(owned).xattrs = vec![("trusted.overlay.opaque".into(), b"y".to_vec()), ("user.empty".into(), Vec::new())];
    tree.directory(root, "empty");
    tree
}

fn add_files(tree: &mut MemoryTree, root: NodeId) {
    for (name, length) in [("none", 0), ("one", 1), ("full", BLOCK), ("more", BLOCK + 1), ("long", 5 * BLOCK + 77)] {
        let file = tree.file(root, name, text(length as u64, length));
        tree.link(root, format!("{name}, by another name"), file);
        tree.file(root, format!("{name}, alone"), text(length as u64 + 1, length));
        tree.file(root, format!("{name}, again"), text(length as u64, length));
    }
    tree.file(root, "noise", noise(3 * BLOCK + 500));
    tree.file(root, [b'n'; 255].as_slice().iter().map(|b| *b as char).collect::<String>(), "long name");
    tree.file(root, "\u{1f6b0} \n\\ '\"", "odd name");
    let hole = [text(1, BLOCK), vec![0; 3 * BLOCK], text(2, BLOCK), vec![0; BLOCK / 2]].concat();
    let hole = tree.file(root, "hole", hole);
    tree.node(hole).mode = 0o4711;
    // Version 2, effective, CAP_NET_RAW.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let capable = tree.file(root, "capable", "x");
    tree.node(capable).xattrs = vec![("security.capability".into(), capability.to_vec())];
    let marked = tree.file(root, "marked", text(77, 3 * BLOCK));
    tree.node(marked).xattrs = vec![("user.big".into(), noise(3000)), ("user.a".into(), b"b".to_vec())];
    let marked_too = tree.file(root, "marked too", "y");
    tree.node(marked_too).xattrs = vec![("user.a".into(), b"b".to_vec()), ("user.big".into(), noise(3000))];
}

fn add_special_nodes(tree: &mut MemoryTree, root: NodeId) {
    let nodes = [
        ("symlink", Content::Symlink("target".into())),
        ("long symlink", Content::Symlink("x".repeat(4000).into())),
        ("character", Content::Special(Kind::CharDevice, 0x103)),
        ("block", Content::Special(Kind::BlockDevice, 0x0ab1_2345)),
        ("fifo", Content::Special(Kind::Fifo, 0)),
        ("socket", Content::Special(Kind::Socket, 0)),
    ];
    for (name, content) in nodes {
        let node = tree.add(root, name, content.clone());
        tree.link(root, format!("{name}, by another name"), node);
        let marked = tree.add(root, format!("{name} with xattrs"), content);
        tree.node(marked).xattrs = vec![("trusted.overlay.origin".into(), b"here".to_vec())];
    }
}

/// A directory of its own for an image and what is read from it.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, tree: &MemoryTree, options: &Options) -> (PathBuf, Summary) {
        let path = self.path(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let summary = write(tree, &file, 0, options, &Progress::default()).unwrap();
        let mut superblock = [0; SUPERBLOCK_BYTES];
        File::open(&path).unwrap().read_exact_at(&mut superblock, 0).unwrap();
        let bytes_used = Superblock::decode(&superblock).unwrap().bytes_used;
        let mut padding = vec![1; usize::try_from(summary.image_bytes - bytes_used).unwrap()];
        File::open(&path).unwrap().read_exact_at(&mut padding, bytes_used).unwrap();
        assert!(padding.len() < 4096 && padding.iter().all(|byte| *byte == 0));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), summary.image_bytes);
        (path, summary)
    }
}

/// Says why a check is left out, which is a failure where all of them must run.
fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "skipped: {reason}");
    eprintln!("skipped: {reason}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn run(program: &str, arguments: &[&OsStr]) -> Option<String> {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) => {
            skip(&format!("{program}: {error}"));
            return None;
        }
    };
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}", text.chars().take(2000).collect::<String>());
    Some(text)
}

/// A loop mount by the kernel, undone when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "squashfs", "-o", "loop,ro"]).args([image, &at]).output().unwrap();
        if mounted.status.success() {
            return Some(Self(at));
        }
        let message = String::from_utf8_lossy(&mounted.stderr).into_owned();
        let unable = !is_root() || message.contains("permission denied") || message.contains("failed to setup loop");
        assert!(unable, "the kernel refuses the image: {message}");
        skip(&format!("cannot mount: {message}"));
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// Whether this kernel has the decompressor, by an image that is not ours.
fn kernel_reads(compressor: Compressor, place: &Place) -> bool {
    let (source, image) = (place.path("probe"), place.path("probe.sqfs"));
    std::fs::create_dir_all(&source).unwrap();
    let name = format!("{compressor:?}").to_lowercase();
    let arguments = [source.as_os_str(), image.as_os_str(), "-noappend".as_ref(), "-comp".as_ref(), name.as_ref()];
    if run("mksquashfs", &arguments).is_none() {
        return false;
    }
    let at = place.path("probe mount");
    std::fs::create_dir_all(&at).unwrap();
    let status = Command::new("mount").args(["-t", "squashfs", "-o", "loop,ro"]).args([&image, &at]).output().unwrap();
    if status.status.success() {
        drop(Mounted(at));
    }
    status.status.success()
}

#[test]
fn the_kernel_reads_back_every_tree() {
    if !is_root() {
        return skip("only root mounts squashfs");
    }
    for compressor in COMPRESSORS {
        let place = Place::new();
        if !kernel_reads(compressor, &place) {
            eprintln!("this kernel has no squashfs with {compressor:?}");
            continue;
        }
        let tree = everything();
        let (image, _) = place.write("image", &tree, &Options { compressor, ..Options::default() });

        let Some(mounted) = Mounted::new(&image, place.path("mounted")) else { return };

        assert_same(&tree, &mounted.0);
    }
}

#[test]
fn squashfs_tools_read_back_every_tree() {
    for compressor in COMPRESSORS {
        let place = Place::new();
        let tree = everything();
        let (image, _) = place.write("image", &tree, &Options { compressor, ..Options::default() });
        let unpacked = place.path("unpacked");

        for mode in ["-stat", "-lls"] {
            let Some(text) = run("unsquashfs", &[mode.as_ref(), image.as_os_str()]) else { return };
            assert!(!text.to_lowercase().contains("error"), "{text}");
        }
        if !is_root() {
            return skip("only root unpacks device nodes");
        }
        let arguments: [&OsStr; 4] = ["-n".as_ref(), "-d".as_ref(), unpacked.as_ref(), image.as_ref()];
        let text = run("unsquashfs", &arguments).unwrap_or_default();

        assert!(!text.to_lowercase().contains("error"), "{text}");
        assert_same(&tree, &unpacked);
    }
}

#[test]
fn libsquashfs_reads_back_content() {
    // The licence of LZO keeps it out of libsquashfs.
    for compressor in COMPRESSORS.into_iter().filter(|compressor| *compressor != Compressor::Lzo) {
        let place = Place::new();
        let tree = everything();
        let (image, summary) = place.write("image", &tree, &Options { compressor, ..Options::default() });

        let archive = squashfs_ng::read::Archive::open(&image).unwrap();

        assert_eq!(archive.size(), summary.inodes);
        for (name, length) in [("none", 0), ("one", 1), ("full", BLOCK), ("more", BLOCK + 1), ("long", 5 * BLOCK + 77)]
        {
            for copy in ["", ", again", ", by another name"] {
                let node = archive.get_exists(format!("{name}{copy}")).unwrap();
                let found = node.as_file().unwrap().to_bytes().unwrap();
                assert!(found == text(length as u64, length), "{name}{copy} with {compressor:?}");
            }
        }
        let marked = archive.get_exists("marked too").unwrap();
        let xattrs = marked.xattrs(squashfs_ng::read::XattrType::User).unwrap();
        assert_eq!(xattrs.len(), 2);
        assert_eq!(xattrs.get(b"a".as_slice()), Some(&b"b".to_vec()), "{:?}", xattrs.keys());
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let place = Place::new();
    let tree = everything();
    let options = |threads| Options { threads: NonZeroUsize::new(threads).unwrap(), ..Options::default() };

    let (one, _) = place.write("one", &tree, &options(1));
    let (four, _) = place.write("four", &tree, &options(4));

    assert!(std::fs::read(one).unwrap() == std::fs::read(four).unwrap());
}

#[test]
fn blocks_of_equal_lengths_and_other_content_are_stored_apart() {
    let place = Place::new();
    let mut tree = MemoryTree::default();
    let bytes = noise(2 * BLOCK);
    let another = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (name, content) in [
        ("a", bytes.clone()),
        ("b", another(0)),
        ("c", another(2 * BLOCK - 1)),
        ("d", bytes.clone()),
        ("e", another(2 * BLOCK - 1)),
        ("f", another(BLOCK)),
    ] {
        tree.file(NodeId(0), name, content);
    }

    let (image, summary) = place.write("image", &tree, &Options::default());

    assert!((8 * BLOCK as u64..9 * BLOCK as u64).contains(&summary.image_bytes), "{summary:?}");
    let read =
        siphon_image::squashfs::reader::Squashfs::open(std::sync::Arc::new(std::fs::read(image).unwrap())).unwrap();
    for (name, node) in tree.entries(tree.root()).unwrap().into_iter().map(|entry| (entry.name, entry.node)) {
        let found = read.lookup(read.root(), &name).unwrap().unwrap();
        let (mut expected, mut content) = (vec![0; 2 * BLOCK], vec![0; 2 * BLOCK]);
        tree.read(node, 0, &mut expected).unwrap();
        assert_eq!(read.read(found, 0, &mut content).unwrap(), 2 * BLOCK);
        assert!(content == expected, "{name:?}");
    }
}

#[test]
fn equal_content_is_stored_once() {
    let place = Place::new();
    let mut tree = MemoryTree::default();
    let bytes = noise(20 * BLOCK + 1000);
    tree.file(NodeId(0), "a", bytes.clone());
    let (_, once) = place.write("once", &tree, &Options::default());
    tree.file(NodeId(0), "b", bytes.clone());
    tree.file(NodeId(0), "c", bytes);
    tree.file(NodeId(0), "aa", text(3, 2 * BLOCK));

    let (image, thrice) = place.write("thrice", &tree, &Options::default());

    assert!(thrice.image_bytes < once.image_bytes + 2 * BLOCK as u64, "{once:?} {thrice:?}");
    let unpacked = place.path("unpacked");
    if run("unsquashfs", &["-d".as_ref(), unpacked.as_ref(), image.as_ref()]).is_some() && is_root() {
        assert_same(&tree, &unpacked);
    }
}

#[test]
fn every_name_of_a_large_directory_is_found() {
    let place = Place::new();
    let mut tree = MemoryTree::default();
    let large = tree.directory(NodeId(0), "large");
    for number in 0..100_000u32 {
        tree.file(large, format!("{number}-with-a-name-of-some-length"), number.to_string());
    }
    let (image, summary) = place.write("image", &tree, &Options::default());

    assert_eq!(summary.inodes, 100_002);
    let archive = squashfs_ng::read::Archive::open(&image).unwrap();
    assert!(archive.get("large/99999-with-a-name-of-some-length").unwrap().is_some());
    if !is_root() {
        return skip("only root mounts squashfs");
    }
    let Some(mounted) = Mounted::new(&image, place.path("mounted")) else { return };
    let listed = std::fs::read_dir(mounted.0.join("large")).unwrap().count();
    assert_eq!(listed, 100_000);
    for number in (0..100_000u32).step_by(37) {
        let path = mounted.0.join("large").join(format!("{number}-with-a-name-of-some-length"));
        assert_eq!(std::fs::read_to_string(path).unwrap(), number.to_string());
    }
    assert!(!mounted.0.join("large/absent").exists());
}

#[test]
fn a_file_of_more_than_four_gib_is_mostly_holes() {
    let place = Place::new();
    let mut tree = MemoryTree::default();
    tree.add(NodeId(0), "large", Content::File(text(1, 3 * BLOCK), (5 << 30) + 3));
    let (image, summary) = place.write("image", &tree, &Options::default());

    assert!(summary.image_bytes < 2 << 20, "{summary:?}");
    let archive = squashfs_ng::read::Archive::open(&image).unwrap();
    assert_eq!(archive.get_exists("large").unwrap().as_file().unwrap().size(), (5 << 30) + 3);
    if !is_root() {
        return skip("only root mounts squashfs");
    }
    let Some(mounted) = Mounted::new(&image, place.path("mounted")) else { return };
    assert_same(&tree, &mounted.0);
}

#[test]
fn an_image_may_begin_anywhere_in_its_file() {
    let place = Place::new();
    let (alone, _) = place.write("alone", &everything(), &Options::default());
    let path = place.path("behind");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(&[b'#'; 40960], 0).unwrap();

    write(&everything(), &file, 40960, &Options::default(), &Progress::default()).unwrap();

    let behind = std::fs::read(path).unwrap();
    assert!(behind[..40960].iter().all(|b| *b == b'#'));
    assert!(behind[40960..] == std::fs::read(alone).unwrap());
}

#[test]
fn files_of_the_mapped_owner_become_those_of_root() {
    let place = Place::new();
    let mut tree = MemoryTree::default();
    for (name, uid, gid) in [("mine", 1000, 100), ("theirs", 1001, 101), ("mixed", 1000, 101)] {
        let file = tree.file(NodeId(0), name, name);
        tree.node(file).uid = uid;
        tree.node(file).gid = gid;
    }
    let owners = Owners::MapToRoot { uid: 1000, gid: 100 };

    let (image, _) = place.write("image", &tree, &Options { owners, ..Options::default() });

    let archive = squashfs_ng::read::Archive::open(&image).unwrap();
    let owner = |name: &str| {
        let node = archive.get_exists(name).unwrap();
        (node.uid().unwrap(), node.gid().unwrap())
    };
    assert_eq!([owner("mine"), owner("theirs"), owner("mixed")], [(0, 0), (1001, 101), (0, 101)]);
}

#[test]
fn xattrs_that_squashfs_cannot_hold_are_counted() {
    let place = Place::new();
    let mut tree = MemoryTree::default();
    tree.node(NodeId(0)).xattrs = vec![("system.posix_acl_access".into(), vec![1]), ("user.x".into(), vec![2])];

    let (_, summary) = place.write("image", &tree, &Options::default());

    assert_eq!(summary.xattrs_left_out, 1);
}

#[test]
fn what_no_image_can_hold_is_refused() {
    let too_long = "a".repeat(257);
    type Expected = fn(&Error) -> bool;
    let cases: [(&str, Content, Expected); 4] = [
        ("a/b", Content::File(Vec::new(), 0), |error| matches!(error, Error::BadName(_))),
        (too_long.as_str(), Content::File(Vec::new(), 0), |error| matches!(error, Error::BadName(_))),
        ("link", Content::Symlink("x".repeat(4097).into()), |error| matches!(error, Error::LinkTooLong(_))),
        ("endless", Content::File(Vec::new(), u64::MAX), |error| matches!(error, Error::FileTooLarge { .. })),
    ];
    for (name, content, expected) in cases {
        let mut tree = MemoryTree::default();
        tree.add(NodeId(0), name, content);

        let file = tempfile::tempfile().unwrap();
        let error = write(&tree, &file, 0, &Options::default(), &Progress::default()).unwrap_err();

        assert!(expected(&error), "{name}: {error}");
    }
}

#[test]
fn a_directory_that_holds_itself_is_refused() {
    let mut tree = MemoryTree::default();
    tree.link(NodeId(0), "loop", NodeId(0));

    let result = write(&tree, &tempfile::tempfile().unwrap(), 0, &Options::default(), &Progress::default());

    assert!(matches!(result, Err(Error::DirectoryTwice(_))));
}

#[test]
fn options_that_the_format_lacks_are_refused() {
    let tree = MemoryTree::default();
    let try_options =
        |options: Options| write(&tree, &tempfile::tempfile().unwrap(), 0, &options, &Progress::default()).map(|_| ());

    for block_size in [0, 1000, 2048, 3 << 16, 2 << 20] {
        let result = try_options(Options { block_size, ..Options::default() });
        assert!(matches!(result, Err(Error::BlockSize(_))), "{block_size}");
    }
    for (compressor, level) in
        [(Compressor::Zstd, 23), (Compressor::Gzip, 0), (Compressor::Lz4, 1), (Compressor::Xz, 10)]
    {
        let result = try_options(Options { compressor, level: Some(level), ..Options::default() });
        assert!(matches!(result, Err(Error::Level { .. })), "{compressor:?}");
    }
    let lzma = try_options(Options { compressor: Compressor::Lzma, ..Options::default() });
    assert!(matches!(lzma, Err(Error::Compressor(Compressor::Lzma))));
}

#[test]
fn every_block_size_and_level_can_be_read() {
    for block_size in [4 << 10, 64 << 10, 1 << 20] {
        for (compressor, level) in [(Compressor::Gzip, 1), (Compressor::Zstd, 19), (Compressor::Xz, 0)] {
            let place = Place::new();
            let mut tree = MemoryTree::default();
            tree.file(NodeId(0), "a", text(1, 3_000_000));
            tree.file(NodeId(0), "b", text(2, 3_000));
            let options = Options { compressor, level: Some(level), block_size, ..Options::default() };
            let (image, _) = place.write("image", &tree, &options);

            let archive = squashfs_ng::read::Archive::open(&image).unwrap();
            let found = archive.get_exists("a").unwrap().as_file().unwrap().to_bytes().unwrap();
            assert!(found == text(1, 3_000_000), "{options:?}");
            let Some(text) = run("unsquashfs", &["-stat".as_ref(), image.as_os_str()]) else { return };
            assert!(text.contains(&format!("Block size {block_size}")), "{text}");
        }
    }
}

#[test]
fn a_cancelled_write_stops() {
    let progress = Progress::default();
    progress.cancel.store(true, Ordering::Relaxed);

    let result = write(&everything(), &tempfile::tempfile().unwrap(), 0, &Options::default(), &progress);

    assert!(matches!(result, Err(Error::Cancelled)));
}

#[test]
fn progress_ends_at_its_totals() {
    let progress = Progress::default();

    let summary = write(&everything(), &tempfile::tempfile().unwrap(), 0, &Options::default(), &progress).unwrap();

    assert_eq!(progress.bytes_read.load(Ordering::Relaxed), summary.content_bytes);
    assert_eq!(progress.bytes_total.load(Ordering::Relaxed), summary.content_bytes);
    assert_eq!(progress.files_done.load(Ordering::Relaxed), summary.files);
    assert!(progress.bytes_written.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_full_disk_is_an_error_and_not_a_hang() {
    let full = File::options().write(true).open("/dev/full").unwrap();

    let result = write(&everything(), &full, 0, &Options::default(), &Progress::default());

    assert!(matches!(result, Err(Error::Output(_))), "{result:?}");
}
