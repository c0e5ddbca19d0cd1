//! Remote objects against a server that behaves, and one that does not.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what is meant")]

mod server;

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use server::{Fault, Server};
use siphon_fsd::blob::{Blob, BlobError};
use siphon_fsd::cache::{CHUNK_BYTES, Cache, CacheError};
use siphon_fsd::prefetch::{Prefetch, fetch_all};
use siphon_fsd::source::{Patience, Remote, SourceError};
use siphon_image::read_at::ReadAt;
use tempfile::{TempDir, tempdir};

const CHUNK: u64 = CHUNK_BYTES as u64;

/// Bytes that differ from chunk to chunk and from seed to seed.
fn content(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|at| ((at ^ (seed << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn hurried() -> Patience {
    Patience {
        first_pause: Duration::from_millis(5),
        stall: Duration::from_millis(900),
        total: Duration::from_secs(20),
        ..Patience::default()
    }
}

fn open(server: &Server, cache: &TempDir) -> Blob {
    Blob::open_with(&server.url(), cache.path(), hurried()).unwrap()
}

fn open_error(server: &Server) -> SourceError {
    Remote::open_with(&server.url(), 65536, hurried()).unwrap_err()
}

fn read(blob: &Blob, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; len];
    blob.read_exact_at(&mut buf, offset).map(|()| buf)
}

fn source_error(error: &io::Error) -> &SourceError {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(BlobError::Source(error)) => error,
        other => panic!("not a source error: {other:?}"),
    }
}

fn object_dir(blob: &Blob, cache: &TempDir) -> PathBuf {
    cache.path().join("v2").join(blob.identity())
}

#[test]
fn every_range_reads_the_bytes_of_the_object() {
    let bytes = content(3 * CHUNK_BYTES + 12345, 1);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);

    assert_eq!(blob.len(), bytes.len() as u64);
    for (offset, len) in
        [(0, 10), (CHUNK - 1, 2), (2 * CHUNK + 7, CHUNK_BYTES), (CHUNK - 3, 2 * CHUNK_BYTES), (3 * CHUNK + 12344, 1)]
    {
        let start = offset as usize;
        assert!(read(&blob, offset, len).unwrap() == bytes[start..start + len], "{len} bytes at {offset}");
    }
    assert!(read(&blob, 0, bytes.len()).unwrap() == bytes);
    assert!(read(&blob, blob.len(), 0).unwrap().is_empty());
    assert_eq!(read(&blob, blob.len(), 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(read(&blob, u64::MAX, 2).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(blob.counters().bytes_fetched, bytes.len() as u64);
}

#[test]
fn opening_is_one_request_and_serves_the_first_chunk() {
    let bytes = content(2 * CHUNK_BYTES, 2);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());

    let blob = open(&server, &cache);

    assert!(read(&blob, 0, CHUNK_BYTES).unwrap() == bytes[..CHUNK_BYTES]);
    assert_eq!(server.requests(), 1);
}

#[test]
fn an_object_shorter_than_a_chunk_is_read_whole_by_opening() {
    let (server, cache) = (Server::start(b"short".to_vec()), tempdir().unwrap());

    let blob = open(&server, &cache);

    assert_eq!(read(&blob, 0, 5).unwrap(), b"short");
    assert_eq!(server.requests(), 1);
}

#[test]
fn two_readers_of_a_missing_chunk_cause_one_fetch() {
    let bytes = content(3 * CHUNK_BYTES, 3);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);
    server.set(|state| state.delay = Duration::from_millis(200));
    let barrier = Barrier::new(8);

    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                assert!(read(&blob, 2 * CHUNK + 5, 100).unwrap() == bytes[2 * CHUNK_BYTES + 5..][..100]);
            });
        }
    });

    assert_eq!(server.requests(), 2);
}

#[test]
fn the_error_of_a_fetch_reaches_all_who_wait_and_the_next_reader_tries_again() {
    let bytes = content(3 * CHUNK_BYTES, 4);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);
    server.set(|state| (state.fault, state.delay) = (Some(Fault::Status(403)), Duration::from_millis(200)));
    let barrier = Barrier::new(4);

    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                let error = read(&blob, 2 * CHUNK, 1).unwrap_err();
                assert!(matches!(source_error(&error), SourceError::Denied { status: 403, .. }), "{error}");
            });
        }
    });
    assert_eq!(server.requests(), 2);

    server.set(|state| state.fault = None);
    assert_eq!(read(&blob, 2 * CHUNK, 1).unwrap(), bytes[2 * CHUNK_BYTES..][..1]);
}

