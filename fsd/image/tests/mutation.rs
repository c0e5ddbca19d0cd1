//! Readers of images give an error or an answer for any bytes: no panic, no hang, no allocation beyond the image's size.
//!
//! Small real images are damaged at random and read as a whole, for `SIPHON_FUZZ_SECONDS` (10 if unset). The seed is
//! printed, and `SIPHON_FUZZ_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it does")]

mod oci;
mod support;

use siphon_image::oci::archive::Archive;
use siphon_image::oci::config::ImageConfig;
use siphon_image::oci::select::{ImageFacts, Wanted, select};
use siphon_image::oci::{Digest, ImageIndex, ImageManifest};
use siphon_image::open::{facts, open};
use siphon_image::read_at::ReadAt;
use siphon_image::sif::writer::SifWriter;
use siphon_image::sif::{Arch, DataType, Sif};
use siphon_image::squashfs::format::{MAGIC, SUPERBLOCK_BYTES};
use siphon_image::squashfs::reader::{Options, Squashfs};
use siphon_image::tree::{Kind, NodeId, Tree};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{mksquashfs, sample};

/// What one damaged image may take. It is some thousand times what the whole one takes.
const MAX_CASE: Duration = Duration::from_secs(20);

/// Nodes and bytes to read of one image: a damaged directory can contain itself.
const MAX_NODES: usize = 3000;
const MAX_BYTES: u64 = 8 << 20;

/// Memory to allow for one image of some hundred KiB; the caches take up to 4 MiB.
const MAX_MEMORY_KIB: u64 = 256 << 10;

/// A number generator that is the same everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// Numbers that parsers trip over.
    fn interesting(&mut self) -> u64 {
        let edges = [0, 1, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 48, u64::MAX];
        match self.below(3) {
            0 => edges[self.below(edges.len())],
            1 => edges[self.below(edges.len())].wrapping_add(self.next() % 17).wrapping_sub(8),
            _ => self.next(),
        }
    }
}

/// Damages `image` in one to eight places; the places of `hot`, such as headers, are hit more often than chance has it.
fn damage(image: &mut Vec<u8>, hot: &[std::ops::Range<usize>], random: &mut Random) {
    for _ in 0..=random.below(8) {
        let area = if random.below(2) == 0 { hot[random.below(hot.len())].clone() } else { 0..image.len() };
        let area = area.start.min(image.len() - 1)..area.end.min(image.len());
        let at = area.start + random.below(area.len().max(1));
        match random.below(8) {
            0 | 1 => image[at] ^= 1 << random.below(8),
            2 => image[at] = u8::try_from(random.next() & 0xff).unwrap(),
            3 | 4 => {
                let width = [2, 4, 8][random.below(3)].min(image.len() - at);
                let value = random.interesting().to_le_bytes();
                image[at..at + width].copy_from_slice(&value[..width]);
            }
            5 => {
                let end = image.len().min(at + 1 + random.below(64));
                image[at..end].iter_mut().for_each(|byte| *byte = u8::try_from(random.next() & 0xff).unwrap());
            }
            6 => {
                let length = random.below(512).min(image.len() - at);
                let from = random.below(image.len() - length + 1);
                image.copy_within(from..from + length, at);
            }
            _ if random.below(4) == 0 => image.truncate(at.max(1)),
            _ => {}
        }
    }
}

/// Opens `bytes` and reads all that it can reach. Errors are fine.
fn read_everything(bytes: Vec<u8>, random: &mut Random) {
    let length = bytes.len();
    let Ok(tree) = Squashfs::open_with(Arc::new(bytes), Options { cache_bytes: 4 << 20 }) else { return };
    walk(&tree);
    for _ in 0..20 {
        let block = random.below(length) as u64;
        read_node(&tree, NodeId(block << 16 | random.next() & 0x1fff), &mut MAX_BYTES.clone());
        read_node(&tree, NodeId(random.interesting()), &mut MAX_BYTES.clone());
    }
}

fn walk(tree: &dyn Tree) {
    let mut pending = vec![tree.root()];
    let mut bytes_left = MAX_BYTES;
    for _ in 0..MAX_NODES {
        let Some(node) = pending.pop() else { break };
        pending.extend(read_node(tree, node, &mut bytes_left));
    }
}

