//! The directories that siphon writes to: whether it can, on what kind of filesystem, and how much room there is.

use super::check::Check;
use crate::host::{cache_dir, runtime_dir};
use crate::report::human_bytes;
use crate::settings::{Common, Environment};
use rustix::fs::{Access, access, statfs, statvfs};
use std::path::{Path, PathBuf};

/// Below this a filesystem fills up with the first remote image or build.
const LITTLE_BYTES: u64 = 1 << 30;

/// Filesystems by the number that `statfs(2)` gives, and whether they lie behind a network.
const FILE_SYSTEMS: [(u32, &str, bool); 20] = [
    (0xef53, "ext4", false),
    (0x5846_5342, "xfs", false),
    (0x9123_683e, "btrfs", false),
    (0x2fc1_2fc1, "zfs", false),
    (0xf2f5_2010, "f2fs", false),
    (0x0102_1994, "tmpfs", false),
    (0x8584_58f6, "ramfs", false),
    (0x794c_7630, "overlayfs", false),
    (0x6573_5546, "a FUSE filesystem", false),
    (0x6969, "NFS", true),
    (0x0bd0_0bd0, "Lustre", true),
    (0x4750_4653, "GPFS", true),
    (0x1983_0326, "BeeGFS", true),
    (0xaad7_aaea, "PanFS", true),
    (0x00c3_6400, "CephFS", true),
    (0xff53_4d42, "CIFS", true),
    (0xfe53_4d42, "SMB", true),
    (0x5346_414f, "AFS", true),
    (0x6b41_4653, "AFS", true),
    (0x0102_1997, "9p", true),
];

pub(super) fn checks(common: &Common, environment: &Environment) -> Vec<Check> {
    let temporary = environment.get("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let directories = [
        ("cache", cache_dir(common), "SIPHON_CACHEDIR"),
        ("runtime directory", runtime_dir(common), "SIPHON_RUNTIME_DIR"),
        ("temporary files", temporary, "TMPDIR"),
    ];
    let sockets = |name: &str| name == "runtime directory";
    directories.into_iter().map(|(name, path, variable)| look(name, &path, variable, !sockets(name))).collect()
}

fn look(name: &str, path: &Path, variable: &str, fills: bool) -> Check {
    let elsewhere = format!("set {variable} to a directory on a local disk");
    // What does not exist is made when it is needed, where its parent allows it.
    let Some(existing) = path.ancestors().find(|ancestor| ancestor.exists()) else {
        return Check::missing(name, format!("{} is no absolute path", path.display()), elsewhere);
    };
    if let Err(error) = access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        return Check::missing(name, format!("{} cannot be written to: {error}", existing.display()), elsewhere);
    }
    let (Ok(kind), Ok(space)) = (statfs(existing), statvfs(existing)) else {
        return Check::missing(name, format!("{} says nothing of its filesystem", existing.display()), elsewhere);
    };
    // The kernel's numbers have 32 bits, in a field that is wider or signed on some machines.
    let number = u32::try_from(kind.f_type as u64 & u64::from(u32::MAX)).unwrap_or_default();
    judge(name, path, number, space.f_bavail.saturating_mul(space.f_frsize), fills, elsewhere)
}

fn judge(name: &str, path: &Path, number: u32, free_bytes: u64, fills: bool, elsewhere: String) -> Check {
    let known = FILE_SYSTEMS.iter().find(|(known, ..)| *known == number);
    let (kind, is_remote) =
        known.map_or(("a filesystem that siphon does not know", false), |(_, kind, far)| (kind, *far));
    let detail = format!("{} on {kind}, {} free", path.display(), human_bytes(free_bytes));
    if is_remote {
        return Check::slow(name, format!("{detail}; every access crosses the network"), elsewhere);
    }
    if fills && free_bytes < LITTLE_BYTES {
        return Check::slow(name, format!("{detail}; that is soon full"), elsewhere);
    }
    Check::ok(name, detail)
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::*;

    #[test]
    fn a_directory_is_judged_by_its_filesystem_and_its_room() {
        let gib = 1 << 30;
        for (number, free, fills, expected) in [
            (0xef53, 5 * gib, true, State::Ok),
            (0x6969, 5 * gib, true, State::Slow),
            (0x0102_1994, gib / 2, true, State::Slow),
            (0x0102_1994, gib / 2, false, State::Ok),
            (0x1234, 5 * gib, true, State::Ok),
        ] {
            let check = judge("cache", Path::new("/c"), number, free, fills, "elsewhere".into());

            assert_eq!(check.state, expected, "{number:#x} with {free} bytes: {check:?}");
        }
    }
}
