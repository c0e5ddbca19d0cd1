//! One pass over a gzip layer as it arrives: checkpoints, the tar's entries, and the digests of both sides.

use super::super::error::Error;
use super::super::index::LayerIndex;
use super::super::tar::Scanner;
use super::member::{TRAILER_BYTES, header_bytes};
use super::{Checkpoint, GzipIndex, MAX_CHECKPOINTS, MAX_SPAN_BYTES, Span, WINDOW_BYTES, WindowAt};
use libdeflater::Crc;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use parking_lot::{Condvar, Mutex};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// What is decoded at a time, after the window.
const OUTPUT_BYTES: usize = 256 << 10;

/// zstd's level for windows: a higher one gains 2 % and takes three times as long.
const WINDOW_LEVEL: i32 = 3;

const FLAGS: u32 =
    TINFL_FLAG_HAS_MORE_INPUT | TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;

/// SHA-256 of a layer before and after decompression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// Of the layer's bytes: the digest in the manifest.
    pub layer: [u8; 32],
    /// Of the tar in it: the `diff_id` in the configuration.
    pub diff_id: [u8; 32],
}

/// What the pass has made.
#[derive(Debug)]
pub struct Indexed {
    /// Where decoding can start.
    pub gzip: Arc<GzipIndex>,
    /// What the tar holds.
    pub layer: LayerIndex,
    /// To be held against those of manifest and configuration.
    pub digests: Digests,
}

/// The checkpoints so far, for who reads what has arrived.
#[derive(Debug, Default)]
pub struct Growing {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    checkpoints: Vec<Checkpoint>,
    digests: Vec<[u8; 32]>,
    /// Compressed windows one after the other.
    windows: Vec<u8>,
    outcome: Option<Outcome>,
}

#[derive(Debug, Clone)]
enum Outcome {
    Whole(Arc<GzipIndex>),
    Failed(Error),
}

/// Takes the bytes of a gzip layer in order, in pieces of any size.
#[derive(Debug)]
pub struct Indexer {
    growing: Arc<Growing>,
    span_bytes: u64,
    part: Part,
    /// A header or trailer that has not come as a whole.
    partial: Vec<u8>,
    decoder: Decoder,
    scanner: Scanner,
    /// `None` if the digests of the whole are not asked for.
    hashes: Option<Hashes>,
    span_hash: Sha256,
    input: u64,
    output: u64,
    last_byte: u8,
    last_checkpoint: u64,
}

#[derive(Debug, Default)]
struct Hashes {
    layer: Sha256,
    tar: Sha256,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Header,
    Blocks,
    Trailer,
}

/// The decoder with the output that it still needs.
struct Decoder {
    state: Box<DecompressorOxide>,
    buf: Vec<u8>,
    filled: usize,
    crc: Crc,
    member_bytes: u64,
}

impl Default for Indexer {
    fn default() -> Self {
        Self::new(super::SPAN_BYTES)
    }
}

impl Indexer {
    /// An indexer that makes a checkpoint at the first block after each `span_bytes` bytes.
    pub fn new(span_bytes: u64) -> Self {
        Self {
            growing: Arc::default(),
            span_bytes: span_bytes.max(1),
            part: Part::Header,
            partial: Vec::new(),
            decoder: Decoder::default(),
            scanner: Scanner::default(),
            hashes: Some(Hashes::default()),
            span_hash: Sha256::new(),
            input: 0,
            output: 0,
            last_byte: 0,
            last_checkpoint: 0,
        }
    }

    /// Leaves the digests of the whole to who has them otherwise: they are all zeros then. Two of three bytes that are hashed
    /// are so for them.
    #[must_use]
    pub fn without_digests(self) -> Self {
        // Parts of what is dropped cannot be moved out of.
        let mut indexer = self;
        indexer.hashes = None;
        indexer
    }

    /// What [`GzipLayer::growing`](super::GzipLayer::growing) reads by while the pass goes on.
    pub fn growing(&self) -> Arc<Growing> {
        self.growing.clone()
    }

    /// The tar's entries so far.
    pub fn layer(&self) -> &LayerIndex {
        self.scanner.index()
    }

