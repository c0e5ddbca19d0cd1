//! Entries of a tar stream: ustar, GNU and pax, with long names, extended attributes and holes.
//!
//! Written anew because the streams are hostile: the `tar` crate buffers extension headers of any length, and splits pax
//! records at line feeds, which binary attributes contain. Everything that is kept is bounded here, and nothing is allocated
//! for a length that is only claimed. Semantics are those of Go's `archive/tar`, which made nearly all layers and reads them
//! everywhere else: see there for what contradicts itself.

mod header;
mod pax;
mod sparse;

use crate::tree::Timestamp;
use header::{Block, Header};
use pax::Pax;
use sparse::Map;
use std::io::{self, BufRead, Read};

/// Unit of the format.
const BLOCK_BYTES: usize = 512;
/// Longest extension header: as in Go. Names, links and attributes of one entry fit in.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Longest path or link: `PATH_MAX` of Linux.
const MAX_PATH_BYTES: usize = 4096;
/// Extension headers before one entry; writers need three at most.
const MAX_EXTENSIONS: usize = 16;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::oci) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry, as it is in the stream: names may be absolute or lead upwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::oci) struct Entry {
    pub(in crate::oci) kind: Kind,
    pub(in crate::oci) path: Vec<u8>,
    /// What a link leads to.
    pub(in crate::oci) link: Vec<u8>,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    /// In the kernel's 32-bit encoding.
    pub(super) rdev: u32,
    /// Bytes of content, with holes; 0 for all but files.
    pub(in crate::oci) size: u64,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why a stream is no usable tar archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It ends within an entry.
    #[error("the archive is cut off after {0} bytes")]
    CutOff(u64),
    /// A header whose checksum is wrong: the stream is none, or was damaged.
    #[error("no valid tar header at byte {0}")]
    Checksum(u64),
    /// A field that cannot be.
    #[error("the tar header at byte {at} has an impossible {field}")]
    Field {
        /// Where.
        at: u64,
        /// Which.
        field: &'static str,
    },
    /// An entry of a kind that file systems do not have.
    #[error("the tar header at byte {at} is of the unknown type {kind:?}")]
    Kind {
        /// Where.
        at: u64,
        /// The type flag.
        kind: char,
    },
    /// The stream below failed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
}

/// Reads a stream entry by entry.
#[derive(Debug)]
pub(in crate::oci) struct Reader<R> {
    input: R,
    /// Bytes read so far.
    position: u64,
    /// Stored bytes of the present entry that were not read yet.
    stored: u64,
    /// Bytes behind them up to the next header.
    padding: u64,
    /// Where the present entry has data.
    map: Map,
    /// How much of its content was handed out.
    offset: u64,
    size: u64,
}

/// What extension headers say of the entry that follows.
#[derive(Debug, Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

impl<R: BufRead> Reader<R> {
    pub(in crate::oci) fn new(input: R) -> Self {
        Self { input, position: 0, stored: 0, padding: 0, map: Map::default(), offset: 0, size: 0 }
    }

