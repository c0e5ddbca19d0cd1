//! Names of images, as users write them, and the way from a name to a file tree.

use crate::blob::{Blob, BlobCounters, BlobError, FIRST_BYTES};
use crate::memory::default_cache_bytes;
use crate::oci;
use crate::oras;
use crate::prefetch::Prefetch;
use crate::source::{Remote, hub_image, library_image};
use crate::storage::{Storage, StorageUse};
use crate::sys::ext::{self, ExtImage};
use siphon_image::ext::Ext;
use siphon_image::open::{self, Format, Image};
use siphon_image::read_at::{FileAt, ReadAt};
use siphon_image::reference::{self, Reference, Repository};
use siphon_image::squashfs::reader::Options;
use siphon_image::tree::{self, Tree};
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

/// Where a sandbox keeps what it is a layer of.
const BASE_FILE: &str = ".siphon/base.json";

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
    /// An image file on a web server.
    Url(String),
    /// An image file in a registry or a library, or an OCI image in a registry.
    Elsewhere(Reference),
}

/// An image could not be found or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path leads nowhere, or not to something readable.
    #[error("cannot open {path}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no such file, and it does not look as if one was meant.
    #[error(
        "cannot open {name}: there is no such file, and images elsewhere are named docker://, oras://, library:// or \
         http(s)://, or oci:, oci-archive: or docker-archive: with a path{}",
        meant.as_deref().map(|meant| format!("; is {meant} meant?")).unwrap_or_default()
    )]
    NoSuchName {
        /// As it was given.
        name: String,
        /// A name that it may have been meant as.
        meant: Option<String>,
    },
    /// Neither a file nor a directory.
    #[error("{path} is neither an image file nor a directory")]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// The server did not give it.
    #[error("cannot open {url}")]
    Url {
        /// The URL.
        url: String,
        /// What happened.
        #[source]
        source: BlobError,
    },
    /// The name is one of an image elsewhere, and wrong.
    #[error("cannot understand the name {name}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: reference::Error,
    },
    /// What is there is no image file, and cannot be read as it is.
    #[error("{name} is no image file but layers; make a file of them: siphon pull {name}")]
    Unmade {
        /// The reference.
        name: String,
    },
    /// The registry or the library did not give it.
    #[error("cannot open {name}")]
    Elsewhere {
        /// The reference.
        name: String,
        /// What happened.
        #[source]
        source: oras::Error,
    },
    /// Someone writes to its ext3 file system.
    #[error(transparent)]
    InUse(#[from] ext::Error),
    /// The registry has no such OCI image, or it cannot be read.
    #[error("cannot open {name}")]
    Oci {
        /// The reference.
        name: String,
        /// What happened.
        #[source]
        source: Box<oci::Error>,
    },
    /// Its content is not an image.
    #[error("cannot read the image {image}")]
    Format {
        /// Path or URL.
        image: String,
        /// What is wrong with it.
        #[source]
        source: open::Error,
    },
    /// Its tree cannot be read.
    #[error("cannot read the files of {image}")]
    Tree {
        /// Path or URL.
        image: String,
        /// What is wrong.
        #[source]
        source: tree::Error,
    },
    /// A sandbox whose own record cannot be read.
    #[error("cannot read {BASE_FILE} of the sandbox {sandbox}")]
    Record {
        /// The directory.
        sandbox: PathBuf,
        /// What is wrong.
        #[source]
        source: siphon_overlay::error::Error,
    },
    /// A sandbox whose own files cannot be read.
    #[error("cannot use the layer of the sandbox {sandbox}")]
    Layer {
        /// The directory.
        sandbox: PathBuf,
        /// What is wrong.
        #[source]
        source: siphon_overlay::error::Error,
    },
    /// A sandbox whose base cannot be opened.
    #[error("the sandbox {sandbox} is a layer over {base}, which cannot be opened")]
    BaseGone {
        /// The directory.
        sandbox: PathBuf,
        /// What it names.
        base: String,
        /// Why that cannot be opened.
        #[source]
        source: Box<Error>,
    },
    /// A sandbox whose base is now another image.
    #[error(
        "the sandbox {sandbox} is a layer over {base}, which has changed since: it was {recorded} and is {found}; \
         put the former image back, or make a new sandbox"
    )]
    BaseChanged {
        /// The directory.
        sandbox: PathBuf,
        /// What it names.
        base: String,
        /// What the base was.
        recorded: String,
        /// What it is.
        found: String,
    },
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

    /// What tells this object from all others of this machine, now: device, inode, length and time of a path, or the
    /// URL itself. No network is used, and a served URL goes on as the version it was opened as.
    ///
    /// # Errors
    /// [`Error::Path`] if it has gone.
    pub fn identity(&self) -> Result<String, Error> {
        let path = match self {
            Self::Url(url) => return Ok(url.clone()),
            Self::Elsewhere(reference) => return Ok(reference.to_string()),
            Self::File(path) | Self::Directory(path) | Self::Sandbox(path) => path,
        };
        let data = fs::metadata(path).map_err(|source| Error::Path { path: path.clone(), source })?;
        let place = format!("{}:{}", data.dev(), data.ino());
        // What is in a directory changes under way, and it stays the same directory.
        Ok(if data.is_file() { format!("{place}:{}", content_identity(&data)) } else { place })
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
        Locator::Url(url) => open_url(url, cache_dir, cache_bytes),
        Locator::Elsewhere(Reference::Docker(repository)) => open_oci(repository, cache_dir, cache_bytes),
        Locator::Elsewhere(reference) => open_elsewhere(reference, cache_dir, cache_bytes),
        Locator::Sandbox(path) => open_sandbox(path, cache_dir, cache_bytes),
    }
}

