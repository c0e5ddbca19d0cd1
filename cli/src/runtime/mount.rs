//! Single mounts, each onto a descriptor that was opened inside the image's root, so that no link of the image leads
//! out of it.

mod devices;

use crate::plan::gpu::Library;
use crate::plan::{Failure, Mount, SourceKind, What};
use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// How often a path is resolved anew while the host's tree changes.
const MAX_TRIES: usize = 1000;

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

/// Makes a mount that needs nothing but the kernel and the host's tree.
pub(super) fn place(root: &OwnedFd, wanted: &Mount, images: &Images) -> anyhow::Result<()> {
    let (source, kind, read_only, trusted) = match &wanted.what {
        What::Bind { source, kind, read_only, trusted } => (source, kind, read_only, trusted),
        What::Image { kind, .. } => return images.place(root, &wanted.target, *kind),
        What::Processes => return processes(root, &wanted.target),
        What::Devices(devices) => return devices::place(root, &wanted.target, devices),
        What::Empty { mode } => return empty(root, &wanted.target, *mode),
        What::Kept { source, mode } => return kept(root, source, &wanted.target, *mode),
        What::File(_) | What::Libraries(_) => bail!("{} needs a session", wanted.target.display()),
    };
    if wanted.failure == Failure::Fatal {
        make_target(root, &wanted.target, *kind)?;
    }
    let mut flags = if *trusted { MsFlags::empty() } else { MsFlags::MS_NOSUID | MsFlags::MS_NODEV };
    flags.set(MsFlags::MS_RDONLY, *read_only);
    attach(root, source, &wanted.target, *kind == SourceKind::Directory, flags)
}

/// The `/proc` of this process's PID namespace.
fn processes(root: &OwnedFd, target: &Path) -> anyhow::Result<()> {
    let place = open_in_root(root, target)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), &descriptor_path(&place), Some("proc"), flags, None::<&str>).context(
        "the kernel refuses a /proc of its own to the container, as it does where a container engine hides a part of \
         the host's; --no-pid does without",
    )
}

fn empty(root: &OwnedFd, target: &Path, mode: u32) -> anyhow::Result<()> {
    make_target(root, target, SourceKind::Directory)?;
    let place = open_in_root(root, target)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    filesystem("tmpfs", &descriptor_path(&place), &format!("mode={mode:o}"), flags)
}

/// Binds a directory of the host, made if it is missing, with the permissions that it is to have then.
fn kept(root: &OwnedFd, source: &Path, target: &Path, mode: u32) -> anyhow::Result<()> {
    let failed = || format!("cannot make {}", source.display());
    if !source.is_dir() {
        fs::create_dir_all(source).with_context(failed)?;
        fs::set_permissions(source, fs::Permissions::from_mode(mode)).with_context(failed)?;
    }
    make_target(root, target, SourceKind::Directory)?;
    attach(root, source, target, true, MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
}

fn filesystem(kind: &str, place: &Path, options: &str, flags: MsFlags) -> anyhow::Result<()> {
    mount(Some(kind), place, Some(kind), flags, Some(options)).with_context(|| format!("cannot mount a {kind}"))
}

/// Files of other images, taken from where the daemon has them mounted, before anything of the run hides or shows that.
#[derive(Debug, Default)]
pub(super) struct Images {
    /// By the path that each is to have, a mount that lies nowhere yet.
    taken: BTreeMap<PathBuf, OwnedFd>,
}

impl Images {
    /// Takes what `mounts` need, and takes all mounts below `directory` out of this mount namespace, or a bind of what
    /// the directory lies in would bring them along.
    pub(super) fn take(directory: &Path, mounts: &[Mount]) -> anyhow::Result<Self> {
        let mut taken = BTreeMap::new();
        for wanted in mounts {
            if let What::Image { source, .. } = &wanted.what {
                let tree = take(directory, source).with_context(|| format!("cannot take {}", source.display()))?;
                taken.insert(wanted.target.clone(), tree);
            }
        }
        // There is none where no client has ever asked for another image.
        for place in fs::read_dir(directory).into_iter().flatten() {
            // One that is just being made is no mount yet.
            let _ = umount2(&place?.path(), MntFlags::MNT_DETACH);
        }
        Ok(Self { taken })
    }

    fn place(&self, root: &OwnedFd, target: &Path, kind: SourceKind) -> anyhow::Result<()> {
        let tree = self.taken.get(target).with_context(|| format!("{} was not taken", target.display()))?;
        make_target(root, target, kind)?;
        let place = open_in_root(root, target)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(tree, "", place, "", flags)?)
    }
}

