//! From a specification to a served mount, in the order that the kernel demands: namespaces while there is a single
//! thread, then the image, the layer, the mount, and last the socket by which others find it.

mod layered;
mod merge;

use super::conversation::Shared;
use super::images::Images;
use super::{Server, signal_descriptor};
use crate::control::{Attached, Status};
use crate::daemon::engine::{self, Helper, LayerEngine};
use crate::daemon::state::StateDirectory;
use crate::daemon::traces::Traces;
use crate::daemon::{DaemonError, Ids, Layer, Placement, Spec};
use crate::fs::{FileSystem, Options, Owners, Xattrs};
use crate::fuse::{Mounted, Notifier};
use crate::locator::{self, Locator, Opened};
use crate::sys::mounts::FuseMount;
use crate::sys::namespaces::{self, Mapped};
use layered::{is_written_as_it_is, layer};
use merge::{discard_directory, serve_by_kernel};
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getegid, geteuid, getrlimit, setrlimit};
use siphon_image::open;
use siphon_image::tree::Tree;
use std::fs::Permissions;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;

/// A local image keeps as many workers busy as there are processors, and more than this many only wait for each other.
const MAX_LOCAL_WORKERS: usize = 8;

/// Below this, one slow read would hold up the others.
const MIN_WORKERS: usize = 4;

/// Workers of a remote image mostly wait for the network.
const REMOTE_WORKERS: usize = 16;

/// A filesystem that the kernel has mounted, and the thread that serves it.
#[derive(Debug)]
struct Serving {
    filesystem: Arc<FileSystem>,
    notifier: Notifier,
    session: JoinHandle<()>,
    /// At its end when the filesystem is not served any more.
    over: PipeReader,
}

