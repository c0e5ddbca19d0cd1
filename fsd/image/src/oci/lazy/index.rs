//! What a layer holds, in the order of its tar: one entry for each header, whatever said so.

use super::super::time;
use super::error::Error;
use crate::tree::Timestamp;
use std::fmt::Debug;
use std::ops::Range;

/// Entries of one layer that are accepted, as where layers are converted: 224 MiB in memory. A gzip layer of some megabytes
/// may have as many.
pub const MAX_ENTRIES: usize = 4 << 20;

/// Longest path and link target, as the kernel has them.
pub const MAX_PATH_BYTES: usize = 4096;

/// Longest list of extended attributes of one entry; the kernel has no more than this for one value.
pub const MAX_XATTR_BYTES: usize = 64 << 10;

/// Names, targets and attributes of one layer together.
const MAX_TEXT_BYTES: usize = 256 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// Another name of a file.
    HardLink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// Where the content of a file lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// At this offset of the uncompressed tar.
    Offset(u64),
    /// In these chunks of [`LayerIndex::chunks`].
    Chunks(Range<u32>),
}

/// A compressed part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Where its gzip member or zstd frame begins in the layer.
    pub offset: u64,
    /// How many bytes of the layer it takes at most; 0 for a hole, which goes on up to the next chunk.
    pub stored_bytes: u32,
    /// Bytes of other files that come before it in what it decompresses to.
    pub inner_offset: u32,
    /// Where it begins in the file.
    pub file_offset: u64,
    /// How many bytes of the file it is; no longer true of a hole of more than 4 GiB.
    pub bytes: u32,
    /// The SHA-256 of them, where the format has it.
    pub digest: Option<[u8; 32]>,
}

/// One entry, with text that lies elsewhere.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// The path as it is in the layer: it may begin with `/` or `./`, end with `/`, and hold `.` and `..`.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change.
    pub mtime: Timestamp,
    /// The device's number, in the kernel's 32-bit encoding.
    pub rdev: u32,
    /// Bytes of content; 0 for all but files.
    pub size: u64,
    /// Target of a symbolic or hard link.
    pub link: &'a [u8],
    /// Extended attributes one after the other: lengths of name and value, as u16 and u32, then both.
    pub xattrs: &'a [u8],
    /// Where its content lies, if it has any.
    pub content: Content,
}

/// All entries of one layer.
#[derive(Debug, Default)]
pub struct LayerIndex {
    records: Vec<Record>,
    text: Vec<u8>,
    chunks: Vec<Chunk>,
}

#[derive(Debug)]
struct Record {
    mtime_seconds: i64,
    size: u64,
    /// Offset in the tar, or first chunk and their number.
    content: u64,
    text: u32,
    mtime_nanos: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    xattr_bytes: u32,
    path_bytes: u16,
    link_bytes: u16,
    mode: u16,
    kind: EntryKind,
    is_chunked: bool,
}

