//! Writes a tree as a squashfs 4.0 image, with all processors.
//!
//! ```text
//! scan      the whole tree into memory: attributes, names, xattrs; numbers the inodes
//! carry     finds the content of a base image that is taken over as it is stored; copy does it
//! content   reads the others one after the other, cuts them into blocks, packs tails into fragments
//! pipeline  blocks -> compressing threads -> one writing thread, which keeps the order
//! inodes    inode and directory tables, once every block has its place
//! tables    fragment, export, id and xattr tables, then the superblock
//! ```
//!
//! Where content arrives before the tree is known, as it does in a stream, [`stream`] feeds the same pipeline.
//!
//! The bytes depend on the tree and the options only, not on the number of threads. Content that several files share is
//! stored once: whole runs of full blocks, and tails. Memory holds the tree's metadata and a few blocks per thread.

mod carry;
mod compress;
mod content;
mod copy;
mod directories;
mod inodes;
mod known;
mod metadata;
mod pipeline;
mod scan;
pub mod stream;
mod tables;
mod xattrs;

use crate::squashfs::format::{
    Compressor, DATA_UNCOMPRESSED, MAX_BLOCK_BYTES, MIN_BLOCK_BYTES, SUPERBLOCK_BYTES, Superblock, flags,
};
use crate::squashfs::reader::{self, Squashfs};
use crate::tree::{self, Tree};
use carry::Carried;
use compress::Codec;
use pipeline::Data;
use scan::Scan;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// An image is padded to this, so that a loop device, which has whole sectors only, can reach its end.
const PADDING_BYTES: u64 = 4096;

/// How to write an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How blocks and metadata are compressed. [`Compressor::Lzma`] is refused.
    pub compressor: Compressor,
    /// Compression level on the compressor's own scale; `None` for the usual one (zstd 3, gzip 9, xz 6). LZ4 and LZO
    /// have none.
    pub level: Option<i32>,
    /// Bytes of a data block: a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Threads that compress, besides the one that reads and the one that writes.
    pub threads: NonZeroUsize,
    /// Time of creation in the superblock, in seconds since 1970.
    pub mkfs_time: u32,
    /// Who owns the files.
    pub owners: Owners,
    /// Nothing is compressed; `compressor` is what the image says it would be.
    pub uncompressed: bool,
    /// The latest time of change that a file may have, in seconds since 1970; later ones become this.
    pub latest_mtime: Option<u32>,
    /// Stored content of the base image that no file uses any more is left out if it is more than this share of all of it;
    /// else it is kept, so that all can be copied in one piece.
    pub compact_percent: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            compressor: Compressor::Zstd,
            level: None,
            block_size: 128 << 10,
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            mkfs_time: 0,
            owners: Owners::Keep,
            uncompressed: false,
            latest_mtime: None,
            compact_percent: 3,
        }
    }
}

/// Who owns the files of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Whoever owns them in the tree.
    Keep,
    /// What this user and this group own becomes root's; the rest is kept.
    MapToRoot {
        /// The user who becomes 0.
        uid: u32,
        /// The group that becomes 0.
        gid: u32,
    },
}

impl Owners {
    /// The uid and gid in the image for those of the tree.
    pub fn map(self, uid: u32, gid: u32) -> (u32, u32) {
        match self {
            Self::Keep => (uid, gid),
            Self::MapToRoot { uid: user, gid: group } => {
                (if uid == user { 0 } else { uid }, if gid == group { 0 } else { gid })
            }
        }
    }
}

/// How far a [`write()`] has come, for another thread to look at, and its stop switch.
#[derive(Debug, Default)]
pub struct Progress {
    /// Content read from the tree and stored content copied from a base image so far.
    pub bytes_read: AtomicU64,
    /// Stored content written so far.
    pub bytes_written: AtomicU64,
    /// Regular files read completely.
    pub files_done: AtomicU64,
    /// Regular files in the tree; 0 until the tree has been scanned.
    pub files_total: AtomicU64,
    /// What `bytes_read` will have become; 0 until the tree has been scanned.
    pub bytes_total: AtomicU64,
    /// Set it, once, to make [`write()`] stop soon with [`Error::Cancelled`].
    pub cancel: AtomicBool,
}

