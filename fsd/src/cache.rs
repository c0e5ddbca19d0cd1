//! Chunks of remote objects, kept on disk for all images and all processes of a user.
//!
//! A chunk is absent, being filled, or complete; only eviction takes it back. The first who wants an absent chunk gets a
//! [`Claim`] on it and on absent neighbours, and fetches them; whoever wants one of them meanwhile waits and gets the
//! same bytes, as soon as they are there, or the same error. After an error the chunk is absent again, and the next who
//! asks tries anew.
//!
//! ```text
//! DIR/v2/KEY/00012.pack  64 MiB of the object at their own offsets, a hole where a chunk is absent; behind them 8 bytes
//!                        for each chunk: zeros, or "DONE" and the CRC-32 of the chunk, little-endian
//! DIR/v2/KEY/meta.json   url (redacted), len_bytes, validator: for people, and for a start without network
//! DIR/v2/KEY/fetching    locked by who fetches something, so that the others wait for it (`cache/turns.rs`)
//! DIR/v2/KEY/pinned      is never evicted
//! DIR/v2/KEY/checked     all of it is there, and has the digest that it should have
//! DIR/v2/names/NAME      which KEY an address led to, the last time that it could be asked
//! ```
//!
//! `KEY` stands for one content: the digest of the bytes where that is known, else one version of one object. So a chunk
//! has one possible content, two images with the same blob share it, and several processes, on several nodes if the
//! directory is on a shared file system, write to it without regard for each other: at worst two fetch a chunk and write the same
//! bytes. That they mostly do not is what locks are for, which nothing depends on.
//!
//! A chunk's record is written after its bytes, but nothing is synced, which would cost a disk flush for each chunk: after
//! a crash, or from another node of a cluster, the record may be seen without the bytes. So each process checks a chunk
//! against its CRC-32 before it first serves from it, and takes a torn one for absent. The same goes for a chunk that the
//! disk fails to read. What is assumed of a file system is that a rename is whole or not at all, and that what one
//! process writes into a page does not change what another one wrote into a different page.
//!
//! The directory is kept to a quota by removing whole packs, the least recently used first (`cache/quota.rs`). A pack that
//! was removed is read on by whoever has it open, and is made anew by the next who stores.
//!
//! A disk that is full, or fails to write otherwise, is no reason to fail: there is one warning, the bytes are served all
//! the same, and the last ones are kept in memory, so that small reads in a row do not fetch their chunk each time. Now
//! and then it is tried again.
//!
//! Lock order: `fills`, then `unstored` or a fill's own, then that of the open packs. No lock is held during a fetch.
//! Nothing here knows about files or images: see [`crate::blob`] for ranges.

mod claim;
mod complete;
mod entries;
mod fill;
mod names;
mod object;
mod packs;
mod pins;
mod quota;
mod turns;

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use packs::Packs;
use quota::Quota;

pub use claim::Claim;
pub use entries::Entry;
pub use fill::Run;
pub use names::Named;
pub use object::{Found, Object};
pub(crate) use packs::write_whole;
pub use quota::DEFAULT_QUOTA_BYTES;

/// The bytes of a chunk; the last one of an object may be shorter.
///
/// A block of squashfs with its default size is 50 KiB or so when stored. Larger chunks would fetch bytes nobody asked for
/// where a program jumps about; what is read in order is fetched in runs of many.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// The longest object taken, whatever length a server claims.
pub const MAX_OBJECT_BYTES: u64 = 4 << 40;

/// The version of the layout on disk, so that another one is never misread. It covers the chunk size too.
const LAYOUT: &str = "v2";

/// A directory of chunks.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    quota: Arc<Quota>,
}

/// How often the files of an object are opened while it is being removed.
const OPEN_ATTEMPTS: u32 = 8;

/// What an object is, for people who look into the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The redacted URL.
    pub url: String,
    /// The length in bytes.
    pub len_bytes: u64,
    /// What tells this version from others.
    pub validator: String,
}

/// Why chunks cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory, or one below it, cannot be made or used.
    #[error("cannot use the cache directory {path}; check its permissions or choose another")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Someone else could put bytes into it.
    #[error("the cache directory {path} belongs to user {owner}; choose another that is yours")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// The object is longer than [`MAX_OBJECT_BYTES`].
    #[error("{url} claims {len_bytes} bytes, more than the {MAX_OBJECT_BYTES} an image may have; check the URL")]
    TooLong {
        /// The redacted URL.
        url: String,
        /// The length in bytes.
        len_bytes: u64,
    },
}

impl Cache {
    /// Opens the cache in `dir`, made with mode 0700 if it is missing and set to it if others may enter, as the directory
    /// of its objects is.
    ///
    /// # Errors
    /// If it cannot be used, or belongs to another user.
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        Self::open_with(dir, DEFAULT_QUOTA_BYTES)
    }

    /// The same as [`Cache::open`], kept to about `quota_bytes` of what is not pinned.
    ///
    /// # Errors
    /// The same as [`Cache::open`].
    pub fn open_with(dir: &Path, quota_bytes: u64) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Directory { path: dir.to_owned(), source };
        make_private(dir).map_err(failed)?;
        for directory in [dir, &dir.join(LAYOUT)] {
            let meta = match fs::metadata(directory) {
                // Made with the first object, which a full disk is no reason to refuse.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                meta => meta.map_err(failed)?,
            };
            check_owner(directory, &meta)?;
            if meta.mode() & 0o077 != 0 {
                fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed)?;
            }
        }
        Ok(Self { dir: dir.to_owned(), quota: Arc::new(Quota::new(&dir.join(LAYOUT), quota_bytes)) })
    }

    /// Opens the chunks of the object known by `key`, a hex string that stands for one content.
    ///
    /// A full disk is no error: the object then lives without it.
    ///
    /// # Errors
    /// If the object is too long or its files cannot be opened.
    pub fn object(&self, key: &str, description: &Description) -> Result<Arc<Object>, CacheError> {
        let Description { url, len_bytes, .. } = description;
        let chunks = u32::try_from(len_bytes.div_ceil(CHUNK_BYTES as u64)).ok();
        let chunks = chunks.filter(|_| *len_bytes <= MAX_OBJECT_BYTES);
        let chunks = chunks.ok_or_else(|| CacheError::TooLong { url: url.clone(), len_bytes: *len_bytes })?;
        let path = self.dir.join(LAYOUT).join(key);
        let packs = match open_packs(&path, description) {
            Ok(packs) => Some(packs),
            Err(error) if is_full(&error) => {
                tracing::warn!(url, dir = %path.display(), %error, "cannot cache; every read goes to the server");
                None
            }
            Err(source) => return Err(CacheError::Directory { path, source }),
        };
        self.quota.check();
        Ok(Arc::new(Object::new(description.clone(), chunks, packs, self.quota.clone())))
    }
}

/// Makes a directory that nobody else can enter, and those above it, if they are missing.
fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Nobody else's bytes are taken for ours.
fn check_owner(dir: &Path, meta: &fs::Metadata) -> Result<(), CacheError> {
    if meta.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(CacheError::Foreign { path: dir.to_owned(), owner: meta.uid() })
}

/// Opens the object in `dir`, which may be taken away between two steps of that.
fn open_packs(dir: &Path, description: &Description) -> io::Result<Packs> {
    let mut opened = Packs::open(dir, description);
    for _ in 1..OPEN_ATTEMPTS {
        match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => opened = Packs::open(dir, description),
            opened => return opened,
        }
    }
    opened
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
