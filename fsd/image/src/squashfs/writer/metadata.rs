//! A metadata stream: 8 KiB blocks, each compressed with a two-byte header.

use super::Error;
use super::compress::{Codec, Encoder};
use crate::squashfs::format::{METADATA_BLOCK_BYTES, METADATA_UNCOMPRESSED};

/// A place in a metadata stream: where its block begins in the compressed table, and the offset in the decoded block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) block: u64,
    pub(super) offset: u16,
}

impl Place {
    /// The 48-bit reference that inode and xattr references are.
    pub(super) fn reference(self) -> u64 {
        self.block << 16 | u64::from(self.offset)
    }
}

/// Collects a metadata stream in memory.
pub(super) struct MetadataStream {
    encoder: Encoder,
    pending: Vec<u8>,
    table: Vec<u8>,
    block_starts: Vec<u64>,
}

impl MetadataStream {
    pub(super) fn new(codec: Codec) -> Result<Self, Error> {
        let pending = Vec::with_capacity(METADATA_BLOCK_BYTES);
        Ok(Self { encoder: codec.encoder()?, pending, table: Vec::new(), block_starts: Vec::new() })
    }

    /// Where the next byte will lie.
    pub(super) fn place(&self) -> Place {
        let offset = u16::try_from(self.pending.len()).expect("a block is sent off when it holds 8192 bytes");
        Place { block: self.table.len() as u64, offset }
    }

    /// Appends `bytes`.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let room = METADATA_BLOCK_BYTES - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            if self.pending.len() == METADATA_BLOCK_BYTES {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.block_starts.push(self.table.len() as u64);
        let encoded = self.encoder.encode(&self.pending)?;
        let (bytes, flag) = encoded.map_or((&self.pending[..], METADATA_UNCOMPRESSED), |bytes| (bytes, 0));
        let size = u16::try_from(bytes.len()).expect("a block is at most 8192 bytes");
        self.table.extend_from_slice(&(size | flag).to_le_bytes());
        self.table.extend_from_slice(bytes);
        self.pending.clear();
        Ok(())
    }

    /// The table's bytes and where in them each block begins.
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, Vec<u64>), Error> {
        if !self.pending.is_empty() {
            self.flush()?;
        }
        Ok((self.table, self.block_starts))
    }
}