/// Asks all there is to ask of one node and returns its children.
fn read_node(tree: &dyn Tree, node: NodeId, bytes_left: &mut u64) -> Vec<NodeId> {
    let _ = tree.xattrs(node);
    let _ = tree.read_link(node);
    let _ = tree.lookup(node, "entry number 7".as_ref());
    let Ok(attr) = tree.attr(node) else { return Vec::new() };
    if attr.kind == Kind::File {
        let mut buf = vec![0; 100_000];
        for offset in [0, 99_999, attr.size / 2, attr.size.saturating_sub(5000), attr.size, u64::MAX] {
            if *bytes_left > 0
                && let Ok(count) = tree.read(node, offset, &mut buf)
            {
                *bytes_left = bytes_left.saturating_sub(count as u64);
            }
        }
    }
    let entries = tree.entries(node).unwrap_or_default();
    entries.into_iter().take(MAX_NODES).map(|entry| entry.node).collect()
}

/// One kind of image to damage: whole images, the places to damage most, and what reads them.
struct Target {
    name: String,
    image: Vec<u8>,
    hot: Vec<std::ops::Range<usize>>,
    read: fn(Vec<u8>, &mut Random),
}

fn squashfs_targets(dir: &Path) -> Vec<Target> {
    let source = dir.join("source");
    std::fs::create_dir(&source).unwrap();
    sample::make(&source);
    // The program is most of the image and of no use here.
    std::fs::remove_file(source.join("files/program")).unwrap();
    let variants: &[&[&str]] = &[
        &["-comp", "gzip"],
        &["-comp", "xz", "-Xbcj", "x86"],
        &["-comp", "lzo"],
        &["-comp", "lz4"],
        &["-comp", "zstd"],
        // Nothing is compressed, so that damage reaches the fields of the tables and not just a codec.
        &["-comp", "zstd", "-noI", "-noD", "-noF", "-noX", "-b", "4096"],
        &["-comp", "gzip", "-noI", "-noId", "-noX", "-always-use-fragments"],
    ];
    let target = |(number, options): (usize, &&[&str])| {
        let path = dir.join(format!("image {number}"));
        mksquashfs(&source, &path, options);
        let image = std::fs::read(path).unwrap();
        // Where the inode table starts, the last and densest part of the image does.
        let tables = usize::try_from(u64::from_le_bytes(image[64..72].try_into().unwrap())).unwrap();
        let hot = vec![0..SUPERBLOCK_BYTES, tables..image.len(), image.len().saturating_sub(6000)..image.len()];
        Target { name: options.join(" "), image, hot, read: read_everything }
    };
    variants.iter().enumerate().map(target).collect()
}

/// A SIF around a small squashfs, as our own writer makes it: header, table and objects are the places to damage.
fn sif_target(dir: &Path, squashfs: &[u8]) -> Target {
    let path = dir.join("image.sif");
    let file = std::fs::File::create(&path).unwrap();
    let mut sif = SifWriter::new(&file, Arch::from_name("amd64").unwrap(), uuid::Uuid::nil(), 0);
    sif.add_object(DataType::Deffile, "", b"bootstrap: scratch\n").unwrap();
    sif.add_object(DataType::GenericJson, "oci-config.json", b"{\"config\":{\"Env\":[\"A=1\"]}}").unwrap();
    let start = sif.partition_start();
    file.write_all_at(squashfs, start).unwrap();
    sif.add_partition(squashfs.len() as u64);
    sif.finish().unwrap();
    let image = std::fs::read(path).unwrap();
    // The header, the descriptors in use, and the objects before the partition.
    let hot = vec![0..128, 4096..4096 + 4 * 585, 32_176..usize::try_from(start).unwrap() + SUPERBLOCK_BYTES];
    Target { name: "sif".to_owned(), image, hot, read: read_image }
}

/// Small ext3 and ext4 file systems: superblock, group descriptors and the blocks after them are the places to damage.
fn ext_targets(dir: &Path) -> Vec<Target> {
    let source = dir.join("ext source");
    std::fs::create_dir_all(source.join("a/b/c")).unwrap();
    for (name, bytes) in [("short", 10), ("a/long", 400_000), ("a/b/c/file", 5000)] {
        std::fs::write(source.join(name), sample::noise(bytes, 7)).unwrap();
    }
    std::os::unix::fs::symlink("../short", source.join("a/link")).unwrap();
    std::os::unix::fs::symlink("x".repeat(100), source.join("a/long link")).unwrap();
    let target = |kind: &str| {
        let path = dir.join(kind);
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let mut command = std::process::Command::new("mke2fs");
        let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
        let options = ["-q", "-F", "-t", kind, "-b", "1024", "-N", "64", "-O", "^has_journal,^resize_inode", "-d"];
        support::run(command.env("PATH", search).args(options).args([&source, &path]));
        let image = std::fs::read(path).unwrap();
        Target { name: kind.to_owned(), image, hot: vec![1024..2048, 2048..2176, 2048..40 << 10], read: read_image }
    };
    ["ext3", "ext4"].map(target).into()
}

