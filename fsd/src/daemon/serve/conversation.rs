//! What the daemon's threads share, and the answers to its clients.

use super::images::Images;
use crate::control::{self, Attached, Reply, Request, Status};
use crate::daemon::mount_points::{self, Extended, Places};
use crate::errno::chain;
use crate::fs::FileSystem;
use crate::fuse::Notifier;
use crate::identity;
use crate::locator::Opened;
use crate::metrics::Snapshot;
use crate::sys::descriptors;
use crate::sys::processes::open_process;
use crate::sys::seccomp::Listener;
use parking_lot::Mutex;
use siphon_image::tree::{self, Tree};
use siphon_image::{libraries, open};
use siphon_overlay::upper::Upper;
use siphon_overlay::view::View;
use std::io::{self, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What the kernel's overlayfs merges.
#[derive(Debug)]
pub(super) struct Parts {
    /// The layer, locked.
    pub(super) upper: Upper,
    pub(super) lower: Arc<dyn Tree>,
}

/// What conversations may use. The client list is the only lock, held for list operations.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) view: Arc<View>,
    /// Where the kernel merges: the view then does not know what is written.
    pub(super) parts: Option<Parts>,
    /// Below the view, where mount points are not made in a layer.
    pub(super) extended: Option<Arc<Extended>>,
    pub(super) filesystem: Arc<FileSystem>,
    pub(super) notifier: Notifier,
    pub(super) opened: Opened,
    /// Other images, for binds.
    pub(super) images: Images,
    pub(super) attached: Attached,
    /// The parts of a status that never change.
    pub(super) status: Status,
    /// Processes that use the mount, each as a pidfd.
    pub(super) clients: Mutex<Vec<Arc<OwnedFd>>>,
    pub(super) conversations: AtomicUsize,
    pub(super) asked_to_leave: AtomicBool,
    pub(super) wake: PipeWriter,
}

