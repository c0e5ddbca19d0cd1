//! Facts of the host that a plan needs, gathered before it is made.

pub mod gpu;

use crate::plan::contain::DEVICES;
use crate::plan::{HostFacts, SourceKind};
use crate::settings::{Common, Environment, RunSettings};
use anyhow::{Context, bail};
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, initgroups, setgid, setuid};
use siphon_fsd::sys::namespaces::outer_uid;
use siphon_fsd::sys::subordinate_ids::SubordinateIds;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Paths that default mounts may come from.
const DEFAULT_SOURCES: [&str; 4] = ["/etc/localtime", "/etc/hosts", "/tmp", "/var/tmp"];

/// A variable is at most 128 KiB long (MAX_ARG_STRLEN of the kernel), and the file becomes one.
const MAX_ENV_FILE_BYTES: u64 = 64 << 10;

/// Limits are a few lines.
const MAX_LIMITS_FILE_BYTES: u64 = 1 << 20;

/// Looks at what `settings` make relevant.
///
/// # Errors
/// If the user database cannot be read, or no CDI specification describes a device that is asked for.
pub fn gather(settings: &RunSettings, environment: Environment) -> anyhow::Result<HostFacts> {
    let (uid, gid) = (geteuid(), getegid());
    let user = User::from_uid(uid)?;
    let home = user.as_ref().map_or_else(|| PathBuf::from("/"), |user| user.dir.clone());
    let mut host = HostFacts {
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        // The image's daemon knows.
        other_ids: false,
        groups: groups(gid)?,
        user_name: user.as_ref().map_or_else(|| uid.to_string(), |user| user.name.clone()),
        gecos: user.as_ref().map(|user| user.gecos.to_string_lossy().into_owned()).unwrap_or_default(),
        shell: user.as_ref().map_or_else(|| "/bin/sh".into(), |user| user.shell.display().to_string()),
        // A directory that was removed meanwhile has no name to be found by inside.
        cwd: std::env::current_dir().unwrap_or_else(|_| home.clone()),
        home,
        terminal: nix::unistd::ttyname(std::io::stdin()).ok(),
        gpu: gpu::gather(&settings.gpu, &environment)?,
        environment,
        env_files: Vec::new(),
        resolv_conf: std::fs::read("/etc/resolv.conf").ok(),
        kinds: BTreeMap::new(),
        images: BTreeMap::new(),
    };
    host.env_files = settings.variables.files.iter().map(|path| env_file(path)).collect::<Result<_, _>>()?;
    host.kinds = source_kinds(settings, &host);
    Ok(host)
}

/// A file of variables, which the container's shell is handed whole.
fn env_file(path: &Path) -> anyhow::Result<String> {
    let failed = || format!("while setting environment: could not read environment file {:?}", path.display());
    let file = std::fs::File::open(path).with_context(failed)?;
    let mut text = String::new();
    file.take(MAX_ENV_FILE_BYTES + 1).read_to_string(&mut text).with_context(failed)?;
    if text.len() as u64 > MAX_ENV_FILE_BYTES {
        bail!("environment file {} is larger than {MAX_ENV_FILE_BYTES} bytes", path.display());
    }
    Ok(text)
}

fn source_kinds(settings: &RunSettings, host: &HostFacts) -> BTreeMap<PathBuf, SourceKind> {
    let mut sources: Vec<PathBuf> = DEFAULT_SOURCES.iter().chain(&DEVICES).map(PathBuf::from).collect();
    sources.push(host.home.clone());
    sources.extend(settings.home.iter().map(|home| host.absolute(&home.source)));
    sources.extend(settings.contain.workdir.iter().map(|directory| host.absolute(directory)));
    sources.extend(settings.binds.iter().map(|bind| host.absolute(&bind.source)));
    let existing = sources.into_iter().filter_map(|path| {
        let directory = std::fs::metadata(&path).ok()?.is_dir();
        Some((path, if directory { SourceKind::Directory } else { SourceKind::File }))
    });
    existing.collect()
}

/// Ids that the caller may give to users inside.
pub fn subordinate_ids() -> SubordinateIds {
    let uid = geteuid();
    // A user that has no name may have ids by its number.
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    SubordinateIds::of_user(uid.as_raw(), &name)
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

/// Who limits runs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limiter {
    /// The systemd of this user's session, or of the machine for root.
    Systemd {
        /// Whether it is this user's own.
        as_user: bool,
    },
    /// Nobody but this program itself, as far as a cgroup is delegated to it.
    Itself,
}

