//! The numbers of squashfs 4.0, as in Linux `fs/squashfs/squashfs_fs.h`. All integers are little-endian.
//!
//! ```text
//! superblock (96 bytes) | compressor options | data blocks and fragments | inode table | directory table
//! | fragment table | export table | id table | xattr table          (tables lie where the superblock says)
//! ```

/// First four bytes: `hsqs`.
pub const MAGIC: u32 = 0x7371_7368;
/// Bytes of the superblock.
pub const SUPERBLOCK_BYTES: usize = 96;
/// Decoded bytes of a full metadata block.
pub const METADATA_BLOCK_BYTES: usize = 8192;
/// Bit of a metadata block's 16-bit header that says that it is stored uncompressed.
pub const METADATA_UNCOMPRESSED: u16 = 1 << 15;
/// Bit of a data block's 32-bit size that says that it is stored uncompressed.
pub const DATA_UNCOMPRESSED: u32 = 1 << 24;
/// Smallest block size.
pub const MIN_BLOCK_BYTES: u32 = 4 << 10;
/// Largest block size.
pub const MAX_BLOCK_BYTES: u32 = 1 << 20;
/// Longest file name.
pub const MAX_NAME_BYTES: usize = 256;
/// Fragment index of a file without one; xattr index of a node without any.
pub const NONE_U32: u32 = u32::MAX;
/// Start of a table that does not exist.
pub const NONE_U64: u64 = u64::MAX;
/// Bytes of an entry of the fragment table: start u64, size u32, unused u32.
pub const FRAGMENT_ENTRY_BYTES: usize = 16;
/// Bytes of an entry of the xattr id table: reference u64, count u32, size u32.
pub const XATTR_ID_BYTES: usize = 16;

/// Superblock flags.
pub mod flags {
    /// Inodes are stored uncompressed.
    pub const UNCOMPRESSED_INODES: u16 = 0x0001;
    /// Data blocks are stored uncompressed.
    pub const UNCOMPRESSED_DATA: u16 = 0x0002;
    /// Fragments are stored uncompressed.
    pub const UNCOMPRESSED_FRAGMENTS: u16 = 0x0008;
    /// There are no fragments.
    pub const NO_FRAGMENTS: u16 = 0x0010;
    /// Every file's end is in a fragment.
    pub const ALWAYS_FRAGMENTS: u16 = 0x0020;
    /// Equal files are stored once.
    pub const DUPLICATES: u16 = 0x0040;
    /// There is an export table.
    pub const EXPORTABLE: u16 = 0x0080;
    /// Xattrs are stored uncompressed.
    pub const UNCOMPRESSED_XATTRS: u16 = 0x0100;
    /// There are no xattrs.
    pub const NO_XATTRS: u16 = 0x0200;
    /// Compressor options follow the superblock.
    pub const COMPRESSOR_OPTIONS: u16 = 0x0400;
    /// Ids are stored uncompressed.
    pub const UNCOMPRESSED_IDS: u16 = 0x0800;
}

/// Inode types: 1 to 7 basic, 8 to 14 the same kinds extended.
pub mod inode_type {
    /// Directory.
    pub const DIRECTORY: u16 = 1;
    /// Regular file.
    pub const FILE: u16 = 2;
    /// Symbolic link.
    pub const SYMLINK: u16 = 3;
    /// Block device.
    pub const BLOCK_DEVICE: u16 = 4;
    /// Character device.
    pub const CHAR_DEVICE: u16 = 5;
    /// Named pipe.
    pub const FIFO: u16 = 6;
    /// Socket.
    pub const SOCKET: u16 = 7;
    /// What is added to a basic type to get its extended one.
    pub const EXTENDED: u16 = 7;
}

/// The compressors that squashfs defines, with their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compressor {
    /// 1: zlib streams.
    Gzip,
    /// 2: LZMA alone, of kernels that never were mainline.
    Lzma,
    /// 3: LZO1X.
    Lzo,
    /// 4: xz streams, with optional BCJ filters.
    Xz,
    /// 5: bare LZ4 blocks.
    Lz4,
    /// 6: zstd frames.
    Zstd,
}

