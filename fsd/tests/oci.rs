//! Images read in place from a registry that does as each test says.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what is meant")]
#![allow(dead_code, reason = "the server can do more than these tests ask of it")]

mod registry_server;

use registry_server::{Answer, Request, Server};
use siphon_fsd::oci::{self, LayeredImage};
use siphon_image::digest::sha256;
use siphon_image::oci::lazy::{gzip, saved, ztoc};
use siphon_image::read_at::ReadAt;
use siphon_image::reference::Repository;
use siphon_image::tree::Tree;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tempfile::{TempDir, tempdir};

/// Three spans of an index and a bit.
const FILE_BYTES: usize = 3_500_000;
const ALWAYS: usize = usize::MAX;
/// What an index is.
const INDEX: &str = "application/vnd.amazon.soci.index.v1+json";

/// Bytes that hardly compress.
fn content() -> Vec<u8> {
    (0..FILE_BYTES as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53) as u8).collect()
}

/// An archive of one file, compressed.
fn layer(content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..4].copy_from_slice(b"file");
    for (at, text) in [(100, "0000644\0"), (108, "0000000\0"), (116, "0000000\0"), (136, "00000000000\0")] {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut tar = [&header[..], content].concat();
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let mut gzip = vec![0; compressor.gzip_compress_bound(tar.len())];
    let length = compressor.gzip_compress(&tar, &mut gzip).unwrap();
    gzip.truncate(length);
    gzip
}

/// A registry with one image, which damages as many answers with bytes of the layer as it is told to.
struct Registry {
    server: Server,
    lies: Arc<AtomicUsize>,
    image: String,
    layer: Vec<u8>,
    attached: Arc<Mutex<Attached>>,
}

/// What is attached to the image, if anything is: the manifest, and the blob that it names.
type Attached = Option<(String, Vec<u8>)>;

impl Registry {
    fn start() -> Self {
        let layer = layer(&content());
        let config = r#"{"architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let (layer_digest, config_digest) = (sha256(&layer), sha256(config.as_bytes()));
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer_digest, "size": layer.len(),
            }],
        })
        .to_string();
        let image = sha256(manifest.as_bytes());
        let lies: Arc<AtomicUsize> = Arc::default();
        let left = lies.clone();
        let (served, attached) = (layer.clone(), Arc::<Mutex<Attached>>::default());
        let (layer, index) = (served.clone(), attached.clone());
        let server = Server::start(move |request: &Request| match request.path.rsplit('/').next().unwrap() {
            "" => Answer::ok("{}"),
            part if part == layer_digest => {
                let lie = |left| (left > 0).then(|| if left == ALWAYS { left } else { left - 1 });
                match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lie) {
                    Ok(_) => Answer::ranged(request, &layer.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()),
                    Err(_) => Answer::ranged(request, &layer),
                }
            }
            part if part == config_digest => Answer::ok(config),
            part => match &*index.lock().unwrap() {
                Some((manifest, _)) if request.path.contains("/referrers/") => {
                    let listed = serde_json::json!({
                        "mediaType": "application/vnd.oci.image.manifest.v1+json",
                        "artifactType": INDEX, "digest": sha256(manifest.as_bytes()), "size": manifest.len(),
                    });
                    let all = serde_json::json!({ "schemaVersion": 2, "manifests": [listed] });
                    Answer::ok(&all.to_string()).header("Content-Type", "application/vnd.oci.image.index.v1+json")
                }
                Some((manifest, _)) if part == sha256(manifest.as_bytes()) => {
                    Answer::ok(manifest).header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
                }
                Some((_, blob)) if part == sha256(blob) => Answer::ranged(request, blob),
                _ if request.path.contains("/manifests/") => {
                    Answer::ok(&manifest).header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
                }
                _ => Answer::status(404),
            },
        });
        Self { server, lies, image, layer: served, attached }
    }

    /// Attaches one index of the layer to the image.
    fn attach(&self, media_type: &str, note: &str, blob: Vec<u8>) {
        let of_layer = serde_json::json!({ note: sha256(&self.layer) });
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": INDEX,
            "config": { "mediaType": INDEX, "digest": sha256(b"{}"), "size": 2 },
            "layers": [{
                "mediaType": media_type, "digest": sha256(&blob), "size": blob.len(), "annotations": of_layer,
            }],
        });
        *self.attached.lock().unwrap() = Some((manifest.to_string(), blob));
    }

    fn open(&self, version: &str, cache: &TempDir) -> Result<LayeredImage, oci::Error> {
        let repository = Repository::parse(&format!("{}/some/image{version}", self.server.host())).unwrap();
        oci::open(&repository, "amd64", cache.path(), 1 << 20)
    }

    fn lie(&self, times: usize) {
        self.lies.store(times, Ordering::SeqCst);
    }
}

