//! The layers of an OCI image, merged and written as squashfs in one pass over their streams.
//!
//! ```text
//! top layer      stream -> decompressed -> entries -> content of files into the image, the rest into memory
//! next layer     the same, without the content that layers above hide         (already on its way meanwhile)
//! ...
//! bottom layer
//! merge          entries in memory, bottom up, as a runtime applies them to a directory -> tree
//! tables         of the tree, behind the content
//! ```
//!
//! No layer is kept and no tree unpacked. From the top down, so that what upper layers hide is known before it comes and is
//! not written. Names alone cannot tell that where links are in the way: what turns out to be missing in the end is fetched
//! once more, which happens with hard links between a hidden and a visible name, and hardly ever else.
//!
//! Everything is held against its digest before [`write()`] returns. All that is kept of the streams
//! is bounded.

mod cover;
pub(super) mod decompress;
pub(super) mod merge;
mod stream;
pub(super) mod tar;

use self::tar::{Entry, Kind};
use super::blobs::Blobs;
use super::own::{Own, OwnBody};
use super::{Descriptor, Digest};
use crate::squashfs::writer::stream::{Chunk, Contents};
use crate::squashfs::writer::{self, Options, Progress, Summary};
use crate::tree::Timestamp;
use cover::Cover;
use merge::{Content, Written};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use stream::{Expected, Stream};

pub use self::tar::Error as TarError;
pub use merge::{Error as EntryError, Merged};
pub(super) use stream::{check, hash_like};

/// Layers that an image may have: overlayfs mounts no more than 500, docker makes no more than 127.
pub const MAX_LAYERS: usize = 512;
/// Entries of all layers together.
const MAX_ENTRIES: usize = 4 << 20;
/// Names, link targets and attributes of all layers together.
const MAX_METADATA_BYTES: usize = 256 << 20;
/// Content of all layers together, holes included: a file that is one hole takes time and memory for each block of it.
const MAX_CONTENT_BYTES: u64 = 1 << 40;
/// Layers that are fetched at the same time.
const LAYERS_AT_ONCE: usize = 4;
/// Where files lie that say how an image is run, which is asked again before it can be read.
const KEPT: [&[u8]; 2] = [b".singularity.d", b"scif"];
/// The longest of them that is kept, and all of them together.
const MAX_KEPT_FILE_BYTES: u64 = 1 << 20;
const MAX_KEPT_BYTES: u64 = 32 << 20;

/// Layers, and where they come from.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where.
    pub blobs: Arc<dyn Blobs>,
    /// The lowest first, as in a manifest.
    pub layers: Vec<Descriptor>,
    /// Digests of what they decompress to, as in a configuration.
    pub diff_ids: Vec<Digest>,
    /// Counts the bytes that were fetched, for another thread to look at.
    pub fetched_bytes: Arc<AtomicU64>,
}

