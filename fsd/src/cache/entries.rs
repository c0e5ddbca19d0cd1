//! What a cache directory holds, for people: listed, and taken out one object at a time.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::packs::PACK_SUFFIX;
use super::{Cache, CacheError, DEFAULT_QUOTA_BYTES, Description, LAYOUT, Quota, pins};

/// What an object is named while it is being removed: whoever opens it anew makes its own.
const REMOVED: &str = "removed-";

/// Where the version before kept its objects.
const FORMER_LAYOUT: &str = "v1";

/// Bytes of a block in `st_blocks`, whatever the filesystem's own are (stat(2)).
pub(super) const STAT_BLOCK_BYTES: u64 = 512;

/// One object in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is known by.
    pub key: String,
    /// What it is; `None` if its record cannot be read.
    pub description: Option<Description>,
    /// Bytes that it takes on disk: only what was read is there.
    pub stored_bytes: u64,
    /// When it was first opened.
    pub created: SystemTime,
    /// Whether it is never evicted.
    pub pinned: bool,
}

impl Cache {
    /// Opens the cache in `dir` if there is one, and makes nothing.
    ///
    /// # Errors
    /// If it cannot be read, or it or what it holds belongs to another user.
    pub fn existing(dir: &Path) -> Result<Option<Self>, CacheError> {
        if !Self::is_ours(dir)? {
            return Ok(None);
        }
        Self::is_ours(&dir.join(LAYOUT))?;
        let quota = Arc::new(Quota::new(&dir.join(LAYOUT), DEFAULT_QUOTA_BYTES));
        Ok(Some(Self { dir: dir.to_owned(), quota }))
    }

    /// `false` if there is no such directory.
    fn is_ours(dir: &Path) -> Result<bool, CacheError> {
        match fs::metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(CacheError::Directory { path: dir.to_owned(), source }),
            Ok(meta) => super::check_owner(dir, &meta).map(|()| true),
        }
    }

    /// All objects, the oldest first.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, CacheError> {
        let mut entries = Vec::new();
        for name in self.names()? {
            // What a removal elsewhere takes away meanwhile is no entry any more.
            let found = name.to_str().filter(|name| is_key(name)).and_then(|key| entry(&self.objects(), key).ok());
            entries.extend(found);
        }
        entries.sort_by(|one, other| (one.created, &one.key).cmp(&(other.created, &other.key)));
        Ok(entries)
    }

    /// Takes an object out. A daemon that has it open goes on reading and storing, unseen, until it leaves.
    ///
    /// # Errors
    /// If it cannot be removed; one that is gone is no error.
    pub fn remove(&self, entry: &Entry) -> Result<(), CacheError> {
        let (path, doomed) = (self.objects().join(&entry.key), self.objects().join(removed_name(&entry.key)));
        // What a process with the same number left would be in the way.
        let moved = remove_tree(&doomed).and_then(|()| ignore_missing(fs::rename(&path, &doomed)));
        moved.and_then(|()| remove_tree(&doomed)).map_err(|source| CacheError::Directory { path, source })
    }

    /// Takes away what removals left that were interrupted, and what an earlier version of this program kept, as much of
    /// it as can be.
    ///
    /// # Errors
    /// If something cannot be removed: the first such thing.
    pub fn sweep(&self) -> Result<(), CacheError> {
        let path = self.dir.join(FORMER_LAYOUT);
        let mut first = remove_tree(&path).map_err(|source| CacheError::Directory { path, source });
        for name in self.names()? {
            if name.as_encoded_bytes().starts_with(REMOVED.as_bytes()) {
                let path = self.objects().join(name);
                let removed = remove_tree(&path).map_err(|source| CacheError::Directory { path, source });
                first = first.and(removed);
            }
        }
        first
    }

    pub(super) fn objects(&self) -> PathBuf {
        self.dir.join(LAYOUT)
    }

    fn names(&self) -> Result<Vec<OsString>, CacheError> {
        let objects = self.objects();
        let listed = match fs::read_dir(&objects) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect()),
        };
        listed.map_err(|source| CacheError::Directory { path: objects, source })
    }
}

