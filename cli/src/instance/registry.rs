//! The directory of records.

use super::process::Life;
use super::{Record, is_valid_name, matches};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a record's file is called after the instance.
const ENDING: &str = ".json";

/// The instances of one user on this host.
#[derive(Debug, Clone)]
pub struct Registry {
    directory: PathBuf,
}

/// Instances could not be found or written down.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name is taken.
    #[error("instance {0} already exists")]
    Exists(String),
    /// Nothing has this name.
    #[error("no instance found with name {0}")]
    NotFound(String),
    /// The name could be a path, or nothing.
    #[error("{0} is not a valid instance name")]
    Name(String),
    /// The directory, or a file in it.
    #[error("cannot use {path} for what is known of instances")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The lock of the directory, released when dropped.
struct Lock {
    _file: File,
}

impl Registry {
    /// The registry in `directory`, which is made when something is written down.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Opens the logs of the instance `name` for appending: standard output and standard error, with their paths.
    ///
    /// # Errors
    /// [`RegistryError::Name`], [`RegistryError::File`].
    pub fn open_logs(&self, name: &str) -> Result<[(File, PathBuf); 2], RegistryError> {
        check_name(name)?;
        let logs = self.directory.join("logs");
        DirBuilder::new().recursive(true).mode(0o700).create(&logs).map_err(failed(&logs))?;
        let open = |ending: &str| {
            let path = logs.join(format!("{name}.{ending}"));
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(failed(&path))?;
            Ok((file, path))
        };
        Ok([open("out")?, open("err")?])
    }

    /// Writes a new instance down.
    ///
    /// # Errors
    /// [`RegistryError::Exists`] if another one of this name lives, [`RegistryError::Name`], [`RegistryError::File`].
    pub fn claim(&self, record: &Record) -> Result<(), RegistryError> {
        check_name(&record.name)?;
        let _lock = self.lock()?;
        match self.read(&record.name)? {
            Some(other) if self.life(&other)? != Life::Dead => Err(RegistryError::Exists(record.name.clone())),
            _ => self.write(record),
        }
    }

    /// Writes down what became of an instance that was claimed.
    ///
    /// # Errors
    /// [`RegistryError::File`].
    pub fn update(&self, record: &Record) -> Result<(), RegistryError> {
        let _lock = self.lock()?;
        self.write(record)
    }

    /// Takes the record of an instance away, unless another one has taken the name over.
    ///
    /// # Errors
    /// [`RegistryError::File`].
    pub fn remove(&self, record: &Record) -> Result<(), RegistryError> {
        let _lock = self.lock()?;
        match self.read(&record.name)? {
            Some(found) if found.process == record.process => self.delete(&record.name),
            _ => Ok(()),
        }
    }

    /// The instances that have started and live, whose names `pattern` means, by name. Dead ones are taken away.
    ///
    /// # Errors
    /// [`RegistryError::File`].
    pub fn live(&self, pattern: &str) -> Result<Vec<Record>, RegistryError> {
        let mut found = Vec::new();
        for name in self.names()?.iter().filter(|name| matches(pattern, name)) {
            let Some(record) = self.read(name)? else { continue };
            match self.life(&record)? {
                Life::Alive if record.ready => found.push(record),
                Life::Alive | Life::Unknown => {}
                Life::Dead => self.remove(&record)?,
            }
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// The living instance `name`.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::File`].
    pub fn find(&self, name: &str) -> Result<Record, RegistryError> {
        let known = if is_valid_name(name) { self.live(name)? } else { Vec::new() };
        known.into_iter().next().ok_or_else(|| RegistryError::NotFound(name.to_owned()))
    }

    fn life(&self, record: &Record) -> Result<Life, RegistryError> {
        let owner = fs::metadata(&self.directory).map_err(failed(&self.directory))?.uid();
        Ok(record.process.life(owner))
    }

    /// Names of all records, in no order.
    fn names(&self) -> Result<Vec<String>, RegistryError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.and_then(|entries| entries.collect::<io::Result<Vec<_>>>()),
        };
        let files = entries.map_err(failed(&self.directory))?.into_iter().filter_map(|entry| {
            let name = entry.file_name().to_str()?.strip_suffix(ENDING)?.to_owned();
            is_valid_name(&name).then_some(name)
        });
        Ok(files.collect())
    }

