//! Limits without systemd: a cgroup of this run's own, below the one that it was started in or one above that.
//!
//! ```text
//! DELEGATED/            has the controllers, and lets this user make cgroups in it
//!     siphon-PID-N/     the files of the limits; the run, and all that it starts
//! ```
//!
//! A user has such a place where somebody delegated one: a batch system, a container engine, an administrator. Root has it
//! everywhere, with the hierarchies of version 1 too. A process outside takes the cgroup away when the last that was in it
//! is gone.

#![expect(unsafe_code, reason = "fork has no safe form")]

use anyhow::{Context, anyhow, bail};
use nix::unistd::{ForkResult, fork, setsid};
use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::time::Duration;

/// How often it is tried to take a cgroup away.
const REMOVAL_INTERVAL: Duration = Duration::from_millis(200);
/// Files of a cpuset of version 1 that have to be filled before a process can be in it.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// What is to be written into a file of a cgroup.
#[derive(Debug, Clone)]
pub struct CgroupFile {
    /// The controller whose file it is.
    pub controller: String,
    /// Its name.
    pub name: String,
    /// What is written.
    pub value: String,
}

/// Moves this process, which must have one thread, into a cgroup of its own with these files: those of version 2 if it
/// has all their controllers, else those of version 1.
///
/// # Errors
/// What stands in the way.
pub fn enter_cgroup(version_2: &[CgroupFile], version_1: Option<&[CgroupFile]>) -> anyhow::Result<()> {
    let made = match (make_version_2(version_2), version_1) {
        (Ok(made), _) => made,
        (Err(_), Some(files)) if nix::unistd::geteuid().is_root() && has_version_1(files) => make_version_1(files)?,
        (Err(error), _) => return Err(error),
    };
    let moved = made.0.iter().try_for_each(|cgroup| {
        let pid = std::process::id().to_string();
        fs::write(cgroup.join("cgroup.procs"), pid)
            .with_context(|| format!("cannot move this process into {}", cgroup.display()))
    });
    // What was made goes with the process that waits for its end, whether this one is in there or not.
    moved
}

/// Cgroups, and a process that takes them away once this is dropped and they are empty.
struct Made(Vec<PathBuf>, #[expect(dead_code, reason = "the process that waits sees its end")] std::io::PipeWriter);

fn make_version_2(files: &[CgroupFile]) -> anyhow::Result<Made> {
    let (mount, own) = version_2().context("cannot limit a run: no cgroup v2 is mounted")?;
    let wanted: BTreeSet<&str> = files.iter().map(|file| file.controller.as_str()).collect();
    let mut reason = None;
    for parent in own.ancestors().take_while(|parent| parent.starts_with(&mount)) {
        match enable(parent, &wanted).and_then(|()| make(parent)) {
            Ok(cgroup) => {
                let made = watch(vec![cgroup.clone()])?;
                write(&cgroup, files)?;
                return Ok(made);
            }
            Err(error) => reason = reason.or(Some(error)),
        }
    }
    let reason = reason.unwrap_or_else(|| anyhow!("{} is outside of {}", own.display(), mount.display()));
    Err(reason.context("cannot limit a run: no cgroup of version 2 is delegated to it"))
}

/// Has all of the controllers in the cgroups below `parent`.
fn enable(parent: &Path, wanted: &BTreeSet<&str>) -> anyhow::Result<()> {
    let read = |name: &str| -> anyhow::Result<BTreeSet<String>> {
        let path = parent.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    };
    let available = read("cgroup.controllers")?;
    let missing: Vec<_> = wanted.iter().filter(|name| !available.contains(**name)).copied().collect();
    if !missing.is_empty() {
        bail!("the controller {} is not available in {}", missing.join(", "), parent.display());
    }
    let enabled = read("cgroup.subtree_control")?;
    for controller in wanted.iter().filter(|name| !enabled.contains(**name)) {
        let path = parent.join("cgroup.subtree_control");
        fs::write(&path, format!("+{controller}"))
            .with_context(|| format!("cannot have the controller {controller} below {}", parent.display()))?;
    }
    Ok(())
}

/// Makes a cgroup for this process.
fn make(parent: &Path) -> anyhow::Result<PathBuf> {
    let mut number = 0;
    loop {
        let cgroup = parent.join(format!("siphon-{}-{number}", std::process::id()));
        match fs::create_dir(&cgroup) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && number < 100 => number += 1,
            made => {
                return made.map(|()| cgroup).with_context(|| format!("cannot make a cgroup in {}", parent.display()));
            }
        }
    }
}

fn write(cgroup: &Path, files: &[CgroupFile]) -> anyhow::Result<()> {
    for CgroupFile { controller, name, value } in files {
        let path = cgroup.join(name);
        // The scheduler of the disks decides under which name it takes weights.
        let scheduled = cgroup.join(name.replacen("io.weight", "io.bfq.weight", 1));
        let written = fs::write(&path, value).or_else(|error| match error.kind() {
            ErrorKind::NotFound if path != scheduled => fs::write(&scheduled, value),
            _ => Err(error),
        });
        written.with_context(|| format!("cannot set {name} of the controller {controller} to {value}"))?;
    }
    Ok(())
}