#[test]
fn chunks_are_read_from_disk_the_second_time() {
    let bytes = content(4 * CHUNK_BYTES + 1, 5);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let first = open(&server, &cache);
    read(&first, 0, bytes.len()).unwrap();
    let before = server.requests();

    assert!(read(&first, 0, bytes.len()).unwrap() == bytes);
    assert_eq!(server.requests(), before);
    let second = open(&server, &cache);
    assert!(read(&second, 0, bytes.len()).unwrap() == bytes);

    assert_eq!(server.requests(), before + 1, "only opening asks");
    assert_eq!(second.identity(), first.identity());
    assert_eq!(second.counters().bytes_from_cache, bytes.len() as u64);
}

#[test]
fn missing_neighbours_come_in_one_bounded_request() {
    let bytes = content(160 * CHUNK_BYTES, 6);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);

    assert!(read(&blob, 8 * CHUNK, 80 * CHUNK_BYTES).unwrap() == bytes[8 * CHUNK_BYTES..88 * CHUNK_BYTES]);
    assert_eq!(server.requests(), 2);
    assert!(read(&blob, 0, 160 * CHUNK_BYTES).unwrap() == bytes);
    assert_eq!(server.requests(), 4, "the gap before and the rest behind");
    assert_eq!(blob.counters().bytes_fetched, bytes.len() as u64);

    let other = tempdir().unwrap();
    read(&open(&server, &other), CHUNK, 159 * CHUNK_BYTES).unwrap();
    assert_eq!(server.requests(), 7, "159 chunks are more than one request may carry");
}

#[test]
fn a_sequential_reader_causes_few_requests_and_fetches_nothing_twice() {
    let bytes = content(320 * CHUNK_BYTES, 7);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);

    for (part, expected) in bytes.chunks(128 * 1024).enumerate() {
        assert!(read(&blob, part as u64 * 128 * 1024, expected.len()).unwrap() == expected);
    }

    assert!(server.requests() <= 20, "{} requests", server.requests());
    assert_eq!(blob.counters().bytes_fetched, bytes.len() as u64);
}

#[test]
fn what_is_about_to_be_read_comes_in_one_request() {
    let bytes = content(40 * CHUNK_BYTES, 30);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);

    blob.will_read(10 * CHUNK + 5..40 * CHUNK);
    for chunk in (10..40).rev() {
        assert!(read(&blob, chunk * CHUNK + 5, 100).unwrap() == bytes[chunk as usize * CHUNK_BYTES + 5..][..100]);
    }

    assert_eq!(server.requests(), 2);
}

#[test]
fn what_arrived_of_a_long_request_is_read_before_the_rest() {
    let bytes = content(40 * CHUNK_BYTES, 31);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob =
        Blob::open_with(&server.url(), cache.path(), Patience { stall: Duration::from_secs(5), ..hurried() }).unwrap();
    server.set(|state| (state.fault, state.faults_left) = (Some(Fault::StallAfter(20 * CHUNK_BYTES)), 1));
    let began = Instant::now();

    blob.will_read(CHUNK..40 * CHUNK);

    assert!(read(&blob, 9 * CHUNK, 100).unwrap() == bytes[9 * CHUNK_BYTES..][..100]);
    assert!(began.elapsed() < Duration::from_secs(4), "it waited for the end of the request");
    assert!(read(&blob, 0, bytes.len()).unwrap() == bytes);
}

