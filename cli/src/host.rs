//! Facts of the host that a plan needs, gathered before it is made.

pub mod gpu;

use crate::plan::{HostFacts, SourceKind};
use crate::settings::{Common, Environment, RunSettings};
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Paths that default mounts may come from.
const DEFAULT_SOURCES: [&str; 4] = ["/etc/localtime", "/etc/hosts", "/tmp", "/var/tmp"];

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
        groups: groups(gid)?,
        user_name: user.as_ref().map_or_else(|| uid.to_string(), |user| user.name.clone()),
        gecos: user.as_ref().map(|user| user.gecos.to_string_lossy().into_owned()).unwrap_or_default(),
        shell: user.as_ref().map_or_else(|| "/bin/sh".into(), |user| user.shell.display().to_string()),
        // A directory that was removed meanwhile has no name to be found by inside.
        cwd: std::env::current_dir().unwrap_or_else(|_| home.clone()),
        home,
        gpu: gpu::gather(&settings.gpu, &environment)?,
        environment,
        resolv_conf: std::fs::read("/etc/resolv.conf").ok(),
        kinds: BTreeMap::new(),
    };
    host.kinds = source_kinds(settings, &host);
    Ok(host)
}

fn source_kinds(settings: &RunSettings, host: &HostFacts) -> BTreeMap<PathBuf, SourceKind> {
    let mut sources: Vec<PathBuf> = DEFAULT_SOURCES.map(PathBuf::from).to_vec();
    sources.push(host.home.clone());
    sources.extend(settings.home.iter().map(|home| host.absolute(&home.source)));
    sources.extend(settings.binds.iter().map(|bind| host.absolute(&bind.source)));
    let existing = sources.into_iter().filter_map(|path| {
        let directory = std::fs::metadata(&path).ok()?.is_dir();
        Some((path, if directory { SourceKind::Directory } else { SourceKind::File }))
    });
    existing.collect()
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

/// Where this user's daemons keep their sockets: as set, else `$XDG_RUNTIME_DIR/siphon` if that is ours, else
/// `/tmp/siphon-UID`.
pub fn runtime_dir(common: &Common) -> PathBuf {
    let uid = geteuid().as_raw();
    let ours = |dir: &&PathBuf| std::fs::metadata(dir).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == uid);
    let set = common.runtime_dir.clone();
    let xdg = || common.xdg_runtime_dir.as_ref().filter(ours).map(|dir| dir.join("siphon"));
    set.or_else(xdg).unwrap_or_else(|| PathBuf::from(format!("/tmp/siphon-{uid}")))
}

/// Where remote bytes are kept: as set, else `~/.cache/siphon`, else beside the sockets.
pub fn cache_dir(common: &Common) -> PathBuf {
    let home = || Some(User::from_uid(Uid::effective()).ok()??.dir.join(".cache/siphon"));
    common.cache_dir.clone().or_else(home).unwrap_or_else(|| runtime_dir(common).join("cache"))
}
