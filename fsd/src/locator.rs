//! Names of images, as users write them, and the way from a name to a file tree.

mod elsewhere;
mod error;

use crate::blob::{Blob, BlobCounters};
use crate::local::{Content, LocalFile};
use crate::memory::default_cache_bytes;
use crate::oci;
use crate::prefetch::Prefetch;
use crate::storage::{Storage, StorageUse};
use crate::sys::ext::ExtImage;
use siphon_image::ext::Ext;
use siphon_image::open::{self, Format, Image};
use siphon_image::read_at::ReadAt;
use siphon_image::reference::Reference;
use siphon_image::squashfs::reader::Options;
use siphon_image::tree::Tree;
use siphon_overlay::upper::{Base, PRIVATE_NAME, Upper};
use siphon_overlay::view::View;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

pub use elsewhere::{elsewhere, known, open_blob};
pub use error::Error;

/// Where a sandbox keeps what it is a layer of.
const BASE_FILE: &str = ".siphon/base.json";

/// How names of OCI layouts begin, and the file that every layout has.
const LAYOUT: &str = "oci:";
const LAYOUT_INDEX: &str = "index.json";

/// What is kept decoded of layers, as a multiple of what is kept of squashfs: their spans and chunks are of 1 and 4 MiB, not of
/// 128 KiB. A start of PyTorch decodes 1 GiB of a gzip layer so, and 1.5 GiB of an eStargz; with a fourth of this the latter
/// decodes several times as much and takes half as long again.
const LAYERS_FACTOR: u64 = 4;

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Locator {
    /// An image file, by its canonical path.
    File(PathBuf),
    /// A plain directory that holds a whole root filesystem.
    Directory(PathBuf),
    /// A directory that is a layer over the image that it names.
    Sandbox(PathBuf),
    /// An OCI image in a layout: the directory, and which of its images if there are several.
    Layout(PathBuf, Option<String>),
    /// An image file on a web server.
    Url(String),
    /// An image file in a registry or a library, or an OCI image in a registry.
    Elsewhere(Reference),
}

/// An open image.
#[derive(Debug)]
pub struct Opened {
    /// The read-only tree: the image, or the base of a sandbox.
    pub lower: Arc<dyn Tree>,
    /// The directory of the layer, for a sandbox.
    pub upper_dir: Option<PathBuf>,
    /// The format and what comes with it.
    pub image: Image,
    /// What tells this content from any other: length and time of a file, validator of a URL; number and birth of a
    /// directory.
    pub identity: String,
    /// Bytes of the image file; 0 for a directory.
    pub image_bytes: u64,
    /// Whether nobody is expected to change it: false for a plain directory.
    pub is_stable: bool,
    /// Bytes of decoded content that are kept at most; 0 for a directory, which needs no decoding.
    pub cache_bytes: u64,
    /// Of each file or object that the image is in.
    storage: Vec<Arc<Storage>>,
    remote: Option<Arc<Prefetch>>,
    /// What runs on other machines touched of it.
    trace: Vec<u8>,
    /// Keeps others from writing to an ext3 file system, which is read as it lies in its file.
    lock: Option<Arc<File>>,
}

/// The files that an image holds for others to use.
#[derive(Debug)]
pub struct Data {
    /// The files.
    pub image: Image,
    /// As that of [`Opened`].
    _lock: Option<Arc<File>>,
}

impl Opened {
    /// The tree that a container of this image sees: a sandbox's layer merged with its base.
    ///
    /// # Errors
    /// [`Error::Layer`] if the layer of a sandbox cannot be opened.
    pub fn tree(&self) -> Result<Arc<dyn Tree>, Error> {
        let Some(directory) = &self.upper_dir else { return Ok(self.lower.clone()) };
        let failed = |source| Error::Layer { sandbox: directory.clone(), source };
        let upper = Upper::open(directory).map_err(failed)?;
        Ok(Arc::new(View::new(self.lower.clone(), Some(upper)).map_err(failed)?))
    }

    /// What was asked of the image file; all zero for a directory.
    pub fn storage_use(&self) -> StorageUse {
        self.storage.iter().map(|storage| storage.usage()).fold(StorageUse::default(), StorageUse::and)
    }

    /// What runs on other machines touched of a remote image, for [`Prefetch::follow`]; empty if that is not known.
    pub fn shared_trace(&self) -> &[u8] {
        &self.trace
    }

    /// Lets others write to an ext3 file system: what is here of it is not to be read any more.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    /// What was fetched, for a remote image.
    pub fn fetched(&self) -> Option<BlobCounters> {
        self.remote.as_ref().map(|remote| remote.counters())
    }