    /// Bytes decompressed so far.
    pub fn output_bytes(&self) -> u64 {
        self.output
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] for what is no gzip or no tar, which those who wait for bytes are told as well.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Some(hashes) = &mut self.hashes {
            hashes.layer.update(bytes);
        }
        self.take(bytes).inspect_err(|error| self.growing.end(Outcome::Failed(error.clone())))
    }

    /// Ends the pass.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the layer ended too early.
    pub fn finish(mut self) -> Result<Indexed, Error> {
        let made = self.make();
        if let Err(error) = &made {
            self.growing.end(Outcome::Failed(error.clone()));
        }
        made
    }

    fn make(&mut self) -> Result<Indexed, Error> {
        if self.part != Part::Header || self.input == 0 || !self.partial.is_empty() {
            return Err(Error::damaged("gzip layer", self.input, "it ends within a member"));
        }
        let layer = std::mem::take(&mut self.scanner).finish()?;
        let digest: [u8; 32] = std::mem::take(&mut self.span_hash).finalize().into();
        let (checkpoints, digests, windows) = {
            let mut progress = self.growing.progress.lock();
            progress.digests.push(digest);
            (progress.checkpoints.clone(), progress.digests.clone(), progress.windows.clone())
        };
        let windows = Arc::new(windows);
        let gzip = GzipIndex::new(checkpoints, digests, windows, self.input, self.output, self.span_bytes)?;
        let gzip = Arc::new(gzip);
        self.growing.end(Outcome::Whole(gzip.clone()));
        let digests = match self.hashes.take() {
            Some(Hashes { layer, tar }) => Digests { layer: layer.finalize().into(), diff_id: tar.finalize().into() },
            None => Digests { layer: [0; 32], diff_id: [0; 32] },
        };
        Ok(Indexed { gzip, layer, digests })
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let taken = match self.part {
                Part::Header => self.take_header(bytes)?,
                Part::Blocks => self.take_blocks(bytes)?,
                Part::Trailer => self.take_trailer(bytes)?,
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Counts what was taken as part of the span.
    fn consume(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last() {
            self.last_byte = *last;
            self.input += bytes.len() as u64;
            self.span_hash.update(bytes);
        }
    }

    fn take_header(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        // After a last member, zeros may fill up a tape's block.
        if self.input > 0 && self.partial.is_empty() && bytes[0] == 0 {
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            self.consume(&bytes[..zeros]);
            return Ok(zeros);
        }
        let before = self.partial.len();
        // A header as a rule has 10 bytes; one with a name needs a second look, at twice as many.
        let wanted = bytes.len().min(before.max(64));
        self.partial.extend_from_slice(&bytes[..wanted]);
        let Some(length) = header_bytes(&self.partial, self.input)? else {
            return Ok(wanted);
        };
        let header = std::mem::take(&mut self.partial);
        self.consume(&header[..length]);
        self.decoder.reset();
        self.part = Part::Blocks;
        if self.input == length as u64 || self.output - self.last_checkpoint >= self.span_bytes {
            self.add_checkpoint(0)?;
        }
        Ok(length - before)
    }

    fn take_blocks(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let (status, read, new) = self.decoder.decode(bytes);
        let output = &self.decoder.buf[new];
        if let Some(hashes) = &mut self.hashes {
            hashes.tar.update(output);
        }
        self.scanner.push(output)?;
        let (written, at) = (output.len(), self.input);
        self.output += written as u64;
        self.consume(&bytes[..read]);
        match status {
            TINFLStatus::Done => self.part = Part::Trailer,
            TINFLStatus::BlockBoundary => {
                let passed = self.output - self.last_checkpoint;
                if passed >= self.span_bytes {
                    let boundary = self.decoder.state.block_boundary_state();
                    self.add_checkpoint(boundary.map_or(0, |state| state.num_bits))?;
                }
            }
            TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput if read + written > 0 => {}
            _ => return Err(Error::damaged("gzip layer", at, "it does not decompress")),
        }
        Error::bounded("a span of a gzip layer", self.output - self.last_checkpoint, MAX_SPAN_BYTES)?;
        Ok(read)
    }

    fn take_trailer(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let wanted = bytes.len().min(TRAILER_BYTES - self.partial.len());
        self.partial.extend_from_slice(&bytes[..wanted]);
        self.consume(&bytes[..wanted]);
        if let Ok(trailer) = <[u8; TRAILER_BYTES]>::try_from(self.partial.as_slice()) {
            let expected = u64::from_le_bytes(trailer);
            let length = self.decoder.member_bytes & u64::from(u32::MAX);
            if expected != length << 32 | u64::from(self.decoder.crc.sum()) {
                return Err(Error::damaged("gzip trailer", self.input, "the checksum or the length is another"));
            }
            self.partial.clear();
            self.part = Part::Header;
        }
        Ok(wanted)
    }

    /// Ends a span, if there is one, and begins the next where the decoder is.
    fn add_checkpoint(&mut self, bits: u8) -> Result<(), Error> {
        let window = self.decoder.window();
        let stored = match window {
            [] => Vec::new(),
            window => zstd::bulk::compress(window, WINDOW_LEVEL)
                .map_err(|_| Error::damaged("window of a gzip index", self.output, "it does not compress"))?,
        };
        let mut next_hash = Sha256::new();
        if bits > 0 {
            next_hash.update([self.last_byte]);
        }
        let digest: [u8; 32] = std::mem::replace(&mut self.span_hash, next_hash).finalize().into();
        let mut progress = self.growing.progress.lock();
        if !progress.checkpoints.is_empty() {
            progress.digests.push(digest);
        }
        Error::bounded("a gzip index's number of checkpoints", progress.checkpoints.len() as u64, MAX_CHECKPOINTS - 1)?;
        let window = WindowAt {
            offset: progress.windows.len() as u64,
            bytes: u32::try_from(stored.len()).expect("32 KiB compress to little more"),
            is_compressed: true,
        };
        progress.windows.extend_from_slice(&stored);
        progress.checkpoints.push(Checkpoint { input: self.input, bits, output: self.output, window });
        drop(progress);
        self.growing.changed.notify_all();
        self.last_checkpoint = self.output;
        Ok(())
    }
}

impl Drop for Indexer {
    fn drop(&mut self) {
        // Nothing, if there is an outcome already.
        self.growing.end(Outcome::Failed(Error::Abandoned(self.output)));
    }
}

impl Default for Decoder {
    fn default() -> Self {
        let buf = vec![0; WINDOW_BYTES + OUTPUT_BYTES];
        Self { state: Box::default(), buf, filled: 0, crc: Crc::new(), member_bytes: 0 }
    }
}

impl Decoder {
    fn reset(&mut self) {
        *self.state = DecompressorOxide::new();
        (self.filled, self.crc, self.member_bytes) = (0, Crc::new(), 0);
    }

    /// Decodes up to the end of a block, of `bytes`, or of the room. Returns the bytes read and where the output lies.
    fn decode(&mut self, bytes: &[u8]) -> (TINFLStatus, usize, std::ops::Range<usize>) {
        if self.filled == self.buf.len() {
            self.buf.copy_within(self.filled - WINDOW_BYTES.., 0);
            self.filled = WINDOW_BYTES;
        }
        let start = self.filled;
        let (status, read, written) = decompress(&mut self.state, bytes, &mut self.buf, start, FLAGS);
        self.filled += written;
        self.member_bytes += written as u64;
        self.crc.update(&self.buf[start..self.filled]);
        (status, read, start..self.filled)
    }

    /// What a match may refer to.
    fn window(&self) -> &[u8] {
        &self.buf[self.filled.saturating_sub(WINDOW_BYTES)..self.filled]
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("member_bytes", &self.member_bytes).finish_non_exhaustive()
    }
}

impl Growing {
    /// The index, once the pass is over.
    pub fn whole(&self) -> Option<Arc<GzipIndex>> {
        match &self.progress.lock().outcome {
            Some(Outcome::Whole(index)) => Some(index.clone()),
            _ => None,
        }
    }

    /// The number of the span that has the byte `output`, the span, and its window. Waits until it has arrived.
    pub(super) fn wait(&self, output: u64) -> Result<(usize, Span, Vec<u8>), Error> {
        let mut progress = self.progress.lock();
        loop {
            let next = progress.checkpoints.partition_point(|checkpoint| checkpoint.output <= output);
            if let Some(number) = next.checked_sub(1).filter(|_| next < progress.checkpoints.len()) {
                let Progress { checkpoints, digests, windows, .. } = &*progress;
                let span = super::span(checkpoints, digests, number, (0, 0)).expect("its number was just found");
                let WindowAt { offset, bytes, is_compressed } = span.start.window;
                let start = usize::try_from(offset).expect("windows are in memory");
                let stored = windows[start..start + bytes as usize].to_vec();
                drop(progress);
                return Ok((number, span, super::expand_window(stored, is_compressed, offset)?));
            }
            match progress.outcome.clone() {
                None => self.changed.wait(&mut progress),
                Some(Outcome::Failed(error)) => return Err(error),
                Some(Outcome::Whole(index)) => {
                    drop(progress);
                    let number = index.span_at(output);
                    let span = index.span(number).filter(|span| output < span.output_end);
                    let span = span.ok_or(Error::Missing("byte where it is read"))?;
                    return Ok((number, span, index.window(&span.start)?));
                }
            }
        }
    }

    fn end(&self, outcome: Outcome) {
        let mut progress = self.progress.lock();
        if progress.outcome.is_none() {
            progress.outcome = Some(outcome);
        }
        drop(progress);
        self.changed.notify_all();
    }
}
