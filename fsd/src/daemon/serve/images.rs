//! Other images that a daemon serves beside its own, for binds out of them: one mount for all runs, read-only, in the
//! user namespace of those runs, without which the kernel would let none of them read it.
//!
//! They are mounted when the first run asks, and stay until the daemon leaves.

use crate::control::{DataImage, DataPlace, MountPointKind};
use crate::daemon::DaemonError;
use crate::errno::chain;
use crate::fs::{FileSystem, Options, Owners, Xattrs};
use crate::fuse::Mounted;
use crate::locator::{self, Data, Locator};
use crate::metrics::Counters;
use crate::sys::mounts::{self, FuseMount};
use parking_lot::Mutex;
use siphon_image::open::Format;
use siphon_image::path;
use siphon_image::tree::Kind;
use siphon_overlay::view::View;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

/// A bind most often reads one file after the other.
const WORKERS: usize = 4;

/// The images, and what all of them are mounted with.
#[derive(Debug)]
pub(super) struct Images {
    directory: PathBuf,
    owners: Owners,
    cache_bytes: Option<u64>,
    /// Held while one is opened and mounted, so that none is twice.
    mounted: Mutex<Vec<DataMount>>,
}

#[derive(Debug)]
struct DataMount {
    /// Path, version and object of the image.
    name: (String, String, Option<u32>),
    data: Data,
    place: PathBuf,
    session: Option<JoinHandle<()>>,
}

impl Images {
    /// Images that are to be mounted below `directory`, which is made with the first of them.
    pub(super) fn new(directory: PathBuf, owners: Owners, cache_bytes: Option<u64>) -> Self {
        Self { directory, owners, cache_bytes, mounted: Mutex::default() }
    }

    /// Where the files are that are asked for, and what they are. Mounts the image if nobody has asked for it before.
    pub(super) fn place(&self, image: &DataImage) -> Result<DataPlace, DaemonError> {
        let locator = Locator::parse(&image.path.display().to_string())?;
        let name = (locator.to_string(), locator.identity()?, image.id);
        let mut mounted = self.mounted.lock();
        let known = mounted.iter().position(|known| known.name == name);
        let index = match known {
            Some(index) => index,
            None => {
                let mount = self.mount(name, mounted.len())?;
                mounted.push(mount);
                mounted.len() - 1
            }
        };
        let DataMount { data, place, .. } = &mounted[index];
        let (tree, format) = (&data.image.tree, data.image.format);
        let failed = |source| locator::Error::Tree { image: image.path.display().to_string(), source };
        let found = path::resolve(tree.as_ref(), &image.inside, true).map_err(failed)?;
        let missing = || DaemonError::NotInside { image: image.path.clone(), inside: image.inside.clone() };
        let kind = match tree.attr(found.node.ok_or_else(missing)?).map_err(failed)?.kind {
            Kind::Directory => MountPointKind::Directory,
            _ => MountPointKind::File,
        };
        // The path has no link any more, so that none leads out of the image.
        let inside = found.path.strip_prefix("/").unwrap_or(&found.path);
        Ok(DataPlace { path: place.join(inside), kind, is_partition: format == Format::Sif })
    }

    fn mount(&self, name: (String, String, Option<u32>), index: usize) -> Result<DataMount, DaemonError> {
        let failed = |step| move |source: io::Error| DaemonError::Process { step, source };
        let data = locator::open_data(Path::new(&name.0), name.2, self.cache_bytes)?;
        let place = self.directory.join(index.to_string());
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&place)
            .map_err(|source| DaemonError::State { path: place.clone(), source })?;
        let view = View::new(data.image.tree.clone(), None)
            .map_err(|source| DaemonError::Layer { path: place.clone(), source })?;
        let options = Options { owners: self.owners, read_only: true, stable: true, xattrs: Xattrs::All };
        let filesystem = Arc::new(FileSystem::new(Arc::new(view), options, Arc::new(Counters::default())));
        let fuse_mount = FuseMount { source: &name.0, target: &place, read_only: true, setuid: false, devices: false };
        // As the namespace has them in which the daemon is.
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let device = fuse_mount.mount(uid, gid)?;
        let session = Mounted::new(filesystem, device, WORKERS).and_then(|mounted| {
            std::thread::Builder::new().name("fuse".to_owned()).spawn(move || {
                if let Err(error) = mounted.serve() {
                    tracing::error!("the files of an image are served no more: {error}");
                }
            })
        });
        match session {
            Ok(session) => Ok(DataMount { name, data, place, session: Some(session) }),
            Err(error) => {
                // Nobody would answer.
                let _ = mounts::detach(&place);
                Err(failed("speak to the kernel")(error))
            }
        }
    }

    /// Takes the mounts out of this namespace; those that programs have go on.
    pub(super) fn detach(&self) {
        for DataMount { place, .. } in self.mounted.lock().iter() {
            if let Err(error) = mounts::detach(place) {
                tracing::warn!("{}", chain(&error));
            }
        }
    }

    /// What serves them, to be waited for: each ends when no program has its mount any more.
    pub(super) fn wait(&self) -> Vec<JoinHandle<()>> {
        self.mounted.lock().iter_mut().filter_map(|mount| mount.session.take()).collect()
    }
}
