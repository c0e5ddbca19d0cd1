//! A small `/dev`: a few devices of the host, and terminals and shared memory of the container's own.

use super::{bind, descriptor_path, filesystem, open_in_root};
use crate::plan::{Devices, SourceKind};
use anyhow::Context;
use nix::mount::MsFlags;
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Names that lead to what the process has open.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Mounts it on `target`.
pub(super) fn place(root: &OwnedFd, target: &Path, wanted: &Devices) -> anyhow::Result<()> {
    let below = open_in_root(root, target)?;
    // Links and empty files are all that it holds.
    filesystem("tmpfs", &descriptor_path(&below), "mode=0755,size=64k", MsFlags::MS_NOSUID)?;
    let dev = open_in_root(root, target)?;
    let top = descriptor_path(&dev);
    let device = |source: &Path, name: &Path, kind| {
        device(source, &dev, name, kind).with_context(|| format!("cannot bind {}", source.display()))
    };
    for node in &wanted.nodes {
        device(&node.source, node.target.strip_prefix("/dev").context("a device belongs below /dev")?, node.kind)?;
    }
    for (name, leads_to) in LINKS {
        symlink(leads_to, top.join(name))?;
    }
    let own = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    directory("tmpfs", &top.join("shm"), "mode=1777", own)?;
    if wanted.queues {
        directory("mqueue", &top.join("mqueue"), "", own | MsFlags::MS_NOEXEC)?;
    }
    if wanted.terminals {
        let options = "newinstance,ptmxmode=0666,mode=0620";
        directory("devpts", &top.join("pts"), options, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
        symlink("pts/ptmx", top.join("ptmx"))?;
    }
    if let Some(terminal) = &wanted.console {
        device(terminal, Path::new("console"), SourceKind::File)?;
    }
    Ok(())
}

/// Binds a device, or a directory of devices, of the host to `name` in the `/dev` that `top` is.
fn device(source: &Path, top: &OwnedFd, name: &Path, kind: SourceKind) -> anyhow::Result<()> {
    let place = descriptor_path(top).join(name);
    // A directory of devices that was bound before may hold it already.
    if !place.exists() {
        make(top, name, kind).with_context(|| format!("cannot make {name:?} in the container's own /dev"))?;
    }
    Ok(bind(source, &place, kind == SourceKind::Directory)?)
}

/// Makes a place to mount on. A directory of the host that was bound before is not made in: it takes no step onto
/// another mount.
fn make(top: &OwnedFd, name: &Path, kind: SourceKind) -> anyhow::Result<()> {
    let own = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = top.try_clone()?;
    let directories = if kind == SourceKind::Directory { name } else { name.parent().unwrap_or(Path::new("")) };
    for part in directories {
        let open = || openat2(&at, part, directory, Mode::empty(), own);
        at = match open() {
            Err(Errno::NOENT) => mkdirat(&at, part, Mode::from_raw_mode(0o755)).and_then(|()| open()),
            opened => opened,
        }
        .map_err(|errno| match errno {
            Errno::XDEV => anyhow::anyhow!("{part:?} is a directory of the host, which has no such device"),
            errno => errno.into(),
        })?;
    }
    if let (SourceKind::File, Some(file)) = (kind, name.file_name()) {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
        openat(&at, file, flags, Mode::from_raw_mode(0o644))?;
    }
    Ok(())
}

fn directory(kind: &str, place: &Path, options: &str, flags: MsFlags) -> anyhow::Result<()> {
    fs::create_dir(place)?;
    filesystem(kind, place, options, flags)
}
