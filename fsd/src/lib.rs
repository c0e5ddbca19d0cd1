//! Serves a container image as a filesystem: where it comes from, how it is mounted, and the process that does it.
//!
//! ```text
//! credentials, stream <- source
//! source <- cache <- blob <- locator <- layers <- daemon <- (command line)
//!           storage, memory <-'                      |
//!        storage <- metrics <- fs <- fuse <-----------'
//!          sys <- control, identity  <------------------'
//! ```

pub mod blob;
pub mod cache;
pub mod control;
pub mod credentials;
pub mod daemon;
pub mod errno;
pub mod fs;
pub mod fuse;
pub mod identity;
pub mod layered;
pub mod layers;
pub mod local;
pub mod locator;
pub mod memory;
pub mod metrics;
pub mod oci;
pub mod oras;
pub mod pin;
pub mod prefetch;
pub mod source;
pub mod storage;
pub mod stream;
pub mod sys;
