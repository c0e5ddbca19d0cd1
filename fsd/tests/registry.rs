//! The client of registries against a server that does as each test says: tokens, redirects, lies and failures.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what is meant")]

mod registry_server;

use registry_server::{Answer, Request, Server};
use siphon_fsd::credentials::{Credentials, Keyring, Secret};
use siphon_fsd::source::{Patience, Registries, Served, SourceError, configure};
use siphon_image::digest::sha256;
use siphon_image::oci::Descriptor;
use siphon_image::read_at::ReadAt;
use siphon_image::reference::Repository;
use std::io::Read;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// `me:hush`, as it is sent.
const BASIC: &str = "Basic bWU6aHVzaA==";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn hurried() -> Patience {
    Patience {
        first_pause: Duration::from_millis(5),
        stall: Duration::from_secs(2),
        total: Duration::from_secs(20),
        ..Patience::default()
    }
}

/// Everyone in this process is `me` with the password `hush`, at every registry.
fn introduce() {
    static INTRODUCED: Once = Once::new();
    INTRODUCED.call_once(|| {
        let explicit = Credentials::Password { username: "me".to_owned(), password: Secret::new("hush") };
        let keyring = Keyring { explicit: Some(explicit), files: Vec::new() };
        configure(Registries { keyring, ..Registries::default() });
    });
}

fn find(server: &Server, version: &str) -> Result<Served, SourceError> {
    introduce();
    let repository = Repository::parse(&format!("{}/some/image{version}", server.host())).unwrap();
    Served::find_with(&repository, hurried()).map(|(served, _)| served)
}

fn manifest() -> Answer {
    Answer::ok("{}").header("Content-Type", MANIFEST_TYPE)
}

/// Bytes that differ from place to place.
fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    let value = serde_json::json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(bytes), "size": bytes.len(),
    });
    serde_json::from_value(value).unwrap()
}

fn read_all(served: &Served, blob: &Descriptor) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::new();
    served.stream(blob).map_err(std::io::Error::other)?.read_to_end(&mut read)?;
    Ok(read)
}

#[test]
fn a_token_is_got_for_the_scope_and_again_when_the_registry_says_that_it_ended() {
    let tokens = AtomicUsize::new(0);
    let blob = content(3000);
    let sent = blob.clone();
    let server = Server::start(move |request: &Request| {
        if request.path.starts_with("/token") {
            assert!(request.path.contains("service=here"), "{}", request.path);
            assert!(request.path.contains("scope=repository%3Asome%2Fimage%3Apull"), "{}", request.path);
            assert_eq!(request.header("authorization"), Some(BASIC));
            let number = tokens.fetch_add(1, Ordering::SeqCst);
            return Answer::ok(&format!("{{\"token\": \"t{number}\", \"expires_in\": 3600}}"));
        }
        // The first token is good for the manifest and for nothing after it.
        let good = if request.path.contains("/manifests/") { "Bearer t0" } else { "Bearer t1" };
        if request.header("authorization") != Some(good) {
            let host = request.header("host").unwrap();
            let wanted = format!("Bearer realm=\"http://{host}/token\",service=\"here\",scope=\"x\"");
            return Answer::status(401).header("WWW-Authenticate", &wanted);
        }
        if request.path.contains("/manifests/") { manifest() } else { Answer::ranged(request, &sent) }
    });

    let served = find(&server, ":1").unwrap();
    let read = read_all(&served, &descriptor(&blob)).unwrap();

    assert_eq!(read, blob);
    let paths = server.paths();
    assert_eq!(paths.iter().filter(|path| path.starts_with("/token")).count(), 2, "{paths:?}");
}