impl Shared {
    /// Answers one client on a thread of its own.
    pub(super) fn converse(shared: &Arc<Self>, stream: UnixStream) {
        shared.conversations.fetch_add(1, Ordering::SeqCst);
        let here = Arc::clone(shared);
        let spawned = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            here.answer(stream);
            here.conversations.fetch_sub(1, Ordering::SeqCst);
            here.wake();
        });
        if let Err(error) = spawned {
            shared.conversations.fetch_sub(1, Ordering::SeqCst);
            tracing::error!("cannot answer a client: {error}");
        }
    }

    /// Whether a client lives or is being answered.
    pub(super) fn is_in_use(&self) -> bool {
        self.conversations() > 0 || self.has_clients()
    }

    pub(super) fn has_clients(&self) -> bool {
        !self.clients.lock().is_empty()
    }

    pub(super) fn conversations(&self) -> usize {
        self.conversations.load(Ordering::SeqCst)
    }

    pub(super) fn clients(&self) -> Vec<Arc<OwnedFd>> {
        self.clients.lock().clone()
    }

    pub(super) fn remove_clients(&self, ended: impl Fn(&Arc<OwnedFd>) -> bool) {
        self.clients.lock().retain(|client| !ended(client));
    }

    fn wake(&self) {
        if let Err(error) = (&self.wake).write_all(&[0]) {
            tracing::error!("cannot wake the main thread: {error}");
        }
    }

    fn answer(&self, mut stream: UnixStream) {
        let result = control::accept(&mut stream).and_then(|(pid, request)| {
            let reply = self.reply(pid, request);
            control::send(&mut stream, &reply).map(|()| reply)
        });
        match result {
            Ok(Reply::Pretending) => pretend(stream),
            Ok(_) => {}
            Err(error) => tracing::debug!("a client went away: {error}"),
        }
    }

    fn reply(&self, pid: i32, request: Request) -> Reply {
        match request {
            Request::Attach => self.attach(pid),
            Request::MountPoints(points) => {
                let places = Places { view: &self.view, extended: self.extended.as_deref(), notifier: &self.notifier };
                let made: Result<Vec<_>, _> =
                    points.iter().map(|(path, kind)| mount_points::make(places, path, *kind)).collect();
                made.map_or_else(|error| Reply::Failed(chain(&error)), Reply::MountPoints)
            }
            Request::Image(image) => match self.images.place(&image, pid) {
                Ok(place) => Reply::Image(place),
                Err(error) => Reply::Failed(chain(&error)),
            },
            Request::Leave => self.leave(),
            Request::Pretend => Reply::Pretending,
            Request::Libraries(wanted) => match self.merged() {
                Ok(view) => Reply::Libraries(libraries::present(view.as_ref(), &wanted)),
                Err(error) => Reply::Failed(chain(&error)),
            },
            Request::Status => Reply::Status(Box::new(self.status())),
        }
    }

    /// The client waits for the reply, so that its process id cannot have gone to another process yet.
    fn attach(&self, pid: i32) -> Reply {
        let pidfd = match open_process(pid) {
            Ok(pidfd) => pidfd,
            Err(error) => return Reply::Failed(format!("cannot watch the client, process {pid}: {error}")),
        };
        let attached = match self.attached() {
            Ok(attached) => attached,
            Err(error) => return Reply::Failed(chain(&error)),
        };
        self.clients.lock().push(Arc::new(pidfd));
        Reply::Attached(Box::new(attached))
    }

    /// The main thread does it, once this conversation is over.
    fn leave(&self) -> Reply {
        if self.has_clients() {
            return Reply::Failed("there are clients".to_owned());
        }
        self.asked_to_leave.store(true, Ordering::SeqCst);
        Reply::Leaving(self.attached.pid)
    }

    /// Whether someone asked since this was last called.
    pub(super) fn take_request_to_leave(&self) -> bool {
        self.asked_to_leave.swap(false, Ordering::SeqCst)
    }

    /// What the image says of itself is read once, but anew for each client where an earlier one may have changed it.
    fn attached(&self) -> Result<Attached, tree::Error> {
        let attached = self.attached.clone();
        if attached.writable.is_err() {
            return Ok(attached);
        }
        Ok(Attached { facts: open::facts(self.merged()?.as_ref())?, ..attached })
    }

    /// What programs see now. Where the kernel merges, a view is good for what it has not looked at yet.
    fn merged(&self) -> Result<Arc<View>, tree::Error> {
        let Some(Parts { upper, lower }) = &self.parts else { return Ok(self.view.clone()) };
        let view = View::new(lower.clone(), Some(upper.try_clone()?));
        Ok(Arc::new(view.map_err(|error| tree::Error::Io(io::Error::other(error)))?))
    }

    fn status(&self) -> Status {
        let counters = Snapshot {
            requests: self.filesystem.counters().snapshot(),
            decoding: self.view.activity(),
            storage: self.opened.storage_use(),
        };
        let network = self.opened.fetched();
        Status {
            clients: self.clients.lock().len(),
            bytes_fetched: network.map(|network| network.bytes_fetched),
            network,
            bytes_read: counters.requests.bytes_read + counters.requests.bytes_read_ahead,
            counters,
            ..self.status.clone()
        }
    }
}

/// Answers the system calls of one run, on a thread of its own: it lasts as long as the run.
fn pretend(stream: UnixStream) {
    let spawned = std::thread::Builder::new().name("identity".to_owned()).spawn(move || {
        if let Err(error) = pretend_for(stream) {
            tracing::error!("the users of a run are pretended no more: {error}");
        }
    });
    if let Err(error) = spawned {
        tracing::error!("cannot pretend the users of a run: {error}");
    }
}

fn pretend_for(mut stream: UnixStream) -> io::Result<()> {
    // The client makes its mounts first.
    stream.set_read_timeout(None)?;
    // It ended instead.
    let Some(listener) = descriptors::receive(&stream)? else { return Ok(()) };
    stream.write_all(&[0])?;
    drop(stream);
    identity::supervise(&Listener::from(listener))
}