impl Progress {
    /// Has all threads of a [`write()`] end.
    fn stop(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), Error> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the image with its padding, a multiple of 4096.
    pub image_bytes: u64,
    /// Inodes.
    pub inodes: u32,
    /// Regular files.
    pub files: u64,
    /// Bytes of content in them.
    pub content_bytes: u64,
    /// Extended attributes that squashfs cannot hold, such as `system.posix_acl_access`, and that were left out.
    pub xattrs_left_out: u64,
    /// Bytes of content whose stored form was taken over from the base image.
    pub carried_bytes: u64,
    /// Stored bytes of the base image that were left out.
    pub dropped_bytes: u64,
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tree failed.
    #[error("cannot read {}", path.display())]
    Tree {
        /// Where in the tree.
        path: PathBuf,
        /// Why.
        source: tree::Error,
    },
    /// A file is shorter than its attributes said.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// A name that no filesystem can hold, or the same name twice.
    #[error("{} has an impossible or repeated name", .0.display())]
    BadName(PathBuf),
    /// A directory with two names: the tree is none.
    #[error("the directory {} has a second name", .0.display())]
    DirectoryTwice(PathBuf),
    /// The target of a symbolic link is longer than the 4096 bytes that kernels accept.
    #[error("the target of the symbolic link {} is too long", .0.display())]
    LinkTooLong(PathBuf),
    /// The block list of a file would not fit into memory.
    #[error("{} is too large for a squashfs image ({bytes} bytes)", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// More of something than the format can count.
    #[error("squashfs cannot hold more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many the format can hold.
        limit: u64,
    },
    /// [`Options::block_size`] is none that the format has.
    #[error("a squashfs block size is a power of two from 4096 to 1048576, not {0}")]
    BlockSize(u32),
    /// The compressor can be read at most.
    #[error("images cannot be compressed with {0:?}: no kernel reads them")]
    Compressor(Compressor),
    /// [`Options::level`] is none that the compressor has.
    #[error("{compressor:?} has no compression level {level}")]
    Level {
        /// The compressor.
        compressor: Compressor,
        /// The level asked for.
        level: i32,
    },
    /// The compressor failed, which means that memory ran out.
    #[error("cannot compress with {compressor:?}")]
    Compress {
        /// The compressor.
        compressor: Compressor,
        /// Why.
        source: io::Error,
    },
    /// The base image refers to stored content outside of the part that has content.
    #[error("the base image is damaged: stored content at byte {start}, {bytes} bytes long, cannot be there")]
    BaseContent {
        /// Where, in bytes from the beginning of the squashfs.
        start: u64,
        /// How long.
        bytes: u64,
    },
    /// The base image refers to stored content that overlaps other.
    #[error("the base image is damaged: stored content at byte {start} overlaps other")]
    BaseOverlap {
        /// Where, in bytes from the beginning of the squashfs.
        start: u64,
    },
    /// The base image ended before its time, or its storage failed.
    #[error("cannot read the base image")]
    BaseRead(#[source] io::Error),
    /// The output file failed.
    #[error("cannot write the image")]
    Output(#[from] io::Error),
    /// A streamed file whose content never came, or is not as long as its attributes say.
    #[error("the content of {} was not written", .0.display())]
    NoContent(PathBuf),
    /// [`Progress::cancel`] was set.
    #[error("cancelled")]
    Cancelled,
}

/// Writes `tree` as a squashfs image that begins `start_bytes` into `out` and is the end of it: whatever `out` held from
/// there on is lost. `out` has to be open for reading too. After an error `out` holds an unusable part of an image.
///
/// # Errors
/// See [`Error`].
pub fn write(
    tree: &dyn Tree,
    out: &File,
    start_bytes: u64,
    options: &Options,
    progress: &Progress,
) -> Result<Summary, Error> {
    write_over(tree, None, out, start_bytes, options, progress)
}

/// How much of the content of a base image lies in an image to be already; by default nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Where it ends, in bytes from the superblock.
    end: u64,
}

