//! Open files.

use super::copying::{Need, WHOLE};
use super::spot::Spot;
use super::state::Node;
use super::{Ino, Layer, OpenFile, OpenMode, View};
use crate::error::Error;
use rustix::fs::{self, FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::Kind;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

/// `lseek(2)`'s numbers, the same on every architecture.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

impl View {
    /// Opens a regular file, which is copied up first if it is to be written to.
    ///
    /// # Errors
    /// `EISDIR` and `EINVAL` for what is no file, `EROFS`, or what the layer or the image says.
    pub fn open(&self, ino: Ino, mode: OpenMode) -> Result<OpenFile, Error> {
        if mode.write || mode.truncate {
            self.layer()?;
            self.check_file(ino)?;
            self.copy_up(ino, if mode.truncate { Need::Content(0) } else { WHOLE })?;
        } else {
            self.repair(ino)?;
        }
        self.open_ready(ino, mode)
    }

    fn check_file(&self, ino: Ino) -> Result<(), Error> {
        match self.layer()?.state.read().node(ino)?.kind {
            Kind::File => Ok(()),
            Kind::Directory => Err(Errno::ISDIR.into()),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Opens a file that needs no copying.
    fn open_ready(&self, ino: Ino, mode: OpenMode) -> Result<OpenFile, Error> {
        let writable = mode.write || mode.truncate;
        let mut file =
            OpenFile { ino, writable, lower: None, copied: None, upper: OnceLock::new(), in_place: OnceLock::new() };
        let Some(layer) = &self.layer else {
            file.lower = Some(self.lower_of(ino)?);
            return Ok(file);
        };
        let mut state = layer.state.write();
        let Some(node) = state.nodes.get_mut(&ino) else {
            file.lower = Some(self.lower_of(ino)?);
            return Ok(file);
        };
        match node.kind {
            Kind::File => {}
            Kind::Directory => return Err(Errno::ISDIR.into()),
            _ => return Err(Errno::INVAL.into()),
        }
        file.copied = Some(node.is_copied_flag());
        file.lower = node.lower;
        let has_content = !node.stub;
        if let (Some(spot), true) = (state.spot(&layer.upper, ino)?, has_content) {
            let opened = open_at(&spot, writable, mode.append_flag())?;
            if mode.truncate {
                fs::ftruncate(&opened, 0)?;
            }
            file.upper.get_or_init(|| opened);
        }
        Ok(file)
    }

    /// The layer's file, if the content is there by now.
    fn upper_file<'a>(&self, file: &'a OpenFile) -> Result<Option<&'a File>, Error> {
        if let Some(upper) = file.upper.get() {
            return Ok(Some(upper));
        }
        match (&self.layer, &file.copied) {
            (Some(layer), Some(copied)) if copied.load(Ordering::Acquire) => {
                let state = layer.state.read();
                let opened =
                    open_at(&state.spot(&layer.upper, file.ino)?.ok_or(Errno::STALE)?, false, OFlags::empty())?;
                drop(state);
                Ok(Some(file.upper.get_or_init(|| opened)))
            }
            _ => Ok(None),
        }
    }

    /// Reads from `offset` bytes into `buf` and returns how many bytes were read, fewer than asked for only at the end.
    ///
    /// # Errors
    /// What the layer or the image says.
    pub fn read(&self, file: &OpenFile, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let Some(upper) = self.upper_file(file)? else {
            return Ok(self.lower.read(file.lower.ok_or(Errno::STALE)?, offset, buf)?);
        };
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(upper, &mut buf[done..], offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    /// Up to `count` files of 1 to `max_bytes` that are likely to be read after `ino` by who reads one after the other,
    /// with their lengths. None where a layer may hold others.
    pub fn files_after(&self, ino: Ino, count: usize, max_bytes: u64) -> Vec<(Ino, u64)> {
        match (&self.layer, self.lower_of(ino)) {
            (None, Ok(node)) => {
                let files = self.lower.files_after(node, count, max_bytes);
                files.into_iter().map(|(node, bytes)| (self.ino_of(node), bytes)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Has the image decode these ranges of bytes of files, which are likely to be read next.
    pub fn decode_ahead(&self, ranges: &[(Ino, Range<u64>)]) {
        let lower = |(ino, range): &(Ino, Range<u64>)| Some((self.lower_of(*ino).ok()?, range.clone()));
        self.lower.prepare(&ranges.iter().filter_map(lower).collect::<Vec<_>>());
    }

    /// The bytes of the file `ino` around `offset` that the image has decoded in memory. None where a layer may hold others.
    pub fn decoded_around(&self, ino: Ino, offset: u64) -> Option<Range<u64>> {
        match (&self.layer, self.lower_of(ino)) {
            (None, Ok(node)) => self.lower.decoded_around(node, offset),
            _ => None,
        }
    }

    /// Has the image read or fetch what holds these ranges, which will be read soon, in long pieces.
    pub fn fetch_ahead(&self, ranges: &[(Ino, Range<u64>)]) {
        let lower = |(ino, range): &(Ino, Range<u64>)| Some((self.lower_of(*ino).ok()?, range.clone()));
        self.lower.fetch_ahead(&ranges.iter().filter_map(lower).collect::<Vec<_>>());
    }

    /// Writes all of `data` at `offset` bytes, or at the end if the file was opened to append.
    ///
    /// # Errors
    /// `EBADF` if it was not opened for writing, or what the layer's filesystem says: then some of it may be written.
    pub fn write(&self, file: &OpenFile, offset: u64, data: &[u8]) -> Result<usize, Error> {
        write_all(written(file)?, offset, data)
    }

    /// Writes `data` at `offset` bytes, where a mapping of the file was changed, also if it was opened to append.
    ///
    /// # Errors
    /// As [`View::write`].
    pub fn write_mapped(&self, file: &OpenFile, offset: u64, data: &[u8]) -> Result<usize, Error> {
        let upper = written(file)?;
        if !fs::fcntl_getfl(upper)?.contains(OFlags::APPEND) {
            return write_all(upper, offset, data);
        }
        let in_place = match file.in_place.get() {
            Some(known) => known,
            None => {
                let opened = host::reopen(upper.as_fd(), OFlags::WRONLY)?.into();
                file.in_place.get_or_init(|| opened)
            }
        };
        write_all(in_place, offset, data)
    }

    /// Makes what was written durable, if anything was.
    ///
    /// # Errors
    /// As `fsync(2)`.
    pub fn sync(&self, file: &OpenFile, data_only: bool) -> Result<(), Error> {
        match file.upper.get() {
            Some(upper) if data_only => Ok(fs::fdatasync(upper)?),
            Some(upper) => Ok(fs::fsync(upper)?),
            // The content is the image's, but the attributes may have been changed.
            None => match &self.layer {
                Some(layer) if !data_only => sync_object(layer.object(file.ino)?, OFlags::RDONLY),
                _ => Ok(()),
            },
        }
    }

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As `fsync(2)`.
    pub fn sync_directory(&self, ino: Ino) -> Result<(), Error> {
        let Some(layer) = &self.layer else { return Ok(()) };
        sync_object(layer.object(ino)?, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// `fallocate(2)` with its mode bits.
    ///
    /// # Errors
    /// `EBADF` if it was not opened for writing, or as `fallocate(2)`.
    pub fn allocate(&self, file: &OpenFile, mode: i32, offset: u64, length: u64) -> Result<(), Error> {
        let mode = u32::try_from(mode).ok().and_then(FallocateFlags::from_bits).ok_or(Errno::OPNOTSUPP)?;
        Ok(fs::fallocate(written(file)?, mode, offset, length)?)
    }

    /// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`. A file of the image is told to be all data.
    ///
    /// # Errors
    /// `ENXIO` from the end of the file on, `EINVAL` for another `whence`.
    pub fn seek(&self, file: &OpenFile, offset: u64, whence: i32) -> Result<u64, Error> {
        let Some(upper) = self.upper_file(file)? else {
            let size = self.lower.attr(file.lower.ok_or(Errno::STALE)?)?.size;
            return match whence {
                SEEK_DATA | SEEK_HOLE if offset >= size => Err(Errno::NXIO.into()),
                SEEK_DATA => Ok(offset),
                SEEK_HOLE => Ok(size),
                _ => Err(Errno::INVAL.into()),
            };
        };
        match whence {
            SEEK_DATA => Ok(fs::seek(upper, SeekFrom::Data(offset))?),
            SEEK_HOLE => Ok(fs::seek(upper, SeekFrom::Hole(offset))?),
            _ => Err(Errno::INVAL.into()),
        }
    }
}

impl OpenFile {
    /// The new file `ino`, which is `node` and was opened as `upper` when it was made.
    pub(super) fn made(ino: Ino, node: &mut Node, upper: File, mode: OpenMode) -> Self {
        Self {
            ino,
            writable: mode.write || mode.truncate,
            lower: None,
            copied: Some(node.is_copied_flag()),
            upper: OnceLock::from(upper),
            in_place: OnceLock::new(),
        }
    }
}

impl Layer {
    /// The layer's node of `ino`, if it has one.
    fn object(&self, ino: Ino) -> Result<Option<Arc<OwnedFd>>, Error> {
        // Taken once: a second read lock waits for a writer that waits for the first.
        let state = self.state.read();
        if state.nodes.contains_key(&ino) { state.object(&self.upper, ino) } else { Ok(None) }
    }
}

fn sync_object(object: Option<Arc<OwnedFd>>, flags: OFlags) -> Result<(), Error> {
    match object {
        Some(object) => Ok(fs::fsync(host::reopen(object.as_fd(), flags)?)?),
        None => Ok(()),
    }
}

fn write_all(upper: &File, offset: u64, data: &[u8]) -> Result<usize, Error> {
    let mut done = 0;
    while done < data.len() {
        // On a descriptor opened to append, Linux ignores the offset.
        match rustix::io::pwrite(upper, &data[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(wrote) => done += wrote,
            Err(Errno::INTR) => {}
            Err(_) if done > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

fn written(file: &OpenFile) -> Result<&File, Error> {
    file.upper.get().filter(|_| file.writable).ok_or_else(|| Errno::BADF.into())
}

fn open_at(spot: &Spot, writable: bool, append: OFlags) -> Result<File, Error> {
    if !writable {
        return Ok(spot.open(OFlags::RDONLY)?.into());
    }
    match spot.open(OFlags::RDWR | append) {
        // The process that serves the view may be one that may write it but not read it.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Ok(spot.open(OFlags::WRONLY | append)?.into())
        }
        other => Ok(other?.into()),
    }
}
