//! The client's side: finds the daemon, or starts it.

use super::state::{Lock, StateDirectory};
use super::{DaemonError, Joined, Layer, Placement, Spec};
use crate::control::{self, Attached, Reply, Request};
use crate::locator::Locator;
use crate::sys::processes::open_process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
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
/// callers at once, one starts it.
///
/// # Errors
/// Any [`DaemonError`].
pub fn join(spec: &Spec, runtime_dir: &Path, executable: &Path) -> Result<Joined, DaemonError> {
    let spec = with_own_layer(spec)?;
    let state = StateDirectory::of(&spec, runtime_dir)?;
    let mut attempt = 1;
    loop {
        let lock = state.create_and_lock()?;
        match attach(&state) {
            Err(DaemonError::Control(control::Error::Refused(message))) => {
                return Err(DaemonError::Start { message, is_the_machines: false });
            }
            // Nobody listens, or it died while it was asked: both are mended by a new one.
            Err(_) => start(&spec, &state, &lock, executable)?,
            joined => return joined,
        }
        // The lock is still held, so that a daemon without patience cannot leave before its first client came.
        match attach(&state) {
            Err(_) if attempt < ATTEMPTS => attempt += 1,
            joined => return joined,
        }
    }
}

/// A sandbox is its own layer, so that all runs of it, reading or writing, share one daemon. A mount in the host's
/// tree only reads, and leaves the layer to them.
fn with_own_layer(spec: &Spec) -> Result<Spec, DaemonError> {
    let mut spec = spec.clone();
    let is_run = spec.placement == Placement::InNamespace;
    if let (Locator::Sandbox(path), Layer::ReadOnly, true) = (Locator::parse(&spec.image)?, &spec.layer, is_run) {
        spec.layer = Layer::Directory(path);
    }
    Ok(spec)
}

fn attach(state: &StateDirectory) -> Result<Joined, DaemonError> {
    let socket = state.socket();
    let Reply::Attached(attached) = control::ask(&socket, &Request::Attach)? else {
        return Err(control::Error::Refused("the daemon answered something else".to_owned()).into());
    };
    let Attached { pid, root, facts, writable, other_ids } = *attached;
    let pidfd =
        open_process(pid).map_err(|source| DaemonError::Process { step: "watch the process of the daemon", source })?;
    Ok(Joined { root, session: state.session(), facts, writable, other_ids, pid, pidfd, socket })
}

fn start(spec: &Spec, state: &StateDirectory, lock: &Lock, executable: &Path) -> Result<(), DaemonError> {
    state.sweep();
    if let Layer::Directory(layer) = &spec.layer {
        free(layer, state);
    }
    state.clear()?;
    state.write_spec(spec)?;
    for path in [state.root(), state.session()] {
        DirBuilder::new().mode(0o700).create(&path).map_err(|source| DaemonError::State { path, source })?;
    }
    let log = open_log(&state.log())?;
    let result = run(spec, state, lock, executable, log);
    if result.is_err() {
        state.remove(lock)?;
    }
    result
}

/// Has daemons leave that hold `layer` for runs with other ids or of another batch job, and have none. One that cannot
/// leave keeps it, and the started daemon says so where it matters.
fn free(layer: &Path, own: &StateDirectory) {
    have_leave(layer, own.siblings());
}

/// Has daemons of the same user leave that hold `layer` and have nothing to do, for a change of the layer by other means.
/// `runtime_dir` is where daemons have their state.
pub fn release(layer: &Path, runtime_dir: &Path) {
    have_leave(layer, StateDirectory::all(runtime_dir));
}

fn have_leave(layer: &Path, daemons: Vec<StateDirectory>) {
    for other in daemons {
        let has_it = other.read_spec().is_ok_and(|spec| spec.layer == Layer::Directory(layer.into()));
        if let (true, Ok(Reply::Leaving(pid))) = (has_it, control::ask(&other.socket(), &Request::Leave)) {
            // Without such a process there is nothing to wait for.
            let Ok(process) = open_process(pid) else { continue };
            let patience = Timespec { tv_sec: LEAVE_PATIENCE_SECONDS, tv_nsec: 0 };
            let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience));
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
    /// Where the mount is, given the daemon's own mount point.
    pub(super) fn mount_point(&self, own: PathBuf) -> PathBuf {
        match &self.placement {
            Placement::InNamespace => own,
            Placement::HostMount(directory) => directory.clone(),
        }
    }
}