    /// A record; `None` if there is none, or none that makes sense.
    fn read(&self, name: &str) -> Result<Option<Record>, RegistryError> {
        let path = self.path(name);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.map_err(failed(&path))?,
        };
        let record: Option<Record> = serde_json::from_slice(&text).ok();
        Ok(record.filter(|record| record.name == name))
    }

    /// Writes a record, whole or not at all. The lock must be held.
    fn write(&self, record: &Record) -> Result<(), RegistryError> {
        let path = self.path(&record.name);
        let new = self.directory.join(format!("{}.new", record.name));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            fs::rename(&new, &path)
        };
        write().map_err(failed(&path))
    }

    fn delete(&self, name: &str) -> Result<(), RegistryError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> Result<Lock, RegistryError> {
        let path = self.directory.join("lock");
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(failed(&self.directory))?;
        let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(failed(&path))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                // Some filesystems of clusters have no locks: two starts of one name at one moment may then both win.
                Ok(()) | Err(rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOLCK) => {
                    return Ok(Lock { _file: file });
                }
                Err(errno) => return Err(failed(&path)(errno.into())),
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}{ENDING}"))
    }
}

fn check_name(name: &str) -> Result<(), RegistryError> {
    if is_valid_name(name) { Ok(()) } else { Err(RegistryError::Name(name.to_owned())) }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> RegistryError {
    let path = path.to_owned();
    move |source| RegistryError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Process;
    use siphon_image::open::Facts;
    use std::process::{Child, Command, Stdio};

    fn record(name: &str, pid: u32) -> Record {
        Record {
            name: name.into(),
            image: "/image.sif".into(),
            process: Process::of(pid.try_into().unwrap()).unwrap(),
            ready: true,
            facts: Facts::default(),
            home: "/home/me".into(),
            library_path: String::new(),
            as_root: false,
            overlays: Vec::new(),
            pretends_at: None,
            output: "/out".into(),
            error: "/err".into(),
        }
    }

    fn registry() -> (tempfile::TempDir, Registry) {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::new(directory.path().join("instances"));
        (directory, registry)
    }

    fn living() -> Child {
        Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    fn names(registry: &Registry, pattern: &str) -> Vec<String> {
        registry.live(pattern).unwrap().into_iter().map(|record| record.name).collect()
    }

    #[test]
    fn living_instances_are_found_by_name() {
        let (_directory, registry) = registry();
        for name in ["web2", "db", "web1"] {
            registry.claim(&record(name, std::process::id())).unwrap();
        }

        assert_eq!(names(&registry, "*"), ["db", "web1", "web2"]);
        assert_eq!(names(&registry, "web*"), ["web1", "web2"]);
        assert_eq!(registry.find("db").unwrap().name, "db");
        assert!(matches!(registry.find("web*"), Err(RegistryError::NotFound(_))));
        assert!(matches!(registry.find("../db"), Err(RegistryError::NotFound(_))));
    }

    #[test]
    fn a_name_is_free_again_when_its_process_is_gone() {
        let (_directory, registry) = registry();
        let first = living();
        let old = record("one", first.id());
        registry.claim(&old).unwrap();
        let new = record("one", std::process::id());
        assert!(matches!(registry.claim(&new), Err(RegistryError::Exists(_))));

        end(first);

        registry.claim(&new).unwrap();
        registry.remove(&old).unwrap();
        assert_eq!(registry.find("one").unwrap(), new);
    }

    #[test]
    fn a_dead_instance_is_not_listed_and_its_record_goes() {
        let (_directory, registry) = registry();
        let child = living();
        registry.claim(&record("one", child.id())).unwrap();

        end(child);

        assert_eq!(names(&registry, "*"), [""; 0]);
        assert!(!registry.path("one").exists());
    }

    #[test]
    fn an_instance_that_only_starts_has_its_name_and_is_not_listed() {
        let (_directory, registry) = registry();
        let starting = Record { ready: false, ..record("one", std::process::id()) };

        registry.claim(&starting).unwrap();

        assert_eq!(names(&registry, "*"), [""; 0]);
        assert!(matches!(registry.claim(&starting), Err(RegistryError::Exists(_))));
        registry.update(&Record { ready: true, ..starting }).unwrap();
        assert_eq!(names(&registry, "*"), ["one"]);
    }

    #[test]
    fn records_that_make_no_sense_are_passed_over() {
        let (_directory, registry) = registry();
        registry.claim(&record("good", std::process::id())).unwrap();
        fs::write(registry.path("half"), b"{\"name\": \"half\"").unwrap();
        fs::copy(registry.path("good"), registry.path("liar")).unwrap();

        assert_eq!(names(&registry, "*"), ["good"]);
        registry.claim(&record("half", std::process::id())).unwrap();
        assert_eq!(names(&registry, "*"), ["good", "half"]);
    }
}