/// Why layers could not be made into an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lists of layers and of their digests do not match.
    #[error("the image has {layers} layers, and its configuration names {diff_ids}")]
    Count {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// More layers than images have.
    #[error("an image of {0} layers is not supported, {MAX_LAYERS} are")]
    Layers(usize),
    /// A layer is something else.
    #[error("a layer of the type {0} cannot be unpacked")]
    MediaType(String),
    /// A digest of a kind that is not known.
    #[error("the digest {0} is of an unknown kind")]
    Algorithm(String),
    /// A blob could not be fetched.
    #[error("cannot read the blob {digest}")]
    Blob {
        /// Which.
        digest: String,
        /// Why.
        source: io::Error,
    },
    /// A blob is longer or shorter than it should be.
    #[error("the blob {digest} should have {expected} bytes, and has {}{found}", if found > expected { "at least " } else { "" })]
    Length {
        /// Which.
        digest: String,
        /// What its descriptor says.
        expected: u64,
        /// How many came.
        found: u64,
    },
    /// A blob is another one.
    #[error("the blob {expected} has the digest {found}: it was damaged or replaced")]
    Digest {
        /// What its descriptor says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A layer that is not compressed is another one than the configuration says.
    #[error("the layer should have the digest {expected} by the configuration, and has {found} by the manifest")]
    DiffId {
        /// What the configuration says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A layer that cannot be decompressed.
    #[error("cannot decompress the layer")]
    Decompress(#[source] io::Error),
    /// A layer that decompresses to more than any honest one.
    #[error("the layer decompresses to more than {0} bytes, which is more than it can hold")]
    Bomb(u64),
    /// A layer that is no archive.
    #[error("cannot unpack the layer")]
    Tar(#[source] TarError),
    /// An entry that cannot be applied.
    #[error("cannot unpack {path:?}")]
    Entry {
        /// Its name.
        path: OsString,
        /// Why.
        source: EntryError,
    },
    /// Too much of something.
    #[error("the layers have more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are supported.
        limit: u64,
    },
    /// The stream failed.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// The image could not be written.
    #[error(transparent)]
    Write(#[from] writer::Error),
    /// What failed, with the layer that it was in.
    #[error("layer {digest}")]
    Layer {
        /// Its digest.
        digest: String,
        /// What failed.
        source: Box<Error>,
    },
}

impl Error {
    fn cancelled() -> Self {
        Self::Write(writer::Error::Cancelled)
    }

    fn decoding(error: io::Error) -> Self {
        error.downcast::<Self>().unwrap_or_else(Self::Decompress)
    }

    /// Whether it was stopped from outside.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Write(writer::Error::Cancelled) => true,
            Self::Layer { source, .. } => source.is_cancelled(),
            _ => false,
        }
    }

    fn of_layer(self, layer: &Descriptor) -> Self {
        match self {
            // Neither is the layer's fault.
            Self::Write(_) | Self::Layer { .. } | Self::TooMany { .. } => self,
            source => Self::Layer { digest: layer.digest().to_string(), source: Box::new(source) },
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// An error that went through a stream is what it was before.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        error.downcast::<Self>().unwrap_or_else(Self::Read)
    }
}

impl From<TarError> for Error {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Read(error) => error.into(),
            error => Self::Tar(error),
        }
    }
}

/// Writes the layers of `source`, with the files `own` on them that are of the time `own_seconds` since 1970, as a squashfs
/// image that begins `start_bytes` into `out`. Of the tree that is returned only files that say how the image is run can be
/// read.
///
/// # Errors
/// See [`Error`]. `out` then holds an unusable part of an image.
pub fn write(
    source: &Source,
    own: &[Own],
    own_seconds: i64,
    out: &File,
    start_bytes: u64,
    options: &Options,
    progress: &Progress,
) -> Result<(Summary, Merged), Error> {
    let (layers, diff_ids) = (source.layers.len(), source.diff_ids.len());
    if layers != diff_ids {
        return Err(Error::Count { layers, diff_ids });
    }
    if layers > MAX_LAYERS {
        return Err(Error::Layers(layers));
    }
    source.layers.iter().try_for_each(check_media_type)?;
    let is_cancelled = || progress.cancel.load(Ordering::Relaxed);
    let fill = |contents: &mut Contents<'_>| {
        let mut pass =
            Pass { contents, source, is_cancelled: &is_cancelled, entries: 0, metadata: 0, size: 0, kept: 0 };
        let read = pass.read_all()?;
        let mut merged = merge(source, read)?;
        pass.fetch_skipped(&mut merged)?;
        pass.add_own(&mut merged, own, own_seconds)?;
        Ok(merged)
    };
    writer::stream::write(fill, out, start_bytes, options, progress)
}

/// The tree of the files `own` alone.
///
/// # Errors
/// [`Error::Entry`] for a name that cannot be.
pub fn preview(own: &[Own]) -> Result<Merged, Error> {
    let mut merged = Merged::default();
    for file in own {
        file.apply(&mut merged, Content::Empty, 0)?;
    }
    Ok(merged)
}

