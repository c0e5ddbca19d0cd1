//! Further descriptors of a FUSE connection, and threads that have nothing else open.

#![expect(unsafe_code, reason = "neither nix nor rustix has these two calls as safe functions")]

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `FUSE_DEV_IOC_CLONE` of `linux/fuse.h`.
const CLONE: libc::Ioctl = 0x8004_e500_u32 as libc::Ioctl;

/// A further device of the connection that `device` is one of.
///
/// # Errors
/// If `/dev/fuse` cannot be opened, or `device` is none that is mounted.
pub fn clone(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let further = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let of = device.as_raw_fd();
    // SAFETY: the kernel reads four bytes at the address, which those of `of` are until the call returns.
    if unsafe { libc::ioctl(further.as_raw_fd(), CLONE, &raw const of) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(further.into())
}

/// Gives the calling thread descriptors of its own, of which only the first three and `kept` stay open, and returns that one. From
/// then on it can use nothing else that others have opened or will open, and nothing that it closes is closed for them: who opened
/// `kept` keeps it open until this returns, and closes it then.
///
/// # Errors
/// If the kernel is too old (5.9) or has no memory. Then nothing is the thread's own.
pub fn keep_only(kept: RawFd) -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_FILES)?;
    // SAFETY: the descriptors are this thread's alone, and nothing here owns this one yet.
    let own = unsafe { OwnedFd::from_raw_fd(kept) };
    let kept = kept.cast_unsigned();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept + 1, u32::MAX)] {
        // SAFETY: what is closed are this thread's own copies, which no owner in this process stands for.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(own)
}
