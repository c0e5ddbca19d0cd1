//! Commits of commits: each image takes its unchanged content over from the one before, and must equal the merged view
//! that it was made from in everything.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the seed of a random test is told")]

use siphon_image::directory::Directory;
use siphon_image::oci::base::Changed;
use siphon_image::oci::blobs::Blobs;
use siphon_image::oci::layers::Source;
use siphon_image::oci::{Descriptor, Digest, pack};
use siphon_image::read_at::{FileAt, ReadAt};
use siphon_image::squashfs::format::Compressor;
use siphon_image::squashfs::reader::Squashfs;
use siphon_image::squashfs::writer::{
    Copied, Error, Options, Owners, Progress, Summary, copy_base, write, write_over, write_over_copied,
};
use siphon_image::tree::{self, Attr, EmptyTree, Entry, Kind, NodeId, Statistics, Tree, Xattr};
use siphon_overlay::diff::{Changes, paths};
use siphon_overlay::upper::Upper;
use siphon_overlay::view::{Ino, OpenMode, Permissions, RenameMode, SetAttr, SetTime, View};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Generations of one line of images.
const GENERATIONS: u64 = 20;
const BLOCK: usize = 4096;
const WRITE: OpenMode = OpenMode { write: true, append: false, truncate: false };

/// xorshift64*: enough for a test, and its seed is all there is to repeat it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    /// Some compress, some do not, some are holes, some end in a fragment, some were there before.
    fn content(&mut self) -> Vec<u8> {
        let length = [0, 1, 100, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 77, 20 * BLOCK][self.below(8)];
        match self.below(4) {
            0 => vec![0; length],
            1 => std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(length).collect(),
            2 => b"the same in many files ".iter().copied().cycle().take(length).collect(),
            _ => {
                let word = format!("{:x} ", self.next());
                word.into_bytes().into_iter().cycle().take(length).collect()
            }
        }
    }
}

fn options(compressor: Compressor, threads: usize, compact_percent: u8) -> Options {
    let threads = NonZeroUsize::new(threads).unwrap();
    Options { compressor, threads, compact_percent, block_size: BLOCK as u32, ..Options::default() }
}

fn open(path: &Path) -> Arc<Squashfs> {
    Arc::new(Squashfs::open(Arc::new(FileAt::new(File::open(path).unwrap()).unwrap())).unwrap())
}

