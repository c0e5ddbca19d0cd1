//! An index of a tar, made from its headers as they come by.

mod header;
mod pax;

use self::header::{Header, Type};
use self::pax::Overrides;
use super::error::Error;
use super::index::{Content, Entry, EntryKind, LayerIndex, device_number, owner};
use crate::read_at::ReadAt;
use crate::tree::Timestamp;
use std::sync::Arc;

/// The unit of a tar.
pub(super) const BLOCK_BYTES: usize = 512;

/// Longest extended header that is read, as Go has it.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// Bytes of a tar that are read at a time where many small headers follow each other.
const READ_BYTES: usize = 64 << 10;

/// Takes the bytes of a tar in order, in pieces of any size, and makes an index of them.
#[derive(Debug, Default)]
pub struct Scanner {
    index: LayerIndex,
    /// The offset of the next byte.
    offset: u64,
    /// Bytes of content and padding that come before the next header.
    skip_bytes: u64,
    /// A header or an extension that has not come as a whole.
    partial: Vec<u8>,
    state: State,
    overrides: Overrides,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Header,
    /// One block of zeros was seen.
    ZeroBlock,
    /// The content of an extended header of this length.
    Extension(Type, u64),
    End,
}

impl Scanner {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] and its kin for what is no tar.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() && self.state != State::End {
            if self.skip_bytes > 0 {
                let skipped = self.skip_bytes.min(bytes.len() as u64);
                bytes = &bytes[usize::try_from(skipped).expect("it is at most a slice's length")..];
                self.skip_bytes -= skipped;
                self.offset += skipped;
                continue;
            }
            let wanted = match self.state {
                State::Extension(_, length) => usize::try_from(length).expect("extensions are at most 1 MiB"),
                _ => BLOCK_BYTES,
            };
            let taken = (wanted - self.partial.len()).min(bytes.len());
            self.partial.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.offset += taken as u64;
            if self.partial.len() == wanted {
                let whole = std::mem::take(&mut self.partial);
                self.take(&whole)?;
                self.partial = whole;
                self.partial.clear();
            }
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// How many of the next bytes are content of files, so that they need not be read.
    fn content_bytes(&self) -> u64 {
        self.skip_bytes
    }

    fn skip(&mut self, bytes: u64) {
        self.offset += bytes;
        self.skip_bytes -= bytes;
    }

    /// The entries so far.
    pub fn index(&self) -> &LayerIndex {
        &self.index
    }

    /// The index of a tar that has come as a whole.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it ends within an entry.
    pub fn finish(self) -> Result<LayerIndex, Error> {
        let is_whole = self.state == State::End || self.partial.is_empty() && self.skip_bytes == 0;
        if !is_whole || matches!(self.state, State::Extension(..)) {
            return Err(Error::damaged("tar", self.offset, "it ends within an entry"));
        }
        Ok(self.index)
    }

    fn take(&mut self, block: &[u8]) -> Result<(), Error> {
        if let State::Extension(kind, length) = self.state {
            self.state = State::Header;
            self.skip_bytes = padding(length);
            return self.overrides.take(kind, block, self.offset - length);
        }
        if block.iter().all(|byte| *byte == 0) {
            self.state = if self.state == State::ZeroBlock { State::End } else { State::ZeroBlock };
            return Ok(());
        }
        self.state = State::Header;
        let at = self.offset - BLOCK_BYTES as u64;
        let header = Header::parse(block, at)?;
        match header.kind {
            Type::Pax | Type::LongName | Type::LongLink => {
                let length = Error::bounded("an extended tar header", header.size, MAX_EXTENSION_BYTES)?;
                match length {
                    0 => self.overrides.take(header.kind, &[], self.offset)?,
                    length => self.state = State::Extension(header.kind, length),
                }
                Ok(())
            }
            // It would change all that follows, and no builder of images writes anything of effect into one.
            Type::GlobalPax => {
                self.skip_bytes = header.size.saturating_add(padding(header.size));
                Ok(())
            }
            Type::Entry(kind) => self.add(&header, kind, at),
        }
    }

    fn add(&mut self, header: &Header, kind: EntryKind, at: u64) -> Result<(), Error> {
        let overrides = std::mem::take(&mut self.overrides);
        let path = overrides.path.as_deref().unwrap_or(&header.path);
        // Before there were types, a directory was a file with a slash at its end.
        let kind = if kind == EntryKind::File && path.ends_with(b"/") { EntryKind::Directory } else { kind };
        let size = match kind {
            EntryKind::File => overrides.size.unwrap_or(header.size),
            _ => 0,
        };
        if size > i64::MAX as u64 - self.offset {
            return Err(Error::damaged("tar header", at, "its entry is too long for any tar"));
        }
        let mtime = overrides.mtime.unwrap_or(Timestamp { seconds: header.mtime, nanos: 0 });
        let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let is_link = matches!(kind, EntryKind::Symlink | EntryKind::HardLink);
        self.index.push(&Entry {
            path,
            kind,
            mode: header.mode,
            uid: owner(overrides.uid.unwrap_or(header.uid)),
            gid: owner(overrides.gid.unwrap_or(header.gid)),
            mtime,
            rdev: if is_device { device_number(header.dev_major, header.dev_minor) } else { 0 },
            size,
            link: if is_link { overrides.link.as_deref().unwrap_or(&header.link) } else { &[] },
            xattrs: &overrides.xattrs,
            content: Content::Offset(self.offset),
        })?;
        self.skip_bytes = size + padding(size);
        Ok(())
    }
}

