//! User and mount namespaces of the calling process.

use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// A namespace could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host does not let this user make user namespaces.
    #[error(
        "this host does not allow user namespaces for unprivileged users ({source}); its administrator can allow \
         them: {}", .settings.join(", ")
    )]
    Forbidden {
        /// The settings found on this host that forbid it.
        settings: Vec<&'static str>,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot {step}")]
    Step {
        /// What was attempted.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Makes a user namespace in which the caller keeps its ids and has every capability, and a mount namespace below it
/// that still sees what the host mounts later. The process must have one thread.
///
/// # Errors
/// [`Error::Forbidden`] with what to change on the host; [`Error::Step`].
pub fn enter_own_user_namespace(uid: u32, gid: u32) -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|errno| forbidden(errno.into()))?;
    // Without this the kernel refuses a group map to an unprivileged process.
    write_map("/proc/self/setgroups", "deny")?;
    write_map("/proc/self/uid_map", &format!("{uid} {uid} 1"))?;
    write_map("/proc/self/gid_map", &format!("{gid} {gid} 1"))?;
    // AppArmor, as Ubuntu sets it, allows the namespace and then nothing that it is for.
    follow_host_mounts().map_err(|error| match error {
        Error::Step { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => forbidden(source),
        other => other,
    })
}

/// Makes a mount namespace that still sees what the host mounts later. Needs real root.
///
/// # Errors
/// [`Error::Step`].
pub fn enter_own_mount_namespace() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Error::Step { step: "make a mount namespace", source: errno.into() })?;
    follow_host_mounts()
}

/// Joins the mount namespace of the process that `pidfd` and `pid` name, and its user namespace if it is another than
/// ours. The process must have one thread.
///
/// # Errors
/// [`Error::Step`].
pub fn join(pidfd: BorrowedFd<'_>, pid: i32) -> Result<(), Error> {
    let own_user =
        same_user_namespace(pid).map_err(|source| Error::Step { step: "compare user namespaces", source })?;
    let user = if own_user { CloneFlags::empty() } else { CloneFlags::CLONE_NEWUSER };
    let working_directory = File::open(".").ok();
    let joined = match setns(pidfd, user | CloneFlags::CLONE_NEWNS) {
        // Kernels before 5.8 know namespaces by their files only.
        Err(nix::errno::Errno::EINVAL) => join_by_files(pid, own_user),
        other => other.map_err(io::Error::from),
    };
    joined.map_err(|source| Error::Step { step: "join the namespaces of the daemon", source })?;
    // Joining a mount namespace moves the working directory to its root.
    if let Some(directory) = working_directory {
        let _ = nix::unistd::fchdir(directory.as_fd());
    }
    Ok(())
}

fn join_by_files(pid: i32, own_user: bool) -> io::Result<()> {
    let user = (!own_user).then(|| File::open(format!("/proc/{pid}/ns/user"))).transpose()?;
    let mount = File::open(format!("/proc/{pid}/ns/mnt"))?;
    if let Some(user) = user {
        setns(user, CloneFlags::CLONE_NEWUSER)?;
    }
    Ok(setns(mount, CloneFlags::CLONE_NEWNS)?)
}

fn same_user_namespace(pid: i32) -> io::Result<bool> {
    Ok(fs::read_link("/proc/self/ns/user")? == fs::read_link(format!("/proc/{pid}/ns/user"))?)
}

fn follow_host_mounts() -> Result<(), Error> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|errno| Error::Step { step: "detach the mounts from those of the host", source: errno.into() })
}

fn write_map(path: &'static str, line: &str) -> Result<(), Error> {
    fs::write(path, line).map_err(|source| Error::Step { step: "map the caller's ids into a user namespace", source })
}

/// The kernel says `EPERM` or `ENOSPC` whichever setting is in the way: this names those that are.
fn forbidden(source: io::Error) -> Error {
    let is_set = |path: &str, wrong: &str| fs::read_to_string(path).is_ok_and(|value| value.trim() == wrong);
    let checks = [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=28633"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for this program",
        ),
    ];
    let mut settings: Vec<_> =
        checks.iter().filter(|(path, wrong, _)| is_set(path, wrong)).map(|(_, _, fix)| *fix).collect();
    if settings.is_empty() {
        settings.push("a seccomp profile or security module may forbid unshare(2), as container engines do by default");
    }
    Error::Forbidden { settings, source }
}
