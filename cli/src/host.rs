//! Facts of the host that a plan needs, gathered before it is made.

use crate::plan::SourceKind;
use crate::plan::gpu::{NVIDIA_BINARIES, NVIDIA_FILES};
use crate::settings::{Environment, RunSettings};
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Paths that default mounts may come from.
const DEFAULT_SOURCES: [&str; 4] = ["/etc/localtime", "/etc/hosts", "/tmp", "/var/tmp"];
/// Where ldconfig lies, whatever the PATH; Ubuntu's /sbin/ldconfig is a wrapper around ldconfig.real.
const LDCONFIG: [&str; 4] =
    ["/sbin/ldconfig.real", "/sbin/ldconfig", "/usr/sbin/ldconfig", "/run/current-system/sw/bin/ldconfig"];

/// The host as one run sees it.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// The caller.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
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
    /// The process environment.
    pub environment: Environment,
    /// The content of `/etc/resolv.conf`.
    pub resolv_conf: Option<Vec<u8>>,
    /// The NVIDIA driver, if it was asked for.
    pub nvidia: Option<Nvidia>,
    kinds: BTreeMap<PathBuf, SourceKind>,
}

/// What the host has of the NVIDIA driver.
#[derive(Debug, Clone, Default)]
pub struct Nvidia {
    /// What `ldconfig -p` prints.
    pub ldconfig: String,
    /// Programs found through PATH.
    pub binaries: Vec<PathBuf>,
    /// Data files that exist.
    pub files: Vec<PathBuf>,
}

impl HostFacts {
    /// Looks at what `settings` make relevant.
    ///
    /// # Errors
    /// If the working directory is gone or the user database cannot be read.
    pub fn gather(settings: &RunSettings, environment: Environment) -> anyhow::Result<Self> {
        let (uid, gid) = (geteuid(), getegid());
        let user = User::from_uid(uid)?;
        let home = user.as_ref().map_or_else(|| PathBuf::from("/"), |user| user.dir.clone());
        let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let mut host = Self {
            uid: uid.as_raw(),
            gid: gid.as_raw(),
            groups: groups(gid)?,
            user_name: user.as_ref().map_or_else(|| uid.to_string(), |user| user.name.clone()),
            gecos: user.as_ref().map(|user| user.gecos.to_string_lossy().into_owned()).unwrap_or_default(),
            shell: user.as_ref().map_or_else(|| "/bin/sh".into(), |user| user.shell.display().to_string()),
            home,
            cwd,
            environment,
            resolv_conf: std::fs::read("/etc/resolv.conf").ok(),
            nvidia: None,
            kinds: BTreeMap::new(),
        };
        host.kinds = host.source_kinds(settings);
        if settings.nv {
            host.nvidia = Some(nvidia(&host.environment));
        }
        Ok(host)
    }

    /// `path` as seen from the working directory.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        let mut absolute = PathBuf::from("/");
        absolute.extend(self.cwd.join(path).components().skip(1));
        absolute
    }

    /// What a source of a mount is; `None` if it does not exist.
    pub fn kind(&self, path: &Path) -> Option<SourceKind> {
        self.kinds.get(path).copied()
    }

    fn source_kinds(&self, settings: &RunSettings) -> BTreeMap<PathBuf, SourceKind> {
        let mut sources: Vec<PathBuf> = DEFAULT_SOURCES.map(PathBuf::from).to_vec();
        sources.push(self.home.clone());
        sources.extend(settings.home.iter().map(|home| self.absolute(&home.source)));
        sources.extend(settings.binds.iter().map(|bind| self.absolute(&bind.source)));
        let existing = sources.into_iter().filter_map(|path| {
            let directory = std::fs::metadata(&path).ok()?.is_dir();
            Some((path, if directory { SourceKind::Directory } else { SourceKind::File }))
        });
        existing.collect()
    }
}

fn groups(gid: Gid) -> anyhow::Result<Vec<(u32, String)>> {
    let mut ids = vec![gid];
    ids.extend(nix::unistd::getgroups()?.into_iter().filter(|id| *id != gid));
    let named = ids.into_iter().filter_map(|id| {
        let group = Group::from_gid(id).ok().flatten()?;
        Some((id.as_raw(), group.name))
    });
    Ok(named.collect())
}

fn nvidia(environment: &Environment) -> Nvidia {
    let ldconfig = LDCONFIG.iter().find_map(|program| {
        let output = Command::new(program).arg("-p").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| OsString::from_vec(output.stdout).to_string_lossy().into_owned())
    });
    let path = environment.get("PATH").unwrap_or(OsStr::new(crate::plan::environment::DEFAULT_PATH));
    let binary = |name: &str| std::env::split_paths(path).map(|dir| dir.join(name)).find(|file| file.is_file());
    Nvidia {
        ldconfig: ldconfig.unwrap_or_default(),
        binaries: NVIDIA_BINARIES.iter().filter_map(|name| binary(name)).collect(),
        files: NVIDIA_FILES.iter().map(PathBuf::from).filter(|path| path.exists()).collect(),
    }
}

/// Where this user's daemons keep their sockets: as set, else `$XDG_RUNTIME_DIR/siphon` if that is ours, else
/// `/tmp/siphon-UID`.
pub fn runtime_dir(common: &crate::settings::Common) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let uid = geteuid().as_raw();
    let ours = |dir: &&PathBuf| std::fs::metadata(dir).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == uid);
    let set = common.runtime_dir.clone();
    let xdg = || common.xdg_runtime_dir.as_ref().filter(ours).map(|dir| dir.join("siphon"));
    set.or_else(xdg).unwrap_or_else(|| PathBuf::from(format!("/tmp/siphon-{uid}")))
}

/// Where remote bytes are kept: as set, else `~/.cache/siphon`, else beside the sockets.
pub fn cache_dir(common: &crate::settings::Common) -> PathBuf {
    let home = || Some(User::from_uid(Uid::effective()).ok()??.dir.join(".cache/siphon"));
    common.cache_dir.clone().or_else(home).unwrap_or_else(|| runtime_dir(common).join("cache"))
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
            groups: vec![(1000, "me".into())],
            user_name: "me".into(),
            gecos: String::new(),
            shell: "/bin/sh".into(),
            home: "/home/me".into(),
            cwd: "/work".into(),
            environment,
            resolv_conf: Some(Vec::new()),
            nvidia: None,
            kinds: directories.chain(files).collect(),
        }
    }
}
