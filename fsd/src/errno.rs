//! The error number that the kernel is given for each failed operation: one exhaustive match.

use crate::fs::Error;
use nix::libc;

/// The `errno` value for `error`.
pub fn errno(error: &Error) -> i32 {
    match error {
        Error::View(error) => error.errno(),
        Error::ReadOnly => libc::EROFS,
        // The kernel only sends handles that it was given: one that is unknown here was released twice.
        Error::BadHandle => libc::EBADF,
        Error::NoAttribute => libc::ENODATA,
        Error::TooLarge => libc::ERANGE,
        Error::NotPermitted => libc::EPERM,
        Error::Invalid => libc::EINVAL,
    }
}

/// Whether `errno` says that something is broken, as opposed to a caller having asked for what is not there.
pub fn is_failure(errno: i32) -> bool {
    matches!(errno, libc::EIO | libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ESTALE)
}
