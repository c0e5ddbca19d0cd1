//! Layers of earlier builds: what a stage's sections came to, by a digest of everything that they depend on.
//!
//! ```text
//! BUILDS/KEY/layer         the layer, which nobody writes to any more
//! BUILDS/KEY/note.json     what it is
//! BUILDS/failed-KEY/layer  what a %post that failed has left, by the digest of what came before it
//! BUILDS/empty             the base of images that have none
//! BUILDS/lock              held by each build for as long as it lives, together with others; alone by who clears away
//! ```

use super::job::Job;
use super::workspace::Workspace;
use anyhow::Context;
use base16ct::lower::encode_string as hex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Where layers are kept, below the cache.
const BUILDS: &str = "builds";
const LOCK: &str = "lock";
const NOTE: &str = "note.json";
const LAYER: &str = "layer";
const FAILED: &str = "failed-";
/// What nobody used for so long is not kept.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What a kept layer is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Note {
    /// Mount points in it that its runs made, the outermost first.
    pub(super) missing: Vec<PathBuf>,
    /// What its making took, in seconds.
    pub(super) seconds: f64,
    /// The recipe that it was made for first.
    #[serde(default)]
    pub(super) recipe: String,
}

/// The directory of kept layers.
#[derive(Debug)]
pub(super) struct Keep {
    directory: PathBuf,
    /// Whether layers are taken from it, and left in it.
    is_on: bool,
    resumes: bool,
    /// The recipe that is built.
    recipe: String,
    _lock: File,
}

/// Where layers are made and kept.
pub(super) fn directory(cache_dir: &Path) -> PathBuf {
    cache_dir.join(BUILDS)
}

impl Keep {
    pub(super) fn new(directory: &Path, is_on: bool, resumes: bool, recipe: &str) -> anyhow::Result<Self> {
        let failed = || format!("cannot build in {}", directory.display());
        let directory = directory.canonicalize().with_context(failed)?;
        let lock =
            File::options().read(true).create(true).append(true).open(directory.join(LOCK)).with_context(failed)?;
        locked(flock(&lock, FlockOperation::LockShared)).with_context(failed)?;
        Ok(Self { directory, is_on, resumes, recipe: recipe.to_owned(), _lock: lock })
    }

    /// The base of images that have none.
    pub(super) fn empty(&self) -> anyhow::Result<PathBuf> {
        let path = self.directory.join("empty");
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// The layer of this digest.
    pub(super) fn find(&self, key: Option<&str>) -> Option<(PathBuf, Note)> {
        let directory = self.directory.join(key.filter(|_| self.is_on)?);
        let note = std::fs::read(directory.join(NOTE)).ok()?;
        let note = serde_json::from_slice(&note).ok()?;
        let layer = directory.join(LAYER);
        // Who used it is the last to be cleared away.
        let _ = std::fs::File::open(directory.join(NOTE)).and_then(|file| file.set_modified(SystemTime::now()));
        layer.is_dir().then_some((layer, note))
    }

    /// Leaves a layer for later builds, and returns where it now is: the place that it had, where it is not kept.
    pub(super) fn store(&self, key: Option<&str>, layer: &Path, note: &Note) -> anyhow::Result<PathBuf> {
        let Some(key) = key.filter(|_| self.is_on) else { return Ok(layer.to_owned()) };
        let directory = self.directory.join(key);
        let place = directory.join(LAYER);
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot keep {}", directory.display()))?;
        if place.exists() {
            // Another build of the same was faster.
            return Ok(layer.to_owned());
        }
        match std::fs::rename(layer, &place) {
            Ok(()) => {}
            Err(error) => {
                tracing::info!("the layer is not kept: {error}");
                return Ok(layer.to_owned());
            }
        }
        let note = Note { recipe: self.recipe.clone(), ..note.clone() };
        std::fs::write(directory.join(NOTE), serde_json::to_vec(&note)?)?;
        Ok(place)
    }

    /// Leaves a copy of a layer for later builds.
    pub(super) fn store_copy(
        &self,
        workspace: &Workspace<'_>,
        key: Option<&str>,
        layer: &Path,
        note: &Note,
    ) -> anyhow::Result<()> {
        if key.is_none() || !self.is_on {
            return Ok(());
        }
        let copy = layer.with_extension("copy");
        workspace.step(&Job::Copy { from: layer.to_owned(), to: copy.clone() })?;
        self.store(key, &copy, note)?;
        Ok(())
    }

    /// Where the layer of a failed `%post` is, if there is one and it is wanted.
    pub(super) fn failed(&self, key: &str) -> Option<PathBuf> {
        let layer = self.directory.join(format!("{FAILED}{key}")).join(LAYER);
        (self.resumes && layer.is_dir()).then_some(layer)
    }

    /// Leaves the layer of a failed `%post` for whoever looks at it.
    pub(super) fn store_failed(&self, workspace: &Workspace<'_>, key: &str, layer: &Path) -> anyhow::Result<PathBuf> {
        let directory = self.directory.join(format!("{FAILED}{key}"));
        self.forget_failed(workspace, key)?;
        std::fs::create_dir_all(&directory)?;
        let place = directory.join(LAYER);
        std::fs::rename(layer, &place).with_context(|| format!("cannot keep {}", layer.display()))?;
        let note = Note { recipe: self.recipe.clone(), ..Note::default() };
        std::fs::write(directory.join(NOTE), serde_json::to_vec(&note)?)?;
        Ok(place)
    }

    /// Takes away what a failed `%post` left, now that it has succeeded or failed anew.
    pub(super) fn forget_failed(&self, workspace: &Workspace<'_>, key: &str) -> anyhow::Result<()> {
        let directory = self.directory.join(format!("{FAILED}{key}"));
        if directory.exists() {
            workspace.step(&Job::Remove { paths: vec![directory] })?;
        }
        Ok(())
    }

    /// Takes away what nobody used for long.
    pub(super) fn prune(&self, workspace: &Workspace<'_>) -> anyhow::Result<()> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let is_old = |path: &PathBuf| {
            let used = std::fs::metadata(path.join(NOTE)).or_else(|_| std::fs::metadata(path));
            used.and_then(|found| found.modified()).is_ok_and(|time| time.elapsed().is_ok_and(|age| age > MAX_AGE))
        };
        let old: Vec<_> = entries.map(|entry| entry.path()).filter(|path| is_ours(path)).filter(is_old).collect();
        if !old.is_empty() {
            workspace.step(&Job::Remove { paths: old })?;
        }
        Ok(())
    }
}

