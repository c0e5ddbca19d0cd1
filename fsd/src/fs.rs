//! Every filesystem operation, on inode numbers and handles, as plain values.
//!
//! [`FileSystem`] is a [`View`] with what a kernel needs around it: numbers for open files, listings that hold still
//! while they are read, one owner where only one id exists, a refusal of writes, and counters. No FUSE type is named
//! here, so that all of it can be tested and used without a mount.
//!
//! Locks: only those of the handle tables, held for one map operation each.

mod ahead;
mod changes;
mod directories;
mod handles;
mod jumps;
mod loading;
mod trace;

use crate::metrics::Counters;
use ahead::Readers;
use handles::Handles;
use jumps::Jumps;
use loading::Loading;
use parking_lot::Mutex;
use siphon_image::loading::Loadable;
use siphon_image::tree::{Attr, Statistics};
use siphon_overlay::error::Error as ViewError;
use siphon_overlay::view::{Ino, OpenFile, OpenMode, View};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use trace::Trace;

pub use directories::{DirectoryEntry, Listed};
pub use trace::MAX_STORED_BYTES as MAX_TRACE_BYTES;

/// Far longer than any mount lives, and far from the kernel's overflow when it counts in jiffies.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Whom nodes belong to, as callers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Everything belongs to this user and group: the only ids that exist in a namespace with a single-id map.
    Squash {
        /// The user id shown for every node.
        uid: u32,
        /// The group id shown for every node.
        gid: u32,
    },
    /// As the image and the layer have it. Ids that do not exist in this namespace become the kernel's stand-in for
    /// them, 65534, or root's where that does not exist either: the kernel itself would let nobody touch such a file.
    AsStored {
        /// The user ids below this one exist.
        users: u32,
        /// The group ids below this one exist.
        groups: u32,
    },
}

/// The id that stands for those that do not exist in a user namespace (`/proc/sys/kernel/overflowuid`).
const OVERFLOW_ID: u32 = 65534;

/// How a filesystem behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whom nodes belong to.
    pub owners: Owners,
    /// Refuses every change that comes through this interface with `EROFS`.
    pub read_only: bool,
    /// Whether nothing but this filesystem changes what is below, so that the kernel may keep what it learnt for good.
    pub stable: bool,
    /// Which extended attributes are shown.
    pub xattrs: Xattrs,
    /// Whether content comes from far away, so that bytes that nobody needs cost more than further requests.
    pub far: bool,
    /// Whether this process leaves setuid bits on what it writes to, as root of the machine does.
    pub keeps_privileges: bool,
}

/// Which extended attributes of the view are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Xattrs {
    /// All.
    All,
    /// Those that are no marks of the kernel's overlayfs, which reads this filesystem.
    BelowRootsOverlay,
    /// Of these, those that an overlayfs of an unprivileged user can copy: a copy-up fails over any other.
    BelowOverlay {
        /// Whether there is a root for file capabilities to be relative to.
        capabilities: bool,
    },
}

impl Xattrs {
    fn shows(self, name: &OsStr) -> bool {
        let starts = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
        let is_mark = starts("user.overlay.") || starts("trusted.overlay.");
        match self {
            Self::All => true,
            Self::BelowRootsOverlay => !is_mark,
            Self::BelowOverlay { capabilities } if name == "security.capability" => capabilities,
            Self::BelowOverlay { .. } => !is_mark && !starts("trusted.") && !starts("security."),
        }
    }
}

/// A failed operation. [`crate::errno::errno`] turns it into what the kernel is told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image or the layer says no, or cannot be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A change of a filesystem that takes none.
    #[error("the filesystem is mounted read-only")]
    ReadOnly,
    /// An open file or directory that is not, or no longer, open.
    #[error("there is no such open file")]
    BadHandle,
    /// The node does not have this extended attribute.
    #[error("no such extended attribute")]
    NoAttribute,
    /// The answer does not fit the caller's buffer.
    #[error("the value is larger than the buffer for it")]
    TooLarge,
    /// An owner that this filesystem cannot store.
    #[error("only one owner exists here")]
    NotPermitted,
    /// Arguments that no filesystem takes.
    #[error("invalid argument")]
    Invalid,
}

/// A node as callers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub ino: Ino,
    /// Its attributes, owners mapped.
    pub attr: Attr,
}

/// Who asks, for the ownership of what they make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User id as this process sees it.
    pub uid: u32,
    /// Group id as this process sees it.
    pub gid: u32,
}

/// Answer to a question for an extended attribute or their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum XattrReply {
    /// How many bytes it takes: what a caller with an empty buffer asks for.
    Size(usize),
    /// The bytes.
    Data(Vec<u8>),
}

