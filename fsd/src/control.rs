//! The daemon's socket: one request and one reply for each connection, each a line of JSON.
//!
//! Only processes of the daemon's own user, and root, are listened to. Each connection has its own thread and a time
//! limit, so that a client that says nothing keeps nobody waiting.

use crate::blob::BlobCounters;
use crate::metrics::Snapshot;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use siphon_image::libraries::Wanted;
use siphon_image::open::Facts;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the socket in a daemon's state directory.
pub(crate) const SOCKET: &str = "socket";

/// Far above the longest message: the facts of an image, with its definition file and labels.
const MAX_MESSAGE_BYTES: u64 = 16 << 20;

/// How long the daemon waits for a client's request: it is sent right after connecting.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client waits for the reply: a mount point may need directories of a remote image.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);

/// The socket could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens: there is no daemon, or it has died.
    #[error("no daemon listens at {socket}")]
    NobodyListens {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the daemon at {socket} did not answer")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The daemon could not do what was asked.
    #[error("{0}")]
    Refused(String),
}

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPointKind {
    /// A directory, made with mode 0755 if it is missing.
    Directory,
    /// Anything but a directory; an empty file with mode 0644 is made if it is missing.
    File,
}

/// Files of an image that are to be bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataImage {
    /// The image file, absolute.
    pub path: PathBuf,
    /// Which object of a SIF; the first with data if `None`.
    pub id: Option<u32>,
    /// Which file or directory in there.
    pub inside: PathBuf,
}

/// Where the files of a [`DataImage`] are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPlace {
    /// Free of links, and relative to [`crate::daemon::Joined::images`] in the daemon's mount namespace.
    pub path: PathBuf,
    /// What is there.
    pub kind: MountPointKind,
    /// Whether the image holds other things too, as a SIF does.
    pub is_partition: bool,
}

/// What a client asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    /// To be counted as a client while its process lives.
    Attach,
    /// To have places to mount on.
    MountPoints(Vec<(PathBuf, MountPointKind)>),
    /// To have the files of another image mounted, which others may have had before.
    Image(DataImage),
    /// Which of these libraries the image has itself.
    Libraries(Vec<Wanted>),
    /// How it goes.
    Status,
    /// To leave now rather than later, if nobody uses it: someone else wants its layer.
    Leave,
    /// To have the identities of a run's processes pretended: a listener for their system calls follows the reply, and
    /// one byte back when it has arrived.
    Pretend,
}

/// What the daemon answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Reply {
    Attached(Box<Attached>),
    /// Paths relative to the root, links followed.
    MountPoints(Vec<PathBuf>),
    /// Where the files are.
    Image(DataPlace),
    /// One answer for each library that was asked for.
    Libraries(Vec<bool>),
    Status(Box<Status>),
    Pretending,
    /// It will, unless a program that a container left running uses the mount; this is its process id.
    Leaving(i32),
    Failed(String),
}

/// What a client needs to know of the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Attached {
    pub(crate) pid: i32,
    pub(crate) root: PathBuf,
    pub(crate) facts: Facts,
    pub(crate) writable: Result<(), String>,
    pub(crate) other_ids: Result<(), String>,
    pub(crate) engine: Option<Engine>,
}

/// Which engine merges an image and its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// The kernel's overlayfs.
    Kernel,
    /// Our own view.
    Fuse,
}

/// The engine that serves a layer, and why this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// Which.
    pub name: EngineName,
    /// Why, as the end of a sentence.
    pub reason: String,
}

/// How a daemon goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: i32,
    /// The image, as a path or URL.
    pub image: String,
    /// Where it is mounted: in the host's tree, or in the daemon's own mount namespace.
    pub mount: PathBuf,
    /// Where writes go: `none`, `memory`, or a directory.
    pub layer: String,
    /// Whether writes are taken.
    pub writable: bool,
    /// What merges the image and the layer, and why; none without a layer.
    pub engine: Option<Engine>,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// Processes that use it.
    pub clients: usize,
    /// Bytes of the image file; 0 for a directory.
    pub image_bytes: u64,
    /// Bytes fetched from the server, for a remote image.
    pub bytes_fetched: Option<u64>,
    /// What went over the network, for a remote image, and what did not have to.
    pub network: Option<BlobCounters>,
    /// Bytes of files that the kernel was given, asked for or ahead of that.
    pub bytes_read: u64,
    /// Bytes of decoded content that are kept at most; 0 for a directory, which needs no decoding.
    pub cache_bytes: u64,
    /// All counters.
    pub counters: Snapshot,
}

/// Asks the daemon at `socket`.
pub(crate) fn ask(socket: &Path, request: &Request) -> Result<Reply, Error> {
    begin(socket, request).map(|(reply, _)| reply)
}

/// Asks, and keeps the connection for what follows the reply.
pub(crate) fn begin(socket: &Path, request: &Request) -> Result<(Reply, UnixStream), Error> {
    let broken = |source| Error::Broken { socket: socket.into(), source };
    let mut stream =
        UnixStream::connect(socket).map_err(|source| Error::NobodyListens { socket: socket.into(), source })?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT)).map_err(broken)?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT)).map_err(broken)?;
    send(&mut stream, request).map_err(broken)?;
    match receive(&mut stream).map_err(broken)? {
        Reply::Failed(message) => Err(Error::Refused(message)),
        reply => Ok((reply, stream)),
    }
}

/// Reads one request of a client that may be anyone, and returns its process id with it.
pub(crate) fn accept(stream: &mut UnixStream) -> io::Result<(i32, Request)> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let peer = getsockopt(stream, PeerCredentials)?;
    if peer.uid() != 0 && peer.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {} is not listened to", peer.uid())));
    }
    Ok((peer.pid(), receive(stream)?))
}

/// Writes one message.
pub(crate) fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_MESSAGE_BYTES)).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

/// All daemons of `runtime_dirs` that answer, in order of their start.
///
/// # Errors
/// If one of the directories exists and cannot be read.
pub fn list(runtime_dirs: &[PathBuf]) -> io::Result<Vec<Status>> {
    let mut found = Vec::new();
    for runtime_dir in runtime_dirs {
        for socket in sockets(runtime_dir)? {
            if let Ok(Reply::Status(status)) = ask(&socket, &Request::Status) {
                found.push(*status);
            }
        }
    }
    found.sort_by_key(|status| (status.started, status.pid));
    Ok(found)
}

fn sockets(runtime_dir: &Path) -> io::Result<Vec<PathBuf>> {
    // What others put there would be asked, and believed.
    if fs::metadata(runtime_dir).is_ok_and(|directory| directory.uid() != geteuid().as_raw()) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    match fs::read_dir(runtime_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path().join(SOCKET))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_arrives_with_the_process_that_sent_it() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();

        send(&mut theirs, &Request::Status).unwrap();
        let (pid, request) = accept(&mut ours).unwrap();

        assert_eq!(u32::try_from(pid).unwrap(), std::process::id());
        assert!(matches!(request, Request::Status));
    }

    #[test]
    fn half_a_message_is_an_error() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();

        theirs.write_all(b"\"Stat").unwrap();
        drop(theirs);

        assert_eq!(accept(&mut ours).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