#[test]
fn more_is_fetched_around_places_that_lie_together() {
    let bytes = content(640 * CHUNK_BYTES, 32);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);

    for place in 0..60 {
        // All over a region of 4 MiB, in no order.
        let chunk = 64 + place * 37 % 64;
        assert!(read(&blob, chunk as u64 * CHUNK, 10).unwrap() == bytes[chunk * CHUNK_BYTES..][..10]);
    }
    let together = server.requests();
    for place in 3..10 {
        read(&blob, place * 64 * CHUNK, 10).unwrap();
    }

    assert!(together < 25, "{together} requests");
    // All of it is waited for: what is still being stored would be left behind.
    for (place, chunks) in (3..10).map(|place| (place, 8)).chain([(1, 64)]) {
        read(&blob, place * 64 * CHUNK, chunks * CHUNK_BYTES).unwrap();
    }
    let fetched = blob.counters().bytes_fetched / CHUNK;
    assert!((120..130).contains(&fetched), "{fetched} chunks: what is alone is fetched with 7 others");
}

#[test]
fn an_object_that_was_opened_before_is_served_without_its_server() {
    let bytes = content(16 * CHUNK_BYTES, 33);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let first = open(&server, &cache);
    read(&first, 0, 6 * CHUNK_BYTES).unwrap();
    let url = server.url();
    server.set(|state| state.fault = Some(Fault::Close));

    let blob = Blob::open_with(&url, cache.path(), hurried()).unwrap();

    assert_eq!(blob.identity(), first.identity());
    assert!(read(&blob, 0, 6 * CHUNK_BYTES).unwrap() == bytes[..6 * CHUNK_BYTES]);
    let error = read(&blob, 12 * CHUNK, 1).unwrap_err();
    assert!(matches!(source_error(&error), SourceError::Unreachable { .. }), "{error}");
    server.set(|state| state.fault = None);
    // A failure stands for those who ask right after it.
    std::thread::sleep(Duration::from_millis(1100));
    assert!(read(&blob, 0, bytes.len()).unwrap() == bytes, "it goes on when the network is back");
}

#[test]
fn an_object_that_changed_while_its_server_was_away_is_not_mixed() {
    let (old, new) = (content(16 * CHUNK_BYTES, 34), content(16 * CHUNK_BYTES, 35));
    let (server, cache) = (Server::start(old.clone()), tempdir().unwrap());
    read(&open(&server, &cache), CHUNK, 1).unwrap();
    server.set(|state| state.fault = Some(Fault::Close));
    let blob = open(&server, &cache);

    server.set(|state| (state.fault, state.bytes, state.etag) = (None, new.clone().into(), Some("\"new\"".to_owned())));

    assert!(read(&blob, CHUNK, 100).unwrap() == old[CHUNK_BYTES..][..100]);
    let error = read(&blob, 12 * CHUNK, 1).unwrap_err();
    assert!(matches!(source_error(&error), SourceError::Changed { .. }), "{error}");
    assert!(read(&open(&server, &cache), 0, new.len()).unwrap() == new);
}

#[test]
fn a_refusal_is_no_reason_to_serve_what_is_cached() {
    let (server, cache) = (Server::start(content(4 * CHUNK_BYTES, 36)), tempdir().unwrap());
    open(&server, &cache);
    for status in [401, 403, 404] {
        server.set(|state| state.fault = Some(Fault::Status(status)));

        assert!(Blob::open_with(&server.url(), cache.path(), hurried()).is_err(), "{status}");
    }
}

#[test]
fn a_pinned_object_never_asks_its_server() {
    let bytes = content(300 * CHUNK_BYTES + 77, 37);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);
    read(&blob, 50 * CHUNK, 1000).unwrap();
    let done = AtomicU64::new(0);

    fetch_all(&blob, &|bytes| {
        done.fetch_max(bytes, Ordering::Relaxed);
    })
    .unwrap();
    blob.set_pinned(true).unwrap();
    let asked = server.requests();
    let pinned = open(&server, &cache);

    assert_eq!(done.into_inner(), bytes.len() as u64);
    assert!(read(&pinned, 0, bytes.len()).unwrap() == bytes);
    assert_eq!(server.requests(), asked);
    pinned.set_pinned(false).unwrap();
    open(&server, &cache);
    assert_eq!(server.requests(), asked + 1);
}

