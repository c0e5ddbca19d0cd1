//! Decoded chunks and spans of all layers of an image, kept up to a number of bytes.

use super::error::Error;
use crate::cache::{Cache, Lookups};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A value's usual size: the spans of our own indexes, and more than most chunks.
const USUAL_BYTES: u64 = 1 << 20;

/// A layer's part of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LayerId(u32);

/// The cache. Each value is decoded by one thread while others that want it wait.
#[derive(Debug)]
pub struct Decoded {
    cache: Cache<(LayerId, u64), Box<[u8]>, Error>,
    next_layer: AtomicU32,
    decoded_bytes: AtomicU64,
}

impl Decoded {
    /// A cache for `max_bytes` bytes.
    pub fn new(max_bytes: u64) -> Arc<Self> {
        let (next_layer, decoded_bytes) = Default::default();
        Arc::new(Self { cache: Cache::new(max_bytes, USUAL_BYTES), next_layer, decoded_bytes })
    }

    /// Keys that nobody else has.
    pub(super) fn add_layer(&self) -> LayerId {
        LayerId(self.next_layer.fetch_add(1, Ordering::Relaxed))
    }

    /// What is kept as number `index` of `layer`, or else what `decode` makes of it.
    pub(super) fn get(
        &self,
        layer: LayerId,
        index: u64,
        decode: impl FnOnce() -> Result<Box<[u8]>, Error>,
    ) -> Result<Arc<Box<[u8]>>, Error> {
        self.cache.get_or_make((layer, index), || {
            let value = decode()?;
            let weight_bytes = value.len() as u64;
            self.decoded_bytes.fetch_add(weight_bytes, Ordering::Relaxed);
            Ok((value, weight_bytes))
        })
    }

    pub(super) fn lookups(&self) -> Lookups {
        self.cache.lookups()
    }

    pub(super) fn decoded_bytes(&self) -> u64 {
        self.decoded_bytes.load(Ordering::Relaxed)
    }
}
