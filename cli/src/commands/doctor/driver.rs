//! What there is of GPUs and their drivers, by the same look that `--nv` and `--rocm` take.

use super::check::Check;
use crate::args::GpuFlags;
use crate::host::gpu;
use crate::plan::gpu::{Gpu, Library, Vendor};
use crate::settings::{Environment, GpuSettings};
use std::path::{Path, PathBuf};

/// Where NVIDIA's kernel module says which version it is.
const MODULE_VERSION: &str = "/proc/driver/nvidia/version";

/// One line for each vendor that has a device here; all that was found of those that were asked for.
pub(super) fn checks(nv: bool, rocm: bool, environment: &Environment) -> Vec<Check> {
    let mut found = Vec::new();
    for (vendor, asked) in [(Vendor::Nvidia, nv), (Vendor::Amd, rocm)] {
        let gpu = look(vendor, environment);
        let libraries = gpu.own.map(|own| gpu.libraries(own)).unwrap_or_default();
        if asked || !gpu.devices.is_empty() {
            found.push(summary(vendor, &gpu, &libraries, asked));
        }
        if asked {
            found.extend(details(vendor, &gpu, &libraries));
        }
    }
    if found.is_empty() {
        found.push(Check::ok("GPU", "no device of NVIDIA or AMD on this machine").optional());
    }
    found
}

fn look(vendor: Vendor, environment: &Environment) -> Gpu {
    let flags = GpuFlags { nv: vendor == Vendor::Nvidia, rocm: vendor == Vendor::Amd, ..GpuFlags::default() };
    // The variables may ask for more; each vendor has its own look.
    let settings =
        GpuSettings { nv: flags.nv, rocm: flags.rocm, ..GpuSettings::resolve(flags, environment, &mut Vec::new()) };
    // Without CDI devices nothing can fail.
    gpu::gather(&settings, environment).unwrap_or_default()
}

fn summary(vendor: Vendor, gpu: &Gpu, libraries: &[Library], asked: bool) -> Check {
    let name = title(vendor);
    let counted =
        format!("{} device nodes, {} libraries, {} programs", gpu.devices.len(), libraries.len(), gpu.programs.len());
    let module = std::fs::read_to_string(MODULE_VERSION).ok().and_then(|text| version(&text));
    let check = match vendor {
        Vendor::Nvidia => judge_nvidia(name, counted, module.as_deref(), libraries),
        Vendor::Amd if gpu.devices.is_empty() => Check::missing(name, counted, "as root: modprobe amdgpu"),
        Vendor::Amd => Check::ok(name, counted),
    };
    if asked { check } else { check.optional() }
}

fn judge_nvidia(name: &str, counted: String, module: Option<&str>, libraries: &[Library]) -> Check {
    let cuda = libraries.iter().find(|library| library.name == "libcuda.so.1");
    let Some(cuda) = cuda else {
        let mend = "install the driver's libraries (Debian: libcuda1, Ubuntu: libnvidia-compute-VERSION, others: the \
                    driver itself) and run ldconfig, or set SIPHON_DRIVER_ROOT";
        return Check::missing(name, format!("no libcuda.so.1 that the loader knows; {counted}"), mend);
    };
    let Some(module) = module else {
        return Check::missing(
            name,
            format!("the kernel module is not loaded; {counted}"),
            "as root: modprobe nvidia-uvm",
        );
    };
    let file = std::fs::canonicalize(&cuda.source).unwrap_or_else(|_| cuda.source.clone());
    match file_version(&file) {
        Some(library) if library != module => {
            let detail = format!("the kernel module is {module} and the libraries are {library}; {counted}");
            Check::missing(name, detail, "reboot, or reload the kernel module")
        }
        _ => Check::ok(name, format!("driver {module}; {counted}")),
    }
}

fn details(vendor: Vendor, gpu: &Gpu, libraries: &[Library]) -> Vec<Check> {
    let mut found = Vec::new();
    let shown = |path: &Path| path.display().to_string();
    found.extend(gpu.devices.iter().map(|device| Check::ok("device", shown(&device.source))));
    found.extend(libraries.iter().map(|library| Check::ok(&library.name, shown(&library.source))));
    found.extend(gpu.programs.iter().map(|path| Check::ok("program", shown(path))));
    found.extend(gpu.files.iter().map(|(source, _)| Check::ok("file", shown(source))));
    let has = |name: &&str| libraries.iter().any(|library| library.name.split(".so").next() == Some(*name));
    let absent_libraries = vendor.libraries().filter(|name| !has(name));
    let absent_programs = vendor.programs().iter().copied().filter(|name| !ends_with(gpu.programs.iter(), name));
    let absent_files =
        vendor.files().iter().copied().filter(|file| !gpu.files.iter().any(|(_, target)| target == Path::new(file)));
    let absent: Vec<&str> = absent_libraries.chain(absent_programs).chain(absent_files).collect();
    if !absent.is_empty() {
        let mend = "few drivers have all of these: install what a program asks for, and run ldconfig";
        found.push(Check::missing("not found", absent.join(" "), mend));
    }
    found.into_iter().map(Check::optional).collect()
}

fn ends_with<'a>(mut paths: impl Iterator<Item = &'a PathBuf>, name: &str) -> bool {
    paths.any(|path| path.ends_with(name))
}

fn title(vendor: Vendor) -> &'static str {
    match vendor {
        Vendor::Nvidia => "NVIDIA",
        Vendor::Amd => "AMD",
    }
}

/// `580.65.06` in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 06:54:38 UTC 2025`.
fn version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    line.split_whitespace().find(|word| is_version(word)).map(str::to_owned)
}

/// `580.65.06` of `libcuda.so.580.65.06`.
fn file_version(file: &Path) -> Option<String> {
    let (_, version) = file.file_name()?.to_str()?.split_once(".so.")?;
    is_version(version).then(|| version.to_owned())
}

fn is_version(word: &str) -> bool {
    word.contains('.') && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::*;

    fn cuda(file: &str) -> Vec<Library> {
        vec![Library { name: "libcuda.so.1".into(), source: file.into() }]
    }

    #[test]
    fn the_version_of_the_kernel_module_is_read() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\n\
                    GCC version:  gcc version 12.2.0\n";

        assert_eq!(version(text).as_deref(), Some("580.65.06"));
        assert_eq!(version("GCC version: 12.2.0"), None);
    }

    #[test]
    fn libraries_of_another_version_than_the_kernels_are_a_fault() {
        let judge = |module, libraries: &[Library]| judge_nvidia("NVIDIA", "some".into(), module, libraries);

        assert_eq!(judge(Some("580.65.06"), &cuda("/nosuch/libcuda.so.580.65.06")).state, State::Ok);
        assert_eq!(judge(Some("570.1"), &cuda("/nosuch/libcuda.so.580.65.06")).state, State::Missing);
        assert_eq!(judge(None, &cuda("/nosuch/libcuda.so.580.65.06")).state, State::Missing);
        assert_eq!(judge(Some("580.65.06"), &[]).state, State::Missing);
    }
}
