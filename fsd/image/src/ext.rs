//! What the superblock of an ext2, ext3 or ext4 file system says: only the kernel and `fuse2fs` read the rest.

/// Bytes from the start of a file system that [`size_bytes`] looks at.
pub const HEAD_BYTES: usize = SUPERBLOCK + 60;
/// Where the superblock lies.
const SUPERBLOCK: usize = 1024;
/// `s_magic`, 56 bytes into it.
const MAGIC: [u8; 2] = [0x53, 0xef];
/// `s_log_block_size` that the kernel takes at most: blocks of 64 KiB.
const MAX_LOG_BLOCK_SIZE: u32 = 6;

/// Whether these first bytes are those of an ext file system.
pub fn is_ext(head: &[u8]) -> bool {
    head.get(SUPERBLOCK + 56..).is_some_and(|rest| rest.starts_with(&MAGIC))
}

/// How long the file system with these first bytes says that it is; `None` if it is none, or has blocks that no program
/// takes. Ext3 counts its blocks in 32 bits.
pub fn size_bytes(head: &[u8]) -> Option<u64> {
    let field = |offset: usize| {
        let bytes = head.get(SUPERBLOCK + offset..SUPERBLOCK + offset + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let (blocks, log_block_size) = (field(4)?, field(24)?);
    (is_ext(head) && log_block_size <= MAX_LOG_BLOCK_SIZE).then(|| u64::from(blocks) << (10 + log_block_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(blocks: u32, log_block_size: u32) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[1028..1032].copy_from_slice(&blocks.to_le_bytes());
        head[1048..1052].copy_from_slice(&log_block_size.to_le_bytes());
        head[1080..1082].copy_from_slice(&MAGIC);
        head
    }

    #[test]
    fn the_length_is_that_of_all_blocks() {
        assert_eq!(size_bytes(&head(65536, 0)), Some(64 << 20));
        assert_eq!(size_bytes(&head(u32::MAX, 6)), Some(u64::from(u32::MAX) << 16));
    }

    #[test]
    fn what_is_no_ext_file_system_has_no_length() {
        assert_eq!(size_bytes(&head(1, 7)), None);
        assert_eq!(size_bytes(&head(1, 0)[..HEAD_BYTES - 10]), None);
        assert_eq!(size_bytes(&[0; HEAD_BYTES]), None);
        assert_eq!(size_bytes(&[]), None);
    }
}
