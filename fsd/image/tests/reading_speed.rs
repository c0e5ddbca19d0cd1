//! How fast whole images are read, for `docs/PERFORMANCE.md`.
//!
//! `SIPHON_IMAGES=a.sqfs:b.sqfs cargo test --release -p siphon-image --test reading_speed -- --ignored --nocapture`

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it does")]

mod support;

use siphon_image::tree::{Kind, NodeId, Tree};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What the kernel asks of FUSE at a time in a sequential read, as a rule.
const READ_BYTES: usize = 128 << 10;

/// Lists and stats the whole tree, and returns its files.
fn walk(tree: &dyn Tree) -> Vec<(NodeId, u64)> {
    let mut files = Vec::new();
    let mut pending = vec![tree.root()];
    while let Some(directory) = pending.pop() {
        for entry in tree.entries(directory).unwrap() {
            let attr = tree.attr(entry.node).unwrap();
            match attr.kind {
                Kind::Directory => pending.push(entry.node),
                Kind::File => files.push((entry.node, attr.size)),
                _ => {}
            }
        }
    }
    files
}

fn read_all(tree: &dyn Tree, files: &[(NodeId, u64)], threads: usize) {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buf = vec![0; READ_BYTES];
        while let Some((node, size)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut offset = 0;
            while offset < *size {
                offset += tree.read(*node, offset, &mut buf).unwrap() as u64;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
}

#[test]
#[ignore = "measures, on large images that are not in the repository"]
fn whole_images_are_read() {
    let images = std::env::var_os("SIPHON_IMAGES").expect("SIPHON_IMAGES names the images");
    for image in images.as_bytes().split(|byte| *byte == b':') {
        let image = Path::new(std::ffi::OsStr::from_bytes(image));
        for threads in [1, 2] {
            let started = Instant::now();
            let tree = support::open(image);
            let files = walk(&tree);
            let (nodes, walked) = (tree.statistics().nodes, started.elapsed());
            let started = Instant::now();
            read_all(&tree, &files, threads);
            let (bytes, seconds) = (files.iter().map(|file| file.1).sum::<u64>(), started.elapsed().as_secs_f64());
            let rate = bytes as f64 / 1e6 / seconds;
            println!("{}: {nodes} nodes walked in {walked:?}", image.display());
            println!("  {bytes} bytes read by {threads} threads in {seconds:.2} s: {rate:.0} MB/s");
        }
    }
}