impl LayerIndex {
    /// The number of entries.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The entries in their order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..self.records.len()).map(|number| self.entry(number))
    }

    /// The chunks that entries refer to.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The chunks alone, which are all that reading needs once the entries are merged.
    pub fn into_chunks(mut self) -> Vec<Chunk> {
        self.chunks.shrink_to_fit();
        self.chunks
    }

    /// Appends `entry`.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if there are too many, or its text is too long.
    pub fn push(&mut self, entry: &Entry<'_>) -> Result<(), Error> {
        Error::bounded("a layer's number of entries", self.records.len() as u64 + 1, MAX_ENTRIES as u64)?;
        let short = |what, text: &[u8]| Error::bounded(what, text.len() as u64, MAX_PATH_BYTES as u64);
        short("a path's length", entry.path)?;
        short("a link target's length", entry.link)?;
        Error::bounded("a list of extended attributes", entry.xattrs.len() as u64, MAX_XATTR_BYTES as u64)?;
        let start = self.text.len();
        let added = entry.path.len() + entry.link.len() + entry.xattrs.len();
        Error::bounded("a layer's text", (start + added) as u64, MAX_TEXT_BYTES as u64)?;
        for part in [entry.path, entry.link, entry.xattrs] {
            self.text.extend_from_slice(part);
        }
        let narrow = |length: usize| u16::try_from(length).expect("paths are at most 4096 bytes");
        let (content, is_chunked) = match &entry.content {
            Content::Offset(offset) => (*offset, false),
            Content::Chunks(range) => (u64::from(range.start) << 32 | u64::from(range.end), true),
        };
        self.records.push(Record {
            mtime_seconds: entry.mtime.seconds,
            size: entry.size,
            content,
            text: u32::try_from(start).expect("all text is at most 256 MiB"),
            mtime_nanos: entry.mtime.nanos,
            uid: entry.uid,
            gid: entry.gid,
            rdev: entry.rdev,
            xattr_bytes: u32::try_from(entry.xattrs.len()).expect("they are at most 64 KiB"),
            path_bytes: narrow(entry.path.len()),
            link_bytes: narrow(entry.link.len()),
            mode: entry.mode,
            kind: entry.kind,
            is_chunked,
        });
        Ok(())
    }

    /// Appends a chunk and returns its number.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if there are more than an index can number.
    pub fn push_chunk(&mut self, chunk: Chunk) -> Result<u32, Error> {
        let number = Error::bounded("a layer's number of chunks", self.chunks.len() as u64, u64::from(u32::MAX - 1))?;
        self.chunks.push(chunk);
        Ok(u32::try_from(number).expect("it was just bounded"))
    }

    pub(super) fn chunk_count(&self) -> u32 {
        u32::try_from(self.chunks.len()).expect("push_chunk bounds them")
    }

    pub(super) fn chunk_mut(&mut self, number: u32) -> Option<&mut Chunk> {
        self.chunks.get_mut(usize::try_from(number).ok()?)
    }

    fn entry(&self, number: usize) -> Entry<'_> {
        let record = &self.records[number];
        let text = &self.text[usize::try_from(record.text).expect("offsets are of this text")..];
        let (path, text) = text.split_at(usize::from(record.path_bytes));
        let (link, text) = text.split_at(usize::from(record.link_bytes));
        let low = u32::try_from(record.content & u64::from(u32::MAX)).expect("it is masked");
        let high = u32::try_from(record.content >> 32).expect("it is shifted");
        Entry {
            path,
            kind: record.kind,
            mode: record.mode,
            uid: record.uid,
            gid: record.gid,
            mtime: Timestamp { seconds: record.mtime_seconds, nanos: record.mtime_nanos },
            rdev: record.rdev,
            size: record.size,
            link,
            xattrs: &text[..usize::try_from(record.xattr_bytes).expect("they are at most 64 KiB")],
            content: if record.is_chunked { Content::Chunks(high..low) } else { Content::Offset(record.content) },
        }
    }
}

/// Extended attributes in one run of bytes: for each the lengths of name and value as little-endian u16 and u32, then both.
#[derive(Debug, Default)]
pub(super) struct XattrList;

impl XattrList {
    /// Appends one, unless the list becomes too long, or the kernel could not have such a name.
    pub(super) fn push(list: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), Error> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(Error::BadName(String::from_utf8_lossy(name).into_owned()));
        }
        let total = list.len().saturating_add(6 + name.len()).saturating_add(value.len());
        Error::bounded("a list of extended attributes", total as u64, MAX_XATTR_BYTES as u64)?;
        list.extend_from_slice(&u16::try_from(name.len()).expect("it is at most 255").to_le_bytes());
        list.extend_from_slice(&u32::try_from(value.len()).expect("it is at most 64 KiB").to_le_bytes());
        list.extend_from_slice(name);
        list.extend_from_slice(value);
        Ok(())
    }

    /// The list without those whose names `is_left_out`.
    pub(super) fn without(list: &[u8], is_left_out: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut kept = Vec::new();
        for (name, value) in Self::iter(list).filter(|(name, _)| !is_left_out(name)) {
            Self::push(&mut kept, name, value).expect("it was in a list before");
        }
        kept
    }

    /// The names and values of a list.
    pub(super) fn iter(mut list: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
        std::iter::from_fn(move || {
            let (name_bytes, rest) = list.split_first_chunk::<2>()?;
            let (value_bytes, rest) = rest.split_first_chunk::<4>()?;
            let (name, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*name_bytes)))?;
            let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*value_bytes)).ok()?)?;
            list = rest;
            Some((name, value))
        })
    }
}

/// A device number in the kernel's 32-bit encoding; bits that it has no room for are lost, as they are to `mknod`.
pub(super) fn device_number(major: u64, minor: u64) -> u32 {
    let (major, minor) = (major & 0xfff, minor & 0xf_ffff);
    u32::try_from(minor & 0xff | major << 8 | (minor & !0xff) << 12).expect("12 and 20 bits are 32")
}

/// Major and minor number.
pub(super) fn device_parts(rdev: u32) -> (u32, u32) {
    (rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00)
}

/// The owner as the kernel has it: what is out of range is nobody's.
pub(super) fn owner(id: i64) -> u32 {
    u32::try_from(id).unwrap_or(65_534)
}

/// The time that RFC 3339 text gives; 1970 for what is none, as Go's programs have it.
pub(super) fn timestamp(text: &str) -> Timestamp {
    time::parse(text).unwrap_or_default()
}