#[test]
fn what_does_not_fit_on_the_disk_is_not_pinned() {
    let bytes = content(4 * CHUNK_BYTES, 38);
    let (server, cache, full) = (Server::start(bytes), tempdir().unwrap(), tempdir().unwrap());
    let dir = full.path().join("v2").join(open(&server, &cache).identity());
    fs::create_dir_all(&dir).unwrap();
    symlink("/dev/full", dir.join("00000.pack")).unwrap();

    let error = fetch_all(&open(&server, &full), &|_| {}).unwrap_err();

    assert!(matches!(error, BlobError::Unstored { .. }), "{error}");
}

#[test]
fn a_run_that_is_known_is_fetched_ahead_in_few_requests() {
    let bytes = content(2000 * CHUNK_BYTES, 39);
    let server = Server::start(bytes.clone());
    // Thirty runs of 2 MiB, all of them in no order.
    let places: Vec<u64> = (0..960).map(|step| step * 7 % 960).map(|place| place / 32 * 64 + place % 32).collect();
    let run = |cache: &TempDir, trace: &[u8]| {
        let before = server.requests();
        let prefetch = Prefetch::new([Arc::new(open(&server, cache))]);
        let object = prefetch.objects().next().unwrap();
        prefetch.follow(trace);
        for chunk in &places {
            let mut buf = [0; 100];
            object.read_exact_at(&mut buf, chunk * CHUNK + 9).unwrap();
            assert!(buf == bytes[*chunk as usize * CHUNK_BYTES + 9..][..100]);
        }
        (prefetch.trace(), server.requests() - before)
    };

    let (trace, first) = run(&tempdir().unwrap(), b"");
    let (added, second) = run(&tempdir().unwrap(), &trace.unwrap());

    assert_eq!(added, None);
    assert!(second * 3 < first * 2, "{second} requests after {first}");
}

#[test]
fn many_first_readers_fetch_each_chunk_once() {
    let bytes = content(400 * CHUNK_BYTES, 40);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);
    server.set(|state| state.delay = Duration::from_millis(5));
    let barrier = Barrier::new(32);

    std::thread::scope(|scope| {
        for reader in 0..32 {
            let (blob, bytes, barrier) = (&blob, &bytes, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for step in 0..400 {
                    let chunk = (step * 3 + reader / 8) % 400;
                    let expected = &bytes[chunk * CHUNK_BYTES + 5..][..50];
                    assert!(read(blob, (chunk * CHUNK_BYTES) as u64 + 5, 50).unwrap() == expected);
                }
            });
        }
    });

    assert_eq!(blob.counters().bytes_fetched, bytes.len() as u64);
}

#[test]
fn processes_that_share_a_cache_hardly_fetch_a_chunk_twice() {
    let bytes = content(400 * CHUNK_BYTES, 41);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    // Each with locks of its own, as if it were a process of its own.
    let blobs: Vec<Blob> = (0..4).map(|_| open(&server, &cache)).collect();
    let before: u64 = blobs.iter().map(|blob| blob.counters().bytes_fetched).sum();
    server.set(|state| state.delay = Duration::from_millis(5));
    let barrier = Barrier::new(16);

    std::thread::scope(|scope| {
        for reader in 0..16 {
            let (blob, bytes, barrier) = (&blobs[reader % 4], &bytes, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for step in 0..400 {
                    let chunk = (step * 3 + reader / 4) % 400;
                    let expected = &bytes[chunk * CHUNK_BYTES + 5..][..50];
                    assert!(read(blob, (chunk * CHUNK_BYTES) as u64 + 5, 50).unwrap() == expected);
                }
            });
        }
    });

    let fetched: u64 = blobs.iter().map(|blob| blob.counters().bytes_fetched).sum();
    // One that another process brought between two that it did not comes with them. Without turns it is each, three times.
    let twice = (fetched - before).saturating_sub(bytes.len() as u64) / CHUNK;
    assert!(twice <= 80, "{twice} of 400 chunks were fetched twice");
}

#[test]
fn a_process_that_hangs_does_not_hold_up_the_others() {
    let bytes = content(4 * CHUNK_BYTES, 42);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let patience = Patience { stall: Duration::from_secs(8), attempts: 1, ..hurried() };
    let [hanging, other] = [(), ()].map(|()| Blob::open_with(&server.url(), cache.path(), patience).unwrap());
    server.set(|state| (state.fault, state.faults_left) = (Some(Fault::Stall), 2));

    std::thread::scope(|scope| {
        // Twice, since it is asked a second time.
        scope.spawn(|| drop(read(&hanging, 2 * CHUNK, 1)));
        while server.requests() < 4 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let began = Instant::now();
        assert!(read(&other, 2 * CHUNK, 100).unwrap() == bytes[2 * CHUNK_BYTES..][..100]);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    });
}

