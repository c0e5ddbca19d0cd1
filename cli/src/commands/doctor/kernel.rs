//! What the kernel lets this user do. It is tried, since versions and settings do not tell: security modules allow a
//! namespace and then forbid what it is for.

use super::check::Check;
use nix::unistd::{getegid, geteuid};
use siphon_fsd::daemon::try_kernel;
use siphon_fsd::sys::mounts::{Error as MountError, FuseMount, memory_directory};
use siphon_fsd::sys::namespaces::{self, Error as NamespaceError};
use std::io::ErrorKind;
use std::path::Path;

const NAMESPACES: &str = "namespaces";
const FUSE: &str = "FUSE";
const MEMORY: &str = "tmpfs";
const OVERLAY: &str = "overlayfs";

/// Makes namespaces and mounts in them. This process stays there.
pub(super) fn checks() -> Vec<Check> {
    let place = match tempfile::tempdir() {
        Ok(place) => place,
        Err(error) => {
            let detail = format!("cannot make a directory to mount on: {error}");
            return vec![Check::missing(NAMESPACES, detail, "set TMPDIR to a directory that you can write to")];
        }
    };
    let (uid, gid) = (geteuid(), getegid());
    let entered = match uid.is_root() {
        true => namespaces::enter_own_mount_namespace(),
        false => namespaces::enter_own_user_namespace(uid.as_raw(), gid.as_raw()),
    };
    let own = if uid.is_root() { "a mount namespace" } else { "user and mount namespaces without privileges" };
    match entered {
        Ok(()) => {
            let mut found = vec![Check::ok(NAMESPACES, format!("{own} can be made"))];
            let target = place.path();
            let fuse = FuseMount { source: "siphon-doctor", target, read_only: true, setuid: false, devices: false };
            found.push(fuse_check(fuse.mount(uid.as_raw(), gid.as_raw()).map(drop), place.path()));
            // A FUSE mount that nobody serves any more ends with its descriptor; the namespace, and all that is mounted
            // in it, ends with this process.
            let unmounted = rustix::mount::unmount(place.path(), rustix::mount::UnmountFlags::DETACH);
            tracing::debug!("unmounting the trial: {unmounted:?}");
            found.push(memory_check(memory_directory(place.path(), None).map(drop)));
            found.push(overlay_check(try_kernel(place.path()), place.path()));
            found
        }
        Err(error) => vec![namespace_check(&error), device_check()],
    }
}

fn namespace_check(error: &NamespaceError) -> Check {
    match error {
        NamespaceError::Forbidden { settings, source } => {
            let detail = format!("not allowed to users without privileges ({source})");
            Check::missing(NAMESPACES, detail, format!("as root: {}", settings.join(", ")))
        }
        NamespaceError::Step { step, source } => {
            Check::missing(NAMESPACES, format!("cannot {step}: {source}"), "ask the administrator of this machine")
        }
    }
}

fn fuse_check(mounted: Result<(), MountError>, place: &Path) -> Check {
    match mounted {
        Ok(()) => Check::ok(FUSE, "/dev/fuse is open to this user, and mounts"),
        Err(MountError::Device(source)) => no_device(source.kind(), &source.to_string()),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let detail = format!("a mount on {} is refused: {cause}", place.display());
            Check::missing(FUSE, detail, "let the container engine or security module around this allow mount(2)")
        }
    }
}

/// Where mounting cannot be tried, at least the device can be opened.
fn device_check() -> Check {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Check::ok(FUSE, "/dev/fuse is open to this user; mounting could not be tried"),
        Err(error) => no_device(error.kind(), &error.to_string()),
    }
}

fn no_device(kind: ErrorKind, message: &str) -> Check {
    let mend = match kind {
        ErrorKind::PermissionDenied => "as root: chmod 666 /dev/fuse",
        _ => "as root: modprobe fuse; in a container: start it with --device /dev/fuse",
    };
    Check::missing(FUSE, format!("/dev/fuse cannot be opened: {message}"), mend)
}

fn memory_check(mounted: Result<(), MountError>) -> Check {
    match mounted {
        Ok(()) => Check::ok(MEMORY, "filesystems in memory can be mounted"),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let mend = "let the container engine or security module around this allow mount(2)";
            Check::missing(MEMORY, format!("a mount is refused: {cause}"), mend)
        }
    }
}

/// Nothing is missing without it: what is written is then merged by this program.
fn overlay_check(tried: Result<(), String>, place: &Path) -> Check {
    let filesystem = place.parent().unwrap_or(place).display();
    match tried {
        Ok(()) => Check::ok(OVERLAY, format!("works over FUSE with layers on the filesystem of {filesystem}")),
        Err(reason) => {
            let detail = format!("not used for layers on the filesystem of {filesystem}: {reason}");
            Check::slow(
                OVERLAY,
                detail,
                "what runs write goes through FUSE; with Linux 5.11 and extended attributes it need not",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_namespaces_is_named_with_what_mends_it() {
        let settings = vec!["sysctl user.max_user_namespaces=28633"];
        let source = std::io::Error::from_raw_os_error(nix::libc::ENOSPC);

        let check = namespace_check(&NamespaceError::Forbidden { settings, source });

        assert_eq!(check.mend.as_deref(), Some("as root: sysctl user.max_user_namespaces=28633"));
    }

    #[test]
    fn a_missing_device_and_a_closed_one_are_mended_differently() {
        let mend =
            |kind| fuse_check(Err(MountError::Device(std::io::Error::from(kind))), Path::new("/x")).mend.unwrap();

        assert!(mend(ErrorKind::NotFound).contains("modprobe fuse"));
        assert!(mend(ErrorKind::PermissionDenied).contains("chmod 666 /dev/fuse"));
    }
}
