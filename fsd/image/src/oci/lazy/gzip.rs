//! Gzip layers as they are, read from any place: checkpoints say where the decoder can start, and with which window.
//!
//! ```text
//! compressed:    | header | blocks ....... | blocks ....... | blocks ... | trailer |
//! checkpoints:            0                1                2
//!                         input, bits: the bit that a block begins with
//!                         output: the offset of what it decodes to
//!                         window: the 32 KiB before that, which matches refer to
//! ```
//!
//! What lies between two checkpoints is a span, the unit of decoding. Our own are 1 MiB long, 0 to one block more:
//! half a span is decoded for nothing by a small read, and a window costs about 10 KiB compressed.

mod indexer;
mod inflate;
mod member;
mod reader;

pub use indexer::{Digests, Growing, Indexed, Indexer};
pub(super) use member::header_bytes;
pub use reader::GzipLayer;
pub(super) use reader::verify;

use super::error::Error;
use crate::read_at::ReadAt;
use std::sync::Arc;

/// How far a match can reach back.
pub const WINDOW_BYTES: usize = 32 << 10;

/// Uncompressed length of the spans of our own indexes.
pub const SPAN_BYTES: u64 = 1 << 20;

/// Longest span that is decoded. Only a block can make one longer than its index means it to be, and no compressor
/// makes blocks of more than 4 MiB.
pub const MAX_SPAN_BYTES: u64 = 64 << 20;

/// Checkpoints of one layer that are accepted.
pub const MAX_CHECKPOINTS: u64 = 1 << 20;

/// A place where decoding can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Offset in the layer of the first byte that is all of the block, or as much of it as there is.
    pub input: u64,
    /// Bits of the byte before it that the block begins with: its `bits` highest.
    pub bits: u8,
    /// Offset in what the layer decompresses to.
    pub output: u64,
    /// Where the window lies among the windows.
    pub window: WindowAt,
}

/// Where a window lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowAt {
    /// Its offset.
    pub offset: u64,
    /// How many bytes it takes there; 0 for none, as at the start of a gzip member.
    pub bytes: u32,
    /// Whether it is compressed with zstd.
    pub is_compressed: bool,
}

/// The checkpoints of a whole layer.
#[derive(Debug, Clone)]
pub struct GzipIndex {
    checkpoints: Vec<Checkpoint>,
    digests: Vec<[u8; 32]>,
    windows: Arc<dyn ReadAt>,
    stored_bytes: u64,
    bytes: u64,
    span_bytes: u64,
}

/// One span of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) start: Checkpoint,
    /// Where it ends in the layer, and how many of the last byte's bits are not its own any more.
    pub(super) input_end: u64,
    pub(super) end_bits: u8,
    pub(super) output_end: u64,
    /// The SHA-256 of its bytes, if it is known.
    pub(super) digest: Option<[u8; 32]>,
}

impl GzipIndex {
    /// An index of a layer of `stored_bytes` bytes that decompress to `bytes`. `digests` has none, or one for each span.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the checkpoints do not follow each other within the layer, or a window is not in `windows`.
    pub fn new(
        checkpoints: Vec<Checkpoint>,
        digests: Vec<[u8; 32]>,
        windows: Arc<dyn ReadAt>,
        stored_bytes: u64,
        bytes: u64,
        span_bytes: u64,
    ) -> Result<Self, Error> {
        Error::bounded("a gzip index's number of checkpoints", checkpoints.len() as u64, MAX_CHECKPOINTS)?;
        let damaged = |at: usize, problem| Error::damaged("gzip index", at as u64, problem);
        if checkpoints.first().is_none_or(|first| first.output != 0) {
            return Err(damaged(0, "its first checkpoint is not at the start"));
        }
        if !digests.is_empty() && digests.len() != checkpoints.len() {
            return Err(damaged(0, "it has not one digest for each span"));
        }
        for (number, checkpoint) in checkpoints.iter().enumerate() {
            let next = checkpoints.get(number + 1);
            let (input_end, output_end) = next.map_or((stored_bytes, bytes), |next| (next.input, next.output));
            if checkpoint.bits > 7 || u64::from(checkpoint.bits > 0) > checkpoint.input {
                return Err(damaged(number, "a checkpoint has impossible bits"));
            }
            if checkpoint.input >= input_end || checkpoint.output > output_end {
                return Err(damaged(number, "a checkpoint is not before the next"));
            }
            let window_end = checkpoint.window.offset.checked_add(u64::from(checkpoint.window.bytes));
            if window_end.is_none_or(|end| end > windows.len()) || checkpoint.window.bytes > 2 * WINDOW_BYTES as u32 {
                return Err(damaged(number, "a window is not where it can be"));
            }
        }
        Ok(Self { checkpoints, digests, windows, stored_bytes, bytes, span_bytes })
    }

