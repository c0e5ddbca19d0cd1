//! One layer after the other, read ahead and held against what is said of it.
//!
//! ```text
//! fetching thread      blob -> chunks, digest and length of what is stored
//! decoding thread      chunks -> chunks of the tar stream, bound on its length
//! caller               reads the tar stream
//! ```
//!
//! Both threads are the layer's own, and all channels are bounded, so that the layers that come next are read ahead into a
//! little memory and no further. A digest is known at the end: the caller has not read a layer until [`Stream::finish`] says so.
//!
//! A layer that is compressed is not digested again once it is decoded. Its own digest, which the manifest names, says that
//! these are the bytes, and nothing here is found or shared by its diff_id. The second digest took a tenth of the time.

use super::Error;
use super::decompress::{decompressed, is_compressed};
use crate::digest::Hash;
use crate::oci::blobs::Blobs;
use crate::oci::{Descriptor, Digest};
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// Bytes that go from thread to thread at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks of a layer as it is stored that wait to be decoded: what is read ahead while others are decoded.
const STORED_CHUNKS: usize = 48;
/// Decoded chunks that wait to be read.
const DECODED_CHUNKS: usize = 8;
/// How often who waits looks whether it still should.
const TICK: Duration = Duration::from_millis(100);
/// A layer may become so many times longer than it is stored: gzip cannot do more than 1032.
const MAX_RATIO: u64 = 1100;
/// What any layer may become, whatever its ratio.
const MIN_BOUND_BYTES: u64 = 1 << 30;

/// What a layer is held against.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) descriptor: Descriptor,
    /// Digest of the uncompressed stream, as the configuration has it.
    pub(super) diff_id: Digest,
}

/// The tar stream of one layer. Reading waits for what is fetched, and fails soon once it `is_cancelled`.
pub(super) struct Stream<'a> {
    chunks: Chunks,
    is_cancelled: &'a dyn Fn() -> bool,
}

type Item = Result<Vec<u8>, Error>;

impl<'a> Stream<'a> {
    /// Begins to fetch a layer. What is fetched is counted in `fetched_bytes`.
    pub(super) fn start(
        blobs: Arc<dyn Blobs>,
        expected: Expected,
        fetched_bytes: Arc<AtomicU64>,
        is_cancelled: &'a dyn Fn() -> bool,
    ) -> Self {
        let (stored, to_decode) = chunks(STORED_CHUNKS);
        let (decoded, to_read) = chunks(DECODED_CHUNKS);
        let Expected { descriptor, diff_id } = expected;
        let digest = descriptor.digest().clone();
        let bound = descriptor.size().saturating_mul(MAX_RATIO).max(MIN_BOUND_BYTES);
        // They are not waited for after an error: one may hang in a read from a network. Their channels end them.
        std::thread::spawn(move || {
            if let Err(error) = fetch(blobs.as_ref(), &descriptor, &stored, &fetched_bytes) {
                stored.fail(error);
            }
        });
        std::thread::spawn(move || {
            if let Err(error) = decode(to_decode, (&digest, &diff_id), bound, &decoded) {
                decoded.fail(error);
            }
        });
        Self { chunks: to_read, is_cancelled }
    }

    /// Reads the rest. Only then is the layer known to be what it should be.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(())
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buf)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Stream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunks.is_empty() {
            match self.chunks.receiver.recv_timeout(TICK) {
                Ok(item) => self.chunks.replace(item?),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if (self.is_cancelled)() {
                return Err(Error::cancelled().into());
            }
        }
        self.chunks.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.chunks.consume(amount);
    }
}

/// Reads a blob, and holds it against its descriptor.
fn fetch(blobs: &dyn Blobs, descriptor: &Descriptor, chunks: &Sink, fetched_bytes: &AtomicU64) -> Result<(), Error> {
    let digest = descriptor.digest();
    let mut hash = hash_like(digest)?;
    let failed = |source| Error::Blob { digest: digest.to_string(), source };
    let mut blob = blobs.open(descriptor).map_err(failed)?;
    let size = descriptor.size();
    let mut length = 0u64;
    loop {
        let chunk = chunks.filled(&mut blob).map_err(failed)?;
        let read = chunk.len();
        length = length.saturating_add(read as u64);
        if length > size || (read == 0 && length < size) {
            return Err(Error::Length { digest: digest.to_string(), expected: size, found: length });
        }
        if read == 0 {
            return check(hash, digest);
        }
        hash.update(&chunk);
        fetched_bytes.fetch_add(read as u64, Ordering::Relaxed);
        if !chunks.send(chunk) {
            return Ok(());
        }
    }
}

