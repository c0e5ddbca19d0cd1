//! A reader does not wait for one answer that hangs.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what is meant")]
#![allow(dead_code, reason = "the server can do more than these tests ask of it")]

mod server;

use server::{Fault, Server};
use siphon_fsd::blob::Blob;
use siphon_fsd::cache::CHUNK_BYTES;
use siphon_image::read_at::ReadAt;
use std::time::{Duration, Instant};
use tempfile::tempdir;

const CHUNKS: u64 = 2000;
const READS: u64 = 100;
/// Chunks between two reads, so that none is fetched with another.
const STEP: u64 = 19;
/// What is fetched around a missing chunk at most.
const MAX_AROUND: u64 = 1 << 20;

fn content() -> Vec<u8> {
    (0..CHUNKS).flat_map(|chunk| vec![(chunk % 251) as u8; CHUNK_BYTES]).collect()
}

/// Reads here and there, and says how long the slowest took.
fn read(blob: &Blob, bytes: &[u8], reads: std::ops::Range<u64>) -> Duration {
    let one = |number: u64| {
        // Regions of 64 chunks in turn, and backwards, so that nothing is guessed.
        let chunk = (READS - number) * STEP;
        let (mut buf, offset) = ([0; 500], chunk * CHUNK_BYTES as u64 + 9);
        let began = Instant::now();
        blob.read_exact_at(&mut buf, offset).unwrap();
        assert!(buf == bytes[offset as usize..][..500]);
        began.elapsed()
    };
    reads.map(one).max().unwrap()
}

#[test]
fn a_server_that_hangs_now_and_then_is_asked_a_second_time() {
    let (bytes, cache) = (content(), tempdir().unwrap());
    for fault in [Fault::Stall, Fault::StallAfter(1000)] {
        let server = Server::start(bytes.clone());
        let blob = Blob::open(&server.url(), cache.path()).unwrap();
        // What is usual has to be known.
        read(&blob, &bytes, 0..20);
        server.set(|state| (state.fault, state.fault_every) = (Some(fault), 20));

        let (before, doubled) = (server.requests(), blob.counters().bytes_doubled);
        let slowest = read(&blob, &bytes, 20..READS);

        // Without a second request, each that hangs takes 20 s.
        assert!(slowest < Duration::from_secs(5), "{fault:?}: {slowest:?}");
        let requests = server.requests() - before;
        assert!((80 / 2..=80 + 5).contains(&requests), "{fault:?}: {requests} requests");
        let doubled = blob.counters().bytes_doubled - doubled;
        assert!((1..=5 * MAX_AROUND).contains(&doubled), "{fault:?}: {doubled} bytes were asked for twice");
    }
}

#[test]
fn a_server_that_is_slow_for_all_is_not_asked_twice_as_much() {
    let (bytes, cache) = (content(), tempdir().unwrap());
    let server = Server::start(bytes.clone());
    let blob = Blob::open(&server.url(), cache.path()).unwrap();
    read(&blob, &bytes, 0..20);
    let fast = server.requests();
    server.set(|state| state.delay = Duration::from_millis(250));

    read(&blob, &bytes, 20..60);

    let fetched = blob.counters().requests;
    assert!(server.requests() - fast <= 40 + 4, "{fetched} requests");
}
