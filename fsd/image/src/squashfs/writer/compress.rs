//! Compressing one block, in each of the formats that kernels read.

use super::{Error, Options};
use crate::squashfs::format::{Compressor, METADATA_UNCOMPRESSED};
use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};
use std::io;

/// `mksquashfs` stores no options for gzip at this level, its default.
const GZIP_LEVEL: i32 = 9;
/// The library's own default: images are committed often, and its speed falls steeply above.
const ZSTD_LEVEL: i32 = 3;
/// The level that readers take for granted when an image stores no zstd options.
const ZSTD_UNSTORED_LEVEL: i32 = 15;
/// liblzma's own default.
const XZ_LEVEL: i32 = 6;
/// Kernels allocate at least a metadata block.
const XZ_MIN_DICTIONARY_BYTES: u32 = 8192;
/// LZ4 options: the block format, `LZ4_LEGACY`, the only version there is.
const LZ4_VERSION: u32 = 1;
/// Window of a zlib stream as a power of two: the largest.
const ZLIB_WINDOW_LOG: u16 = 15;

/// A compressor with a level that it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codec {
    compressor: Compressor,
    level: i32,
    /// Bytes that the window of an xz stream may have.
    dictionary_bytes: u32,
    /// Whether nothing is compressed at all.
    is_none: bool,
}

impl Codec {
    /// Checks that images can be written with `compressor` at `level`.
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let Options { compressor, level, block_size, .. } = *options;
        let (default, range) = match compressor {
            Compressor::Gzip => (GZIP_LEVEL, 1..=9),
            Compressor::Zstd => (ZSTD_LEVEL, 1..=22),
            Compressor::Xz => (XZ_LEVEL, 0..=9),
            Compressor::Lz4 | Compressor::Lzo => (0, 0..=0),
            Compressor::Lzma => return Err(Error::Compressor(compressor)),
        };
        let level = level.unwrap_or(default);
        if !range.contains(&level) {
            return Err(Error::Level { compressor, level });
        }
        Ok(Self { compressor, level, dictionary_bytes: block_size, is_none: options.uncompressed })
    }

    /// The same for an image that has the compressor's options of another one, which readers go by.
    pub(super) fn under(mut self, options_block: &[u8]) -> Self {
        // `dictionary_size`: kernels allocate as much, and a stream that needs more fails.
        if let (Compressor::Xz, Some(stated)) = (self.compressor, options_block.get(2..6)) {
            let stated = u32::from_le_bytes(stated.try_into().expect("four bytes"));
            self.dictionary_bytes = self.dictionary_bytes.min(stated);
        }
        self
    }

    /// Whether nothing is compressed at all.
    pub(super) fn is_none(self) -> bool {
        self.is_none
    }

    /// The metadata block with the compressor's options that follows the superblock; empty where readers need none.
    pub(super) fn options_block(self) -> Vec<u8> {
        let level = self.level.to_le_bytes();
        let options = match self.compressor {
            // Level, window, and no strategy beyond the default one.
            Compressor::Gzip if self.level != GZIP_LEVEL => {
                [&level[..], &ZLIB_WINDOW_LOG.to_le_bytes(), &[0; 2]].concat()
            }
            Compressor::Zstd if self.level != ZSTD_UNSTORED_LEVEL => level.to_vec(),
            // Kernels refuse LZ4 images without them. No flags: not the high-compression variant.
            Compressor::Lz4 => [LZ4_VERSION.to_le_bytes(), [0; 4]].concat(),
            _ => return Vec::new(),
        };
        let size = u16::try_from(options.len()).expect("options are a few bytes");
        [&(size | METADATA_UNCOMPRESSED).to_le_bytes()[..], &options].concat()
    }

    /// An encoder for one thread.
    pub(super) fn encoder(self) -> Result<Encoder, Error> {
        let engine = match self.compressor {
            Compressor::Gzip => {
                let level = libdeflater::CompressionLvl::new(self.level);
                Engine::Gzip(libdeflater::Compressor::new(level.unwrap_or_default()))
            }
            Compressor::Zstd => Engine::Zstd(zstd::bulk::Compressor::new(self.level).map_err(|e| self.error(e))?),
            Compressor::Xz => Engine::Xz(self),
            Compressor::Lz4 => Engine::Lz4,
            Compressor::Lzo => Engine::Lzo(lzokay::compress::Dict::new()),
            Compressor::Lzma => return Err(Error::Compressor(self.compressor)),
        };
        Ok(Encoder { codec: self, engine, scratch: Vec::new() })
    }

    /// One xz stream with the check that kernels know. Its dictionary is one block: kernels allocate no more than that.
    /// A result longer than `block` may be cut off.
    fn compress_xz(self, block: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        let preset = u32::try_from(self.level).map_err(io::Error::other)?;
        let mut lzma = LzmaOptions::new_preset(preset)?;
        lzma.dict_size(self.dictionary_bytes.max(XZ_MIN_DICTIONARY_BYTES));
        let mut filters = Filters::new();
        filters.lzma2(&lzma);
        let mut stream = Stream::new_stream_encoder(&filters, Check::Crc32)?;
        if out.len() < block.len() {
            out.resize(block.len(), 0);
        }
        let (room, _) = out.split_at_mut(block.len());
        match stream.process(block, room, Action::Finish)? {
            Status::StreamEnd => usize::try_from(stream.total_out()).map_err(io::Error::other),
            _ => Ok(block.len()),
        }
    }

    fn error(self, source: io::Error) -> Error {
        Error::Compress { compressor: self.compressor, source }
    }
}

/// Compresses blocks, one at a time.
pub(super) struct Encoder {
    codec: Codec,
    engine: Engine,
    scratch: Vec<u8>,
}

enum Engine {
    Gzip(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
    Xz(Codec),
    Lz4,
    Lzo(Box<lzokay::compress::Dict>),
}

impl Encoder {
    /// The compressed form of `block`, or `None` if that is no shorter and the block is better stored as it is.
    pub(super) fn encode(&mut self, block: &[u8]) -> Result<Option<&[u8]>, Error> {
        let codec = self.codec;
        if codec.is_none {
            return Ok(None);
        }
        let size = self.engine.compress(block, &mut self.scratch).map_err(|e| codec.error(e))?;
        Ok(self.scratch.get(..size).filter(|_| size < block.len()))
    }
}

impl Engine {
    /// Compresses `block` to the beginning of `out`, which grows as needed, and returns the compressed length.
    fn compress(&mut self, block: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        let bound = match self {
            Self::Gzip(gzip) => gzip.zlib_compress_bound(block.len()),
            Self::Zstd(_) => zstd::zstd_safe::compress_bound(block.len()),
            Self::Xz(_) => 0,
            Self::Lz4 => lz4_flex::block::get_maximum_output_size(block.len()),
            Self::Lzo(_) => lzokay::compress::compress_worst_size(block.len()),
        };
        if out.len() < bound {
            out.resize(bound, 0);
        }
        match self {
            Self::Gzip(gzip) => gzip.zlib_compress(block, out).map_err(io::Error::other),
            Self::Zstd(zstd) => zstd.compress_to_buffer(block, out.as_mut_slice()),
            Self::Xz(codec) => codec.compress_xz(block, out),
            Self::Lz4 => lz4_flex::block::compress_into(block, out).map_err(io::Error::other),
            Self::Lzo(dictionary) => {
                lzokay::compress::compress_no_alloc(block, out, dictionary).map_err(io::Error::other)
            }
        }
    }
}
