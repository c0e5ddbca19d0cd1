//! Putting single paths of a layer back to what the image below has.

use super::{Links, Place, Upper};
use crate::error::Error;
use siphon_image::directory::host;
use siphon_image::tree::{Kind, NodeId, Tree};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// The layer had something there, which is gone now.
    Done,
    /// The layer has nothing there, so that the image shows already.
    Unchanged,
}

/// Why a path cannot be put back.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// One of the directories above it does not show what the image has.
    #[error("{} was removed or replaced as a whole in the layer; put that back", .0.display())]
    Replaced(PathBuf),
    /// The layer failed.
    #[error(transparent)]
    Layer(#[from] Error),
}

impl Upper {
    /// Takes away what the layer has at the path `names` from its root, with all that is below it. `image` is what shows
    /// then. A file that has several names in the image is one file, and put back under all of them. The layer must be
    /// locked, and nothing may have a view of it that is written through.
    ///
    /// # Errors
    /// See [`ResetError`].
    pub fn reset(&self, names: &[OsString], image: &dyn Tree) -> Result<Reset, ResetError> {
        let Some((last, parents)) = names.split_last() else { return Ok(Reset::Unchanged) };
        let mut directory = self.directory(&[]).map_err(Error::from)?;
        for (depth, name) in parents.iter().enumerate() {
            let replaced =
                || ResetError::Replaced(std::iter::once("/".into()).chain(names[..=depth].to_vec()).collect());
            match self.place(directory.as_fd(), name).map_err(Error::from)? {
                Place::Absent => return Ok(self.reset_linked(names, image)?),
                Place::Object(stat) if host::kind_of(&stat) == Kind::Directory => {}
                Place::Object(_) | Place::Whiteout => return Err(replaced()),
            }
            directory = host::open_directory(directory.as_fd(), name).map_err(Error::from)?;
            if self.is_opaque(directory.as_fd()).map_err(Error::from)? {
                return Err(replaced());
            }
        }
        if let Place::Absent = self.place(directory.as_fd(), last).map_err(Error::from)? {
            return Ok(self.reset_linked(names, image)?);
        }
        let mut linked = self.linked_at(directory.as_fd(), last)?;
        linked.extend(self.linked_below(names, image)?);
        self.remove(directory.as_fd(), last).map_err(Error::from)?;
        self.unmark(directory.as_fd(), last).map_err(Error::from)?;
        self.put_links_back(&linked, image)?;
        self.release_copies(names, image)?;
        Ok(Reset::Done)
    }

    /// Puts files of the image back of which the layer has no more than a change under names elsewhere.
    fn reset_linked(&self, names: &[OsString], image: &dyn Tree) -> Result<Reset, Error> {
        let linked = self.linked_below(names, image)?;
        if linked.is_empty() {
            return Ok(Reset::Unchanged);
        }
        self.put_links_back(&linked, image)?;
        self.release_copies(names, image)?;
        Ok(Reset::Done)
    }

    /// The files of the image that have a name at the path `names` there or below, and a copy in the layer that names in the
    /// image still stand for.
    fn linked_below(&self, names: &[OsString], image: &dyn Tree) -> Result<HashSet<NodeId>, Error> {
        let mut held = self.links()?;
        held.retain(|_, links| links.held);
        if held.is_empty() {
            return Ok(HashSet::new());
        }
        let found = names_of(image, &held)?.into_iter().filter(|(_, path)| path.starts_with(names));
        Ok(found.map(|(node, _)| node).collect())
    }

    /// The files of the image of which there are copies at `name` in `directory` or below, and which have other names.
    fn linked_at(&self, directory: BorrowedFd<'_>, name: &OsStr) -> Result<HashSet<NodeId>, Error> {
        let known = self.links()?;
        let mut found = HashSet::new();
        if known.is_empty() {
            return Ok(found);
        }
        self.walk(vec![(Arc::new(directory.try_clone_to_owned()?), name.to_owned())], |directory, name, kind| {
            if kind == Kind::File {
                found.extend(self.origin(directory, name)?.node);
            }
            Ok(())
        })?;
        found.retain(|node| known.contains_key(node));
        Ok(found)
    }

    /// Takes the copies of `nodes` away under all names that they have in the image, and counts anew which of their names
    /// there, and of those of any file that is counted, still stand for it.
    fn put_links_back(&self, nodes: &HashSet<NodeId>, image: &dyn Tree) -> Result<(), Error> {
        let known = self.links()?;
        if known.is_empty() {
            return Ok(());
        }
        let mut gone: HashMap<NodeId, u32> = HashMap::new();
        for (node, names) in names_of(image, &known)? {
            let Some((directory, last)) = self.at(&names)? else { continue };
            let Some(directory) = directory else {
                *gone.entry(node).or_default() += 1;
                continue;
            };
            match self.place(directory.as_fd(), &last)? {
                Place::Absent => continue,
                Place::Object(_)
                    if nodes.contains(&node) && self.origin(directory.as_fd(), &last)?.node == Some(node) =>
                {
                    self.remove(directory.as_fd(), &last)?;
                }
                Place::Object(_) | Place::Whiteout => *gone.entry(node).or_default() += 1,
            }
        }
        for (node, links) in known {
            let gone = gone.get(&node).copied().unwrap_or(0);
            let held = links.held && !nodes.contains(&node);
            self.rewrite_links(node, &links, Links { gone, held, ..links })?;
        }
        Ok(())
    }

