//! The daemon that mounts an image: where bytes come from, the filesystem made of them, and its FUSE adaptor.
//!
//! Bytes of a remote image come up through [`source`], [`cache`] and [`blob`], in this order; a local image needs none
//! of the three.

pub mod blob;
pub mod cache;
pub mod source;