/// What is likely to be read next, for one thread to make ready: files, and which bytes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// One after the other, as they are here.
    InOrder(Vec<(Ino, Range<u64>)>),
    /// As an earlier program read them. The first is only to be decoded: the request for it says that the rest is wanted.
    Traced(Vec<(Ino, Range<u64>)>),
    /// What was decoded with the byte at this offset, of which little was asked for.
    Beside(Ino, u64),
    /// What a loader reads of this object: to be fetched from afar.
    Loaded(Ino, Arc<Loadable>),
}

/// One mounted view. All methods may be called by many threads.
#[derive(Debug)]
pub struct FileSystem {
    view: Arc<View>,
    options: Options,
    counters: Arc<Counters>,
    files: Handles<OpenFile>,
    directories: Handles<directories::OpenDirectory>,
    listings: directories::Listings,
    readers: Readers,
    jumps: Jumps,
    trace: Mutex<Trace>,
    loading: Loading,
}

/// The handle of a file or directory that the kernel opened without asking.
const NO_HANDLE: u64 = 0;

impl FileSystem {
    /// Serves `view`.
    pub fn new(view: Arc<View>, options: Options, counters: Arc<Counters>) -> Self {
        let (files, directories) = (Handles::new(), Handles::new());
        let (listings, readers, trace) = (directories::Listings::default(), Readers::default(), Mutex::default());
        let (jumps, loading) = (Jumps::default(), Loading::default());
        Self { view, options, counters, files, directories, listings, readers, jumps, trace, loading }
    }

    /// What it counts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How long the kernel may answer from its own memory before it asks again.
    pub fn lifetime(&self) -> Duration {
        // A sandbox that another process writes, or a plain directory: changes show within a second.
        if self.options.stable { FOREVER } else { Duration::from_secs(1) }
    }

    /// Whether file contents and listings may stay in the page cache over an open.
    pub fn keeps_cache(&self) -> bool {
        self.options.stable
    }

    /// Whether files have POSIX ACLs, which the kernel is then to ask for and to heed.
    pub fn has_acls(&self) -> bool {
        !self.options.read_only && self.view.has_acls()
    }

    /// Whether writes, cuts and changes of owners take setuid bits and capabilities by themselves, so that the kernel need
    /// not ask for them before each write: the layer's filesystem sees to that, as this process has no right to keep them.
    pub fn takes_privileges(&self) -> bool {
        !self.options.read_only && !self.options.keeps_privileges
    }

    /// Whether every change is refused.
    pub fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    /// Whether content comes from far away.
    pub fn is_far(&self) -> bool {
        self.options.far
    }

    /// Whether files and directories need not be opened: handle 0 stands for any of them. A kernel that opens on its own
    /// keeps what it cached over an open, so that nothing may change below.
    pub fn opens_nothing(&self) -> bool {
        self.options.read_only && self.options.stable && self.view.is_stateless()
    }

