//! Requests: what each of them asks of [`FileSystem`].

use super::ahead::ReadAhead;
use super::convert::{self, attr_out, kind_out, made_with, mode_in, node_kind, open_in, permissions, set_time};
use super::first_bytes;
use crate::errno::errno;
use crate::fs::{Caller, Error, FileSystem, Listed};
use fuser::{
    BsdFileFlags, Errno, FileHandle, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::libc;
use siphon_overlay::view::{Ino, SetAttr};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Requests that the kernel may have under way on its own account, such as readahead. Its default of 12 leaves the
/// workers idle while a remote image answers.
const MAX_BACKGROUND: u16 = 64;

/// What the kernel reads around a page that a program asks for, and at most ahead of a reader, where content is far away. With
/// its 128 KiB nearly every page of a library that is touched asks for two blocks of squashfs, of which one is not needed: a
/// start of PyTorch asks for 214 MB, with this for 125 MB. What is worth fetching beyond that is decided where it is fetched.
const FAR_READAHEAD_BYTES: u32 = 16 << 10;

/// The largest request that the kernel takes (`FUSE_MAX_MAX_PAGES` of 256 pages); each worker has a buffer for one.
const MAX_WRITE_BYTES: u32 = 1 << 20;

/// What is asked of the kernel where it has it.
const CAPABILITIES: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    // Attributes come with every listing, also with the later parts of a long one: they are at hand, and a look-up for
    // each name costs far more than those that nobody wants.
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA)
    // Else overlayfs looks for what a file of its layer is a copy of by number. Linux finds it only while it has it cached, so
    // that two names of one file differ; in a trial with that look-up allowed, a copied file was `ESTALE` once caches were dropped.
    .union(InitFlags::FUSE_NO_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_ASYNC_DIO);

/// Where there are ACLs: one of a directory overrules the umask, which the kernel then leaves to us.
const ACLS: InitFlags = InitFlags::FUSE_POSIX_ACL.union(InitFlags::FUSE_DONT_MASK);

/// What the FUSE library hands each request to.
#[derive(Debug)]
pub(super) struct Adaptor {
    pub(super) filesystem: Arc<FileSystem>,
    ahead: Arc<ReadAhead>,
    /// Whether the kernel opens on its own once it was told, with `ENOSYS`, that it need not ask.
    opens_files: bool,
    opens_directories: bool,
    /// Told with every node, another one for each mount: an overlayfs that does look by number, of a Linux before 6.9, then
    /// takes nothing for what another mount had.
    pub(super) generation: Generation,
}

