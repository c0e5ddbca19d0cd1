//! Writes a zTOC that soci-snapshotter reads.
//!
//! Front to back: a table is written with gaps for its offsets, and they are filled in as what they lead to follows. All
//! tables of a kind share a vtable, and no field is left out.

use super::super::super::time;
use super::super::error::Error;
use super::super::gzip::{GzipIndex, WINDOW_BYTES};
use super::super::index::{Entry, EntryKind, LayerIndex, XattrList, device_parts};
use super::{MAX_ZTOC_BYTES, XATTR_PREFIX};
use crate::oci::lazy::index::Content;
use base16ct::lower::encode_string as hex;

/// The only version that there is.
const VERSION: &[u8] = b"0.9";

/// How long a table is, and where each of its fields lies, in the order of the schema.
struct Layout {
    bytes: u16,
    fields: &'static [u16],
}

const ZTOC: Layout = Layout { bytes: 40, fields: &[4, 8, 24, 32, 12, 16] };
const TOC: Layout = Layout { bytes: 8, fields: &[4] };
const COMPRESSION: Layout = Layout { bytes: 20, fields: &[16, 4, 8, 12] };
const ENTRY: Layout = Layout { bytes: 80, fields: &[4, 8, 40, 48, 12, 56, 16, 20, 24, 28, 32, 64, 72, 36] };
const XATTR: Layout = Layout { bytes: 12, fields: &[4, 8] };

/// The zTOC of a layer that `gzip` and `layer` are of. `tool` is who has made it.
///
/// # Errors
/// [`Error::TooLarge`] if it had more than [`MAX_ZTOC_BYTES`]; [`Error::Unsupported`] without digests of spans, or for a layer in chunks;
/// [`Error::Read`] if a window cannot be read.
pub fn write(gzip: &GzipIndex, layer: &LayerIndex, tool: &str) -> Result<Vec<u8>, Error> {
    if gzip.digests().len() != gzip.checkpoints().len() {
        return Err(Error::Unsupported("no digests of its spans"));
    }
    let mut flat = Flat::default();
    flat.out.extend_from_slice(&[0; 4]);
    let vtables = [ZTOC, TOC, COMPRESSION, ENTRY, XATTR].map(|layout| flat.vtable(&layout));
    let ztoc = flat.table(&ZTOC, vtables[0]);
    flat.lead(0, ztoc);
    flat.put(ztoc + 24, &gzip.stored_bytes().to_le_bytes());
    flat.put(ztoc + 32, &gzip.bytes().to_le_bytes());
    flat.string(ztoc + 4, VERSION);
    flat.string(ztoc + 8, tool.as_bytes());

    let toc = flat.table(&TOC, vtables[1]);
    flat.lead(ztoc + 12, toc);
    let elements = flat.vector(toc + 4, layer.len());
    for (number, entry) in layer.entries().enumerate() {
        let at = flat.table(&ENTRY, vtables[3]);
        flat.lead(elements + 4 * number, at);
        write_entry(&mut flat, at, &entry, vtables[4])?;
        Error::bounded("a zTOC", flat.out.len() as u64, MAX_ZTOC_BYTES)?;
    }

    let info = flat.table(&COMPRESSION, vtables[2]);
    flat.lead(ztoc + 16, info);
    let spans = gzip.checkpoints().len();
    let last = i32::try_from(spans - 1).expect("an index bounds its checkpoints");
    flat.put(info + 4, &last.to_le_bytes());
    flat.put(info + 16, &[1]);
    let elements = flat.vector(info + 8, spans);
    for (number, digest) in gzip.digests().iter().enumerate() {
        flat.string(elements + 4 * number, format!("sha256:{}", hex(digest)).as_bytes());
    }
    let zinfo = write_checkpoints(gzip)?;
    Error::bounded("a zTOC", (flat.out.len() + zinfo.len()) as u64, MAX_ZTOC_BYTES - 16)?;
    flat.string(info + 12, &zinfo);
    Ok(flat.out)
}

