//! What is told of a failed operation: to the kernel a number, by one exhaustive match, and to people a line.

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

/// The error and what caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
