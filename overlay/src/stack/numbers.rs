//! Numbers of the nodes that one layer of a stack has of its own.
//!
//! ```text
//! 0 .. 1 << 58             nodes of the image, as the image numbers them
//! 1 << 58 | layer << 48    nodes of a layer: its own numbers, which are nearly always below 1 << 47, ...
//!              | 1 << 47   ... and those that are not, counted out
//! 1 << 59 .. 1 << 60       what other modules count out
//! ```

use parking_lot::RwLock;
use siphon_image::tree::NodeId;
use std::collections::HashMap;

const BASE: u64 = 1 << 58;
const LAYER_SHIFT: u32 = 48;
/// Numbers of a layer from here on are counted out.
const COUNTED: u64 = 1 << 47;

/// The range of one layer.
#[derive(Debug)]
pub(super) struct Numbers {
    start: u64,
    counted: RwLock<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    /// In the order in which they were met.
    own: Vec<u64>,
    by_own: HashMap<u64, u64>,
}

impl Numbers {
    pub(super) fn of_layer(layer: u8) -> Self {
        Self { start: BASE | u64::from(layer) << LAYER_SHIFT, counted: RwLock::default() }
    }

    /// The number in the stack of what the layer calls `own`.
    pub(super) fn outer(&self, own: u64) -> NodeId {
        if own < COUNTED {
            return NodeId(self.start + own);
        }
        if let Some(index) = self.counted.read().by_own.get(&own) {
            return NodeId(self.start + COUNTED + index);
        }
        let counted = &mut *self.counted.write();
        let index = *counted.by_own.entry(own).or_insert_with(|| {
            counted.own.push(own);
            counted.own.len() as u64 - 1
        });
        NodeId(self.start + COUNTED + index)
    }

    /// What the layer calls `node`; `None` if it is not of this layer.
    pub(super) fn own(&self, node: NodeId) -> Option<u64> {
        let offset = node.0.checked_sub(self.start).filter(|offset| *offset < 1 << LAYER_SHIFT)?;
        match offset.checked_sub(COUNTED) {
            None => Some(offset),
            Some(index) => self.counted.read().own.get(usize::try_from(index).ok()?).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_whatever_their_size_and_to_their_layer_alone() {
        let (first, second) = (Numbers::of_layer(1), Numbers::of_layer(2));

        for own in [0, 1, 4711, COUNTED - 1, COUNTED, 1 << 60, u64::MAX, COUNTED] {
            let outer = first.outer(own);
            assert_eq!(first.own(outer), Some(own), "{own}");
            assert_eq!(second.own(outer), None, "{own}");
            assert!((1 << 58..1 << 59).contains(&outer.0), "{own}");
        }
        assert_ne!(first.outer(COUNTED), first.outer(1 << 60));
        assert_eq!(first.own(NodeId(first.start + COUNTED + 3)), None);
        assert_eq!(first.own(NodeId(17)), None);
    }
}
