//! Single mounts, each onto a descriptor that was opened inside the image's root, so that no link of the image leads
//! out of it.

use crate::plan::{Mount, SourceKind, What};
use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Opens the mounted image as the root to be, read-only unless `writable`. The mount is this namespace's own copy, so
/// that its flags are nobody else's.
///
/// It becomes unbindable: where the daemon's directory lies in `/tmp`, binding `/tmp` would otherwise put the container
/// into itself.
pub(super) fn root(image: &Path, writable: bool) -> anyhow::Result<OwnedFd> {
    let root = open_path(image).with_context(|| format!("cannot open {}", image.display()))?;
    if !writable {
        remount(&root, MsFlags::MS_RDONLY).context("cannot make the image read-only")?;
    }
    mount(None::<&str>, image, None::<&str>, MsFlags::MS_UNBINDABLE, None::<&str>)?;
    Ok(root)
}

/// Takes back what [`root`] did, for programs inside that make containers of their own.
pub(super) fn bindable_root() -> nix::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
}

/// Binds a path of the host.
pub(super) fn bind_into(root: &OwnedFd, wanted: &Mount) -> anyhow::Result<()> {
    let What::Bind { source, kind, read_only, trusted } = &wanted.what else {
        bail!("{} is not a bind", wanted.target.display())
    };
    let mut flags = if *trusted { MsFlags::empty() } else { MsFlags::MS_NOSUID | MsFlags::MS_NODEV };
    flags.set(MsFlags::MS_RDONLY, *read_only);
    attach(root, source, &wanted.target, *kind == SourceKind::Directory, flags)
}

/// A temporary filesystem for the files of one run.
#[derive(Debug)]
pub(super) struct Session {
    directory: PathBuf,
}

impl Session {
    pub(super) fn new(directory: &Path) -> anyhow::Result<Self> {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("siphon"), directory, Some("tmpfs"), flags, Some("mode=0755"))
            .with_context(|| format!("cannot mount a tmpfs on {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Makes one file or directory of files and mounts it. `index` keeps them apart.
    pub(super) fn mount(&self, root: &OwnedFd, index: usize, wanted: &Mount) -> anyhow::Result<()> {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        match &wanted.what {
            What::Bind { .. } => bind_into(root, wanted),
            What::File(content) => {
                let source = self.directory.join(index.to_string());
                fs::write(&source, content)?;
                attach(root, &source, &wanted.target, false, flags)
            }
            What::Libraries(files) => attach(root, &self.libraries(index, files)?, &wanted.target, true, flags),
        }
    }

    /// Takes the filesystem out of the tree; what was mounted from it stays.
    pub(super) fn close(self) -> anyhow::Result<()> {
        umount2(&self.directory, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", self.directory.display()))
    }

    /// A directory in which each of `files` is bound under its own name.
    fn libraries(&self, index: usize, files: &[PathBuf]) -> anyhow::Result<PathBuf> {
        let directory = self.directory.join(index.to_string());
        fs::create_dir(&directory)?;
        for file in files {
            let Some(name) = file.file_name() else { continue };
            let place = directory.join(name);
            fs::write(&place, [])?;
            bind(file, &place, false).with_context(|| format!("cannot bind {}", file.display()))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
            remount(&open_path(&place)?, flags)?;
        }
        Ok(directory)
    }
}

fn attach(root: &OwnedFd, source: &Path, target: &Path, recursive: bool, flags: MsFlags) -> anyhow::Result<()> {
    let place = open_in_root(root, target)?;
    bind(source, &descriptor_path(&place), recursive).with_context(|| format!("cannot bind {}", source.display()))?;
    if flags.is_empty() {
        return Ok(());
    }
    // The descriptor names what lies below the new mount, so the mount is reached by opening again.
    remount(&open_in_root(root, target)?, flags).with_context(|| format!("cannot set mount flags {flags:?}"))
}

/// Opens a path of the container: links are followed within the root, and mounts are crossed.
fn open_in_root(root: &OwnedFd, path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), flags)
        .with_context(|| format!("destination {} doesn't exist in container", path.display()))
}

fn open_path(path: &Path) -> anyhow::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn bind(source: &Path, target: &Path, recursive: bool) -> nix::Result<()> {
    let flags = if recursive { MsFlags::MS_BIND | MsFlags::MS_REC } else { MsFlags::MS_BIND };
    mount(Some(source), target, None::<&str>, flags, None::<&str>)
}

/// Adds flags to a mount, keeping those that it has: in a user namespace the ones that came with it are locked.
fn remount(place: &OwnedFd, flags: MsFlags) -> anyhow::Result<()> {
    let present = fstatvfs(place.as_fd())?.flags();
    // A bind takes no flags by itself, only by remounting (mount(2)).
    let mut kept = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags;
    let pairs = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    for (has, keep) in pairs {
        kept.set(keep, kept.contains(keep) || present.contains(has));
    }
    mount(None::<&str>, &descriptor_path(place), None::<&str>, kept, None::<&str>)?;
    Ok(())
}

/// A path that names what the descriptor is open on, mounts and all, without walking the image again.
fn descriptor_path(descriptor: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}
