//! Which mounts a run gets, in order: files made for it, the system's, the home, the driver, the user's binds by depth,
//! the working directory. The defaults are singularity's.

use super::accounts::ROOT_HOME;
use super::{Failure, HostFacts, Mount, PlanError, Processes, SourceKind, What, contain, gpu};
use crate::settings::RunSettings;
use siphon_image::open::Facts;
use std::path::{Path, PathBuf};

/// Working directories that are never bound: they belong to the image.
const IMAGE_DIRECTORIES: [&str; 10] = ["/", "/etc", "/bin", "/mnt", "/usr", "/var", "/opt", "/sbin", "/lib", "/lib64"];
/// Trees whose directories are there already.
const SYSTEM_TREES: [&str; 3] = ["/sys", "/proc", "/dev"];

/// The home directory inside.
pub(super) fn container_home(settings: &RunSettings, host: &HostFacts) -> PathBuf {
    match &settings.home {
        Some(home) => home.destination.clone().unwrap_or_else(|| host.absolute(&home.source)),
        None if settings.fakeroot.is_some() => ROOT_HOME.into(),
        None => host.home.clone(),
    }
}

/// Files that are made for the run.
pub(super) fn files(
    settings: &RunSettings,
    image: &Facts,
    host: &HostFacts,
    home: &Path,
    warnings: &mut Vec<String>,
) -> Vec<Mount> {
    let mut files = accounts(settings, image, host, home, warnings);
    files.extend(gpu::directories(&settings.gpu, &host.gpu, warnings));
    files
}

/// What the host has and the container sees.
pub(super) fn mounts(
    settings: &RunSettings,
    host: &HostFacts,
    home: &Path,
    warnings: &mut Vec<String>,
) -> Result<Vec<Mount>, PlanError> {
    let mut mounts = system(settings, host);
    mounts.extend(home_mount(settings, host, home, warnings));
    mounts.extend(temporary(settings, host));
    mounts.extend(contain::scratch(settings, host));
    if !settings.left_out.contains("dev") {
        warnings.extend(gpu::lost_devices(&host.gpu, settings.contain.contained));
    }
    mounts.extend(gpu::mounts(&host.gpu, warnings)?);
    mounts.extend(user_binds(settings, host)?);
    mounts.extend(working_directory(settings, host, &mounts));
    Ok(mounts)
}

fn bind(source: impl Into<PathBuf>, target: impl Into<PathBuf>, kind: SourceKind, failure: Failure) -> Mount {
    let what = What::Bind { source: source.into(), kind, read_only: false, trusted: false };
    Mount { target: target.into(), what, failure }
}

fn system(settings: &RunSettings, host: &HostFacts) -> Vec<Mount> {
    let mut mounts = Vec::new();
    for (name, path) in [("dev", "/dev"), ("proc", "/proc"), ("sys", "/sys")] {
        if settings.left_out.contains(name) {
            continue;
        }
        if name == "proc" && settings.namespaces.processes != Processes::Shared {
            // The host's would show other processes under the numbers of the container's own.
            mounts.push(Mount { target: path.into(), what: What::Processes, failure: Failure::Fatal });
        } else if name == "dev" && settings.contain.contained {
            mounts.push(contain::devices(settings, host));
        } else {
            let what = What::Bind { source: path.into(), kind: SourceKind::Directory, read_only: false, trusted: true };
            mounts.push(Mount { target: path.into(), what, failure: Failure::Warning });
        }
    }
    for path in ["/etc/localtime", "/etc/hosts"] {
        let wanted = !settings.left_out.contains("bind-paths") && !settings.left_out.contains(path);
        if let (true, Some(kind)) = (wanted, host.kind(Path::new(path))) {
            mounts.push(bind(path, path, kind, Failure::Warning));
        }
    }
    mounts
}

fn home_mount(settings: &RunSettings, host: &HostFacts, home: &Path, warnings: &mut Vec<String>) -> Option<Mount> {
    if settings.left_out.contains("home") || home == Path::new("/") {
        return None;
    }
    let Some(chosen) = &settings.home else {
        if settings.contain.contained {
            return Some(contain::home(settings, host, home));
        }
        return host.kind(&host.home).map(|kind| bind(&host.home, home, kind, Failure::Warning));
    };
    let source = host.absolute(&chosen.source);
    match host.kind(&source) {
        Some(kind) => Some(bind(source, home, kind, Failure::Fatal)),
        // As singularity has it: empty.
        None => {
            let source = source.display();
            warnings.push(format!("{source} doesn't exist on the host: the home directory is empty and forgotten"));
            Some(contain::home(settings, host, home))
        }
    }
}

fn temporary(settings: &RunSettings, host: &HostFacts) -> Vec<Mount> {
    if settings.left_out.contains("tmp") {
        return Vec::new();
    }
    if settings.contain.contained {
        return contain::temporary(settings, host);
    }
    let existing = ["/tmp", "/var/tmp"].into_iter().filter_map(|path| Some((path, host.kind(Path::new(path))?)));
    existing.map(|(path, kind)| bind(path, path, kind, Failure::Warning)).collect()
}