    /// The next entry; `None` at the end of the archive. What was not read of the present one is passed over.
    pub(in crate::oci) fn next(&mut self) -> Result<Option<Entry>, Error> {
        self.skip_rest()?;
        let mut extensions = Extensions::default();
        for _ in 0..MAX_EXTENSIONS {
            let at = self.position;
            let Some(block) = self.header()? else { return Ok(None) };
            let header = Header { block: &block, at };
            match header.kind() {
                b'L' => extensions.name = Some(until_nul(self.extension(&header)?)),
                b'K' => extensions.link = Some(until_nul(self.extension(&header)?)),
                b'x' | b'X' => {
                    let records = self.extension(&header)?;
                    extensions.pax = Pax::parse(&records).ok_or(Error::Field { at, field: "extended header" })?;
                }
                // Of the whole archive: comments, such as the commit that it was made of.
                b'g' => drop(self.extension(&header)?),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
        Err(Error::Field { at: self.position, field: "number of extension headers" })
    }

    /// How many bytes were read.
    pub(in crate::oci) fn position(&self) -> u64 {
        self.position
    }

    /// Stored bytes of the present entry that were not read, and how many fill them up.
    pub(in crate::oci) fn rest(&self) -> (u64, u64) {
        (self.stored, self.padding)
    }

    /// Up to `length` bytes more of the content of the present entry, at most what is left; `None` for nothing but zeros.
    pub(super) fn content(&mut self, length: usize) -> Result<Option<Vec<u8>>, Error> {
        let length = usize::try_from(self.size - self.offset).map_or(length, |left| left.min(length));
        let range = self.offset..self.offset + length as u64;
        self.offset = range.end;
        if self.map.is_hole(&range) {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(length);
        let mut offset = range.start;
        while offset < range.end {
            let (is_data, until) = self.map.at(offset, range.end);
            let end = usize::try_from(until - range.start).expect("within a buffer");
            if is_data {
                self.read_to(end, &mut bytes)?;
                self.stored = self.stored.saturating_sub(until - offset);
            } else {
                bytes.resize(end, 0);
            }
            offset = until;
        }
        Ok(Some(bytes))
    }

    /// The entry of a header, with what belongs to it read.
    fn entry(&mut self, header: &Header<'_>, extensions: Extensions) -> Result<Entry, Error> {
        let Extensions { name, link, pax } = extensions;
        let is_sparse = header.kind() == b'S';
        let mut entry = header.entry(&pax)?;
        entry.path = pax.sparse_name.clone().or(name).unwrap_or(entry.path);
        entry.link = link.unwrap_or(entry.link);
        if header.kind() == 0 && entry.path.ends_with(b"/") {
            // Archives from before directories had a type.
            entry.kind = Kind::Directory;
        }
        let impossible = |field| Error::Field { at: header.at, field };
        if entry.path.len() > MAX_PATH_BYTES || entry.path.contains(&0) {
            return Err(impossible("path"));
        }
        if entry.link.len() > MAX_PATH_BYTES || entry.link.contains(&0) {
            return Err(impossible("link"));
        }
        // Only files have content: others may state a size, and have none all the same.
        self.stored = if entry.kind == Kind::File { entry.size } else { 0 };
        self.padding = self.stored.next_multiple_of(BLOCK_BYTES as u64) - self.stored;
        self.offset = 0;
        self.map = Map::whole(self.stored);
        if entry.kind != Kind::File {
            entry.size = 0;
        } else if is_sparse || pax.is_sparse() {
            let (map, size) = self.sparse_map(header, &pax, is_sparse)?;
            if !map.fits(size, self.stored) {
                return Err(impossible("map of holes"));
            }
            (self.map, entry.size) = (map, size);
        }
        self.size = entry.size;
        Ok(entry)
    }

    /// Where a file with holes has data, and how long it is.
    fn sparse_map(&mut self, header: &Header<'_>, pax: &Pax, is_old: bool) -> Result<(Map, u64), Error> {
        let impossible = || Error::Field { at: header.at, field: "map of holes" };
        let mut map = Map::default();
        if is_old {
            let (mut goes_on, size) = header.old_sparse(&mut map)?;
            while goes_on {
                let mut block = [0; BLOCK_BYTES];
                if !self.read_block(&mut block)? {
                    return Err(Error::CutOff(self.position));
                }
                goes_on = Header { block: &block, at: header.at }.more_sparse(&mut map)?;
            }
            return Ok((map, size));
        }
        let size = pax.sparse_size.ok_or_else(impossible)?;
        if !pax.has_map_in_content {
            map.add_all(&pax.sparse_map).ok_or_else(impossible)?;
            return Ok((map, size));
        }
        // Decimal numbers, a line each: how many pieces, then offset and length of each; filled up to a whole block.
        let mut lines = sparse::Lines::default();
        let mut block = [0; BLOCK_BYTES];
        while !lines.is_complete().ok_or_else(impossible)? {
            if self.stored < BLOCK_BYTES as u64 {
                return Err(impossible());
            }
            self.read_exact(&mut block)?;
            self.stored -= BLOCK_BYTES as u64;
            lines.push(&block).ok_or_else(impossible)?;
        }
        map.add_all(lines.numbers()).ok_or_else(impossible)?;
        Ok((map, size))
    }

    fn header(&mut self) -> Result<Option<Block>, Error> {
        let mut block = [0; BLOCK_BYTES];
        let at = self.position;
        if !self.read_block(&mut block)? {
            return Ok(None);
        }
        if block == [0; BLOCK_BYTES] {
            // Two of them are the end, whatever follows.
            let is_end = !self.read_block(&mut block)? || block == [0; BLOCK_BYTES];
            return if is_end { Ok(None) } else { Err(Error::Checksum(at)) };
        }
        if !(Header { block: &block, at }).is_intact() {
            return Err(Error::Checksum(at));
        }
        Ok(Some(block))
    }

    /// The content of an extension header.
    fn extension(&mut self, header: &Header<'_>) -> Result<Vec<u8>, Error> {
        let size = header.size()?;
        if size > MAX_EXTENSION_BYTES {
            return Err(Error::Field { at: header.at, field: "length of an extension header" });
        }
        let mut bytes = vec![0; usize::try_from(size).expect("at most 1 MiB")];
        self.read_exact(&mut bytes)?;
        self.padding = size.next_multiple_of(BLOCK_BYTES as u64) - size;
        self.skip_rest()?;
        Ok(bytes)
    }

    /// Reads up to the next header.
    fn skip_rest(&mut self) -> Result<(), Error> {
        let rest = self.stored.saturating_add(self.padding);
        (self.stored, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.input.by_ref().take(rest), &mut io::sink()).map_err(Error::Read)?;
        self.position = self.position.saturating_add(skipped);
        if skipped < rest { Err(Error::CutOff(self.position)) } else { Ok(()) }
    }

    /// Reads until `bytes` has this length.
    fn read_to(&mut self, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        while bytes.len() < length {
            let ready = match self.input.fill_buf() {
                Ok([]) => return Err(Error::CutOff(self.position)),
                Ok(ready) => &ready[..ready.len().min(length - bytes.len())],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Read(error)),
            };
            bytes.extend_from_slice(ready);
            let read = ready.len();
            self.input.consume(read);
            self.position = self.position.saturating_add(read as u64);
        }
        Ok(())
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.input.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::CutOff(self.position),
            _ => Error::Read(error),
        })?;
        self.position = self.position.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Reads one block; false if the stream is at its end.
    fn read_block(&mut self, block: &mut Block) -> Result<bool, Error> {
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(Error::CutOff(self.position)),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
        self.position = self.position.saturating_add(BLOCK_BYTES as u64);
        Ok(true)
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}