impl Compressor {
    /// The compressor with this number in the superblock.
    pub fn from_id(id: u16) -> Option<Self> {
        Some(match id {
            1 => Self::Gzip,
            2 => Self::Lzma,
            3 => Self::Lzo,
            4 => Self::Xz,
            5 => Self::Lz4,
            6 => Self::Zstd,
            _ => return None,
        })
    }

    /// Its number in the superblock.
    pub fn id(self) -> u16 {
        match self {
            Self::Gzip => 1,
            Self::Lzma => 2,
            Self::Lzo => 3,
            Self::Xz => 4,
            Self::Lz4 => 5,
            Self::Zstd => 6,
        }
    }
}

/// The superblock, field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// `inodes`: number of inodes.
    pub inode_count: u32,
    /// `mkfs_time`: seconds since 1970.
    pub mkfs_time: u32,
    /// `block_size`: bytes, a power of two.
    pub block_size: u32,
    /// `fragments`: number of fragment blocks.
    pub fragment_count: u32,
    /// `compression`: a [`Compressor`] number.
    pub compressor_id: u16,
    /// `block_log`: log2 of the block size.
    pub block_log: u16,
    /// `flags`: see [`flags`].
    pub flags: u16,
    /// `no_ids`: number of ids.
    pub id_count: u16,
    /// `s_major`: 4.
    pub version_major: u16,
    /// `s_minor`: 0.
    pub version_minor: u16,
    /// `root_inode`: metadata reference of the root.
    pub root_inode: u64,
    /// `bytes_used`: bytes of the filesystem without padding.
    pub bytes_used: u64,
    /// Byte offset of the id table's index.
    pub id_table_start: u64,
    /// Byte offset of the xattr id table's header, or [`NONE_U64`].
    pub xattr_table_start: u64,
    /// Byte offset of the inode table.
    pub inode_table_start: u64,
    /// Byte offset of the directory table.
    pub directory_table_start: u64,
    /// Byte offset of the fragment table's index, or [`NONE_U64`].
    pub fragment_table_start: u64,
    /// Byte offset of the export table's index, or [`NONE_U64`].
    pub export_table_start: u64,
}

impl Superblock {
    /// Decodes the fields after the magic; nothing is checked but the magic. `None` if that is another.
    pub fn decode(bytes: &[u8; SUPERBLOCK_BYTES]) -> Option<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        (u32_at(0) == MAGIC).then(|| Self {
            inode_count: u32_at(4),
            mkfs_time: u32_at(8),
            block_size: u32_at(12),
            fragment_count: u32_at(16),
            compressor_id: u16_at(20),
            block_log: u16_at(22),
            flags: u16_at(24),
            id_count: u16_at(26),
            version_major: u16_at(28),
            version_minor: u16_at(30),
            root_inode: u64_at(32),
            bytes_used: u64_at(40),
            id_table_start: u64_at(48),
            xattr_table_start: u64_at(56),
            inode_table_start: u64_at(64),
            directory_table_start: u64_at(72),
            fragment_table_start: u64_at(80),
            export_table_start: u64_at(88),
        })
    }

    /// The 96 bytes that begin an image.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = Vec::with_capacity(SUPERBLOCK_BYTES);
        for field in [MAGIC, self.inode_count, self.mkfs_time, self.block_size, self.fragment_count] {
            bytes.extend(field.to_le_bytes());
        }
        for field in
            [self.compressor_id, self.block_log, self.flags, self.id_count, self.version_major, self.version_minor]
        {
            bytes.extend(field.to_le_bytes());
        }
        for field in [
            self.root_inode,
            self.bytes_used,
            self.id_table_start,
            self.xattr_table_start,
            self.inode_table_start,
            self.directory_table_start,
            self.fragment_table_start,
            self.export_table_start,
        ] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.try_into().expect("the fields above are 5*4 + 6*2 + 8*8 = 96 bytes")
    }
}
