//! Requests: what each of them asks of [`FileSystem`], and what it is answered.

use super::ahead::ReadAhead;
use super::convert::{made_with, node_kind, open_mode, permissions, set_time};
use super::wire::{self, Answer, ENTRY_BYTES, Fields, Malformed, Request, dirent_bytes, init, opcode, open, set};
use crate::errno::{chain, errno, is_failure};
use crate::fs::{Caller, Error, FileSystem, Listed, Node, XattrReply};
use nix::libc;
use siphon_overlay::view::{Ino, Permissions, SetAttr};
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;

/// What the kernel reads around a page that a program asks for, and at most ahead of a reader, where content is far away. With
/// its 128 KiB nearly every page of a library that is touched asks for two blocks of squashfs, of which one is not needed: a
/// start of PyTorch asks for 214 MB, with this for 125 MB. What is worth fetching beyond that is decided where it is fetched.
const FAR_READAHEAD_BYTES: u32 = 16 << 10;

/// The largest request that the kernel takes (`FUSE_MAX_MAX_PAGES` of 256 pages); each worker has a buffer for one.
pub(super) const MAX_WRITE_BYTES: u32 = 1 << 20;

/// What is asked of the kernel where it has it.
const CAPABILITIES: u64 = init::ASYNC_READ
    | init::BIG_WRITES
    | init::PARALLEL_DIROPS
    // Attributes come with every listing, also with the later parts of a long one: they are at hand, and a look-up for
    // each name costs far more than those that nobody wants.
    | init::DO_READDIRPLUS
    | init::CACHE_SYMLINKS
    | init::ATOMIC_O_TRUNC
    | init::MAX_PAGES
    | init::EXPLICIT_INVAL_DATA
    // Else overlayfs looks for what a file of its layer is a copy of by number. Linux finds it only while it has it cached, so
    // that two names of one file differ; in a trial with that look-up allowed, a copied file was `ESTALE` once caches were dropped.
    | init::NO_EXPORT_SUPPORT
    | init::ASYNC_DIO;

/// Where there are ACLs: one of a directory overrules the umask, which the kernel then leaves to us.
const ACLS: u64 = init::POSIX_ACL | init::DONT_MASK;

/// The minor version of Linux 6.1. From 6.0 on, which has that of 5.17, the kernel takes the setgid bit of a program whose maker is none
/// of its group before it asks (CVE-2018-13405 for filesystems of the disk), and knows all groups of the maker.
const STRIPPING_MINOR: u32 = 37;

/// Who answers the requests of one mount.
#[derive(Debug)]
pub(super) struct Adaptor {
    filesystem: Arc<FileSystem>,
    ahead: Arc<ReadAhead>,
    /// Whether the kernel opens on its own once it was told, with `ENOSYS`, that it need not ask.
    opens_files: bool,
    opens_directories: bool,
    /// Whether the kernel takes the setgid bit of a program whose maker is none of its group.
    strips_setgid: bool,
    /// Told with every node, another one for each mount: an overlayfs that does look by number, of a Linux before 6.9, then
    /// takes nothing for what another mount had.
    generation: u64,
}

/// What is agreed on with the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreement {
    pub(super) flags: u64,
    pub(super) max_readahead: u32,
}

/// What comes of a request besides what is in the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The answer is to be sent.
    Answer,
    /// The kernel waits for none.
    Silence,
    /// The answer is to be sent, and these bytes of the file were read, up to its end or not: what comes next can be made ready.
    Read(Ino, Range<u64>, bool),
}

/// Why a request is answered with an error number.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Failed(#[from] Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Not a failure: the kernel is told by it how to go on.
    #[error("error {0}")]
    Told(i32),
}

impl Adaptor {
    pub(super) fn new(filesystem: Arc<FileSystem>, ahead: Arc<ReadAhead>) -> Self {
        let random = RandomState::new().build_hasher().finish();
        // The kernel keeps 32 bits of it, and the root of every mount has 0.
        let generation = random & u64::from(u32::MAX) | 1;
        let (opens_files, opens_directories, strips_setgid) = (false, false, false);
        Self { filesystem, ahead, opens_files, opens_directories, strips_setgid, generation }
    }