    /// The objects that a remote image is in.
    pub fn remote(&self) -> Option<&Prefetch> {
        self.remote.as_deref()
    }
}

impl Locator {
    /// Finds out what `name` stands for: a URL, or a path that exists.
    ///
    /// # Errors
    /// [`Error::Path`] or [`Error::Kind`].
    pub fn parse(name: &str) -> Result<Self, Error> {
        if let Some(from) = name.strip_prefix(LAYOUT) {
            return Self::layout(from);
        }
        let wrong = |source| Error::Name { name: name.to_owned(), source };
        match Reference::parse(name).map_err(wrong)? {
            None => {}
            Some(found @ (Reference::Docker(_) | Reference::Oras(_) | Reference::Library(_) | Reference::Shub(_))) => {
                return Ok(Self::Elsewhere(found));
            }
            Some(Reference::Web(url)) => return Ok(Self::Url(url)),
        }
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound if name.contains(':') => no_such_name(name),
            _ => Error::Path { path: name.into(), source },
        };
        let path = fs::canonicalize(name).map_err(failed)?;
        let kind = fs::metadata(&path).map_err(failed)?;
        match kind {
            kind if kind.is_file() => Ok(Self::File(path)),
            kind if kind.is_dir() && path.join(BASE_FILE).exists() => Ok(Self::Sandbox(path)),
            kind if kind.is_dir() => Ok(Self::Directory(path)),
            _ => Err(Error::Kind { path }),
        }
    }

    fn layout(from: &str) -> Result<Self, Error> {
        let (path, name) = path_and_name(from);
        let failed = |path: PathBuf| |source| Error::Path { path, source };
        let index = Path::new(path).join(LAYOUT_INDEX);
        fs::metadata(&index).map_err(failed(index))?;
        let directory = fs::canonicalize(path).map_err(failed(path.into()))?;
        Ok(Self::Layout(directory, name.map(str::to_owned)))
    }

    /// What tells this object from all others of this machine, now: device, inode, length and time of a path, or the
    /// URL itself. No network is used, and a served URL goes on as the version it was opened as.
    ///
    /// # Errors
    /// [`Error::Path`] if it has gone.
    pub fn identity(&self) -> Result<String, Error> {
        let path = match self {
            Self::Url(url) => return Ok(url.clone()),
            Self::Elsewhere(reference) => return Ok(reference.to_string()),
            Self::Layout(directory, _) => &directory.join(LAYOUT_INDEX),
            Self::File(path) | Self::Directory(path) | Self::Sandbox(path) => path,
        };
        let data = fs::metadata(path).map_err(|source| Error::Path { path: path.clone(), source })?;
        let place = format!("{}:{}", data.dev(), data.ino());
        // What is in a directory changes under way, and it stays the same directory.
        Ok(if data.is_file() { format!("{place}:{}", content_identity(&Content::of(&data))) } else { place })
    }
}

/// What is wrong with a name that leads to no file and has a colon.
fn no_such_name(name: &str) -> Error {
    let (scheme, rest) = name.split_once(':').unwrap_or_default();
    let meant = match rest.trim_start_matches('/') {
        repository if scheme == "docker" => Some(format!("docker://{repository}")),
        _ if rest.starts_with("//") => None,
        // `ubuntu:24.04`, as docker has it.
        _ => Some(format!("docker://{name}")),
    };
    Error::NoSuchName { name: name.to_owned(), meant }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Elsewhere(reference) => reference.fmt(f),
            Self::Layout(directory, None) => write!(f, "{LAYOUT}{}", directory.display()),
            Self::Layout(directory, Some(name)) => write!(f, "{LAYOUT}{}:{name}", directory.display()),
            Self::File(path) | Self::Directory(path) | Self::Sandbox(path) => path.display().fmt(f),
        }
    }
}

/// Opens an image for reading. `cache_dir` takes the bytes of remote ones, and `cache_bytes` bounds the decoded content
/// that is kept in memory: by the memory there is if `None`.
///
/// # Errors
/// Any [`Error`].
pub fn open(locator: &Locator, cache_dir: &Path, cache_bytes: Option<u64>) -> Result<Opened, Error> {
    match locator {
        Locator::File(path) => open_file(path, cache_bytes),
        Locator::Directory(path) => open_directory(path),
        Locator::Elsewhere(Reference::Docker(repository)) => {
            open_layers(locator, cache_bytes, |cache_bytes| oci::open(repository, this_arch(), cache_dir, cache_bytes))
        }
        Locator::Sandbox(path) => open_sandbox(path, cache_dir, cache_bytes),
        Locator::Layout(directory, name) => open_layers(locator, cache_bytes, |cache_bytes| {
            oci::open_layout(directory, name.as_deref(), this_arch(), cache_dir, cache_bytes)
        }),
        Locator::Url(_) | Locator::Elsewhere(_) => {
            let blob = open_blob(locator, cache_dir)?.expect("it is a file on a server");
            opened_blob(locator.to_string(), blob, cache_bytes)
        }
    }
}