    /// The checkpoints, in their order.
    pub fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    /// The SHA-256 of each span's bytes in the layer, if they are known.
    pub fn digests(&self) -> &[[u8; 32]] {
        &self.digests
    }

    /// Bytes of the layer.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Bytes that it decompresses to.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How long spans are meant to be.
    pub fn span_bytes(&self) -> u64 {
        self.span_bytes
    }

    pub(super) fn windows(&self) -> &dyn ReadAt {
        self.windows.as_ref()
    }

    /// The window of `checkpoint`: up to 32 KiB.
    ///
    /// # Errors
    /// [`Error::Read`] or [`Error::Damaged`].
    pub fn window(&self, checkpoint: &Checkpoint) -> Result<Vec<u8>, Error> {
        let WindowAt { offset, bytes, is_compressed } = checkpoint.window;
        let mut stored = vec![0; bytes as usize];
        let failed = |source| Error::Read { offset, needed: u64::from(bytes), source: Arc::new(source) };
        self.windows.read_exact_at(&mut stored, offset).map_err(failed)?;
        expand_window(stored, is_compressed, offset)
    }

    /// The range of the layer that the span `number` is decoded from, which is what there is a digest of.
    pub fn span_range(&self, number: usize) -> Option<std::ops::Range<u64>> {
        self.span(number).map(|span| span.input_start()..span.input_end)
    }

    /// The number of the span that has the byte `output`, which is one of the layer's.
    pub(super) fn span_at(&self, output: u64) -> usize {
        self.checkpoints.partition_point(|checkpoint| checkpoint.output <= output).saturating_sub(1)
    }

    pub(super) fn span(&self, number: usize) -> Option<Span> {
        span(&self.checkpoints, &self.digests, number, (self.stored_bytes, self.bytes))
    }
}

impl Span {
    /// Where its bytes begin, a first one that is partly its own included.
    pub(super) fn input_start(&self) -> u64 {
        self.start.input - u64::from(self.start.bits > 0)
    }
}

/// The span `number`, which ends at `end`, in the layer and in what it decompresses to, if it is the last.
fn span(checkpoints: &[Checkpoint], digests: &[[u8; 32]], number: usize, end: (u64, u64)) -> Option<Span> {
    let start = *checkpoints.get(number)?;
    let next = checkpoints.get(number + 1);
    let (input_end, output_end) = next.map_or(end, |next| (next.input, next.output));
    let end_bits = next.map_or(0, |next| next.bits);
    Some(Span { start, input_end, end_bits, output_end, digest: digests.get(number).copied() })
}

fn expand_window(stored: Vec<u8>, is_compressed: bool, offset: u64) -> Result<Vec<u8>, Error> {
    let window = match is_compressed && !stored.is_empty() {
        true => zstd::bulk::decompress(&stored, WINDOW_BYTES)
            .map_err(|_| Error::damaged("window of a gzip index", offset, "it does not decompress"))?,
        false => stored,
    };
    if window.len() > WINDOW_BYTES {
        return Err(Error::damaged("window of a gzip index", offset, "it is longer than 32 KiB"));
    }
    Ok(window)
}
