//! The conversation with the kernel: the greeting, and workers that each read a request, have it answered and send the answer.

use super::adaptor::{Adaptor, MAX_WRITE_BYTES, Outcome};
use super::convert::open_mode;
use super::turns::{Keen, Next, Turns};
use super::wire::{Answer, MAJOR, MAX_OVERHEAD, MINOR, Malformed, OLDEST_MINOR, Request, init, opcode};
use crate::sys::fuse_device;
use nix::libc;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use siphon_overlay::view::Ino;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

/// Requests that the kernel may have under way on its own account, such as readahead. Its default of 12 leaves the
/// workers idle while a remote image answers.
const MAX_BACKGROUND: u16 = 64;

/// What is read of the device at a time: one request.
const REQUEST_BYTES: usize = MAX_WRITE_BYTES as usize + MAX_OVERHEAD;

/// A keen worker does nothing for as many turns of a loop before it looks for a request again, so that it is not in the way of
/// who hands one in: some 300 ns.
const PAUSES: u32 = 8;

/// How many nodes wait to be forgotten at most.
const MAX_FORGOTTEN: usize = 256;

/// A connection whose first exchange is done.
#[derive(Debug)]
pub(super) struct Session {
    adaptor: Arc<Adaptor>,
    device: OwnedFd,
    workers: usize,
}

/// One that answers requests, with a descriptor of its own for the device: the answer is taken from the one that gave the request.
struct Worker<'a> {
    /// From 1 on.
    number: usize,
    adaptor: &'a Adaptor,
    device: BorrowedFd<'a>,
    turns: &'a Turns,
    request: Vec<u8>,
    answer: Answer,
    /// References that are to be given back once no request lies waiting: the last one of a removed file has its space given
    /// back, which takes longer than its removal.
    forgotten: Vec<(Ino, u64)>,
}

/// Why a worker ends.
enum End {
    /// The filesystem is mounted nowhere any more.
    Unmounted,
    Failed(io::Error),
}

impl From<Errno> for End {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NODEV => Self::Unmounted,
            other => Self::Failed(other.into()),
        }
    }
}

impl Session {
    /// Greets the kernel on `device`, an open `/dev/fuse` that is mounted already, for `workers` threads.
    ///
    /// # Errors
    /// If the kernel hangs up or speaks another protocol.
    pub(super) fn greet(mut adaptor: Adaptor, device: OwnedFd, workers: usize) -> io::Result<Self> {
        let mut bytes = vec![0; REQUEST_BYTES];
        let mut answer = Answer::default();
        loop {
            let length = receive(device.as_fd(), &mut bytes)?;
            let request = Request::parse(&bytes[..length]).map_err(malformed)?;
            if request.opcode != opcode::INIT {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel asked before it greeted"));
            }
            answer.clear();
            let agreed = agree(&mut adaptor, &request, &mut answer)?;
            send(device.as_fd(), answer.finish(request.unique, agreed.err().map_or(Ok(()), Err)))?;
            match agreed {
                Ok(true) => return Ok(Self { adaptor: Arc::new(adaptor), device, workers }),
                // It greets again, in our version.
                Ok(false) => {}
                Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }

    /// The device.
    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Answers requests until the last mount of the filesystem is gone.
    ///
    /// # Errors
    /// If a worker cannot be started or the device fails.
    pub(super) fn run(self) -> io::Result<()> {
        let further: Vec<_> = (1..self.workers).map(|_| fuse_device::clone(self.device())).collect::<Result<_, _>>()?;
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let turns = Turns::new(processors);
        thread::scope(|scope| {
            // Whatever ends this scope, nobody is to wait in it.
            let over = EndAll(&turns);
            let turns = &turns;
            let looking = thread::Builder::new().name("turns".to_owned()).spawn_scoped(scope, || turns.look_after())?;
            let devices = [self.device.as_fd()].into_iter().chain(further.iter().map(OwnedFd::as_fd));
            let mut workers = Vec::new();
            for (index, device) in devices.enumerate() {
                let adaptor = &*self.adaptor;
                let run = move || Worker::new(index + 1, adaptor, device, turns).run();
                workers.push(thread::Builder::new().name(format!("fuse-{index}")).spawn_scoped(scope, run)?);
            }
            let mut result = Ok(());
            for worker in workers {
                let ended = worker.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")));
                result = result.and(ended);
            }
            drop(over);
            let _ = looking.join();
            result
        })
    }
}

/// Ends all waiting for a turn when it goes.
struct EndAll<'a>(&'a Turns);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        self.0.end_all();
    }
}

