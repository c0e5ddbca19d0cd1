//! Limits of processor time, memory, processes and disks: from flags, variables and files, in the words of systemd
//! (systemd.resource-control(5)) and as files of cgroups of either version.
//!
//! An unprivileged process may limit itself only where somebody delegated a cgroup to it, and on a machine that is not a
//! batch system's that is systemd, which has its own words for limits. Where there is none, the files are written.

use super::{Environment, SettingsError, size};
use crate::args::OtherFlags;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// What cgroup v1 takes as a share of processor time, of which 1024 is everybody's (kernel, `MIN_SHARES`, `MAX_SHARES`).
const SHARES: RangeInclusive<u64> = 2..=262_144;
/// What docker and apptainer take as the weight of a disk.
const DISK_WEIGHTS: RangeInclusive<u64> = 10..=1000;
/// Microseconds that a quota of processor time counts for, unless a file says otherwise: the kernel's own.
const PERIOD_MICROS: u64 = 100_000;

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limit {
    /// Microseconds of processor time in so many of time.
    Quota {
        /// Of processor time.
        quota: u64,
        /// Of time.
        period: u64,
    },
    /// A share of processor time, 1024 being the usual one.
    Shares(u64),
    /// Which processors.
    Cpus(String),
    /// Which memory nodes.
    Nodes(String),
    /// Bytes of memory.
    Memory(u64),
    /// Bytes of memory that are kept.
    Reservation(u64),
    /// Bytes of swap, without memory and with it; without a limit if `None`.
    Swap(Option<(u64, u64)>),
    /// How many processes; without a limit if `None`.
    Processes(Option<u64>),
    /// The weight of all disks, 10 to 1000.
    Disks(u64),
    /// The weight of one: a path, or numbers.
    Disk {
        /// `/dev/NAME` or `MAJOR:MINOR`.
        device: String,
        /// From 10 to 1000.
        weight: u64,
    },
    /// A file of cgroup v2 by its own name.
    File(String, String),
}

/// What is written into a file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The controller that has the file.
    pub controller: String,
    /// The file.
    pub file: String,
    /// What is written.
    pub value: String,
}

impl Limit {
    /// As a property of a systemd scope; `None` if it has no such.
    pub fn property(&self) -> Option<String> {
        Some(match self {
            Self::Quota { quota, period } => format!("CPUQuota={}%", percent(*quota, *period)),
            Self::Shares(shares) => format!("CPUWeight={}", weight(*shares, SHARES)),
            Self::Cpus(list) => format!("AllowedCPUs={list}"),
            Self::Nodes(list) => format!("AllowedMemoryNodes={list}"),
            Self::Memory(bytes) => format!("MemoryMax={bytes}"),
            Self::Reservation(bytes) => format!("MemoryLow={bytes}"),
            Self::Swap(Some((bytes, _))) => format!("MemorySwapMax={bytes}"),
            Self::Swap(None) => "MemorySwapMax=infinity".to_owned(),
            Self::Processes(Some(count)) => format!("TasksMax={count}"),
            Self::Processes(None) => "TasksMax=infinity".to_owned(),
            Self::Disks(disks) => format!("IOWeight={}", weight(*disks, DISK_WEIGHTS)),
            Self::Disk { device, weight: of } if device.starts_with('/') => {
                format!("IODeviceWeight={device} {}", weight(*of, DISK_WEIGHTS))
            }
            Self::Disk { device, weight: of } => {
                format!("IODeviceWeight=/dev/block/{device} {}", weight(*of, DISK_WEIGHTS))
            }
            Self::File(name, value) if name == "memory.high" => format!("MemoryHigh={value}"),
            Self::File(..) => return None,
        })
    }

    /// As a file of cgroup v2. A disk has to be named by numbers.
    pub fn version_2(&self) -> Written {
        let written = |file: &str, value: String| Written {
            controller: file.split('.').next().unwrap_or_default().to_owned(),
            file: file.to_owned(),
            value,
        };
        let or_max = |number: Option<u64>| number.map_or("max".to_owned(), |number| number.to_string());
        match self {
            Self::Quota { quota, period } => written("cpu.max", format!("{quota} {period}")),
            Self::Shares(shares) => written("cpu.weight", weight(*shares, SHARES).to_string()),
            Self::Cpus(list) => written("cpuset.cpus", list.clone()),
            Self::Nodes(list) => written("cpuset.mems", list.clone()),
            Self::Memory(bytes) => written("memory.max", bytes.to_string()),
            Self::Reservation(bytes) => written("memory.low", bytes.to_string()),
            Self::Swap(swap) => written("memory.swap.max", or_max(swap.map(|(bytes, _)| bytes))),
            Self::Processes(count) => written("pids.max", or_max(*count)),
            Self::Disks(disks) => written("io.weight", format!("default {}", weight(*disks, DISK_WEIGHTS))),
            Self::Disk { device, weight: of } => {
                written("io.weight", format!("{device} {}", weight(*of, DISK_WEIGHTS)))
            }
            Self::File(name, value) => written(name, value.clone()),
        }
    }

