//! The client's side: finds the daemon, or starts it.

use super::state::{Lock, StateDirectory};
use super::{DaemonError, Joined, Layer, LayerEngine, Placement, Spec};
use crate::control::{self, Attached, Reply, Request};
use crate::locator::Locator;
use crate::source::registries;
use crate::sys::mounts;
use crate::sys::processes::open_process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many daemons are started, each dying under our hands, before that is reported.
const ATTEMPTS: u32 = 3;

/// How long a daemon may take to leave that said it would.
const LEAVE_PATIENCE_SECONDS: i64 = 2;

/// The first and only line of a started daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ready {
    /// It serves.
    Ready,
    /// It cannot, and why.
    Failed { message: String, is_the_machines: bool },
}

/// Joins the daemon for `spec`, started with `executable daemon --state DIR -- IMAGE` if there is none. Of many
/// callers at once, one starts it. Daemons have their state in the first of `runtime_dirs`, or in the next one where that
/// takes no files.
///
/// # Errors
/// Any [`DaemonError`].
pub fn join(spec: &Spec, runtime_dirs: &[PathBuf], executable: &Path) -> Result<Joined, DaemonError> {
    let spec = with_own_layer(spec)?;
    // One that was started in another place when there was no room in the first one serves on.
    let used = runtime_dirs.iter().skip(1).filter(|runtime_dir| runtime_dir.exists());
    for runtime_dir in runtime_dirs.first().into_iter().chain(used.clone()) {
        if let Some(joined) = join_writer(&spec, runtime_dir)? {
            return Ok(joined);
        }
    }
    for runtime_dir in used {
        let state = StateDirectory::of(&spec, runtime_dir)?;
        if state.is_private()
            && let Ok(joined) = attach(&state)
            && !is_unmounted(&spec, &joined)
        {
            return Ok(joined);
        }
    }
    let mut first = None;
    for runtime_dir in runtime_dirs {
        match join_or_start(&spec, &StateDirectory::of(&spec, runtime_dir)?, executable) {
            Err(error) if error.takes_no_files() => first = first.or(Some(error)),
            // Where the other place cannot be used either, the first one is what is to be mended.
            Err(DaemonError::State { .. } | DaemonError::Unsafe { .. }) if first.is_some() => break,
            joined => return joined,
        }
    }
    let nowhere =
        || DaemonError::Process { step: "find a place for the state of a daemon", source: ErrorKind::NotFound.into() };
    Err(first.unwrap_or_else(nowhere))
}

fn join_or_start(spec: &Spec, state: &StateDirectory, executable: &Path) -> Result<Joined, DaemonError> {
    let mut attempt = 1;
    loop {
        let lock = state.create_and_lock()?;
        match attach(state) {
            Err(DaemonError::Control(control::Error::Refused(message))) => {
                return Err(DaemonError::Start { message, is_the_machines: false });
            }
            Ok(joined) if !is_unmounted(spec, &joined) => return Ok(joined),
            // Nobody listens, it died while it was asked, or it serves others: all are mended by a new one.
            _ => start(spec, state, &lock, executable)?,
        }
        // The lock is still held, so that a daemon without patience cannot leave before its first client came.
        match attach(state) {
            Err(_) if attempt < ATTEMPTS => attempt += 1,
            joined => return joined,
        }
    }
}

/// Whether the daemon of a mount in the host's tree serves it no more: it was taken away. The daemon stays as long as a
/// mount namespace that was made meanwhile has a copy of the mount, and is given time to leave if it holds a layer.
fn is_unmounted(spec: &Spec, joined: &Joined) -> bool {
    let Placement::HostMount(directory) = &spec.placement else { return false };
    let is_unmounted = !mounts::is_ours(directory).unwrap_or(true);
    if is_unmounted && spec.layer != Layer::ReadOnly {
        await_end(joined.pidfd.as_fd());
    }
    is_unmounted
}

