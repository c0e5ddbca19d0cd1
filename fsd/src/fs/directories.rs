//! Listings: taken whole when a directory is read from its start, so that offsets stay true however long the reading
//! takes.
//!
//! They are not taken when it is opened: the kernel keeps what the first reader got for all later ones, as long as
//! nothing changed since that reader began, and it does not know of changes between the opening and the reading.

use super::{Error, FileSystem, NO_HANDLE, Node};
use lru::LruCache;
use parking_lot::Mutex;
use siphon_image::tree::{Attr, Entry, Kind};
use siphon_overlay::view::Ino;
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// An open directory.
#[derive(Debug)]
pub(super) struct OpenDirectory {
    ino: Ino,
    /// What it held when it was last read from the start.
    entries: Mutex<Option<Arc<[Entry]>>>,
}

/// Listings that are just being read by kernels that open no directories.
#[derive(Debug)]
pub(super) struct Listings {
    recent: Mutex<LruCache<Ino, Arc<[Entry]>>>,
}

/// More directories than this are seldom read at once. One that fell out is listed anew.
const MAX_LISTINGS: NonZeroUsize = NonZeroUsize::new(64).expect("it is not zero");

/// What a directory held.
#[derive(Debug)]
struct Snapshot {
    ino: Ino,
    entries: Arc<[Entry]>,
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
    /// Opens the directory `ino`, which the caller knows to be one.
    pub fn open_directory(&self, ino: Ino) -> u64 {
        self.directories.insert(OpenDirectory { ino, entries: Mutex::default() })
    }

    /// Closes an open directory.
    pub fn release_directory(&self, handle: u64) {
        self.directories.remove(handle);
    }

    /// Hands the entries of `ino`, open as `handle`, from `offset` on to `sink` until it returns `false`.
    ///
    /// # Errors
    /// [`Error::BadHandle`], or [`Error::View`] if the directory cannot be read.
    pub fn list(
        &self,
        ino: Ino,
        handle: u64,
        offset: u64,
        mut sink: impl FnMut(DirectoryEntry<'_>) -> bool,
    ) -> Result<(), Error> {
        let snapshot = self.snapshot(ino, handle, offset)?;
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
        ino: Ino,
        handle: u64,
        offset: u64,
        mut sink: impl FnMut(DirectoryEntry<'_>, Listed) -> bool,
    ) -> Result<(), Error> {
        let snapshot = self.snapshot(ino, handle, offset)?;
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

    fn snapshot(&self, ino: Ino, handle: u64, offset: u64) -> Result<Snapshot, Error> {
        if handle == NO_HANDLE {
            return self.snapshot_of_unopened(ino, offset);
        }
        let directory = self.directories.get(handle).ok_or(Error::BadHandle)?;
        let ino = directory.ino;
        let known = directory.entries.lock().clone();
        if let (Some(entries), 1..) = (known, offset) {
            return Ok(Snapshot { ino, entries });
        }
        let entries = self.take_listing(ino)?;
        *directory.entries.lock() = Some(entries.clone());
        Ok(Snapshot { ino, entries })
    }

    fn snapshot_of_unopened(&self, ino: Ino, offset: u64) -> Result<Snapshot, Error> {
        let known = if offset == 0 { None } else { self.listings.recent.lock().get(&ino).cloned() };
        let entries = match known {
            Some(entries) => entries,
            None => self.take_listing(ino)?,
        };
        let snapshot = Snapshot { ino, entries };
        let mut recent = self.listings.recent.lock();
        // The question at the end is the last one.
        if offset < snapshot.end() {
            recent.put(ino, snapshot.entries.clone());
        } else {
            recent.pop(&ino);
        }
        Ok(snapshot)
    }

    fn take_listing(&self, ino: Ino) -> Result<Arc<[Entry]>, Error> {
        self.counters.directory_read();
        Ok(self.view.entries(ino)?.into())
    }

    fn listed(&self, snapshot: &Snapshot, entry: &DirectoryEntry<'_>) -> Result<Listed, Error> {
        if entry.name == "." || entry.name == ".." {
            // The kernel takes only the number and the kind of these two.
            let attr: Attr = self.view.attr(snapshot.ino)?;
            return Ok(Listed::Known(self.node(entry.ino, attr)));
        }
        if self.view.is_stateless() {
            return Ok(Listed::Node(self.attr(entry.ino)?));
        }
        Ok(Listed::Node(self.lookup(snapshot.ino, entry.name)?))
    }
}

impl Default for Listings {
    fn default() -> Self {
        Self { recent: Mutex::new(LruCache::new(MAX_LISTINGS)) }
    }
}

impl Snapshot {
    /// The offset behind the last entry.
    fn end(&self) -> u64 {
        self.entries.len() as u64 + 2
    }

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

#[cfg(test)]
mod tests {
    use super::super::tests::over_nothing;
    use super::super::{Caller, Owners};
    use super::*;
    use siphon_overlay::view::Permissions;

    fn names(filesystem: &FileSystem, handle: u64) -> Vec<String> {
        let mut names = Vec::new();
        let sink = |entry: DirectoryEntry<'_>| {
            names.push(entry.name.to_string_lossy().into_owned());
            true
        };
        filesystem.list(Ino::ROOT, handle, 0, sink).unwrap();
        names.split_off(2)
    }

    #[test]
    fn a_listing_holds_what_was_made_after_the_opening() {
        let (_layer, filesystem) = over_nothing(Owners::Squash { uid: 0, gid: 0 });
        let caller = Caller { uid: 0, gid: 0 };

        let handle = filesystem.open_directory(Ino::ROOT);
        filesystem.make_directory(caller, Ino::ROOT, OsStr::new("a"), Permissions::exactly(0o755)).unwrap();
        let first = names(&filesystem, handle);
        filesystem.make_directory(caller, Ino::ROOT, OsStr::new("b"), Permissions::exactly(0o755)).unwrap();
        let rewound = names(&filesystem, handle);

        assert_eq!(first, ["a"]);
        assert_eq!(rewound, ["a", "b"]);
    }
}