    /// As files of cgroup v1; none for what it does not know.
    pub fn version_1(&self) -> Vec<Written> {
        let written = |controller: &str, file: &str, value: String| Written {
            controller: controller.to_owned(),
            file: format!("{controller}.{file}"),
            value,
        };
        let or_none = |number: Option<u64>| number.map_or("-1".to_owned(), |number| number.to_string());
        vec![match self {
            Self::Quota { quota, period } => {
                let period = written("cpu", "cfs_period_us", period.to_string());
                return vec![period, written("cpu", "cfs_quota_us", quota.to_string())];
            }
            Self::Shares(shares) => written("cpu", "shares", shares.to_string()),
            Self::Cpus(list) => written("cpuset", "cpus", list.clone()),
            Self::Nodes(list) => written("cpuset", "mems", list.clone()),
            Self::Memory(bytes) => written("memory", "limit_in_bytes", bytes.to_string()),
            Self::Reservation(bytes) => written("memory", "soft_limit_in_bytes", bytes.to_string()),
            Self::Swap(swap) => written("memory", "memsw.limit_in_bytes", or_none(swap.map(|(_, both)| both))),
            Self::Processes(None) => written("pids", "max", "max".to_owned()),
            Self::Processes(count) => written("pids", "max", or_none(*count)),
            Self::Disks(disks) => written("blkio", "weight", disks.to_string()),
            Self::Disk { device, weight } => written("blkio", "weight_device", format!("{device} {weight}")),
            Self::File(..) => return Vec::new(),
        }]
    }

    /// The disk that has to be named by numbers before it is written into a file.
    pub fn disk(&mut self) -> Option<&mut String> {
        match self {
            Self::Disk { device, .. } => Some(device),
            _ => None,
        }
    }
}

/// The limits that flags and variables ask for.
///
/// # Errors
/// [`SettingsError::Limit`] for a value that makes none.
pub(super) fn resolve(flags: &OtherFlags, environment: &Environment) -> Result<Vec<Limit>, SettingsError> {
    let text = |flag: &Option<String>, key: &str| flag.clone().or_else(|| environment.text(&[key]));
    let mut limits = Vec::new();
    let mut add =
        |option: &'static str, value: Option<String>, limit: fn(&str) -> Option<Limit>| -> Result<(), SettingsError> {
            let Some(value) = value else { return Ok(()) };
            let limit = limit(&value).ok_or_else(|| SettingsError::Limit { option, value: value.clone() })?;
            limits.push(limit);
            Ok(())
        };
    add("--cpus", text(&flags.cpus, "CPUS"), cpus)?;
    add("--cpu-shares", text(&flags.cpu_shares, "CPU_SHARES"), |value| Some(Limit::Shares(within(value, SHARES)?)))?;
    add("--cpuset-cpus", text(&flags.cpuset_cpus, "CPUSET_CPUS"), |value| Some(Limit::Cpus(list(value)?)))?;
    add("--cpuset-mems", text(&flags.cpuset_mems, "CPUSET_MEMS"), |value| Some(Limit::Nodes(list(value)?)))?;
    let memory = text(&flags.memory, "MEMORY");
    add("--memory", memory.clone(), |value| Some(Limit::Memory(size::parse(value)?)))?;
    add("--memory-reservation", text(&flags.memory_reservation, "MEMORY_RESERVATION"), |value| {
        Some(Limit::Reservation(size::parse(value)?))
    })?;
    add("--pids-limit", text(&flags.pids_limit, "PIDS_LIMIT"), |value| match value {
        "-1" => Some(Limit::Processes(None)),
        value => Some(Limit::Processes(Some(value.parse().ok()?))),
    })?;
    add("--blkio-weight", text(&flags.blkio_weight, "BLKIO_WEIGHT"), |value| {
        Some(Limit::Disks(within(value, DISK_WEIGHTS)?))
    })?;
    for device in flags.blkio_weight_device.iter().cloned().chain(environment.text(&["BLKIO_WEIGHT_DEVICE"])) {
        add("--blkio-weight-device", Some(device), |value| {
            let (device, weight) = value.rsplit_once(':').filter(|(device, _)| device.starts_with('/'))?;
            Some(Limit::Disk { device: device.to_owned(), weight: within(weight, DISK_WEIGHTS)? })
        })?;
    }
    // Memory and swap together, as docker has it.
    if let Some(value) = text(&flags.memory_swap, "MEMORY_SWAP") {
        let swap = match (value.as_str(), memory.as_deref().and_then(size::parse)) {
            ("-1", _) => Some(None),
            (both, Some(memory)) => size::parse(both).and_then(|both| Some(Some((both.checked_sub(memory)?, both)))),
            (_, None) => None,
        };
        limits.push(Limit::Swap(swap.ok_or(SettingsError::Limit { option: "--memory-swap", value })?));
    }
    Ok(limits)
}