fn create(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

fn commit(tree: &dyn Tree, base: &Squashfs, path: &Path, options: &Options) -> Result<Summary, Error> {
    write_over(tree, Some(base), &create(path), 0, options, &Progress::default())
}

fn layer_over(base: Arc<Squashfs>, directory: &Path) -> View {
    std::fs::create_dir(directory).unwrap();
    View::new(base, Some(Upper::open(directory).unwrap())).unwrap()
}

fn directories(view: &View) -> Vec<Ino> {
    let mut found = vec![Ino::ROOT];
    let mut next = 0;
    while let Some(directory) = found.get(next).copied() {
        next += 1;
        for entry in view.entries(directory).unwrap() {
            let (ino, attr) = view.lookup(directory, &entry.name).unwrap();
            if attr.kind == Kind::Directory {
                found.push(ino);
            }
        }
    }
    found
}

fn write_file(view: &View, directory: Ino, name: &str, content: &[u8]) {
    let made = view.create(
        directory,
        OsStr::new(name),
        Permissions::exactly(0o644),
        None,
        OpenMode { truncate: true, ..WRITE },
    );
    let (.., file) = made.unwrap();
    view.write(&file, 0, content).unwrap();
}

/// Changes of every kind at random places.
fn change(view: &View, random: &mut Random) {
    for _ in 0..25 {
        let directories = directories(view);
        let directory = directories[random.below(directories.len())];
        let name = format!("n{}", random.below(12));
        let known = view.lookup(directory, OsStr::new(&name)).ok();
        match (random.below(8), known) {
            (0, None) if directories.len() < 30 => {
                view.make_directory(directory, OsStr::new(&name), Permissions::exactly(0o755), None).unwrap();
            }
            (1, None) => {
                view.make_symlink(directory, OsStr::new(&name), OsStr::new("target"), None).unwrap();
            }
            (_, None) => write_file(view, directory, &name, &random.content()),
            (2, Some((_, attr))) if attr.kind != Kind::Directory => {
                view.unlink(directory, OsStr::new(&name)).unwrap();
            }
            (3, Some((ino, attr))) if attr.kind != Kind::Symlink => {
                let change = SetAttr {
                    mode: Some(if attr.kind == Kind::Directory { 0o751 } else { 0o640 }),
                    ..SetAttr::default()
                };
                view.set_attr(ino, &change).unwrap();
            }
            (4, Some((ino, attr))) if attr.kind == Kind::File => {
                let file = view.open(ino, WRITE).unwrap();
                view.write(&file, attr.size / 2, &random.content()).unwrap();
            }
            (5, Some((ino, attr))) if attr.kind == Kind::File => {
                let other = format!("link{}", random.below(1000));
                if view.lookup(directory, OsStr::new(&other)).is_err() {
                    view.link(ino, directory, OsStr::new(&other)).unwrap();
                }
            }
            (6, Some((ino, attr))) if attr.kind == Kind::File => {
                let change = SetAttr { mtime: Some(SetTime::At(Default::default())), ..SetAttr::default() };
                view.set_attr(ino, &change).unwrap();
            }
            _ => {}
        }
    }
}

/// Fails unless both trees have the same names, attributes, links and content.
fn assert_equal(view: &dyn Tree, image: &dyn Tree, what: &str) {
    let changes: Vec<_> = Changes::between(view, image, Owners::Keep).collect();
    assert!(changes.is_empty(), "{what}: {changes:?}");
    let mut pending = vec![(view.root(), image.root())];
    while let Some((ours, theirs)) = pending.pop() {
        for entry in view.entries(ours).unwrap() {
            let node = image.lookup(theirs, &entry.name).unwrap().unwrap();
            let (old, new) = (view.attr(entry.node).unwrap(), image.attr(node).unwrap());
            assert_eq!(old.mtime.seconds, new.mtime.seconds, "{what}: time of {:?}", entry.name);
            if old.kind == Kind::Directory {
                pending.push((entry.node, node));
            }
        }
    }
}

/// Names of every file of the tree that is the same file: hard links.
fn links(tree: &dyn Tree) -> Vec<Vec<PathBuf>> {
    let mut names = std::collections::BTreeMap::<NodeId, Vec<PathBuf>>::new();
    let mut pending = vec![(tree.root(), PathBuf::from("/"))];
    while let Some((directory, path)) = pending.pop() {
        for entry in tree.entries(directory).unwrap() {
            let path = path.join(&entry.name);
            match entry.kind {
                Kind::Directory => pending.push((entry.node, path)),
                _ => names.entry(entry.node).or_default().push(path),
            }
        }
    }
    let mut linked: Vec<_> = names.into_values().filter(|names| names.len() > 1).collect();
    linked.iter_mut().for_each(|names| names.sort());
    linked.sort();
    linked
}

#[test]
fn commits_of_commits_equal_the_merged_view_each_time() {
    let compressors = [Compressor::Zstd, Compressor::Gzip, Compressor::Lz4, Compressor::Xz, Compressor::Lzo];
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = u64::from(now.subsec_nanos()) | 1;
    for (line, compressor) in compressors.into_iter().enumerate() {
        let seed = std::env::var("SEED").map_or(seed + 2 * line as u64, |text| text.parse().unwrap());
        println!("seed {seed}, {compressor:?}");
        let mut random = Random(seed);
        let place = tempfile::tempdir().unwrap();
        let mut present = place.path().join("image 0");
        let file = create(&present);
        write(&EmptyTree, &file, 0, &options(compressor, 1, 3), &Progress::default()).unwrap();
        for generation in 1..=GENERATIONS {
            let base = open(&present);
            let layer = place.path().join(format!("layer {generation}"));
            change(&layer_over(base.clone(), &layer), &mut random);
            // As a commit has it: opened anew.
            let view = View::new(base.clone(), Some(Upper::open(&layer).unwrap())).unwrap();
            let compact = [0, 3, 100][random.below(3)];
            present = place.path().join(format!("image {generation}"));
            commit(&view, &base, &present, &options(compressor, 1 + random.below(4), compact)).unwrap();

            let image = open(&present);
            let what = format!("seed {seed}, {compressor:?}, generation {generation}");
            assert_equal(&view, image.as_ref(), &what);
            assert_eq!(links(&view), links(image.as_ref()), "{what}: hard links");
        }
        let unpacked = place.path().join("unpacked");
        let output = std::process::Command::new("unsquashfs")
            .args(["-no-progress", "-no-xattrs", "-d"])
            .args([&unpacked, &present])
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "seed {seed}, {compressor:?}: {output:?}");
        let unpacked = siphon_image::directory::Directory::open(&unpacked).unwrap();
        assert_equal(open(&present).as_ref(), &unpacked, &format!("seed {seed}, {compressor:?}, unsquashfs"));
    }
}

