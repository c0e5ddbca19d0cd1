//! A stream compressed by several threads, in pieces that are members of gzip of their own: together they are a gzip file.
//!
//! ```text
//! filling thread   what is written -> digest (diff_id), pieces of 1 MiB
//! threads          piece -> member
//! caller           members, in order
//! ```
//!
//! All channels are bounded. The bytes do not depend on the number of threads.

use base16ct::lower::encode_string as hex;
use libdeflater::{CompressionLvl, Compressor};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// A piece, before it is compressed. Members know nothing of each other, which costs 1 % at this length.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces per thread that are anywhere.
const PIECES_PER_THREAD: usize = 3;

/// A layer that was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Digest of the tar stream.
    pub diff_id: String,
    /// Bytes of it.
    pub bytes: u64,
}

type Reply = Receiver<io::Result<Vec<u8>>>;

struct Job {
    piece: Vec<u8>,
    reply: SyncSender<io::Result<Vec<u8>>>,
}

/// Compresses what `fill` writes with `threads` threads, and gives it to `take`, in this thread.
///
/// # Errors
/// Those of `fill` and `take`, and if there is no memory.
pub fn compressed<E: From<io::Error> + Send>(
    threads: NonZeroUsize,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), E> + Send,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Packed, E> {
    std::thread::scope(|scope| {
        let pieces = threads.get().saturating_mul(PIECES_PER_THREAD);
        let (jobs, queue) = sync_channel::<Job>(threads.get());
        let (replies, ordered) = sync_channel::<Reply>(pieces);
        let queue = std::sync::Arc::new(Mutex::new(queue));
        for _ in 0..threads.get() {
            let queue = queue.clone();
            scope.spawn(move || compress_all(&queue));
        }
        // With the last thread the other end of `jobs` goes away.
        drop(queue);
        let filling = scope.spawn(move || {
            let mut cutter = Cutter { jobs, replies, piece: Vec::new(), hash: Sha256::new(), bytes: 0 };
            fill(&mut cutter)?;
            cutter.cut()?;
            let diff_id = format!("sha256:{}", hex(&cutter.hash.finalize()));
            Ok(Packed { diff_id, bytes: cutter.bytes })
        });
        let mut taken = Ok(());
        while let Ok(reply) = ordered.recv() {
            let member = reply.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
            taken = member.map_err(E::from).and_then(|member| take(&member));
            if taken.is_err() {
                break;
            }
        }
        // Stops the filling.
        drop(ordered);
        let filled = filling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        taken.and(filled)
    })
}

fn compress_all(queue: &Mutex<Receiver<Job>>) {
    let mut compressor = Compressor::new(CompressionLvl::default());
    loop {
        let job = queue.lock().recv();
        let Ok(Job { piece, reply }) = job else { return };
        let mut member = vec![0; compressor.gzip_compress_bound(piece.len())];
        let compressed = compressor.gzip_compress(&piece, &mut member).map_err(io::Error::other);
        // Nobody listens after an error elsewhere.
        let _unheard = reply.send(compressed.map(|length| {
            member.truncate(length);
            member
        }));
    }
}

/// Cuts what is written into pieces.
struct Cutter {
    jobs: SyncSender<Job>,
    replies: SyncSender<Reply>,
    piece: Vec<u8>,
    hash: Sha256,
    bytes: u64,
}

impl Cutter {
    fn cut(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(&mut self.piece);
        self.hash.update(&piece);
        self.bytes += piece.len() as u64;
        let (reply, receiver) = sync_channel(1);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.replies.send(receiver).map_err(|_| gone(()))?;
        self.jobs.send(Job { piece, reply }).map_err(|_| gone(()))
    }
}

impl Write for Cutter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE_BYTES - self.piece.len());
        if self.piece.capacity() == 0 {
            self.piece.reserve_exact(PIECE_BYTES);
        }
        self.piece.extend_from_slice(&bytes[..length]);
        if self.piece.len() == PIECE_BYTES {
            self.cut()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
