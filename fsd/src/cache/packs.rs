//! The files of one object: see the picture in [`crate::cache`].

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};

use super::{CHUNK_BYTES, Description};

/// Bytes of the object that one pack covers. Few files for a metadata server, and a quota of a few GiB is still kept to
/// within some percent when one of them goes.
pub(super) const PACK_BYTES: u64 = 64 << 20;
/// Chunks of one pack.
const PACK_CHUNKS: u32 = (PACK_BYTES / CHUNK_BYTES as u64) as u32;
/// The name of a pack ends so.
pub(super) const PACK_SUFFIX: &str = ".pack";
/// The bytes of one chunk's record.
const RECORD_BYTES: usize = 8;
/// The first half of a complete chunk's record. A hole in the file reads as zeros, which it must differ from.
const COMPLETE: [u8; 4] = *b"DONE";
/// Packs of one object that are open at a time: 16 GiB.
const MAX_OPEN: usize = 256;
/// A pack that is read is marked as used no more often than this, in seconds. It is what tells which to evict.
const TOUCH_SECONDS: u64 = 60;

/// The packs of one object, opened as they are needed.
#[derive(Debug)]
pub(super) struct Packs {
    dir: PathBuf,
    description: Description,
    open: Mutex<HashMap<u32, Arc<Pack>>>,
    started: Instant,
}

/// One pack.
#[derive(Debug)]
pub(super) struct Pack {
    file: File,
    /// One bit for each chunk that this process wrote, or found complete and checked.
    verified: Box<[AtomicU64]>,
    /// Seconds since [`Packs::started`], and one.
    touched: AtomicU64,
}

impl Packs {
    /// For the object in `dir`, which is made if it is missing.
    pub(super) fn open(dir: &Path, description: &Description) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        describe(dir, description)?;
        let (dir, description) = (dir.to_owned(), description.clone());
        Ok(Self { dir, description, open: Mutex::default(), started: Instant::now() })
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Fills `buf` from `start` bytes into `chunk`, which was checked by this process; `false` if it was not.
    pub(super) fn read_verified(&self, chunk: u32, start: usize, buf: &mut [u8]) -> io::Result<bool> {
        let Some(pack) = self.known(chunk).filter(|pack| pack.is_verified(chunk)) else { return Ok(false) };
        self.touch(&pack);
        pack.file.read_exact_at(buf, offset_of(chunk) + start as u64).map(|()| true)
    }

    /// All `len` bytes of `chunk`, if the disk has them and they are what was written.
    pub(super) fn read_checked(&self, chunk: u32, len: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(pack) = self.existing(chunk)? else { return Ok(None) };
        let Some(expected) = pack.checksum(chunk)? else { return Ok(None) };
        let mut bytes = vec![0; len];
        pack.file.read_exact_at(&mut bytes, offset_of(chunk))?;
        if libdeflater::crc32(&bytes) != expected {
            let url = &self.description.url;
            tracing::warn!(url, chunk, "a cached chunk fails its checksum; fetching it again");
            return Ok(None);
        }
        self.touch(&pack);
        pack.set_verified(chunk, true);
        Ok(Some(bytes))
    }

    /// Whether this process checked `chunk`.
    pub(super) fn is_verified(&self, chunk: u32) -> bool {
        self.known(chunk).is_some_and(|pack| pack.is_verified(chunk))
    }

    /// Whether the disk claims to have `chunk`.
    pub(super) fn is_recorded(&self, chunk: u32) -> bool {
        let recorded = |pack: Arc<Pack>| pack.is_verified(chunk) || matches!(pack.checksum(chunk), Ok(Some(_)));
        self.existing(chunk).ok().flatten().is_some_and(recorded)
    }

    /// The first of the chunks from `first` on that the disk does not claim to have; `end` if it has all before that.
    pub(super) fn first_absent(&self, first: u32, end: u32) -> io::Result<u32> {
        let mut chunk = first;
        while chunk < end {
            let Some(pack) = self.existing(chunk)? else { return Ok(chunk) };
            let here = (PACK_CHUNKS - chunk % PACK_CHUNKS).min(end - chunk);
            let mut records = vec![0; here as usize * RECORD_BYTES];
            // What is behind the end of the file is absent, as are the zeros of a hole.
            let read = pack.file.read_at(&mut records, record_offset(chunk))?;
            let is_complete = |record: &[u8]| record.starts_with(&COMPLETE);
            let complete = records[..read].chunks_exact(RECORD_BYTES).take_while(|record| is_complete(record)).count();
            if complete < here as usize {
                return Ok(chunk + u32::try_from(complete).expect("it is less than the chunks of a pack"));
            }
            chunk += here;
        }
        Ok(end)
    }

