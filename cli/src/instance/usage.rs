//! What the processes of an instance use.
//!
//! Where a cgroup holds the instance and nothing else, as one of `systemd-run --user --scope` does, the kernel counts.
//! Else the processes that live are counted one by one, with the time of those that their first one has reaped.

use super::Process;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the unified hierarchy is mounted (cgroups(7)).
const CGROUPS: &str = "/sys/fs/cgroup";
/// The unit of processor times in `/proc`: `USER_HZ`, 100 on every architecture that siphon is built for.
const TICK_NANOS: u64 = 10_000_000;

/// What an instance has used since it started, and uses now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Who counted.
    pub source: Source,
    /// Processor time.
    pub cpu_nanos: u64,
    /// Memory now.
    pub memory_bytes: u64,
    /// Memory that there may be at most: the cgroup's, or the machine's.
    pub memory_limit_bytes: u64,
    /// Bytes read from disks; of a cgroup without that counter, none.
    pub read_bytes: u64,
    /// Bytes written to disks.
    pub written_bytes: u64,
    /// Processes now.
    pub processes: u64,
}

/// Who counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The kernel, for the cgroup.
    Cgroup,
    /// We, from `/proc`.
    Proc,
}

/// What the instance with this first process uses.
///
/// # Errors
/// `NotFound` if it has ended.
pub fn usage(first: &Process) -> io::Result<Usage> {
    let members = members(first)?;
    let cgroup = own_cgroup(first, &members).and_then(|path| of_cgroup(&path));
    Ok(cgroup.unwrap_or_else(|| of_processes(first, &members)))
}

/// The processes of the PID namespace.
fn members(first: &Process) -> io::Result<BTreeSet<i32>> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid"));
    let own = namespace(first.pid)?;
    let all = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // One that ends meanwhile has no namespace any more.
    Ok(all.filter(|pid| namespace(*pid).is_ok_and(|found| found == own)).collect())
}

fn of_processes(first: &Process, members: &BTreeSet<i32>) -> Usage {
    let mut usage = Usage {
        source: Source::Proc,
        cpu_nanos: 0,
        memory_bytes: 0,
        memory_limit_bytes: machine_memory(),
        read_bytes: 0,
        written_bytes: 0,
        processes: members.len() as u64,
    };
    for pid in members {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        // utime and stime, and of the first process those of the children that it reaped (proc_pid_stat(5)).
        let fields = if *pid == first.pid { 11..15 } else { 11..13 };
        let stat = read("stat");
        let times = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(fields.start).take(fields.len());
        usage.cpu_nanos += times.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * TICK_NANOS;
        // What several processes share counts once.
        usage.memory_bytes += number_after(&read("smaps_rollup"), "Pss:").unwrap_or(0) * 1024;
        let io = read("io");
        usage.read_bytes += number_after(&io, "read_bytes:").unwrap_or(0);
        usage.written_bytes += number_after(&io, "write_bytes:").unwrap_or(0);
    }
    usage
}

/// The cgroup of the instance, if nobody else is in it or below it: the process that keeps it belongs to it.
fn own_cgroup(first: &Process, members: &BTreeSet<i32>) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", first.pid)).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).filter(|path| !path.is_empty())?;
    let cgroup = Path::new(CGROUPS).join(path);
    let status = fs::read_to_string(format!("/proc/{}/status", first.pid)).ok()?;
    let keeper = number_after(&status, "PPid:").and_then(|pid| i32::try_from(pid).ok())?;
    let inside = processes_below(&cgroup)?;
    inside.iter().all(|pid| *pid == keeper || members.contains(pid)).then_some(cgroup)
}

fn processes_below(cgroup: &Path) -> Option<Vec<i32>> {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs")).ok()?;
    let mut found: Vec<i32> = listed.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).ok()?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        found.extend(processes_below(&entry.path())?);
    }
    Some(found)
}

/// `None` if the memory of the cgroup is not counted.
fn of_cgroup(cgroup: &Path) -> Option<Usage> {
    let read = |name: &str| fs::read_to_string(cgroup.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let disks = read("io.stat").unwrap_or_default();
    let total = |key: &str| -> u64 {
        let words = disks.split_whitespace();
        words.filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse::<u64>().ok()).sum()
    };
    Some(Usage {
        source: Source::Cgroup,
        cpu_nanos: number_after(&read("cpu.stat")?, "usage_usec")? * 1000,
        memory_bytes: number("memory.current")?,
        memory_limit_bytes: number("memory.max").unwrap_or_else(machine_memory),
        read_bytes: total("rbytes"),
        written_bytes: total("wbytes"),
        processes: number("pids.current")?,
    })
}

fn machine_memory() -> u64 {
    let table = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    number_after(&table, "MemTotal:").unwrap_or(0) * 1024
}

/// The first number behind `name` where that begins a line.
fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_read_as_the_kernel_writes_it() {
        let directory = tempfile::tempdir().unwrap();
        let files = [
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "8192\n"),
            ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2 rios=1\n"),
            ("pids.current", "3\n"),
        ];
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }

        let usage = of_cgroup(directory.path()).unwrap();

        let expected = Usage {
            source: Source::Cgroup,
            cpu_nanos: 1_500_000,
            memory_bytes: 4096,
            memory_limit_bytes: 8192,
            read_bytes: 11,
            written_bytes: 22,
            processes: 3,
        };
        assert_eq!(usage, expected);
        fs::remove_file(directory.path().join("memory.current")).unwrap();
        assert_eq!(of_cgroup(directory.path()), None);
    }

    #[test]
    fn a_cgroup_with_others_in_it_is_not_the_instances() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("below")).unwrap();
        fs::write(directory.path().join("cgroup.procs"), "1\n2\n").unwrap();
        fs::write(directory.path().join("below/cgroup.procs"), "3\n").unwrap();

        assert_eq!(processes_below(directory.path()), Some(vec![1, 2, 3]));
    }

    #[test]
    fn living_processes_are_counted() {
        let own = Process::of(std::process::id().try_into().unwrap()).unwrap();

        let usage = of_processes(&own, &BTreeSet::from([own.pid]));

        assert_eq!(usage.processes, 1);
        assert!(usage.memory_bytes > 0 && usage.memory_limit_bytes > usage.memory_bytes);
    }
}