fn entry(objects: &Path, key: &str) -> io::Result<Entry> {
    let directory = objects.join(key);
    let record = directory.join("meta.json");
    // The record is written first, and once.
    let oldest = fs::metadata(&record).or_else(|_| fs::metadata(&directory))?;
    let is_pack = |name: &OsString| name.as_encoded_bytes().ends_with(PACK_SUFFIX.as_bytes());
    let packs = fs::read_dir(&directory)?.flatten().filter(|file| is_pack(&file.file_name()));
    let stored = packs.filter_map(|pack| pack.metadata().ok());
    Ok(Entry {
        key: key.to_owned(),
        description: fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok()),
        stored_bytes: stored.map(|meta| meta.blocks() * STAT_BLOCK_BYTES).sum(),
        created: oldest.modified()?,
        pinned: pins::is_pinned(&directory),
    })
}

/// Keys are digests; nothing else in the directory is touched.
pub(super) fn is_key(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Two removals at once do not meet.
fn removed_name(key: &str) -> String {
    format!("{REMOVED}{key}-{}", std::process::id())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_dir_all(path))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{CHUNK_BYTES, Found, Object};

    fn store(cache: &Cache, key: &str, chunks: u64) -> Arc<Object> {
        let len_bytes = chunks * CHUNK_BYTES as u64;
        let description = Description { url: format!("http://host/{key}"), len_bytes, validator: "v".into() };
        let object = cache.object(key, &description).unwrap();
        let Found::Absent(claim) = object.read(0, 0, &mut [], || 0..0).unwrap() else { panic!("it is new") };
        claim.complete(vec![1; CHUNK_BYTES]);
        object
    }

    #[test]
    fn entries_say_what_is_stored_and_not_how_long_the_object_is() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        store(&cache, "ab12", 100);

        let entries = cache.entries().unwrap();

        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].description.as_ref().unwrap().url, "http://host/ab12");
        let stored = entries[0].stored_bytes;
        assert!((CHUNK_BYTES as u64..2 * CHUNK_BYTES as u64).contains(&stored), "{stored}");
    }

    #[test]
    fn a_removed_object_is_read_on_by_who_has_it_open_and_made_anew_by_others() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let open = store(&cache, "ab12", 1);
        let other = store(&cache, "cd34", 1);

        cache.remove(&cache.entries().unwrap().into_iter().find(|entry| entry.key == "ab12").unwrap()).unwrap();

        let mut byte = [0];
        assert!(matches!(open.read(0, 5, &mut byte, || 0..0), Ok(Found::Stored)));
        assert_eq!(byte, [1]);
        assert_eq!(cache.entries().unwrap().len(), 1);
        store(&cache, "ab12", 1);
        assert_eq!(cache.entries().unwrap().len(), 2);
        assert!(matches!(other.read(0, 0, &mut byte, || 0..0), Ok(Found::Stored)));
    }

    #[test]
    fn an_interrupted_removal_is_no_entry_and_is_swept_away() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        store(&cache, "ab12", 1);
        fs::rename(cache.objects().join("ab12"), cache.objects().join("removed-ab12-7")).unwrap();

        assert_eq!(cache.entries().unwrap(), []);
        cache.sweep().unwrap();

        assert_eq!(fs::read_dir(cache.objects()).unwrap().count(), 0);
    }

    #[test]
    fn the_rest_of_an_earlier_removal_by_a_process_of_this_number_is_not_in_the_way() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        store(&cache, "ab12", 1);
        let rest = cache.objects().join(removed_name("ab12"));
        fs::create_dir(&rest).unwrap();
        fs::write(rest.join("data"), "x").unwrap();

        cache.remove(&cache.entries().unwrap()[0]).unwrap();

        assert_eq!(fs::read_dir(cache.objects()).unwrap().count(), 0);
    }

    #[test]
    fn the_directory_of_objects_is_closed_to_others() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        store(&cache, "ab12", 1);
        fs::set_permissions(cache.objects(), fs::Permissions::from_mode(0o777)).unwrap();

        Cache::open(directory.path()).unwrap();

        assert_eq!(fs::metadata(cache.objects()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_that_is_not_there_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache");

        assert!(Cache::existing(&path).unwrap().is_none());
        assert!(!path.exists());
    }
}