fn fetched_bytes(image: &LayeredImage) -> u64 {
    image.layers.as_ref().unwrap().counters().bytes_fetched
}

fn read(image: &LayeredImage) -> Result<Vec<u8>, siphon_image::tree::Error> {
    let file = image.tree.lookup(image.tree.root(), OsStr::new("file"))?.unwrap();
    let mut bytes = vec![0; FILE_BYTES];
    let count = image.tree.read(file, 0, &mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// Takes away what is cached of layers, and leaves the indexes.
fn forget_layers(cache: &Path) {
    std::fs::remove_dir_all(cache.join("v2")).unwrap();
}

#[test]
fn a_layer_that_came_wrong_is_fetched_again_when_it_is_opened_again() {
    let (registry, cache) = (Registry::start(), tempdir().unwrap());

    registry.lie(ALWAYS);
    let refused = registry.open(":1", &cache).unwrap_err();
    registry.lie(0);
    let image = registry.open(":1", &cache).unwrap();

    assert!(matches!(refused, oci::Error::Layer { .. }), "{refused}");
    assert!(read(&image).unwrap() == content());
}

#[test]
fn a_span_that_came_wrong_is_fetched_again_once() {
    let (registry, cache) = (Registry::start(), tempdir().unwrap());
    drop(registry.open(":1", &cache).unwrap());
    forget_layers(cache.path());

    let image = registry.open(":1", &cache).unwrap();
    registry.lie(1);
    let right = read(&image).unwrap();
    drop(image);
    forget_layers(cache.path());
    let image = registry.open(":1", &cache).unwrap();
    registry.lie(ALWAYS);
    let wrong = read(&image);
    registry.lie(0);

    assert!(right == content());
    assert!(wrong.is_err());
    assert!(read(&image).unwrap() == content(), "what is wrong does not stay");
}

#[test]
fn an_image_that_is_named_by_its_digest_is_not_read_by_what_is_attached_to_it() {
    let (registry, cache) = (Registry::start(), tempdir().unwrap());
    let asks = || registry.server.paths().iter().filter(|path| path.contains("referrers")).count();

    let by_digest = registry.open(&format!("@{}", registry.image), &cache).unwrap();
    assert_eq!(asks(), 0);
    let by_tag = registry.open(":1", &tempdir().unwrap()).unwrap();
    assert_eq!(asks(), 1);

    assert_eq!(by_digest.digest, registry.image);
    assert_eq!(by_tag.digest, registry.image);
}

#[test]
fn an_index_is_made_once_and_nothing_is_fetched_twice() {
    let (registry, cache) = (Registry::start(), tempdir().unwrap());

    let first = registry.open(":1", &cache).unwrap();
    let fetched = fetched_bytes(&first);
    assert!(read(&first).unwrap() == content());
    let second = registry.open(":1", &cache).unwrap();
    assert!(read(&second).unwrap() == content());

    assert_eq!(fetched_bytes(&first), fetched);
    assert_eq!(fetched, first.storage[0].len());
    assert_eq!(fetched_bytes(&second), 0);
}

#[test]
fn an_image_is_read_by_either_kind_of_index_that_is_attached_to_it() {
    let registry = Registry::start();
    let mut indexer = gzip::Indexer::new(1 << 20);
    indexer.push(&registry.layer).unwrap();
    let indexed = indexer.finish().unwrap();
    let mut own = Vec::new();
    saved::write(&indexed, &mut own).unwrap();
    let ztoc = ztoc::write(&indexed.gzip, &indexed.layer, "test").unwrap();

    for (media_type, note, blob) in [
        ("application/octet-stream", "com.amazon.soci.image-layer-digest", ztoc),
        ("application/vnd.siphon.index.v1", "siphon.layer-digest", own),
    ] {
        registry.attach(media_type, note, blob);
        let cache = tempdir().unwrap();
        let image = registry.open(":1", &cache).unwrap();

        assert_eq!(fetched_bytes(&image), 0, "{media_type}: nothing of the layer is needed for that");
        assert!(read(&image).unwrap() == content(), "{media_type}");
    }
}

/// A layout of one image, with this layer.
fn layout(directory: &Path, layer: &[u8], media_type: &str) {
    let config = r#"{"architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": sha256(config.as_bytes()),
            "size": config.len(),
        },
        "layers": [{ "mediaType": media_type, "digest": sha256(layer), "size": layer.len() }],
    })
    .to_string();
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": sha256(manifest.as_bytes()),
            "size": manifest.len(),
        }],
    });
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for blob in [config.as_bytes(), manifest.as_bytes(), layer] {
        std::fs::write(blobs.join(&sha256(blob)["sha256:".len()..]), blob).unwrap();
    }
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
}