#[test]
fn a_password_is_sent_to_the_registry_and_to_no_host_that_it_redirects_to() {
    let blob = content(600_000);
    let (stored, wanted) = (blob.clone(), descriptor(&blob));
    let store = Server::start(move |request: &Request| match request.header("authorization") {
        Some(_) => Answer::status(500),
        None => Answer::ranged(request, &stored),
    });
    let target = format!("http://{}/signed?X-Amz-Expires=900&X-Amz-Signature=hush", store.host());
    let server = Server::start(move |request: &Request| {
        if request.header("authorization") != Some(BASIC) {
            return Answer::status(401).header("WWW-Authenticate", "Basic realm=\"x\"");
        }
        if request.path.contains("/blobs/") { Answer::status(307).header("Location", &target) } else { manifest() }
    });

    let served = find(&server, ":1").unwrap();
    let remote = served.blob(&wanted, "x").unwrap();
    let mut read = vec![0; blob.len()];
    for part in 0..6 {
        remote.read_exact_at(&mut read[part * 100_000..][..100_000], part as u64 * 100_000).unwrap();
    }

    assert_eq!(read, blob);
    // The redirect is gone to directly from the second request on.
    let blobs = server.paths().iter().filter(|path| path.contains("/blobs/")).count();
    assert_eq!((blobs, store.paths().len()), (1, 6));
}

#[test]
fn a_redirect_that_is_refused_is_asked_for_again_once() {
    let blob = content(1000);
    let (stored, wanted) = (blob.clone(), descriptor(&blob));
    let asked = AtomicUsize::new(0);
    let store = Server::start(move |request: &Request| match asked.fetch_add(1, Ordering::SeqCst) {
        1 => Answer::status(403),
        _ => Answer::ranged(request, &stored),
    });
    let target = format!("http://{}/signed", store.host());
    let server = Server::start(move |request: &Request| match request.path.contains("/blobs/") {
        true => Answer::status(307).header("Location", &target),
        false => manifest(),
    });

    let remote = find(&server, ":1").unwrap().blob(&wanted, "x").unwrap();
    let mut read = [0; 500];
    remote.read_exact_at(&mut read, 0).unwrap();
    remote.read_exact_at(&mut read, 500).unwrap();

    assert_eq!(read, blob[500..]);
    assert_eq!(server.paths().iter().filter(|path| path.contains("/blobs/")).count(), 2);
}

#[test]
fn a_manifest_that_has_not_its_digest_is_refused() {
    let lie = Server::start(|_: &Request| manifest());
    let header = Server::start(|_: &Request| manifest().header("Docker-Content-Digest", &sha256(b"other")));

    let by_digest = find(&lie, &format!("@{}", sha256(b"other"))).unwrap_err();
    let by_tag = find(&header, ":1").unwrap_err();

    for error in [by_digest, by_tag] {
        assert!(matches!(error, SourceError::Digest { .. }), "{error}");
    }
}

#[test]
fn a_broken_stream_is_gone_on_with_where_it_broke() {
    let blob = content(1_000_000);
    for serves_ranges in [true, false] {
        let (stored, wanted, answers) = (blob.clone(), descriptor(&blob), AtomicUsize::new(0));
        let server = Server::start(move |request: &Request| {
            if !request.path.contains("/blobs/") {
                return manifest();
            }
            let answer = if serves_ranges { Answer::ranged(request, &stored) } else { Answer::bytes(&stored) };
            // Further each time, and in the end all of it.
            match answers.fetch_add(1, Ordering::SeqCst) {
                0..4 if serves_ranges => answer.cut_after(200_000),
                turn @ 0..4 => answer.cut_after(200_000 * (turn + 1)),
                _ => answer,
            }
        });

        let read = read_all(&find(&server, ":1").unwrap(), &wanted).unwrap();

        assert!(read == blob, "{} bytes with ranges {serves_ranges}", read.len());
    }
}

#[test]
fn a_large_blob_comes_in_parts_or_as_a_whole_as_its_registry_does() {
    let blob = content(10_000_000);
    for serves_ranges in [true, false] {
        let (stored, wanted) = (blob.clone(), descriptor(&blob));
        let server = Server::start(move |request: &Request| match request.path.contains("/blobs/") {
            false => manifest(),
            true if serves_ranges => Answer::ranged(request, &stored),
            true => Answer::bytes(&stored),
        });

        let read = read_all(&find(&server, ":1").unwrap(), &wanted).unwrap();

        assert!(read == blob, "{} bytes with ranges {serves_ranges}", read.len());
        let blobs = server.paths().iter().filter(|path| path.contains("/blobs/")).count();
        assert_eq!(blobs, if serves_ranges { 3 } else { 2 });
    }
}