impl<'a> Worker<'a> {
    fn new(number: usize, adaptor: &'a Adaptor, device: BorrowedFd<'a>, turns: &'a Turns) -> Self {
        let (request, answer, forgotten) = (vec![0; REQUEST_BYTES], Answer::default(), Vec::new());
        Self { number, adaptor, device, turns, request, answer, forgotten }
    }

    fn run(mut self) -> io::Result<()> {
        // Also when it panics: else who rests would do so for ever.
        let _over = EndAll(self.turns);
        loop {
            match self.take_turn() {
                Ok(()) => {}
                Err(End::Unmounted) => return Ok(()),
                Err(End::Failed(error)) => return Err(error),
            }
        }
    }

    /// Waits for a request and answers it, and those that come in close order after it.
    fn take_turn(&mut self) -> Result<(), End> {
        self.turns.wait();
        let received = receive(self.device, &mut self.request);
        self.turns.took(self.turns.now());
        let served = received.map_err(End::from).and_then(|length| self.serve(length));
        let keen = self.turns.answered(self.number, self.turns.now());
        served?;
        match keen {
            Some(keen) => self.stay_awake(keen),
            None => Ok(()),
        }
    }

    fn stay_awake(&mut self, mut keen: Keen) -> Result<(), End> {
        let flags = fcntl_getfl(self.device)?;
        fcntl_setfl(self.device, flags | OFlags::NONBLOCK)?;
        let result = self.look_for_requests(&mut keen);
        for (ino, count) in std::mem::take(&mut self.forgotten) {
            self.adaptor.forget(ino, count);
        }
        // Of a device that is gone nobody reads again.
        fcntl_setfl(self.device, flags)?;
        result
    }

    fn look_for_requests(&mut self, keen: &mut Keen) -> Result<(), End> {
        loop {
            let next = match rustix::io::read(self.device, &mut self.request[..]) {
                Ok(length) => {
                    let (may_take_long, is_waited_for) = nature(&self.request[..length]);
                    self.turns.found(keen, may_take_long, is_waited_for);
                    let served = if self.is_put_off(length) { Ok(()) } else { self.serve(length) };
                    let next = self.turns.finished(keen, self.turns.now());
                    served?;
                    next
                }
                Err(Errno::AGAIN) => {
                    match self.forgotten.pop() {
                        Some((ino, count)) => self.adaptor.forget(ino, count),
                        None => (0..PAUSES).for_each(|_| std::hint::spin_loop()),
                    }
                    self.turns.found_none(keen, self.turns.now())
                }
                Err(Errno::INTR | Errno::NOENT) => self.turns.found_none(keen, self.turns.now()),
                Err(errno) => return Err(errno.into()),
            };
            if next == Next::Wait {
                return Ok(());
            }
        }
    }

    /// Whether the request that was read is one that can be put off, and is.
    fn is_put_off(&mut self, length: usize) -> bool {
        let Ok(request) = Request::parse(&self.request[..length]) else { return false };
        if request.opcode != opcode::FORGET || self.forgotten.len() >= MAX_FORGOTTEN {
            return false;
        }
        request.fields().u64().is_ok_and(|count| {
            self.forgotten.push((request.ino, count));
            true
        })
    }