impl Own {
    /// Puts it into a tree.
    fn apply(&self, merged: &mut Merged, content: Content, seconds: i64) -> Result<(), Error> {
        let (kind, link) = match &self.body {
            OwnBody::Directory => (Kind::Directory, ""),
            OwnBody::File(_) => (Kind::File, ""),
            OwnBody::Symlink(target) => (Kind::Symlink, &target[..]),
        };
        let entry = Entry {
            kind,
            path: self.path.clone().into_bytes(),
            link: link.into(),
            mode: self.mode,
            uid: 0,
            gid: 0,
            mtime: Timestamp { seconds, nanos: 0 },
            rdev: 0,
            size: self.bytes().len() as u64,
            xattrs: Vec::new(),
        };
        let failed = |source| Error::Entry { path: self.path.clone().into(), source };
        merged.apply(&entry, content, Some(self.bytes().into())).map_err(failed)
    }
}

/// Whether a layer is said to be an archive. How it is compressed does not matter: that is seen.
fn check_media_type(layer: &Descriptor) -> Result<(), Error> {
    let name = layer.media_type().to_string();
    let is_archive = name.starts_with("application/vnd.oci.image.layer.")
        || name.starts_with("application/vnd.docker.image.rootfs.");
    if is_archive && !name.ends_with("+encrypted") { Ok(()) } else { Err(Error::MediaType(name)) }
}

/// What was read of a layer.
struct Read {
    entries: Vec<Entry>,
    /// For each entry, where its content is, and what is kept of it.
    contents: Vec<(Content, Option<Box<[u8]>>)>,
}

/// Reads the layers once.
struct Pass<'a, 'b> {
    contents: &'a mut Contents<'b>,
    source: &'a Source,
    is_cancelled: &'a dyn Fn() -> bool,
    entries: usize,
    metadata: usize,
    size: u64,
    kept: u64,
}