/// Opens `bytes` as whatever they are, as a run does, and reads all that it can reach.
fn read_image(bytes: Vec<u8>, _random: &mut Random) {
    let bytes: Arc<dyn ReadAt> = Arc::new(bytes);
    if let Ok(sif) = Sif::open(Arc::clone(&bytes)) {
        for descriptor in sif.descriptors() {
            let object = sif.object(descriptor);
            let mut head = vec![0; usize::try_from(object.len().min(4096)).unwrap()];
            let _ = object.read_exact_at(&mut head, 0);
            let _ = descriptor.partition();
        }
    }
    let Ok(image) = open(bytes) else { return };
    let _ = image.oci_config().map(|config| ImageConfig::parse(&config));
    let _ = facts(image.tree.as_ref());
    walk(image.tree.as_ref());
}

/// Layers with entries of every kind, as they are stored, and what describes them: headers are the places to damage.
fn oci_targets() -> Vec<Target> {
    let mut layer = oci::Layer::new();
    let kinds = [
        (tar::EntryType::Directory, "d/", ""),
        (tar::EntryType::Regular, "d/file", ""),
        (tar::EntryType::Link, "d/hard", "d/file"),
        (tar::EntryType::Symlink, "soft", "d"),
        (tar::EntryType::Regular, "soft/through", ""),
        (tar::EntryType::Char, "null", ""),
        (tar::EntryType::Fifo, "fifo", ""),
        (tar::EntryType::Regular, "d/.wh.file", ""),
        (tar::EntryType::Regular, "d/.wh..wh..opq", ""),
    ];
    for (kind, name, link) in kinds {
        layer.xattr("user.note", b"some\nvalue");
        let content: &[u8] = if kind == tar::EntryType::Regular { &[1; 700] } else { b"" };
        layer.entry(kind, name, link, content, oci::META);
    }
    layer.raw(&oci::with_holes());
    let tar = layer.finish();
    let hot = (0..tar.len() / 512).map(|block| block * 512..block * 512 + 512).collect::<Vec<_>>();
    let target = |name: &str, image: Vec<u8>, hot, read| Target { name: name.to_owned(), image, hot, read };
    let zstd = zstd::bulk::compress(&tar, 3).unwrap();
    let gzip = oci::gzip(&tar);
    let digest = "a".repeat(64);
    let blob = format!(
        r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{digest}","size":9,
        "platform":{{"os":"linux","architecture":"arm","variant":"v7"}},"annotations":{{"org.opencontainers.image.ref.name":"a"}}}}"#
    );
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{blob},{blob}]}}"#).into_bytes();
    let manifest = format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[{blob}]}}"#).into_bytes();
    let config =
        format!(r#"{{"config":{{"Env":["A=b"],"Labels":{{"a":"b"}}}},"rootfs":{{"diff_ids":["sha256:{digest}"]}}}}"#);
    let mut saved = oci::Layer::new();
    saved.file("layer.tar", &tar);
    saved.file("config.json", config.as_bytes());
    saved.file("manifest.json", br#"[{"Config":"config.json","RepoTags":["a:latest"],"Layers":["layer.tar"]}]"#);
    let saved = saved.finish();
    let all = |bytes: &[u8]| Vec::from_iter(std::iter::once(0..bytes.len()));
    vec![
        target("gzip layer", gzip.clone(), all(&gzip), read_layer),
        target("zstd layer", zstd.clone(), all(&zstd), read_layer),
        target("index", index.clone(), all(&index), read_descriptions),
        target("manifest", manifest.clone(), all(&manifest), read_descriptions),
        target("configuration", config.clone().into_bytes(), all(config.as_bytes()), read_descriptions),
        target("docker archive", saved.clone(), vec![0..512, saved.len() - 4096..saved.len()], read_archive),
        target("layer", tar, hot, read_layer),
    ]
}

/// Makes an image of a layer whose digest is right.
fn read_layer(bytes: Vec<u8>, _random: &mut Random) {
    let diff_id = oci::digest(&bytes).parse::<Digest>().unwrap();
    let mut source = oci::source(&[bytes], <[u8]>::to_vec);
    source.diff_ids = vec![diff_id];
    if let Ok((tree, ..)) = oci::squashfs(&source, &siphon_image::squashfs::writer::Options::default()) {
        walk(&tree);
    }
}

fn read_descriptions(bytes: Vec<u8>, _random: &mut Random) {
    let wanted = Wanted { arch: "arm".to_owned(), variant: None };
    if let Ok(index) = serde_json::from_slice::<ImageIndex>(&bytes) {
        let _ = select(&index, Some("a"), &wanted);
        let _ = select(&index, None, &wanted);
    }
    let _ = serde_json::from_slice::<ImageManifest>(&bytes);
    let digest = oci::digest(&bytes).parse::<Digest>().unwrap();
    let _ = ImageFacts::new(digest, Vec::new(), bytes);
}

fn read_archive(bytes: Vec<u8>, _random: &mut Random) {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    if let Ok(mut archive) = Archive::open(file, Path::new("/tmp")) {
        let _ = archive.docker_image(None);
        let _ = archive.index();
    }
}

/// Reads `bytes` and fails, with what repeats it, if that panics or takes too long.
fn check(target: &Target, bytes: Vec<u8>, random: &mut Random, seed: u64, case: u64) {
    let started = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.read)(bytes, random)));
    let repeat = format!("{}: case {case} of SIPHON_FUZZ_SEED={seed}", target.name);
    assert!(outcome.is_ok(), "panic in {repeat}");
    assert!(started.elapsed() < MAX_CASE, "{repeat} took {:?}", started.elapsed());
}

