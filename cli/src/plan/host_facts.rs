//! What a plan needs to know of the host. [`crate::host`] finds it out.

use super::SourceKind;
use super::gpu::Gpu;
use crate::settings::{Environment, ImageBind};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The host as one run sees it.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// The caller.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
    /// Whether users besides the caller exist in the container.
    pub other_ids: bool,
    /// The caller's groups with their names, the first one `gid`.
    pub groups: Vec<(u32, String)>,
    /// Login name, or the uid as text.
    pub user_name: String,
    /// The comment field of passwd.
    pub gecos: String,
    /// Login shell.
    pub shell: String,
    /// Home directory by passwd.
    pub home: PathBuf,
    /// Working directory, links resolved.
    pub cwd: PathBuf,
    /// The terminal on standard input.
    pub terminal: Option<PathBuf>,
    /// The process environment.
    pub environment: Environment,
    /// The content of the files that set variables.
    pub env_files: Vec<String>,
    /// The content of `/etc/resolv.conf`.
    pub resolv_conf: Option<Vec<u8>>,
    /// What there is of the GPU drivers that were asked for.
    pub gpu: Gpu,
    /// The sources of mounts that exist.
    pub kinds: BTreeMap<PathBuf, SourceKind>,
    /// Where the daemon has the files of other images that are to be bound, below the directory of all of them, by those
    /// images and paths in them.
    pub images: BTreeMap<(PathBuf, ImageBind), (PathBuf, SourceKind)>,
}

impl HostFacts {
    /// `path` as seen from the working directory.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        let mut absolute = PathBuf::from("/");
        absolute.extend(self.cwd.join(path).components().skip(1));
        absolute
    }

    /// `path` as seen from the working directory, without `..`, links left as they are: the name by which a program
    /// inside may know its image.
    pub fn cleaned(&self, path: &Path) -> PathBuf {
        let mut cleaned = PathBuf::new();
        for component in self.absolute(path).components() {
            match component {
                Component::ParentDir => {
                    cleaned.pop();
                }
                other => cleaned.push(other),
            }
        }
        cleaned
    }

    /// What a source of a mount is; `None` if it does not exist.
    pub fn kind(&self, path: &Path) -> Option<SourceKind> {
        self.kinds.get(path).copied()
    }
}

#[cfg(test)]
impl HostFacts {
    /// A host with these directories and files, for tests of plans.
    pub fn made_up(environment: Environment, directories: &[&str], files: &[&str]) -> Self {
        let directories = directories.iter().map(|path| (PathBuf::from(path), SourceKind::Directory));
        let files = files.iter().map(|path| (PathBuf::from(path), SourceKind::File));
        Self {
            uid: 1000,
            gid: 1000,
            other_ids: false,
            groups: vec![(1000, "me".into())],
            user_name: "me".into(),
            gecos: String::new(),
            shell: "/bin/sh".into(),
            home: "/home/me".into(),
            cwd: "/work".into(),
            terminal: None,
            environment,
            env_files: Vec::new(),
            resolv_conf: Some(Vec::new()),
            gpu: Gpu::default(),
            kinds: directories.chain(files).collect(),
            images: BTreeMap::new(),
        }
    }
}
