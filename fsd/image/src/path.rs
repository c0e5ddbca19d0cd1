//! Finds nodes by path, following symbolic links inside the tree, never out of it.

use crate::tree::{Error, Kind, NodeId, Tree};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The kernel's own limit on links followed in one look-up (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Where a path led.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The path from the root with every link followed: absolute, without `.`, `..` or links, except that the
    /// components from the first missing one on are as they were asked for.
    pub path: PathBuf,
    /// The node, if it exists.
    pub node: Option<NodeId>,
}

/// Follows `path` from the root of `tree`. Links are resolved within the tree: an absolute target starts at its root,
/// and `..` at the root stays there. The last component's link is followed if `follow_last`.
///
/// # Errors
/// [`Error::NotADirectory`] if a file stands in the way, [`Error::Io`] with `ELOOP` after 40 links, or what
/// the tree says.
pub fn resolve(tree: &dyn Tree, path: &Path, follow_last: bool) -> Result<Resolved, Error> {
    let mut pending = components(path.as_os_str());
    // Directories walked so far, with the name that led to each. A `None` node is below the first missing component.
    let mut walked: Vec<(OsString, Option<NodeId>)> = Vec::new();
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            walked.pop();
            continue;
        }
        let parent = walked.last().map_or(Some(tree.root()), |(_, node)| *node);
        let node = match parent {
            Some(dir) => tree.lookup(dir, &name)?,
            None => None,
        };
        let is_link = match node {
            Some(node) if follow_last || !pending.is_empty() => tree.attr(node)?.kind == Kind::Symlink,
            _ => false,
        };
        if let (true, Some(node)) = (is_link, node) {
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::Io(rustix::io::Errno::LOOP.into()));
            }
            let target = tree.read_link(node)?;
            if target.as_bytes().starts_with(b"/") {
                walked.clear();
            }
            let mut rest = components(&target);
            rest.append(&mut pending);
            pending = rest;
            continue;
        }
        walked.push((name, node));
    }
    let node = walked.last().map_or(Some(tree.root()), |(_, node)| *node);
    let mut path = PathBuf::from("/");
    path.extend(walked.iter().map(|(name, _)| name));
    Ok(Resolved { path, node })
}

/// Reads the file at `path`, links followed. `None` if it does not exist or is not a regular file.
///
/// # Errors
/// [`Error::Io`] with `FileTooLarge` above `max_bytes`, or what the tree says.
pub fn read_file(tree: &dyn Tree, path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, Error> {
    let node = match resolve(tree, path, true) {
        Ok(Resolved { node: Some(node), .. }) => node,
        Ok(_) | Err(Error::NotADirectory) => return Ok(None),
        Err(error) => return Err(error),
    };
    let attr = tree.attr(node)?;
    if attr.kind != Kind::File {
        return Ok(None);
    }
    if attr.size > max_bytes {
        return Err(Error::Io(std::io::ErrorKind::FileTooLarge.into()));
    }
    let mut content = vec![0; usize::try_from(attr.size).map_err(std::io::Error::other)?];
    let read = tree.read(node, 0, &mut content)?;
    content.truncate(read);
    Ok(Some(content))
}

fn components(path: &OsStr) -> VecDeque<OsString> {
    path.as_bytes()
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| OsString::from_vec(part.to_vec()))
        .collect()
}