/// Opens the files that an image holds for others to use: those of the object `id` of a SIF, or of its first data
/// partition, or of a squashfs.
///
/// # Errors
/// Any [`Error`].
pub fn open_data(path: &Path, id: Option<u32>, cache_bytes: Option<u64>) -> Result<Data, Error> {
    let failed = |source| Error::Path { path: path.into(), source };
    let bytes: Arc<LocalFile> = Arc::new(LocalFile::open(path).map_err(failed)?);
    let options = Options { cache_bytes: cache_bytes.unwrap_or_else(default_cache_bytes) };
    let image = open::open_data(bytes.clone(), id, options)
        .map_err(|source| Error::Format { image: path.display().to_string(), source })?;
    let lock = watch(path, &bytes, &image)?;
    Ok(Data { image, _lock: lock })
}

fn open_file(path: &Path, cache_bytes: Option<u64>) -> Result<Opened, Error> {
    let failed = |source| Error::Path { path: path.into(), source };
    let bytes: Arc<LocalFile> = Arc::new(LocalFile::open(path).map_err(failed)?);
    let identity = content_identity(&bytes.content());
    let mut opened = opened(path.display().to_string(), bytes.clone(), identity, None, cache_bytes)?;
    opened.lock = watch(path, &bytes, &opened.image)?;
    Ok(opened)
}

/// Sees to it that what is read of the file `opened` is the image that was opened. An ext3 file system may be written to, and
/// must not be while it is read: that takes a lock. Of a squashfs it is enough that its superblock stays.
fn watch(path: &Path, opened: &LocalFile, image: &Image) -> Result<Option<Arc<File>>, Error> {
    if image.format != Format::Ext {
        let partition = image.sif.as_ref().and_then(|sif| Some(sif.object(sif.primary_partition()?)));
        let start = match (&image.format, &partition) {
            (Format::Sif, Some(partition)) => partition.file_at(0).map(|(_, start)| start),
            (Format::Squashfs, _) => Some(0),
            _ => None,
        };
        let told = start.map_or(Ok(()), |start| opened.tell_by_superblock_at(start));
        return told.map(|()| None).map_err(|source| Error::Path { path: path.into(), source });
    }
    // From now on nobody writes to it but who has no regard for locks, until it is unlocked and read no more.
    opened.set_shared();
    let lock = ExtImage { path, offset_bytes: 0, size_bytes: opened.len(), write: false }.lock()?;
    let failed = |source| Error::Path { path: path.into(), source };
    let locked = lock.metadata().map_err(failed)?;
    if Content::of(&locked).place != opened.content().place {
        return Err(failed(io::Error::other("another file took its place while it was opened")));
    }
    Ok(Some(Arc::new(lock)))
}

/// Opens the image file that `blob` is.
fn opened_blob(name: String, blob: Blob, cache_bytes: Option<u64>) -> Result<Opened, Error> {
    let identity = blob.identity().to_owned();
    let remote = Prefetch::new([Arc::new(blob)]);
    let object = remote.objects().next().expect("it is of one object");
    opened(name, Arc::new(object), identity, Some(remote), cache_bytes)
}

/// Opens an image of layers as `open` does, which takes how many bytes to keep decoded.
fn open_layers(
    locator: &Locator,
    cache_bytes: Option<u64>,
    open: impl FnOnce(u64) -> Result<oci::LayeredImage, oci::Error>,
) -> Result<Opened, Error> {
    let cache_bytes = cache_bytes.unwrap_or_else(|| LAYERS_FACTOR * default_cache_bytes());
    let failed = |source: oci::Error| Error::Oci { name: locator.to_string(), source: source.into() };
    let image = open(cache_bytes).map_err(failed)?;
    Ok(Opened {
        lower: image.tree.clone(),
        upper_dir: None,
        image_bytes: image.storage.iter().map(|storage| storage.len()).fold(0, u64::saturating_add),
        image: Image::of_layers(image.tree, &image.run_config),
        identity: image.digest,
        is_stable: true,
        cache_bytes,
        storage: image.storage,
        remote: image.layers,
        trace: image.trace,
        lock: None,
    })
}