pub(super) fn set_up(state: StateDirectory) -> Result<Server, DaemonError> {
    let failed = |step| move |source: io::Error| DaemonError::Process { step, source };
    let signals = signal_descriptor().map_err(io::Error::from).map_err(failed("block signals"))?;
    raise_descriptor_limit();
    let spec = state.read_spec()?;
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let refused = enter_namespaces(&spec, uid, gid)?;
    // The last moment at which there is surely one thread.
    let helper = Helper::start(&spec, &state);
    let owners = owners(&spec, uid, gid).map_err(failed("read the map of ids"))?;
    let locator = Locator::parse(&spec.image)?;
    let mut opened = locator::open(&locator, &spec.cache_dir, spec.cache_bytes)?;
    if is_written_as_it_is(&spec, &locator, &opened) {
        opened.unlock();
    }
    let mut layered = layer(&spec, &locator, &opened, &state)?;
    let unreadable = |source| locator::Error::Tree { image: locator.to_string(), source };
    let view = layered.view.clone();
    Tree::attr(view.as_ref(), view.root()).map_err(unreadable)?;
    // Mounting takes as long as reading what the image says of itself.
    let facts = std::thread::spawn(move || open::facts(view.as_ref()));

    let other_ids = other_ids(owners, refused);
    let root = spec.mount_point(state.root());
    let source = locator.to_string();
    // What root mounts with a layer is a disk like any other. Else, with one user, there is nobody whom a setuid program
    // could serve.
    let is_disk = spec.is_disk();
    let setuid = is_disk || (matches!(spec.ids, Ids::Root(_)) && other_ids.is_ok());
    let read_only = layered.writable.is_err();
    let fuse_mount = FuseMount { source: &source, target: &root, read_only, setuid, devices: is_disk };
    let workers = worker_count(&locator);
    let parts = std::mem::replace(&mut layered.parts, Err(String::new()));
    if let (LayerEngine::Kernel, Ok(())) = (spec.engine, &layered.writable) {
        // What our own engine left in the image for later is done now.
        let path = spec.layer.directory().unwrap_or(&root).to_owned();
        layered.view.complete().map_err(|source| DaemonError::Layer { path, source })?;
    }
    let mounts = layered.mounts;
    // What is pinned is all here.
    let far = opened.remote().is_some_and(|remote| !remote.counters().pinned);
    let by_kernel = helper.and_then(|helper| {
        let parts = parts?;
        serve_by_kernel(helper, &parts, &spec, &state, owners, &fuse_mount, (workers, far, mounts.clone()))
            .map(|serving| (parts, serving))
    });
    discard_directory(&state.memory());
    let (engine, serving, parts) = match by_kernel {
        Ok((parts, serving)) => (engine::kernel(spec.engine), serving, Some(parts)),
        Err(reason) if spec.engine == LayerEngine::Kernel && layered.writable.is_ok() => {
            return Err(DaemonError::Engine { reason });
        }
        Err(reason) => {
            let (stable, xattrs, keeps_privileges) = (layered.is_stable, Xattrs::All, keeps_privileges(&spec));
            let options = Options { owners, read_only, stable, xattrs, far, keeps_privileges };
            let filesystem = Arc::new(FileSystem::new(layered.view.clone(), options, Arc::default()));
            let device = mount(&spec, &fuse_mount)?;
            let kept = (layered.memory, mounts);
            let serving = serve(filesystem, device, workers, kept).map_err(failed("serve the filesystem"))?;
            (engine::fuse(reason), serving, None)
        }
    };
    let engine = layered.writable.is_ok().then_some(engine);
    let traces = Traces::of(&spec.cache_dir, &opened.identity);
    if serving.filesystem.opens_nothing() {
        serving.filesystem.follow(&traces.read());
    }
    if let Some(remote) = opened.remote() {
        let own = Traces::of_chunks(&spec.cache_dir, &opened.identity).read();
        remote.follow(if own.is_empty() { opened.shared_trace() } else { &own });
    }

    let facts = facts.join().map_err(|_| failed("read the image")(io::Error::other("the reader panicked")))?;
    let facts = facts.map_err(unreadable)?;

    let (woken, wake) = io::pipe().map_err(failed("make a pipe"))?;
    let attached = Attached {
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        root: root.clone(),
        facts,
        writable: layered.writable,
        other_ids,
        engine,
    };
    let status = first_status(&spec, source, root, &attached, &opened);
    let shared = Arc::new(Shared {
        view: layered.view,
        parts,
        extended: layered.extended,
        filesystem: serving.filesystem,
        notifier: serving.notifier,
        opened,
        images: Images::new(state.images(), owners, spec.cache_bytes),
        attached,
        status,
        clients: Mutex::default(),
        conversations: 0.into(),
        asked_to_leave: false.into(),
        wake,
    });
    let (listener, socket) = listen(&state)?;
    let (session, session_over) = (serving.session, serving.over);
    Ok(Server { state, spec, traces, shared, listener, socket, signals, woken, session_over, session })
}

/// Serves `filesystem` on `device`, which is mounted, in threads of its own. `kept` lives as long as they do.
fn serve<K: Send + 'static>(
    filesystem: Arc<FileSystem>,
    device: OwnedFd,
    workers: usize,
    kept: K,
) -> io::Result<Serving> {
    let mounted = Mounted::new(filesystem.clone(), device, workers)?;
    let notifier = mounted.notifier();
    let (over, end) = io::pipe()?;
    let session = std::thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        if let Err(error) = mounted.serve() {
            tracing::error!("the filesystem is served no more: {error}");
        }
        drop((end, kept));
    })?;
    Ok(Serving { filesystem, notifier, session, over })
}

/// Each open file of the layer takes a descriptor here, for all programs together: the limit that suits one program,
/// often 1024, is soon reached.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