fn has_version_1(files: &[CgroupFile]) -> bool {
    files.iter().all(|file| version_1(&file.controller).is_some())
}

fn make_version_1(files: &[CgroupFile]) -> anyhow::Result<Made> {
    let controllers: BTreeSet<&str> = files.iter().map(|file| file.controller.as_str()).collect();
    let mut cgroups = Vec::new();
    for controller in controllers {
        let parent = version_1(controller).with_context(|| format!("no cgroup has the controller {controller}"))?;
        let cgroup = make(&parent)?;
        if controller == "cpuset" {
            for name in CPUSET {
                fs::read(parent.join(name))
                    .and_then(|value| fs::write(cgroup.join(name), value))
                    .with_context(|| format!("cannot set {name} as it is in {}", parent.display()))?;
            }
        }
        let own: Vec<_> = files.iter().filter(|file| file.controller == controller).cloned().collect();
        let written = write(&cgroup, &own);
        cgroups.push(cgroup);
        if written.is_err() {
            cgroups.iter().for_each(|cgroup| drop(fs::remove_dir(cgroup)));
            written?;
        }
    }
    watch(cgroups)
}

/// Starts a process outside that takes the cgroups away when they are empty. It is nobody's child, and holds nothing open.
fn watch(cgroups: Vec<PathBuf>) -> anyhow::Result<Made> {
    let (mut told, tell) = std::io::pipe().context("cannot make a pipe")?;
    // SAFETY: there is a single thread: the child's memory is whole.
    match unsafe { fork() }.context("cannot start a process that takes the cgroup away")? {
        ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).context("cannot wait for a child")?;
            Ok(Made(cgroups, tell))
        }
        ForkResult::Child => {
            drop(tell);
            // SAFETY: as above.
            let is_watcher = matches!(unsafe { fork() }, Ok(ForkResult::Child));
            if is_watcher && setsid().is_ok() && super::instance::close_all_but(&told).is_ok() {
                let _ = told.read_to_end(&mut Vec::new());
                take_away(&cgroups);
            }
            exit(0)
        }
    }
}

fn take_away(cgroups: &[PathBuf]) {
    let is_left = |cgroup: &&PathBuf| {
        let removed = fs::remove_dir(cgroup);
        removed.is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY))
    };
    while cgroups.iter().filter(is_left).count() > 0 {
        std::thread::sleep(REMOVAL_INTERVAL);
    }
}

/// Where version 2 is mounted, and the directory of this process's cgroup.
fn version_2() -> Option<(PathBuf, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let (mount, root) = mounts.lines().find_map(|line| mounted(line, |kind, _| kind == "cgroup2"))?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some((mount.clone(), below(&mount, &root, own)))
}

/// The directory of this process's cgroup in the hierarchy of version 1 that has `controller`.
fn version_1(controller: &str) -> Option<PathBuf> {
    let has = |list: &str| list.split(',').any(|name| name == controller);
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let is_wanted = |kind: &str, options: &str| kind == "cgroup" && has(options);
    let (mount, root) = mounts.lines().find_map(|line| mounted(line, is_wanted))?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        fields.next().filter(|list| has(list))?;
        fields.next()
    })?;
    Some(below(&mount, &root, own))
}

/// Where it is mounted and what of it, if a line of `mountinfo` is of a wanted kind and options.
fn mounted(line: &str, is_wanted: impl Fn(&str, &str) -> bool) -> Option<(PathBuf, PathBuf)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut filesystem = filesystem.split(' ');
    let (kind, options) = (filesystem.next()?, filesystem.nth(1)?);
    let mut mount = mount.split(' ').skip(3);
    let (root, target) = (mount.next()?, mount.next()?);
    is_wanted(kind, options).then(|| (target.into(), root.into()))
}

fn below(mount: &Path, root: &Path, own: &str) -> PathBuf {
    let own = Path::new(own);
    let inside = own.strip_prefix(root).or_else(|_| own.strip_prefix("/")).unwrap_or(own);
    // A trailing slash would make the mount itself one of its ancestors twice.
    mount.components().chain(inside.components()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_is_found_by_its_kind_and_its_controller() {
        let line = "42 32 0:29 /job /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory,hugetlb";

        let found = mounted(line, |kind, options| kind == "cgroup" && options.contains("memory"));

        assert_eq!(found, Some((PathBuf::from("/sys/fs/cgroup/memory"), PathBuf::from("/job"))));
        assert_eq!(mounted(line, |kind, _| kind == "cgroup2"), None);
        assert_eq!(below(Path::new("/c"), Path::new("/job"), "/job/a"), Path::new("/c/a"));
        assert_eq!(below(Path::new("/c"), Path::new("/"), "/"), Path::new("/c"));
    }

    #[test]
    fn a_controller_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cgroup.controllers"), "pids\n").unwrap();
        fs::write(directory.path().join("cgroup.subtree_control"), "pids\n").unwrap();

        enable(directory.path(), &BTreeSet::from(["pids"])).unwrap();
        let error = enable(directory.path(), &BTreeSet::from(["pids", "memory"])).unwrap_err().to_string();

        assert!(error.contains("memory") && error.contains("not available"), "{error}");
    }
}
