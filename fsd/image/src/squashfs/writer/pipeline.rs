//! Blocks in order, compressed by many threads, written by one.
//!
//! ```text
//! content  --jobs-->     compressing threads  --reply-->  writing thread
//!          --pieces (in order, each block with the channel that its reply comes through)-->
//! ```
//!
//! Both channels are bounded, so that memory holds a few blocks per thread. When the writing thread fails, its end of
//! `pieces` goes away and stops the reading; when the reading fails, its end does, and the other threads run dry.

use super::carry::Carried;
use super::compress::{Codec, Encoder};
use super::content::Tail;
use super::copy;
use super::known::Known;
use super::{Error, Image, Options, Progress, stored_size};
use crate::read_at::ReadAt;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;

/// Blocks per compressing thread that wait for it.
const JOBS_PER_THREAD: usize = 2;
/// Blocks per compressing thread that are anywhere between reading and writing.
const PIECES_PER_THREAD: usize = 6;

/// Where all content has come to lie.
#[derive(Debug)]
pub(super) struct Data {
    /// The full blocks of each node.
    pub(super) blocks: Vec<Blocks>,
    /// The tail of each node.
    pub(super) tails: Vec<Tail>,
    /// Start and stored size of each fragment.
    pub(super) fragments: Vec<(u64, u32)>,
    /// Where the first table can begin.
    pub(super) end: u64,
}

/// The full blocks of one file.
#[derive(Debug, Default, Clone)]
pub(super) struct Blocks {
    /// Where the first one lies, in bytes from the superblock.
    pub(super) start: u64,
    /// Stored sizes; 0 for a block of zeros.
    pub(super) sizes: Vec<u32>,
    /// Bytes in blocks of zeros.
    pub(super) hole_bytes: u64,
}

/// What the writing thread is told, in order.
pub(super) enum Piece {
    /// A full block of the present file.
    Block(Reply),
    /// A full block of the present file with this many zeros and nothing else.
    Hole(u64),
    /// The blocks since the last end are those of this node.
    FileEnd {
        /// Index of the node.
        node: usize,
    },
    /// A fragment.
    Fragment(Reply),
}

type Reply = Receiver<Result<Encoded, Error>>;

/// A block as it is stored.
pub(super) struct Encoded {
    bytes: Vec<u8>,
    uncompressed: bool,
}

struct Job {
    block: Vec<u8>,
    reply: SyncSender<Result<Encoded, Error>>,
}

/// The reading end of the pipeline.
pub(super) struct Feed {
    jobs: SyncSender<Job>,
    pieces: SyncSender<Piece>,
}

impl Feed {
    /// Sends what needs no compression.
    pub(super) fn send(&self, piece: Piece) -> Result<(), Error> {
        // The other end only goes away after an error, which is then reported in place of this one.
        self.pieces.send(piece).map_err(|_| Error::Cancelled)
    }

    /// Sends a block to be compressed, and to be written as the `piece` of its reply.
    pub(super) fn compress(&self, block: Vec<u8>, piece: impl FnOnce(Reply) -> Piece) -> Result<(), Error> {
        let (reply, receiver) = sync_channel(1);
        self.jobs.send(Job { block, reply }).map_err(|_| Error::Cancelled)?;
        self.send(piece(receiver))
    }
}

/// What is taken over from a base image, and that image's bytes.
pub(super) struct Source<'a> {
    pub(super) carried: Carried,
    pub(super) base: Option<&'a dyn ReadAt>,
}

