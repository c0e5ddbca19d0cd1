//! Devices by the Container Device Interface: specification files say what a container needs of the host for each.
//!
//! ```text
//! /etc/cdi/*.yaml -> Spec -> select() by vendor/class=name -> Injection -> mounts, libraries, variables
//! ```
//!
//! A specification may also name hooks: programs that would change the container's files before it starts. None is run.
//! What those of NVIDIA's toolkit would have done is read from their arguments and becomes mounts of the run.

mod hook;
mod spec;

pub use spec::{Spec, SpecFile};

use super::{Failure, Library, Mount, PlanError, SourceKind, What};
use hook::Effect;
use siphon_image::elf::ElfKind;
use spec::{DeviceNode, Edits};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// A device could not be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CdiError {
    /// The name has another form.
    #[error("{0:?} is not the name of a CDI device, which has the form vendor/class=name, such as nvidia.com/gpu=all")]
    Name(String),
    /// No specification has it.
    #[error(
        "no CDI specification in {directories} describes {device}; {}",
        if known.is_empty() {
            "there is none of any device (NVIDIA's is written by: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml)"
                .to_owned()
        } else {
            format!("the devices described are {}", known.join(", "))
        }
    )]
    Unknown {
        /// The device.
        device: String,
        /// Where was looked.
        directories: String,
        /// What is described there.
        known: Vec<String>,
    },
    /// Two specifications of one directory have it.
    #[error("both {first} and {second} describe the CDI device {device}; remove one of them")]
    Conflict {
        /// The device.
        device: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// The specification is older than the host.
    #[error("a CDI specification asks for {0}, which does not exist; write it anew for the present driver")]
    NoSource(PathBuf),
}

/// All that the specifications of the chosen devices ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Injection {
    /// Variables to set inside.
    pub variables: Vec<(String, String)>,
    /// Device nodes: on the host, and inside.
    pub devices: Vec<(PathBuf, PathBuf)>,
    /// What is on the host under the sources of mounts; to be filled by whoever can look.
    pub sources: BTreeMap<PathBuf, Source>,
    /// What could not be understood or is not done.
    pub warnings: Vec<String>,
    /// Where newer CUDA libraries of the image are taken instead of those of the driver.
    pub compatibility: Option<Compatibility>,
    binds: Vec<Bind>,
    /// What a link names, and where it lies, both inside.
    links: Vec<(PathBuf, PathBuf)>,
    /// Directories inside whose libraries the loader has to find.
    folders: Vec<PathBuf>,
}

/// A file of the host that a specification names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// File or directory.
    pub kind: SourceKind,
    /// What it is, if it is an ELF file.
    pub elf: Option<ElfKind>,
    /// The name under which programs ask for it, if it is a library.
    pub soname: Option<String>,
}

/// CUDA's forward compatibility: libraries of the image for a newer driver than the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compatibility {
    /// Where the image has them.
    pub directory: PathBuf,
    /// The first number of the host's driver version: what is not newer is not taken.
    pub driver: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Bind {
    source: PathBuf,
    target: PathBuf,
    read_only: bool,
}

/// What `devices` need, by the specifications in `files`. Of two directories, the later one's word counts.
///
/// # Errors
/// [`CdiError`] for the first device that cannot be had.
pub fn select(files: &[SpecFile], devices: &[String], directories: &[PathBuf]) -> Result<Injection, CdiError> {
    let mut injection = Injection::default();
    let mut applied: Vec<&Path> = Vec::new();
    for device in devices {
        let (kind, name) = split(device).ok_or_else(|| CdiError::Name(device.clone()))?;
        let file = find(files, device, (kind, name), directories)?;
        // What holds for all devices of a specification is done once.
        if !applied.contains(&file.path.as_path()) {
            injection.apply(&file.spec.container_edits);
            applied.push(&file.path);
        }
        injection.apply(file.spec.edits(name).ok_or_else(|| CdiError::Name(device.clone()))?);
    }
    Ok(injection)
}

/// `nvidia.com/gpu` and `0` of `nvidia.com/gpu=0`.
fn split(device: &str) -> Option<(&str, &str)> {
    let (kind, name) = device.split_once('=')?;
    let (vendor, class) = kind.split_once('/')?;
    let plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
    };
    (plain(vendor) && plain(class) && plain(name)).then_some((kind, name))
}

fn find<'a>(
    files: &'a [SpecFile],
    device: &str,
    (kind, name): (&str, &str),
    directories: &[PathBuf],
) -> Result<&'a SpecFile, CdiError> {
    let describes = |file: &&SpecFile| file.spec.kind == kind && file.spec.edits(name).is_some();
    let best = files.iter().filter(describes).map(|file| file.directory).max();
    let mut found = files.iter().filter(describes).filter(|file| Some(file.directory) == best);
    match (found.next(), found.next()) {
        (Some(file), None) => Ok(file),
        (Some(first), Some(second)) => Err(CdiError::Conflict {
            device: device.to_owned(),
            first: first.path.clone(),
            second: second.path.clone(),
        }),
        (None, _) => Err(CdiError::Unknown {
            device: device.to_owned(),
            directories: directories.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
            known: files.iter().flat_map(|file| file.spec.names()).collect(),
        }),
    }
}

impl Injection {
    /// The host's paths that the mounts come from.
    pub fn wanted_sources(&self) -> impl Iterator<Item = &Path> {
        self.binds.iter().map(|bind| bind.source.as_path())
    }

