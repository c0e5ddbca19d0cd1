//! How much memory this process may use, and how much of it the decoded blocks of an image may take.
//!
//! A batch job or a container has less than the machine: its cgroup, or one above it, has a limit. Both versions of
//! cgroups are looked at where every system mounts them, below `/sys/fs/cgroup`, since a hybrid system has both.

use std::fs::read_to_string;
use std::path::Path;

/// The share of the memory that the decoded blocks of one image may take: a user may have several mounted.
const SHARE: u64 = 64;
/// Below this, a few readers at once would throw out each other's blocks, which are up to 1 MiB.
const MIN_CACHE_BYTES: u64 = 16 << 20;
/// What is read again is mostly found in the kernel's page cache, so that more of our own helps little.
const MAX_CACHE_BYTES: u64 = 64 << 20;

/// Bytes of decoded blocks to keep if nobody says how many: a 64th of the memory, from 16 to 64 MiB.
pub fn default_cache_bytes() -> u64 {
    cache_bytes(limit_bytes(Path::new("/")))
}

fn cache_bytes(memory_bytes: Option<u64>) -> u64 {
    memory_bytes.map_or(MAX_CACHE_BYTES, |bytes| (bytes / SHARE).clamp(MIN_CACHE_BYTES, MAX_CACHE_BYTES))
}

/// The least of the machine's memory and the limits of this process's cgroups; `None` if the system names none. `root`
/// is the host's `/`.
fn limit_bytes(root: &Path) -> Option<u64> {
    let groups = read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    groups.lines().filter_map(|line| group_limit(root, line)).chain(machine_bytes(root)).min()
}

/// `MemTotal:  24682416 kB`.
fn machine_bytes(root: &Path) -> Option<u64> {
    let text = read_to_string(root.join("proc/meminfo")).ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The least limit from the group of a line `HIERARCHY:CONTROLLERS:PATH` up to the root of its hierarchy. Groups that
/// are not there are passed over: a container sees its own at the root, and may be told of those around it.
fn group_limit(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, group) = (fields.next()?, fields.next()?);
    let (hierarchy, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    // A group without limit says `max`, in version 1 a number above any machine's memory.
    let limit = |group: &Path| read_to_string(root.join(hierarchy).join(group).join(file)).ok()?.trim().parse().ok();
    Path::new(group.trim_start_matches('/')).ancestors().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// What a machine of 8 GiB with these files says.
    fn limit_with(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in [("proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\n")].iter().chain(files) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        limit_bytes(root.path())
    }

    #[test]
    fn the_machines_memory_counts_where_no_group_has_a_limit() {
        let unlimited = [
            ("proc/self/cgroup", "0::/user.slice\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.limit_in_bytes", "1\n"),
        ];
        let unlimited_v1 = [
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];

        assert_eq!(limit_with(&[]), Some(8192 * MIB));
        assert_eq!(limit_with(&unlimited), Some(8192 * MIB));
        assert_eq!(limit_with(&unlimited_v1), Some(8192 * MIB));
        assert_eq!(limit_with(&[("proc/meminfo", "")]), None);
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let group = |own: &'static str, above: &'static str| {
            limit_with(&[
                ("proc/self/cgroup", "0::/job/step\n"),
                ("sys/fs/cgroup/job/step/memory.max", own),
                ("sys/fs/cgroup/job/memory.max", above),
                ("sys/fs/cgroup/other/memory.max", "1048576"),
            ])
        };

        assert_eq!(group("3145728\n", "max\n"), Some(3 * MIB));
        assert_eq!(group("max\n", "3145728\n"), Some(3 * MIB));
        assert_eq!(group("3145728\n", "2097152\n"), Some(2 * MIB));
        assert_eq!(group("99999999999999\n", "max\n"), Some(8192 * MIB));
    }

    #[test]
    fn a_hybrid_system_has_limits_of_either_version() {
        let both = |v1: &'static str, v2: &'static str| {
            limit_with(&[
                ("proc/self/cgroup", "5:cpu,memory:/job\n1:name=systemd:/x\n0::/job\n"),
                ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", v1),
                ("sys/fs/cgroup/job/memory.max", v2),
            ])
        };

        assert_eq!(both("3145728\n", "max\n"), Some(3 * MIB));
        assert_eq!(both("3145728\n", "2097152\n"), Some(2 * MIB));
    }

    #[test]
    fn a_container_that_is_told_of_groups_outside_finds_its_own_at_the_root() {
        let told = [
            ("proc/self/cgroup", "4:memory:/docker/1234\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n"),
        ];

        assert_eq!(limit_with(&told), Some(MIB));
    }

    #[test]
    fn the_cache_is_a_share_of_the_memory_within_bounds() {
        let cases =
            [(Some(0), 16), (Some(512), 16), (Some(2048), 32), (Some(4096), 64), (Some(1 << 40), 64), (None, 64)];

        for (memory_mib, cache_mib) in cases {
            assert_eq!(cache_bytes(memory_mib.map(|mib| mib * MIB)), cache_mib * MIB, "{memory_mib:?}");
        }
    }
}