    /// Settles how requests will come, by the kernel's minor version and what it offers.
    pub(super) fn agree(&mut self, minor: u32, offered: u64, max_readahead: u32) -> Agreement {
        self.strips_setgid = minor >= STRIPPING_MINOR;
        let nothing_to_open = self.filesystem.opens_nothing();
        self.opens_files = nothing_to_open && offered & init::NO_OPEN_SUPPORT != 0;
        self.opens_directories = nothing_to_open && offered & init::NO_OPENDIR_SUPPORT != 0;
        let mut wanted = CAPABILITIES;
        if self.filesystem.has_acls() {
            wanted |= ACLS;
        }
        if self.filesystem.takes_privileges() {
            wanted |= init::HANDLE_KILLPRIV_V2;
        }
        let far = self.filesystem.is_far();
        let max_readahead = if far { max_readahead.min(FAR_READAHEAD_BYTES) } else { max_readahead };
        Agreement { flags: wanted & offered, max_readahead }
    }

    /// Does what is asked for and puts together the answer, or gives an error number.
    pub(super) fn answer(&self, request: &Request<'_>, answer: &mut Answer) -> Result<Outcome, i32> {
        answer.clear();
        self.dispatch(request, answer).map_err(|refusal| match refusal {
            Refusal::Told(errno) => errno,
            Refusal::Failed(error) => self.fail(request, &error),
            Refusal::Malformed(error) => {
                tracing::error!(opcode = request.opcode, "{error}");
                libc::EIO
            }
        })
    }

    /// Has made ready what is likely to be asked for after what was read.
    pub(super) fn was_read(&self, ino: Ino, range: Range<u64>, with_end: bool) {
        self.ahead.push(self.filesystem.expected_after(ino, range, with_end));
    }

    /// Gives `count` references on `ino` back.
    pub(super) fn forget(&self, ino: Ino, count: u64) {
        self.filesystem.forget(ino, count);
    }

    fn dispatch(&self, request: &Request<'_>, answer: &mut Answer) -> Result<Outcome, Refusal> {
        let ino = request.ino;
        let mut fields = request.fields();
        match request.opcode {
            opcode::LOOKUP => self.lookup(ino, fields.name()?, answer)?,
            opcode::FORGET => {
                self.filesystem.forget(ino, fields.u64()?);
                return Ok(Outcome::Silence);
            }
            opcode::BATCH_FORGET => {
                self.forget_all(&mut fields)?;
                return Ok(Outcome::Silence);
            }
            opcode::READ => return self.read(ino, &mut fields, answer),
            opcode::GETATTR => self.attributes(&self.filesystem.attr(ino)?, answer),
            opcode::SETATTR => self.set_attributes(ino, &mut fields, answer)?,
            opcode::READLINK => answer.bytes(self.filesystem.read_link(ino)?.as_encoded_bytes()),
            opcode::MKNOD | opcode::MKDIR | opcode::SYMLINK | opcode::LINK => {
                self.make(request, &mut fields, answer)?
            }
            opcode::CREATE | opcode::TMPFILE => self.create(request, &mut fields, answer)?,
            opcode::UNLINK => self.filesystem.unlink(ino, fields.name()?)?,
            opcode::RMDIR => self.filesystem.remove_directory(ino, fields.name()?)?,
            opcode::RENAME | opcode::RENAME2 => self.rename(request, &mut fields)?,
            opcode::OPEN => self.open(ino, &mut fields, answer)?,
            opcode::WRITE => self.write(&mut fields, answer)?,
            opcode::RELEASE => self.filesystem.release(fields.u64()?),
            // Every write has reached the layer before it was answered. ENOSYS makes the kernel stop asking.
            opcode::FLUSH if self.opens_files => return Err(Refusal::Told(libc::ENOSYS)),
            opcode::FLUSH => {}
            opcode::FSYNC => {
                let handle = fields.u64()?;
                self.filesystem.sync(handle, fields.u32()? & wire::FSYNC_DATA_ONLY != 0)?;
            }
            opcode::FALLOCATE => {
                let (handle, offset, length) = (fields.u64()?, fields.u64()?, fields.u64()?);
                self.filesystem.allocate(handle, fields.i32()?, offset, length)?;
            }
            opcode::LSEEK => {
                let (handle, offset, whence) = (fields.u64()?, fields.i64()?, fields.i32()?);
                let offset = u64::try_from(offset).map_err(|_| Error::Invalid)?;
                let found = self.filesystem.seek(ino, handle, offset, whence)?;
                i64::try_from(found).map_err(|_| Refusal::Told(libc::EOVERFLOW))?;
                answer.u64(found);
            }
            opcode::OPENDIR => self.open_directory(ino, answer)?,
            opcode::READDIR => self.list(ino, &mut fields, answer)?,
            opcode::READDIRPLUS => self.list_with_attributes(ino, &mut fields, answer)?,
            opcode::RELEASEDIR => self.filesystem.release_directory(fields.u64()?),
            opcode::FSYNCDIR => self.filesystem.sync_directory(ino)?,
            opcode::STATFS => self.statistics(answer)?,
            opcode::SETXATTR => self.set_xattr(request, &mut fields)?,
            opcode::GETXATTR => {
                let capacity = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
                fields.skip(4)?;
                xattr(self.filesystem.xattr(ino, fields.name()?, capacity)?, answer)?;
            }
            opcode::LISTXATTR => {
                let capacity = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
                xattr(self.filesystem.xattr_names(ino, capacity)?, answer)?;
            }
            opcode::REMOVEXATTR => self.filesystem.remove_xattr(ino, fields.name()?)?,
            opcode::IOCTL => return Err(Refusal::Told(libc::ENOTTY)),
            // Among them ACCESS, as permissions are the kernel's to check (default_permissions), and COPY_FILE_RANGE: the
            // kernel then copies through the page cache. It does not ask again for any of them.
            _ => return Err(Refusal::Told(libc::ENOSYS)),
        }
        Ok(Outcome::Answer)
    }

