//! What this machine has of GPU drivers: libraries by the loader's cache, programs, files, device nodes, and what CDI
//! specifications say.

mod library;

use crate::plan::SourceKind;
use crate::plan::environment::DEFAULT_PATH;
use crate::plan::gpu::cdi::{self, CdiError, Source, Spec, SpecFile};
use crate::plan::gpu::{Candidate, Device, Gpu, LIBRARIES, NARROW_LIBRARIES, Vendor, vendors};
use crate::settings::{Environment, GpuSettings};
use siphon_image::ld_cache;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where drivers lie that the loader's cache does not know: NixOS, Windows' subsystem for Linux.
const UNCACHED: [&str; 3] = ["/run/opengl-driver/lib", "/run/opengl-driver-32/lib", "/usr/lib/wsl/lib"];
/// Where libraries lie on hosts whose loader has no cache, such as those with musl.
const WITHOUT_CACHE: [&str; 6] = [
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/i386-linux-gnu",
    "/usr/lib",
    "/usr/local/lib",
];
/// Bytes of a CDI specification: a thousand times a usual one.
const MAX_SPEC_BYTES: u64 = 16 << 20;
/// Specifications that are read.
const MAX_SPECS: usize = 1024;

/// Looks at what `settings` ask for. What cannot be read is left out, a specification with a warning.
///
/// # Errors
/// [`CdiError`] for a device that no specification describes.
pub fn gather(settings: &GpuSettings, environment: &Environment) -> Result<Gpu, CdiError> {
    let mut gpu = Gpu { own: library::kind(Path::new("/proc/self/exe")), ..Gpu::default() };
    let root = Root(&settings.driver_root);
    let wanted: Vec<Vendor> = vendors(settings).collect();
    if !wanted.is_empty() {
        gpu.candidates = candidates(root, &wanted);
    }
    for vendor in &wanted {
        gpu.programs.extend(vendor.programs().iter().filter_map(|name| root.program(name, environment)));
        let files = vendor.files().iter().map(|path| (root.within(path), PathBuf::from(path)));
        gpu.files.extend(files.filter(|(source, _)| source.exists()));
        gpu.devices.extend(vendor.devices().iter().flat_map(|pattern| devices(pattern)));
    }
    if settings.intel_hpu {
        gpu.devices.extend(gaudi(environment));
    }
    if !settings.devices.is_empty() {
        let (specs, warnings) = specifications(&settings.cdi_directories);
        gpu.injection = cdi::select(&specs, &settings.devices, &settings.cdi_directories)?;
        gpu.injection.warnings.extend(warnings);
        let sources = gpu.injection.wanted_sources().filter_map(|path| Some((path.to_owned(), source(path)?)));
        gpu.injection.sources = sources.collect();
        let nodes = gpu.injection.devices.iter().map(|(source, target)| device(source, target));
        gpu.devices.extend(nodes);
    }
    Ok(gpu)
}

/// The directory that a driver is installed below.
#[derive(Debug, Clone, Copy)]
struct Root<'a>(&'a Path);

impl Root<'_> {
    fn within(self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn program(self, name: &str, environment: &Environment) -> Option<PathBuf> {
        let host = self.0 == Path::new("/");
        let path = environment.get("PATH").filter(|_| host).unwrap_or(OsStr::new(DEFAULT_PATH));
        std::env::split_paths(path).map(|dir| self.within(dir.join(name))).find(|file| file.is_file())
    }
}

/// The libraries with a name of the drivers: those of the loader's cache, then those that it does not know, then those
/// that a container around this one was given. Without its driver, nothing of a vendor is of use.
fn candidates(root: Root<'_>, vendors: &[Vendor]) -> Vec<Candidate> {
    let listed = |name: &str| vendors.iter().any(|vendor| vendor.lists(name)) && !name.contains('/');
    let cache = fs::read(root.within(ld_cache::PATH)).ok().and_then(|bytes| ld_cache::parse(&bytes));
    let directories = if cache.is_some() { UNCACHED.to_vec() } else { [&UNCACHED[..], &WITHOUT_CACHE].concat() };
    let mut entries = cache.unwrap_or_default();
    // A library for special processors may not be for this one.
    entries.sort_by_key(|entry| entry.special);
    let cached = entries.into_iter().map(|entry| (entry.name, root.within(entry.path)));
    let mut found: Vec<(String, PathBuf)> = cached.filter(|(name, _)| listed(name)).collect();
    for directory in directories {
        found.extend(files(&root.within(directory)).into_iter().filter(|(name, _)| listed(name)));
    }
    let nested: Vec<_> =
        [LIBRARIES, NARROW_LIBRARIES].iter().flat_map(|directory| files(Path::new(directory))).collect();
    let is_there = |vendor: &&Vendor| found.iter().chain(&nested).any(|(name, _)| vendor.is_shown_by(name));
    let there: Vec<Vendor> = vendors.iter().filter(is_there).copied().collect();
    found.retain(|(name, _)| there.iter().any(|vendor| vendor.lists(name)));
    found.extend(nested);
    let candidate = |(name, path): (String, PathBuf)| Candidate { kind: library::kind(&path), name, path };
    found.into_iter().map(candidate).collect()
}

