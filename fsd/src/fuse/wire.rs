//! The kernel's protocol, as `linux/fuse.h` has it: the bytes of a request, and those of an answer.
//!
//! All numbers are in the machine's own order. A request is a header and what its kind has after it: numbers, then names, each
//! with a NUL behind it, then content. An answer is a header and numbers likewise.

use super::first_bytes;
use crate::fs::Node;
use siphon_image::tree::{Kind, Timestamp};
use siphon_overlay::view::Ino;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// The version that is spoken: what has been added since 7.31 (Linux 5.4) is asked for by a flag of its own.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 41;
/// The oldest minor version that is understood, of Linux 4.2: from here on answers have the lengths that they have now.
pub(super) const OLDEST_MINOR: u32 = 23;

/// `struct fuse_in_header` and `struct fuse_out_header`.
const REQUEST_HEADER: usize = 40;
const ANSWER_HEADER: usize = 16;
/// `struct fuse_write_in` and the header before it: what a request is longer than the content that it brings.
pub(super) const MAX_OVERHEAD: usize = 4096;

/// What `stat` names as the best size for reads: the kernel asks for pages and up to its readahead.
const BLOCK_SIZE: u32 = 4096;

/// What is asked for, by its number.
pub(super) mod opcode {
    pub(in crate::fuse) const LOOKUP: u32 = 1;
    pub(in crate::fuse) const FORGET: u32 = 2;
    pub(in crate::fuse) const GETATTR: u32 = 3;
    pub(in crate::fuse) const SETATTR: u32 = 4;
    pub(in crate::fuse) const READLINK: u32 = 5;
    pub(in crate::fuse) const SYMLINK: u32 = 6;
    pub(in crate::fuse) const MKNOD: u32 = 8;
    pub(in crate::fuse) const MKDIR: u32 = 9;
    pub(in crate::fuse) const UNLINK: u32 = 10;
    pub(in crate::fuse) const RMDIR: u32 = 11;
    pub(in crate::fuse) const RENAME: u32 = 12;
    pub(in crate::fuse) const LINK: u32 = 13;
    pub(in crate::fuse) const OPEN: u32 = 14;
    pub(in crate::fuse) const READ: u32 = 15;
    pub(in crate::fuse) const WRITE: u32 = 16;
    pub(in crate::fuse) const STATFS: u32 = 17;
    pub(in crate::fuse) const RELEASE: u32 = 18;
    pub(in crate::fuse) const FSYNC: u32 = 20;
    pub(in crate::fuse) const SETXATTR: u32 = 21;
    pub(in crate::fuse) const GETXATTR: u32 = 22;
    pub(in crate::fuse) const LISTXATTR: u32 = 23;
    pub(in crate::fuse) const REMOVEXATTR: u32 = 24;
    pub(in crate::fuse) const FLUSH: u32 = 25;
    pub(in crate::fuse) const INIT: u32 = 26;
    pub(in crate::fuse) const OPENDIR: u32 = 27;
    pub(in crate::fuse) const READDIR: u32 = 28;
    pub(in crate::fuse) const RELEASEDIR: u32 = 29;
    pub(in crate::fuse) const FSYNCDIR: u32 = 30;
    pub(in crate::fuse) const CREATE: u32 = 35;
    pub(in crate::fuse) const DESTROY: u32 = 38;
    pub(in crate::fuse) const IOCTL: u32 = 39;
    pub(in crate::fuse) const BATCH_FORGET: u32 = 42;
    pub(in crate::fuse) const FALLOCATE: u32 = 43;
    pub(in crate::fuse) const READDIRPLUS: u32 = 44;
    pub(in crate::fuse) const RENAME2: u32 = 45;
    pub(in crate::fuse) const LSEEK: u32 = 46;
    pub(in crate::fuse) const TMPFILE: u32 = 51;
}

/// What the kernel offers in `FUSE_INIT` and may be asked for.
pub(super) mod init {
    pub(in crate::fuse) const ASYNC_READ: u64 = 1 << 0;
    pub(in crate::fuse) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(in crate::fuse) const BIG_WRITES: u64 = 1 << 5;
    pub(in crate::fuse) const DONT_MASK: u64 = 1 << 6;
    pub(in crate::fuse) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(in crate::fuse) const ASYNC_DIO: u64 = 1 << 15;
    pub(in crate::fuse) const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub(in crate::fuse) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(in crate::fuse) const POSIX_ACL: u64 = 1 << 20;
    pub(in crate::fuse) const MAX_PAGES: u64 = 1 << 22;
    pub(in crate::fuse) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(in crate::fuse) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub(in crate::fuse) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub(in crate::fuse) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(in crate::fuse) const INIT_EXT: u64 = 1 << 30;
    pub(in crate::fuse) const NO_EXPORT_SUPPORT: u64 = 1 << 38;
}