    /// Logs a failed operation and gives its error number: what is broken as an error, what was merely asked in vain
    /// at debug level.
    fn fail(&self, request: &Request<'_>, error: &Error) -> i32 {
        let (number, ino, opcode) = (errno(error), request.ino.0, request.opcode);
        if is_failure(number) {
            self.filesystem.counters().failure();
            tracing::error!(opcode, ino, errno = number, "{}", chain(error));
        } else {
            tracing::debug!(opcode, ino, errno = number, "{}", chain(error));
        }
        number
    }

    fn cache_flags(&self) -> u32 {
        let keep = if self.filesystem.keeps_cache() { open::KEEP_CACHE } else { 0 };
        // Nothing is held back until close, so that a flush would be a message for nothing.
        keep | open::NOFLUSH
    }

    fn entry(&self, node: &Node, answer: &mut Answer) {
        answer.entry(node, self.generation, self.filesystem.lifetime());
    }

    fn attributes(&self, node: &Node, answer: &mut Answer) {
        answer.attributes(node, self.filesystem.lifetime());
    }

    fn lookup(&self, parent: Ino, name: &OsStr, answer: &mut Answer) -> Result<(), Refusal> {
        match self.filesystem.lookup(parent, name) {
            Err(error) if errno(&error) == libc::ENOENT => answer.no_entry(self.filesystem.lifetime()),
            found => self.entry(&found?, answer),
        }
        Ok(())
    }

    fn forget_all(&self, fields: &mut Fields<'_>) -> Result<(), Refusal> {
        let count = fields.u32()?;
        fields.skip(4)?;
        for _ in 0..count {
            let ino = Ino(fields.u64()?);
            self.filesystem.forget(ino, fields.u64()?);
        }
        Ok(())
    }

    fn set_attributes(&self, ino: Ino, fields: &mut Fields<'_>, answer: &mut Answer) -> Result<(), Refusal> {
        let valid = fields.u32()?;
        // Padding and the handle.
        fields.skip(12)?;
        let size = fields.u64()?;
        // Who holds a lock.
        fields.skip(8)?;
        let (atime, mtime) = (fields.i64()?, fields.i64()?);
        // The time of the change itself.
        fields.skip(8)?;
        let (atime_nanos, mtime_nanos) = (fields.u32()?, fields.u32()?);
        fields.skip(4)?;
        let mode = fields.u32()?;
        fields.skip(4)?;
        let (uid, gid) = (fields.u32()?, fields.u32()?);
        let is = |flag| valid & flag != 0;
        let change = SetAttr {
            mode: is(set::MODE).then(|| permissions(mode)),
            uid: is(set::UID).then_some(uid),
            gid: is(set::GID).then_some(gid),
            size: is(set::SIZE).then_some(size),
            atime: set_time(is(set::ATIME), is(set::ATIME_NOW), atime, atime_nanos),
            mtime: set_time(is(set::MTIME), is(set::MTIME_NOW), mtime, mtime_nanos),
        };
        self.attributes(&self.filesystem.set_attr(ino, &change)?, answer);
        Ok(())
    }