    /// Answers the request that was read.
    fn serve(&mut self, length: usize) -> Result<(), End> {
        let request = Request::parse(&self.request[..length]).map_err(|error| End::Failed(malformed(error)))?;
        let outcome = if request.opcode == opcode::DESTROY {
            self.answer.clear();
            Ok(Outcome::Answer)
        } else {
            self.adaptor.answer(&request, &mut self.answer)
        };
        if outcome != Ok(Outcome::Silence) {
            let answer = self.answer.finish(request.unique, outcome.as_ref().map(drop).map_err(|errno| *errno));
            match send(self.device, answer) {
                // The one who asked was killed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::error!("an answer was not taken: {error}"),
                Ok(()) => {}
            }
        }
        if let Ok(Outcome::Read(ino, range, with_end)) = outcome {
            self.adaptor.was_read(ino, range, with_end);
        }
        if request.opcode == opcode::DESTROY { Err(End::Unmounted) } else { Ok(()) }
    }
}

/// Whether a request may take long, and whether someone waits for its answer.
fn nature(bytes: &[u8]) -> (bool, bool) {
    let Ok(request) = Request::parse(bytes) else { return (false, true) };
    match request.opcode {
        opcode::FORGET | opcode::BATCH_FORGET | opcode::RELEASE | opcode::RELEASEDIR => (false, false),
        // A file that is to be written to may have to be copied.
        opcode::OPEN => (request.fields().i32().is_ok_and(|flags| open_mode(flags).write), true),
        // Those read the image, list, or wait for a disk.
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS | opcode::FSYNC | opcode::FSYNCDIR | opcode::FALLOCATE => {
            (true, true)
        }
        _ => (false, true),
    }
}

/// Puts the answer to a greeting together. `false` if the kernel is to greet again, an error number if it speaks another language.
fn agree(adaptor: &mut Adaptor, request: &Request<'_>, answer: &mut Answer) -> io::Result<Result<bool, i32>> {
    let mut fields = request.fields();
    let mut number = || fields.u32().map_err(malformed);
    let (major, minor) = (number()?, number()?);
    if major < MAJOR || (major == MAJOR && minor < OLDEST_MINOR) {
        tracing::error!(
            "the kernel speaks version {major}.{minor} of FUSE, and at least {MAJOR}.{OLDEST_MINOR} is needed"
        );
        return Ok(Err(libc::EPROTO));
    }
    answer.u32(MAJOR);
    answer.u32(MINOR);
    if major > MAJOR {
        answer.zeros(56);
        return Ok(Ok(false));
    }
    let (max_readahead, low) = (number()?, number()?);
    let is_extended = u64::from(low) & init::INIT_EXT != 0;
    let high = if is_extended { number()? } else { 0 };
    let agreement = adaptor.agree(minor, u64::from(high) << 32 | u64::from(low), max_readahead);
    let flags = if is_extended { agreement.flags | init::INIT_EXT } else { agreement.flags };
    answer.u32(agreement.max_readahead);
    // The lower half and the upper one, which the kernel looks at if INIT_EXT is in the lower.
    answer.u32(u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0));
    answer.u16(MAX_BACKGROUND);
    // From here on it is congested.
    answer.u16(MAX_BACKGROUND / 4 * 3);
    answer.u32(MAX_WRITE_BYTES);
    // Times are true to the nanosecond.
    answer.u32(1);
    answer.u16(u16::try_from(MAX_WRITE_BYTES.div_ceil(page_bytes())).unwrap_or(u16::MAX));
    answer.u16(0);
    answer.u32(u32::try_from(flags >> 32).unwrap_or(0));
    answer.zeros(28);
    Ok(Ok(true))
}

fn page_bytes() -> u32 {
    u32::try_from(rustix::param::page_size()).unwrap_or(4096)
}

fn malformed(error: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Waits for a request and returns its length.
fn receive(device: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match rustix::io::read(device, &mut *buffer) {
            // The one who asked was interrupted before it was read, or this thread was.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Sends an answer, or a message that nobody asked for, whole.
///
/// # Errors
/// `ENOENT` if nobody waits for it.
pub(super) fn send(device: BorrowedFd<'_>, message: &[u8]) -> io::Result<()> {
    rustix::io::write(device, message)?;
    Ok(())
}