/// A file of limits, as apptainer takes it: the resources of the OCI's runtime specification. What is not here has no
/// effect on what runs as its caller.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resources {
    cpu: Cpu,
    memory: Memory,
    pids: Option<Pids>,
    #[serde(rename = "blockIO")]
    disks: Disks,
    unified: BTreeMap<String, String>,
    #[serde(flatten)]
    others: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Cpu {
    shares: Option<u64>,
    quota: Option<i64>,
    period: Option<u64>,
    cpus: Option<String>,
    mems: Option<String>,
    #[serde(rename = "realtimeRuntime")]
    _realtime_runtime: Option<i64>,
    #[serde(rename = "realtimePeriod")]
    _realtime_period: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    limit: Option<i64>,
    reservation: Option<i64>,
    swap: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Pids {
    limit: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Disks {
    weight: Option<u64>,
    #[serde(rename = "weightDevice")]
    devices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
struct Device {
    major: u32,
    minor: u32,
    weight: Option<u64>,
}

/// Reads the text of a file of limits: the limits, and the parts of it that have no effect.
///
/// # Errors
/// What is wrong with it, for a user.
pub fn of_file(text: &str) -> Result<(Vec<Limit>, Vec<String>), String> {
    let resources: Resources = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut limits = Vec::new();
    let Resources { cpu, memory, pids, disks, unified, others } = resources;
    let in_range = |name: &str, value: u64, range: RangeInclusive<u64>| match range.contains(&value) {
        true => Ok(value),
        false => Err(format!("{name} is {value}, and has to be from {} to {}", range.start(), range.end())),
    };
    if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
        limits.push(Limit::Shares(in_range("cpu.shares", shares, SHARES)?));
    }
    if let Some(quota) = cpu.quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0) {
        let period = in_range("cpu.period", cpu.period.unwrap_or(PERIOD_MICROS), 1000..=1_000_000)?;
        limits.push(Limit::Quota { quota, period });
    }
    let listed =
        |name, value: String| list(&value).ok_or(format!("{name} is {value:?}, and has to be a list of numbers"));
    limits.extend(cpu.cpus.map(|cpus| listed("cpu.cpus", cpus)).transpose()?.map(Limit::Cpus));
    limits.extend(cpu.mems.map(|mems| listed("cpu.mems", mems)).transpose()?.map(Limit::Nodes));
    let bytes = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
    limits.extend(bytes(memory.limit).map(Limit::Memory));
    limits.extend(bytes(memory.reservation).map(Limit::Reservation));
    match (memory.swap, bytes(memory.limit)) {
        (None, _) => {}
        (Some(both), Some(limit)) if bytes(Some(both)).is_some_and(|both| both >= limit) => {
            limits.push(Limit::Swap(bytes(Some(both)).map(|both| (both - limit, both))));
        }
        (Some(..0), _) => limits.push(Limit::Swap(None)),
        (Some(both), _) => return Err(format!("memory.swap is {both}, and has to be at least memory.limit")),
    }
    limits.extend(pids.map(|pids| Limit::Processes(u64::try_from(pids.limit).ok().filter(|limit| *limit > 0))));
    if let Some(weight) = disks.weight.filter(|weight| *weight > 0) {
        limits.push(Limit::Disks(in_range("blockIO.weight", weight, DISK_WEIGHTS)?));
    }
    for Device { major, minor, weight } in disks.devices {
        let Some(weight) = weight else { continue };
        let weight = in_range("blockIO.weightDevice.weight", weight, DISK_WEIGHTS)?;
        limits.push(Limit::Disk { device: format!("{major}:{minor}"), weight });
    }
    for (name, value) in unified {
        let is_file = name.contains('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !name.starts_with("cgroup.");
        if !is_file {
            return Err(format!("unified.{name:?} is no file of a controller"));
        }
        limits.push(Limit::File(name, value));
    }
    Ok((limits, others.into_keys().collect()))
}

/// A number of processors, with a fraction.
fn cpus(value: &str) -> Option<Limit> {
    let cpus = value.parse::<f64>().ok().filter(|cpus| *cpus >= 0.01 && *cpus <= 1e6)?;
    // Both are whole numbers far below what a float holds exactly.
    let quota = format!("{:.0}", cpus * PERIOD_MICROS as f64).parse().ok()?;
    Some(Limit::Quota { quota, period: PERIOD_MICROS })
}

fn percent(quota: u64, period: u64) -> u64 {
    (quota.saturating_mul(100) / period.max(1)).max(1)
}

fn within(value: &str, range: RangeInclusive<u64>) -> Option<u64> {
    value.parse().ok().filter(|value| range.contains(value))
}

/// A number of `range` as the weight from 1 to 10000 at the same place, as runc counts it.
fn weight(value: u64, range: RangeInclusive<u64>) -> u64 {
    1 + value.saturating_sub(*range.start()) * 9999 / (range.end() - range.start())
}

/// Numbers and ranges of numbers.
fn list(value: &str) -> Option<String> {
    let plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit() || b",-".contains(&byte));
    plain.then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_what_systemd_calls_them() {
        let flags = OtherFlags {
            cpus: Some("1.5".into()),
            cpu_shares: Some("1024".into()),
            cpuset_cpus: Some("0-3,7".into()),
            memory: Some("512M".into()),
            memory_swap: Some("1G".into()),
            pids_limit: Some("-1".into()),
            blkio_weight_device: vec!["/dev/sda:500".into()],
            ..OtherFlags::default()
        };

        let limits = resolve(&flags, &Environment::made_up(&[("APPTAINER_BLKIO_WEIGHT", "10")])).unwrap();
        let properties: Vec<_> = limits.iter().filter_map(Limit::property).collect();

        let expected = [
            "CPUQuota=150%",
            "CPUWeight=39",
            "AllowedCPUs=0-3,7",
            "MemoryMax=536870912",
            "TasksMax=infinity",
            "IOWeight=1",
            "IODeviceWeight=/dev/sda 4950",
            "MemorySwapMax=536870912",
        ];
        assert_eq!(properties, expected);
        assert!(resolve(&OtherFlags::default(), &Environment::default()).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_limit_is_refused_by_name() {
        for (key, value) in [
            ("CPUS", "-1"),
            ("CPUS", "nan"),
            ("MEMORY", "lots"),
            ("CPU_SHARES", "1"),
            ("CPUSET_CPUS", "0 x"),
            ("MEMORY_SWAP", "1G"),
        ] {
            let error = resolve(&OtherFlags::default(), &Environment::made_up(&[(&format!("APPTAINER_{key}"), value)]));

            let error = error.unwrap_err().to_string();
            assert!(error.contains(&key.to_lowercase().replace('_', "-")) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn a_file_of_limits_is_read_as_the_oci_has_them() {
        let text = r#"
            [cpu]
            shares = 1024
            quota = 50000
            cpus = "0-1"
            [memory]
            limit = 1048576
            swap = 2097152
            [pids]
            limit = 10
            [[blockIO.weightDevice]]
            major = 8
            minor = 16
            weight = 10
            [unified]
            "memory.high" = "4096"
            [[devices]]
            allow = false
        "#;

        let (limits, others) = of_file(text).unwrap();

        let files: Vec<_> = limits.iter().map(Limit::version_2).map(|w| format!("{} {}", w.file, w.value)).collect();
        let expected = [
            "cpu.weight 39",
            "cpu.max 50000 100000",
            "cpuset.cpus 0-1",
            "memory.max 1048576",
            "memory.swap.max 1048576",
            "pids.max 10",
            "io.weight 8:16 1",
            "memory.high 4096",
        ];
        assert_eq!(files, expected);
        assert_eq!(others, ["devices"]);
        let older: Vec<_> =
            limits.iter().flat_map(Limit::version_1).map(|w| format!("{} {}", w.file, w.value)).collect();
        assert_eq!(older[1..3], ["cpu.cfs_period_us 100000", "cpu.cfs_quota_us 50000"]);
        assert!(older.contains(&"memory.memsw.limit_in_bytes 2097152".to_owned()));
    }

    #[test]
    fn a_file_that_makes_no_limits_is_refused_by_what_is_wrong() {
        for (text, word) in [
            ("[cpu]\nshares = 1", "cpu.shares"),
            ("[cpu]\ncpus = \"x\"", "cpu.cpus"),
            ("[memory]\nswap = 5", "memory.swap"),
            ("[unified]\n\"../x\" = \"1\"", "unified"),
            ("[unified]\n\"cgroup.procs\" = \"1\"", "unified"),
            ("[pids", "TOML"),
        ] {
            let error = of_file(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