/// A mount of `source` below `directory`. The daemon has found it free of links: should there be one all the same, because
/// someone has changed the image since, it leads nowhere.
fn take(directory: &Path, source: &Path) -> anyhow::Result<OwnedFd> {
    let directory = open_path(directory)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let found = openat2(&directory, source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(found, "", flags)?)
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
            What::Bind { .. }
            | What::Image { .. }
            | What::Processes
            | What::Devices(_)
            | What::Empty { .. }
            | What::Kept { .. } => place(root, wanted, &Images::default()),
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
    fn libraries(&self, index: usize, files: &[Library]) -> anyhow::Result<PathBuf> {
        let directory = self.directory.join(index.to_string());
        fs::create_dir(&directory)?;
        for Library { name, source } in files {
            let place = directory.join(name);
            fs::write(&place, [])?;
            bind(source, &place, false).with_context(|| format!("cannot bind {}", source.display()))?;
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
    let place = open_in_root(root, target)?;
    remount(&place, flags).with_context(|| format!("cannot set mount flags {flags:?}"))?;
    if flags.contains(MsFlags::MS_RDONLY) && recursive {
        for mount in mounts_below(&fs::read_link(descriptor_path(&place))?)? {
            remount(&open_path(&mount)?, MsFlags::MS_RDONLY)
                .with_context(|| format!("cannot make {} read-only", mount.display()))?;
        }
    }
    Ok(())
}

/// The mounts that came along below `directory`: a bind's flags are not theirs.
fn mounts_below(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo").context("cannot read the table of mounts")?;
    let targets = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let paths = targets.map(|field| PathBuf::from(OsString::from_vec(unescape(field))));
    Ok(paths.filter(|path| path != directory && path.starts_with(directory)).collect())
}

/// Spaces, tabs, newlines and backslashes stand as three octal digits in the table (proc_pid_mountinfo(5)).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                plain.push(escaped);
                rest = &after[3..];
            }
            None => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    plain
}

/// Opens a path of the container: links are followed within the root, and mounts are crossed.
fn open_in_root(root: &OwnedFd, path: &Path) -> anyhow::Result<OwnedFd> {
    resolve(root, path).with_context(|| format!("destination {} doesn't exist in container", path.display()))
}

fn resolve(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // A rename or mount anywhere on the host during a step to ".." makes the kernel ask for another try (openat2(2)).
    let mut result = Err(Errno::AGAIN);
    for _ in 0..MAX_TRIES {
        result = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), flags);
        if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    result
}

/// Makes what is missing of a target that lies in a directory of the host; what lies in the image has been made there.
fn make_target(root: &OwnedFd, target: &Path, kind: SourceKind) -> anyhow::Result<()> {
    let failed = || format!("cannot make the mount point {}", target.display());
    let mut missing = Vec::new();
    let mut present = target;
    let mut parent = resolve(root, present);
    while let (Err(Errno::NOENT), Some(above), Some(name)) = (&parent, present.parent(), present.file_name()) {
        missing.push(name);
        present = above;
        parent = resolve(root, present);
    }
    let mut parent = parent.with_context(failed)?;
    while let Some(name) = missing.pop() {
        if missing.is_empty() && kind == SourceKind::File {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
            openat(&parent, name, flags, Mode::from_raw_mode(0o644)).with_context(failed)?;
        } else {
            mkdirat(&parent, name, Mode::from_raw_mode(0o755)).with_context(failed)?;
            parent = openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_mount_table_are_read_with_their_blanks() {
        let cases: [(&[u8], &[u8]); 4] =
            [(b"/a\\040b", b"/a b"), (b"/a\\134040", b"/a\\040"), (b"/a\\", b"/a\\"), (b"/a\\9xx", b"/a\\9xx")];
        for (field, plain) in cases {
            assert_eq!(unescape(field), plain);
        }
    }
}