/// Waits for a process that said it would leave, or has nothing left to do, as long as it has for that.
fn await_end(process: BorrowedFd<'_>) {
    let patience = Timespec { tv_sec: LEAVE_PATIENCE_SECONDS, tv_nsec: 0 };
    let _ = poll(&mut [PollFd::from_borrowed_fd(process, PollFlags::IN)], Some(&patience));
}

/// A sandbox is its own layer, so that all runs of it, reading or writing, share one daemon. A mount in the host's
/// tree only reads, and leaves the layer to them.
fn with_own_layer(spec: &Spec) -> Result<Spec, DaemonError> {
    let mut spec = spec.clone();
    let is_run = spec.placement == Placement::InNamespace;
    if let (Locator::Sandbox(path), Layer::ReadOnly, true) = (Locator::parse(&spec.image)?, &spec.layer, is_run)
        && spec.overlays.is_empty()
    {
        spec.layer = Layer::Directory(path);
    }
    if spec.layer == Layer::ReadOnly {
        // Without a layer nothing is merged, whoever would do it.
        spec.engine = LayerEngine::Auto;
    }
    Ok(spec)
}

/// Who writes to the overlay partition of an image has it alone: whoever reads the image shares that daemon.
fn join_writer(spec: &Spec, runtime_dir: &Path) -> Result<Option<Joined>, DaemonError> {
    let is_run = spec.placement == Placement::InNamespace && spec.overlays.is_empty();
    match (Locator::parse(&spec.image)?, &spec.layer) {
        (Locator::File(path), Layer::ReadOnly) if is_run => {
            for engine in [LayerEngine::Auto, LayerEngine::Kernel, LayerEngine::Fuse] {
                let writer = Spec { layer: Layer::Overlay(path.clone()), engine, ..spec.clone() };
                let state = StateDirectory::of(&writer, runtime_dir)?;
                if state.is_private()
                    && let Ok(joined) = attach(&state)
                {
                    return Ok(Some(joined));
                }
            }
            Ok(None)
        }
        _ => Ok(None),
    }
}

fn attach(state: &StateDirectory) -> Result<Joined, DaemonError> {
    let socket = state.socket();
    let Reply::Attached(attached) = control::ask(&socket, &Request::Attach)? else {
        return Err(control::Error::Refused("the daemon answered something else".to_owned()).into());
    };
    let Attached { pid, root, facts, writable, other_ids, engine } = *attached;
    let pidfd =
        open_process(pid).map_err(|source| DaemonError::Process { step: "watch the process of the daemon", source })?;
    let (session, images) = (state.session(), state.images());
    let sandbox = match state.read_spec().map(|spec| spec.layer) {
        Ok(Layer::Directory(directory)) => Some(directory),
        _ => None,
    };
    Ok(Joined { root, sandbox, session, images, facts, writable, other_ids, engine, pid, pidfd, socket })
}

fn start(spec: &Spec, state: &StateDirectory, lock: &Lock, executable: &Path) -> Result<(), DaemonError> {
    state.sweep();
    free(spec, state);
    let result = prepare(spec, state).and_then(|log| run(spec, state, lock, executable, log));
    if result.is_err() {
        state.remove(lock)?;
    }
    result
}

/// What a daemon finds, and its log.
fn prepare(spec: &Spec, state: &StateDirectory) -> Result<File, DaemonError> {
    state.clear()?;
    state.write_spec(spec)?;
    for path in [state.root(), state.session()] {
        DirBuilder::new().mode(0o700).create(&path).map_err(|source| DaemonError::State { path, source })?;
    }
    open_log(&state.log())
}

/// Has daemons leave, if nobody uses them, that have what `spec` needs for itself: its layer, which they serve for runs with
/// other ids or of another batch job, or an image file that one writes to and the other reads. One that cannot leave
/// keeps it, and the started daemon says so where it matters.
fn free(spec: &Spec, own: &StateDirectory) {
    have_leave(own.siblings(), |other| {
        let same = spec.layer.directory().is_some() && other.layer.directory() == spec.layer.directory();
        same || spec.writes_what_is_read_by(other) || other.writes_what_is_read_by(spec)
    });
}

