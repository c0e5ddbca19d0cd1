//! Where content lies in the image, for who copies it as it is stored.

use super::Squashfs;
use super::blocks::Stored;
use super::error::{Error, Part};
use super::inode::Body;
use crate::read_at::ReadAt;
use crate::squashfs::format::{METADATA_UNCOMPRESSED, SUPERBLOCK_BYTES, flags};
use crate::tree::{self, NodeId};
use std::ops::Range;

/// Options are a few bytes in every known format.
const MAX_OPTIONS_BYTES: u16 = 64;

/// Where the content of one file lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the file.
    pub size: u64,
    /// Byte offset of the first block in the image.
    pub start: u64,
    /// Stored size of each block, with the bit that says that it is not compressed; 0 for a block of zeros.
    pub sizes: Vec<u32>,
    /// Bytes in blocks of zeros, as the image says.
    pub hole_bytes: u64,
    /// The number of the fragment with the end of the file, and the offset in it.
    pub fragment: Option<(u32, u32)>,
}

impl Squashfs {
    /// Where the content of `node` lies. Nothing of it has been looked at: blocks may lie anywhere.
    ///
    /// # Errors
    /// [`tree::Error::NotAFile`], or what is wrong with the inode or its block list.
    pub fn layout(&self, node: NodeId) -> Result<Layout, tree::Error> {
        let Body::File(file) = self.inode(node)?.body else { return Err(tree::Error::NotAFile) };
        let blocks = self.blocks.all(&self.metadata, self.inodes, &file)?;
        Ok(Layout {
            size: file.size,
            start: blocks.first().map_or(0, |block| block.start),
            sizes: blocks.iter().map(|block| block.size).collect(),
            hole_bytes: file.sparse.min(file.size),
            fragment: file.fragment,
        })
    }

    /// Byte offset in the image and stored size of the fragment `index`. It may lie anywhere.
    ///
    /// # Errors
    /// If there is no such fragment, or the table cannot be read.
    pub fn fragment(&self, index: u32) -> Result<(u64, u32), tree::Error> {
        let Stored { start, size } = self.blocks.fragment(&self.metadata, index)?;
        Ok((start, size))
    }

    /// The metadata block with the compressor's options that follows the superblock, header included; empty without any.
    ///
    /// # Errors
    /// If it is cut off, compressed, or too long.
    pub fn compressor_options(&self) -> Result<Vec<u8>, Error> {
        if self.superblock.flags & flags::COMPRESSOR_OPTIONS == 0 {
            return Ok(Vec::new());
        }
        let (part, offset) = (Part::CompressorOptions, SUPERBLOCK_BYTES as u64);
        let mut header = [0; 2];
        self.storage.read(part, offset, &mut header)?;
        let header = u16::from_le_bytes(header);
        let length = header & !METADATA_UNCOMPRESSED;
        if header & METADATA_UNCOMPRESSED == 0 || length > MAX_OPTIONS_BYTES {
            return Err(Error::BadField { part, offset, field: "a header of", value: header.into() });
        }
        let mut options = vec![0; 2 + usize::from(length)];
        self.storage.read(part, offset, &mut options)?;
        Ok(options)
    }

    /// The part of the image where blocks and fragments lie: from behind the compressor's options, `options_bytes` long,
    /// to the first of the tables. `None` if the tables leave no such part.
    pub(in crate::squashfs) fn content(&self, options_bytes: u64) -> Option<Range<u64>> {
        let start = SUPERBLOCK_BYTES as u64 + options_bytes;
        (start <= self.superblock.inode_table_start).then_some(start..self.superblock.inode_table_start)
    }

    /// The bytes of the image, as they are stored.
    pub(in crate::squashfs) fn stored_bytes(&self) -> &dyn ReadAt {
        self.storage.bytes()
    }
}
