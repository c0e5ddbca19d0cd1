//! Readers of layers in place give an error or an answer for any bytes: no panic, no hang, no allocation beyond bounds.
//!
//! A small layer in each form is damaged at random and read as a whole, for `SIPHON_FUZZ_SECONDS` (10 if unset). The seed
//! is printed, and `SIPHON_FUZZ_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it does")]

mod layers;
mod oci;

use layers::{Random, TarEntry, estargz, gzip_named, index_gzip, tar, zstd_chunked};
use oci::{Memory, descriptor, digest};
use siphon_image::oci::lazy::{self, Decoded, Layer, LayerIndex, Merge, gzip, saved, seekable, ztoc};
use siphon_image::oci::select::{self, Wanted};
use siphon_image::read_at::ReadAt;
use siphon_image::tree::Tree;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What one damaged layer may take.
const MAX_CASE: Duration = Duration::from_secs(20);

/// Memory to allow: a span of 64 MiB is the most that one read decodes.
const MAX_MEMORY_KIB: u64 = 512 << 10;

type Reader = fn(Vec<u8>, &[u8]) -> Result<(), lazy::Error>;

fn sample() -> Vec<TarEntry> {
    let entry = |path: &str, kind: u8| TarEntry { path: path.to_owned(), kind, mode: 0o755, ..TarEntry::default() };
    let text: Vec<u8> = (0..40_000_u32).map(|at| (at / 7 % 11 * at % 251) as u8).collect();
    vec![
        entry("./", b'5'),
        entry("d/", b'5'),
        TarEntry { content: text, xattrs: vec![("user.x".to_owned(), vec![1, 2])], ..entry("d/file", b'0') },
        TarEntry { link: "d/file".to_owned(), ..entry("link", b'2') },
        TarEntry { link: "d/file".to_owned(), ..entry("d/hard", b'1') },
        TarEntry { device: (1, 3), ..entry("null", b'3') },
        TarEntry { content: b"small".to_vec(), ..entry(&format!("{}x", "long/".repeat(30)), b'0') },
        entry("d/.wh.gone", b'0'),
    ]
}

fn shared(bytes: &[u8]) -> Arc<dyn ReadAt> {
    Arc::new(bytes.to_vec())
}

fn read_tree(index: LayerIndex, layer: Layer, decoded: Arc<Decoded>) -> Result<(), lazy::Error> {
    let mut merge = Merge::new(decoded);
    merge.add(index, layer)?;
    let tree = merge.finish()?;
    let mut pending = vec![tree.root()];
    let mut buf = vec![0; 50_000];
    while let Some(node) = pending.pop() {
        let attr = tree.attr(node).unwrap();
        let _ = (tree.xattrs(node), tree.read_link(node), tree.lookup(node, "d".as_ref()));
        for offset in [0, attr.size / 2, attr.size.saturating_sub(10), u64::MAX] {
            let _ = tree.read(node, offset, &mut buf);
        }
        pending.extend(tree.entries(node).unwrap_or_default().into_iter().map(|entry| entry.node));
    }
    Ok(())
}

fn read_gzip(index: gzip::Indexed, layer: &[u8]) -> Result<(), lazy::Error> {
    let decoded = Decoded::new(1 << 20);
    let reader = gzip::GzipLayer::new(shared(layer), index.gzip, decoded.clone())?;
    read_tree(index.layer, Layer::Tar(Arc::new(reader)), decoded)
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A manifest, and its configuration, which is given as it is.
fn manifest(config: &[u8]) -> String {
    let layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", b"layer");
    let config = descriptor("application/vnd.oci.image.config.v1+json", config);
    serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}).to_string()
}

fn configuration() -> String {
    serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2020-01-02T03:04:05Z",
        "config": {"Env": ["PATH=/bin", "A=b"], "Entrypoint": ["/bin/sh"], "Cmd": ["-c"], "WorkingDir": "/", "User": "1:2"},
        "rootfs": {"type": "layers", "diff_ids": [digest(b"layer")]},
    })
    .to_string()
}

fn index() -> String {
    let manifest = manifest(configuration().as_bytes());
    let platform = serde_json::json!({"os": "linux", "architecture": "amd64"});
    let mut found = serde_json::to_value(descriptor(MANIFEST, manifest.as_bytes())).unwrap();
    found["platform"] = platform;
    serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [found]}).to_string()
}

/// Reads `top` as what leads to an image, beside what else it needs.
fn read_manifest(top: Vec<u8>, media_type: &str, config: &[u8]) -> Result<(), lazy::Error> {
    let manifest = manifest(config).into_bytes();
    let blobs = Memory([config.to_vec(), manifest].map(|blob| (digest(&blob), blob)).into());
    let name = digest(&top).parse().unwrap();
    let read = select::read_found(&blobs, name, media_type, top, &Wanted::new("amd64", None));
    read.map(drop).map_err(|_| lazy::Error::Unsupported("a manifest that cannot be read"))
}

