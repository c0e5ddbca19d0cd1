//! Directories and devices of a run's own, in place of the host's.

use super::gpu::Device;
use super::{Devices, Failure, HostFacts, Mount, PlanError, SourceKind, What};
use crate::settings::RunSettings;
use std::path::{Path, PathBuf};

/// The devices that programs expect wherever they run, as far as the host has them.
pub const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// What a `/dev` of a run's own has besides, that no device of the host takes the place of.
pub(super) const OWN_NAMES: [&str; 9] = ["console", "fd", "mqueue", "ptmx", "pts", "shm", "stderr", "stdin", "stdout"];

/// Everybody's, as `/tmp` is.
const SHARED: u32 = 0o1777;
/// The caller's, as a home is.
const PRIVATE: u32 = 0o750;

/// A small `/dev` in place of the host's.
pub(super) fn devices(settings: &RunSettings, host: &HostFacts) -> Mount {
    let existing = DEVICES.iter().map(Path::new).filter(|path| host.kind(path).is_some());
    let mut nodes: Vec<Device> = existing.map(Device::unchanged).collect();
    for device in host.gpu.devices.iter().filter(|device| device.has_place_in_dev()) {
        nodes.retain(|other| other.target != device.target);
        nodes.push(device.clone());
    }
    let terminals = !settings.left_out.contains("devpts");
    let what = What::Devices(Devices {
        nodes,
        terminals,
        console: host.terminal.clone().filter(|_| terminals),
        queues: settings.namespaces.ipc,
    });
    Mount { target: "/dev".into(), what, failure: Failure::Fatal }
}

/// An empty home.
pub(super) fn home(settings: &RunSettings, host: &HostFacts, home: &Path) -> Mount {
    own(settings, host, home, Path::new("home"), PRIVATE)
}

/// Empty temporary directories.
pub(super) fn temporary(settings: &RunSettings, host: &HostFacts) -> Vec<Mount> {
    let places = [("/tmp", "tmp"), ("/var/tmp", "var_tmp")];
    places.map(|(target, name)| own(settings, host, Path::new(target), Path::new(name), SHARED)).into()
}

/// The directories that `--scratch` names.
pub(super) fn scratch(settings: &RunSettings, host: &HostFacts) -> Vec<Mount> {
    let mount = |path: &PathBuf| {
        let inner: PathBuf = path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect();
        own(settings, host, path, &Path::new("scratch").join(inner), PRIVATE)
    };
    settings.contain.scratch.iter().map(mount).collect()
}

/// A directory of the run's own: `name` below the chosen directory, or else in memory.
fn own(settings: &RunSettings, host: &HostFacts, target: &Path, name: &Path, mode: u32) -> Mount {
    let what = match &settings.contain.workdir {
        Some(directory) => What::Kept { source: host.absolute(directory).join(name), mode },
        None => What::Empty { mode },
    };
    Mount { target: target.into(), what, failure: Failure::Fatal }
}

/// A directory that is to keep what is written has to be there.
pub(super) fn check(settings: &RunSettings, host: &HostFacts) -> Result<(), PlanError> {
    let chosen = settings.contain.workdir.as_ref().map(|directory| host.absolute(directory));
    match chosen.filter(|directory| host.kind(directory) != Some(SourceKind::Directory)) {
        Some(directory) => Err(PlanError::NoWorkdir(directory)),
        None => Ok(()),
    }
}