    fn make(&self, request: &Request<'_>, fields: &mut Fields<'_>, answer: &mut Answer) -> Result<(), Refusal> {
        let (filesystem, caller, parent) = (&self.filesystem, caller(request), request.ino);
        let node = match request.opcode {
            opcode::MKNOD => {
                let (mode, rdev, umask) = (fields.u32()?, fields.u32()?, fields.u32()?);
                fields.skip(4)?;
                let kind = node_kind(mode).ok_or(Error::Invalid)?;
                filesystem.make_node(caller, parent, fields.name()?, kind, self.made_with(request, mode, umask)?, rdev)
            }
            opcode::MKDIR => {
                let (mode, umask) = (fields.u32()?, fields.u32()?);
                filesystem.make_directory(caller, parent, fields.name()?, made_with(mode, umask))
            }
            opcode::SYMLINK => {
                let name = fields.name()?;
                filesystem.make_symlink(caller, parent, name, fields.name()?)
            }
            _ => {
                let ino = Ino(fields.u64()?);
                filesystem.link(ino, parent, fields.name()?)
            }
        };
        self.entry(&node?, answer);
        Ok(())
    }

    fn create(&self, request: &Request<'_>, fields: &mut Fields<'_>, answer: &mut Answer) -> Result<(), Refusal> {
        let (flags, mode, umask) = (fields.i32()?, fields.u32()?, fields.u32()?);
        fields.skip(4)?;
        let (permissions, open) = (self.made_with(request, mode, umask)?, open_mode(flags));
        let (caller, parent) = (caller(request), request.ino);
        let (node, handle) = match request.opcode {
            // It comes with a name too, which is none.
            opcode::TMPFILE => self.filesystem.create_unnamed(caller, parent, permissions, open)?,
            _ => self.filesystem.create(caller, parent, fields.name()?, permissions, open)?,
        };
        self.entry(&node, answer);
        answer.opened(handle, self.cache_flags());
        Ok(())
    }

    /// The permissions of what is made and is no directory.
    fn made_with(&self, request: &Request<'_>, mode: u32, umask: u32) -> Result<Permissions, Refusal> {
        let permissions = made_with(mode, umask);
        if self.strips_setgid {
            return Ok(permissions);
        }
        Ok(self.filesystem.without_foreign_setgid(caller(request), request.ino, permissions)?)
    }

    fn rename(&self, request: &Request<'_>, fields: &mut Fields<'_>) -> Result<(), Refusal> {
        let to = Ino(fields.u64()?);
        let mut flags = 0;
        if request.opcode == opcode::RENAME2 {
            flags = fields.u32()?;
            fields.skip(4)?;
        }
        let name = fields.name()?;
        Ok(self.filesystem.rename(request.ino, name, to, fields.name()?, flags)?)
    }

    fn open(&self, ino: Ino, fields: &mut Fields<'_>, answer: &mut Answer) -> Result<(), Refusal> {
        if self.opens_files {
            return Err(Refusal::Told(libc::ENOSYS));
        }
        let handle = self.filesystem.open(ino, open_mode(fields.i32()?))?;
        answer.opened(handle, self.cache_flags());
        Ok(())
    }

