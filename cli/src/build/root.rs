//! The root file system that a build writes to, as a mounted directory whose links never lead out of it.

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, mkdirat, openat, openat2, statat, unlinkat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// How often the kernel may ask for another try (openat2(2)).
const MAX_TRIES: usize = 32;

/// Links that are followed on one way, as in the kernel.
const MAX_LINKS: usize = 40;

/// A mounted root file system.
#[derive(Debug)]
pub(super) struct Root {
    root: OwnedFd,
    /// Where it is mounted, for programs of the host.
    pub(super) path: PathBuf,
}

impl Root {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .with_context(|| format!("cannot open the root file system at {}", path.display()))?;
        Ok(Self { root, path: path.to_owned() })
    }

    /// Opens what `path` leads to, links followed within the root.
    pub(super) fn resolve(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let mut result = Err(Errno::AGAIN);
        for _ in 0..MAX_TRIES {
            result = openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
            if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        result
    }

    /// Whether there is something at `path`, links followed, and whether it is a directory.
    pub(super) fn kind(&self, path: &Path) -> Result<Option<FileType>, Errno> {
        match self.resolve(path, OFlags::PATH) {
            Ok(found) => Ok(Some(FileType::from_raw_mode(rustix::fs::fstat(found)?.st_mode))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Which directories and files are missing on the way to `path`, the outermost first: with links followed within the root,
    /// one that leads nowhere too.
    pub(super) fn missing(&self, path: &Path) -> Result<Vec<PathBuf>, Errno> {
        let mut left: Vec<OsString> = plain(path).iter().rev().map(OsStr::to_owned).collect();
        let (mut at, mut missing, mut links) = (PathBuf::new(), Vec::new(), 0);
        while let Some(name) = left.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            match self.resolve(&next, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(found) if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = rustix::fs::readlinkat(&found, "", Vec::new())?.into_bytes();
                    let target = Path::new(OsStr::from_bytes(&target));
                    if target.is_absolute() {
                        at = PathBuf::new();
                    }
                    left.extend(plain(target).iter().rev().map(OsStr::to_owned));
                }
                Ok(_) => at = next,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    missing.push(next.clone());
                    at = next;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }

    /// Opens a directory, which is made with all above it if it is missing.
    pub(super) fn make_directory(&self, path: &Path, mode: u32) -> anyhow::Result<OwnedFd> {
        let failed = || format!("cannot make the directory /{} of the image", plain(path).display());
        let mut missing: Vec<OsString> = Vec::new();
        let mut present = plain(path);
        loop {
            match self.resolve(&present, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(mut directory) => {
                    while let Some(name) = missing.pop() {
                        directory = made(&directory, &name, mode).with_context(failed)?;
                    }
                    return Ok(directory);
                }
                Err(Errno::NOENT) => match (present.file_name().map(OsStr::to_owned), present.parent()) {
                    (Some(name), Some(above)) => {
                        missing.push(name);
                        present = above.to_owned();
                    }
                    _ => return Err(Errno::NOENT).with_context(failed),
                },
                Err(error) => return Err(error).with_context(failed),
            }
        }
    }

    /// The directory that the last name of `path` is in, made if it is missing, and that name.
    pub(super) fn parent(&self, path: &Path) -> anyhow::Result<(OwnedFd, OsString)> {
        let path = plain(path);
        let Some(name) = path.file_name() else { bail!("/ is a directory, and is there already") };
        let parent = self.make_directory(path.parent().unwrap_or(Path::new("")), 0o755)?;
        Ok((parent, name.to_owned()))
    }

    /// Writes a file in place of what is there; links in its directory's path are followed within the root, its own is not.
    pub(super) fn put(&self, path: impl AsRef<Path>, content: &[u8], mode: u32) -> anyhow::Result<()> {
        let path = path.as_ref();
        let failed = || format!("cannot write /{} of the image", plain(path).display());
        let (parent, name) = self.parent(path)?;
        match unlinkat(&parent, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error).with_context(failed),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&parent, &name, flags, Mode::from_raw_mode(mode)).with_context(failed)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).with_context(failed)?;
        File::from(file).write_all(content).with_context(failed)
    }

    /// The regular file at `path`, links followed within the root; nothing if there is none.
    pub(super) fn read(&self, path: impl AsRef<Path>, max_bytes: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let path = path.as_ref();
        let failed = || format!("cannot read /{} of the image", plain(path).display());
        if self.kind(path).with_context(failed)? != Some(FileType::RegularFile) {
            return Ok(None);
        }
        let file = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK).with_context(failed)?;
        let mut content = Vec::new();
        File::from(file).take(max_bytes + 1).read_to_end(&mut content).with_context(failed)?;
        if content.len() as u64 > max_bytes {
            bail!("/{} of the image is larger than {max_bytes} bytes", plain(path).display());
        }
        Ok(Some(content))
    }

    /// Takes a file away, if it is there.
    pub(super) fn remove(&self, path: impl AsRef<Path>) -> anyhow::Result<()> {
        let path = path.as_ref();
        let failed = || format!("cannot remove /{} of the image", plain(path).display());
        let (parent, name) = self.parent(path)?;
        match unlinkat(&parent, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).with_context(failed),
        }
    }

    /// Takes a mount point away that a run made: an empty directory or file.
    pub(super) fn remove_empty(&self, path: &Path) {
        let path = plain(path);
        let (Some(name), Ok(parent)) =
            (path.file_name(), self.resolve(path.parent().unwrap_or(Path::new("")), OFlags::PATH | OFlags::DIRECTORY))
        else {
            return;
        };
        let Ok(found) = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
        let result = match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => unlinkat(&parent, name, AtFlags::REMOVEDIR),
            FileType::RegularFile if found.st_size == 0 => unlinkat(&parent, name, AtFlags::empty()),
            _ => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!("the mount point {} stays: {error}", path.display());
        }
    }

    /// Makes a link, unless there is something of that name.
    pub(super) fn link(&self, path: &str, target: &str) -> anyhow::Result<()> {
        let (parent, name) = self.parent(Path::new(path))?;
        match rustix::fs::symlinkat(target, &parent, &name) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot make the link /{path} of the image")),
        }
    }

    /// The names in a directory; none if it is no directory.
    pub(super) fn names(&self, path: &Path) -> Vec<OsString> {
        let Ok(directory) = self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY) else { return Vec::new() };
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(directory.as_fd(), &mut buffer);
        let mut names = Vec::new();
        while let Some(Ok(entry)) = entries.next() {
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// Moves a file within the root.
    pub(super) fn rename(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let ((from_parent, from_name), (to_parent, to_name)) =
            (self.parent(Path::new(from))?, self.parent(Path::new(to))?);
        rustix::fs::renameat(&from_parent, &from_name, &to_parent, &to_name)
            .with_context(|| format!("cannot move /{from} of the image to /{to}"))
    }
}

