//! Container image formats as read-only file trees.
//!
//! Bytes enter through [`read_at::ReadAt`] only and leave as a [`tree::Tree`]. Nothing here touches the network, FUSE,
//! the environment or a clock, and any byte sequence gives an error or a tree: images are hostile input.
//!
//! ```text
//! read_at, tree, cache  <-  squashfs, sif, directory, oci  <-  open
//! tree, elf, ld_cache  <-  libraries
//! ```

#![forbid(unsafe_code)]

mod cache;
pub mod digest;
pub mod directory;
pub mod elf;
pub mod ext;
pub mod ld_cache;
pub mod libraries;
pub mod loading;
pub mod oci;
pub mod open;
pub mod path;
pub mod read_at;
pub mod reference;
pub mod sif;
pub mod squashfs;
pub mod tree;
