//! Namespaces other than those of users, mounts and processes: unshared, and made usable.

#![expect(unsafe_code, reason = "a network device is switched on by ioctl")]

use crate::plan::Namespaces;
use anyhow::Context;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

nix::ioctl_read_bad!(
    /// Reads the flags of the device that the request names.
    read_flags,
    libc::SIOCGIFFLAGS,
    libc::ifreq
);
nix::ioctl_write_ptr_bad!(
    /// Sets the flags of the device that the request names.
    set_flags,
    libc::SIOCSIFFLAGS,
    libc::ifreq
);

/// Leaves the host's namespaces as far as `wanted` says.
pub(super) fn separate(wanted: &Namespaces) -> anyhow::Result<()> {
    let kinds = [
        (wanted.ipc, CloneFlags::CLONE_NEWIPC, "an IPC"),
        (wanted.uts, CloneFlags::CLONE_NEWUTS, "a UTS"),
        (wanted.network, CloneFlags::CLONE_NEWNET, "a network"),
    ];
    for (_, kind, name) in kinds.into_iter().filter(|(wanted, ..)| *wanted) {
        unshare(kind).with_context(|| format!("cannot make {name} namespace"))?;
    }
    if let Some(name) = &wanted.hostname {
        sethostname(name).with_context(|| format!("cannot set the host name {name}"))?;
    }
    if wanted.network {
        switch_loopback_on().context("cannot switch the loopback device on")?;
    }
    Ok(())
}

fn switch_loopback_on() -> io::Result<()> {
    let socket: OwnedFd = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: the structure is numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = byte.cast_signed();
    }
    // SAFETY: the request is a whole `ifreq` with a name that ends, and the kernel fills its flags in.
    unsafe { read_flags(socket.as_raw_fd(), &raw mut request)? };
    // SAFETY: the flags are what the kernel has just filled in.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: the request is a whole `ifreq`.
    unsafe { set_flags(socket.as_raw_fd(), &raw const request)? };
    Ok(())
}
