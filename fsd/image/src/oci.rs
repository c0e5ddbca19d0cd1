//! OCI images: configurations, and where the blobs that they are made of come from.

pub mod archive;
pub mod blobs;
pub mod config;
pub mod layers;
pub mod layout;
pub mod select;
pub mod lazy;

pub use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest, MediaType};
