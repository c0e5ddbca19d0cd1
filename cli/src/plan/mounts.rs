//! Which mounts a run gets, in order: files made for it, the system's, the home, the driver, the user's binds by depth,
//! the working directory. The defaults are singularity's.

use super::{Failure, HostFacts, Mount, PlanError, SourceKind, What, gpu};
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
    files.extend(empty_home(settings, host, home, warnings));
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
    mounts.extend(home_mount(settings, host, home));
    mounts.extend(temporary(settings, host));
    if !settings.left_out.contains("dev") {
        warnings.extend(gpu::renamed_devices(&host.gpu));
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
        if !settings.left_out.contains(name) {
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

fn home_mount(settings: &RunSettings, host: &HostFacts, home: &Path) -> Option<Mount> {
    if settings.left_out.contains("home") || home == Path::new("/") {
        return None;
    }
    let (source, failure) = match &settings.home {
        Some(chosen) => (host.absolute(&chosen.source), Failure::Fatal),
        None => (host.home.clone(), Failure::Warning),
    };
    host.kind(&source).map(|kind| bind(source, home, kind, failure))
}

/// What a chosen home is that the host does not have, as singularity has it: empty.
fn empty_home(settings: &RunSettings, host: &HostFacts, home: &Path, warnings: &mut Vec<String>) -> Option<Mount> {
    let source = host.absolute(&settings.home.as_ref()?.source);
    if settings.left_out.contains("home") || home == Path::new("/") || host.kind(&source).is_some() {
        return None;
    }
    warnings.push(format!("{} doesn't exist on the host: the home directory is empty and forgotten", source.display()));
    Some(Mount { target: home.to_owned(), what: What::Empty, failure: Failure::Fatal })
}

fn temporary(settings: &RunSettings, host: &HostFacts) -> Vec<Mount> {
    if settings.left_out.contains("tmp") {
        return Vec::new();
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
    if let Some(content) = &host.resolv_conf {
        files.push(("/etc/resolv.conf", content.clone()));
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
        let kind = host.kind(&source).ok_or_else(|| PlanError::NoSource(source.clone()))?;
        let target = if wanted.destination.is_absolute() { wanted.destination.clone() } else { source.clone() };
        let what = What::Bind { source, kind, read_only: wanted.read_only, trusted: false };
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
    let unwanted = settings.left_out.contains("cwd");
    if visible || the_images || the_systems || unwanted {
        return None;
    }
    Some(bind(cwd, cwd, SourceKind::Directory, Failure::Silent))
}
