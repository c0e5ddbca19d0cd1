//! Inode numbers of what the layer has: that of the image's node that it is a copy of, or what its number in the layer makes.
//!
//! Only those of the first kind are remembered, and what else cannot be told by its number, for as long as the layer has the node.

use super::super::{Ino, UPPER_BIT};
use super::Key;
use std::collections::HashMap;

/// Numbers of the layer's nodes make those of the view below this; from here on they are counted out.
const COUNTED: u64 = 1 << 60;

#[derive(Debug)]
pub(super) struct Numbers {
    by_upper: HashMap<Key, Ino>,
    /// Whose those are: nothing else gets one of them.
    taken: HashMap<Ino, Key>,
    /// The layer's filesystem.
    device: u64,
    next: u64,
}

impl Numbers {
    /// Of a layer on the filesystem `device`.
    pub(super) fn new(device: u64) -> Self {
        Self { by_upper: HashMap::new(), taken: HashMap::new(), device, next: UPPER_BIT + COUNTED }
    }

    /// Has `ino` stand for the node `key` of the layer from here on.
    pub(super) fn own(&mut self, key: Key, ino: Ino) {
        self.by_upper.insert(key, ino);
        self.taken.insert(ino, key);
    }

    /// Forgets whose number that of `key` is.
    pub(super) fn disown(&mut self, key: Key) {
        if let Some(ino) = self.by_upper.remove(&key) {
            self.taken.remove(&ino);
        }
    }

    /// What is remembered to stand for `key`.
    pub(super) fn known(&self, key: Key) -> Option<Ino> {
        self.by_upper.get(&key).copied()
    }

    /// The node that `ino` is remembered to stand for.
    pub(super) fn key_of(&self, ino: Ino) -> Option<Key> {
        self.taken.get(&ino).copied()
    }

    /// The number of `key`, which none is remembered for: `from` if it is that of another node, and else its own, unless something
    /// that is gone from the layer still has that.
    pub(super) fn give(&mut self, key: Key, from: Option<Ino>, is_taken: impl Fn(Ino) -> bool) -> Ino {
        let own = match from {
            Some(ino) => ino,
            None if key.0 == self.device && key.1 < COUNTED && !is_taken(Ino(UPPER_BIT + key.1)) => {
                return Ino(UPPER_BIT + key.1);
            }
            None => {
                self.next += 1;
                Ino(self.next)
            }
        };
        self.own(key, own);
        own
    }
}
