//! What is asked of the kernel directly: processes, namespaces, mounts, system call filters. The only place where
//! `unsafe` is allowed.

pub mod descriptors;
pub mod ext;
pub mod fuse_device;
pub mod loop_device;
pub mod mounts;
pub mod namespaces;
pub mod processes;
pub mod seccomp;
pub mod subordinate_ids;
