//! Layers of OCI images read where they are: an index says where each file lies, and only what is read is decoded.
//!
//! ```text
//! a layer's bytes (ReadAt) + annotations
//!   eStargz, zstd:chunked   its own table of contents      -> entries, chunks         estargz, zstd_chunked
//!   gzip                    checkpoints made in one pass   -> entries, a ReadAt       gzip, or a zTOC of the registry
//!   tar                     headers read one by one        -> entries, the bytes      tar
//!   zstd                    streamed once into frames      -> entries, a ReadAt       seekable
//!
//! entries of each layer, lowest first -> Merge -> LayeredTree                         merge, tree
//! ```
//!
//! An index is either of chunks, compressed ranges with the digest of what they hold, or of offsets in the uncompressed
//! tar, which a [`ReadAt`](crate::read_at::ReadAt) gives that decompresses what is asked for. Decoded chunks and spans of all layers of an image share
//! one [`Decoded`], bounded in bytes.
//!
//! Not here: fetching, caching on disk, and which index a registry has for a layer.

pub mod decoded;
pub mod error;
pub mod estargz;
pub mod gzip;
pub mod index;
pub mod merge;
pub mod saved;
pub mod seekable;
pub mod tar;
mod toc;
pub mod tree;
pub mod zstd_chunked;
pub mod ztoc;

pub use decoded::Decoded;
pub use error::Error;
pub use index::LayerIndex;
pub use merge::{Layer, Merge};
pub use toc::{Toc, sha256};
pub use tree::LayeredTree;
