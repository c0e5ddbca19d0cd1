//! Layers as tar streams: gzip of one or many members, zstd of one or many frames, or plain.
//!
//! What a layer is stored as is told by its first bytes. Media types are not always true.

use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufRead, Read};

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Frames of zstd with no content of their own, for whoever knows what is in them, begin with this and a nibble.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Largest window of a zstd frame, as a power of two: what its own decoder accepts unless told otherwise, 128 MiB.
const MAX_WINDOW_LOG: u32 = 27;

/// Reads what `input` decompresses to.
///
/// # Errors
/// If its beginning cannot be read, or there is no memory for a decoder.
pub(in crate::oci) fn decompressed<R: BufRead + Send + 'static>(mut input: R) -> io::Result<Box<dyn Read + Send>> {
    let head = input.fill_buf()?;
    if head.starts_with(&GZIP_MAGIC) {
        return Ok(Box::new(MultiGzDecoder::new(input)));
    }
    if is_zstd(head) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(MAX_WINDOW_LOG)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(input))
}

/// Whether what begins so is compressed.
pub(in crate::oci) fn is_compressed(head: &[u8]) -> bool {
    head.starts_with(&GZIP_MAGIC) || is_zstd(head)
}

fn is_zstd(head: &[u8]) -> bool {
    let is_skippable = head.first().is_some_and(|byte| byte & 0xf0 == 0x50) && head[1..].starts_with(&ZSTD_SKIPPABLE);
    head.starts_with(&ZSTD_MAGIC) || is_skippable
}
