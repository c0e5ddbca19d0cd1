//! Which files of the host make up its GPU drivers, and how a container gets them.
//!
//! A library of the host comes in for one of two reasons: it belongs to the version of the driver that runs in the
//! kernel, or the image has none of that name. So a library of the image is never hidden by one that was built for the
//! host's glibc, and the order of the library path decides nothing.

pub mod cdi;
mod vendor;

pub use vendor::Vendor;

use super::{Failure, Mount, PlanError, SourceKind, What};
use crate::settings::{GpuSettings, RunSettings};
use cdi::Injection;
use siphon_image::elf::ElfKind;
use siphon_image::libraries::Wanted;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// Where libraries of the host appear.
pub const LIBRARIES: &str = "/.singularity.d/libs";
/// Where those for 32-bit programs appear.
pub const NARROW_LIBRARIES: &str = "/.singularity.d/libs32";
/// Where programs of a driver appear.
const PROGRAMS: &str = "/usr/bin";

/// What the host has of the drivers that were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gpu {
    /// What the host's own programs are.
    pub own: Option<ElfKind>,
    /// Libraries that may be the drivers', in the order in which the host's loader finds them.
    pub candidates: Vec<Candidate>,
    /// Libraries that are left to the image, which has them itself.
    pub left_out: Vec<Wanted>,
    /// Programs by path.
    pub programs: Vec<PathBuf>,
    /// Data files and sockets: on the host, and inside.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// The device nodes, and directories of them, that a container without the host's whole `/dev` needs.
    pub devices: Vec<Device>,
    /// What CDI specifications say of the devices that were asked for.
    pub injection: Injection,
}

/// A library of the host that may be the driver's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What programs ask for.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// What it is; `None` if it is no ELF file.
    pub kind: Option<ElfKind>,
}

/// A device node or a directory of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// On the host.
    pub source: PathBuf,
    /// Inside; the same, unless a CDI specification says otherwise.
    pub target: PathBuf,
    /// Which of both it is.
    pub kind: SourceKind,
}

impl Device {
    /// A node that has the name inside that it has on the host.
    pub(super) fn unchanged(path: &Path) -> Self {
        Self { source: path.into(), target: path.into(), kind: SourceKind::File }
    }

    /// Whether it can be in a `/dev` that is made for the run, and has things of its own there.
    pub(super) fn has_place_in_dev(&self) -> bool {
        let Ok(inside) = self.target.strip_prefix("/dev") else { return false };
        let mut parts = inside.components();
        let plain = parts.all(|part| matches!(part, Component::Normal(_)));
        let first = inside.iter().next().and_then(OsStr::to_str);
        plain && first.is_some_and(|name| !super::contain::OWN_NAMES.contains(&name))
    }
}

/// A library in a directory of libraries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// Its name there.
    pub name: String,
    /// The file of the host.
    pub source: PathBuf,
}

impl Gpu {
    /// The libraries that a run gets: the first candidate of each name that is for programs of this kind.
    pub fn libraries(&self, kind: ElfKind) -> Vec<Library> {
        let mut found: Vec<Library> = Vec::new();
        for Candidate { name, path, .. } in self.candidates.iter().filter(|candidate| candidate.kind == Some(kind)) {
            let left_out = self.left_out.iter().any(|left| left.name == *name && left.kind == kind);
            if !left_out && !found.iter().any(|known| known.name == *name) {
                found.push(Library { name: name.clone(), source: path.clone() });
            }
        }
        found
    }

    /// The libraries that come in only if the image lacks them.
    pub fn replaceable(&self, settings: &GpuSettings) -> Vec<Wanted> {
        let kinds = [self.own, self.own.and_then(ElfKind::narrow).filter(|_| settings.compat32)];
        let of_kind = |kind| self.libraries(kind).into_iter().map(move |library| Wanted { name: library.name, kind });
        let all = kinds.into_iter().flatten().flat_map(of_kind);
        all.filter(|wanted| !Vendor::Nvidia.owns(&wanted.name)).collect()
    }

    /// Leaves these libraries to the image, which has them.
    pub fn leave_to_image(&mut self, present: impl IntoIterator<Item = Wanted>) {
        self.left_out.extend(present);
    }

    fn has_libraries(&self, vendor: Vendor) -> bool {
        self.candidates.iter().any(|candidate| vendor.is_shown_by(&candidate.name))
    }

    fn has_programs(&self, vendor: Vendor) -> bool {
        let listed = |path: &PathBuf| vendor.programs().iter().any(|name| path.ends_with(name));
        self.programs.iter().any(listed)
    }
}