/// Enters them, and returns why ids that were asked for do not exist there.
fn enter_namespaces(spec: &Spec, uid: u32, gid: u32) -> Result<Option<String>, DaemonError> {
    match (&spec.placement, &spec.ids) {
        (Placement::HostMount(_), _) => {}
        (Placement::InNamespace, Ids::Caller) => namespaces::enter_own_user_namespace(uid, gid)?,
        (Placement::InNamespace, Ids::Host) => namespaces::enter_own_mount_namespace()?,
        (Placement::InNamespace, Ids::Root(others)) => {
            if let Mapped::RootAlone { reason } = namespaces::enter_user_namespace_as_root(uid, gid, others)? {
                return Ok(Some(reason));
            }
        }
    }
    Ok(None)
}

/// Whom files are shown to belong to, in the namespace that was entered.
fn owners(spec: &Spec, uid: u32, gid: u32) -> io::Result<Owners> {
    match spec.ids {
        Ids::Caller => Ok(Owners::Squash { uid, gid }),
        Ids::Root(_) | Ids::Host => {
            let (users, groups) = namespaces::ids_from_zero()?;
            Ok(Owners::AsStored { users, groups })
        }
    }
}

/// Whether this process may be one that leaves setuid bits on what it writes to. The kernel asks the user namespace of the machine
/// for that (`CAP_FSETID`), so that root of one that was entered does not.
fn keeps_privileges(spec: &Spec) -> bool {
    match spec.ids {
        Ids::Host => true,
        Ids::Caller => false,
        Ids::Root(_) => !matches!(spec.placement, Placement::InNamespace),
    }
}

/// Whether there is anyone but the caller in the namespace, and if not, why.
fn other_ids(owners: Owners, refused: Option<String>) -> Result<(), String> {
    match owners {
        Owners::AsStored { users: 2.., groups: 2.. } => Ok(()),
        _ => Err(refused.unwrap_or_else(|| "this user namespace has only one id".to_owned())),
    }
}

impl Spec {
    /// Whether it is mounted as root mounts a disk: for all users of the host, and in earnest.
    fn is_disk(&self) -> bool {
        let on_host = matches!(self.placement, Placement::HostMount(_));
        on_host && self.ids == Ids::Host && matches!(self.layer, Layer::Overlay(_))
    }
}

fn mount(spec: &Spec, mount: &FuseMount<'_>) -> Result<OwnedFd, DaemonError> {
    // As the namespace that was entered has them.
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let by_fusermount = matches!(spec.placement, Placement::HostMount(_)) && uid != 0;
    Ok(if by_fusermount { mount.mount_by_fusermount()? } else { mount.mount(uid, gid)? })
}

fn worker_count(locator: &Locator) -> usize {
    if matches!(locator, Locator::Url(_) | Locator::Elsewhere(_)) {
        return REMOTE_WORKERS;
    }
    let processors = std::thread::available_parallelism().map_or(MIN_WORKERS, usize::from);
    processors.clamp(MIN_WORKERS, MAX_LOCAL_WORKERS)
}

fn first_status(spec: &Spec, image: String, mount: PathBuf, attached: &Attached, opened: &Opened) -> Status {
    let layer = match &spec.layer {
        Layer::ReadOnly => "none".to_owned(),
        Layer::Temporary => "memory".to_owned(),
        Layer::Directory(directory) | Layer::Overlay(directory) => directory.display().to_string(),
    };
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    Status {
        pid: attached.pid,
        image,
        mount,
        layer,
        writable: attached.writable.is_ok(),
        engine: attached.engine.clone(),
        started,
        clients: 0,
        image_bytes: opened.image_bytes,
        bytes_fetched: None,
        network: None,
        bytes_read: 0,
        cache_bytes: opened.cache_bytes,
        counters: Default::default(),
    }
}

/// The socket, with its device and inode number.
fn listen(state: &StateDirectory) -> Result<(UnixListener, (u64, u64)), DaemonError> {
    let path = state.socket();
    let listen = || -> io::Result<_> {
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let socket = std::fs::metadata(&path)?;
        Ok((listener, (socket.dev(), socket.ino())))
    };
    listen().map_err(|source| DaemonError::State { path: path.clone(), source })
}
