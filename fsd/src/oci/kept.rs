//! What is kept of images in registries beside the bytes of layers, below the cache directory.
//!
//! ```text
//! CACHE_DIR/oci/names/NAME       what a name led to: digest and media type; NAME is a digest of it
//! CACHE_DIR/oci/blobs/HEX        manifests and configurations, by their digests
//! CACHE_DIR/oci/indexes/HEX.KIND indexes that were made of layers, by the layers' digests
//! CACHE_DIR/oci/checked/NAME     files of layouts that have their digests; NAME is a digest of digest and place
//! CACHE_DIR/oci/pins/NAME        images that stay: what they are, and which of the above they need
//! ```
//!
//! Each file is written whole or not at all, and held against its digest when it is read. Nothing depends on them but time
//! and the network. What was used longest ago goes when there is too much, but for what a
//! pinned image needs.

use super::checked::Stamp;
use super::layer::KINDS;
use super::pinned::PinnedImage;
use super::place::Found;
use crate::cache::write_whole;
use base16ct::lower::encode_string as hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use siphon_image::digest::sha256_hex;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const DIRECTORY: &str = "oci";
const NAMES: &str = "names";
const BLOBS: &str = "blobs";
const INDEXES: &str = "indexes";
const CHECKED: &str = "checked";
const PINS: &str = "pins";

/// All indexes together: a hundredth of the layers that they are of, and all of a zstd layer.
const MAX_INDEX_BYTES: u64 = 8 << 30;
/// All manifests and configurations.
const MAX_BLOB_BYTES: u64 = 64 << 20;
/// All records of names, and all of files that were checked.
const MAX_RECORD_BYTES: u64 = 4 << 20;
/// The longest file that is read as a whole, which registries accept as a manifest.
const MAX_READ_BYTES: u64 = 4 << 20;

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct NameRecord {
    digest: String,
    media_type: String,
}

/// A file that was held against its digest.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CheckRecord {
    digest: String,
    stamp: Stamp,
}

impl Kept {
    pub(super) fn below(cache_dir: &Path) -> Self {
        Self { path: cache_dir.join(DIRECTORY) }
    }

    /// What `name` led to, if all of that is here.
    pub(super) fn name(&self, name: &str) -> Option<Found> {
        let record = read_short(&self.path.join(NAMES).join(hex_digest(name.as_bytes())))?;
        let NameRecord { digest, media_type } = serde_json::from_slice(&record).ok()?;
        let bytes = self.blob(&digest)?;
        Some(Found { digest, media_type, bytes })
    }

    /// Remembers what `name` led to.
    pub(super) fn keep_name(&self, name: &str, found: &Found) {
        let record = NameRecord { digest: found.digest.clone(), media_type: found.media_type.clone() };
        let record = serde_json::to_vec(&record).expect("two strings are JSON");
        self.keep(NAMES, &hex_digest(name.as_bytes()), &record, MAX_RECORD_BYTES);
        self.keep_blob(&found.digest, &found.bytes);
    }

