//! `%files`: from the host, following every link, and from another stage, following only the links that were named.
//!
//! The destination is a path in the image, whose links never lead out of it. A destination that ends in `/`, or that is a
//! directory, takes the source under its own name; directories on the way are made.

use super::definition::Transfer;
use super::glob::{self, Host, Names};
use super::root::{Root, made, plain};
use anyhow::{Context, bail};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use siphon_image::path::resolve;
use siphon_image::tree::{Attr, Kind, NodeId, Tree};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Directories within each other, in what is copied.
const MAX_DEPTH: usize = 512;
/// How much is copied at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// Copies a line of `%files` from the host.
pub(super) fn from_host(root: &Root, transfer: &Transfer) -> anyhow::Result<()> {
    for source in sources_on_host(transfer)? {
        let context = || format!("cannot copy {}", source.display());
        let (parent, name) = destination(root, &source, &transfer.destination).with_context(context)?;
        copy_host(&source, &parent, name.as_deref(), &mut Vec::new())?;
    }
    Ok(())
}

/// The files of the host that a line names.
pub(super) fn sources_on_host(transfer: &Transfer) -> anyhow::Result<Vec<PathBuf>> {
    let source = glob::with_variables(&transfer.source, |name| std::env::var_os(name));
    let found = glob::expand(&Host, &source);
    if found.is_empty() {
        bail!("nothing matches {source} in {}", std::env::current_dir().unwrap_or_default().display());
    }
    for path in &found {
        if let Err(error) = std::fs::metadata(path) {
            let place = std::env::current_dir().unwrap_or_default();
            return Err(error).with_context(|| format!("cannot copy {} (from {})", path.display(), place.display()));
        }
    }
    Ok(found)
}

/// The directory that takes a copy, and the name in it; without a name, the directory itself takes what the source holds.
fn destination(root: &Root, source: &Path, wanted: &str) -> anyhow::Result<(OwnedFd, Option<OsString>)> {
    let target = if wanted.is_empty() { source } else { Path::new(wanted) };
    let is_slashed = target.as_os_str().as_encoded_bytes().ends_with(b"/");
    let target = plain(target);
    if is_slashed && root.kind(&target)?.is_none() {
        root.make_directory(&target, 0o755)?;
    }
    // What leads out at the top stays at the top, as a root directory has it.
    match root.kind(&target)? {
        Some(FileType::Directory) => {
            let directory = root.resolve(&target, OFlags::PATH | OFlags::DIRECTORY)?;
            Ok((directory, source.file_name().map(OsStr::to_owned)))
        }
        Some(_) => {
            // Through a link that was named, to the file that it leads to.
            let found = root.resolve(&target, OFlags::PATH)?;
            let path = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
            let inside = path.strip_prefix(&root.path).unwrap_or(&target).to_owned();
            let (parent, name) = root.parent(&inside)?;
            Ok((parent, Some(name)))
        }
        None => {
            let (parent, name) = root.parent(&target)?;
            Ok((parent, Some(name)))
        }
    }
}

/// Copies a file or directory of the host as `cp -fLr` does. `above` are the directories that it is in, by device and inode.
fn copy_host(source: &Path, parent: &OwnedFd, name: Option<&OsStr>, above: &mut Vec<(u64, u64)>) -> anyhow::Result<()> {
    let failed = || format!("cannot copy {}", source.display());
    let found = std::fs::metadata(source).with_context(failed)?;
    if found.is_dir() {
        let id = (found.dev(), found.ino());
        if above.contains(&id) || above.len() >= MAX_DEPTH {
            bail!("{} leads back to a directory that it is in", source.display());
        }
        let directory = match name {
            Some(name) => directory(parent, name, found.permissions().mode()).with_context(failed)?,
            None => parent.try_clone()?,
        };
        above.push(id);
        for entry in std::fs::read_dir(source).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            copy_host(&entry.path(), &directory, Some(&entry.file_name()), above)?;
        }
        above.pop();
        return Ok(());
    }
    if !found.is_file() {
        bail!("{} is neither a file nor a directory", source.display());
    }
    let name = name.with_context(failed)?;
    let mut from = File::open(source).with_context(failed)?;
    let mut to = create(parent, name, mode_of(&found)).with_context(failed)?;
    io::copy(&mut from, &mut to).with_context(failed)?;
    Ok(())
}

fn mode_of(found: &Metadata) -> u32 {
    found.permissions().mode() & 0o777
}

