//! Decompression of one block into a buffer of bounded size.
//!
//! A block never grows beyond the buffer that it is given. Contexts are kept for each thread, since making one costs
//! more than decoding a small block.

use crate::squashfs::format::Compressor;
use crate::squashfs::reader::error::Error;
use liblzma::stream::{Action, Status, Stream};
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Memory for one xz decoder. Its dictionary is at most a block, so 1 MiB; the rest is liblzma's own state.
const MAX_XZ_BYTES: u64 = 4 << 20;

/// The compressors that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Gzip,
    Lzo,
    Xz,
    Lz4,
    Zstd,
}

/// A compressor's decoder, with a count of what it did.
#[derive(Debug)]
pub(super) struct Decoder {
    codec: Codec,
    blocks: AtomicU64,
    bytes: AtomicU64,
}

struct Contexts {
    gzip: libdeflater::Decompressor,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> =
        RefCell::new(Contexts { gzip: libdeflater::Decompressor::new(), zstd: None });
}

impl Decoder {
    pub(super) fn new(codec: Codec) -> Self {
        Self { codec, blocks: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// As [`Codec::decode`].
    pub(super) fn decode(&self, stored: &[u8], decoded: &mut [u8]) -> Result<usize, String> {
        let decoded_bytes = self.codec.decode(stored, decoded)?;
        self.blocks.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(decoded_bytes as u64, Ordering::Relaxed);
        Ok(decoded_bytes)
    }

    /// Blocks that were decoded.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Bytes that they decoded to.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Codec {
    /// The codec of a superblock's `compression`.
    pub(super) fn from_id(id: u16) -> Result<Self, Error> {
        match Compressor::from_id(id) {
            Some(Compressor::Gzip) => Ok(Self::Gzip),
            Some(Compressor::Lzo) => Ok(Self::Lzo),
            Some(Compressor::Xz) => Ok(Self::Xz),
            Some(Compressor::Lz4) => Ok(Self::Lz4),
            Some(Compressor::Zstd) => Ok(Self::Zstd),
            Some(Compressor::Lzma) => Err(Error::UnsupportedCompressor),
            None => Err(Error::UnknownCompressor { id }),
        }
    }

    /// Decodes `stored` into the front of `decoded` and returns how many bytes it gave.
    ///
    /// # Errors
    /// What the codec says, also if there are more bytes than `decoded` holds.
    fn decode(self, stored: &[u8], decoded: &mut [u8]) -> Result<usize, String> {
        match self {
            Self::Gzip => CONTEXTS.with_borrow_mut(|contexts| {
                contexts.gzip.zlib_decompress(stored, decoded).map_err(|error| error.to_string())
            }),
            Self::Lzo => lzokay::decompress::decompress(stored, decoded).map_err(|error| error.to_string()),
            Self::Xz => decode_xz(stored, decoded),
            Self::Lz4 => lz4_flex::block::decompress_into(stored, decoded).map_err(|error| error.to_string()),
            Self::Zstd => decode_zstd(stored, decoded).map_err(|error| error.to_string()),
        }
    }
}

fn decode_zstd(stored: &[u8], decoded: &mut [u8]) -> std::io::Result<usize> {
    CONTEXTS.with_borrow_mut(|contexts| {
        if contexts.zstd.is_none() {
            contexts.zstd = Some(zstd::bulk::Decompressor::new()?);
        }
        let context = contexts.zstd.as_mut().expect("it was set above");
        context.decompress_to_buffer(stored, decoded)
    })
}

/// BCJ filters need nothing here: an xz stream names the filters that it went through.
fn decode_xz(stored: &[u8], decoded: &mut [u8]) -> Result<usize, String> {
    let mut stream = Stream::new_stream_decoder(MAX_XZ_BYTES, 0).map_err(|error| error.to_string())?;
    match stream.process(stored, decoded, Action::Finish) {
        Ok(Status::StreamEnd) => {
            usize::try_from(stream.total_out()).map_err(|_| "more bytes than fit into memory".to_owned())
        }
        Ok(_) => Err("the stream has more bytes than its block, or no end".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use liblzma::stream::{Check, Filters, LzmaOptions};

    #[test]
    fn a_block_that_grows_beyond_its_buffer_is_an_error_in_every_codec() {
        let content = vec![7; 5000];
        let mut gzip = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut zlib = vec![0; gzip.zlib_compress_bound(content.len())];
        let used = gzip.zlib_compress(&content, &mut zlib).unwrap();
        zlib.truncate(used);
        let mut xz = Vec::with_capacity(5000);
        let mut options = LzmaOptions::new_preset(6).unwrap();
        let mut filters = Filters::new();
        filters.x86().lzma2(options.dict_size(1 << 20));
        let mut encoder = Stream::new_stream_encoder(&filters, Check::Crc32).unwrap();
        encoder.process_vec(&content, &mut xz, Action::Finish).unwrap();
        let blocks = [
            (Codec::Gzip, zlib),
            (Codec::Lzo, lzokay::compress::compress(&content).unwrap()),
            (Codec::Xz, xz),
            (Codec::Lz4, lz4_flex::block::compress(&content)),
            (Codec::Zstd, zstd::bulk::compress(&content, 3).unwrap()),
        ];

        for (codec, block) in blocks {
            let mut exact = vec![0; 5000];
            let mut roomy = vec![0; 9000];
            let mut short = vec![0; 4999];

            assert_eq!(codec.decode(&block, &mut exact), Ok(5000), "{codec:?}");
            assert_eq!(exact, content, "{codec:?}");
            assert_eq!(codec.decode(&block, &mut roomy), Ok(5000), "{codec:?}");
            assert!(codec.decode(&block, &mut short).is_err(), "{codec:?}");
            assert_ne!(codec.decode(&block[..block.len() / 2], &mut exact), Ok(5000), "{codec:?}");
            assert_ne!(codec.decode(&[], &mut exact), Ok(5000), "{codec:?}");
        }
    }
}