    /// Makes what is left in the layer of copies of what the image has at the path `names`, or below, nodes of their own: they
    /// were moved, and the image shows its own there again. Every name of the layer is looked at.
    fn release_copies(&self, names: &[OsString], image: &dyn Tree) -> Result<(), Error> {
        let back = nodes_below(image, names)?;
        self.walk(names_in(self.directory(&[])?)?, |directory, name, kind| {
            if matches!(kind, Kind::Directory | Kind::File)
                && self.origin(directory, name)?.node.is_some_and(|node| back.contains(&node))
            {
                self.forget_origin(host::open_object(directory, name)?.as_fd())?;
            }
            Ok(())
        })
    }

    /// Shows `see` each of these nodes of the layer, and all that are below: the directory that it is in, its name and kind.
    fn walk(
        &self,
        mut pending: Vec<(Arc<OwnedFd>, OsString)>,
        mut see: impl FnMut(BorrowedFd<'_>, &OsStr, Kind) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while let Some((directory, name)) = pending.pop() {
            let Place::Object(stat) = self.place(directory.as_fd(), &name)? else { continue };
            let kind = host::kind_of(&stat);
            see(directory.as_fd(), &name, kind)?;
            if kind == Kind::Directory {
                pending.extend(names_in(host::open_directory(directory.as_fd(), &name)?)?);
            }
        }
        Ok(())
    }

    /// Where the layer may have the last of `names`: `None` if what is above it is the image's alone, and no directory if
    /// that shows nothing of the image.
    fn at(&self, names: &[OsString]) -> Result<Option<(Option<OwnedFd>, OsString)>, Error> {
        let Some((last, parents)) = names.split_last() else { return Ok(None) };
        let mut directory = self.directory(&[])?;
        for name in parents {
            match self.place(directory.as_fd(), name)? {
                Place::Absent => return Ok(None),
                Place::Object(stat) if host::kind_of(&stat) == Kind::Directory => {}
                Place::Object(_) | Place::Whiteout => return Ok(Some((None, last.clone()))),
            }
            directory = host::open_directory(directory.as_fd(), name)?;
            if self.is_opaque(directory.as_fd())? {
                return Ok(Some((None, last.clone())));
            }
        }
        Ok(Some((Some(directory), last.clone())))
    }
}

/// All names in `directory`, with the directory.
fn names_in(directory: OwnedFd) -> Result<Vec<(Arc<OwnedFd>, OsString)>, Error> {
    let directory = Arc::new(directory);
    let entries = host::list(directory.as_fd())?.into_iter();
    Ok(entries.map(|entry| (directory.clone(), entry.name)).collect())
}

/// All names in `image` of the files that are `known`, with the paths to them. Every name is looked at.
fn names_of(image: &dyn Tree, known: &HashMap<NodeId, Links>) -> Result<Vec<(NodeId, Vec<OsString>)>, Error> {
    let mut found = Vec::new();
    let mut seen = HashSet::from([image.root()]);
    let mut pending = vec![(image.root(), Vec::new())];
    while let Some((directory, path)) = pending.pop() {
        for entry in image.entries(directory)? {
            let is_directory = entry.kind == Kind::Directory;
            // A damaged image may have a directory inside itself.
            if (is_directory && seen.insert(entry.node)) || known.contains_key(&entry.node) {
                let mut path = path.clone();
                path.push(entry.name);
                if is_directory {
                    pending.push((entry.node, path));
                } else {
                    found.push((entry.node, path));
                }
            }
        }
    }
    Ok(found)
}

/// What `image` has at the path `names`, and all below it.
fn nodes_below(image: &dyn Tree, names: &[OsString]) -> Result<HashSet<NodeId>, Error> {
    let mut node = image.root();
    for name in names {
        match image.lookup(node, name)? {
            Some(found) => node = found,
            None => return Ok(HashSet::new()),
        }
    }
    let mut found = HashSet::from([node]);
    let mut pending = match image.attr(node)?.kind {
        Kind::Directory => vec![node],
        _ => Vec::new(),
    };
    while let Some(directory) = pending.pop() {
        for entry in image.entries(directory)? {
            if found.insert(entry.node) && entry.kind == Kind::Directory {
                pending.push(entry.node);
            }
        }
    }
    Ok(found)
}