    /// Looks `name` up in `parent` and counts one reference, which [`FileSystem::forget`] gives back.
    ///
    /// # Errors
    /// [`Error::View`], `ENOENT` if there is no such name.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Node, Error> {
        self.counters.lookup();
        let (ino, attr) = self.view.lookup(parent, name)?;
        Ok(self.node(ino, attr))
    }

    /// Gives `count` references on `ino` back.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.view.forget(ino, count);
    }

    /// The attributes of `ino`.
    ///
    /// # Errors
    /// [`Error::View`].
    pub fn attr(&self, ino: Ino) -> Result<Node, Error> {
        Ok(self.node(ino, self.view.attr(ino)?))
    }

    /// The target of the symbolic link `ino`.
    ///
    /// # Errors
    /// [`Error::View`].
    pub fn read_link(&self, ino: Ino) -> Result<OsString, Error> {
        Ok(self.view.read_link(ino)?)
    }

    /// Opens the file `ino`.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] if it is to be written on a read-only filesystem, or [`Error::View`].
    pub fn open(&self, ino: Ino, mode: OpenMode) -> Result<u64, Error> {
        if mode.write || mode.truncate {
            self.check_writable()?;
        }
        self.counters.open();
        Ok(self.files.insert(self.view.open(ino, mode)?))
    }

    /// Closes an open file.
    pub fn release(&self, handle: u64) {
        self.files.remove(handle);
    }

    /// Reads from the file `ino`, open as `handle`, into `buf` and returns how many bytes were there: fewer than asked
    /// only at the end.
    ///
    /// # Errors
    /// [`Error::BadHandle`] or [`Error::View`].
    pub fn read(&self, ino: Ino, handle: u64, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let file = self.file(ino, handle)?;
        let read = self.view.read(&file, offset, buf)?;
        self.counters.read(read);
        if self.options.far {
            self.loading.saw(ino, offset, &buf[..read]);
        }
        Ok(read)
    }

    /// What is worth reading now that `asked` of the file `ino` was read, with its end or not: the bytes that are likely
    /// to be asked for next, of this file or of others. Nothing if content may change below.
    pub fn expected_after(&self, ino: Ino, asked: Range<u64>, with_end: bool) -> Vec<Expected> {
        if !self.opens_nothing() {
            return Vec::new();
        }
        let mut expected: Vec<_> =
            self.loaded(ino, &asked).map(|object| Expected::Loaded(ino, object)).into_iter().collect();
        if let Some(batches) = self.trace.lock().batches_after(ino, asked.start) {
            expected.extend(batches.into_iter().map(Expected::Traced));
            return expected;
        }
        let windows = if with_end { None } else { self.readers.windows_after(ino, asked.clone()) };
        let goes_on = windows.is_some();
        let windows = windows.unwrap_or_default().into_iter();
        expected.extend(windows.map(|window| Expected::InOrder(vec![(ino, window)])));
        if asked.start == 0 && asked.end <= ahead::MAX_SMALL_BYTES {
            let Some(due) = self.readers.files_after(ino) else { return expected };
            expected.extend(self.files_expected_after(ino, due));
            if due > 0 {
                return expected;
            }
        }
        if self.jumps.comes_back(ino, &asked) {
            expected.push(Expected::Beside(ino, asked.start));
        }
        self.trace.lock().add(ino, asked, goes_on);
        expected
    }

    /// The `due` small files that are likely to be asked for after `ino`.
    fn files_expected_after(&self, ino: Ino, due: usize) -> Option<Expected> {
        let mut files = self.view.files_after(ino, due + ahead::MAX_LEFT_OUT, ahead::MAX_SMALL_BYTES);
        let (last, _) = *files.last()?;
        files.truncate(due);
        let ready = files.last().map_or(ino, |(ready, _)| *ready);
        self.readers.expect(ino, ready, last, due);
        let pieces: Vec<_> = files.into_iter().map(|(ino, bytes)| (ino, 0..bytes)).collect();
        (!pieces.is_empty()).then_some(Expected::InOrder(pieces))
    }

    /// What of `range`, which was expected a moment ago, nobody has asked for yet.
    pub fn still_expected(&self, ino: Ino, range: Range<u64>) -> Range<u64> {
        self.readers.left_of(ino, range)
    }

    /// The bytes of `ino` around `offset` that were decoded with it, if they still are in memory.
    pub fn decoded_around(&self, ino: Ino, offset: u64) -> Option<Range<u64>> {
        self.view.decoded_around(ino, offset)
    }

    /// Says that what was decoded with the byte of `ino` at `offset` will have to be asked for.
    pub fn not_stored_around(&self, ino: Ino, offset: u64) {
        self.jumps.not_stored(ino, offset);
    }

    /// Says that `ino`, and what was expected after it, will have to be asked for.
    pub fn not_made_ready(&self, ino: Ino) {
        self.readers.stopped_at(ino);
    }

    /// Has what earlier uses of the image read, as [`FileSystem::trace`] gave it, made ready again.
    pub fn follow(&self, trace: &[u8]) {
        *self.trace.lock() = Trace::of(trace);
    }

    /// What was read in this use and the earlier ones, at most [`MAX_TRACE_BYTES`]; `None` if this one added nothing.
    pub fn trace(&self) -> Option<Vec<u8>> {
        self.trace.lock().stored()
    }

    /// Says that what is expected is about to be read from front to back. Storage far away has its own rules for that.
    pub fn will_read(&self, expected: &[(Ino, Range<u64>)]) {
        if !self.options.far {
            self.view.fetch_ahead(expected);
        }
    }

    /// Decodes what is expected, and keeps it for whoever asks.
    pub fn decode_ahead(&self, expected: &[(Ino, Range<u64>)]) {
        self.view.decode_ahead(expected);
    }

    /// As [`FileSystem::read`], of what nobody asked for yet.
    ///
    /// # Errors
    /// [`Error::View`].
    pub fn read_ahead(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let read = self.view.read(&*self.file(ino, NO_HANDLE)?, offset, buf)?;
        self.counters.read_ahead(read);
        Ok(read)
    }

    /// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`.
    ///
    /// # Errors
    /// [`Error::BadHandle`] or [`Error::View`], `ENXIO` past the end.
    pub fn seek(&self, ino: Ino, handle: u64, offset: u64, whence: i32) -> Result<u64, Error> {
        Ok(self.view.seek(&*self.file(ino, handle)?, offset, whence)?)
    }

    /// The extended attribute `name`, for a buffer of `capacity` bytes; 0 asks for its size.
    ///
    /// # Errors
    /// [`Error::NoAttribute`], [`Error::TooLarge`] or [`Error::View`].
    pub fn xattr(&self, ino: Ino, name: &OsStr, capacity: usize) -> Result<XattrReply, Error> {
        if !self.options.xattrs.shows(name) {
            return Err(Error::NoAttribute);
        }
        let value = self.view.xattr(ino, name)?.ok_or(Error::NoAttribute)?;
        fit(value, capacity)
    }

    /// The names of all extended attributes, each with a NUL after it, for a buffer of `capacity` bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`] or [`Error::View`].
    pub fn xattr_names(&self, ino: Ino, capacity: usize) -> Result<XattrReply, Error> {
        let mut list = Vec::new();
        for name in self.view.xattr_names(ino)?.into_iter().filter(|name| self.options.xattrs.shows(name)) {
            list.extend_from_slice(name.as_encoded_bytes());
            list.push(0);
        }
        fit(list, capacity)
    }

    /// What `statfs` says.
    ///
    /// # Errors
    /// [`Error::View`].
    pub fn statistics(&self) -> Result<Statistics, Error> {
        let sizes = self.view.statistics()?;
        // As squashfs has it: what cannot be written to is full.
        Ok(if self.options.read_only { Statistics { free_bytes: 0, free_nodes: 0, ..sizes } } else { sizes })
    }

    fn file(&self, ino: Ino, handle: u64) -> Result<Arc<OpenFile>, Error> {
        if handle == NO_HANDLE {
            return Ok(self.view.open(ino, OpenMode::default())?.into());
        }
        self.opened(handle)
    }

    fn opened(&self, handle: u64) -> Result<Arc<OpenFile>, Error> {
        self.files.get(handle).ok_or(Error::BadHandle)
    }

    fn check_writable(&self) -> Result<(), Error> {
        if self.options.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }

    fn node(&self, ino: Ino, attr: Attr) -> Node {
        let attr = match self.options.owners {
            Owners::Squash { uid, gid } => Attr { uid, gid, ..attr },
            Owners::AsStored { users, groups } => {
                Attr { uid: existing(attr.uid, users), gid: existing(attr.gid, groups), ..attr }
            }
        };
        Node { ino, attr }
    }
}