/// Layers in memory, by their digests.
#[derive(Debug, Default)]
struct Layers(BTreeMap<String, Vec<u8>>);

impl Blobs for Layers {
    fn open(&self, blob: &Descriptor) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        Ok(Box::new(std::io::Cursor::new(self.0[blob.digest().as_ref() as &str].clone())))
    }
}

/// `tree`, or what of it `changed` names, as a layer that is not compressed, with its digest.
fn packed(tree: &dyn Tree, changed: Option<&Changed>) -> (String, Vec<u8>) {
    let mut tar = Vec::new();
    pack::write(tree, changed, &[], 0, &mut tar).unwrap();
    let fill = |out: &mut dyn std::io::Write| out.write_all(&tar);
    let sum = pack::compressed(NonZeroUsize::MIN, fill, |_| Ok(())).unwrap();
    (sum.diff_id, tar)
}

/// What a runtime makes of these layers, the lowest first.
fn applied(layers: &[(String, Vec<u8>)]) -> Squashfs {
    let digests: Vec<Digest> = layers.iter().map(|(digest, _)| digest.parse().unwrap()).collect();
    let described = |(digest, tar): (&Digest, &(String, Vec<u8>))| {
        Descriptor::new("application/vnd.oci.image.layer.v1.tar".into(), tar.1.len() as u64, digest.clone())
    };
    let source = Source {
        layers: digests.iter().zip(layers).map(described).collect(),
        diff_ids: digests,
        blobs: Arc::new(Layers(layers.iter().cloned().collect())),
        fetched_bytes: Arc::default(),
    };
    let file = tempfile::tempfile().unwrap();
    siphon_image::oci::layers::write(&source, &[], 0, &file, 0, &Options::default(), &Progress::default()).unwrap();
    Squashfs::open(Arc::new(FileAt::new(file).unwrap())).unwrap()
}

#[test]
fn an_image_is_the_one_it_goes_back_to_and_a_layer_of_what_commits_changed() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = std::env::var("SEED").map_or(u64::from(now.subsec_nanos()) | 1, |text| text.parse().unwrap());
    println!("seed {seed}");
    let mut random = Random(seed);
    let place = tempfile::tempdir().unwrap();
    let path = |generation: u64| place.path().join(format!("image {generation}"));
    let options = options(Compressor::Zstd, 2, 3);
    write(&EmptyTree, &create(&path(0)), 0, &options, &Progress::default()).unwrap();
    let mut first = None;
    let mut changed = Changed::default();
    for generation in 1..=GENERATIONS {
        let base = open(&path(generation - 1));
        let view = layer_over(base.clone(), &place.path().join(format!("layer {generation}")));
        change(&view, &mut random);
        change_names(&view, &mut random);
        if first.is_some() {
            assert!(paths(base.as_ref(), &view, Owners::Keep, &mut changed).unwrap());
        }
        commit(&view, &base, &path(generation), &options).unwrap();
        let image = open(&path(generation));
        let lowest = first.get_or_insert_with(|| packed(image.as_ref(), None));

        let merged = applied(&[lowest.clone(), packed(image.as_ref(), Some(&changed))]);

        let changes: Vec<_> = Changes::between(image.as_ref(), &merged, Owners::Keep).collect();
        assert!(changes.is_empty(), "seed {seed}, generation {generation}: {changes:?}");
        assert_eq!(links(image.as_ref()), links(&merged), "seed {seed}, generation {generation}: hard links");
    }
}

