//! Buffers of one size that are used again: a fresh one costs a page fault for every 4 KiB, which is a good part of
//! what decoding into it costs.

use parking_lot::Mutex;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A source of buffers of `frame_bytes` each.
#[derive(Debug)]
pub(super) struct Frames {
    frame_bytes: usize,
    max_free: usize,
    free: Mutex<Vec<Box<[u8]>>>,
}

/// One buffer, which goes back to where it came from.
#[derive(Debug)]
pub(super) struct Frame {
    bytes: Box<[u8]>,
    len: usize,
    /// `None` for one that fits its content.
    home: Option<Arc<Frames>>,
}

impl Frames {
    /// Keeps up to `max_free` buffers that nobody uses.
    pub(super) fn new(frame_bytes: usize, max_free: usize) -> Arc<Self> {
        Arc::new(Self { frame_bytes, max_free, free: Mutex::default() })
    }

    /// A buffer of full length with anything in it.
    pub(super) fn take(self: &Arc<Self>) -> Frame {
        let free = self.free.lock().pop();
        let bytes = free.unwrap_or_else(|| vec![0; self.frame_bytes].into_boxed_slice());
        Frame { len: bytes.len(), bytes, home: Some(self.clone()) }
    }
}

impl Frame {
    /// Shortens what it shows to `len` bytes. What it takes in memory stays the same.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The same content in a buffer of its length, if that takes less than half of the memory.
    pub(super) fn fitted(self) -> Self {
        if self.len > self.bytes.len() / 2 {
            return self;
        }
        Self { bytes: self[..].into(), len: self.len, home: None }
    }

    /// Bytes that it takes in memory.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let Some(home) = &self.home else { return };
        let bytes = std::mem::take(&mut self.bytes);
        let mut free = home.free.lock();
        if free.len() < home.max_free {
            free.push(bytes);
        }
    }
}