fn write_entry(flat: &mut Flat, at: usize, entry: &Entry<'_>, xattr_vtable: usize) -> Result<(), Error> {
    let Content::Offset(offset) = entry.content else { return Err(Error::Unsupported("chunks")) };
    let (major, minor) = device_parts(entry.rdev);
    let longs = [offset, entry.size, u64::from(entry.mode), u64::from(major), u64::from(minor)];
    for (long, place) in longs.iter().zip((40..).step_by(8)) {
        flat.put(at + place, &long.to_le_bytes());
    }
    flat.put(at + 16, &entry.uid.to_le_bytes());
    flat.put(at + 20, &entry.gid.to_le_bytes());
    flat.string(at + 4, entry.path);
    flat.string(at + 8, kind(entry.kind));
    flat.string(at + 12, entry.link);
    flat.string(at + 24, b"");
    flat.string(at + 28, b"");
    flat.string(at + 32, time::format(entry.mtime).as_bytes());
    let xattrs: Vec<_> = XattrList::iter(entry.xattrs).collect();
    let elements = flat.vector(at + 36, xattrs.len());
    for (number, (name, value)) in xattrs.iter().enumerate() {
        let xattr = flat.table(&XATTR, xattr_vtable);
        flat.lead(elements + 4 * number, xattr);
        flat.string(xattr + 4, &[XATTR_PREFIX, name].concat());
        flat.string(xattr + 8, value);
    }
    Ok(())
}

fn kind(kind: EntryKind) -> &'static [u8] {
    match kind {
        EntryKind::File => b"reg",
        EntryKind::Directory => b"dir",
        EntryKind::Symlink => b"symlink",
        EntryKind::HardLink => b"hardlink",
        EntryKind::CharDevice => b"char",
        EntryKind::BlockDevice => b"block",
        EntryKind::Fifo => b"fifo",
    }
}

fn write_checkpoints(gzip: &GzipIndex) -> Result<Vec<u8>, Error> {
    let mut zinfo = Vec::with_capacity(12 + gzip.checkpoints().len() * (17 + WINDOW_BYTES));
    let have = i32::try_from(gzip.checkpoints().len()).expect("an index bounds its checkpoints");
    zinfo.extend_from_slice(&have.to_le_bytes());
    zinfo.extend_from_slice(&gzip.span_bytes().to_le_bytes());
    for checkpoint in gzip.checkpoints() {
        zinfo.extend_from_slice(&checkpoint.input.to_le_bytes());
        zinfo.extend_from_slice(&checkpoint.output.to_le_bytes());
        zinfo.push(checkpoint.bits);
        let window = gzip.window(checkpoint)?;
        zinfo.resize(zinfo.len() + WINDOW_BYTES - window.len(), 0);
        zinfo.extend_from_slice(&window);
    }
    Ok(zinfo)
}

/// A flatbuffer as far as it is written.
#[derive(Default)]
struct Flat {
    out: Vec<u8>,
}

impl Flat {
    fn align(&mut self, unit: usize) {
        self.out.resize(self.out.len().next_multiple_of(unit), 0);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.out[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Makes the field at `at` lead to `target`, which is behind it.
    fn lead(&mut self, at: usize, target: usize) {
        let distance = u32::try_from(target - at).expect("a zTOC has at most 512 MiB");
        self.put(at, &distance.to_le_bytes());
    }

    fn vtable(&mut self, layout: &Layout) -> usize {
        self.align(4);
        let at = self.out.len();
        let bytes = u16::try_from(4 + 2 * layout.fields.len()).expect("tables have few fields");
        for number in [bytes, layout.bytes].iter().chain(layout.fields) {
            self.out.extend_from_slice(&number.to_le_bytes());
        }
        at
    }

    fn table(&mut self, layout: &Layout, vtable: usize) -> usize {
        self.align(8);
        let at = self.out.len();
        self.out.resize(at + usize::from(layout.bytes), 0);
        let back = i32::try_from(at - vtable).expect("a zTOC has at most 512 MiB");
        self.put(at, &back.to_le_bytes());
        at
    }

    /// Appends a string or bytes, which the field at `field` leads to.
    fn string(&mut self, field: usize, bytes: &[u8]) {
        self.align(4);
        self.lead(field, self.out.len());
        let length = u32::try_from(bytes.len()).expect("a zTOC has at most 512 MiB");
        self.out.extend_from_slice(&length.to_le_bytes());
        self.out.extend_from_slice(bytes);
        self.out.push(0);
    }

    /// Appends room for a vector of offsets, and returns where the first is.
    fn vector(&mut self, field: usize, count: usize) -> usize {
        self.align(4);
        self.lead(field, self.out.len());
        let length = u32::try_from(count).expect("an index bounds its entries");
        self.out.extend_from_slice(&length.to_le_bytes());
        let at = self.out.len();
        self.out.resize(at + 4 * count, 0);
        at
    }
}
