//! OCI images: configurations, and where the blobs that they are made of come from.

pub mod blobs;
pub mod config;
pub mod platform;

pub use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest, MediaType};