/// Copies content of `base` to where an image that begins `start_bytes` into `out` has it if it takes that over, in portions
/// of 32 MiB, as long as `goes_on` says so. What the kernel cannot copy, or what fails, is left to who packs that image.
pub fn copy_base(base: &Squashfs, out: &File, start_bytes: u64, mut goes_on: impl FnMut() -> bool) -> Copied {
    let options_bytes = base.compressor_options().map(|options| options.len() as u64);
    let Some(content) = options_bytes.ok().and_then(|bytes| base.content(bytes)) else { return Copied::default() };
    let mut end = content.start;
    while end < content.end && goes_on() {
        let rest = end..content.end.min(end + copy::KERNEL_BYTES);
        match copy::portion(base.stored_bytes(), rest, Image { out, start_bytes }) {
            0 => break,
            copied => end += copied,
        }
    }
    Copied { end }
}

/// As [`write()`], but takes stored content over from `base` where `tree` has the content of its files: what the tree
/// passes through ([`Tree::origin`]), and what turns out to be equal. The compressor, its options and the block size are
/// then those of the base; a level counts for what is new.
///
/// # Errors
/// See [`Error`]. A base whose blocks do not lie where they may is one.
pub fn write_over(
    tree: &dyn Tree,
    base: Option<&Squashfs>,
    out: &File,
    start_bytes: u64,
    options: &Options,
    progress: &Progress,
) -> Result<Summary, Error> {
    let base = base.map(|base| (base, Copied::default()));
    write_over_copied(tree, base, out, start_bytes, options, progress)
}

/// As [`write_over()`], where some content of the base was copied to its place already, by [`copy_base`] with the same `out`
/// and `start_bytes`.
///
/// # Errors
/// See [`Error`].
pub fn write_over_copied(
    tree: &dyn Tree,
    base: Option<(&Squashfs, Copied)>,
    out: &File,
    start_bytes: u64,
    options: &Options,
    progress: &Progress,
) -> Result<Summary, Error> {
    check_block_size(options)?;
    let mut options = *options;
    let mut codec_options = None;
    if let Some((base, _)) = base {
        let failed = |source: reader::Error| Error::Tree { path: "the base image".into(), source: source.into() };
        let superblock = base.superblock();
        options.block_size = superblock.block_size;
        // It was opened, so that the number is known.
        options.compressor = Compressor::from_id(superblock.compressor_id).unwrap_or(options.compressor);
        options.uncompressed |= superblock.flags & flags::UNCOMPRESSED_DATA != 0;
        codec_options = Some(base.compressor_options().map_err(failed)?);
    }
    let options = &options;
    let mut codec = Codec::new(options)?;
    if let Some(stated) = &codec_options {
        codec = codec.under(stated);
    }
    let image = Image { out, start_bytes };
    let codec_options = codec_options.unwrap_or_else(|| codec.options_block());
    image.write_at(&codec_options, SUPERBLOCK_BYTES as u64)?;
    let data_start = (SUPERBLOCK_BYTES + codec_options.len()) as u64;
    let (scan, carried) = plan(tree, base, image, data_start, options, progress)?;
    let (carried_bytes, dropped_bytes) = (carried.content_bytes, carried.dropped_bytes);
    let source = pipeline::Source { carried, base: base.map(|(base, _)| base.stored_bytes()) };
    let data = pipeline::write_data(source, image, codec, options, progress, |carried, feed| {
        content::read(tree, &scan, carried, options.block_size, feed, progress)
    })?;
    let summary = finish(tree, &scan, &data, image, (codec, &codec_options), options)?;
    Ok(Summary { carried_bytes, dropped_bytes, ..summary })
}

/// Looks through the tree and finds what to take over, while what probably will be is copied.
fn plan(
    tree: &dyn Tree,
    base: Option<(&Squashfs, Copied)>,
    image: Image<'_>,
    data_start: u64,
    options: &Options,
    progress: &Progress,
) -> Result<(Scan, Carried), Error> {
    let scan = || {
        let scan = scan::scan(tree, options, progress)?;
        progress.files_total.store(scan.files, Ordering::Relaxed);
        progress.bytes_total.store(scan.content_bytes, Ordering::Relaxed);
        Ok::<_, Error>(scan)
    };
    let Some((base, copied)) = base else {
        let scan = scan()?;
        let carried = carry::nothing(&scan, data_start);
        return Ok((scan, carried));
    };
    let content = base.content(data_start - SUPERBLOCK_BYTES as u64);
    let content = content.ok_or(Error::BaseContent { start: data_start, bytes: 0 })?;
    let rest = copied.end.clamp(content.start, content.end)..content.end;
    let (copied_end, planned) = copy::ahead(base.stored_bytes(), rest, image, || {
        let scan = scan()?;
        let carried = carry::plan(tree, &scan, base, content, options, progress)?;
        Ok::<_, Error>((scan, carried))
    });
    let (scan, mut carried) = planned?;
    let to_copy: u64 = carried.pieces.iter().map(|piece| piece.from.end - piece.from.start).sum();
    progress.bytes_total.store(scan.content_bytes.saturating_sub(carried.content_bytes) + to_copy, Ordering::Relaxed);
    copy::count(progress, carried.leave_out_up_to(copied_end));
    if copied_end > carried.end {
        // What is not needed is given back now, and not when the image is whole.
        image.out.set_len(image.start_bytes + carried.end)?;
    }
    Ok((scan, carried))
}