/// Whether a directory is that of a layer, by its name.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let key = name.strip_prefix(FAILED).unwrap_or(&name);
    key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Some file systems, such as Lustre as it is often mounted, have no locks: there nobody is waited for.
pub(super) fn locked(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => Ok(()),
        other => other,
    }
}

/// A layer that builds have left, for `siphon cache`.
#[derive(Debug)]
pub struct KeptLayer {
    /// Its name, which is that of its directory.
    pub name: String,
    /// The recipe that it was made for first.
    pub recipe: String,
    /// Bytes of storage that it takes.
    pub bytes: u64,
    /// When it was made.
    pub made: SystemTime,
    path: PathBuf,
}

/// All layers that builds have left below the cache directory, by their names. Reads sizes as root of a user namespace where
/// there is anything, since others than the caller may own what is in a layer.
///
/// # Errors
/// If the directory is there and cannot be read.
pub fn kept_layers(cache_dir: &Path) -> anyhow::Result<Vec<KeptLayer>> {
    let directory = directory(cache_dir);
    let context = || format!("cannot read {}", directory.display());
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(context)?,
    };
    let mut paths: Vec<_> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>().with_context(context)?;
    paths.retain(|path| is_ours(path));
    paths.sort();
    if !paths.is_empty() {
        super::own_what_is_ours();
    }
    let kept = paths.into_iter().map(|path| {
        let note: Option<Note> =
            std::fs::read(path.join(NOTE)).ok().and_then(|note| serde_json::from_slice(&note).ok());
        let made = std::fs::metadata(&path).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        KeptLayer {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            recipe: note.map(|note| note.recipe).unwrap_or_default(),
            bytes: super::stage::size(&path),
            made,
            path,
        }
    });
    Ok(kept.collect())
}

/// Keeps builds from beginning, for as long as it lives, so that layers can be removed.
#[derive(Debug)]
pub struct NoBuilds(#[expect(dead_code, reason = "it is held")] File);

/// `None` while a build is under way.
///
/// # Errors
/// If the lock cannot be opened.
pub fn between_builds(cache_dir: &Path) -> anyhow::Result<Option<NoBuilds>> {
    let path = directory(cache_dir).join(LOCK);
    let lock = File::options().read(true).create(true).append(true).open(&path);
    let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
    let is_alone = locked(flock(&lock, FlockOperation::NonBlockingLockExclusive)).is_ok();
    Ok(is_alone.then_some(NoBuilds(lock)))
}

impl NoBuilds {
    /// Removes a layer.
    ///
    /// # Errors
    /// If something of it stays.
    pub fn remove(&self, layer: &KeptLayer) -> anyhow::Result<()> {
        super::job::remove(&layer.path)
    }
}

/// A digest that grows by what a stage depends on, each part with its length.
#[derive(Debug, Clone)]
pub(super) struct Key(Sha256);

impl Key {
    pub(super) fn new() -> Self {
        let key = Self(Sha256::new());
        key.and("siphon build 1")
    }

    #[must_use]
    pub(super) fn and(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    pub(super) fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    pub(super) fn text(&self) -> String {
        hex(&self.0.clone().finalize())
    }
}