/// Messages that no request asked for: their kind stands where an answer has its error number.
pub(super) mod notice {
    pub(in crate::fuse) const INVAL_INODE: i32 = 2;
    pub(in crate::fuse) const INVAL_ENTRY: i32 = 3;
    pub(in crate::fuse) const STORE: i32 = 4;
}

/// How the kernel is to treat an open file.
pub(super) mod open {
    pub(in crate::fuse) const KEEP_CACHE: u32 = 1 << 1;
    pub(in crate::fuse) const CACHE_DIR: u32 = 1 << 3;
    pub(in crate::fuse) const NOFLUSH: u32 = 1 << 5;
}

/// What a `SETATTR` says: which of its fields count.
pub(super) mod set {
    pub(in crate::fuse) const MODE: u32 = 1 << 0;
    pub(in crate::fuse) const UID: u32 = 1 << 1;
    pub(in crate::fuse) const GID: u32 = 1 << 2;
    pub(in crate::fuse) const SIZE: u32 = 1 << 3;
    pub(in crate::fuse) const ATIME: u32 = 1 << 4;
    pub(in crate::fuse) const MTIME: u32 = 1 << 5;
    pub(in crate::fuse) const ATIME_NOW: u32 = 1 << 7;
    pub(in crate::fuse) const MTIME_NOW: u32 = 1 << 8;
}

/// In the flags of a `WRITE`: the kernel writes a page of a mapping.
pub(super) const WRITE_CACHE: u32 = 1 << 0;
/// In the flags of an `FSYNC`: content alone.
pub(super) const FSYNC_DATA_ONLY: u32 = 1 << 0;

/// A request that is shorter than its kind, or has a name without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel sent a request that is none")]
pub(super) struct Malformed;

/// A request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) opcode: u32,
    /// What the answer is told by.
    pub(super) unique: u64,
    pub(super) ino: Ino,
    pub(super) uid: u32,
    pub(super) gid: u32,
    fields: &'a [u8],
}

impl<'a> Request<'a> {
    /// Takes the header of what was read from the device.
    ///
    /// # Errors
    /// [`Malformed`] if there is none, or a length in it that is not that of `bytes`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut header = Fields { rest: bytes };
        if usize::try_from(header.u32()?).ok() != Some(bytes.len()) {
            return Err(Malformed);
        }
        let (opcode, unique, ino) = (header.u32()?, header.u64()?, Ino(header.u64()?));
        let (uid, gid) = (header.u32()?, header.u32()?);
        // The process, and the length of what no kind that is asked for has behind its fields.
        header.skip(8)?;
        debug_assert_eq!(bytes.len() - header.rest.len(), REQUEST_HEADER);
        Ok(Self { opcode, unique, ino, uid, gid, fields: header.rest })
    }

    /// What its kind has after the header.
    pub(super) fn fields(&self) -> Fields<'a> {
        Fields { rest: self.fields }
    }
}

/// What is left of a request.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_ne_bytes)
    }

    pub(super) fn skip(&mut self, count: usize) -> Result<(), Malformed> {
        self.bytes(count).map(drop)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (found, rest) = self.rest.split_at_checked(count).ok_or(Malformed)?;
        self.rest = rest;
        Ok(found)
    }

    /// A name, without the NUL behind it.
    pub(super) fn name(&mut self) -> Result<&'a OsStr, Malformed> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
        let name = OsStr::from_bytes(&self.rest[..end]);
        self.rest = &self.rest[end + 1..];
        Ok(name)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (found, rest) = self.rest.split_first_chunk().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*found)
    }
}

/// An answer that is being put together, in a buffer that is used again and again.
#[derive(Debug, Default)]
pub(super) struct Answer {
    buffer: Vec<u8>,
    len: usize,
}