/// A path and a name behind a colon: what follows `oci:` and the like. What exists under the whole name has no name behind it,
/// and a path may have colons too.
pub fn path_and_name(from: &str) -> (&str, Option<&str>) {
    let exists = |path: &str| Path::new(path).symlink_metadata().is_ok();
    let found = from.match_indices(':').find(|(at, _)| exists(&from[..*at])).map(|(at, _)| at);
    let at = if exists(from) { None } else { found.or_else(|| from.find(':')) };
    let Some(at) = at else { return (from, None) };
    (&from[..at], Some(&from[at + 1..]).filter(|name| !name.is_empty()))
}

/// This machine's architecture, as Go names it.
pub fn this_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        arch => arch,
    }
}

fn opened(
    name: String,
    bytes: Arc<dyn ReadAt>,
    identity: String,
    remote: Option<Arc<Prefetch>>,
    cache_bytes: Option<u64>,
) -> Result<Opened, Error> {
    let storage = Arc::new(Storage::new(bytes));
    let cache_bytes = cache_bytes.unwrap_or_else(default_cache_bytes);
    let mut image = open::open_with(storage.clone(), Options { cache_bytes })
        .map_err(|source| Error::Format { image: name, source })?;
    if image.format == Format::Ext
        && let Ok(tree) = Ext::open(storage.clone())
    {
        // Who writes to it as it is has notes of its own there.
        image.tree = Arc::new(tree.without(OsStr::new(PRIVATE_NAME)));
    }
    Ok(Opened {
        lower: image.tree.clone(),
        upper_dir: None,
        image,
        identity,
        image_bytes: storage.len(),
        is_stable: true,
        cache_bytes,
        storage: vec![storage],
        remote,
        trace: Vec::new(),
        lock: None,
    })
}

fn open_directory(path: &Path) -> Result<Opened, Error> {
    let failed = |source: io::Error| Error::Path { path: path.into(), source };
    let identity = directory_identity(&fs::metadata(path).map_err(failed)?);
    let image = open::open_directory(path, OsStr::new(PRIVATE_NAME))
        .map_err(|source| Error::Format { image: path.display().to_string(), source })?;
    Ok(Opened {
        lower: image.tree.clone(),
        upper_dir: None,
        image,
        identity,
        image_bytes: 0,
        is_stable: false,
        cache_bytes: 0,
        storage: Vec::new(),
        remote: None,
        trace: Vec::new(),
        lock: None,
    })
}

fn open_sandbox(sandbox: &Path, cache_dir: &Path, cache_bytes: Option<u64>) -> Result<Opened, Error> {
    let record = Base::read(sandbox).map_err(|source| Error::Record { sandbox: sandbox.into(), source })?;
    let missing = || Error::Path { path: sandbox.join(BASE_FILE), source: io::ErrorKind::NotFound.into() };
    let base = record.ok_or_else(missing)?;
    let gone = |source| Error::BaseGone { sandbox: sandbox.into(), base: base.image.clone(), source: Box::new(source) };
    let locator = Locator::parse(&base.image).map_err(gone)?;
    if let Locator::Sandbox(path) = locator {
        // Layers do not stack: a record that names a sandbox, perhaps its own, was not written by us.
        return Err(gone(Error::Kind { path }));
    }
    let opened = open(&locator, cache_dir, cache_bytes).map_err(gone)?;
    // Of a directory earlier versions wrote down what tells it from all others of one machine.
    let is_known = |locator: &Locator| {
        matches!(locator, Locator::Directory(_)) && locator.identity().ok() == Some(base.identity.clone())
    };
    if opened.identity != base.identity && !is_known(&locator) {
        let (recorded, found) = (base.identity, opened.identity);
        return Err(Error::BaseChanged { sandbox: sandbox.into(), base: base.image, recorded, found });
    }
    Ok(Opened { upper_dir: Some(sandbox.into()), ..opened })
}

/// What a directory keeps whatever happens in it, and has on every machine: its number, and when it was made, where the
/// filesystem remembers that. A sandbox over it is not told of changes in it.
fn directory_identity(data: &Metadata) -> String {
    let made = data.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    let made = made.map_or_else(String::new, |made| format!(" of {}.{:09}", made.as_secs(), made.subsec_nanos()));
    format!("directory {}{made}", data.ino())
}

/// Length and time of a file: the same on every machine of a cluster, where device numbers differ.
fn content_identity(content: &Content) -> String {
    let (seconds, nanoseconds) = content.changed;
    format!("{} bytes of {seconds}.{nanoseconds:09}", content.len_bytes)
}
