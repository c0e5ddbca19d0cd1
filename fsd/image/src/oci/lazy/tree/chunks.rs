//! Content that is stored in chunks, each with its digest.

use super::super::decoded::Decoded;
use super::super::error::Error;
use super::super::gzip::verify;
use super::super::index::Chunk;
use super::super::merge::{Layer, MergedLayer, chunks_of};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use std::ops::Range;
use std::sync::Arc;

/// Fills `buf` from `offset` bytes into the file that consists of the chunks `range` of `layer`.
pub(super) fn read(
    layer: &MergedLayer,
    range: &Range<u32>,
    decoded: &Decoded,
    offset: u64,
    buf: &mut [u8],
) -> Result<(), Error> {
    let chunks = chunks_of(layer, range);
    let mut done = 0;
    while done < buf.len() {
        let wanted = offset.saturating_add(done as u64);
        let next = chunks.partition_point(|chunk| chunk.file_offset <= wanted);
        let (Some(chunk), number) = (next.checked_sub(1).map(|at| &chunks[at]), u64::from(range.start) + next as u64)
        else {
            return Err(Error::Missing("chunk for a part of a file"));
        };
        let part = &mut buf[done..];
        let count;
        if chunk.stored_bytes == 0 {
            let end = chunks.get(next).map_or(u64::MAX, |chunk| chunk.file_offset);
            count = usize::try_from(end - wanted).unwrap_or(usize::MAX).min(part.len());
            part[..count].fill(0);
        } else {
            let content = decoded.get(layer.id, number, || decode(&layer.source, chunk))?;
            let from = usize::try_from(wanted - chunk.file_offset).unwrap_or(usize::MAX);
            let content = content.get(from..).filter(|rest| !rest.is_empty());
            let content = content.ok_or(Error::Missing("chunk for a part of a file"))?;
            count = content.len().min(part.len());
            part[..count].copy_from_slice(&content[..count]);
        }
        done += count;
    }
    Ok(())
}

/// Reads, decompresses and verifies one chunk: twice, if it is not what it should be, with the bytes fetched anew.
fn decode(source: &Layer, chunk: &Chunk) -> Result<Box<[u8]>, Error> {
    decode_once(source, chunk).or_else(|error| {
        error.check_is_of_bytes()?;
        source.bytes().discard(chunk.offset..chunk.offset.saturating_add(chunk.stored_bytes.into()));
        decode_once(source, chunk)
    })
}

fn decode_once(source: &Layer, chunk: &Chunk) -> Result<Box<[u8]>, Error> {
    let offset = chunk.offset;
    let bytes = source.bytes();
    // A last chunk may be said to reach to the end of its layer or beyond.
    let needed = u64::from(chunk.stored_bytes).min(bytes.len().saturating_sub(offset));
    let mut stored = vec![0; usize::try_from(needed).expect("a chunk's stored length is of 32 bits")];
    let failed = |source| Error::Read { offset, needed, source: Arc::new(source) };
    bytes.read_exact_at(&mut stored, offset).map_err(failed)?;
    let damaged = || Error::damaged("chunk", offset, "it does not decompress to its length");
    let inner = usize::try_from(chunk.inner_offset).expect("offsets in a chunk are of 32 bits");
    let length = usize::try_from(chunk.bytes).expect("chunks are of 32 bits");
    let whole = match source {
        Layer::GzipChunks(_) => gunzip(&stored, offset, inner.saturating_add(length))?,
        Layer::ZstdChunks(_) => unzstd(&stored, inner.saturating_add(length)),
        Layer::Tar(_) => None,
    };
    let mut content = whole.ok_or_else(damaged)?;
    content.drain(..inner);
    if let Some(digest) = &chunk.digest {
        verify("chunk", offset, &content, digest)?;
    }
    Ok(content.into_boxed_slice())
}

/// The first `length` bytes that the gzip member at the start of `stored` decompresses to.
fn gunzip(stored: &[u8], at: u64, length: usize) -> Result<Option<Vec<u8>>, Error> {
    let Some(header) = super::super::gzip::header_bytes(stored, at)? else { return Ok(None) };
    let mut content = vec![0; length];
    let blocks = &stored[header..];
    // As a rule the member is the chunk, or ends with it, which is faster to decode as a whole.
    let whole = libdeflater::Decompressor::new().deflate_decompress(blocks, &mut content);
    if whole == Ok(length) {
        return Ok(Some(content));
    }
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut decoder = Box::new(DecompressorOxide::new());
    let (status, _, written) = decompress(&mut decoder, blocks, &mut content, 0, flags);
    let is_filled = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput) && written == length;
    Ok(is_filled.then_some(content))
}

/// The first `length` bytes that the frames in `stored` decompress to.
fn unzstd(stored: &[u8], length: usize) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut content = vec![0; length];
    if zstd::bulk::decompress_to_buffer(stored, &mut content).is_ok_and(|count| count == length) {
        return Some(content);
    }
    let mut stream = zstd::stream::read::Decoder::with_buffer(stored).ok()?;
    stream.read_exact(&mut content).ok()?;
    Some(content)
}