impl Answer {
    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.len = ANSWER_HEADER;
    }

    /// The length of what is in it so far, without the header.
    pub(super) fn len(&self) -> usize {
        self.len - ANSWER_HEADER
    }

    /// Space for the next `count` bytes, which [`Answer::advance`] takes in.
    pub(super) fn room(&mut self, count: usize) -> &mut [u8] {
        &mut first_bytes(&mut self.buffer, self.len + count)[self.len..]
    }

    /// Takes in `count` bytes of what [`Answer::room`] gave.
    pub(super) fn advance(&mut self, count: usize) {
        self.len += count;
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.advance(bytes.len());
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_ne_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_ne_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_ne_bytes());
    }

    pub(super) fn zeros(&mut self, count: usize) {
        self.room(count).fill(0);
        self.advance(count);
    }

    /// `struct fuse_attr`.
    fn attr(&mut self, node: &Node) {
        let attr = &node.attr;
        let times = [attr.atime, attr.mtime, attr.ctime];
        self.u64(node.ino.0);
        self.u64(attr.size);
        self.u64(attr.blocks);
        for time in times {
            self.u64(time.seconds.cast_unsigned());
        }
        for Timestamp { nanos, .. } in times {
            self.u32(nanos.min(999_999_999));
        }
        self.u32(type_bits(attr.kind) | u32::from(attr.mode & 0o7777));
        self.u32(attr.nlink);
        self.u32(attr.uid);
        self.u32(attr.gid);
        self.u32(attr.rdev);
        self.u32(BLOCK_SIZE);
        self.u32(0);
    }

    /// `struct fuse_attr_out`: what a node is, for as long as `lifetime`.
    pub(super) fn attributes(&mut self, node: &Node, lifetime: Duration) {
        self.u64(lifetime.as_secs());
        self.u32(lifetime.subsec_nanos());
        self.u32(0);
        self.attr(node);
    }

    /// `struct fuse_entry_out`: what lies at a name, for as long as `lifetime`.
    pub(super) fn entry(&mut self, node: &Node, generation: u64, lifetime: Duration) {
        self.entry_head(node.ino.0, generation, lifetime);
        self.attr(node);
    }

    /// The same where nothing lies: the number 0 is how the kernel is told to remember that there is nothing.
    pub(super) fn no_entry(&mut self, lifetime: Duration) {
        self.entry_head(0, 0, lifetime);
        self.zeros(88);
    }

    fn entry_head(&mut self, ino: u64, generation: u64, lifetime: Duration) {
        self.u64(ino);
        self.u64(generation);
        self.u64(lifetime.as_secs());
        self.u64(lifetime.as_secs());
        self.u32(lifetime.subsec_nanos());
        self.u32(lifetime.subsec_nanos());
    }

    /// `struct fuse_open_out`.
    pub(super) fn opened(&mut self, handle: u64, flags: u32) {
        self.u64(handle);
        self.u32(flags);
        self.u32(0);
    }

    /// `struct fuse_dirent` with its name, which the answer must have room for: see [`dirent_bytes`].
    pub(super) fn dirent(&mut self, ino: Ino, next_offset: u64, kind: Kind, name: &OsStr) {
        let name = name.as_bytes();
        self.u64(ino.0);
        self.u64(next_offset);
        self.u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
        self.u32(type_bits(kind) >> 12);
        self.bytes(name);
        self.zeros(name.len().next_multiple_of(8) - name.len());
    }

    /// The whole answer: what was put in, or an error number alone.
    pub(super) fn finish(&mut self, unique: u64, result: Result<(), i32>) -> &[u8] {
        let (len, error) = match result {
            Ok(()) => (self.len, 0),
            Err(errno) => (ANSWER_HEADER, -errno),
        };
        self.head(len, error, unique);
        &self.buffer[..len]
    }

    /// The message that no request asked for, of the kind `code` of [`notice`]: all of it but the `behind` bytes that are sent
    /// with it.
    pub(super) fn finish_notice(&mut self, code: i32, behind: usize) -> &[u8] {
        self.head(self.len + behind, code, 0);
        &self.buffer[..self.len]
    }

    fn head(&mut self, len: usize, error: i32, unique: u64) {
        let head = first_bytes(&mut self.buffer, ANSWER_HEADER);
        // No answer is longer than a request for content may ask for.
        head[..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
        head[4..8].copy_from_slice(&error.to_ne_bytes());
        head[8..].copy_from_slice(&unique.to_ne_bytes());
    }
}

/// How many bytes a directory's entry takes in an answer, after its attributes if it has some.
pub(super) fn dirent_bytes(name: &OsStr) -> usize {
    24 + name.len().next_multiple_of(8)
}

/// `struct fuse_entry_out`.
pub(super) const ENTRY_BYTES: usize = 128;