/// Directories that go, come again, and take the place of files.
fn change_names(view: &View, random: &mut Random) {
    let directories = directories(view);
    let directory = directories[random.below(directories.len())];
    let name = format!("n{}", random.below(12));
    let known = view.lookup(directory, OsStr::new(&name)).ok();
    if let Some((ino, attr)) = known {
        if attr.kind == Kind::Directory {
            for entry in view.entries(ino).unwrap() {
                let _what_is_not_empty_stays = view.remove_directory(ino, &entry.name);
                let _only_files_go = view.unlink(ino, &entry.name);
            }
            if view.remove_directory(directory, OsStr::new(&name)).is_err() {
                return;
            }
        } else {
            view.unlink(directory, OsStr::new(&name)).unwrap();
        }
        if random.below(2) == 0 && attr.kind == Kind::Directory {
            write_file(view, directory, &name, b"in the place of a directory");
        } else if random.below(2) == 0 {
            view.make_directory(directory, OsStr::new(&name), Permissions::exactly(0o755), None).unwrap();
        }
    }
}

/// A base with two files of blocks, one in the middle of the content, and a layer over it.
fn two_files(place: &Path) -> (Arc<Squashfs>, View) {
    let source = place.join("source");
    std::fs::create_dir(&source).unwrap();
    let mut random = Random(7);
    let mut noise = || -> Vec<u8> {
        std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(40 * BLOCK + 5).collect()
    };
    for name in ["a", "b", "c"] {
        std::fs::write(source.join(name), noise()).unwrap();
    }
    let tree = siphon_image::directory::Directory::open(&source).unwrap();
    let file = create(&place.join("base"));
    write(&tree, &file, 0, &options(Compressor::Zstd, 2, 3), &Progress::default()).unwrap();
    let base = open(&place.join("base"));
    (base.clone(), layer_over(base, &place.join("layer")))
}

#[test]
fn what_did_not_change_is_not_compressed_again() {
    let place = tempfile::tempdir().unwrap();
    let (base, view) = two_files(place.path());
    write_file(&view, Ino::ROOT, "new", b"new");

    let summary = commit(&view, &base, &place.path().join("image"), &options(Compressor::Gzip, 1, 3)).unwrap();

    assert_eq!(summary.carried_bytes, 3 * (40 * BLOCK as u64 + 5));
    let image = open(&place.path().join("image"));
    assert_eq!(image.superblock().compressor_id, Compressor::Zstd.id(), "as the base");
    assert_equal(&view, image.as_ref(), "one new file");
}

