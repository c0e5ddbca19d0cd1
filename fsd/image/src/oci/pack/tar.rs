//! Headers of a tar stream: ustar, with a pax header before what does not fit.

use crate::tree::Xattr;
use std::os::unix::ffi::OsStrExt;

pub(super) const FILE: u8 = b'0';
pub(super) const SYMLINK: u8 = b'2';
pub(super) const CHAR_DEVICE: u8 = b'3';
pub(super) const BLOCK_DEVICE: u8 = b'4';
pub(super) const DIRECTORY: u8 = b'5';
pub(super) const FIFO: u8 = b'6';
const HARD_LINK: u8 = b'1';
const PAX: u8 = b'x';
/// All is in units of this.
const BLOCK_BYTES: usize = 512;
/// Two blocks of zeros end a stream.
pub(super) const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];
/// `name` and `linkname`.
const NAME_BYTES: usize = 100;
/// What pax headers are named; nobody looks at it.
const PAX_NAME: &[u8] = b"PaxHeaders/entry";

/// What a header says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    /// That of a directory ends with `/`.
    pub(super) path: &'a [u8],
    pub(super) kind: u8,
    pub(super) link: &'a [u8],
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) size: u64,
    /// In the kernel's 32-bit encoding.
    pub(super) rdev: u32,
    pub(super) xattrs: &'a [Xattr],
}

impl<'a> Entry<'a> {
    /// An empty file of root's from 1970.
    pub(super) fn empty(path: &'a [u8]) -> Self {
        Self { path, kind: FILE, link: b"", mode: 0o600, uid: 0, gid: 0, mtime: 0, size: 0, rdev: 0, xattrs: &[] }
    }

    /// A further name of what was written under `link`.
    pub(super) fn link(path: &'a [u8], link: &'a [u8]) -> Self {
        Self { kind: HARD_LINK, link, mode: 0o644, ..Self::empty(path) }
    }
}

/// What follows `size` bytes of content.
pub(super) fn padding(size: u64) -> &'static [u8] {
    let over = usize::try_from(size % BLOCK_BYTES as u64).expect("below 512");
    &END[..(BLOCK_BYTES - over) % BLOCK_BYTES]
}

/// The blocks of an entry before its content.
pub(super) fn header(entry: &Entry<'_>) -> Vec<u8> {
    let records = records(entry);
    let mut blocks = Vec::new();
    if !records.is_empty() {
        let size = records.len() as u64;
        blocks.extend(block(&Entry { kind: PAX, size, mode: 0o644, ..Entry::empty(PAX_NAME) }));
        blocks.extend(&records);
        blocks.extend(padding(size));
    }
    blocks.extend(block(entry));
    blocks
}

/// What does not fit into the block.
fn records(entry: &Entry<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| {
        // The length counts its own digits.
        let rest = key.len() + value.len() + " =\n".len();
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        records.extend([length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat());
    };
    if entry.path.len() > NAME_BYTES {
        add(b"path", entry.path);
    }
    if entry.link.len() > NAME_BYTES {
        add(b"linkpath", entry.link);
    }
    for (key, value, digits) in [
        ("size", i128::from(entry.size), 11),
        ("uid", entry.uid.into(), 7),
        ("gid", entry.gid.into(), 7),
        ("mtime", entry.mtime.into(), 11),
    ] {
        if !(0..1 << (3 * digits)).contains(&value) {
            add(key.as_bytes(), value.to_string().as_bytes());
        }
    }
    for (name, value) in entry.xattrs {
        add(&[b"SCHILY.xattr.", name.as_bytes()].concat(), value);
    }
    records
}

fn block(entry: &Entry<'_>) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    // What is cut off or replaced here is in a record.
    let octal = |value: u64, digits: usize| {
        let fits = value < 1 << (3 * digits);
        format!("{:0digits$o}", if fits { value } else { 0 }).into_bytes()
    };
    put(0, &entry.path[..entry.path.len().min(NAME_BYTES)]);
    put(100, &octal(entry.mode.into(), 7));
    put(108, &octal(entry.uid.into(), 7));
    put(116, &octal(entry.gid.into(), 7));
    put(124, &octal(entry.size, 11));
    put(136, &octal(u64::try_from(entry.mtime).unwrap_or(0), 11));
    put(148, b"        ");
    put(156, &[entry.kind]);
    put(157, &entry.link[..entry.link.len().min(NAME_BYTES)]);
    put(257, b"ustar\x0000");
    if matches!(entry.kind, CHAR_DEVICE | BLOCK_DEVICE) {
        let (major, minor) = (entry.rdev >> 8 & 0xfff, entry.rdev & 0xff | entry.rdev >> 12 & 0xf_ff00);
        put(329, &octal(major.into(), 7));
        put(337, &octal(minor.into(), 7));
    }
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..154].copy_from_slice(&octal(sum, 6));
    block[154] = 0;
    block
}
