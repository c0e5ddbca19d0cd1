//! OCI images: configurations, and where the blobs that they are made of come from, and layers made of trees.

pub mod archive;
pub mod base;
pub mod blobs;
pub mod config;
pub mod layers;
pub mod layout;
pub mod lazy;
pub mod own;
pub mod pack;
pub mod select;
mod time;

pub use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest, MediaType};
