//! What a gzip layer decompresses to, as bytes that can be read anywhere.

use super::super::decoded::{Decoded, LayerId};
use super::super::error::Error;
use super::inflate::inflate;
use super::{Growing, GzipIndex, Span};
use crate::read_at::ReadAt;
use base16ct::lower::encode_string as hex;
use sha2::{Digest, Sha256};
use std::io;
use std::sync::Arc;

/// The tar in a gzip layer.
#[derive(Debug)]
pub struct GzipLayer {
    bytes: Arc<dyn ReadAt>,
    source: Source,
    decoded: Arc<Decoded>,
    id: LayerId,
}

#[derive(Debug)]
enum Source {
    Whole(Arc<GzipIndex>),
    Growing(Arc<Growing>),
}

impl GzipLayer {
    /// The tar in the layer `bytes`, of which `index` is.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the layer is of another length than the index says.
    pub fn new(bytes: Arc<dyn ReadAt>, index: Arc<GzipIndex>, decoded: Arc<Decoded>) -> Result<Self, Error> {
        if bytes.len() != index.stored_bytes() {
            return Err(Error::damaged("gzip index", 0, "it is of a layer of another length"));
        }
        let id = decoded.add_layer();
        Ok(Self { bytes, source: Source::Whole(index), decoded, id })
    }

    /// The tar in a layer that is just being indexed. Reads wait for what has not arrived, and fail if it never does.
    /// Its length is not known yet: [`ReadAt::len`] says the largest there can be. `bytes` must have what the indexer
    /// was given.
    pub fn growing(bytes: Arc<dyn ReadAt>, growing: Arc<Growing>, decoded: Arc<Decoded>) -> Self {
        let id = decoded.add_layer();
        Self { bytes, source: Source::Growing(growing), decoded, id }
    }

    /// Fills the front of `buf` from one span, and says how much of it.
    fn read_part(&self, buf: &mut [u8], offset: u64) -> Result<usize, Error> {
        let (content, start) = match &self.source {
            Source::Whole(index) => {
                let number = index.span_at(offset);
                let span = index.span(number).filter(|span| offset < span.output_end);
                let span = span.ok_or(Error::Missing("byte where it is read"))?;
                let decode = || self.decode(&span, &index.window(&span.start)?);
                (self.decoded.get(self.id, number as u64, decode)?, span.start.output)
            }
            Source::Growing(growing) => {
                let (number, span, window) = growing.wait(offset)?;
                (self.decoded.get(self.id, number as u64, || self.decode(&span, &window))?, span.start.output)
            }
        };
        let from = usize::try_from(offset - start).expect("spans are in memory");
        let part = content.get(from..).unwrap_or_default();
        let count = part.len().min(buf.len());
        buf[..count].copy_from_slice(&part[..count]);
        Ok(count)
    }

    /// Twice, if it is not what it should be, with the bytes fetched anew.
    fn decode(&self, span: &Span, window: &[u8]) -> Result<Box<[u8]>, Error> {
        self.decode_once(span, window).or_else(|error| {
            error.check_is_of_bytes()?;
            self.bytes.discard(span.input_start()..span.input_end);
            self.decode_once(span, window)
        })
    }

    fn decode_once(&self, span: &Span, window: &[u8]) -> Result<Box<[u8]>, Error> {
        let offset = span.input_start();
        // Deflate makes nothing longer than by 5 bytes in 64 KiB, so that the bound on what comes out is one on this.
        let needed = Error::bounded("a span's stored length", span.input_end - offset, 2 * super::MAX_SPAN_BYTES)?;
        let mut stored = vec![0; usize::try_from(needed).expect("it is at most 128 MiB")];
        let failed = |source| Error::Read { offset, needed, source: Arc::new(source) };
        self.bytes.read_exact_at(&mut stored, offset).map_err(failed)?;
        if let Some(expected) = span.digest {
            verify("span of a gzip layer", offset, &stored, &expected)?;
        }
        inflate(span, &stored, window)
    }
}

impl ReadAt for GzipLayer {
    fn len(&self) -> u64 {
        match &self.source {
            Source::Whole(index) => index.bytes(),
            Source::Growing(_) => i64::MAX as u64,
        }
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buf.len() {
            match self.read_part(&mut buf[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(())
    }
}

/// Holds `bytes`, from byte `offset` of a layer on, against a digest.
pub(in super::super) fn verify(
    part: &'static str,
    offset: u64,
    bytes: &[u8],
    expected: &[u8; 32],
) -> Result<(), Error> {
    let found: [u8; 32] = Sha256::digest(bytes).into();
    if found == *expected {
        return Ok(());
    }
    Err(Error::Digest { part, offset, expected: hex(expected), found: hex(&found) })
}