/// The directory `name`, made with this mode less the umask if it is missing, and for its owner to write to meanwhile.
fn directory(parent: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<OwnedFd> {
    match made(parent, name, (mode & 0o777) | 0o700) {
        Err(Errno::NOTDIR | Errno::LOOP) => Err(io::Error::other("there is something else of that name in the image")),
        other => Ok(other?),
    }
}

/// A file to write to: the one that is there, or a new one. A link is replaced, wherever it leads.
fn create(parent: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<File> {
    let open =
        |flags| rustix::fs::openat(parent, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::from_raw_mode(mode));
    let present = open(OFlags::WRONLY | OFlags::TRUNC | OFlags::NONBLOCK);
    let is_file = |file: &OwnedFd| {
        rustix::fs::fstat(file).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile)
    };
    match present {
        Ok(file) if is_file(&file) => return Ok(file.into()),
        Err(Errno::NOENT) => {}
        Err(Errno::ISDIR) => return Err(io::Error::other("there is a directory of that name in the image")),
        _ => rustix::fs::unlinkat(parent, name, AtFlags::empty())?,
    }
    Ok(open(OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?.into())
}

/// The files of another stage, for patterns.
struct InTree<'a>(&'a dyn Tree);

impl Names for InTree<'_> {
    fn list(&self, directory: &Path) -> Vec<OsString> {
        let found = resolve(self.0, directory, true).ok().and_then(|found| found.node);
        let entries = found.and_then(|node| self.0.entries(node).ok()).unwrap_or_default();
        entries.into_iter().map(|entry| entry.name).collect()
    }

    fn exists(&self, path: &Path) -> bool {
        resolve(self.0, path, false).is_ok_and(|found| found.node.is_some())
    }

    fn is_directory(&self, path: &Path) -> bool {
        let node = resolve(self.0, path, false).ok().and_then(|found| found.node);
        node.is_some_and(|node| self.0.attr(node).is_ok_and(|attr| attr.kind == Kind::Directory))
    }
}

/// Copies a line of `%files from` out of the tree of another stage.
pub(super) fn from_tree(root: &Root, tree: &dyn Tree, stage: &str, transfer: &Transfer) -> anyhow::Result<()> {
    let pattern = Path::new("/").join(plain(Path::new(&transfer.source)));
    let found = glob::expand(&InTree(tree), &pattern.to_string_lossy());
    if found.is_empty() && glob::is_pattern(&transfer.source) {
        bail!("nothing matches {} in stage {stage}", transfer.source);
    }
    let mut copied = Copied { root, tree, links: HashMap::new() };
    for source in found {
        let failed = || format!("cannot copy {} of stage {stage}", source.display());
        // The link that was named is followed, within its own root; those below are copied as links.
        let resolved = resolve(tree, &source, true).with_context(failed)?;
        let Some(node) = resolved.node else {
            bail!("cannot copy {} of stage {stage}: there is no such file", source.display());
        };
        let (parent, name) = destination(root, &source, &transfer.destination).with_context(failed)?;
        copy_node(&mut copied, node, &parent, name.as_deref(), 0).with_context(failed)?;
    }
    Ok(())
}

/// A copy of a line under way.
struct Copied<'a> {
    root: &'a Root,
    tree: &'a dyn Tree,
    /// Where files with several names are in the root, each by the first of its names that was copied.
    links: HashMap<NodeId, PathBuf>,
}

impl Copied<'_> {
    /// Gives a file that was copied already a further name. Whether it has it: where it cannot, it is copied again.
    fn link(&self, node: NodeId, parent: &OwnedFd, name: &OsStr) -> bool {
        let Some((first, first_name)) = self.links.get(&node).and_then(|path| self.root.parent(path).ok()) else {
            return false;
        };
        replace(parent, name).is_ok()
            && rustix::fs::linkat(&first, &first_name, parent, name, AtFlags::empty())
                .inspect_err(|error| tracing::debug!("{} is no link: {error}", name.display()))
                .is_ok()
    }

    /// Remembers the name of a file that may have more.
    fn note(&mut self, node: NodeId, parent: &OwnedFd, name: &OsStr) {
        let directory = std::fs::read_link(format!("/proc/self/fd/{}", parent.as_raw_fd()));
        if let Some(inside) = directory.ok().as_deref().and_then(|path| path.strip_prefix(&self.root.path).ok()) {
            self.links.insert(node, inside.join(name));
        }
    }
}