    /// The blob with this digest.
    pub(super) fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        let hex = sha256_hex(digest)?;
        let path = self.path.join(BLOBS).join(hex);
        let mut bytes = read_short(&path)?;
        if hex_digest(&bytes) != hex {
            // It ends with the line that all small files do.
            bytes.pop();
        }
        (hex_digest(&bytes) == hex).then_some(bytes)
    }

    /// Keeps a blob, which has this digest or is not kept.
    pub(super) fn keep_blob(&self, digest: &str, bytes: &[u8]) {
        if let Some(hex) = sha256_hex(digest)
            && hex_digest(bytes) == hex
        {
            self.keep(BLOBS, hex, bytes, MAX_BLOB_BYTES);
        }
    }

    /// Whether the file that is what `stamp` says was held against `digest`, and is the same still.
    pub(super) fn is_checked(&self, digest: &str, stamp: &Stamp) -> bool {
        let record = read_short(&self.path.join(CHECKED).join(check_name(digest, stamp)));
        let record: Option<CheckRecord> = record.and_then(|record| serde_json::from_slice(&record).ok());
        record.is_some_and(|record| record.digest == digest && record.stamp == *stamp)
    }

    /// Remembers that a file was held against its digest.
    pub(super) fn keep_checked(&self, digest: &str, stamp: &Stamp) {
        let record = CheckRecord { digest: digest.to_owned(), stamp: *stamp };
        let record = serde_json::to_vec(&record).expect("numbers and a string are JSON");
        self.keep(CHECKED, &check_name(digest, stamp), &record, MAX_RECORD_BYTES);
    }

    /// The index of the kind `kind` of a layer; `None` for one that can have none, or if none was made.
    pub(super) fn index(&self, layer: &str, kind: &str) -> Option<File> {
        let file = File::open(self.index_path(layer, kind)?).ok()?;
        // For who looks for what was used longest ago. Where that cannot be written down, it is a guess.
        let _ = file.set_modified(SystemTime::now());
        Some(file)
    }

    /// Has `write` make the index of a layer, under its name once it is whole.
    pub(super) fn make_index(
        &self,
        layer: &str,
        kind: &str,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<File> {
        let path = self.index_path(layer, kind).ok_or(io::ErrorKind::InvalidInput)?;
        let directory = self.make(INDEXES)?;
        let mut file = tempfile::NamedTempFile::new_in(&directory)?;
        write(file.as_file_mut())?;
        let file = file.persist(&path).map_err(|error| error.error)?;
        self.sweep(INDEXES, MAX_INDEX_BYTES);
        Ok(file)
    }

    /// The indexes that there are of a layer, as [`PinnedImage`] names them.
    pub(super) fn indexes(&self, layer: &str) -> Vec<String> {
        let names = KINDS.iter().filter_map(|kind| Some(format!("{INDEXES}/{}.{kind}", sha256_hex(layer)?)));
        names.filter(|name| self.path.join(name).exists()).collect()
    }

    /// The file of the blob with this digest, as [`PinnedImage`] names it.
    pub(super) fn blob_file(digest: &str) -> Option<String> {
        sha256_hex(digest).map(|hex| format!("{BLOBS}/{hex}"))
    }

    /// Writes down that an image is to stay.
    ///
    /// # Errors
    /// `NotFound` if something that it needs is not here; others if it cannot be written.
    pub(super) fn pin(&self, image: &PinnedImage) -> io::Result<()> {
        let path = self.make(PINS)?.join(hex_digest(image.name.as_bytes()));
        write_whole(&path, &serde_json::to_vec(image)?)?;
        // From now on they stay; until now they may have gone.
        for file in &image.files {
            fs::metadata(self.path.join(file)).inspect_err(|_| drop(fs::remove_file(&path)))?;
        }
        Ok(())
    }

    /// Takes back that an image is to stay.
    ///
    /// # Errors
    /// If that cannot be written down.
    pub(super) fn unpin(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(PINS).join(hex_digest(name.as_bytes())))
    }

    /// The image of this name, if it is to stay.
    pub(super) fn pinned(&self, name: &str) -> Option<PinnedImage> {
        read_pin(&self.path.join(PINS).join(hex_digest(name.as_bytes()))).filter(|image| image.name == name)
    }

    /// All images that are to stay.
    pub(super) fn all_pinned(&self) -> Vec<PinnedImage> {
        let mut all: Vec<_> = found(&self.path.join(PINS)).iter().filter_map(|(_, _, path)| read_pin(path)).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// The files that images which are to stay need.
    fn stays(&self) -> BTreeSet<PathBuf> {
        let mut files = BTreeSet::new();
        for image in self.all_pinned() {
            files.extend(Self::blob_file(&image.digest).map(|file| self.path.join(file)));
            files.extend(image.files.iter().map(|file| self.path.join(file)));
        }
        files
    }

    /// Removes the files of a directory that were used longest ago, until the rest have at most `max_bytes`. What stays is
    /// not counted.
    fn sweep(&self, directory: &str, max_bytes: u64) {
        let mut found = found(&self.path.join(directory));
        let mut total: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
        if total <= max_bytes {
            return;
        }
        let stays = self.stays();
        found.retain(|(_, _, path)| !stays.contains(path));
        found.sort();
        total = found.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in found {
            if total <= max_bytes {
                return;
            }
            // Whoever has it open reads on.
            if fs::remove_file(&path).is_ok() {
                total -= bytes;
            }
        }
    }

    fn index_path(&self, layer: &str, kind: &str) -> Option<PathBuf> {
        Some(self.path.join(INDEXES).join(format!("{}.{kind}", sha256_hex(layer)?)))
    }

    /// Nothing depends on what is kept, so that what cannot be is a line of the log.
    fn keep(&self, kind: &str, name: &str, bytes: &[u8], max_bytes: u64) {
        let written = self.make(kind).and_then(|directory| {
            if !directory.join(name).exists() || [NAMES, CHECKED].contains(&kind) {
                write_whole(&directory.join(name), bytes)?;
                self.sweep(kind, max_bytes);
            }
            Ok(())
        });
        if let Err(error) = written {
            tracing::debug!(%error, "cannot keep what is known of an image");
        }
    }

    fn make(&self, directory: &str) -> io::Result<PathBuf> {
        let path = self.path.join(directory);
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(path)
    }
}

/// Takes away what is kept of images in registries below a cache directory, if it was not used for `age` and is of no pinned
/// image. Returns the bytes that this freed, or would.
///
/// # Errors
/// If something cannot be removed.
pub fn remove_kept(cache_dir: &Path, age: Duration, dry_run: bool) -> io::Result<u64> {
    let mut freed = 0;
    let stays = Kept::below(cache_dir).stays();
    for directory in [NAMES, BLOBS, INDEXES, CHECKED] {
        for (used, bytes, path) in found(&cache_dir.join(DIRECTORY).join(directory)) {
            // A clock that was set back makes a file new.
            if SystemTime::now().duration_since(used).unwrap_or_default() < age || stays.contains(&path) {
                continue;
            }
            freed += bytes;
            if !dry_run {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
    }
    Ok(freed)
}

/// The files of a directory: when each was used, its length and its path.
fn found(directory: &Path) -> Vec<(SystemTime, u64, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let file = |entry: fs::DirEntry| {
        let data = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((data.modified().ok()?, data.len(), entry.path()))
    };
    entries.filter_map(file).collect()
}

fn read_pin(path: &Path) -> Option<PinnedImage> {
    serde_json::from_slice(&read_short(path)?).ok()
}

fn read_short(path: &Path) -> Option<Vec<u8>> {
    let is_short = fs::metadata(path).ok()?.len() <= MAX_READ_BYTES + 1;
    if is_short { fs::read(path).ok() } else { None }
}

/// One record for each file, which takes the place of what was known of it.
fn check_name(digest: &str, stamp: &Stamp) -> String {
    let (device, number) = stamp.place;
    hex_digest(format!("{digest} {device}:{number}").as_bytes())
}

fn hex_digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