/// The type bits of `st_mode`.
fn type_bits(kind: Kind) -> u32 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice => 0o020_000,
        Kind::Directory => 0o040_000,
        Kind::BlockDevice => 0o060_000,
        Kind::File => 0o100_000,
        Kind::Symlink => 0o120_000,
        Kind::Socket => 0o140_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use siphon_image::tree::Attr;

    fn request(opcode: u32, fields: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(REQUEST_HEADER + fields.len()).unwrap().to_ne_bytes());
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend(7u64.to_ne_bytes());
        bytes.extend(9u64.to_ne_bytes());
        bytes.extend([1000u32, 100, 1, 0].iter().flat_map(|value| value.to_ne_bytes()));
        bytes.extend(fields);
        bytes
    }

    fn node() -> Node {
        let time = Timestamp { seconds: -2, nanos: 800_000_000 };
        let attr = Attr {
            kind: Kind::File,
            mode: 0o4755,
            uid: 1,
            gid: 2,
            nlink: 3,
            size: 4096,
            blocks: 8,
            rdev: 0,
            atime: time,
            mtime: time,
            ctime: time,
        };
        Node { ino: Ino(5), attr }
    }

    #[test]
    fn a_request_is_a_header_numbers_and_names() {
        let mut fields = 0o755u32.to_ne_bytes().to_vec();
        fields.extend(b"one\0two\0");
        let bytes = request(opcode::RENAME, &fields);
        let request = Request::parse(&bytes).unwrap();
        let mut rest = request.fields();

        assert_eq!((request.opcode, request.unique, request.ino), (opcode::RENAME, 7, Ino(9)));
        assert_eq!((request.uid, request.gid), (1000, 100));
        assert_eq!(rest.u32(), Ok(0o755));
        assert_eq!(rest.name(), Ok(OsStr::new("one")));
        assert_eq!(rest.name(), Ok(OsStr::new("two")));
        assert_eq!(rest.name(), Err(Malformed));
    }

    #[test]
    fn what_is_too_short_is_no_request() {
        let bytes = request(opcode::LOOKUP, b"endless");

        assert!(Request::parse(&bytes[..20]).is_err());
        assert!(Request::parse(&bytes[..bytes.len() - 1]).is_err());
        assert_eq!(Request::parse(&bytes).unwrap().fields().name(), Err(Malformed));
        assert_eq!(Request::parse(&bytes).unwrap().fields().bytes(8), Err(Malformed));
    }

    #[test]
    fn answers_have_the_lengths_of_the_kernels_structures() {
        let mut answer = Answer::default();
        let mut length = |fill: &dyn Fn(&mut Answer)| {
            answer.clear();
            fill(&mut answer);
            answer.len()
        };

        assert_eq!(length(&|answer| answer.entry(&node(), 1, Duration::from_secs(1))), ENTRY_BYTES);
        assert_eq!(length(&|answer| answer.no_entry(Duration::from_secs(1))), ENTRY_BYTES);
        assert_eq!(length(&|answer| answer.attributes(&node(), Duration::from_secs(1))), 104);
        assert_eq!(length(&|answer| answer.opened(1, 0)), 16);
        for name in ["a", "12345678", "123456789"].map(OsStr::new) {
            assert_eq!(length(&|answer| answer.dirent(Ino(1), 1, Kind::File, name)), dirent_bytes(name));
        }
    }

    #[test]
    fn an_answer_tells_its_length_and_an_error_has_nothing_else() {
        let mut answer = Answer::default();
        answer.clear();
        answer.u64(1);
        let whole = answer.finish(7, Ok(())).to_vec();
        let failed = answer.finish(7, Err(2)).to_vec();

        assert_eq!(whole[..8], [24u32.to_ne_bytes(), 0i32.to_ne_bytes()].concat());
        assert_eq!(whole[8..], [7u64.to_ne_bytes(), 1u64.to_ne_bytes()].concat());
        assert_eq!(failed, [&16u32.to_ne_bytes()[..], &(-2i32).to_ne_bytes(), &7u64.to_ne_bytes()].concat());
    }

    #[test]
    fn times_before_1970_keep_their_nanoseconds_and_none_has_too_many() {
        let mut answer = Answer::default();
        answer.clear();
        let mut node = node();
        node.attr.ctime.nanos = u32::MAX;
        answer.attr(&node);
        let bytes = answer.finish(0, Ok(()))[ANSWER_HEADER..].to_vec();

        assert_eq!(bytes[24..32], (-2i64).to_ne_bytes());
        assert_eq!(bytes[48..52], 800_000_000u32.to_ne_bytes());
        assert_eq!(bytes[56..60], 999_999_999u32.to_ne_bytes());
        assert_eq!(bytes[60..64], 0o104_755u32.to_ne_bytes());
    }
}
