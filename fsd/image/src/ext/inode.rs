//! Inodes, and where the blocks of their content lie.

use super::{Error, Layout, le16, le32};
use crate::read_at::ReadAt;
use crate::tree::{Kind, Timestamp};

/// `i_block`: 15 numbers of blocks, the root of a tree of extents, or the target of a short link.
pub(super) const BLOCK_BYTES: usize = 60;
/// Bytes of an inode of ext2; longer ones have more fields behind them.
pub(super) const FIRST_INODE_BYTES: usize = 128;
/// Numbers of blocks in the inode itself.
const DIRECT: u64 = 12;
/// `EXT4_HUGE_FILE_FL`: blocks are counted in those of the file system.
const HUGE_FILE: u32 = 0x4_0000;
/// `EXT4_EXTENTS_FL`.
const EXTENTS: u32 = 0x8_0000;
/// What this program does not read: `EXT4_ENCRYPT_FL`, `EXT4_INLINE_DATA_FL`.
const UNREADABLE: u32 = 0x800 | 0x1000_0000;
/// `eh_magic` of a node of extents.
const EXTENT_MAGIC: u16 = 0xf30a;
/// Bytes of its head, and of each of its entries.
const EXTENT_BYTES: usize = 12;
/// Deepest tree of extents that Linux takes.
const MAX_EXTENT_DEPTH: u16 = 5;
/// `ee_len` above this is that of an extent that was never written to.
const MAX_WRITTEN_LEN: u32 = 32768;

/// What an inode says.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) number: u32,
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) sectors: u64,
    pub(super) nlink: u32,
    pub(super) atime: Timestamp,
    pub(super) ctime: Timestamp,
    pub(super) mtime: Timestamp,
    /// The block of its extended attributes; 0 without one.
    pub(super) attributes: u64,
    pub(super) block: [u8; BLOCK_BYTES],
    /// Extended attributes that lie in the inode itself.
    pub(super) rest: Vec<u8>,
    flags: u32,
}

/// Blocks that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Where they lie; `None` for a hole.
    pub(super) start: Option<u64>,
    /// How many there are, at least one.
    pub(super) count: u64,
}

impl Inode {
    pub(super) fn parse(number: u32, raw: &[u8], layout: &Layout) -> Result<Self, Error> {
        let bad = |what, value: u64| Error::Inode { number, what, value };
        let mode = le16(raw, 0);
        let kind = match mode >> 12 {
            1 => Kind::Fifo,
            2 => Kind::CharDevice,
            4 => Kind::Directory,
            6 => Kind::BlockDevice,
            8 => Kind::File,
            10 => Kind::Symlink,
            12 => Kind::Socket,
            _ => return Err(bad("mode", mode.into())),
        };
        let flags = le32(raw, 32);
        if flags & UNREADABLE != 0 {
            return Err(bad("flags", flags.into()));
        }
        let extra = if raw.len() > FIRST_INODE_BYTES + 2 { usize::from(le16(raw, FIRST_INODE_BYTES)) } else { 0 };
        let extra_end = FIRST_INODE_BYTES + extra;
        let later =
            |offset: usize| if offset + 4 <= extra_end && offset + 4 <= raw.len() { le32(raw, offset) } else { 0 };
        let blocks = u64::from(le32(raw, 28)) | u64::from(le16(raw, 116)) << 32;
        let sectors =
            if flags & HUGE_FILE == 0 { blocks } else { blocks.saturating_mul(u64::from(layout.block_bytes) / 512) };
        let mut block = [0; BLOCK_BYTES];
        block.copy_from_slice(&raw[40..40 + BLOCK_BYTES]);
        Ok(Self {
            number,
            kind,
            mode: mode & 0o7777,
            uid: u32::from(le16(raw, 2)) | u32::from(le16(raw, 120)) << 16,
            gid: u32::from(le16(raw, 24)) | u32::from(le16(raw, 122)) << 16,
            // Directories of ext2 have an ACL where files have the upper half of their size.
            size: u64::from(le32(raw, 4)) | if kind == Kind::File { u64::from(le32(raw, 108)) << 32 } else { 0 },
            sectors,
            nlink: le16(raw, 26).into(),
            atime: time(le32(raw, 8), later(140)),
            ctime: time(le32(raw, 12), later(132)),
            mtime: time(le32(raw, 16), later(136)),
            attributes: u64::from(le32(raw, 104)) | u64::from(le16(raw, 118)) << 32,
            block,
            rest: raw.get(extra_end..).filter(|_| extra > 0).unwrap_or_default().to_vec(),
            flags,
        })
    }

    /// Where the block `index` of the content lies, with those that follow it.
    pub(super) fn run(&self, bytes: &dyn ReadAt, layout: &Layout, index: u64) -> Result<Run, Error> {
        let run = match self.flags & EXTENTS {
            0 => self.indirect(bytes, layout, index)?,
            _ => self.extent(bytes, layout, index)?,
        };
        match run.start {
            Some(start) if start.checked_add(run.count).is_none_or(|end| end > layout.blocks) => {
                Err(Error::Inode { number: self.number, what: "block", value: start })
            }
            _ => Ok(run),
        }
    }

    /// As ext2 and ext3 have it: the first blocks in the inode, the others below it, one to three levels deep.
    fn indirect(&self, bytes: &dyn ReadAt, layout: &Layout, index: u64) -> Result<Run, Error> {
        let per_block = u64::from(layout.block_bytes) / 4;
        if index < DIRECT {
            return Ok(run_of(&self.block[..48], index));
        }
        let mut rest = index - DIRECT;
        let mut span = per_block;
        for level in 1..=3_u32 {
            if rest < span {
                let top = le32(&self.block, 44 + 4 * level as usize).into();
                return self.below(bytes, layout, (top, level), rest, span / per_block);
            }
            rest -= span;
            span = span.saturating_mul(per_block);
        }
        Err(Error::Inode { number: self.number, what: "size", value: self.size })
    }

