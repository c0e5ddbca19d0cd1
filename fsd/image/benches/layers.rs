//! What reading gzip layers in place costs: making an index in one pass, and reads here and there by it.
//!
//! `cargo bench -p siphon-image --bench layers`. `SIPHON_BENCH_LAYER` names a gzip layer of an image to measure with;
//! else one is made whose content compresses about as programs do.

#![expect(clippy::unwrap_used, reason = "a layer that was made here can be read, or there is nothing to measure")]

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use libdeflater::{CompressionLvl, Compressor};
use siphon_image::oci::lazy::Decoded;
use siphon_image::oci::lazy::gzip::{GzipLayer, Indexed, Indexer};
use siphon_image::read_at::ReadAt;
use std::sync::{Arc, LazyLock};

/// What the kernel asks for at a time in a sequential read.
const READ_BYTES: usize = 128 << 10;

/// Too small for more than a few spans, so that nearly every read decodes.
const SMALL_CACHE_BYTES: u64 = 4 << 20;

/// How layers arrive.
const PIECE_BYTES: usize = 64 << 10;

static LAYER: LazyLock<Arc<Vec<u8>>> = LazyLock::new(|| Arc::new(layer()));
static INDEXED: LazyLock<Indexed> = LazyLock::new(index);

fn main() {
    divan::main();
}

fn layer() -> Vec<u8> {
    if let Some(path) = std::env::var_os("SIPHON_BENCH_LAYER") {
        return std::fs::read(path).unwrap();
    }
    // No entries, and then content that is not looked at.
    let mut tar = vec![0; 1024];
    let mut state = 1_u64;
    while tar.len() < 64 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let word = state >> 40 & 0x3fff;
        tar.extend_from_slice(&(word * word).to_le_bytes()[..6]);
    }
    let mut compressor = Compressor::new(CompressionLvl::new(6).unwrap());
    let mut out = vec![0; compressor.gzip_compress_bound(tar.len())];
    let length = compressor.gzip_compress(&tar, &mut out).unwrap();
    out.truncate(length);
    out
}

fn index() -> Indexed {
    let mut indexer = Indexer::default();
    LAYER.chunks(PIECE_BYTES).for_each(|part| indexer.push(part).unwrap());
    indexer.finish().unwrap()
}

/// One pass over the layer: checkpoints, entries, three digests. Bytes are those of the tar.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn make_index(bencher: Bencher<'_, '_>) {
    bencher.counter(BytesCount::new(INDEXED.gzip.bytes())).bench_local(index);
}

/// The same layer decompressed at once by the fastest decoder there is, which can do nothing else.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn decompress_only(bencher: Bencher<'_, '_>) {
    let length = usize::try_from(INDEXED.gzip.bytes()).unwrap();
    let mut out = vec![0; length];
    bencher
        .counter(BytesCount::new(length))
        .bench_local(|| libdeflater::Decompressor::new().gzip_decompress(black_box(&LAYER), &mut out).unwrap());
}

/// 128 KiB anywhere in the tar, of which most are in no span that is kept.
#[divan::bench(sample_count = 200)]
fn read_anywhere(bencher: Bencher<'_, '_>) {
    let layer = GzipLayer::new(LAYER.clone(), INDEXED.gzip.clone(), Decoded::new(SMALL_CACHE_BYTES)).unwrap();
    let places = layer.len() - READ_BYTES as u64;
    let mut buf = vec![0; READ_BYTES];
    let mut state = 7_u64;
    bencher.counter(BytesCount::new(READ_BYTES)).bench_local(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        layer.read_exact_at(&mut buf, (state >> 16) % places).unwrap();
    });
}
