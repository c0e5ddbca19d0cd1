//! Numbers for open files and directories.

use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Enough shards that as many FUSE workers as there are rarely meet on one lock. A power of two.
const SHARDS: u64 = 16;

/// A table of open objects by number. Lookups of different numbers do not wait for each other.
#[derive(Debug)]
pub(crate) struct Handles<T> {
    shards: Vec<RwLock<HashMap<u64, Arc<T>>>>,
    next: AtomicU64,
}

impl<T> Handles<T> {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        // Zero is left out: it is what the kernel sends for a file that it opened without asking.
        Self { shards, next: AtomicU64::new(1) }
    }

    /// Takes `value` in and returns its number, which is never used again.
    pub(crate) fn insert(&self, value: T) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(handle).write().insert(handle, Arc::new(value));
        handle
    }

    pub(crate) fn get(&self, handle: u64) -> Option<Arc<T>> {
        self.shard(handle).read().get(&handle).cloned()
    }

    /// Gives the number back. The object lives on while an operation that began before still uses it.
    pub(crate) fn remove(&self, handle: u64) -> Option<Arc<T>> {
        self.shard(handle).write().remove(&handle)
    }

    fn shard(&self, handle: u64) -> &RwLock<HashMap<u64, Arc<T>>> {
        let index = usize::try_from(handle % SHARDS).expect("a remainder of 16 fits any usize");
        &self.shards[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_not_given_out_twice() {
        let handles = Handles::new();
        let first = handles.insert("first");

        assert_eq!(handles.remove(first).as_deref(), Some(&"first"));
        let second = handles.insert("second");

        assert_ne!(first, second);
        assert_eq!(handles.get(first), None);
        assert_eq!(handles.get(second).as_deref(), Some(&"second"));
    }
}
