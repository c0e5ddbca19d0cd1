//! Other images that a daemon serves beside its own, for binds out of them: one mount for all runs, read-only, in the
//! user namespace of those runs, without which the kernel would let none of them read it.
//!
//! Each is mounted when the first run asks, and goes when for a while there was no run that asked for it, nor a program
//! that such a run left in the background.

use crate::control::{DataImage, DataPlace, MountPointKind};
use crate::daemon::DaemonError;
use crate::errno::chain;
use crate::fs::{FileSystem, Options, Owners, Xattrs};
use crate::fuse::Mounted;
use crate::locator::{self, Data, Locator};
use crate::metrics::Counters;
use crate::sys::mounts::{self, FuseMount};
use crate::sys::processes::open_process;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use siphon_image::open::Format;
use siphon_image::path;
use siphon_image::tree::Kind;
use siphon_overlay::view::View;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A bind most often reads one file after the other.
const WORKERS: usize = 4;

/// The images, and what all of them are mounted with.
#[derive(Debug)]
pub(super) struct Images {
    directory: PathBuf,
    owners: Owners,
    cache_bytes: Option<u64>,
    /// Held while one is opened and mounted, so that none is twice.
    mounts: Mutex<DataMounts>,
}

#[derive(Debug, Default)]
struct DataMounts {
    present: Vec<DataMount>,
    /// What served those that are gone, each at its end or close to it.
    gone: Vec<JoinHandle<()>>,
    /// How many there have been: no two have the same directory.
    made: u64,
}

#[derive(Debug)]
struct DataMount {
    /// Path, version and object of the image.
    name: (String, String, Option<u32>),
    data: Data,
    /// Its directory, below the one of all.
    number: u64,
    /// Clients that were told of it, each as a pidfd.
    users: Vec<OwnedFd>,
    /// Since when they are gone.
    unused: Option<Instant>,
    session: JoinHandle<()>,
}

impl Images {
    /// Images that are to be mounted below `directory`, which is made with the first of them.
    pub(super) fn new(directory: PathBuf, owners: Owners, cache_bytes: Option<u64>) -> Self {
        Self { directory, owners, cache_bytes, mounts: Mutex::default() }
    }

    /// Where the files are that the process `client` asks for, and what they are. Mounts the image if nobody has asked for
    /// it before.
    pub(super) fn place(&self, image: &DataImage, client: i32) -> Result<DataPlace, DaemonError> {
        let client = open_process(client).map_err(|source| DaemonError::Process { step: "watch a client", source })?;
        let locator = Locator::parse(&image.path.display().to_string())?;
        let name = (locator.to_string(), locator.identity()?, image.id);
        let mut mounts = self.mounts.lock();
        let index = match mounts.present.iter().position(|known| known.name == name) {
            Some(index) => index,
            None => {
                let mount = self.mount(name, mounts.made)?;
                mounts.made += 1;
                mounts.present.push(mount);
                mounts.present.len() - 1
            }
        };
        let DataMount { data, number, users, unused, .. } = &mut mounts.present[index];
        users.push(client);
        *unused = None;
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
        let path = Path::new(&number.to_string()).join(inside);
        Ok(DataPlace { path, kind, is_partition: format == Format::Sif })
    }

    fn mount(&self, name: (String, String, Option<u32>), number: u64) -> Result<DataMount, DaemonError> {
        let failed = |step| move |source: io::Error| DaemonError::Process { step, source };
        let data = locator::open_data(Path::new(&name.0), name.2, self.cache_bytes)?;
        let place = self.place_of(number);
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&place)
            .map_err(|source| DaemonError::State { path: place.clone(), source })?;
        let view = View::new(data.image.tree.clone(), None)
            .map_err(|source| DaemonError::Layer { path: place.clone(), source })?;
        let options = Options {
            owners: self.owners,
            read_only: true,
            stable: true,
            xattrs: Xattrs::All,
            far: false,
            keeps_privileges: true,
        };
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
            Ok(session) => Ok(DataMount { name, data, number, users: Vec::new(), unused: None, session }),
            Err(error) => {
                // Nobody would answer.
                let _ = mounts::detach(&place);
                Err(failed("speak to the kernel")(error))
            }
        }
    }

    fn place_of(&self, number: u64) -> PathBuf {
        self.directory.join(number.to_string())
    }

    /// Lets go of those that were unused for `patience`. Returns the time until there may be another one.
    pub(super) fn let_go(&self, patience: Duration) -> Option<Duration> {
        let mut mounts = self.mounts.lock();
        mounts.gone.retain(|session| !session.is_finished());
        for mut mount in std::mem::take(&mut mounts.present) {
            if self.is_unused(&mut mount, patience) {
                self.remove(mount.number);
                mounts.gone.push(mount.session);
            } else {
                mounts.present.push(mount);
            }
        }
        let since = mounts.present.iter().filter_map(|mount| mount.unused).min()?;
        Some(patience.saturating_sub(since.elapsed()))
    }

    /// Whether it was unused for `patience`, and no program sees it.
    fn is_unused(&self, mount: &mut DataMount, patience: Duration) -> bool {
        mount.users.retain(is_alive);
        if !mount.users.is_empty() {
            return false;
        }
        let since = mount.unused.get_or_insert_with(Instant::now);
        if since.elapsed() < patience {
            return false;
        }
        let is_seen = mounts::is_seen_by_others(&self.place_of(mount.number)).unwrap_or(true);
        if is_seen {
            *since = Instant::now();
        }
        !is_seen
    }

    fn remove(&self, number: u64) {
        let place = self.place_of(number);
        let removed = mounts::detach(&place).map_err(|error| chain(&error));
        let removed = removed.and_then(|()| std::fs::remove_dir(&place).map_err(|error| error.to_string()));
        if let Err(error) = removed {
            tracing::warn!("cannot let go of {}: {error}", place.display());
        }
    }

    /// Takes the mounts out of this namespace; those that programs have go on.
    pub(super) fn detach(&self) {
        for DataMount { number, .. } in &self.mounts.lock().present {
            if let Err(error) = mounts::detach(&self.place_of(*number)) {
                tracing::warn!("{}", chain(&error));
            }
        }
    }

    /// What serves them, to be waited for: each ends when no program has its mount any more.
    pub(super) fn wait(&self) -> Vec<JoinHandle<()>> {
        let DataMounts { present, gone, .. } = std::mem::take(&mut *self.mounts.lock());
        gone.into_iter().chain(present.into_iter().map(|mount| mount.session)).collect()
    }
}

fn is_alive(process: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)), Ok(0))
}