/// Reads the headers of a tar that is there as it is, and leaves out its content.
///
/// # Errors
/// As [`Scanner::push`] and [`Scanner::finish`]; [`Error::Read`] if `bytes` cannot be read.
pub fn index(bytes: &Arc<dyn ReadAt>) -> Result<LayerIndex, Error> {
    let mut scanner = Scanner::default();
    let mut buf = vec![0; READ_BYTES];
    let mut long = false;
    while scanner.offset < bytes.len() && scanner.state != State::End {
        let left = bytes.len() - scanner.offset;
        if scanner.content_bytes() > 0 {
            // After a long file, a header is probably alone.
            long = scanner.content_bytes() > READ_BYTES as u64;
            scanner.skip(scanner.content_bytes().min(left));
            continue;
        }
        let wanted = if long { 4 * BLOCK_BYTES } else { READ_BYTES };
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(wanted);
        let (part, offset) = (&mut buf[..count], scanner.offset);
        bytes.read_exact_at(part, offset).map_err(|source| Error::Read {
            offset,
            needed: count as u64,
            source: Arc::new(source),
        })?;
        scanner.push(part)?;
        long = false;
    }
    scanner.finish()
}

fn padding(length: u64) -> u64 {
    length.wrapping_neg() % BLOCK_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::super::index::XattrList;
    use super::*;

    fn octal(field: &mut [u8], value: u64) {
        let width = field.len() - 1;
        field[..width].copy_from_slice(format!("{value:0width$o}").as_bytes());
    }

    fn block(name: &[u8], kind: u8, size: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        block[..name.len()].copy_from_slice(name);
        octal(&mut block[100..108], 0o4755);
        octal(&mut block[108..116], 7);
        octal(&mut block[116..124], 8);
        octal(&mut block[124..136], size);
        octal(&mut block[136..148], 1_600_000_000);
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        sign(&mut block);
        block
    }

    fn sign(block: &mut [u8]) {
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut block[148..155], sum);
    }

    fn with_content(mut header: Vec<u8>, content: &[u8]) -> Vec<u8> {
        header.extend_from_slice(content);
        header.resize(header.len().next_multiple_of(BLOCK_BYTES), 0);
        header
    }

    fn sample() -> Vec<u8> {
        let mut tar = block(b"./", b'5', 0);
        let records: Vec<u8> =
            [&b"path=a name\xff that is long"[..], b"SCHILY.xattr.user.x=v\0w", b"mtime=-1.25", b"uid=70000"]
                .iter()
                .flat_map(|record| {
                    let mut length = record.len() + 2;
                    length += length.to_string().len();
                    length = record.len() + 2 + length.to_string().len();
                    [length.to_string().as_bytes(), b" ", record, b"\n"].concat()
                })
                .collect();
        tar.extend(with_content(block(b"pax", b'x', records.len() as u64), &records));
        tar.extend(with_content(block(b"short", b'0', 700), &[1; 700]));
        tar.extend(with_content(block(b"long", b'L', 130), &[[b'n'; 129].as_slice(), b"\0"].concat()));
        tar.extend(block(b"n", b'2', 0));
        tar.extend(with_content(block(b"last", b'0', 3), b"abc"));
        tar.extend([0; 1024]);
        tar.extend([9; 700]);
        tar
    }

    fn names(index: &LayerIndex) -> Vec<(Vec<u8>, EntryKind, u64, Content)> {
        index.entries().map(|entry| (entry.path.to_vec(), entry.kind, entry.size, entry.content)).collect()
    }

    #[test]
    fn a_tar_is_the_same_in_pieces_of_any_size() {
        let tar = sample();
        let whole = index(&(Arc::new(tar.clone()) as Arc<dyn ReadAt>)).unwrap();

        for piece in [1, 7, 512, 513, 100_000] {
            let mut scanner = Scanner::default();
            for part in tar.chunks(piece) {
                scanner.push(part).unwrap();
            }
            assert_eq!(names(&scanner.finish().unwrap()), names(&whole), "pieces of {piece}");
        }
        let found = names(&whole);
        assert_eq!(found.len(), 4);
        assert_eq!(found[1].0, b"a name\xff that is long");
        assert_eq!((found[1].2, &found[1].3), (700, &Content::Offset(512 + 1024 + 512)));
        assert_eq!((found[2].0.len(), found[2].1), (129, EntryKind::Symlink));
        let entry = whole.entries().nth(1).unwrap();
        assert_eq!((entry.uid, entry.gid, entry.mode), (70_000, 8, 0o4755));
        assert_eq!(entry.mtime, Timestamp { seconds: -2, nanos: 750_000_000 });
        assert_eq!(XattrList::iter(entry.xattrs).collect::<Vec<_>>(), [(&b"user.x"[..], &b"v\0w"[..])]);
    }

    #[test]
    fn a_tar_that_is_cut_off_is_an_error() {
        let tar = sample();
        let end = tar.len() - 1024 - 700;

        for length in (1..end).filter(|length| length % 512 != 0) {
            let cut = Arc::new(tar[..length].to_vec()) as Arc<dyn ReadAt>;
            assert!(index(&cut).is_err(), "{length} bytes");
        }
        assert!(index(&(Arc::new(tar[..end].to_vec()) as Arc<dyn ReadAt>)).is_ok());
    }

    #[test]
    fn a_header_with_a_wrong_sum_is_an_error() {
        let mut tar = sample();
        tar[3] ^= 1;

        assert!(matches!(index(&(Arc::new(tar) as Arc<dyn ReadAt>)), Err(Error::Damaged { offset: 0, .. })));
    }
}
