//! What came completely is held against the digest of the whole.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what is meant")]
#![allow(dead_code, reason = "the server can do more than these tests ask of it")]

mod registry_server;

use registry_server::{Answer, Request, Server};
use siphon_fsd::blob::{Blob, BlobError};
use siphon_fsd::cache::{CHUNK_BYTES, Cache};
use siphon_fsd::oras;
use siphon_fsd::prefetch::fetch_all;
use siphon_fsd::source::{MANIFEST_TYPE, Patience, Registries, SourceError, configure, library_image};
use siphon_image::digest::sha256;
use siphon_image::read_at::ReadAt;
use siphon_image::reference::{Reference, Repository};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::{TempDir, tempdir};

const LEN_BYTES: usize = 5 * CHUNK_BYTES + 1000;
/// A check begins some seconds after the last chunk came.
const LIMIT: Duration = Duration::from_secs(30);

fn content() -> Vec<u8> {
    (0..LEN_BYTES as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53) as u8).collect()
}

/// A registry, and a library, with one image file, of which it sends one byte wrong when it is told to.
struct Place {
    server: Server,
    lies: Arc<AtomicBool>,
}

impl Place {
    fn start() -> Self {
        let file = content();
        let name = sha256(&file);
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {
                "mediaType": "application/vnd.sylabs.sif.config.v1+json", "digest": sha256(b"{}"), "size": 2,
            },
            "layers": [{"mediaType": oras::SIF_LAYER, "digest": name, "size": file.len()}],
        });
        let described = serde_json::json!({
            "data": {"hash": name.replace(':', "."), "size": file.len(), "uploaded": true},
        });
        let lies: Arc<AtomicBool> = Arc::default();
        let is_lying = lies.clone();
        let server = Server::start(move |request: &Request| {
            let is_file = request.path.contains("/blobs/") || request.path.contains("/imagefile/");
            if is_file {
                let mut sent = file.clone();
                sent[3 * CHUNK_BYTES + 7] ^= u8::from(is_lying.load(Ordering::SeqCst));
                return Answer::ranged(request, &sent);
            }
            match request.path.split('?').next().unwrap() {
                path if path.contains("/manifests/") => {
                    Answer::ok(&manifest.to_string()).header("Content-Type", MANIFEST_TYPE)
                }
                path if path.contains("/v1/images/") => Answer::ok(&described.to_string()),
                _ => Answer::ok("{}"),
            }
        });
        Self { server, lies }
    }

    fn open(&self, cache: &TempDir) -> Blob {
        let repository = Repository::parse(&format!("{}/some/image:1", self.server.host())).unwrap();
        Blob::over(oras::image(&repository).unwrap().0, cache.path()).unwrap()
    }

    fn lie(&self, lies: bool) {
        self.lies.store(lies, Ordering::SeqCst);
    }
}

fn read_all(blob: &Blob) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; LEN_BYTES];
    blob.read_exact_at(&mut bytes, 0).map(|()| bytes)
}

fn mark(blob: &Blob, cache: &TempDir) -> PathBuf {
    cache.path().join("v2").join(blob.identity()).join("checked")
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_image_that_came_wrong_is_thrown_away_once_all_of_it_is_here() {
    let (place, cache) = (Place::start(), tempdir().unwrap());
    place.lie(true);
    let blob = place.open(&cache);

    let first = read_all(&blob).unwrap();
    wait_for("an error", || read_all(&blob).is_err());

    assert!(first != content());
    let error = read_all(&blob).unwrap_err();
    let found = error.get_ref().and_then(|error| error.downcast_ref());
    let Some(BlobError::Source(found)) = found else { panic!("{error:?}") };
    assert!(matches!(**found, SourceError::Digest { .. }), "{found}");
    let kept = Cache::open(cache.path()).unwrap().entries().unwrap();
    assert_eq!((kept.len(), kept[0].stored_bytes), (1, 0));
    place.lie(false);
    assert!(read_all(&place.open(&cache)).unwrap() == content(), "the next mount fetches it anew");
}

#[test]
fn that_an_image_is_right_is_remembered_until_other_bytes_are_stored() {
    let (place, cache) = (Place::start(), tempdir().unwrap());
    let blob = place.open(&cache);

    read_all(&blob).unwrap();
    wait_for("a mark", || mark(&blob, &cache).exists());
    assert!(read_all(&place.open(&cache)).unwrap() == content());
    assert!(mark(&blob, &cache).exists());
    blob.discard(0..1);
    assert!(!mark(&blob, &cache).exists());
    read_all(&blob).unwrap();

    wait_for("another mark", || mark(&blob, &cache).exists());
}

#[test]
fn what_an_earlier_process_has_fetched_is_checked_by_the_next() {
    let (place, cache) = (Place::start(), tempdir().unwrap());
    place.lie(true);
    let first = place.open(&cache);
    read_all(&first).unwrap();
    // It ends before the check begins.
    drop(first);

    let second = place.open(&cache);

    wait_for("an error", || read_all(&second).is_err());
}

#[test]
fn fetching_all_of_a_wrong_image_fails() {
    let (place, cache) = (Place::start(), tempdir().unwrap());
    place.lie(true);

    let refused = fetch_all(&place.open(&cache), &|_| {}).unwrap_err();
    place.lie(false);
    fetch_all(&place.open(&cache), &|_| {}).unwrap();

    assert!(matches!(&refused, BlobError::Source(error) if matches!(**error, SourceError::Digest { .. })), "{refused}");
}

#[test]
fn an_image_of_a_library_is_held_against_the_hash_that_the_library_names() {
    let (place, cache) = (Place::start(), tempdir().unwrap());
    configure(Registries { plain_http: true, ..Registries::default() });
    place.lie(true);
    let name = format!("library://{}/entity/collection/image:1", place.server.host());
    let Ok(Some(Reference::Library(name))) = Reference::parse(&name) else { panic!("{name}") };

    let image = library_image(&name, "amd64", 65536, Patience::default()).unwrap();
    let blob = Blob::over(image.remote, cache.path()).unwrap();

    assert_eq!(blob.identity(), place.open(&cache).identity(), "the same bytes are kept once");
    assert!(matches!(fetch_all(&blob, &|_| {}), Err(BlobError::Source(_))));
}