/// The drivers that were asked for.
pub fn vendors(settings: &GpuSettings) -> impl Iterator<Item = Vendor> {
    let wanted = [(settings.nv, Vendor::Nvidia), (settings.rocm, Vendor::Amd)];
    wanted.into_iter().filter_map(|(wanted, vendor)| wanted.then_some(vendor))
}

/// The directories of libraries, which come before all other mounts since they are made for the run.
pub(super) fn directories(settings: &GpuSettings, gpu: &Gpu, warnings: &mut Vec<String>) -> Vec<Mount> {
    let mut wide: Vec<Library> = gpu.own.map(|own| gpu.libraries(own)).unwrap_or_default();
    for vendor in vendors(settings).filter(|vendor| !gpu.has_libraries(*vendor)) {
        let what = if gpu.has_programs(vendor) { "libraries" } else { "files" };
        warnings.push(format!("Could not find any {} {what} on this host!", vendor.name()));
    }
    for library in gpu.injection.libraries(gpu.own) {
        if !wide.iter().any(|known| known.name == library.name) {
            wide.push(library);
        }
    }
    let narrow = gpu.own.and_then(ElfKind::narrow).filter(|_| settings.compat32);
    let narrow: Vec<Library> = narrow.map(|kind| gpu.libraries(kind)).unwrap_or_default();
    if settings.compat32 && narrow.is_empty() && !wide.is_empty() {
        warnings.push("Could not find any 32-bit libraries of the driver on this host!".into());
    }
    let mount = |(target, libraries): (&str, Vec<Library>)| Mount {
        target: target.into(),
        what: What::Libraries(libraries),
        failure: Failure::Warning,
    };
    let filled = [(LIBRARIES, wide), (NARROW_LIBRARIES, narrow)].into_iter().filter(|(_, list)| !list.is_empty());
    filled.map(mount).collect()
}

/// Programs and data files of the drivers, then all that CDI specifications ask for.
///
/// # Errors
/// [`PlanError::Cdi`] if a specification names what the host does not have.
pub(super) fn mounts(gpu: &Gpu, warnings: &mut Vec<String>) -> Result<Vec<Mount>, PlanError> {
    let mut mounts = Vec::new();
    for source in &gpu.programs {
        if let Some(name) = source.file_name() {
            mounts.push(read_only(source, &Path::new(PROGRAMS).join(name), SourceKind::File));
        }
    }
    mounts.extend(gpu.files.iter().map(|(source, target)| read_only(source, target, SourceKind::File)));
    warnings.extend(gpu.injection.warnings.iter().cloned());
    mounts.extend(gpu.injection.mounts(warnings)?);
    Ok(mounts)
}

/// What cannot be had: another name in the host's whole `/dev`, and a place elsewhere in a small one.
pub(super) fn lost_devices(gpu: &Gpu, small: bool) -> impl Iterator<Item = String> {
    let lost = move |device: &&Device| if small { !device.has_place_in_dev() } else { device.source != device.target };
    gpu.devices.iter().filter(lost).map(move |Device { source, target, .. }| {
        let (source, target) = (source.display(), target.display());
        match small {
            true => format!(
                "the device {target} of the CDI specification has no place in the container's own /dev and stays out"
            ),
            false => format!("the device {target} of the CDI specification keeps its name on the host, {source}"),
        }
    })
}

fn read_only(source: &Path, target: &Path, kind: SourceKind) -> Mount {
    let what = What::Bind { source: source.to_owned(), kind, read_only: true, trusted: false };
    Mount { target: target.to_owned(), what, failure: Failure::Warning }
}

/// The library directories that a run has, in the order of search.
pub fn library_path(settings: &GpuSettings) -> String {
    let wide = settings.nv || settings.rocm || !settings.devices.is_empty();
    let wanted = [(wide, LIBRARIES), (settings.compat32, NARROW_LIBRARIES)];
    wanted.into_iter().filter_map(|(wanted, path)| wanted.then_some(path)).collect::<Vec<_>>().join(":")
}

/// The settings with the variables of CDI specifications among those that are set inside; the user's own win.
pub(super) fn with_variables(settings: &RunSettings, gpu: &Gpu) -> RunSettings {
    let mut settings = settings.clone();
    for (name, value) in &gpu.injection.variables {
        let value = if settings.variables.evaluate { literal(value) } else { value.clone() };
        settings.variables.injected.entry(name.into()).or_insert_with(|| value.into());
    }
    settings
}

/// The value such that a shell that evaluates it between double quotes gets it back; quotes are escaped by whoever
/// writes them.
fn literal(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars() {
        if matches!(character, '\\' | '$' | '`') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests;