/// What reads each form: the bytes that are damaged, and the layer, where they are not it.
fn targets() -> Vec<(&'static str, Vec<u8>, Reader)> {
    let entries = sample();
    let plain = tar(&entries);
    let indexed = index_gzip(&gzip_named(&plain), 8000, 1000);
    let mut kept = Vec::new();
    saved::write(&indexed, &mut kept).unwrap();
    let mut entries_of_tar = Vec::new();
    saved::write_entries(&indexed.layer, &mut entries_of_tar).unwrap();
    let mut writer = seekable::Writer::new(Vec::new()).unwrap();
    writer.push(&plain).unwrap();
    let targets: [(&'static str, Vec<u8>, Reader); 12] = [
        ("tar", plain, |bytes, _| {
            let bytes = shared(&bytes);
            read_tree(lazy::tar::index(&bytes)?, Layer::Tar(bytes), Decoded::new(1 << 20))
        }),
        ("gzip", gzip_named(&tar(&entries)), |bytes, _| {
            let mut indexer = gzip::Indexer::new(8000);
            indexer.push(&bytes)?;
            read_gzip(indexer.finish()?, &bytes)
        }),
        ("saved index", kept, |bytes, layer| read_gzip(saved::open(shared(&bytes))?, layer)),
        ("saved entries", entries_of_tar, |bytes, layer| {
            let index = saved::open_entries(&bytes)?;
            read_tree(index, Layer::Tar(shared(layer)), Decoded::new(1 << 20))
        }),
        ("ztoc", ztoc::write(&indexed.gzip, &indexed.layer, "test").unwrap(), |bytes, layer| {
            let read = ztoc::open(shared(&bytes))?;
            let ztoc::Compression::Gzip(index) = read.compression else { return Ok(()) };
            let digests = gzip::Digests { layer: [0; 32], diff_id: [0; 32] };
            read_gzip(gzip::Indexed { gzip: index, layer: read.layer, digests }, layer)
        }),
        ("estargz", estargz(&entries).0, |bytes, _| {
            let bytes = shared(&bytes);
            let toc = lazy::estargz::open(&bytes, None)?;
            read_tree(toc.index, Layer::GzipChunks(bytes), Decoded::new(1 << 20))
        }),
        ("zstd:chunked", zstd_chunked(&entries, true), |bytes, _| {
            let bytes = shared(&bytes);
            let toc = lazy::zstd_chunked::open(&bytes, &lazy::zstd_chunked::Annotations::default())?;
            read_tree(toc.index, Layer::ZstdChunks(bytes), Decoded::new(1 << 20))
        }),
        ("zstd:chunked of stargz-snapshotter", zstd_chunked(&entries, false), |bytes, _| {
            let bytes = shared(&bytes);
            let toc = lazy::zstd_chunked::open(&bytes, &lazy::zstd_chunked::Annotations::default())?;
            read_tree(toc.index, Layer::ZstdChunks(bytes), Decoded::new(1 << 20))
        }),
        ("index of manifests", index().into_bytes(), |bytes, _| {
            read_manifest(bytes, INDEX, configuration().as_bytes())
        }),
        ("manifest", manifest(configuration().as_bytes()).into_bytes(), |bytes, _| {
            read_manifest(bytes, MANIFEST, configuration().as_bytes())
        }),
        ("configuration", configuration().into_bytes(), |bytes, _| {
            read_manifest(manifest(&bytes).into_bytes(), MANIFEST, &bytes)
        }),
        ("seekable", writer.finish().unwrap().0, |bytes, _| {
            let decoded = Decoded::new(1 << 20);
            let reader: Arc<dyn ReadAt> = Arc::new(seekable::SeekableLayer::open(shared(&bytes), decoded.clone())?);
            read_tree(lazy::tar::index(&reader)?, Layer::Tar(reader), decoded)
        }),
    ];
    targets.into()
}

/// Damages one to six places, at the end as often as anywhere: that is where most forms have their tables.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let edges = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 48, u64::MAX];
    for _ in 0..=random.below(6) {
        let length = bytes.len();
        let at = match random.below(3) {
            0 => random.below(length),
            1 => length - 1 - random.below(length.min(300)),
            _ => random.below(length.min(600)),
        };
        match random.below(6) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = u8::try_from(random.next() & 0xff).unwrap(),
            3 | 4 => {
                let width = [2, 4, 8][random.below(3)].min(length - at);
                let value = edges[random.below(edges.len())].wrapping_add(random.next() % 5).to_le_bytes();
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
            _ if random.below(4) == 0 => bytes.truncate(at.max(1)),
            _ => {}
        }
    }
}

fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn no_damage_makes_a_reader_of_layers_panic_hang_or_take_memory() {
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let seed = std::env::var("SIPHON_FUZZ_SEED").map_or_else(|_| clock(), |seed| seed.parse().unwrap());
    let seconds = std::env::var("SIPHON_FUZZ_SECONDS").map_or(10, |seconds| seconds.parse().unwrap());
    println!("SIPHON_FUZZ_SEED={seed}");
    let layer = gzip_named(&tar(&sample()));
    let targets = targets();
    let started = Instant::now();
    let (mut cases, mut refused) = (0_u64, 0_u64);
    for (name, bytes, read) in &targets {
        assert!(read(bytes.clone(), &layer).is_ok(), "{name} is not even read undamaged");
    }

    while started.elapsed() < Duration::from_secs(seconds) {
        for (name, bytes, read) in &targets {
            cases += 1;
            let mut random = Random((seed ^ cases).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let mut bytes = bytes.clone();
            damage(&mut bytes, &mut random);
            let begun = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| read(bytes, &layer)));
            let repeat = format!("{name}: case {cases} of SIPHON_FUZZ_SEED={seed}");
            assert!(outcome.is_ok(), "panic in {repeat}");
            refused += u64::from(outcome.is_ok_and(|result| result.is_err()));
            assert!(begun.elapsed() < MAX_CASE, "{repeat} took {:?}", begun.elapsed());
        }
    }

    println!("{cases} damaged layers, {refused} refused, at most {} KiB of memory", peak_memory_kib());
    assert!(peak_memory_kib() < MAX_MEMORY_KIB, "{} KiB with SIPHON_FUZZ_SEED={seed}", peak_memory_kib());
}
