//! Squashfs 4.0: a reader that is a [`crate::tree::Tree`], and a parallel writer.

pub mod format;
pub mod reader;
pub mod writer;