/// Changes a byte of a file in the middle.
fn change(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(path, bytes).unwrap();
}

fn read_layout(directory: &Path, cache: &TempDir) -> Result<Vec<u8>, String> {
    let image = oci::open_layout(directory, None, "amd64", cache.path(), 1 << 20);
    let image = image.map_err(|error| format!("{error:?}"))?;
    let file = image.tree.lookup(image.tree.root(), OsStr::new("file")).unwrap().unwrap();
    let mut read = vec![0; FILE_BYTES];
    image.tree.read(file, 0, &mut read).map_err(|error| format!("{error:?}"))?;
    Ok(read)
}

#[test]
fn a_layer_is_read_out_of_its_layout_by_an_index_that_is_made_once() {
    let (directory, cache) = (tempdir().unwrap(), tempdir().unwrap());
    let layer = layer(&content());
    layout(directory.path(), &layer, "application/vnd.oci.image.layer.v1.tar+gzip");

    assert!(read_layout(directory.path(), &cache).unwrap() == content());
    let indexes = || std::fs::read_dir(cache.path().join("oci/indexes")).unwrap().count();
    assert_eq!(indexes(), 1);
    assert!(read_layout(directory.path(), &cache).unwrap() == content());

    assert_eq!(indexes(), 1);
}

#[test]
fn a_layer_of_a_layout_that_is_another_one_is_not_read() {
    let cache = tempdir().unwrap();
    let gzip = layer(&content());
    let tar = gunzip(&gzip);
    for (layer, kind) in [(gzip, "tar+gzip"), (tar, "tar")] {
        let directory = tempdir().unwrap();
        layout(directory.path(), &layer, &format!("application/vnd.oci.image.layer.v1.{kind}"));
        assert!(read_layout(directory.path(), &cache).unwrap() == content(), "{kind}");

        // Its index is known, and made of what it was.
        change(&directory.path().join("blobs/sha256").join(&sha256(&layer)["sha256:".len()..]));

        let error = read_layout(directory.path(), &cache).unwrap_err();
        assert!(error.contains("igest"), "{kind}: {error}");
    }
}