    fn read(&self, ino: Ino, fields: &mut Fields<'_>, answer: &mut Answer) -> Result<Outcome, Refusal> {
        let (handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let size = usize::try_from(size.min(MAX_WRITE_BYTES)).unwrap_or(0);
        let read = self.filesystem.read(ino, handle, offset, answer.room(size))?;
        answer.advance(read);
        Ok(Outcome::Read(ino, offset..offset.saturating_add(read as u64), read < size))
    }

    fn write(&self, fields: &mut Fields<'_>, answer: &mut Answer) -> Result<(), Refusal> {
        let (handle, offset, size, flags) = (fields.u64()?, fields.u64()?, fields.u32()?, fields.u32()?);
        // Who holds a lock, the flags of the file, and padding.
        fields.skip(16)?;
        let data = fields.bytes(usize::try_from(size).map_err(|_| Malformed)?)?;
        // The kernel writes a page of a mapping through any handle that may write, one that appends as well.
        let written = if flags & wire::WRITE_CACHE != 0 {
            self.filesystem.write_mapped(handle, offset, data)?
        } else {
            self.filesystem.write(handle, offset, data)?
        };
        // No request is larger than MAX_WRITE_BYTES.
        answer.u32(u32::try_from(written).unwrap_or(u32::MAX));
        answer.u32(0);
        Ok(())
    }

    fn open_directory(&self, ino: Ino, answer: &mut Answer) -> Result<(), Refusal> {
        if self.opens_directories {
            return Err(Refusal::Told(libc::ENOSYS));
        }
        let cache = if self.filesystem.keeps_cache() { open::CACHE_DIR | open::KEEP_CACHE } else { 0 };
        answer.opened(self.filesystem.open_directory(ino), cache);
        Ok(())
    }

    fn list(&self, ino: Ino, fields: &mut Fields<'_>, answer: &mut Answer) -> Result<(), Refusal> {
        let (handle, offset, room) = listing(fields)?;
        Ok(self.filesystem.list(ino, handle, offset, |entry| {
            let fits = answer.len() + dirent_bytes(entry.name) <= room;
            if fits {
                answer.dirent(entry.ino, entry.next_offset, entry.kind, entry.name);
            }
            fits
        })?)
    }

    fn list_with_attributes(&self, ino: Ino, fields: &mut Fields<'_>, answer: &mut Answer) -> Result<(), Refusal> {
        let (handle, offset, room) = listing(fields)?;
        Ok(self.filesystem.list_with_attributes(ino, handle, offset, |entry, listed| {
            let (Listed::Node(node) | Listed::Known(node)) = listed;
            let fits = answer.len() + ENTRY_BYTES + dirent_bytes(entry.name) <= room;
            if fits {
                self.entry(&node, answer);
                answer.dirent(node.ino, entry.next_offset, node.attr.kind, entry.name);
            }
            fits
        })?)
    }

    fn statistics(&self, answer: &mut Answer) -> Result<(), Refusal> {
        let sizes = self.filesystem.statistics()?;
        let block_size = sizes.block_size.max(512);
        let blocks = sizes.bytes.div_ceil(u64::from(block_size));
        let free = sizes.free_bytes / u64::from(block_size);
        for value in [blocks, free, free, sizes.nodes, sizes.free_nodes] {
            answer.u64(value);
        }
        for value in [block_size, 255, block_size] {
            answer.u32(value);
        }
        answer.zeros(28);
        Ok(())
    }

    fn set_xattr(&self, request: &Request<'_>, fields: &mut Fields<'_>) -> Result<(), Refusal> {
        let (size, flags) = (fields.u32()?, fields.i32()?);
        let name = fields.name()?;
        let value = fields.bytes(usize::try_from(size).map_err(|_| Malformed)?)?;
        Ok(self.filesystem.set_xattr(caller(request), request.ino, name, value, flags)?)
    }
}

fn caller(request: &Request<'_>) -> Caller {
    Caller { uid: request.uid, gid: request.gid }
}

/// Handle, offset and room of a listing.
fn listing(fields: &mut Fields<'_>) -> Result<(u64, u64, usize), Malformed> {
    let (handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
    Ok((handle, offset, usize::try_from(size).unwrap_or(usize::MAX)))
}

fn xattr(reply: XattrReply, answer: &mut Answer) -> Result<(), Refusal> {
    match reply {
        XattrReply::Data(data) => answer.bytes(&data),
        XattrReply::Size(size) => {
            answer.u32(u32::try_from(size).map_err(|_| Refusal::Told(libc::E2BIG))?);
            answer.u32(0);
        }
    }
    Ok(())
}