#[test]
fn a_changed_object_gives_an_error_and_no_mixed_bytes() {
    let (old, new) = (content(16 * CHUNK_BYTES, 8), content(16 * CHUNK_BYTES, 9));
    for ignores_conditions in [false, true] {
        let (server, cache) = (Server::start(old.clone()), tempdir().unwrap());
        server.set(|state| state.ignores_conditions = ignores_conditions);
        let blob = open(&server, &cache);
        read(&blob, CHUNK, 1).unwrap();

        server.set(|state| (state.bytes, state.etag) = (new.clone().into(), Some("\"new\"".to_owned())));

        assert!(read(&blob, CHUNK, CHUNK_BYTES).unwrap() == old[CHUNK_BYTES..2 * CHUNK_BYTES]);
        let error = read(&blob, 12 * CHUNK, 1).unwrap_err();
        assert!(matches!(source_error(&error), SourceError::Changed { .. }), "{error}");
        let reopened = open(&server, &cache);
        assert_ne!(reopened.identity(), blob.identity());
        assert!(read(&reopened, 0, new.len()).unwrap() == new);
    }
}

#[test]
fn a_change_between_the_attempts_of_one_read_is_noticed() {
    let (old, new) = (content(3 * CHUNK_BYTES, 8), content(3 * CHUNK_BYTES, 9));
    let (server, cache) = (Server::start(old), tempdir().unwrap());
    let blob = open(&server, &cache);
    server.set(|state| {
        (state.fault, state.faults_left) = (Some(Fault::Truncate(1000)), 1);
        state.after_fault = Some((new, "\"new\"".to_owned()));
    });

    let error = read(&blob, CHUNK, CHUNK_BYTES).unwrap_err();

    assert!(matches!(source_error(&error), SourceError::Changed { .. }), "{error}");
}

#[test]
fn a_change_is_noticed_by_date_or_length_where_there_is_no_tag() {
    let (old, new) = (content(3 * CHUNK_BYTES, 10), content(3 * CHUNK_BYTES + 1, 11));
    for date in [Some("Mon, 23 Nov 2026 20:00:00 GMT".to_owned()), None] {
        let (server, cache) = (Server::start(old.clone()), tempdir().unwrap());
        server.set(|state| (state.etag, state.last_modified) = (None, date.clone()));
        let blob = open(&server, &cache);

        server.set(|state| match &mut state.last_modified {
            Some(date) => *date = "Mon, 23 Nov 2026 20:00:01 GMT".to_owned(),
            None => state.bytes = new.clone().into(),
        });

        let error = read(&blob, 2 * CHUNK, 1).unwrap_err();
        assert!(matches!(source_error(&error), SourceError::Changed { .. }), "{error}");
    }
}

#[test]
fn without_a_validator_the_first_bytes_tell_objects_of_equal_length_apart() {
    let (old, new) = (content(3 * CHUNK_BYTES, 12), content(3 * CHUNK_BYTES, 13));
    let (server, cache) = (Server::start(old), tempdir().unwrap());
    server.set(|state| state.etag = None);
    read(&open(&server, &cache), 0, 3 * CHUNK_BYTES).unwrap();

    server.set(|state| state.bytes = new.clone().into());

    assert!(read(&open(&server, &cache), 0, 3 * CHUNK_BYTES).unwrap() == new);
}

#[test]
fn a_server_without_ranges_is_refused() {
    let server = Server::start(content(CHUNK_BYTES, 14));
    server.set(|state| state.fault = Some(Fault::NoRanges));

    let error = open_error(&server);

    assert!(matches!(error, SourceError::NoRanges { .. }));
    assert!(error.to_string().contains("download the image first"), "{error}");
    assert_eq!(server.requests(), 1);
}