/// Opens the files that an image holds for others to use: those of the object `id` of a SIF, or of its first data
/// partition, or of a squashfs.
///
/// # Errors
/// Any [`Error`].
pub fn open_data(path: &Path, id: Option<u32>, cache_bytes: Option<u64>) -> Result<Data, Error> {
    let failed = |source| Error::Path { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    let opened = file.metadata().map_err(failed)?;
    let bytes = Arc::new(FileAt::new(file).map_err(failed)?);
    let options = Options { cache_bytes: cache_bytes.unwrap_or_else(default_cache_bytes) };
    let image = open::open_data(bytes, id, options)
        .map_err(|source| Error::Format { image: path.display().to_string(), source })?;
    let lock = lock_for_reading(path, &opened, &image)?;
    Ok(Data { image, _lock: lock })
}

fn open_file(path: &Path, cache_bytes: Option<u64>) -> Result<Opened, Error> {
    let failed = |source| Error::Path { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    let data = file.metadata().map_err(failed)?;
    let identity = content_identity(&data);
    let bytes = Arc::new(FileAt::new(file).map_err(failed)?);
    let mut opened = opened(path.display().to_string(), bytes, identity, None, cache_bytes)?;
    opened.lock = lock_for_reading(path, &data, &opened.image)?;
    Ok(opened)
}

/// An ext3 file system may be written to, and must not be while it is read. `opened` is the file that is read.
fn lock_for_reading(path: &Path, opened: &Metadata, image: &Image) -> Result<Option<Arc<File>>, Error> {
    if image.format != Format::Ext {
        return Ok(None);
    }
    let lock = ExtImage { path, offset_bytes: 0, size_bytes: opened.len(), write: false }.lock()?;
    let failed = |source| Error::Path { path: path.into(), source };
    let locked = lock.metadata().map_err(failed)?;
    if (locked.dev(), locked.ino()) != (opened.dev(), opened.ino()) {
        return Err(failed(io::Error::other("another file took its place while it was opened")));
    }
    Ok(Some(Arc::new(lock)))
}

fn open_url(url: &str, cache_dir: &Path, cache_bytes: Option<u64>) -> Result<Opened, Error> {
    let blob = Blob::open(url, cache_dir).map_err(|source| Error::Url { url: url.to_owned(), source })?;
    opened_blob(url.to_owned(), blob, cache_bytes)
}

fn open_elsewhere(reference: &Reference, cache_dir: &Path, cache_bytes: Option<u64>) -> Result<Opened, Error> {
    let name = reference.to_string();
    let (remote, _) = elsewhere(reference, None)?;
    let blob = Blob::over(remote, cache_dir).map_err(|source| Error::Url { url: name.clone(), source })?;
    opened_blob(name, blob, cache_bytes)
}

/// Opens the image file that `blob` is.
fn opened_blob(name: String, blob: Blob, cache_bytes: Option<u64>) -> Result<Opened, Error> {
    let identity = blob.identity().to_owned();
    let remote = Prefetch::new([Arc::new(blob)]);
    let object = remote.objects().next().expect("it is of one object");
    opened(name, Arc::new(object), identity, Some(remote), cache_bytes)
}

fn open_oci(repository: &Repository, cache_dir: &Path, cache_bytes: Option<u64>) -> Result<Opened, Error> {
    let cache_bytes = cache_bytes.unwrap_or_else(|| LAYERS_FACTOR * default_cache_bytes());
    let failed = |source: oci::Error| Error::Oci { name: format!("docker://{repository}"), source: source.into() };
    let image = oci::open(repository, this_arch(), cache_dir, cache_bytes).map_err(failed)?;
    Ok(Opened {
        lower: image.tree.clone(),
        upper_dir: None,
        image_bytes: image.storage.iter().map(|storage| storage.len()).fold(0, u64::saturating_add),
        image: Image::of_layers(image.tree, &image.run_config),
        identity: image.digest,
        is_stable: true,
        cache_bytes,
        storage: image.storage,
        remote: Some(image.layers),
        trace: image.trace,
        lock: None,
    })
}

/// The image file that `reference` names in a registry, in a library or on a web server, and the digest that its bytes have
/// to have where that is known: who reads only some of them cannot tell. `arch` is for machines of which, as Go names
/// them; this one's if `None`.
///
/// # Errors
/// If there is none, or it is of another kind.
pub fn elsewhere(reference: &Reference, arch: Option<&str>) -> Result<(Remote, Option<String>), Error> {
    let name = || reference.to_string();
    let failed = |source: oras::Error| Error::Elsewhere { name: name(), source };
    match reference {
        Reference::Oras(repository) => oras::image(repository).map_err(failed),
        Reference::Library(library) => {
            let arch = arch.unwrap_or_else(|| this_arch());
            let image = library_image(library, arch, FIRST_BYTES).map_err(|error| failed(error.into()))?;
            Ok((image.remote, image.digest))
        }
        Reference::Docker(_) => Err(Error::Unmade { name: name() }),
        Reference::Shub(image) => Ok((hub_image(image, FIRST_BYTES).map_err(|error| failed(error.into()))?, None)),
        Reference::Web(url) => {
            let remote = Remote::open(url, FIRST_BYTES).map_err(Arc::new);
            Ok((remote.map_err(|source| Error::Url { url: url.clone(), source: source.into() })?, None))
        }
    }
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
fn content_identity(data: &Metadata) -> String {
    format!("{} bytes of {}.{:09}", data.size(), data.mtime(), data.mtime_nsec())
}