/// Writes everything behind the content, and the superblock.
fn finish(
    tree: &dyn Tree,
    scan: &Scan,
    data: &Data,
    image: Image<'_>,
    (codec, codec_options): (Codec, &[u8]),
    options: &Options,
) -> Result<Summary, Error> {
    let inodes = inodes::build(tree, scan, data, codec, options)?;
    let superblock = Superblock {
        inode_count: scan.inode_count(),
        mkfs_time: options.mkfs_time,
        block_size: options.block_size,
        compressor_id: options.compressor.id(),
        block_log: u16::try_from(options.block_size.ilog2()).expect("a logarithm is below 32"),
        flags: base_flags(codec, codec_options, data.fragments.is_empty(), scan.xattrs.is_empty()),
        version_major: 4,
        version_minor: 0,
        root_inode: inodes.root(),
        ..tables::write(scan, data, &inodes, image, codec)?
    };
    image.write_at(&superblock.encode(), 0)?;
    let image_bytes = superblock.bytes_used.next_multiple_of(PADDING_BYTES);
    // Cut first: a repeated file at the end may have been written further than the tables now reach.
    image.out.set_len(image.start_bytes + superblock.bytes_used)?;
    image.out.set_len(image.start_bytes + image_bytes)?;
    Ok(Summary {
        image_bytes,
        inodes: scan.inode_count(),
        files: scan.files,
        content_bytes: scan.content_bytes,
        xattrs_left_out: scan.xattrs.left_out,
        carried_bytes: 0,
        dropped_bytes: 0,
    })
}

fn check_block_size(options: &Options) -> Result<(), Error> {
    let is_known = (MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&options.block_size);
    if is_known && options.block_size.is_power_of_two() { Ok(()) } else { Err(Error::BlockSize(options.block_size)) }
}

fn base_flags(codec: Codec, codec_options: &[u8], no_fragments: bool, no_xattrs: bool) -> u16 {
    let mut bits = flags::DUPLICATES | flags::EXPORTABLE;
    bits |= if no_fragments { flags::NO_FRAGMENTS } else { flags::ALWAYS_FRAGMENTS };
    if codec.is_none() {
        bits |= flags::UNCOMPRESSED_INODES | flags::UNCOMPRESSED_DATA | flags::UNCOMPRESSED_FRAGMENTS;
        bits |= flags::UNCOMPRESSED_XATTRS | flags::UNCOMPRESSED_IDS;
    }
    if no_xattrs {
        bits |= flags::NO_XATTRS;
    }
    if !codec_options.is_empty() {
        bits |= flags::COMPRESSOR_OPTIONS;
    }
    bits
}

/// Where the image's bytes go. Offsets count from the superblock.
#[derive(Debug, Clone, Copy)]
struct Image<'a> {
    out: &'a File,
    start_bytes: u64,
}

impl Image<'_> {
    fn write_at(self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        Ok(self.out.write_all_at(bytes, self.start_bytes + offset)?)
    }

    /// Reads what was written.
    fn read_at(self, bytes: &mut [u8], offset: u64) -> Result<(), Error> {
        Ok(self.out.read_exact_at(bytes, self.start_bytes + offset)?)
    }
}

/// The size of a data block as block lists and the fragment table store it.
fn stored_size(bytes: usize, uncompressed: bool) -> u32 {
    let size = u32::try_from(bytes).expect("a block is at most 1 MiB");
    if uncompressed { size | DATA_UNCOMPRESSED } else { size }
}
