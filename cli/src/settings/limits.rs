//! Limits of processor time, memory, processes and disks, as properties of a systemd scope (systemd.resource-control(5)).
//!
//! An unprivileged process may limit itself only where somebody delegated a cgroup to it, and on a machine that is not a
//! batch system's that is systemd, which has its own words for limits.

use super::{Environment, SettingsError, size};
use crate::args::OtherFlags;

/// What cgroup v1 takes as a share of processor time, of which 1024 is everybody's (kernel, `MIN_SHARES`, `MAX_SHARES`).
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
/// What docker and apptainer take as the weight of a disk.
const DISK_WEIGHTS: std::ops::RangeInclusive<u64> = 10..=1000;

/// The properties that flags and variables ask for, each `NAME=VALUE`; none without any limit.
///
/// # Errors
/// [`SettingsError::Limit`] for a value that makes none.
pub(super) fn resolve(flags: &OtherFlags, environment: &Environment) -> Result<Vec<String>, SettingsError> {
    let text = |flag: &Option<String>, key: &str| flag.clone().or_else(|| environment.text(&[key]));
    let mut properties = Vec::new();
    let mut add = |option: &'static str,
                   value: Option<String>,
                   property: fn(&str) -> Option<String>|
     -> Result<(), SettingsError> {
        let Some(value) = value else { return Ok(()) };
        let property = property(&value).ok_or_else(|| SettingsError::Limit { option, value: value.clone() })?;
        properties.push(property);
        Ok(())
    };
    add("--cpus", text(&flags.cpus, "CPUS"), cpus)?;
    add("--cpu-shares", text(&flags.cpu_shares, "CPU_SHARES"), |value| {
        Some(format!("CPUWeight={}", scaled(value, SHARES)?))
    })?;
    add("--cpuset-cpus", text(&flags.cpuset_cpus, "CPUSET_CPUS"), |value| list(value, "AllowedCPUs"))?;
    add("--cpuset-mems", text(&flags.cpuset_mems, "CPUSET_MEMS"), |value| list(value, "AllowedMemoryNodes"))?;
    let memory = text(&flags.memory, "MEMORY");
    add("--memory", memory.clone(), |value| Some(format!("MemoryMax={}", size::parse(value)?)))?;
    add("--memory-reservation", text(&flags.memory_reservation, "MEMORY_RESERVATION"), |value| {
        Some(format!("MemoryLow={}", size::parse(value)?))
    })?;
    add("--pids-limit", text(&flags.pids_limit, "PIDS_LIMIT"), |value| match value {
        "-1" => Some("TasksMax=infinity".into()),
        value => Some(format!("TasksMax={}", value.parse::<u64>().ok()?)),
    })?;
    add("--blkio-weight", text(&flags.blkio_weight, "BLKIO_WEIGHT"), |value| {
        Some(format!("IOWeight={}", scaled(value, DISK_WEIGHTS)?))
    })?;
    for device in flags.blkio_weight_device.iter().cloned().chain(environment.text(&["BLKIO_WEIGHT_DEVICE"])) {
        add("--blkio-weight-device", Some(device), |value| {
            let (device, weight) = value.rsplit_once(':').filter(|(device, _)| device.starts_with('/'))?;
            Some(format!("IODeviceWeight={device} {}", scaled(weight, DISK_WEIGHTS)?))
        })?;
    }
    // Memory and swap together, as docker has it.
    if let Some(value) = text(&flags.memory_swap, "MEMORY_SWAP") {
        let swap = match (value.as_str(), memory.as_deref().and_then(size::parse)) {
            ("-1", _) => Some("infinity".to_owned()),
            (both, Some(memory)) => {
                size::parse(both).and_then(|both| both.checked_sub(memory)).map(|swap| swap.to_string())
            }
            (_, None) => None,
        };
        let swap = swap.ok_or(SettingsError::Limit { option: "--memory-swap", value })?;
        properties.push(format!("MemorySwapMax={swap}"));
    }
    Ok(properties)
}

/// A number of processors, with a fraction.
fn cpus(value: &str) -> Option<String> {
    let percent = (value.parse::<f64>().ok().filter(|cpus| *cpus >= 0.01 && *cpus <= 1e6)? * 100.0).round();
    Some(format!("CPUQuota={percent}%"))
}

/// A number of `range` as the weight from 1 to 10000 at the same place, as runc counts it.
fn scaled(value: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    let value = value.parse().ok().filter(|value| range.contains(value))?;
    Some(1 + (value - range.start()) * 9999 / (range.end() - range.start()))
}

/// Numbers and ranges of numbers.
fn list(value: &str, property: &str) -> Option<String> {
    let plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit() || b",-".contains(&byte));
    plain.then(|| format!("{property}={value}"))
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

        let properties = resolve(&flags, &Environment::made_up(&[("APPTAINER_BLKIO_WEIGHT", "10")])).unwrap();

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
}