    /// Removes all packs. Who has one open reads on.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.open.lock().clear();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.as_os_str().as_encoded_bytes().ends_with(PACK_SUFFIX.as_bytes()) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Takes back that `chunk` was checked: the disk failed to read it.
    pub(super) fn forget(&self, chunk: u32) {
        if let Some(pack) = self.known(chunk) {
            pack.set_verified(chunk, false);
        }
        // Opened anew, should another node have taken the file away under us.
        self.open.lock().remove(&pack_of(chunk));
    }

    /// Has `chunk` be absent, for all processes.
    pub(super) fn discard(&self, chunk: u32) -> io::Result<()> {
        let Some(pack) = self.existing(chunk)? else { return Ok(()) };
        pack.set_verified(chunk, false);
        match pack.checksum(chunk)? {
            Some(_) => pack.file.write_all_at(&[0; RECORD_BYTES], record_offset(chunk)),
            None => Ok(()),
        }
    }

    /// Writes the chunks from `first` on, and then, only if all went well, that they are complete.
    pub(super) fn write(&self, first: u32, bytes: &[u8]) -> io::Result<()> {
        let (mut first, mut rest) = (first, bytes);
        while !rest.is_empty() {
            let room = (PACK_CHUNKS - first % PACK_CHUNKS) as usize * CHUNK_BYTES;
            let (here, beyond) = rest.split_at(room.min(rest.len()));
            self.write_to_one(first, here)?;
            first = (pack_of(first) + 1).saturating_mul(PACK_CHUNKS);
            rest = beyond;
        }
        Ok(())
    }

    fn write_to_one(&self, first: u32, bytes: &[u8]) -> io::Result<()> {
        let mut pack = self.existing(first)?;
        // What was evicted, or cleaned, while it was open would take what is written with it.
        if pack.as_ref().is_some_and(|pack| pack.is_gone()) {
            self.open.lock().remove(&pack_of(first));
            pack = self.existing(first)?;
        }
        let pack = match pack {
            Some(pack) => pack,
            None => self.make(pack_of(first))?,
        };
        pack.file.write_all_at(bytes, offset_of(first))?;
        let records: Vec<u8> = bytes.chunks(CHUNK_BYTES).flat_map(record_of).collect();
        pack.file.write_all_at(&records, record_offset(first))?;
        for (chunk, _) in (first..).zip(bytes.chunks(CHUNK_BYTES)) {
            pack.set_verified(chunk, true);
        }
        Ok(())
    }

    fn known(&self, chunk: u32) -> Option<Arc<Pack>> {
        self.open.lock().get(&pack_of(chunk)).cloned()
    }

