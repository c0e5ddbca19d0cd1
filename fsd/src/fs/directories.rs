//! Listings: taken whole when a directory is opened, so that offsets stay true however long the reading takes.

use super::{Error, FileSystem, Node};
use siphon_image::tree::{Attr, Entry, Kind};
use siphon_overlay::view::Ino;
use std::ffi::OsStr;

/// What a directory held when it was opened.
#[derive(Debug)]
pub(super) struct Snapshot {
    ino: Ino,
    entries: Vec<Entry>,
}

/// One line of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryEntry<'a> {
    /// The node.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Its name, `.` and `..` included.
    pub name: &'a OsStr,
    /// The offset to go on from after this entry.
    pub next_offset: u64,
}

/// One line of a listing with attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// The node was looked up, and one reference is counted unless the sink says that it did not fit.
    Node(Node),
    /// `.` and `..`, which the kernel knows already. No reference is counted.
    Known(Node),
}

impl FileSystem {
    /// Opens the directory `ino`: takes its listing.
    ///
    /// # Errors
    /// [`Error::View`].
    pub fn open_directory(&self, ino: Ino) -> Result<u64, Error> {
        self.counters.directory_read();
        let entries = self.view.entries(ino)?;
        Ok(self.directories.insert(Snapshot { ino, entries }))
    }

    /// Closes an open directory.
    pub fn release_directory(&self, handle: u64) {
        self.directories.remove(handle);
    }

    /// Hands the entries from `offset` on to `sink` until it returns `false`.
    ///
    /// # Errors
    /// [`Error::BadHandle`].
    pub fn list(
        &self,
        handle: u64,
        offset: u64,
        mut sink: impl FnMut(DirectoryEntry<'_>) -> bool,
    ) -> Result<(), Error> {
        let snapshot = self.directories.get(handle).ok_or(Error::BadHandle)?;
        for entry in snapshot.from(offset) {
            if !sink(entry) {
                break;
            }
        }
        Ok(())
    }

    /// As [`FileSystem::list`], with the attributes of each node. Names that vanished since the listing was taken are
    /// left out.
    ///
    /// # Errors
    /// [`Error::BadHandle`], or [`Error::View`] if the first entry to return cannot be read.
    pub fn list_with_attributes(
        &self,
        handle: u64,
        offset: u64,
        mut sink: impl FnMut(DirectoryEntry<'_>, Listed) -> bool,
    ) -> Result<(), Error> {
        let snapshot = self.directories.get(handle).ok_or(Error::BadHandle)?;
        let mut sent = false;
        for entry in snapshot.from(offset) {
            let listed = match self.listed(&snapshot, &entry) {
                Ok(listed) => listed,
                Err(Error::View(error)) if error.errno() == nix::libc::ENOENT => continue,
                // What fits so far is good; the next call starts at the failing entry and reports it.
                Err(_) if sent => break,
                Err(error) => return Err(error),
            };
            if !sink(entry, listed) {
                if let Listed::Node(node) = listed {
                    self.view.forget(node.ino, 1);
                }
                break;
            }
            sent = true;
        }
        Ok(())
    }

    /// Makes the directory's changes durable.
    ///
    /// # Errors
    /// [`Error::View`].
    pub fn sync_directory(&self, ino: Ino) -> Result<(), Error> {
        if self.options.read_only {
            return Ok(());
        }
        Ok(self.view.sync_directory(ino)?)
    }

    fn listed(&self, snapshot: &Snapshot, entry: &DirectoryEntry<'_>) -> Result<Listed, Error> {
        if entry.name == "." || entry.name == ".." {
            // The kernel takes only the number and the kind of these two.
            let attr: Attr = self.view.attr(snapshot.ino)?;
            return Ok(Listed::Known(self.node(entry.ino, attr)));
        }
        Ok(Listed::Node(self.lookup(snapshot.ino, entry.name)?))
    }
}

impl Snapshot {
    /// The entries from `offset` on. Offsets 0 and 1 are `.` and `..`; the parent's number is not known here, and
    /// callers that want it look `..` up.
    fn from(&self, offset: u64) -> impl Iterator<Item = DirectoryEntry<'_>> {
        let dots = [".", ".."].map(OsStr::new).into_iter().map(|name| (self.ino, Kind::Directory, name));
        let named = self.entries.iter().map(|entry| (Ino(entry.node.0), entry.kind, entry.name.as_os_str()));
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        dots.chain(named).zip(1u64..).skip(skip).map(|((ino, kind, name), next_offset)| DirectoryEntry {
            ino,
            kind,
            name,
            next_offset,
        })
    }
}