    fn below(
        &self,
        bytes: &dyn ReadAt,
        layout: &Layout,
        (mut block, levels): (u64, u32),
        mut index: u64,
        mut span: u64,
    ) -> Result<Run, Error> {
        let per_block = u64::from(layout.block_bytes) / 4;
        for level in (1..=levels).rev() {
            if block == 0 {
                // Nothing below: a hole as long as what this would hold.
                return Ok(Run { start: None, count: (span * per_block).saturating_sub(index).max(1) });
            }
            let numbers = layout.block(bytes, block)?;
            if level == 1 {
                return Ok(run_of(&numbers, index));
            }
            let at = usize::try_from(index / span).expect("below the number of blocks in one");
            block = le32(&numbers, at * 4).into();
            index %= span;
            span /= per_block;
            if block == 0 {
                return Ok(Run { start: None, count: (span * per_block).saturating_sub(index).max(1) });
            }
        }
        Err(Error::Inode { number: self.number, what: "block", value: block })
    }

    /// As ext4 has it.
    fn extent(&self, bytes: &dyn ReadAt, layout: &Layout, index: u64) -> Result<Run, Error> {
        let bad = |what, value: u64| Error::Inode { number: self.number, what, value };
        let mut node = self.block.to_vec();
        let mut depth = le16(&node, 6);
        // Where the next extent begins: until there, there is a hole.
        let mut next = u64::MAX;
        loop {
            let count = usize::from(le16(&node, 2));
            if le16(&node, 0) != EXTENT_MAGIC || le16(&node, 6) != depth || depth > MAX_EXTENT_DEPTH {
                return Err(bad("extents", le32(&node, 0).into()));
            }
            let entries: Vec<_> = node.chunks_exact(EXTENT_BYTES).skip(1).take(count).collect();
            if entries.len() < count {
                return Err(bad("number of extents", count as u64));
            }
            let after = entries.partition_point(|entry| u64::from(le32(entry, 0)) <= index);
            next = entries.get(after).map_or(next, |entry| next.min(le32(entry, 0).into()));
            let hole = Run { start: None, count: next.saturating_sub(index).max(1) };
            let Some(entry) = after.checked_sub(1).map(|at| entries[at]) else { return Ok(hole) };
            if depth == 0 {
                let (len, is_written) = match u32::from(le16(entry, 4)) {
                    len @ ..=MAX_WRITTEN_LEN => (u64::from(len), true),
                    len => (u64::from(len - MAX_WRITTEN_LEN), false),
                };
                let skipped = index - u64::from(le32(entry, 0));
                let start = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
                return Ok(match len.checked_sub(skipped) {
                    None | Some(0) => hole,
                    Some(count) => Run { start: is_written.then_some(start + skipped), count },
                });
            }
            node = layout.block(bytes, u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32)?;
            depth -= 1;
        }
    }

    /// Whether the target of a link lies in the inode itself.
    pub(super) fn is_short_link(&self, layout: &Layout) -> bool {
        let attributes = if self.attributes == 0 { 0 } else { u64::from(layout.block_bytes) / 512 };
        self.sectors == attributes && self.size < BLOCK_BYTES as u64
    }
}

/// The run that begins at `index` of a list of numbers of blocks.
fn run_of(numbers: &[u8], index: u64) -> Run {
    let at = usize::try_from(index).unwrap_or(usize::MAX);
    let mut numbers = numbers.chunks_exact(4).skip(at).map(|number| u64::from(le32(number, 0)));
    let first = numbers.next().unwrap_or(0);
    let follows = |(number, count): (u64, u64)| if first == 0 { number == 0 } else { number == first + count };
    let count = 1 + numbers.zip(1..).take_while(|next| follows(*next)).count() as u64;
    Run { start: (first != 0).then_some(first), count }
}

/// Seconds in 32 bits, and of later inodes two more bits of them and nanoseconds.
fn time(seconds: u32, extra: u32) -> Timestamp {
    let epoch = i64::from(extra & 3) << 32;
    let nanos = extra >> 2;
    Timestamp {
        seconds: i64::from(seconds.cast_signed()) + epoch,
        nanos: if nanos < 1_000_000_000 { nanos } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_follow_each_other_are_one_run() {
        let numbers: Vec<u8> = [5_u32, 6, 7, 9, 0, 0, 8].iter().flat_map(|number| number.to_le_bytes()).collect();

        assert_eq!(run_of(&numbers, 0), Run { start: Some(5), count: 3 });
        assert_eq!(run_of(&numbers, 2), Run { start: Some(7), count: 1 });
        assert_eq!(run_of(&numbers, 4), Run { start: None, count: 2 });
        assert_eq!(run_of(&numbers, 6), Run { start: Some(8), count: 1 });
        assert_eq!(run_of(&numbers, 99), Run { start: None, count: 1 });
    }

    #[test]
    fn times_reach_back_and_forth() {
        assert_eq!(time(u32::MAX, 0), Timestamp { seconds: -1, nanos: 0 });
        assert_eq!(time(1, 4 * 7 + 1), Timestamp { seconds: (1 << 32) + 1, nanos: 7 });
        assert_eq!(time(1, u32::MAX - 3).nanos, 0);
    }
}