fn seed() -> u64 {
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let seed = std::env::var("SIPHON_FUZZ_SEED").map_or_else(|_| clock(), |seed| seed.parse().unwrap());
    println!("SIPHON_FUZZ_SEED={seed}");
    seed
}

fn budget() -> Duration {
    Duration::from_secs(std::env::var("SIPHON_FUZZ_SECONDS").map_or(10, |seconds| seconds.parse().unwrap()))
}

/// The most memory that this process ever had, in KiB.
fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn no_damage_makes_a_reader_panic_hang_or_take_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut targets = squashfs_targets(dir.path());
    targets.push(sif_target(dir.path(), &targets[0].image));
    targets.extend(oci_targets());
    targets.extend(ext_targets(dir.path()));
    let (seed, budget, started) = (seed(), budget(), Instant::now());
    let mut cases = 0;

    while started.elapsed() < budget {
        for target in &targets {
            cases += 1;
            // Each case has its own numbers, so that it can be repeated alone.
            let mut random = Random((seed ^ cases).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let mut bytes = target.image.clone();
            damage(&mut bytes, &target.hot, &mut random);
            check(target, bytes, &mut random, seed, cases);
        }
    }

    println!("{cases} damaged images, at most {} KiB of memory", peak_memory_kib());
    assert!(peak_memory_kib() < MAX_MEMORY_KIB, "{} KiB with SIPHON_FUZZ_SEED={seed}", peak_memory_kib());
}

#[test]
fn random_bytes_behind_the_magic_number_are_an_error() {
    let mut random = Random(seed() | 1);

    for case in 0..20_000 {
        let length = 4 + random.below(4096);
        let mut bytes: Vec<u8> = (0..length).map(|_| u8::try_from(random.next() & 0xff).unwrap()).collect();
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        if length >= SUPERBLOCK_BYTES && case % 2 == 0 {
            // As far as the first checks want it: block size, gzip, version 4.0 and all bytes used.
            bytes[12..16].copy_from_slice(&131_072_u32.to_le_bytes());
            bytes[20..24].copy_from_slice(&[1, 0, 17, 0]);
            bytes[28..32].copy_from_slice(&[4, 0, 0, 0]);
            bytes[40..48].copy_from_slice(&(length as u64).to_le_bytes());
            for table in (48..SUPERBLOCK_BYTES).step_by(8) {
                bytes[table..table + 8].copy_from_slice(&(random.below(length) as u64).to_le_bytes());
            }
        }
        read_everything(bytes, &mut random);
    }
}