#[test]
fn a_blob_of_another_length_is_refused() {
    let blob = content(1000);
    let (stored, wanted) = (blob[..900].to_vec(), descriptor(&blob));
    let server = Server::start(move |request: &Request| match request.path.contains("/blobs/") {
        true => Answer::bytes(&stored),
        false => manifest(),
    });

    let error = read_all(&find(&server, ":1").unwrap(), &wanted).unwrap_err();

    assert!(error.to_string().contains("cannot be trusted"), "{error}");
}

#[test]
fn passing_failures_are_waited_out_and_the_pause_is_the_servers() {
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |_: &Request| match asked.fetch_add(1, Ordering::SeqCst) {
        // The first one only finds out that this registry speaks http.
        0 => Answer::status(429).header("Retry-After", "1"),
        1 => Answer::status(503),
        _ => manifest(),
    });
    let before = Instant::now();

    find(&server, ":1").unwrap();

    assert!(before.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.paths().len(), 3);
}

#[test]
fn what_lasts_is_said_at_once_and_with_what_to_do() {
    let missing = Server::start(|_: &Request| Answer::status(404));
    let refusing = Server::start(|_: &Request| Answer::status(401).header("WWW-Authenticate", "Basic realm=\"x\""));
    let down = Server::start(|_: &Request| Answer::status(500));

    assert!(matches!(find(&missing, ":1").unwrap_err(), SourceError::NotFound { status: 404, .. }));
    let error = find(&refusing, ":1").unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("siphon registry login 127.0.0.1:") && !text.contains("hush"), "{text}");
    // Once to learn what is wanted, once with the password, and not again.
    assert_eq!((missing.paths().len(), refusing.paths().len()), (1, 2));
    assert!(matches!(find(&down, ":1").unwrap_err(), SourceError::Status { status: 500, attempts: 3, .. }));
}

#[test]
fn a_token_server_that_is_less_safe_than_the_registry_gets_no_password() {
    let server = Server::start(|request: &Request| {
        assert!(!request.path.starts_with("/token"));
        let wanted = "Bearer realm=\"ftp://example.org/token\"";
        Answer::status(401).header("WWW-Authenticate", wanted)
    });

    assert!(matches!(find(&server, ":1").unwrap_err(), SourceError::Protocol { .. }));
}

#[test]
fn a_manifest_without_end_is_not_read_to_it() {
    let server = Server::start(|_: &Request| Answer::bytes(&vec![b' '; 5 << 20]));

    assert!(matches!(find(&server, ":1").unwrap_err(), SourceError::Protocol { .. }));
}

#[test]
fn a_chunk_that_was_lost_is_sent_again_after_asking_how_far_it_came() {
    introduce();
    let lost = AtomicUsize::new(0);
    let server = Server::start(move |request: &Request| match request.method.as_str() {
        "POST" => Answer::status(202).header("Location", "/v2/some/image/blobs/uploads/1?state=a"),
        "PATCH" if lost.fetch_add(1, Ordering::SeqCst) == 0 => Answer::status(202).cut_after(0).without_answer(),
        "GET" => Answer::status(204).header("Range", "0-99"),
        "PATCH" => {
            assert_eq!(request.header("content-range"), Some("100-999"));
            assert_eq!(request.body.len(), 900);
            Answer::status(202).header("Location", "/v2/some/image/blobs/uploads/1?state=b")
        }
        "PUT" => {
            assert!(request.path.contains("state=b") && request.path.contains("digest=sha256%3A"), "{}", request.path);
            Answer::status(201)
        }
        other => panic!("{other}"),
    });
    let blob = content(1000);
    let repository = Repository::parse(&format!("{}/some/image:1", server.host())).unwrap();

    let sent = Served::for_push(&repository).unwrap().upload("x", &mut &*blob, &mut |_| {}).unwrap();

    assert_eq!((sent.digest, sent.len_bytes), (sha256(&blob), 1000));
}
