//! Layers made by tests: a tar entry by entry, and each form that a registry may have it in.

#![allow(dead_code, reason = "each test program uses a part of it")]

use libdeflater::{CompressionLvl, Compressor};
use sha2::{Digest, Sha256};
use siphon_image::oci::lazy::tree::LayeredTree;
use siphon_image::oci::lazy::{
    Decoded, Layer, LayerIndex, Merge, estargz, gzip, saved, seekable, tar, zstd_chunked, ztoc,
};
use siphon_image::read_at::ReadAt;
use std::fmt::Write;
use std::sync::Arc;

/// A number generator that is the same everywhere (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

/// One entry of a tar.
#[derive(Debug, Clone, Default)]
pub(crate) struct TarEntry {
    pub(crate) path: String,
    /// The type flag.
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: u64,
    pub(crate) link: String,
    pub(crate) content: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    field[..width].copy_from_slice(format!("{value:0width$o}").as_bytes());
}

fn header(entry: &TarEntry, path: &str, kind: u8, size: usize) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..path.len().min(100)].copy_from_slice(&path.as_bytes()[..path.len().min(100)]);
    octal(&mut block[100..108], entry.mode.into());
    octal(&mut block[108..116], entry.uid.into());
    octal(&mut block[116..124], entry.gid.into());
    octal(&mut block[124..136], size as u64);
    octal(&mut block[136..148], entry.mtime);
    block[156] = kind;
    block[157..157 + entry.link.len()].copy_from_slice(entry.link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block[329..337], entry.device.0.into());
    octal(&mut block[337..345], entry.device.1.into());
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum);
    block
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

