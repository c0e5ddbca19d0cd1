//! The files of one object: see the picture in [`crate::cache`].

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use super::{CHUNK_BYTES, Description};

/// The bytes of one chunk's record in `present`.
const RECORD_BYTES: usize = 8;
/// The first half of a complete chunk's record. A hole in the file reads as zeros, which it must differ from.
const COMPLETE: [u8; 4] = *b"DONE";

/// The open files of one object.
#[derive(Debug)]
pub(super) struct Files {
    data: File,
    present: File,
}

impl Files {
    /// Opens the files in `dir`, making what is missing.
    pub(super) fn open(dir: &Path, description: &Description) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        describe(dir, description)?;
        let open = |name| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join(name))
        };
        Ok(Self { data: open("data")?, present: open("present")? })
    }

    /// Fills `buf` from `start_bytes` into `chunk`.
    pub(super) fn read(&self, chunk: u32, start_bytes: usize, buf: &mut [u8]) -> io::Result<()> {
        self.data.read_exact_at(buf, offset_of(chunk) + start_bytes as u64)
    }

    /// The checksum of `chunk`, or `None` if it is not complete.
    pub(super) fn checksum(&self, chunk: u32) -> io::Result<Option<u32>> {
        let mut record = [0; RECORD_BYTES];
        match self.present.read_exact_at(&mut record, record_offset(chunk)) {
            Ok(()) => Ok(checksum_of(record)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the chunks from `first` on, and then, only if all went well, that they are complete.
    pub(super) fn write(&self, first: u32, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, offset_of(first))?;
        let records: Vec<u8> = bytes.chunks(CHUNK_BYTES).flat_map(record_of).collect();
        self.present.write_all_at(&records, record_offset(first))
    }
}

/// The checksum of a chunk's bytes.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    libdeflater::crc32(bytes)
}

fn offset_of(chunk: u32) -> u64 {
    u64::from(chunk) * CHUNK_BYTES as u64
}

fn record_offset(chunk: u32) -> u64 {
    u64::from(chunk) * RECORD_BYTES as u64
}

fn record_of(bytes: &[u8]) -> [u8; RECORD_BYTES] {
    let ([a, b, c, d], [e, f, g, h]) = (COMPLETE, checksum(bytes).to_le_bytes());
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
    let temporary = dir.join(format!("meta.json.{}", std::process::id()));
    let mut text = serde_json::to_vec_pretty(description)?;
    text.push(b'\n');
    fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path)).inspect_err(|_| {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    })
}
