//! What can be wrong with a squashfs image.

use crate::tree;
use std::fmt;
use std::io;
use std::sync::Arc;

/// The part of an image that an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first 96 bytes.
    Superblock,
    /// What follows the superblock if its flags say so.
    CompressorOptions,
    /// The inodes.
    InodeTable,
    /// The directory listings.
    DirectoryTable,
    /// Where the fragments are.
    FragmentTable,
    /// Owners and groups.
    IdTable,
    /// Extended attributes and their index.
    XattrTable,
    /// File content.
    DataBlock,
    /// The ends of several files.
    Fragment,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::CompressorOptions => "compressor options",
            Self::InodeTable => "inode table",
            Self::DirectoryTable => "directory table",
            Self::FragmentTable => "fragment table",
            Self::IdTable => "id table",
            Self::XattrTable => "xattr table",
            Self::DataBlock => "data block",
            Self::Fragment => "fragment block",
        })
    }
}

/// Why an image, or a part of it, cannot be read. Offsets count bytes from the start of the squashfs image.
///
/// It can be cloned because all threads that wait for one block get the same error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The first four bytes are not those of squashfs.
    #[error("not a squashfs image: it begins with the bytes {found:02x?} instead of {:02x?} (\"hsqs\")", b"hsqs")]
    BadMagic {
        /// What is there.
        found: [u8; 4],
    },
    /// The magic number is that of a big-endian image, which only versions before 4.0 have.
    #[error("a big-endian squashfs image, older than version 4.0; pack it anew with mksquashfs")]
    BigEndian,
    /// Another version of the format.
    #[error("squashfs version {major}.{minor} instead of 4.0; pack the image anew with mksquashfs")]
    UnsupportedVersion {
        /// `s_major`.
        major: u16,
        /// `s_minor`.
        minor: u16,
    },
    /// A compressor that squashfs numbers but that no kernel reads.
    #[error("squashfs compressor 2 (lzma) is not supported, nor is it by Linux; pack the image anew with xz or zstd")]
    UnsupportedCompressor,
    /// A compressor number that squashfs does not define.
    #[error("squashfs compressor {id} does not exist; 1, 3, 4, 5 and 6 are gzip, lzo, xz, lz4 and zstd")]
    UnknownCompressor {
        /// `compression` of the superblock.
        id: u16,
    },
    /// A block size that is no power of two between 4 KiB and 1 MiB, or a logarithm that is another number's.
    #[error("squashfs block size {block_size} (log {block_log}) is not a power of two from 4 KiB to 1 MiB")]
    BadBlockSize {
        /// `block_size`.
        block_size: u32,
        /// `block_log`.
        block_log: u16,
    },
    /// The bytes end before the image does.
    #[error("squashfs {part} at byte {offset} needs {needed} bytes, but the image has {len} bytes; it is truncated")]
    Truncated {
        /// What is cut.
        part: Part,
        /// Where it begins.
        offset: u64,
        /// How many bytes it takes.
        needed: u64,
        /// Length of all that there is.
        len: u64,
    },
    /// A part is said to lie where it cannot.
    #[error("squashfs {part} cannot be at byte {offset}")]
    Misplaced {
        /// What is misplaced.
        part: Part,
        /// Where it is said to be.
        offset: u64,
    },
    /// A block whose stored size is impossible.
    #[error("squashfs {part} at byte {offset} has a block of {stored} stored bytes, more than {max} or none")]
    BadStoredSize {
        /// What the block is part of.
        part: Part,
        /// Where the block is.
        offset: u64,
        /// Its stored size in bytes.
        stored: u64,
        /// The largest size allowed.
        max: u64,
    },
    /// A compressor refused a block.
    #[error("squashfs {part} at byte {offset} does not decompress: {reason}")]
    Decompress {
        /// What the block is part of.
        part: Part,
        /// Where the block is.
        offset: u64,
        /// What the codec says.
        reason: String,
    },
    /// A block decompressed to another length than it must have.
    #[error("squashfs {part} at byte {offset} holds {found} bytes instead of {expected}")]
    BadLength {
        /// What the block is part of.
        part: Part,
        /// Where the block is.
        offset: u64,
        /// Bytes that it must have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A table entry is referred to that is not there.
    #[error("squashfs {part} has {count} entries, but entry {index} is referred to")]
    NoSuchEntry {
        /// The table.
        part: Part,
        /// The entry asked for, from 0.
        index: u64,
        /// How many there are.
        count: u64,
    },
    /// A field with a value that it cannot have.
    #[error("squashfs {part} at byte {offset} has {field} {value}")]
    BadField {
        /// Where it is.
        part: Part,
        /// Byte offset of the metadata block that it is in.
        offset: u64,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A file name or the name of an extended attribute that the kernel could not use.
    #[error("squashfs {part} at byte {offset} has the name {name:?}, which is not allowed")]
    BadName {
        /// The table.
        part: Part,
        /// Byte offset of the metadata block that it is in.
        offset: u64,
        /// The name.
        name: String,
    },
    /// The storage below failed.
    #[error("cannot read {needed} bytes at byte {offset}, of squashfs {part}")]
    Read {
        /// What was read.
        part: Part,
        /// Where it begins.
        offset: u64,
        /// How many bytes were wanted.
        needed: u64,
        /// What the storage says.
        #[source]
        source: Arc<io::Error>,
    },
}

impl From<Error> for tree::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Read { ref source, .. } => Self::Io(io::Error::new(source.kind(), error)),
            damage => Self::Damaged(Box::new(damage)),
        }
    }
}