/// The names in a directory with their paths, sorted; none if it cannot be read.
fn files(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    let mut found: Vec<_> = named.collect();
    found.sort();
    found
}

/// The device nodes that a name, or the beginning of names before a `*`, stands for.
fn devices(pattern: &str) -> Vec<Device> {
    let Some(beginning) = pattern.strip_suffix('*') else {
        let path = Path::new(pattern);
        return if path.exists() { vec![device(path, path)] } else { Vec::new() };
    };
    let (directory, prefix) = beginning.rsplit_once('/').unwrap_or(("", beginning));
    let matching = files(Path::new(directory)).into_iter().filter(|(name, _)| name.starts_with(prefix));
    matching.map(|(_, path)| device(&path, &path)).collect()
}

fn device(source: &Path, target: &Path) -> Device {
    let kind = if source.is_dir() { SourceKind::Directory } else { SourceKind::File };
    Device { source: source.to_owned(), target: target.to_owned(), kind }
}

/// Gaudi accelerators, and the InfiniBand interfaces on them: those that `HABANA_VISIBLE_DEVICES` numbers, or all.
fn gaudi(environment: &Environment) -> Vec<Device> {
    let chosen = environment.get("HABANA_VISIBLE_DEVICES").map(|list| list.to_string_lossy().into_owned());
    let is_chosen = |name: &str| {
        let number = name.trim_start_matches(|character: char| !character.is_ascii_digit());
        chosen.as_deref().is_none_or(|list| list == "all" || list.split(',').any(|word| word.trim() == number))
    };
    let accelerators = devices("/dev/accel/accel*").into_iter();
    let mut found: Vec<Device> = accelerators
        .filter(|device| device.source.file_name().is_some_and(|name| is_chosen(&name.to_string_lossy())))
        .collect();
    let interfaces = files(Path::new("/sys/class/infiniband")).into_iter();
    let theirs = interfaces.filter(|(name, _)| name.starts_with("hbl_") || name.starts_with("hlib_"));
    for (_, path) in theirs.filter(|(name, _)| is_chosen(name)) {
        let verbs = files(&path.join("device/infiniband_verbs")).into_iter().next();
        let node = verbs.map(|(name, _)| Path::new("/dev/infiniband").join(name)).filter(|node| node.exists());
        found.extend(node.map(|node| device(&node, &node)));
    }
    found
}

/// The specifications in the directories, and what is wrong with others.
fn specifications(directories: &[PathBuf]) -> (Vec<SpecFile>, Vec<String>) {
    let (mut found, mut warnings) = (Vec::new(), Vec::new());
    for (index, directory) in directories.iter().enumerate() {
        for (name, path) in files(directory).into_iter().take(MAX_SPECS) {
            let parse = match name.rsplit_once('.') {
                Some((_, "json")) => Spec::from_json,
                Some((_, "yaml")) => Spec::from_yaml,
                _ => continue,
            };
            match read(&path).and_then(|text| parse(&text)) {
                Ok(spec) => found.push(SpecFile { path, directory: index, spec }),
                Err(error) => warnings.push(format!("cannot read the CDI specification {}: {error}", path.display())),
            }
        }
    }
    (found, warnings)
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_SPEC_BYTES).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn source(path: &Path) -> Option<Source> {
    let metadata = fs::metadata(path).ok()?;
    let kind = if metadata.is_dir() { SourceKind::Directory } else { SourceKind::File };
    if !metadata.is_file() {
        return Some(Source { kind, elf: None, soname: None });
    }
    let is_library = path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so"));
    let soname = is_library.then(|| library::soname(path)).flatten();
    Some(Source { kind, elf: library::kind(path), soname })
}