fn copy_node(
    copied: &mut Copied<'_>,
    node: NodeId,
    parent: &OwnedFd,
    name: Option<&OsStr>,
    depth: usize,
) -> anyhow::Result<()> {
    let tree = copied.tree;
    if depth > MAX_DEPTH {
        bail!("directories are more than {MAX_DEPTH} deep");
    }
    let attr = tree.attr(node)?;
    if attr.kind == Kind::Directory {
        let into = match name {
            Some(name) => directory(parent, name, 0o700)?,
            None => parent.try_clone()?,
        };
        for entry in tree.entries(node)? {
            copy_node(copied, entry.node, &into, Some(&entry.name), depth + 1)
                .with_context(|| format!("cannot copy {}", entry.name.display()))?;
        }
        if let Some(name) = name {
            settle(tree, node, &attr, parent, name)?;
        }
        return Ok(());
    }
    let name = name.context("a file needs a name")?;
    if attr.nlink > 1 && copied.link(node, parent, name) {
        return Ok(());
    }
    match attr.kind {
        Kind::File => {
            let mut file = create(parent, name, 0o600)?;
            write(tree, node, &attr, &mut file)?;
        }
        Kind::Symlink => {
            replace(parent, name)?;
            rustix::fs::symlinkat(tree.read_link(node)?.as_os_str(), parent, name)?;
        }
        Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
            replace(parent, name)?;
            let kind = match attr.kind {
                Kind::Fifo => FileType::Fifo,
                Kind::Socket => FileType::Socket,
                Kind::CharDevice => FileType::CharacterDevice,
                _ => FileType::BlockDevice,
            };
            let device = u64::from(attr.rdev);
            let device = rustix::fs::makedev(
                ((device >> 8) & 0xfff) as u32,
                ((device & 0xff) | ((device >> 12) & 0xfff00)) as u32,
            );
            if let Err(error) = rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device) {
                // Only root of the host makes device nodes.
                tracing::warn!("{} is left out: {error}", name.display());
                return Ok(());
            }
        }
        Kind::Directory => {}
    }
    settle(tree, node, &attr, parent, name)?;
    if attr.nlink > 1 {
        copied.note(node, parent, name);
    }
    Ok(())
}

fn replace(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn write(tree: &dyn Tree, node: NodeId, attr: &Attr, file: &mut File) -> anyhow::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut offset = 0;
    while offset < attr.size {
        let count = tree.read(node, offset, &mut buffer)?;
        if count == 0 {
            bail!("the file ends after {offset} of {} bytes", attr.size);
        }
        file.write_all(&buffer[..count])?;
        offset += count as u64;
    }
    Ok(())
}

/// Gives a copy the owner, mode, attributes and time of its source, as far as the system lets it.
fn settle(tree: &dyn Tree, node: NodeId, attr: &Attr, parent: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
    let owner = rustix::fs::chownat(
        parent,
        name,
        Some(Uid::from_raw(attr.uid)),
        Some(Gid::from_raw(attr.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    );
    if let Err(error) = owner {
        tracing::debug!("the owner of {} is not kept: {error}", name.display());
    }
    if attr.kind != Kind::Symlink {
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(u32::from(attr.mode)), AtFlags::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
        for (key, value) in tree.xattrs(node)? {
            if let Err(error) = rustix::fs::lsetxattr(&path, &key, &value, XattrFlags::empty()) {
                tracing::debug!("{} of {} is not kept: {error}", key.display(), name.display());
            }
        }
    }
    let time = Timespec { tv_sec: attr.mtime.seconds, tv_nsec: attr.mtime.nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// What a file or directory of the host holds, links followed, into a digest.
pub(super) fn digest(path: &Path, hash: &mut dyn FnMut(&[u8]), depth: usize) -> io::Result<()> {
    let found = std::fs::metadata(path)?;
    hash(&found.permissions().mode().to_le_bytes());
    if found.is_dir() && depth < MAX_DEPTH {
        let mut names: Vec<_> =
            std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
        names.sort();
        for name in names {
            hash(name.as_encoded_bytes());
            hash(&[0]);
            digest(&path.join(&name), hash, depth + 1)?;
        }
        hash(&[0]);
    } else if found.is_file() {
        hash(&found.len().to_le_bytes());
        let mut file = File::open(path)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match io::Read::read(&mut file, &mut buffer)? {
                0 => break,
                count => hash(&buffer[..count]),
            }
        }
    }
    Ok(())
}