/// Decompresses a layer. One that is not compressed has to have its digest as its diff_id.
fn decode(mut input: Chunks, (digest, diff_id): (&Digest, &Digest), bound: u64, chunks: &Sink) -> Result<(), Error> {
    if !is_compressed(input.fill_buf()?) && digest.algorithm() == diff_id.algorithm() && digest != diff_id {
        return Err(Error::DiffId { expected: diff_id.to_string(), found: digest.to_string() });
    }
    let mut input = decompressed(input)?;
    let mut length = 0u64;
    loop {
        let chunk = chunks.filled(&mut input).map_err(Error::decoding)?;
        if chunk.is_empty() {
            return Ok(());
        }
        length = length.saturating_add(chunk.len() as u64);
        if length > bound {
            return Err(Error::Bomb(bound));
        }
        if !chunks.send(chunk) {
            return Ok(());
        }
    }
}

/// A channel of chunks, of which so many may wait.
fn chunks(waiting: usize) -> (Sink, Chunks) {
    let (sender, receiver) = sync_channel(waiting);
    let (spent, spare) = sync_channel(waiting);
    (Sink { sender, spare }, Chunks { receiver, spent, present: Vec::new(), read: 0 })
}

/// Where chunks go, and come back from when they were read: to clear memory for each anew took as long as a copy of it.
struct Sink {
    sender: SyncSender<Item>,
    spare: Receiver<Vec<u8>>,
}

impl Sink {
    /// The next chunk of `input`; an empty one at its end.
    fn filled(&self, input: &mut impl Read) -> io::Result<Vec<u8>> {
        let mut chunk = self.spare.try_recv().unwrap_or_default();
        chunk.resize(CHUNK_BYTES, 0);
        let mut filled = 0;
        while filled < chunk.len() {
            match input.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        chunk.truncate(filled);
        Ok(chunk)
    }

    /// False if nobody listens any more.
    fn send(&self, chunk: Vec<u8>) -> bool {
        self.sender.send(Ok(chunk)).is_ok()
    }

    fn fail(&self, error: Error) {
        let _nobody_listens = self.sender.send(Err(error));
    }
}

/// Chunks out of a channel as one stream.
struct Chunks {
    receiver: Receiver<Item>,
    spent: SyncSender<Vec<u8>>,
    present: Vec<u8>,
    read: usize,
}

impl Chunks {
    fn replace(&mut self, chunk: Vec<u8>) {
        // Whoever fills them may have ended, or have enough.
        let _kept = self.spent.try_send(std::mem::replace(&mut self.present, chunk));
        self.read = 0;
    }

    fn is_empty(&self) -> bool {
        self.read >= self.present.len()
    }
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buf)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.is_empty() {
            // The other end goes away when all is said.
            let Ok(item) = self.receiver.recv() else { break };
            self.replace(item?);
        }
        Ok(self.present.get(self.read..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.read = self.read.saturating_add(amount).min(self.present.len());
    }
}

/// The beginning of what `digest` is held against.
///
/// # Errors
/// [`Error::Algorithm`].
pub(in crate::oci) fn hash_like(digest: &Digest) -> Result<Hash, Error> {
    Hash::like(digest.as_ref()).ok_or_else(|| Error::Algorithm(digest.to_string()))
}

/// Holds what was hashed against `digest`.
///
/// # Errors
/// [`Error::Digest`].
pub(in crate::oci) fn check(hash: Hash, digest: &Digest) -> Result<(), Error> {
    let found = hash.finish();
    if found == digest.as_ref() { Ok(()) } else { Err(Error::Digest { expected: digest.to_string(), found }) }
}
