//! A filter of system calls with a listener, as container engines have it.

#![expect(unsafe_code, reason = "seccomp has no safe interface, and neither has what is done before exec")]

use nix::libc;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the command start with a filter that allows everything, and with its listener open.
pub(crate) fn install(command: &mut Command) {
    // SAFETY: what is called makes system calls alone, and takes no memory.
    unsafe { command.pre_exec(filter) };
}

fn filter() -> io::Result<()> {
    let mut allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let program = libc::sock_fprog { len: 1, filter: &raw mut allow };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: numbers, and a program that lives until the kernel has copied it.
    let listener = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    let listener = i32::try_from(listener).map_err(io::Error::other)?;
    // SAFETY: numbers.
    match unsafe { libc::fcntl(listener, libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