/// Makes a directory in another, unless it is there, and opens it. A link is no directory.
pub(super) fn made(parent: &OwnedFd, name: &OsStr, mode: u32) -> Result<OwnedFd, Errno> {
    match mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    openat(parent, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// A path relative to the root, without `.`; what `..` leaves cannot be told from names alone, so that those stay.
pub(super) fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_missing_is_found_behind_links_too() {
        let directory = tempfile::tempdir().unwrap();
        let inside = |path: &str| directory.path().join(path);
        std::fs::create_dir_all(inside("etc/there")).unwrap();
        symlink("/run/of/hosts", inside("etc/hosts")).unwrap();
        symlink("../../../etc/there", inside("up")).unwrap();
        symlink("round", inside("round")).unwrap();
        let root = Root::open(directory.path()).unwrap();
        let missing = |path: &str| {
            let found = root.missing(Path::new(path)).map_err(|error| error.to_string())?;
            Ok::<_, String>(found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" "))
        };

        assert_eq!(missing("/etc/there").unwrap(), "");
        assert_eq!(missing("/etc/new/file").unwrap(), "etc/new etc/new/file");
        assert_eq!(missing("/etc/hosts").unwrap(), "run run/of run/of/hosts");
        assert_eq!(missing("/up/x").unwrap(), "etc/there/x");
        assert!(missing("/round").is_err());
    }
}
