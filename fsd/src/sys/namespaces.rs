//! User and mount namespaces of the calling process.

use super::processes;
use super::subordinate_ids::SubordinateIds;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Namespaces of a container, in the order in which they are joined: that of users gives the right to the others.
const JOINED: [(&str, CloneFlags); 6] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

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
    follow_host_mounts().map_err(forbidden_there)
}

/// The ids that a namespace got in which the caller is root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapped {
    /// All that were asked for.
    All,
    /// The caller's alone, as root.
    RootAlone {
        /// Why there are no others.
        reason: String,
    },
}

/// Makes a user namespace in which the caller, `uid` and `gid` outside, is root, and the numbers from 1 on are `others`
/// as far as the host lets them be mapped; and a mount namespace below it that still sees what the host mounts later.
/// The process must have one thread.
///
/// # Errors
/// [`Error::Forbidden`] with what to change on the host; [`Error::Step`].
pub fn enter_user_namespace_as_root(uid: u32, gid: u32, others: &SubordinateIds) -> Result<Mapped, Error> {
    let fork = |source| Error::Step { step: "fork", source };
    // The map has to be written from outside, by a process that was there before.
    let (own_pid, ids) = (std::process::id(), others.clone());
    let mapper = match others.is_empty() {
        true => None,
        false => Some(processes::stand_by(move |(): ()| ids.map_into(own_pid, uid, gid)).map_err(fork)?),
    };
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|errno| forbidden(errno.into()))?;
    let mapped = match mapper.map(|mapper| mapper.act(&())) {
        Some(Ok(())) => Mapped::All,
        Some(Err(reason)) => Mapped::RootAlone { reason },
        None => Mapped::RootAlone { reason: "there are no subordinate ids".to_owned() },
    };
    if let Mapped::RootAlone { reason } = &mapped {
        map_root_alone(uid, gid).map_err(|error| half_mapped(error, reason))?;
    }
    follow_host_mounts().map_err(forbidden_there)?;
    Ok(mapped)
}

fn map_root_alone(uid: u32, gid: u32) -> Result<(), Error> {
    write_map("/proc/self/setgroups", "deny")?;
    write_map("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write_map("/proc/self/gid_map", &format!("0 {gid} 1"))
}

/// A map is written once: after one kind of ids was mapped and the other refused, what was refused is what matters.
fn half_mapped(error: Error, reason: &str) -> Error {
    match error {
        Error::Step { step, source } => Error::Step { step, source: io::Error::other(format!("{source}; {reason}")) },
        other => other,
    }
}

/// How many user and group ids exist in this namespace, counted from 0 on without a gap.
///
/// # Errors
/// If the maps cannot be read.
pub fn ids_from_zero() -> io::Result<(u32, u32)> {
    let count = |path| Ok::<_, io::Error>(count_from_zero(&fs::read_to_string(path)?));
    Ok((count("/proc/self/uid_map")?, count("/proc/self/gid_map")?))
}

/// Lines of a first number inside, a first id outside, and how many.
fn count_from_zero(map: &str) -> u32 {
    let range = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        Some((fields.next()?.ok()?, fields.nth(1)?.ok()?))
    };
    let mut ranges: Vec<_> = map.lines().filter_map(range).collect();
    ranges.sort_unstable();
    let adjacent =
        |end: u32, (first, count): &(u32, u32)| if *first <= end { end.max(first.saturating_add(*count)) } else { end };
    ranges.iter().fold(0, adjacent)
}

/// What the user id `uid` of this user namespace is called in the one above it.
///
/// # Errors
/// If the map cannot be read.
pub fn outer_uid(uid: u32) -> io::Result<u32> {
    let map = fs::read_to_string("/proc/self/uid_map")?;
    let outer = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        let (first, outer, count) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
        (first..first.saturating_add(count)).contains(&uid).then(|| outer.saturating_add(uid - first))
    };
    Ok(map.lines().find_map(outer).unwrap_or(uid))
}

/// What tells the user, mount and process namespaces of this process from others that exist now. Processes with the same
/// name the same files and processes in the same way.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn identity() -> io::Result<Vec<std::path::PathBuf>> {
    ["user", "mnt", "pid"].into_iter().map(|kind| fs::read_link(format!("/proc/self/ns/{kind}"))).collect()
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

/// Joins all namespaces of the process that `pidfd` and `pid` name, as far as they are others than ours. Children of
/// this process are in its PID namespace then, and the working directory is the root. The process must have one thread.
///
/// # Errors
/// [`Error::Step`].
pub fn join_all(pidfd: BorrowedFd<'_>, pid: i32) -> Result<(), Error> {
    let failed = |source| Error::Step { step: "join the namespaces of the instance", source };
    let mut others = Vec::new();
    for (name, flag) in JOINED {
        let theirs = format!("/proc/{pid}/ns/{name}");
        if fs::read_link(format!("/proc/self/ns/{name}")).ok() != Some(fs::read_link(&theirs).map_err(failed)?) {
            others.push((File::open(&theirs).map_err(failed)?, flag));
        }
    }
    let flags = others.iter().fold(CloneFlags::empty(), |flags, (_, flag)| flags | *flag);
    match setns(pidfd, flags) {
        // Kernels before 5.8 know namespaces by their files only, which are open: after the first, /proc may be another.
        Err(nix::errno::Errno::EINVAL) => others.into_iter().try_for_each(|(file, flag)| setns(file, flag)),
        joined => joined,
    }
    .map_err(|errno| failed(errno.into()))
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

/// AppArmor, as Ubuntu sets it, allows a user namespace and then nothing that it is for.
fn forbidden_there(error: Error) -> Error {
    match error {
        Error::Step { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => forbidden(source),
        other => other,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_counted_from_zero_to_the_first_gap() {
        let cases = [
            ("         0          0 4294967295\n", u32::MAX),
            ("         0       1500          1\n", 1),
            ("         0       1500          1\n         1     100000      65536\n", 65537),
            ("1 100000 65536\n0 1500 1\n", 65537),
            ("0 1500 1\n5 100000 10\n", 1),
            ("1500 1500 1\n", 0),
            ("", 0),
        ];
        for (map, expected) in cases {
            assert_eq!(count_from_zero(map), expected, "{map}");
        }
    }
}