thread_local! {
    /// One buffer for each worker's reads: a fresh one for each would be zeroed each time.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Adaptor {
    pub(super) fn new(filesystem: Arc<FileSystem>, ahead: Arc<ReadAhead>) -> Self {
        let random = RandomState::new().build_hasher().finish();
        // The kernel keeps 32 bits of it, and the root of every mount has 0.
        let generation = Generation(random & u64::from(u32::MAX) | 1);
        Self { filesystem, ahead, opens_files: false, opens_directories: false, generation }
    }

    fn cache_flags(&self) -> FopenFlags {
        let keep = if self.filesystem.keeps_cache() { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
        // Nothing is held back until close, so that a flush would be a message for nothing.
        keep | FopenFlags::FOPEN_NOFLUSH
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

impl fuser::Filesystem for Adaptor {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        let nothing_to_open = self.filesystem.opens_nothing();
        self.opens_files = nothing_to_open && offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.opens_directories = nothing_to_open && offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        let mut wanted = CAPABILITIES & offered;
        if self.filesystem.has_acls() {
            wanted |= ACLS & offered;
        }
        if self.filesystem.takes_privileges() {
            wanted |= InitFlags::FUSE_HANDLE_KILLPRIV_V2 & offered;
        }
        let granted = config.add_capabilities(wanted);
        let background = config.set_max_background(MAX_BACKGROUND).map(drop);
        let write = config.set_max_write(MAX_WRITE_BYTES).map(drop);
        if self.filesystem.is_far() {
            // What the kernel has is more.
            let _ = config.set_max_readahead(FAR_READAHEAD_BYTES);
        }
        if granted.is_err() || background.is_err() || write.is_err() {
            tracing::warn!("the kernel refused a tuning of the FUSE connection");
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = self.filesystem.lookup(ino(parent), name);
        match &result {
            // An entry without a node is how the kernel is told to remember that there is none.
            Err(error) if errno(error) == libc::ENOENT => {
                reply.entry(&self.filesystem.lifetime(), &convert::no_node(), Generation(0));
            }
            _ => self.entry("lookup", parent, result, reply),
        }
    }

    fn forget(&self, _request: &Request, number: INodeNo, count: u64) {
        self.filesystem.forget(ino(number), count);
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.attr("getattr", number, self.filesystem.attr(ino(number)), reply);
    }

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mode = mode.map(permissions);
        let change = SetAttr { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        self.attr("setattr", number, self.filesystem.set_attr(ino(number), &change), reply);
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        match self.filesystem.read_link(ino(number)) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(error) => reply.error(self.fail("readlink", number.0, &error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let result = match node_kind(mode) {
            Some(kind) => {
                let permissions = made_with(mode, umask);
                self.filesystem.make_node(caller(request), ino(parent), name, kind, permissions, rdev)
            }
            None => Err(Error::Invalid),
        };
        self.entry("mknod", parent, result, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let result = self.filesystem.make_directory(caller(request), ino(parent), name, made_with(mode, umask));
        self.entry("mkdir", parent, result, reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done("unlink", parent, self.filesystem.unlink(ino(parent), name), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done("rmdir", parent, self.filesystem.remove_directory(ino(parent), name), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let result = self.filesystem.make_symlink(caller(request), ino(parent), name, target.as_os_str());
        self.entry("symlink", parent, result, reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let result = self.filesystem.rename(ino(parent), name, ino(new_parent), new_name, flags.bits());
        self.done("rename", parent, result, reply);
    }

    fn link(&self, _request: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry("link", parent, self.filesystem.link(ino(number), ino(parent), name), reply);
    }

    fn open(&self, _request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.opens_files {
            return reply.error(Errno::ENOSYS);
        }
        match self.filesystem.open(ino(number), open_in(flags)) {
            Ok(handle) => reply.opened(FileHandle(handle), self.cache_flags()),
            Err(error) => reply.error(self.fail("open", number.0, &error)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let size = usize::try_from(size.min(MAX_WRITE_BYTES)).unwrap_or(0);
            let buf = first_bytes(buffer, size);
            match self.filesystem.read(ino(number), handle.0, offset, buf) {
                Ok(read) => {
                    reply.data(&buf[..read]);
                    let asked = offset..offset.saturating_add(read as u64);
                    self.ahead.push(self.filesystem.expected_after(ino(number), asked, read < size));
                }
                Err(error) => reply.error(self.fail("read", number.0, &error)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The kernel writes a page of a mapping through any handle that may write, one that appends as well.
        let written = if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            self.filesystem.write_mapped(handle.0, offset, data)
        } else {
            self.filesystem.write(handle.0, offset, data)
        };
        match written {
            // No request is larger than MAX_WRITE_BYTES.
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(error) => reply.error(self.fail("write", number.0, &error)),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Every write has reached the layer before it was answered. ENOSYS makes the kernel stop asking.
        if self.opens_files { reply.error(Errno::ENOSYS) } else { reply.ok() }
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.filesystem.release(handle.0);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, number: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.done("fsync", number, self.filesystem.sync(handle.0, data_only), reply);
    }

    fn opendir(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.opens_directories {
            return reply.error(Errno::ENOSYS);
        }
        let cache = if self.filesystem.keeps_cache() {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::empty()
        };
        reply.opened(FileHandle(self.filesystem.open_directory(ino(number))), cache);
    }

    fn readdir(&self, _request: &Request, number: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.filesystem.list(ino(number), handle.0, offset, |entry| {
            !reply.add(INodeNo(entry.ino.0), entry.next_offset, kind_out(entry.kind), entry.name)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.fail("readdir", number.0, &error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let lifetime = self.filesystem.lifetime();
        let result = self.filesystem.list_with_attributes(ino(number), handle.0, offset, |entry, listed| {
            let (Listed::Node(node) | Listed::Known(node)) = listed;
            let number = INodeNo(entry.ino.0);
            !reply.add(number, entry.next_offset, entry.name, &lifetime, &attr_out(&node), self.generation)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.fail("readdirplus", number.0, &error)),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.filesystem.release_directory(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, number: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        self.done("fsyncdir", number, self.filesystem.sync_directory(ino(number)), reply);
    }

    fn statfs(&self, _request: &Request, number: INodeNo, reply: ReplyStatfs) {
        match self.filesystem.statistics() {
            Ok(sizes) => {
                let block_size = sizes.block_size.max(512);
                let blocks = sizes.bytes.div_ceil(u64::from(block_size));
                let free = sizes.free_bytes / u64::from(block_size);
                reply.statfs(blocks, free, free, sizes.nodes, sizes.free_nodes, block_size, 255, block_size);
            }
            Err(error) => reply.error(self.fail("statfs", number.0, &error)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let result = self.filesystem.set_xattr(caller(request), ino(number), name, value, flags);
        self.done("setxattr", number, result, reply);
    }

    fn getxattr(&self, _request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let capacity = usize::try_from(size).unwrap_or(usize::MAX);
        self.xattr("getxattr", number, self.filesystem.xattr(ino(number), name, capacity), reply);
    }

    fn listxattr(&self, _request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let capacity = usize::try_from(size).unwrap_or(usize::MAX);
        self.xattr("listxattr", number, self.filesystem.xattr_names(ino(number), capacity), reply);
    }

    fn removexattr(&self, _request: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done("removexattr", number, self.filesystem.remove_xattr(ino(number), name), reply);
    }

    fn access(&self, _request: &Request, _number: INodeNo, _mask: fuser::AccessFlags, reply: ReplyEmpty) {
        // Permissions are the kernel's to check (default_permissions): ENOSYS makes it stop asking.
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let open = mode_in(flags);
        match self.filesystem.create(caller(request), ino(parent), name, made_with(mode, umask), open) {
            Ok((node, handle)) => {
                let lifetime = self.filesystem.lifetime();
                reply.created(&lifetime, &attr_out(&node), self.generation, FileHandle(handle), self.cache_flags());
            }
            Err(error) => reply.error(self.fail("create", parent.0, &error)),
        }
    }

    fn ioctl(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.done("fallocate", number, self.filesystem.allocate(handle.0, mode, offset, length), reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let result = match u64::try_from(offset) {
            Ok(offset) => self.filesystem.seek(ino(number), handle.0, offset, whence),
            Err(_) => Err(Error::Invalid),
        };
        match result.map(i64::try_from) {
            Ok(Ok(offset)) => reply.offset(offset),
            Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
            Err(error) => reply.error(self.fail("lseek", number.0, &error)),
        }
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _from: INodeNo,
        _from_handle: FileHandle,
        _from_offset: u64,
        _to: INodeNo,
        _to_handle: FileHandle,
        _to_offset: u64,
        _length: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel then copies through the page cache, and does not ask again.
        reply.error(Errno::ENOSYS);
    }
}
