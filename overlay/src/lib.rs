//! A copy-on-write layer over a read-only file tree.
//!
//! [`upper::Upper`] is the writable directory in the on-disk form of the kernel's overlayfs; [`view::View`] merges it
//! with a [`siphon_image::tree::Tree`] below, which may be a [`stack::Stack`] of read-only layers; [`diff`] tells what a
//! layer changes. Nothing here touches the network, FUSE, the environment or a clock.
//!
//! ```text
//! upper  <-  copy_up  <-  view  <-  stack, diff
//! ```

#![forbid(unsafe_code)]

mod copy_up;
pub mod diff;
pub mod error;
pub mod stack;
pub mod upper;
pub mod view;