#[test]
fn a_moved_or_touched_file_is_found_in_the_base() {
    let place = tempfile::tempdir().unwrap();
    let (base, view) = two_files(place.path());
    view.rename(Ino::ROOT, OsStr::new("a"), Ino::ROOT, OsStr::new("z"), RenameMode::Replace).unwrap();
    let (b, _) = view.lookup(Ino::ROOT, OsStr::new("b")).unwrap();
    view.set_attr(b, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();

    let summary = commit(&view, &base, &place.path().join("image"), &options(Compressor::Zstd, 1, 3)).unwrap();

    assert_eq!(summary.carried_bytes, 3 * (40 * BLOCK as u64 + 5));
    let base_bytes = File::open(place.path().join("base")).unwrap().metadata().unwrap().len();
    assert!(summary.image_bytes <= base_bytes + 4096, "{} after {base_bytes}", summary.image_bytes);
    assert_equal(&view, open(&place.path().join("image")).as_ref(), "moved and touched");
}

#[test]
fn unused_content_goes_where_it_is_worth_it() {
    let place = tempfile::tempdir().unwrap();
    let (base, view) = two_files(place.path());
    view.unlink(Ino::ROOT, OsStr::new("b")).unwrap();

    let kept = commit(&view, &base, &place.path().join("kept"), &options(Compressor::Zstd, 1, 40)).unwrap();
    let dropped = commit(&view, &base, &place.path().join("dropped"), &options(Compressor::Zstd, 1, 30)).unwrap();

    assert_eq!(kept.dropped_bytes, 0);
    assert!(dropped.dropped_bytes >= 40 * BLOCK as u64 && kept.image_bytes - dropped.image_bytes >= 39 * BLOCK as u64);
    for name in ["kept", "dropped"] {
        assert_equal(&view, open(&place.path().join(name)).as_ref(), name);
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let place = tempfile::tempdir().unwrap();
    let (base, view) = two_files(place.path());
    let mut random = Random(3);
    change(&view, &mut random);

    let made: Vec<Vec<u8>> = [1, 2, 7]
        .map(|threads| {
            let path = place.path().join(format!("by {threads}"));
            commit(&view, &base, &path, &options(Compressor::Zstd, threads, 3)).unwrap();
            std::fs::read(path).unwrap()
        })
        .into();

    assert!(made[0] == made[1] && made[1] == made[2]);
}

/// The base's bytes, but for one number of the inode of `c` that is another.
#[test]
fn a_base_whose_blocks_lie_where_none_may_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for (name, length) in [("a", 3 * BLOCK), ("b", 2 * BLOCK)] {
        std::fs::write(source.join(name), name.as_bytes().iter().copied().cycle().take(length).collect::<Vec<_>>())
            .unwrap();
    }
    let tree = siphon_image::directory::Directory::open(&source).unwrap();
    let path = place.path().join("base");
    let file = create(&path);
    // Tables that can be changed without a compressor.
    let plain = Options { uncompressed: true, ..options(Compressor::Gzip, 1, 3) };
    write(&tree, &file, 0, &plain, &Progress::default()).unwrap();
    let good = std::fs::read(&path).unwrap();
    // The inode of `b`: its start, no fragment, its size, then the sizes of its blocks.
    let inode = [
        &(96 + 3 * BLOCK as u32).to_le_bytes()[..],
        &u32::MAX.to_le_bytes(),
        &[0; 4],
        &(2 * BLOCK as u32).to_le_bytes(),
    ]
    .concat();
    let at = good.windows(inode.len()).position(|bytes| bytes == inode).expect("the inode is there");
    let cases: [(&str, usize, u32, bool); 6] = [
        ("a start in the superblock", at, 5, false),
        ("a start in the tables", at, good.len() as u32 - BLOCK as u32, false),
        ("a start beyond all", at, u32::MAX - 3, false),
        ("a start within another block", at, 96 + BLOCK as u32 + 5, true),
        ("a block longer than a block", at + 16, 1 << 24 | (BLOCK as u32 + 1), false),
        ("a size of unknown bits", at + 16, 1 << 30, false),
    ];

    for (what, offset, value, is_overlap) in cases {
        let mut bytes = good.clone();
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        let base = Squashfs::open(Arc::new(bytes)).unwrap();
        let outcome = commit(&base, &base, &place.path().join("image"), &options(Compressor::Gzip, 1, 3));
        match outcome {
            Err(Error::BaseContent { .. }) if !is_overlap => {}
            Err(Error::BaseOverlap { .. }) if is_overlap => {}
            other => panic!("{what}: {other:?}"),
        }
    }
    let base = Squashfs::open(Arc::new(good)).unwrap();
    commit(&base, &base, &place.path().join("image"), &options(Compressor::Gzip, 1, 3)).unwrap();
}

/// An image whose tables can be read, and whose content not as a whole.
#[derive(Debug)]
struct Torn(Vec<u8>);

impl ReadAt for Torn {
    fn len(&self) -> u64 {
        self.0.as_slice().len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        if buf.len() > 3 * BLOCK {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        self.0.read_exact_at(buf, offset)
    }
}

#[test]
fn a_base_that_breaks_off_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    two_files(place.path());
    let base = Squashfs::open(Arc::new(Torn(std::fs::read(place.path().join("base")).unwrap()))).unwrap();

    let outcome = commit(&base, &base, &place.path().join("image"), &options(Compressor::Zstd, 2, 3));

    assert!(matches!(outcome, Err(Error::BaseRead(_))), "{outcome:?}");
}

/// A tree that counts how often directories are listed.
#[derive(Debug)]
struct Listed {
    tree: Arc<Squashfs>,
    listings: AtomicUsize,
}

impl Tree for Listed {
    fn root(&self) -> NodeId {
        self.tree.root()
    }

    fn attr(&self, node: NodeId) -> Result<Attr, tree::Error> {
        self.tree.attr(node)
    }

    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, tree::Error> {
        self.tree.lookup(dir, name)
    }

    fn entries(&self, dir: NodeId) -> Result<Vec<Entry>, tree::Error> {
        self.listings.fetch_add(1, Ordering::Relaxed);
        self.tree.entries(dir)
    }

    fn read_link(&self, node: NodeId) -> Result<OsString, tree::Error> {
        self.tree.read_link(node)
    }

    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, tree::Error> {
        self.tree.read(node, offset, buf)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, tree::Error> {
        self.tree.xattrs(node)
    }

    fn origin(&self, node: NodeId) -> Option<(&dyn Tree, NodeId)> {
        self.tree.origin(node)
    }

    fn statistics(&self) -> Statistics {
        self.tree.statistics()
    }
}

#[test]
fn directories_that_no_layer_has_are_not_looked_into_for_changes() {
    let place = tempfile::tempdir().unwrap();
    for number in 0..20 {
        std::fs::create_dir_all(place.path().join(format!("tree/untouched/{number}"))).unwrap();
    }
    std::fs::create_dir_all(place.path().join("tree/touched")).unwrap();
    let tree = Directory::open(&place.path().join("tree")).unwrap();
    let base = place.path().join("base");
    write(&tree, &create(&base), 0, &options(Compressor::Zstd, 1, 100), &Progress::default()).unwrap();
    let base = Arc::new(Listed { tree: open(&base), listings: AtomicUsize::new(0) });
    for name in ["lower", "upper"] {
        std::fs::create_dir(place.path().join(name)).unwrap();
    }
    let layer = |name, tree| View::new(tree, Some(Upper::open(&place.path().join(name)).unwrap())).unwrap();
    let below = layer("lower", base.clone());
    let (touched, _) = below.lookup(Ino::ROOT, OsStr::new("touched")).unwrap();
    write_file(&below, touched, "first", b"1");
    let view = layer("upper", Arc::new(below));
    write_file(&view, view.lookup(Ino::ROOT, OsStr::new("touched")).unwrap().0, "second", b"2");
    base.listings.store(0, Ordering::Relaxed);

    let mut changed = Changed::default();
    assert!(paths(base.as_ref(), &view, Owners::Keep, &mut changed).unwrap());

    assert_eq!(changed.paths().collect::<Vec<_>>(), [Path::new("touched/first"), Path::new("touched/second")]);
    // The root and `touched`, of the image alone and as what the layers lie over.
    assert_eq!(base.listings.load(Ordering::Relaxed), 4);
}

#[test]
fn what_was_copied_before_makes_the_same_image() {
    let place = tempfile::tempdir().unwrap();
    let (base, view) = two_files(place.path());
    view.unlink(Ino::ROOT, OsStr::new("b")).unwrap();
    write_file(&view, Ino::ROOT, "new", b"new");
    let start_bytes = 8192;

    // Taken over as it lies, or moved together.
    for compact_percent in [40, 30] {
        let options = options(Compressor::Zstd, 1, compact_percent);
        let made = |copied: &dyn Fn(&File) -> Copied| {
            let path = place.path().join("image");
            let file = create(&path);
            let base = Some((base.as_ref(), copied(&file)));
            write_over_copied(&view, base, &file, start_bytes, &options, &Progress::default()).unwrap();
            std::fs::read(&path).unwrap()
        };
        let whole = made(&|file| {
            let copied = copy_base(&base, file, start_bytes, || true);
            assert!(file.metadata().unwrap().len() > 3 * 40 * BLOCK as u64, "nothing was copied");
            copied
        });

        assert!(whole == made(&|_| Copied::default()), "compact {compact_percent}");
        assert!(whole == made(&|file| copy_base(&base, file, start_bytes, || false)), "compact {compact_percent}");
    }
}