/// Writes the content of all files: what is taken over from a base at one end, and what is new behind it, at the same time.
/// What is new comes from `read`, which sends it down the feed and returns the tail of each node.
pub(super) fn write_data(
    source: Source<'_>,
    image: Image<'_>,
    codec: Codec,
    options: &Options,
    progress: &Progress,
    read: impl FnOnce(&Carried, &Feed) -> Result<Vec<Tail>, Error>,
) -> Result<Data, Error> {
    let threads = options.threads.get();
    let Source { mut carried, base } = source;
    let (blocks, fragments, end) = (std::mem::take(&mut carried.blocks), carried.fragments.clone(), carried.end);
    let encoders = (0..threads).map(|_| codec.encoder()).collect::<Result<Vec<_>, _>>()?;
    std::thread::scope(|scope| {
        let (jobs, queue) = sync_channel(threads.saturating_mul(JOBS_PER_THREAD));
        let (pieces, ordered) = sync_channel(threads.saturating_mul(PIECES_PER_THREAD));
        let queue = Arc::new(Mutex::new(queue));
        for encoder in encoders {
            let queue = Arc::clone(&queue);
            scope.spawn(move || compress_all(&queue, encoder));
        }
        drop(queue);
        let writer = BlockWriter::new(blocks, fragments, image, end, progress);
        let writer = scope.spawn(move || writer.run(&ordered));
        let copies = &carried.pieces;
        let copier = scope.spawn(move || match base {
            Some(base) => copy::copy(base, copies, image, progress).inspect_err(|_| progress.stop()),
            None => Ok(()),
        });
        let feed = Feed { jobs, pieces };
        let tails = read(&carried, &feed);
        drop(feed);
        let written = join(writer);
        if written.is_err() || tails.is_err() {
            progress.stop();
        }
        match (join(copier), written, tails) {
            (Ok(()), Ok(BlockWriter { blocks, fragments, position: end, .. }), Ok(tails)) => {
                Ok(Data { blocks, tails, fragments, end })
            }
            (copied, written, tails) => {
                // Whoever fails has the others stop: what made them stop is told, and not that they did.
                let errors = [copied.err(), written.err(), tails.err()].into_iter().flatten();
                Err(errors.min_by_key(|error| matches!(error, Error::Cancelled)).unwrap_or(Error::Cancelled))
            }
        }
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn compress_all(queue: &Mutex<Receiver<Job>>, mut encoder: Encoder) {
    loop {
        let job = queue.lock().recv();
        let Ok(Job { block, reply }) = job else { return };
        // Nobody listens to the reply after an error elsewhere.
        let _unheard = reply.send(compress(&mut encoder, block));
    }
}

fn compress(encoder: &mut Encoder, block: Vec<u8>) -> Result<Encoded, Error> {
    let compressed = encoder.encode(&block)?.map(<[u8]>::to_vec);
    let uncompressed = compressed.is_none();
    Ok(Encoded { bytes: compressed.unwrap_or(block), uncompressed })
}

/// The writing end of the pipeline.
struct BlockWriter<'a> {
    image: Image<'a>,
    progress: &'a Progress,
    position: u64,
    present: Blocks,
    known: Known,
    blocks: Vec<Blocks>,
    fragments: Vec<(u64, u32)>,
}

impl<'a> BlockWriter<'a> {
    fn new(
        blocks: Vec<Blocks>,
        fragments: Vec<(u64, u32)>,
        image: Image<'a>,
        start: u64,
        progress: &'a Progress,
    ) -> Self {
        let present = Blocks { start, ..Blocks::default() };
        Self { image, progress, position: start, present, known: Known::default(), blocks, fragments }
    }

    fn run(mut self, ordered: &Receiver<Piece>) -> Result<Self, Error> {
        while let Ok(piece) = ordered.recv() {
            match piece {
                Piece::Block(reply) => {
                    let size = self.append(&take(&reply)?)?;
                    self.present.sizes.push(size);
                }
                Piece::Hole(bytes) => {
                    self.present.hole_bytes += bytes;
                    self.present.sizes.push(0);
                }
                Piece::FileEnd { node } => self.end_file(node)?,
                Piece::Fragment(reply) => {
                    let start = self.position;
                    let size = self.append(&take(&reply)?)?;
                    self.fragments.push((start, size));
                    self.present.start = self.position;
                }
            }
        }
        Ok(self)
    }

    /// Writes a block and returns its stored size.
    fn append(&mut self, encoded: &Encoded) -> Result<u32, Error> {
        self.image.write_at(&encoded.bytes, self.position)?;
        self.position += encoded.bytes.len() as u64;
        self.progress.bytes_written.fetch_add(encoded.bytes.len() as u64, Ordering::Relaxed);
        Ok(stored_size(encoded.bytes.len(), encoded.uncompressed))
    }

    /// Files the present file's blocks; if an earlier file has the same ones, the next file overwrites these.
    fn end_file(&mut self, node: usize) -> Result<(), Error> {
        let mut blocks = std::mem::take(&mut self.present);
        if let Some(start) = self.known.find(&blocks, self.position, self.image)? {
            self.position = blocks.start;
            blocks.start = start;
        }
        if node >= self.blocks.len() {
            self.blocks.resize_with(node + 1, Blocks::default);
        }
        self.blocks[node] = blocks;
        self.present.start = self.position;
        Ok(())
    }
}

fn take(reply: &Reply) -> Result<Encoded, Error> {
    // Without a reply the compressing thread panicked, and the scope passes that on whatever is returned here.
    reply.recv().unwrap_or(Err(Error::Cancelled))
}