#[test]
fn lasting_refusals_are_not_repeated_and_say_what_to_do() {
    let server = Server::start(content(CHUNK_BYTES, 15));
    for (status, hint) in [(401, "password"), (403, "password"), (404, "check the URL"), (410, "check the URL")] {
        let before = server.requests();
        server.set(|state| state.fault = Some(Fault::Status(status)));

        let error = open_error(&server).to_string();

        assert!(error.contains(&status.to_string()) && error.contains(hint), "{error}");
        assert_eq!(server.requests(), before + 1);
    }
}

#[test]
fn an_empty_object_is_refused() {
    let server = Server::start(Vec::new());

    assert!(matches!(open_error(&server), SourceError::Empty { .. }));
}

#[test]
fn passing_failures_are_repeated_until_they_pass() {
    let bytes = content(3 * CHUNK_BYTES, 16);
    for fault in [Fault::Status(503), Fault::Status(429), Fault::Truncate(1000), Fault::Close, Fault::Stall] {
        let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
        let blob = open(&server, &cache);
        server.set(|state| (state.fault, state.faults_left) = (Some(fault), 2));

        assert!(read(&blob, CHUNK, 2 * CHUNK_BYTES).unwrap() == bytes[CHUNK_BYTES..], "{fault:?}");

        assert_eq!(blob.counters().retries, 2, "{fault:?}");
    }
}

#[test]
fn what_arrived_before_a_break_is_not_asked_for_again() {
    let bytes = content(3 * CHUNK_BYTES, 17);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);
    server.set(|state| (state.fault, state.faults_left) = (Some(Fault::Truncate(100_000)), 1));

    assert!(read(&blob, 2 * CHUNK, CHUNK_BYTES).unwrap() == bytes[2 * CHUNK_BYTES..]);

    assert_eq!(blob.counters().bytes_fetched, 3 * CHUNK, "all, each once");
}

#[test]
fn an_interrupted_fill_is_repaired() {
    let bytes = content(3 * CHUNK_BYTES, 18);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);
    server.set(|state| state.fault = Some(Fault::Truncate(100)));
    let error = read(&blob, CHUNK, 10).unwrap_err();
    assert!(matches!(source_error(&error), SourceError::Unreachable { .. }), "{error}");

    server.set(|state| state.fault = None);

    assert!(read(&blob, CHUNK, CHUNK_BYTES).unwrap() == bytes[CHUNK_BYTES..2 * CHUNK_BYTES]);
    assert!(read(&open(&server, &cache), 0, bytes.len()).unwrap() == bytes);
}

#[test]
fn failures_that_last_end_after_a_bounded_number_of_attempts() {
    for fault in [Fault::Status(500), Fault::Close, Fault::Stall, Fault::Trickle] {
        let server = Server::start(content(CHUNK_BYTES, 19));
        server.set(|state| state.fault = Some(fault));
        let patience = Patience { attempt: Duration::from_millis(500), ..hurried() };
        let began = Instant::now();

        let error = Remote::open_with(&server.url(), 65536, patience).unwrap_err();

        assert!(matches!(error, SourceError::Status { .. } | SourceError::Unreachable { .. }), "{fault:?}: {error}");
        assert_eq!(server.requests(), 3, "{fault:?}");
        assert!(began.elapsed() < Duration::from_secs(15), "{fault:?}");
    }
}