/// Finds out who is to limit a run.
pub fn limiter(common: &Common, environment: &Environment) -> Limiter {
    if !Path::new("/run/systemd/system").is_dir() {
        return Limiter::Itself;
    }
    if geteuid().is_root() {
        return Limiter::Systemd { as_user: false };
    }
    // A systemd with cgroups of version 1 takes the limits of a user and does nothing.
    let is_unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let bus = common.xdg_runtime_dir.as_ref().is_some_and(|directory| directory.join("bus").exists());
    match is_unified && (bus || environment.get("DBUS_SESSION_BUS_ADDRESS").is_some()) {
        true => Limiter::Systemd { as_user: true },
        false => Limiter::Itself,
    }
}

/// The controllers that systemd has delegated to this user; `None` if that cannot be told.
pub fn delegated_controllers() -> Option<Vec<String>> {
    let uid = geteuid();
    let service = format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers");
    let text = std::fs::read_to_string(service).ok()?;
    Some(text.split_whitespace().map(str::to_owned).collect())
}

/// The text of a file of limits.
///
/// # Errors
/// If it cannot be read, or is too long to be one.
pub fn limits_file(path: &Path) -> anyhow::Result<String> {
    let read = || {
        let mut text = String::new();
        std::fs::File::open(path)?.take(MAX_LIMITS_FILE_BYTES).read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    read().with_context(|| format!("cannot read the limits in {}", path.display()))
}

/// The numbers of a block device, as cgroups name it.
///
/// # Errors
/// If it is none.
pub fn disk_numbers(path: &str) -> anyhow::Result<String> {
    use std::os::unix::fs::FileTypeExt;
    let found = std::fs::metadata(path).with_context(|| format!("cannot find the disk {path}"))?;
    if !found.file_type().is_block_device() {
        bail!("{path} is no disk");
    }
    Ok(format!("{}:{}", nix::sys::stat::major(found.rdev()), nix::sys::stat::minor(found.rdev())))
}

/// Where this user's daemons keep their sockets: as set, else `$XDG_RUNTIME_DIR/siphon` if that is ours, else
/// `/tmp/siphon-UID`, by the id that the user has outside of its user namespace: there the directory may be another's.
pub fn runtime_dir(common: &Common) -> PathBuf {
    runtime_dirs(common).swap_remove(0)
}

/// The same, and where they do so while that is full or read-only, unless it was set.
pub fn runtime_dirs(common: &Common) -> Vec<PathBuf> {
    if let Some(set) = &common.runtime_dir {
        return vec![set.clone()];
    }
    let uid = geteuid().as_raw();
    let ours = |dir: &&PathBuf| std::fs::metadata(dir).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == uid);
    let below = |directory: &str| PathBuf::from(format!("{directory}/siphon-{}", outer_uid(uid).unwrap_or(uid)));
    let xdg = common.xdg_runtime_dir.as_ref().filter(ours).map(|dir| dir.join("siphon"));
    vec![xdg.unwrap_or_else(|| below("/tmp")), below("/dev/shm")]
}

/// Where this user's instances on this host are written down: as set, else `~/.local/state/siphon`, else beside the
/// sockets. The sockets' own directory may go when the user logs out, which instances outlive.
pub fn instances_dir(common: &Common) -> PathBuf {
    let home = || Some(state_below(&User::from_uid(Uid::effective()).ok()??.dir));
    let state = common.state_dir.clone().or_else(home).unwrap_or_else(|| runtime_dir(common));
    of_this_host(&state)
}

/// Gives the rights of root up for those of `user`, for good, and returns where that user's instances are written down,
/// unless another place was set.
///
/// # Errors
/// If there is no such user, or the system refuses.
pub fn become_user(user: &str) -> anyhow::Result<PathBuf> {
    let user = User::from_name(user)?.with_context(|| format!("there is no user {user}"))?;
    let name = CString::new(user.name.as_str()).context("a user's name has no NUL")?;
    let failed = || format!("cannot take the rights of user {}", user.name);
    initgroups(&name, user.gid).with_context(failed)?;
    setgid(user.gid).with_context(failed)?;
    setuid(user.uid).with_context(failed)?;
    Ok(of_this_host(&state_below(&user.dir)))
}

fn state_below(home: &Path) -> PathBuf {
    home.join(".local/state/siphon")
}

/// Homes are shared by the hosts of a cluster.
fn of_this_host(state: &Path) -> PathBuf {
    let host = nix::unistd::gethostname().unwrap_or_default();
    // A name without an end of its own never leads out of the directory.
    let name = host.to_string_lossy().replace('/', "_");
    state.join("instances").join(if name.trim_matches('.').is_empty() { "localhost".into() } else { name })
}

/// Where remote bytes are kept: as set, else `~/.cache/siphon`, else beside the sockets.
pub fn cache_dir(common: &Common) -> PathBuf {
    common
        .cache_dir
        .clone()
        .or_else(|| Some(home()?.join(".cache/siphon")))
        .unwrap_or_else(|| runtime_dir(common).join("cache"))
}

/// The user's own directory.
pub fn home() -> Option<PathBuf> {
    Some(User::from_uid(Uid::effective()).ok()??.dir)
}
