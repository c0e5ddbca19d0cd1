//! Keeping a cache directory to a size: the packs that were used longest ago go first.
//!
//! Every process that stores looks now and then how much there is, and removes what is too much. Two that do so at once
//! may remove more than is needed, and nothing else goes wrong: a pack goes with one call, whole, and who has it open
//! reads on. What is pinned is neither removed nor counted.
//!
//! The quota belongs to the directory, since all processes and nodes that share one have to keep the same: it is a number
//! in `DIR/v2/quota`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use super::entries::{STAT_BLOCK_BYTES, is_key};
use super::packs::{PACK_SUFFIX, write_whole};
use super::{Cache, CacheError, complete, pins};

/// Enough for what several large images are read of, and little on any disk that holds such images.
pub const DEFAULT_QUOTA_BYTES: u64 = 32 << 30;

/// The file with another number.
const QUOTA_FILE: &str = "quota";

/// Of the quota, what is stored between two looks at most: a look reads a few directories.
const SHARE: u64 = 32;
/// But no more often than this.
const MIN_STEP_BYTES: u64 = 16 << 20;

/// The bound of one directory, as one process keeps it.
#[derive(Debug)]
pub(super) struct Quota {
    objects: PathBuf,
    default_bytes: u64,
    since_check: AtomicU64,
    checking: Arc<AtomicBool>,
}

impl Cache {
    /// What this directory is kept to, in bytes.
    pub fn quota_bytes(&self) -> u64 {
        self.quota.bytes()
    }

    /// Keeps the directory to `bytes` from now on, for all who use it.
    ///
    /// # Errors
    /// If that cannot be written down.
    pub fn set_quota(&self, bytes: u64) -> Result<(), CacheError> {
        let objects = &self.quota.objects;
        let failed = |source| CacheError::Directory { path: objects.clone(), source };
        super::make_private(objects).map_err(failed)?;
        write_whole(&objects.join(QUOTA_FILE), bytes.to_string().as_bytes()).map_err(failed)?;
        evict(objects, bytes).map_err(failed)
    }
}

impl Quota {
    pub(super) fn new(objects: &Path, default_bytes: u64) -> Self {
        let (since_check, checking) = (AtomicU64::new(0), Arc::default());
        Self { objects: objects.to_owned(), default_bytes, since_check, checking }
    }

    fn bytes(&self) -> u64 {
        let text = fs::read_to_string(self.objects.join(QUOTA_FILE)).unwrap_or_default();
        text.trim().parse().unwrap_or(self.default_bytes)
    }

    /// Takes note that so many bytes more are there, and looks after the rest if it is time.
    pub(super) fn stored(&self, bytes: u64) {
        let since = self.since_check.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if since >= MIN_STEP_BYTES && since >= self.bytes() / SHARE {
            self.check();
        }
    }

    /// Removes what is too much, on a thread of its own, unless that is being done.
    pub(super) fn check(&self) {
        self.since_check.store(0, Ordering::Relaxed);
        if self.checking.swap(true, Ordering::AcqRel) {
            return;
        }
        let (objects, bytes, checking) = (self.objects.clone(), self.bytes(), self.checking.clone());
        let look = move || {
            if let Err(error) = evict(&objects, bytes) {
                tracing::debug!(dir = %objects.display(), %error, "cannot keep the cache to its quota");
            }
            checking.store(false, Ordering::Release);
        };
        if std::thread::Builder::new().name("evict".to_owned()).spawn(look).is_err() {
            self.checking.store(false, Ordering::Release);
        }
    }
}

/// A pack on disk.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    used: SystemTime,
    path: PathBuf,
    bytes: u64,
}

/// Removes packs of objects that are not pinned until no more than `quota_bytes` are left.
pub(super) fn evict(objects: &Path, quota_bytes: u64) -> io::Result<()> {
    let mut found = Vec::new();
    for entry in ignore_missing(fs::read_dir(objects))?.into_iter().flatten() {
        let entry = entry?;
        let is_object = entry.file_name().to_str().is_some_and(is_key);
        if is_object && !pins::is_pinned(&entry.path()) {
            found.extend(packs(&entry.path()));
        }
    }
    found.sort();
    let mut left: u64 = found.iter().map(|pack| pack.bytes).sum();
    for pack in found {
        if left <= quota_bytes {
            break;
        }
        pack.path.parent().into_iter().for_each(complete::uncheck);
        ignore_missing(fs::remove_file(&pack.path))?;
        left -= pack.bytes;
    }
    Ok(())
}

/// The packs of one object. One that goes meanwhile is none.
fn packs(object: &Path) -> Vec<Found> {
    let entries = fs::read_dir(object).into_iter().flatten().flatten();
    let is_pack = |path: &PathBuf| path.as_os_str().as_encoded_bytes().ends_with(PACK_SUFFIX.as_bytes());
    let paths = entries.map(|entry| entry.path()).filter(is_pack);
    let found = |path: PathBuf| {
        let data = fs::symlink_metadata(&path).ok()?;
        Some(Found { used: data.modified().ok()?, path, bytes: data.blocks() * STAT_BLOCK_BYTES })
    };
    paths.filter_map(found).collect()
}

fn ignore_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{CHUNK_BYTES, Description, Found as Read, Object};
    use std::fs::{File, FileTimes};
    use std::time::Duration;

    const PACK_CHUNKS: u32 = 1024;

    fn object(cache: &Cache, key: &str) -> Arc<Object> {
        let len_bytes = 4 * u64::from(PACK_CHUNKS) * CHUNK_BYTES as u64;
        cache.object(key, &Description { url: key.into(), len_bytes, validator: "v".into() }).unwrap()
    }

    fn store(object: &Arc<Object>, chunk: u32) {
        object.claim(chunk..chunk + 1).unwrap().complete(vec![1; CHUNK_BYTES]);
    }

    fn has(object: &Arc<Object>, chunk: u32) -> bool {
        matches!(object.read(chunk, 0, &mut [0], || 0..0).unwrap(), Read::Stored)
    }

    fn age(cache: &Cache, key: &str, pack: u32, seconds: u64) {
        let path = cache.dir.join("v2").join(key).join(format!("{pack:05}.pack"));
        let time = SystemTime::now() - Duration::from_secs(seconds);
        File::options().write(true).open(path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_what_is_pinned_stays() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let (plain, pinned) = (object(&cache, "ab"), object(&cache, "cd"));
        for pack in 0..3 {
            store(&plain, pack * PACK_CHUNKS);
            age(&cache, "ab", pack, 1000 - u64::from(pack));
        }
        store(&pinned, 0);
        age(&cache, "cd", 0, 5000);
        cache.set_pinned("cd", true).unwrap();
        drop(plain);

        // A pack with one chunk takes a page of records more.
        cache.set_quota(3 * CHUNK_BYTES as u64 - 1).unwrap();

        let plain = object(&cache, "ab");
        assert!(!has(&plain, 0));
        assert!(has(&plain, 2 * PACK_CHUNKS) && has(&object(&cache, "cd"), 0));
        assert_eq!(cache.quota_bytes(), 3 * CHUNK_BYTES as u64 - 1);
    }

    #[test]
    fn a_pack_that_is_evicted_under_its_user_is_read_on_and_made_anew_by_the_next_store() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let object = object(&cache, "ab");
        store(&object, 5);

        evict(&directory.path().join("v2"), 0).unwrap();

        assert!(has(&object, 5));
        store(&object, 6);
        assert!(has(&object, 6));
        assert!(!has(&object, 5), "its bytes went with the pack");
    }
}