    fn apply(&mut self, edits: &Edits) {
        let variables = edits.env.iter().filter_map(|variable| variable.split_once('='));
        self.variables.extend(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        for DeviceNode { path, host_path } in &edits.device_nodes {
            let device = (host_path.clone().unwrap_or_else(|| path.clone()), path.clone());
            if !self.devices.contains(&device) {
                self.devices.push(device);
            }
        }
        for mount in &edits.mounts {
            if mount.kind.as_deref().is_some_and(|kind| kind != "bind" && kind != "none") {
                self.warnings.push(format!(
                    "the CDI specification's {} on {} is not mounted: only binds are",
                    mount.kind.as_deref().unwrap_or_default(),
                    mount.container_path.display()
                ));
                continue;
            }
            self.binds.push(Bind {
                source: mount.host_path.clone(),
                target: mount.container_path.clone(),
                read_only: mount.options.iter().any(|option| option == "ro"),
            });
        }
        for hook in &edits.hooks {
            match hook::effect(hook) {
                Ok(effects) => effects.into_iter().for_each(|effect| self.take(effect)),
                Err(warning) => self.warnings.push(warning),
            }
        }
    }

    fn take(&mut self, effect: Effect) {
        match effect {
            Effect::Link { names, at } => self.links.push((names, at)),
            Effect::Folder(folder) => self.folders.push(folder),
            Effect::Compatibility(compatibility) => self.compatibility = Some(compatibility),
        }
    }

    /// The libraries that the loader is to find in the run's own directory: those in the folders that a hook would have
    /// put into the loader's cache, by file name, by the name that programs ask for, and by the links to them.
    pub(super) fn libraries(&self, own: Option<ElfKind>) -> Vec<Library> {
        let ours = |source: &PathBuf| self.sources.get(source).is_some_and(|source| own.is_some() && source.elf == own);
        let in_folder = |path: &Path| path.parent().is_some_and(|parent| self.has_folder(parent));
        let names = self.names().0.into_iter().filter(|(path, source)| in_folder(path) && ours(source));
        let library = |(path, source): (PathBuf, PathBuf)| Some(Library { name: file_name(&path)?.to_owned(), source });
        names.filter_map(library).collect()
    }

    /// All that is bound.
    ///
    /// # Errors
    /// [`CdiError::NoSource`] if the host lacks a file that the specification names.
    pub(super) fn mounts(&self, warnings: &mut Vec<String>) -> Result<Vec<Mount>, PlanError> {
        let mut mounts = Vec::new();
        for bind in &self.binds {
            let source = self.sources.get(&bind.source).ok_or_else(|| CdiError::NoSource(bind.source.clone()))?;
            mounts.push(mount(&bind.source, &bind.target, source.kind, bind.read_only));
        }
        let (names, unresolved) = self.names();
        // What the loader is to find lies in the run's own directory. An empty file that such a name was once mounted on
        // would be in the way of later runs, so in its own place appears only what a link was asked for.
        for (_, link) in self.links.iter().filter(|(_, link)| !self.binds.iter().any(|bind| bind.target == *link)) {
            mounts.extend(names.get(link).map(|source| mount(source, link, SourceKind::File, true)));
        }
        for (target, link) in unresolved {
            let (link, target) = (link.display(), target.display());
            warnings
                .push(format!("the CDI specification's link {link} is not made: {target} is no file of the device"));
        }
        Ok(mounts)
    }

    /// Paths inside with the files of the host that they stand for: what is bound, the names that a loader's cache would
    /// have linked to it, and links; then the links that name anything else.
    fn names(&self) -> (BTreeMap<PathBuf, PathBuf>, Vec<(PathBuf, PathBuf)>) {
        let mut names = BTreeMap::new();
        for bind in self.binds.iter().filter(|bind| self.is_file(&bind.source)) {
            names.insert(bind.target.clone(), bind.source.clone());
        }
        for bind in &self.binds {
            let soname = self.sources.get(&bind.source).and_then(|source| source.soname.as_deref());
            let folder = bind.target.parent().filter(|folder| self.has_folder(folder));
            if let (Some(soname), Some(folder)) = (soname.filter(|name| is_plain(name)), folder) {
                names.entry(folder.join(soname)).or_insert_with(|| bind.source.clone());
            }
        }
        let mut pending = self.links.clone();
        loop {
            let before = pending.len();
            pending.retain(|(target, link)| {
                let place = link.parent().unwrap_or(Path::new("/")).join(target);
                let Some(source) = names.get(&clean(&place)).cloned() else { return true };
                names.entry(link.clone()).or_insert(source);
                false
            });
            // A link may name another one.
            if pending.is_empty() || pending.len() == before {
                return (names, pending);
            }
        }
    }

    fn has_folder(&self, folder: &Path) -> bool {
        self.folders.iter().any(|known| known == folder)
    }

    fn is_file(&self, source: &Path) -> bool {
        self.sources.get(source).is_some_and(|source| source.kind == SourceKind::File)
    }
}

fn mount(source: &Path, target: &Path, kind: SourceKind, read_only: bool) -> Mount {
    let what = What::Bind { source: source.to_owned(), kind, read_only, trusted: false };
    Mount { target: target.to_owned(), what, failure: Failure::Warning }
}

/// Whether a library's own word for its name is one: it becomes part of a path.
fn is_plain(name: &str) -> bool {
    !name.contains('/') && !matches!(name, "" | "." | "..")
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// An absolute path without `..`.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::CurDir => {}
            other => cleaned.push(other),
        }
    }
    cleaned
}

#[cfg(test)]
mod tests;
