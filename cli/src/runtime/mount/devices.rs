//! A small `/dev`: a few devices of the host, and terminals and shared memory of the container's own.

use super::{bind, descriptor_path, filesystem, open_in_root};
use crate::plan::{Devices, SourceKind};
use anyhow::Context;
use nix::mount::MsFlags;
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
    let top = open_in_root(root, target)?;
    let top = descriptor_path(&top);
    for node in &wanted.nodes {
        let name = node.target.strip_prefix("/dev").context("a device belongs below /dev")?;
        device(&node.source, &top.join(name), node.kind)
            .with_context(|| format!("cannot bind {}", node.source.display()))?;
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
        device(terminal, &top.join("console"), SourceKind::File)
            .with_context(|| format!("cannot bind {}", terminal.display()))?;
    }
    Ok(())
}

/// Binds a device, or a directory of devices, of the host.
fn device(source: &Path, place: &Path, kind: SourceKind) -> anyhow::Result<()> {
    // A directory of devices that was bound before may hold it already.
    if !place.exists() {
        let directory = if kind == SourceKind::Directory { Some(place) } else { place.parent() };
        fs::create_dir_all(directory.unwrap_or(place))?;
        if kind == SourceKind::File {
            fs::write(place, [])?;
        }
    }
    Ok(bind(source, place, kind == SourceKind::Directory)?)
}

fn directory(kind: &str, place: &Path, options: &str, flags: MsFlags) -> anyhow::Result<()> {
    fs::create_dir(place)?;
    filesystem(kind, place, options, flags)
}