/// A directory on a disk, as a rule: where memory is, times say less.
fn on_disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Whether times tell all changes of what lies at `path`: on ext, XFS and Btrfs they do.
fn tells_changes(path: &Path) -> bool {
    let kind = nix::sys::statfs::statfs(path).unwrap().filesystem_type().0;
    [0xef53, 0x5846_5342, 0x9123_683e].contains(&kind)
}

/// Waits until a change of a file is sure to be seen by its times.
fn settle() {
    std::thread::sleep(Duration::from_millis(2100));
}

#[test]
fn a_layer_that_is_not_compressed_is_held_against_its_digest_once() {
    let (directory, cache) = (on_disk(), tempdir().unwrap());
    let tar = gunzip(&layer(&content()));
    layout(directory.path(), &tar, "application/vnd.oci.image.layer.v1.tar");
    // An index is made anew, in a new file, whenever the layer is read whole.
    let index = || {
        let index = std::fs::read_dir(cache.path().join("oci/indexes")).unwrap().next().unwrap().unwrap();
        std::fs::metadata(index.path()).unwrap().ino()
    };
    let read = || {
        assert!(read_layout(directory.path(), &cache).unwrap() == content());
        index()
    };

    let too_new = [read(), read()];
    settle();
    let settled = [read(), read(), read()];
    let path = directory.path().join("blobs/sha256").join(&sha256(&tar)["sha256:".len()..]);
    std::fs::File::open(&path).unwrap().set_modified(SystemTime::now()).unwrap();
    let touched = read();

    assert_ne!(too_new[0], too_new[1], "a change could have the same time");
    assert_ne!(too_new[1], settled[0]);
    if tells_changes(directory.path()) {
        assert_eq!(settled, [settled[0]; 3]);
    } else {
        assert_ne!(settled[0], settled[1], "it is read whole each time");
    }
    assert_ne!(touched, settled[0]);
}

#[test]
fn a_layer_that_is_not_compressed_and_changed_is_not_read_whatever_its_times_say() {
    let ways: [fn(&Path); 3] = [
        change,
        |path| {
            let modified = std::fs::metadata(path).unwrap().modified().unwrap();
            change(path);
            std::fs::File::open(path).unwrap().set_modified(modified).unwrap();
        },
        |path| {
            let (modified, other) = (std::fs::metadata(path).unwrap().modified().unwrap(), path.with_extension("new"));
            std::fs::copy(path, &other).unwrap();
            change(&other);
            std::fs::File::open(&other).unwrap().set_modified(modified).unwrap();
            std::fs::rename(&other, path).unwrap();
        },
    ];
    let images: Vec<_> = ways.iter().map(|way| (on_disk(), tempdir().unwrap(), way)).collect();
    let tar = gunzip(&layer(&content()));
    for (directory, ..) in &images {
        layout(directory.path(), &tar, "application/vnd.oci.image.layer.v1.tar");
    }
    settle();
    for (number, (directory, cache, way)) in images.iter().enumerate() {
        assert!(read_layout(directory.path(), cache).unwrap() == content(), "{number}");
        let noted = std::fs::read_dir(cache.path().join("oci/checked")).map_or(0, Iterator::count);
        assert_eq!(noted, usize::from(tells_changes(directory.path())), "{number}");

        way(&directory.path().join("blobs/sha256").join(&sha256(&tar)["sha256:".len()..]));

        let error = read_layout(directory.path(), cache).unwrap_err();
        assert!(error.contains("igest"), "{number}: {error}");
    }
}

/// What a gzip layer decompresses to.
fn gunzip(gzip: &[u8]) -> Vec<u8> {
    let mut tar = vec![0; FILE_BYTES.next_multiple_of(512) + 512 + 1024];
    let length = libdeflater::Decompressor::new().gzip_decompress(gzip, &mut tar).unwrap();
    tar.truncate(length);
    tar
}