    /// The pack of `chunk`, if there is one.
    fn existing(&self, chunk: u32) -> io::Result<Option<Arc<Pack>>> {
        if let Some(pack) = self.known(chunk) {
            return Ok(Some(pack));
        }
        match OpenOptions::new().read(true).write(true).open(self.path(pack_of(chunk))) {
            Ok(file) => Ok(Some(self.keep(pack_of(chunk), file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn make(&self, index: u32) -> io::Result<Arc<Pack>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = match options.open(self.path(index)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The whole object was taken out meanwhile.
                DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
                describe(&self.dir, &self.description)?;
                options.open(self.path(index))
            }
            file => file,
        };
        Ok(self.keep(index, file?))
    }

    fn keep(&self, index: u32, file: File) -> Arc<Pack> {
        let mut open = self.open.lock();
        if open.len() >= MAX_OPEN
            && let Some(oldest) = open.iter().min_by_key(|(_, pack)| pack.touched.load(Ordering::Relaxed))
        {
            let oldest = *oldest.0;
            open.remove(&oldest);
        }
        open.entry(index).or_insert_with(|| Arc::new(Pack::new(file))).clone()
    }

    fn path(&self, index: u32) -> PathBuf {
        self.dir.join(format!("{index:05}{PACK_SUFFIX}"))
    }

    /// Marks a pack as used, for whoever looks for one to evict.
    fn touch(&self, pack: &Pack) {
        let now = self.started.elapsed().as_secs() + 1;
        let before = pack.touched.load(Ordering::Relaxed);
        if before == 0 || now - before >= TOUCH_SECONDS {
            pack.touched.store(now, Ordering::Relaxed);
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            // A cache that cannot be written to is not evicted from either.
            let _ = futimens(&pack.file, &Timestamps { last_access: now, last_modification: now });
        }
    }
}

impl Pack {
    fn new(file: File) -> Self {
        let verified = (0..PACK_CHUNKS.div_ceil(u64::BITS)).map(|_| AtomicU64::new(0)).collect();
        Self { file, verified, touched: AtomicU64::new(0) }
    }

    /// Whether it has no name any more. Where the system cannot tell, it has.
    fn is_gone(&self) -> bool {
        match self.file.metadata() {
            Ok(data) => data.nlink() == 0,
            Err(error) => error.raw_os_error() == Some(rustix::io::Errno::STALE.raw_os_error()),
        }
    }

    /// The checksum of `chunk`, or `None` if it is not complete.
    fn checksum(&self, chunk: u32) -> io::Result<Option<u32>> {
        let mut record = [0; RECORD_BYTES];
        match self.file.read_exact_at(&mut record, record_offset(chunk)) {
            Ok(()) => Ok(checksum_of(record)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_verified(&self, chunk: u32) -> bool {
        // Pairs with the release below: who sees the bit sees the bytes in the file.
        let (word, bit) = self.bit(chunk);
        word.load(Ordering::Acquire) & bit != 0
    }

    fn set_verified(&self, chunk: u32, verified: bool) {
        let (word, bit) = self.bit(chunk);
        if verified {
            word.fetch_or(bit, Ordering::Release);
        } else {
            word.fetch_and(!bit, Ordering::Release);
        }
    }

    fn bit(&self, chunk: u32) -> (&AtomicU64, u64) {
        let index = chunk % PACK_CHUNKS;
        (&self.verified[(index / u64::BITS) as usize], 1 << (index % u64::BITS))
    }
}

fn pack_of(chunk: u32) -> u32 {
    chunk / PACK_CHUNKS
}

/// Byte offset in its pack.
fn offset_of(chunk: u32) -> u64 {
    u64::from(chunk % PACK_CHUNKS) * CHUNK_BYTES as u64
}

/// Records lie behind the room for all chunks.
fn record_offset(chunk: u32) -> u64 {
    PACK_BYTES + u64::from(chunk % PACK_CHUNKS) * RECORD_BYTES as u64
}

fn record_of(bytes: &[u8]) -> [u8; RECORD_BYTES] {
    let ([a, b, c, d], [e, f, g, h]) = (COMPLETE, libdeflater::crc32(bytes).to_le_bytes());
    [a, b, c, d, e, f, g, h]
}

fn checksum_of([a, b, c, d, e, f, g, h]: [u8; RECORD_BYTES]) -> Option<u32> {
    ([a, b, c, d] == COMPLETE).then(|| u32::from_le_bytes([e, f, g, h]))
}

/// Writes what the directory is about, whole or not at all.
fn describe(dir: &Path, description: &Description) -> io::Result<()> {
    let path = dir.join("meta.json");
    if path.exists() {
        return Ok(());
    }
    write_whole(&path, &serde_json::to_vec_pretty(description)?)
}

/// Writes a small file, whole or not at all, in place of one that may be there.
pub(crate) fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Several nodes may write it, with the same process ids.
    name.push(format!(".{}.{:016x}", std::process::id(), random()));
    let temporary = path.with_file_name(name);
    let mut options = OpenOptions::new();
    let written = options.write(true).create_new(true).mode(0o600).open(&temporary);
    let written = written.and_then(|mut file| {
        io::Write::write_all(&mut file, text)?;
        io::Write::write_all(&mut file, b"\n")
    });
    written.and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    })
}

/// The standard library's only source of randomness: the keys of its hash maps.
fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ())
}