impl<'a> Pass<'a, '_> {
    /// All layers, the top one first.
    fn read_all(&mut self) -> Result<Vec<Read>, Error> {
        let mut cover = Cover::default();
        let mut read = Vec::new();
        let mut streams = VecDeque::new();
        let mut to_start = (0..self.source.layers.len()).rev();
        loop {
            while streams.len() < LAYERS_AT_ONCE
                && let Some(layer) = to_start.next()
            {
                streams.push_back((layer, self.stream(layer)));
            }
            let Some((layer, stream)) = streams.pop_front() else { break };
            let entries =
                self.layer(stream, layer, &cover).map_err(|error| error.of_layer(&self.source.layers[layer]))?;
            cover.add(&entries.entries);
            read.push(entries);
        }
        Ok(read)
    }

    fn stream(&self, layer: usize) -> Stream<'a> {
        let (descriptor, diff_id) = (self.source.layers[layer].clone(), self.source.diff_ids[layer].clone());
        let expected = Expected { descriptor, diff_id };
        Stream::start(self.source.blobs.clone(), expected, self.source.fetched_bytes.clone(), self.is_cancelled)
    }

    /// Reads one layer to its end.
    fn layer(&mut self, mut stream: Stream<'_>, layer: usize, cover: &Cover) -> Result<Read, Error> {
        let mut tar = tar::Reader::new(&mut stream);
        let mut read = Read { entries: Vec::new(), contents: Vec::new() };
        while let Some(entry) = tar.next()? {
            self.count(&entry)?;
            let index = read.entries.len();
            let content = if entry.kind != Kind::File || entry.size == 0 || is_whiteout(&entry.path) {
                (Content::Empty, None)
            } else if cover.hides(&entry.path) {
                (Content::Skipped { layer, entry: index }, None)
            } else {
                let (stored, bytes) = self.content(&mut tar, &entry)?;
                (Content::Stored(stored), bytes)
            };
            read.contents.push(content);
            read.entries.push(entry);
        }
        stream.finish()?;
        Ok(read)
    }

    /// Writes the content of the present entry, and keeps it if it will be asked for.
    fn content(&mut self, tar: &mut tar::Reader<impl io::BufRead>, entry: &Entry) -> Result<Written, Error> {
        let is_wanted = merge::clean(&entry.path).first().is_some_and(|first| KEPT.contains(first));
        let is_kept = is_wanted && entry.size <= MAX_KEPT_FILE_BYTES && self.kept + entry.size <= MAX_KEPT_BYTES;
        let mut kept = Vec::new();
        let stored = self.contents.add(entry.size, |length| {
            let bytes = tar.content(length)?;
            if is_kept {
                kept.extend(bytes.clone().unwrap_or_else(|| vec![0; length]));
            }
            Ok::<_, Error>(bytes.map_or(Chunk::Zeros, Chunk::Bytes))
        })?;
        self.kept += kept.len() as u64;
        Ok((stored, is_kept.then(|| kept.into())))
    }

    /// Holds an entry against the bounds of the whole image.
    fn count(&mut self, entry: &Entry) -> Result<(), Error> {
        let attributes: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.entries += 1;
        self.metadata += entry.path.len() + entry.link.len() + attributes;
        self.size = self.size.saturating_add(entry.size);
        let too_many = |what, limit| Err(Error::TooMany { what, limit });
        if self.entries > MAX_ENTRIES {
            return too_many("entries", MAX_ENTRIES as u64);
        }
        if self.metadata > MAX_METADATA_BYTES {
            return too_many("bytes of names and attributes", MAX_METADATA_BYTES as u64);
        }
        if self.size > MAX_CONTENT_BYTES {
            return too_many("bytes of content", MAX_CONTENT_BYTES);
        }
        Ok(())
    }

    /// Fetches layers again for the content that was taken to be hidden and is not.
    fn fetch_skipped(&mut self, merged: &mut Merged) -> Result<(), Error> {
        let skipped = merged.skipped();
        let mut wanted: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (layer, entry) in skipped {
            wanted.entry(layer).or_default().insert(entry);
        }
        let mut found = BTreeMap::new();
        for (layer, wanted) in wanted.into_iter().rev() {
            let mut stream = self.stream(layer);
            let mut tar = tar::Reader::new(&mut stream);
            let mut index = 0;
            while let Some(entry) = tar.next()? {
                if wanted.contains(&index) {
                    found.insert((layer, index), self.content(&mut tar, &entry)?);
                }
                index += 1;
            }
            stream.finish().map_err(|error| error.of_layer(&self.source.layers[layer]))?;
        }
        merged.found(&found);
        Ok(())
    }

    /// Adds the files that no layer has.
    fn add_own(&mut self, merged: &mut Merged, own: &[Own], seconds: i64) -> Result<(), Error> {
        merged.next_layer();
        for file in own {
            let failed = |source| Error::Entry { path: file.path.clone().into(), source };
            if !file.replaces && merged.has(file.path.as_bytes()).map_err(failed)? {
                continue;
            }
            let mut rest = file.bytes();
            let mut content = Content::Empty;
            if !rest.is_empty() {
                content = Content::Stored(self.contents.add(rest.len() as u64, |length| {
                    let (now, later) = rest.split_at(length.min(rest.len()));
                    rest = later;
                    Ok::<_, Error>(Chunk::Bytes(now.to_vec()))
                })?);
            }
            file.apply(merged, content, seconds)?;
        }
        Ok(())
    }
}

/// Applies the layers, which were read from the top, from the bottom up.
fn merge(source: &Source, read: Vec<Read>) -> Result<Merged, Error> {
    let mut merged = Merged::default();
    for (layer, read) in source.layers.iter().zip(read.into_iter().rev()) {
        merged.next_layer();
        for (entry, (content, bytes)) in read.entries.iter().zip(read.contents) {
            merged.apply(entry, content, bytes).map_err(|source| {
                let path = OsString::from_vec(entry.path.clone());
                Error::Entry { path, source }.of_layer(layer)
            })?;
        }
    }
    Ok(merged)
}

fn is_whiteout(path: &[u8]) -> bool {
    merge::clean(path).last().is_some_and(|name| name.starts_with(merge::WHITEOUT))
}