fn accounts(
    settings: &RunSettings,
    image: &Facts,
    host: &HostFacts,
    home: &Path,
    warnings: &mut Vec<String>,
) -> Vec<Mount> {
    let mut files = Vec::new();
    if let Some(name) = &settings.namespaces.hostname {
        files.push(("/etc/hostname", format!("{name}\n").into_bytes()));
    }
    if let Some(content) = name_servers(settings).or_else(|| host.resolv_conf.clone()) {
        files.push(("/etc/resolv.conf", content));
    }
    // Root writes its own passwd into a writable image: useradd and friends replace the file by renaming.
    if !(host.uid == 0 && settings.writes != crate::settings::Writes::Refused) {
        match &image.passwd {
            Some(passwd) => files.push(("/etc/passwd", with_user(passwd, host, home).into_bytes())),
            None => warnings.push("passwd file doesn't exist in container, not updating".into()),
        }
        match &image.group {
            Some(group) => files.push(("/etc/group", with_groups(group, host).into_bytes())),
            None => warnings.push("group file doesn't exist in container, not updating".into()),
        }
    }
    let mount = |(target, content): (&str, Vec<u8>)| Mount {
        target: target.into(),
        what: What::File(content),
        failure: Failure::Warning,
    };
    files.into_iter().map(mount).collect()
}

/// A resolv.conf of the chosen name servers.
fn name_servers(settings: &RunSettings) -> Option<Vec<u8>> {
    let servers = &settings.contain.name_servers;
    let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    (!servers.is_empty()).then(|| text.into_bytes())
}

/// The image's passwd with a line for the caller, whose home is the one inside.
fn with_user(passwd: &str, host: &HostFacts, home: &Path) -> String {
    let mut text: String =
        passwd.lines().filter(|line| !names_id(line, host.uid)).map(|line| format!("{line}\n")).collect();
    let known = passwd.lines().find(|line| names_id(line, host.uid));
    let shell = known.and_then(|line| line.split(':').nth(6)).unwrap_or(&host.shell);
    let name = known.and_then(|line| line.split(':').next()).unwrap_or(&host.user_name);
    let line = format!("{name}:x:{}:{}:{}:{}:{shell}\n", host.uid, host.gid, host.gecos, home.display());
    text.push_str(&line);
    text
}

/// The image's groups with a line for each of the caller's that it lacks.
fn with_groups(group: &str, host: &HostFacts) -> String {
    let mut text: String = group.lines().map(|line| format!("{line}\n")).collect();
    for (id, name) in &host.groups {
        if !group.lines().any(|line| names_id(line, *id)) {
            text.push_str(&format!("{name}:x:{id}:{}\n", host.user_name));
        }
    }
    text
}

/// Whether the third field of a passwd or group line is `id`.
fn names_id(line: &str, id: u32) -> bool {
    line.split(':').nth(2).is_some_and(|field| field == id.to_string())
}

fn user_binds(settings: &RunSettings, host: &HostFacts) -> Result<Vec<Mount>, PlanError> {
    let mut mounts = Vec::new();
    for wanted in &settings.binds {
        let source = host.absolute(&wanted.source);
        if let Some(image) = &wanted.image {
            let found = host.images.get(&(source.clone(), image.clone()));
            let (place, kind) = found.cloned().ok_or(PlanError::NoSource(source))?;
            let what = What::Image { source: place, kind };
            mounts.push(Mount { target: wanted.destination.clone(), what, failure: Failure::Fatal });
            continue;
        }
        let kind = host.kind(&source).ok_or_else(|| PlanError::NoSource(source.clone()))?;
        let target = if wanted.destination.is_absolute() { wanted.destination.clone() } else { source.clone() };
        // Who binds a device wants to use it; whether that is allowed is for the device's own permissions to say.
        let trusted = source.starts_with("/dev");
        let what = What::Bind { source, kind, read_only: wanted.read_only, trusted };
        mounts.push(Mount { target, what, failure: Failure::Fatal });
    }
    // A mount hides what was mounted below it, so the shallow ones come first; the sort keeps the order of equals.
    mounts.sort_by_key(|mount| mount.target.components().count());
    Ok(mounts)
}

fn working_directory(settings: &RunSettings, host: &HostFacts, mounts: &[Mount]) -> Option<Mount> {
    let cwd = &host.cwd;
    let visible = mounts.iter().any(|mount| {
        matches!(&mount.what, What::Bind { source, .. } if *source == mount.target) && cwd.starts_with(&mount.target)
    });
    let the_images = IMAGE_DIRECTORIES.iter().any(|path| cwd == Path::new(path));
    let the_systems = SYSTEM_TREES.iter().any(|path| cwd.starts_with(path));
    let unwanted = settings.left_out.contains("cwd") || settings.contain.contained;
    if visible || the_images || the_systems || unwanted {
        return None;
    }
    Some(bind(cwd, cwd, SourceKind::Directory, Failure::Silent))
}
