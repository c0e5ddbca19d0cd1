//! What one operation on a squashfs tree costs, over an image in memory: decoding, look-ups, attributes, reads.
//!
//! `make bench-micro`, or `cargo bench -p siphon-image --bench squashfs -- lookup` for those with that name. The images
//! are made by our own writer: a file of 8 MiB that compresses about as programs do, and a directory of 10,000 names.
//! What a mount costs as a whole is in `benches/compare`.

#![expect(clippy::unwrap_used, reason = "an image that was made here can be read, or there is nothing to measure")]

#[path = "../tests/memory_tree/mod.rs"]
mod memory_tree;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use memory_tree::MemoryTree;
use siphon_image::squashfs::format::Compressor;
use siphon_image::squashfs::reader::{self, Squashfs};
use siphon_image::squashfs::writer::{self, Progress};
use siphon_image::tree::{NodeId, Tree};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Seek};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

/// The writer's block size, and what the kernel asks for at a time in a sequential read.
const BLOCK_BYTES: usize = 128 << 10;
const FILE_BYTES: usize = 8 << 20;
const NAMES: usize = 10_000;
/// Too small for a tenth of the file's blocks, large enough for its inode and block list.
const SMALL_CACHE_BYTES: u64 = 1 << 20;
/// All that are written; LZMA is read at most.
const COMPRESSORS: [Compressor; 5] =
    [Compressor::Gzip, Compressor::Lzo, Compressor::Xz, Compressor::Lz4, Compressor::Zstd];

static IMAGES: LazyLock<Vec<Arc<Vec<u8>>>> =
    LazyLock::new(|| COMPRESSORS.iter().map(|compressor| Arc::new(make_image(*compressor))).collect());

fn main() {
    divan::main();
}

/// One block that is not in the cache.
#[divan::bench(args = COMPRESSORS)]
fn decode(bencher: Bencher<'_, '_>, compressor: Compressor) {
    let tree = open(compressor, SMALL_CACHE_BYTES);
    let file = file(&tree);
    // A step that meets every block before one comes again, and never two neighbours.
    let places = Cycle::new(FILE_BYTES / BLOCK_BYTES, 23);
    let mut buf = vec![0; BLOCK_BYTES];

    bencher.counter(BytesCount::new(BLOCK_BYTES)).bench_local(|| {
        tree.read(file, (places.next() * BLOCK_BYTES) as u64, &mut buf).unwrap();
    });
}

/// A whole file by reads of one block each, with an empty cache at first.
#[divan::bench(args = COMPRESSORS)]
fn sequential_read(bencher: Bencher<'_, '_>, compressor: Compressor) {
    let mut buf = vec![0; BLOCK_BYTES];

    bencher.counter(BytesCount::new(FILE_BYTES)).with_inputs(|| open_default(compressor)).bench_local_refs(|tree| {
        let file = file(tree);
        for offset in (0..FILE_BYTES).step_by(BLOCK_BYTES) {
            tree.read(file, offset as u64, &mut buf).unwrap();
        }
    });
}

/// Part of a block that is in the cache, by one thread and by all processors.
#[divan::bench(args = [4 << 10, BLOCK_BYTES / 2], threads = [1, 0])]
fn cached_read(bencher: Bencher<'_, '_>, bytes: usize) {
    let tree = open_default(Compressor::Zstd);
    let file = file(&tree);
    tree.read(file, 0, &mut vec![0; bytes]).unwrap();

    // Not zeros, whose pages would be made in the time that is measured.
    bencher.counter(BytesCount::new(bytes)).with_inputs(|| vec![1; bytes]).bench_refs(|buf| {
        tree.read(file, 0, buf).unwrap();
    });
}

/// A name in a directory of 10,000.
#[divan::bench(threads = [1, 0])]
fn lookup(bencher: Bencher<'_, '_>) {
    let tree = open_default(Compressor::Zstd);
    let directory = directory(&tree);
    let names: Vec<OsString> = (0..NAMES).map(name).collect();
    let places = Cycle::new(NAMES, 4999);

    bencher.bench(|| tree.lookup(directory, &names[places.next()]).unwrap().unwrap());
}

/// The attributes of one of 10,000 files.
#[divan::bench(threads = [1, 0])]
fn attr(bencher: Bencher<'_, '_>) {
    let tree = open_default(Compressor::Zstd);
    let nodes: Vec<NodeId> = tree.entries(directory(&tree)).unwrap().iter().map(|entry| entry.node).collect();
    let places = Cycle::new(NAMES, 4999);

    bencher.bench(|| tree.attr(nodes[places.next()]).unwrap());
}

/// All 10,000 names at once.
#[divan::bench]
fn list(bencher: Bencher<'_, '_>) {
    let tree = open_default(Compressor::Zstd);
    let directory = directory(&tree);

    bencher.bench(|| tree.entries(directory).unwrap());
}

/// An image, with the tables that are read at once.
#[divan::bench]
fn open_image(bencher: Bencher<'_, '_>) {
    bencher.bench(|| open_default(black_box(Compressor::Zstd)).root());
}

/// Indexes below `length` again and again, in steps that have no divisor in common with it.
struct Cycle {
    length: usize,
    step: usize,
    turns: AtomicUsize,
}

impl Cycle {
    fn new(length: usize, step: usize) -> Self {
        Self { length, step, turns: AtomicUsize::new(0) }
    }

    fn next(&self) -> usize {
        self.turns.fetch_add(1, Ordering::Relaxed) * self.step % self.length
    }
}

fn make_image(compressor: Compressor) -> Vec<u8> {
    let mut tree = MemoryTree::default();
    let root = tree.root();
    tree.file(root, "file", content());
    let directory = tree.directory(root, "directory");
    for index in 0..NAMES {
        tree.file(directory, name(index), index.to_string());
    }
    let mut file = tempfile::tempfile().unwrap();
    let options = writer::Options { compressor, ..writer::Options::default() };
    writer::write(&tree, &file, 0, &options, &Progress::default()).unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Words out of a small set with a few random bytes between them: codecs halve it.
fn content() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: Vec<[u8; 8]> = (0..512).map(|_| random().to_le_bytes()).collect();
    let mut bytes = Vec::with_capacity(FILE_BYTES + 16);
    while bytes.len() < FILE_BYTES {
        let choice = random();
        bytes.extend_from_slice(&words[(choice % 512) as usize]);
        bytes.extend_from_slice(&choice.to_le_bytes()[6..]);
    }
    bytes.truncate(FILE_BYTES);
    bytes
}

fn name(index: usize) -> OsString {
    format!("name-{index:05}").into()
}

fn open(compressor: Compressor, cache_bytes: u64) -> Squashfs {
    let position = COMPRESSORS.iter().position(|known| *known == compressor).unwrap();
    Squashfs::open_with(IMAGES[position].clone(), reader::Options { cache_bytes }).unwrap()
}

fn open_default(compressor: Compressor) -> Squashfs {
    open(compressor, reader::Options::default().cache_bytes)
}

fn file(tree: &Squashfs) -> NodeId {
    tree.lookup(tree.root(), OsStr::new("file")).unwrap().unwrap()
}

fn directory(tree: &Squashfs) -> NodeId {
    tree.lookup(tree.root(), OsStr::new("directory")).unwrap().unwrap()
}