/// The headers of an entry, padding included, without content.
fn head(entry: &TarEntry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut record = |key: &str, value: &[u8]| {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len();
        while length != body.len() + length.to_string().len() {
            length = body.len() + length.to_string().len();
        }
        records.extend_from_slice(length.to_string().as_bytes());
        records.extend_from_slice(&body);
    };
    if entry.path.len() > 100 {
        record("path", entry.path.as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(&format!("SCHILY.xattr.{name}"), value);
    }
    let mut bytes = Vec::new();
    if !records.is_empty() {
        bytes.extend(header(&TarEntry::default(), "pax", b'x', records.len()));
        bytes.extend(records);
        pad(&mut bytes);
    }
    bytes.extend(header(entry, &entry.path, entry.kind, entry.content.len()));
    bytes
}

pub(crate) fn tar(entries: &[TarEntry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        bytes.extend(head(entry));
        bytes.extend_from_slice(&entry.content);
        pad(&mut bytes);
    }
    bytes.extend([0; 1024]);
    bytes
}

pub(crate) fn gzip_member(bytes: &[u8], level: i32) -> Vec<u8> {
    let mut compressor = Compressor::new(CompressionLvl::new(level).unwrap());
    let mut out = vec![0; compressor.gzip_compress_bound(bytes.len())];
    let length = compressor.gzip_compress(bytes, &mut out).unwrap();
    out.truncate(length);
    out
}

/// A gzip member by another compressor, whose blocks end elsewhere, with a name in the header.
pub(crate) fn gzip_named(bytes: &[u8]) -> Vec<u8> {
    let mut crc = libdeflater::Crc::new();
    crc.update(bytes);
    let mut out = vec![0x1f, 0x8b, 8, 8, 1, 2, 3, 4, 0, 3];
    out.extend_from_slice(b"layer.tar\0");
    out.extend(miniz_oxide::deflate::compress_to_vec(bytes, 6));
    out.extend_from_slice(&crc.sum().to_le_bytes());
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
    out
}

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS[usize::try_from(bits >> (18 - 6 * place) & 63).unwrap()];
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// What a table of contents says of an entry, its chunks left out.
fn toc_entry(entry: &TarEntry) -> serde_json::Value {
    let kind = match entry.kind {
        b'1' => "hardlink",
        b'2' => "symlink",
        b'3' => "char",
        b'4' => "block",
        b'5' => "dir",
        b'6' => "fifo",
        _ => "reg",
    };
    let days = entry.mtime / 86_400;
    // Times of the generator are within 1970 to 1972.
    let (year, day) = (1970 + days / 365, days % 365);
    assert!(year < 1972);
    let (mut month, mut left) = (0, day);
    for length in [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    let seconds = entry.mtime % 86_400;
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let xattrs: serde_json::Map<_, _> =
        entry.xattrs.iter().map(|(name, value)| (name.clone(), base64(value).into())).collect();
    serde_json::json!({
        "name": entry.path, "type": kind, "size": entry.content.len(), "mode": entry.mode,
        "modtime": format!("{year}-{:02}-{:02}T{clock}Z", month + 1, left + 1),
        "uid": entry.uid, "gid": entry.gid, "linkName": entry.link,
        "devMajor": entry.device.0, "devMinor": entry.device.1, "xattrs": xattrs,
    })
}

/// A layer with a member or frame for each chunk, by `compress`, and the entries of its table.
fn chunked(
    entries: &[TarEntry],
    chunk_bytes: usize,
    compress: &dyn Fn(&[u8]) -> Vec<u8>,
) -> (Vec<u8>, Vec<serde_json::Value>) {
    let (mut layer, mut toc, mut pending) = (Vec::new(), Vec::new(), Vec::new());
    for entry in entries {
        pending.extend(head(entry));
        let value = toc_entry(entry);
        if entry.content.is_empty() {
            toc.push(value);
            continue;
        }
        layer.extend(compress(&pending));
        pending.clear();
        for (number, chunk) in entry.content.chunks(chunk_bytes).enumerate() {
            let mut value =
                if number == 0 { value.clone() } else { serde_json::json!({"name": entry.path, "type": "chunk"}) };
            value["offset"] = layer.len().into();
            value["chunkOffset"] = (number * chunk_bytes).into();
            value["chunkSize"] = if entry.content.len() > chunk_bytes { chunk.len() } else { 0 }.into();
            value["chunkDigest"] = format!("sha256:{}", hex(&Sha256::digest(chunk))).into();
            toc.push(value);
            layer.extend(compress(chunk));
        }
        pending.resize((512 - entry.content.len() % 512) % 512, 0);
    }
    layer.extend(compress(&pending));
    (layer, toc)
}

/// An eStargz, and the digest of its table.
pub(crate) fn estargz(entries: &[TarEntry]) -> (Vec<u8>, [u8; 32]) {
    let (mut layer, toc) = chunked(entries, 4096, &|bytes| gzip_member(bytes, 6));
    let json = serde_json::to_vec(&serde_json::json!({"version": 1, "entries": toc})).unwrap();
    let digest = Sha256::digest(&json).into();
    let offset = layer.len();
    let table = TarEntry { path: "stargz.index.json".to_owned(), kind: b'0', content: json, ..TarEntry::default() };
    layer.extend(gzip_member(&tar(&[table]), 6));
    layer.extend([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0]);
    layer.extend(format!("{offset:016x}STARGZ").as_bytes());
    layer.extend([1, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
    (layer, digest)
}

/// A zstd:chunked layer with the footer of containers/storage or of stargz-snapshotter.
pub(crate) fn zstd_chunked(entries: &[TarEntry], is_storage: bool) -> Vec<u8> {
    let compress = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap();
    let (mut layer, toc) = chunked(entries, 4096, &compress);
    let json = serde_json::to_vec(&serde_json::json!({"version": 1, "entries": toc})).unwrap();
    let stored = compress(&json);
    let skippable = |payload: &[u8]| {
        [&0x184d_2a50_u32.to_le_bytes()[..], &u32::try_from(payload.len()).unwrap().to_le_bytes(), payload].concat()
    };
    let offset = layer.len() + 8;
    layer.extend(skippable(&stored));
    let mut footer: Vec<u8> =
        [offset, stored.len(), json.len(), 1].iter().flat_map(|number| (*number as u64).to_le_bytes()).collect();
    footer.extend(if is_storage { vec![0; 24] } else { Vec::new() });
    footer.extend(if is_storage { b"GNUlInUx" } else { b"GnUlInUx" });
    layer.extend(skippable(&footer));
    layer
}

fn shared(bytes: Vec<u8>) -> Arc<dyn ReadAt> {
    Arc::new(bytes)
}

/// Indexes a gzip layer in pieces of `piece` bytes.
pub(crate) fn index_gzip(layer: &[u8], span_bytes: u64, piece: usize) -> gzip::Indexed {
    let mut indexer = gzip::Indexer::new(span_bytes);
    layer.chunks(piece).for_each(|part| indexer.push(part).unwrap());
    indexer.finish().unwrap()
}

/// The forms of a layer that trees are made of.
pub(crate) const FORMS: [&str; 10] = [
    "tar",
    "gzip",
    "gzip members",
    "gzip saved",
    "ztoc",
    "estargz",
    "zstd:chunked",
    "zstd:chunked stargz",
    "seekable",
    "gzip arriving",
];

/// What is read of a layer with these entries in the form `form`.
pub(crate) fn open(form: &str, entries: &[TarEntry], decoded: &Arc<Decoded>) -> (LayerIndex, Layer) {
    let plain = tar(entries);
    let gzipped = |layer: Vec<u8>, indexed: gzip::Indexed| {
        let reader = gzip::GzipLayer::new(shared(layer), indexed.gzip, decoded.clone()).unwrap();
        (indexed.layer, Layer::Tar(Arc::new(reader)))
    };
    match form {
        "tar" => {
            let bytes = shared(plain);
            (tar::index(&bytes).unwrap(), Layer::Tar(bytes))
        }
        "gzip" => {
            let layer = gzip_named(&plain);
            let indexed = index_gzip(&layer, 5000, 1000);
            assert_eq!(indexed.digests.layer, <[u8; 32]>::from(Sha256::digest(&layer)));
            assert_eq!(indexed.digests.diff_id, <[u8; 32]>::from(Sha256::digest(&plain)));
            gzipped(layer, indexed)
        }
        "gzip members" => {
            let layer: Vec<u8> = plain.chunks(7000).flat_map(|part| gzip_member(part, 9)).collect();
            let indexed = index_gzip(&layer, 20_000, 333);
            gzipped(layer, indexed)
        }
        "gzip saved" => {
            let layer = gzip_member(&plain, 1);
            let mut kept = Vec::new();
            saved::write(&index_gzip(&layer, 100_000, 1 << 20), &mut kept).unwrap();
            gzipped(layer, saved::open(shared(kept)).unwrap())
        }
        "ztoc" => {
            let layer = gzip_named(&plain);
            let indexed = index_gzip(&layer, 30_000, 1 << 20);
            let bytes = ztoc::write(&indexed.gzip, &indexed.layer, "test").unwrap();
            let read = ztoc::open(shared(bytes)).unwrap();
            let ztoc::Compression::Gzip(gzip) = read.compression else { panic!("it is of a gzip layer") };
            let reader = gzip::GzipLayer::new(shared(layer), gzip, decoded.clone()).unwrap();
            (read.layer, Layer::Tar(Arc::new(reader)))
        }
        "estargz" => {
            let (layer, digest) = estargz(entries);
            let bytes = shared(layer);
            (estargz::open(&bytes, Some(&digest)).unwrap().index, Layer::GzipChunks(bytes))
        }
        "zstd:chunked" | "zstd:chunked stargz" => {
            let bytes = shared(zstd_chunked(entries, form == "zstd:chunked"));
            let toc = zstd_chunked::open(&bytes, &zstd_chunked::Annotations::default()).unwrap();
            (toc.index, Layer::ZstdChunks(bytes))
        }
        "gzip arriving" => {
            let layer = gzip_named(&plain);
            let mut indexer = gzip::Indexer::new(5000);
            let reader = gzip::GzipLayer::growing(shared(layer.clone()), indexer.growing(), decoded.clone());
            layer.chunks(100).for_each(|part| indexer.push(part).unwrap());
            (indexer.finish().unwrap().layer, Layer::Tar(Arc::new(reader)))
        }
        _ => {
            let mut writer = seekable::Writer::new(Vec::new()).unwrap();
            writer.push(&plain).unwrap();
            let (stored, index, _) = writer.finish().unwrap();
            let reader = seekable::SeekableLayer::open(shared(stored), decoded.clone()).unwrap();
            (index, Layer::Tar(Arc::new(reader)))
        }
    }
}

/// The tree of a stack of layers in one form.
pub(crate) fn stack(form: &str, layers: &[Vec<TarEntry>]) -> LayeredTree {
    let decoded = Decoded::new(1 << 20);
    let mut merge = Merge::new(decoded.clone());
    for entries in layers {
        let (index, layer) = open(form, entries, &decoded);
        merge.add(index, layer).unwrap();
    }
    merge.finish().unwrap()
}
