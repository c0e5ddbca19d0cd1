//! Decodes one span.
//!
//! libdeflate decodes about twice as fast as what can stop in the middle of a stream, but only streams that are there as
//! a whole. A span of whole blocks is made one: a stored block with the window goes before it, blocks without content
//! make up for the bits that the first one begins late by, and the end of a stream follows it. Where that cannot be, as
//! in a span that goes from one gzip member into the next, miniz_oxide decodes.

use super::super::error::Error;
use super::Span;
use super::member::{TRAILER_BYTES, header_bytes};
use libdeflater::Decompressor;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF};
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress};

/// A block of the fixed codes without content, as the lowest bits: not the last, type 1, end of block.
const EMPTY_BLOCK: (u128, u32) = (0b010, 10);

/// The same as the last of a stream.
const LAST_BLOCK: u32 = 0b011;

/// A block without content of an odd length: 18 code lengths, two of them of one bit, for 1 and for a run of zeros; so
/// that bytes 0 and 256, the end, have codes of one bit, and one distance too, as all decoders want it.
fn odd_empty_block() -> (u128, u32) {
    let mut bits = Bits::default();
    // Not the last, type 2; 257 literals, 1 distance, 18 code lengths in the order of the format.
    for (value, count) in [(0, 1), (2, 2), (0, 5), (0, 5), (14, 4)] {
        bits.put(value, count);
    }
    for symbol in [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1] {
        bits.put(u128::from(symbol == 18 || symbol == 1), 3);
    }
    // Code 0 is the length 1, code 1 a run of 11 zeros and as many more as the next 7 bits say.
    for (value, count) in [(0, 1), (1, 1), (127, 7), (1, 1), (117 - 11, 7), (0, 1), (0, 1)] {
        bits.put(value, count);
    }
    // The end of the block.
    bits.put(1, 1);
    (bits.value, bits.count)
}

#[derive(Default)]
struct Bits {
    value: u128,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u128, count: u32) {
        self.value |= value << self.count;
        self.count += count;
    }

    /// Blocks without content whose length in bits is `rest` modulo 8.
    fn of_length(rest: u32) -> Self {
        let mut bits = Self::default();
        if rest % 2 == 1 {
            let (value, count) = odd_empty_block();
            bits.put(value, count);
        }
        while bits.count % 8 != rest {
            bits.put(EMPTY_BLOCK.0, EMPTY_BLOCK.1);
        }
        bits
    }
}

/// What `stored`, the bytes of `span`, decodes to after `window`.
pub(super) fn inflate(span: &Span, stored: &[u8], window: &[u8]) -> Result<Box<[u8]>, Error> {
    let length = Error::bounded("a span", span.output_end - span.start.output, super::MAX_SPAN_BYTES)?;
    let length = usize::try_from(length).expect("spans are at most 64 MiB");
    match whole_stream(span, stored, window, length) {
        Some(content) => Ok(content),
        None => resumed(span, stored, window, length),
    }
}

/// As a stream of its own. `None` if it is none.
fn whole_stream(span: &Span, stored: &[u8], window: &[u8], length: usize) -> Option<Box<[u8]>> {
    let mut stream = Vec::with_capacity(stored.len() + window.len() + 64);
    if !window.is_empty() {
        let window_bytes = u16::try_from(window.len()).ok()?;
        stream.push(0);
        stream.extend_from_slice(&window_bytes.to_le_bytes());
        stream.extend_from_slice(&(!window_bytes).to_le_bytes());
        stream.extend_from_slice(window);
    }
    let mut stored = stored;
    if span.start.bits > 0 {
        let (first, rest) = stored.split_first()?;
        let own = !(0xff_u8 >> span.start.bits);
        let empty = Bits::of_length(8 - u32::from(span.start.bits));
        let bytes = empty.value.to_le_bytes();
        let count = usize::try_from(empty.count.div_ceil(8)).ok()?;
        stream.extend_from_slice(&bytes[..count]);
        *stream.last_mut()? |= first & own;
        stored = rest;
    }
    stream.extend_from_slice(stored);
    if span.end_bits > 0 {
        let last = stream.last_mut()?;
        let used = 8 - u32::from(span.end_bits);
        let end = u32::from(*last & (0xff >> span.end_bits)) | LAST_BLOCK << used;
        let bytes = end.to_le_bytes();
        *last = bytes[0];
        stream.extend_from_slice(&bytes[1..]);
    } else {
        // After the last span, there is an end already, and this is never read.
        stream.extend_from_slice(&LAST_BLOCK.to_le_bytes());
    }
    let mut content = vec![0; window.len() + length];
    let count = Decompressor::new().deflate_decompress(&stream, &mut content).ok()?;
    if count != content.len() {
        return None;
    }
    content.drain(..window.len());
    Some(content.into_boxed_slice())
}

/// By the decoder that can start anywhere, through as many gzip members as there are.
fn resumed(span: &Span, stored: &[u8], window: &[u8], length: usize) -> Result<Box<[u8]>, Error> {
    let start = span.input_start();
    let damaged = |at: usize, problem| Error::damaged("span of a gzip layer", start + at as u64, problem);
    let mut at = 0;
    let mut state = BlockBoundaryState::default();
    if span.start.bits > 0 {
        let first = stored.first().ok_or(damaged(0, "it is empty"))?;
        state = BlockBoundaryState { num_bits: span.start.bits, bit_buf: first >> (8 - span.start.bits), ..state };
        at = 1;
    }
    let mut decoder = Box::new(DecompressorOxide::from_block_boundary_state(&state));
    let mut content = vec![0; window.len() + length];
    content[..window.len()].copy_from_slice(window);
    let mut done = window.len();
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | TINFL_FLAG_HAS_MORE_INPUT;
    while done < content.len() {
        let (status, read, written) = decompress(&mut decoder, &stored[at..], &mut content, done, flags);
        (at, done) = (at + read, done + written);
        match status {
            TINFLStatus::Done if done < content.len() => {
                let next = stored.get(at + TRAILER_BYTES..).unwrap_or_default();
                let header = header_bytes(next, start + at as u64)?.ok_or(damaged(at, "it ends too early"))?;
                at += TRAILER_BYTES + header;
                *decoder = DecompressorOxide::new();
            }
            TINFLStatus::Done => {}
            TINFLStatus::HasMoreOutput if done == content.len() => {}
            TINFLStatus::NeedsMoreInput if read + written > 0 => {}
            TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput => return Err(damaged(at, "it ends too early")),
            _ => return Err(damaged(at, "it does not decompress")),
        }
    }
    content.drain(..window.len());
    Ok(content.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use miniz_oxide::inflate::decompress_to_vec;

    #[test]
    fn blocks_without_content_fill_up_any_number_of_bits() {
        for rest in 1..8 {
            let bits = Bits::of_length(rest);
            assert_eq!(bits.count % 8, rest);
            let mut stream = bits.value.to_le_bytes().to_vec();
            stream.extend([0; 2]);
            // The end of a stream, right behind: its first two bits are set.
            for place in [bits.count, bits.count + 1] {
                stream[usize::try_from(place / 8).unwrap()] |= 1 << (place % 8);
            }

            assert_eq!(Decompressor::new().deflate_decompress(&stream, &mut []), Ok(0), "{rest} bits");
            assert_eq!(decompress_to_vec(&stream).unwrap(), b"", "{rest} bits");
        }
    }
}