/// `id` if it is below `end`, or what stands for it.
fn existing(id: u32, end: u32) -> u32 {
    match id {
        _ if id < end => id,
        _ if OVERFLOW_ID < end => OVERFLOW_ID,
        _ => 0,
    }
}

fn fit(value: Vec<u8>, capacity: usize) -> Result<XattrReply, Error> {
    match capacity {
        0 => Ok(XattrReply::Size(value.len())),
        _ if value.len() > capacity => Err(Error::TooLarge),
        _ => Ok(XattrReply::Data(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use siphon_image::tree::EmptyTree;
    use siphon_overlay::upper::{Base, Upper};

    /// A new layer over nothing, which goes with the first value.
    pub(super) fn over_nothing(owners: Owners) -> (tempfile::TempDir, FileSystem) {
        let layer = tempfile::tempdir().unwrap();
        let base = Base { version: Base::VERSION, image: "/image".into(), identity: String::new() };
        let upper = Upper::create(layer.path(), &base).unwrap();
        let view = View::new(Arc::new(EmptyTree), Some(upper)).unwrap();
        let xattrs = Xattrs::All;
        let options = Options { owners, read_only: false, stable: true, xattrs, far: false, keeps_privileges: true };
        (layer, FileSystem::new(Arc::new(view), options, Arc::new(Counters::default())))
    }

    #[test]
    fn an_overlayfs_is_shown_only_the_attributes_that_it_can_copy() {
        let names = ["user.note", "user.overlay.opaque", "trusted.note", "security.capability", "security.selinux"];
        let shown = |xattrs: Xattrs| names.map(|name| xattrs.shows(OsStr::new(name)));

        assert_eq!(shown(Xattrs::All), [true; 5]);
        assert_eq!(shown(Xattrs::BelowRootsOverlay), [true, false, true, true, true]);
        assert_eq!(shown(Xattrs::BelowOverlay { capabilities: true }), [true, false, false, true, false]);
        assert_eq!(shown(Xattrs::BelowOverlay { capabilities: false }), [true, false, false, false, false]);
    }

    #[test]
    fn ids_that_do_not_exist_here_have_the_kernels_stand_in_or_are_roots() {
        for (id, end, expected) in [
            (0, 1, 0),
            (33, 1, 0),
            (33, 65537, 33),
            (65536, 65537, 65536),
            (65537, 65537, OVERFLOW_ID),
            (70_000, 1000, 0),
            (u32::MAX - 1, u32::MAX, u32::MAX - 1),
        ] {
            assert_eq!(existing(id, end), expected, "{id} of {end}");
        }
    }
}
