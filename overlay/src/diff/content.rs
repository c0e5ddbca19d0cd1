//! Whether two files have the same bytes.

use siphon_image::tree::{self, NodeId, Tree};

/// Bytes compared at once: as much as the largest squashfs block.
const PIECE_BYTES: u64 = 1 << 20;

/// Compares one pair of files after the other, with the same memory.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Comparison {
    /// Whether two files of `size` bytes are equal; `false` as well if one turns out to be shorter.
    pub(super) fn is_same(
        &mut self,
        old: (&dyn Tree, NodeId),
        new: (&dyn Tree, NodeId),
        size: u64,
    ) -> Result<bool, tree::Error> {
        let mut offset = 0;
        while offset < size {
            let length = usize::try_from((size - offset).min(PIECE_BYTES)).expect("a piece is 1 MiB");
            for (buffer, (tree, node)) in [(&mut self.old, old), (&mut self.new, new)] {
                buffer.resize(length, 0);
                let read = tree.read(node, offset, buffer)?;
                buffer.truncate(read);
            }
            if self.old != self.new || self.new.len() < length {
                return Ok(false);
            }
            offset += length as u64;
        }
        Ok(true)
    }
}
