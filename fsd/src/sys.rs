//! What is asked of the kernel directly: processes, namespaces, mounts. The only place where `unsafe` is allowed.

pub mod mounts;
pub mod namespaces;
pub mod processes;