#[test]
fn a_server_that_is_not_there_is_an_error_with_its_cause() {
    let server = Server::start(Vec::new());
    let url = server.url();
    drop(server);

    let error = Remote::open_with(&url, 65536, hurried()).unwrap_err();

    assert!(matches!(error, SourceError::Unreachable { attempts: 3, .. }), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn an_answer_about_other_bytes_is_not_taken() {
    for fault in [Fault::LieInRange, Fault::NoContentRange, Fault::Encoded] {
        let (server, cache) = (Server::start(content(3 * CHUNK_BYTES, 20)), tempdir().unwrap());
        let blob = open(&server, &cache);
        server.set(|state| state.fault = Some(fault));

        let error = read(&blob, CHUNK, 1).unwrap_err();

        assert!(matches!(source_error(&error), SourceError::Protocol { .. }), "{fault:?}: {error}");
        assert!(matches!(open_error(&server), SourceError::Protocol { .. }), "{fault:?}");
    }
}

#[test]
fn a_claim_of_boundless_length_is_refused() {
    let (server, cache) = (Server::start(content(CHUNK_BYTES, 21)), tempdir().unwrap());
    server.set(|state| state.claimed_len = Some(u64::MAX));

    let error = Blob::open_with(&server.url(), cache.path(), hurried()).unwrap_err();

    assert!(matches!(error, BlobError::Cache(CacheError::TooLong { .. })), "{error}");
}

#[test]
fn a_torn_chunk_is_fetched_again() {
    let bytes = content(4 * CHUNK_BYTES, 22);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);
    read(&blob, 0, bytes.len()).unwrap();
    let data = fs::File::options().write(true).open(object_dir(&blob, &cache).join("00000.pack")).unwrap();
    drop(blob);
    data.write_all_at(&[0; 4096], 2 * CHUNK + 4096).unwrap();
    let before = server.requests();

    let reopened = open(&server, &cache);

    assert!(read(&reopened, 0, bytes.len()).unwrap() == bytes);
    assert_eq!(server.requests(), before + 2, "opening and the torn chunk");
    let again = open(&server, &cache);
    assert!(read(&again, 0, bytes.len()).unwrap() == bytes);
    assert_eq!(again.counters().requests, 1);
}

#[test]
fn a_cache_cut_short_is_filled_again() {
    let bytes = content(4 * CHUNK_BYTES, 23);
    for left in [10, 3 * CHUNK + 10, 64 << 20] {
        let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
        let blob = open(&server, &cache);
        read(&blob, 0, bytes.len()).unwrap();

        let file = fs::File::options().write(true).open(object_dir(&blob, &cache).join("00000.pack")).unwrap();
        file.set_len(left).unwrap();

        assert!(read(&blob, 0, bytes.len()).unwrap() == bytes, "{left}, same process");
        assert!(read(&open(&server, &cache), 0, bytes.len()).unwrap() == bytes, "{left}, next process");
    }
}

#[test]
fn a_full_disk_still_serves_bytes() {
    let bytes = content(4 * CHUNK_BYTES, 24);
    let (server, cache, full) = (Server::start(bytes.clone()), tempdir().unwrap(), tempdir().unwrap());
    let identity = open(&server, &cache).identity().to_owned();
    let dir = full.path().join("v2").join(identity);
    fs::create_dir_all(&dir).unwrap();
    symlink("/dev/full", dir.join("00000.pack")).unwrap();

    let blob = open(&server, &full);

    for (part, expected) in bytes.chunks(4096).enumerate() {
        assert!(read(&blob, part as u64 * 4096, 4096).unwrap() == expected);
    }
    assert_eq!(blob.counters().bytes_from_cache, 0);
    assert!(blob.counters().requests <= 4, "small reads share a fetch: {:?}", blob.counters());
    assert!(read(&blob, 0, bytes.len()).unwrap() == bytes);
}

#[test]
fn two_caches_over_one_directory_agree() {
    let bytes = content(12 * CHUNK_BYTES + 99, 25);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blobs = [open(&server, &cache), open(&server, &cache)];

    std::thread::scope(|scope| {
        for reader in 0..6 {
            let (blob, bytes) = (&blobs[reader % 2], &bytes);
            scope.spawn(move || {
                for step in 0..13 {
                    let chunk = (step * 5 + reader) % 13;
                    let expected = &bytes[chunk * CHUNK_BYTES..][..99];
                    assert!(read(blob, (chunk * CHUNK_BYTES) as u64, 99).unwrap() == expected);
                }
            });
        }
    });

    let third = open(&server, &cache);
    assert!(read(&third, 0, bytes.len()).unwrap() == bytes);
    assert_eq!(third.counters().requests, 1);
}

#[test]
fn a_server_that_asks_for_a_pause_gets_it() {
    let bytes = content(3 * CHUNK_BYTES, 41);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let blob = open(&server, &cache);
    server.set(|state| (state.fault, state.faults_left) = (Some(Fault::RetryAfter(1)), 1));
    let began = Instant::now();

    assert!(read(&blob, CHUNK, 100).unwrap() == bytes[CHUNK_BYTES..][..100]);

    assert!(began.elapsed() >= Duration::from_secs(1));
}

/// A process of its own, for the test below: reads all of the object, and is killed meanwhile.
#[test]
#[ignore = "it is started by another test"]
fn a_process_that_reads() {
    let (Ok(url), Ok(dir)) = (std::env::var("TEST_URL"), std::env::var("TEST_CACHE")) else { return };
    let blob = Blob::open_with(&url, Path::new(&dir), hurried()).unwrap();
    for offset in (0..blob.len()).step_by(3 * CHUNK_BYTES + 7) {
        read(&blob, offset, usize::try_from((blob.len() - offset).min(2 * CHUNK)).unwrap()).unwrap();
    }
}

#[test]
fn processes_that_share_a_cache_and_are_killed_leave_nothing_torn() {
    let bytes = content(1100 * CHUNK_BYTES + 99, 42);
    let (server, cache) = (Server::start(bytes.clone()), tempdir().unwrap());
    let this = std::env::current_exe().unwrap();

    for round in 0..12 {
        let start = || {
            let mut child = std::process::Command::new(&this);
            child.args(["--exact", "a_process_that_reads", "--ignored"]).env("TEST_URL", server.url());
            child.env("TEST_CACHE", cache.path()).stdout(std::process::Stdio::null()).spawn().unwrap()
        };
        let (mut killed, mut other) = (start(), start());
        std::thread::sleep(Duration::from_millis(20 + round * 11 % 90));
        killed.kill().unwrap();
        killed.wait().unwrap();
        if round % 3 == 0 {
            // The whole object is taken away under the other one.
            let cache = Cache::open(cache.path()).unwrap();
            cache.entries().unwrap().iter().for_each(|entry| cache.remove(entry).unwrap());
        }
        assert!(other.wait().unwrap().success());
    }

    assert!(read(&open(&server, &cache), 0, bytes.len()).unwrap() == bytes);
}

#[test]
fn credentials_are_sent_and_appear_nowhere() {
    let bytes = content(2 * CHUNK_BYTES, 26);
    let (server, cache) = (Server::start(bytes), tempdir().unwrap());
    let url = server.url().replace("http://", "http://me:secret@") + "?sig=hidden";

    let blob = Blob::open_with(&url, cache.path(), hurried()).unwrap();
    // Base64 of "me:secret".
    assert!(server.last_head().to_lowercase().contains("authorization: basic bwu6c2vjcmv0"), "{}", server.last_head());
    let meta = fs::read_to_string(object_dir(&blob, &cache).join("meta.json")).unwrap();
    server.set(|state| state.fault = Some(Fault::Close));
    let error = read(&blob, CHUNK, 1).unwrap_err();

    for text in [format!("{blob:?}"), format!("{error:?} {error}"), meta, blob.name().to_owned()] {
        assert!(!text.contains("secret") && !text.contains("hidden"), "{text}");
    }
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    let (target, first) = (Server::start(content(CHUNK_BYTES, 27)), Server::start(Vec::new()));
    first.set(|state| state.redirect = Some(target.url()));
    let url = first.url().replace("http://", "http://me:secret@");

    Remote::open_with(&url, 65536, hurried()).unwrap();

    assert!(first.last_head().to_lowercase().contains("authorization:"));
    assert!(!target.last_head().to_lowercase().contains("authorization:"), "{}", target.last_head());
}

#[test]
fn a_redirect_in_a_circle_is_an_error() {
    let server = Server::start(Vec::new());
    server.set(|state| state.redirect = Some(server.url()));

    assert!(matches!(open_error(&server), SourceError::Unreachable { attempts: 1, .. }));
    assert!(server.requests() < 20);
}

#[test]
fn the_cache_directory_is_private() {
    let (server, base) = (Server::start(content(10, 28)), tempdir().unwrap());
    let mode = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o777;
    let (made, found) = (base.path().join("a/made"), base.path().join("found"));
    fs::create_dir(&found).unwrap();
    fs::set_permissions(&found, fs::Permissions::from_mode(0o775)).unwrap();

    for dir in [&made, &found] {
        Blob::open_with(&server.url(), dir, hurried()).unwrap();
        assert_eq!(mode(dir), 0o700);
    }
}