/// Has daemons of the same user leave that hold `layer` and have nothing to do, for a change of the layer by other means.
/// `runtime_dirs` is where daemons have their state.
pub fn release(layer: &Path, runtime_dirs: &[PathBuf]) {
    have_leave(holders(layer, runtime_dirs), |_| true);
}

/// The same for those that refuse writes to it: what kept them from writing when they were started may be over.
pub fn release_if_read_only(layer: &Path, runtime_dirs: &[PathBuf]) {
    let mut refusing = holders(layer, runtime_dirs);
    refusing.retain(|daemon| match control::ask(&daemon.socket(), &Request::Status) {
        Ok(Reply::Status(status)) => !status.writable,
        _ => false,
    });
    have_leave(refusing, |_| true);
}

/// The daemons that have `layer`.
fn holders(layer: &Path, runtime_dirs: &[PathBuf]) -> Vec<StateDirectory> {
    let all = runtime_dirs.iter().flat_map(|runtime_dir| StateDirectory::all(runtime_dir));
    all.filter(|daemon| daemon.read_spec().is_ok_and(|spec| spec.layer.directory() == Some(layer))).collect()
}

fn have_leave(daemons: Vec<StateDirectory>, in_the_way: impl Fn(&Spec) -> bool) {
    for other in daemons {
        let in_the_way = other.read_spec().is_ok_and(|spec| in_the_way(&spec));
        if let (true, Ok(Reply::Leaving(pid))) = (in_the_way, control::ask(&other.socket(), &Request::Leave)) {
            // Without such a process there is nothing to wait for.
            let Ok(process) = open_process(pid) else { continue };
            await_end(process.as_fd());
        }
    }
}

fn run(spec: &Spec, state: &StateDirectory, lock: &Lock, executable: &Path, log: File) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::Process { step: "start the daemon", source };
    // The image is on the command line for people who look at a list of processes.
    let arguments = [OsStr::new("daemon"), "--state".as_ref(), state.path().as_os_str(), "--".as_ref()];
    let mut child = Command::new(executable)
        .args(arguments)
        .arg(&spec.image)
        .envs(registries().variables())
        // Should this process be interrupted, the next one waits until the daemon is ready, and starts none beside it.
        .stdin(Stdio::from(lock.share().map_err(failed)?))
        .stdout(Stdio::piped())
        .stderr(Stdio::from(log))
        .spawn()
        .map_err(failed)?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        output.take(1 << 20).read_to_string(&mut line).map_err(failed)?;
    }
    // What was started here only started the daemon proper, and has ended by now.
    child.wait().map_err(failed)?;
    match serde_json::from_str(&line) {
        Ok(Ready::Ready) => Ok(()),
        Ok(Ready::Failed { message, is_the_machines }) => Err(DaemonError::Start { message, is_the_machines }),
        Err(_) => Err(DaemonError::Died { log: state.last_words() }),
    }
}

fn open_log(path: &PathBuf) -> Result<File, DaemonError> {
    let open = || -> io::Result<File> { OpenOptions::new().append(true).create(true).mode(0o600).open(path) };
    open().map_err(|source| DaemonError::State { path: path.clone(), source })
}

impl Spec {
    /// Whether it writes to an image file that `other` reads: readers of a directory do not mind.
    fn writes_what_is_read_by(&self, other: &Self) -> bool {
        let Layer::Overlay(written) = &self.layer else { return false };
        let is_read = other.overlays.contains(written) || Path::new(&other.image) == written;
        is_read && !written.is_dir()
    }

    /// Where the mount is, given the daemon's own mount point.
    pub(super) fn mount_point(&self, own: PathBuf) -> PathBuf {
        match &self.placement {
            Placement::InNamespace => own,
            Placement::HostMount(directory) => directory.clone(),
        }
    }
}
