//! Random access to the bytes of an image: the only way that bytes enter this crate.

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A byte sequence of fixed length that is read at any offset by any number of threads.
pub trait ReadAt: Send + Sync + std::fmt::Debug {
    /// The length in bytes. It never changes while the object lives.
    fn len(&self) -> u64;

    /// Fills all of `buf` from `offset` bytes into the sequence. Blocks until the bytes are there.
    ///
    /// # Errors
    /// `UnexpectedEof` if the range ends after [`ReadAt::len`]; otherwise whatever the storage says.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// As [`ReadAt::read_exact_at`], for long reads one after the other of what will not be read again soon, so that
    /// storage may fetch what follows and need not keep what was read.
    ///
    /// # Errors
    /// As [`ReadAt::read_exact_at`].
    fn read_stream_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    /// As [`ReadAt::read_exact_at`], of bytes here and there that will not be read again soon, so that storage need not
    /// keep them.
    ///
    /// # Errors
    /// As [`ReadAt::read_exact_at`].
    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
    /// Says that all of `range` is about to be read, in pieces, so that storage may fetch it at once. What goes wrong shows
    /// when it is read.
    fn will_read(&self, _range: Range<u64>) {}

    /// Says that these ranges will likely be read soon, in this order, so that storage far away may fetch them meanwhile. Returns
    /// whether it is far away.
    fn may_read(&self, _ranges: &[Range<u64>]) -> bool {
        false
    }

    /// Says that what was read of `range` is not what it should be: storage that has it from elsewhere fetches it again for
    /// who reads it next.
    fn discard(&self, _range: Range<u64>) {}

    /// The file that the bytes from `offset` on lie in, and where in it, if they are one's as they are: then the kernel can
    /// copy them.
    fn file_at(&self, _offset: u64) -> Option<(&File, u64)> {
        None
    }

    /// Whether the sequence has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A local file whose length was taken when it was opened.
#[derive(Debug)]
pub struct FileAt {
    /// For reads here and there, of which the kernel is told that they say nothing of what comes next.
    file: File,
    /// The same file for streams, which the kernel reads ahead of; `None` if it could not be opened again.
    stream: Option<File>,
    /// Whether the kernel and the filesystem can read past the page cache what is not in it.
    passes_cache: AtomicBool,
    len_bytes: u64,
}

/// `RWF_DONTCACHE` of Linux 6.14: pages that the read brings in are dropped after it. Decoded content is cached where
/// it was decoded, so that the stored bytes would only take memory, and time to find it.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

impl FileAt {
    /// Takes over `file` and pins its present length.
    ///
    /// # Errors
    /// If the file's attributes cannot be read.
    pub fn new(file: File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        let stream = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
        if stream.is_some() {
            // Advice changes how fast bytes come, never which, so that a filesystem that takes none is as good.
            let _ = fadvise(&file, 0, None, Advice::Random);
        }
        Ok(Self { file, stream, passes_cache: AtomicBool::new(true), len_bytes })
    }

    fn read_past_cache(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() && self.passes_cache.load(Ordering::Relaxed) {
            let rest = &mut [IoSliceMut::new(&mut buf[done..])];
            match preadv2(file, rest, offset.saturating_add(done as u64), DONT_CACHE) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.passes_cache.store(false, Ordering::Relaxed)
                }
                Err(error) => return Err(error.into()),
            }
        }
        file.read_exact_at(&mut buf[done..], offset.saturating_add(done as u64))
    }
}

impl ReadAt for FileAt {
    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn read_stream_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_past_cache(self.stream.as_ref().unwrap_or(&self.file), buf, offset)
    }

    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_past_cache(&self.file, buf, offset)
    }

    fn file_at(&self, offset: u64) -> Option<(&File, u64)> {
        // Not the one for reads here and there: a copy goes from front to back.
        Some((self.stream.as_ref().unwrap_or(&self.file), offset))
    }
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A part of another sequence, such as the squashfs partition of a SIF.
#[derive(Debug, Clone)]
pub struct Window {
    inner: Arc<dyn ReadAt>,
    start_bytes: u64,
    len_bytes: u64,
}

impl Window {
    /// The `len_bytes` bytes of `inner` that begin at `start_bytes`; `None` if they are not all within it.
    pub fn new(inner: Arc<dyn ReadAt>, start_bytes: u64, len_bytes: u64) -> Option<Self> {
        let end = start_bytes.checked_add(len_bytes)?;
        (end <= inner.len()).then_some(Self { inner, start_bytes, len_bytes })
    }

    /// Where in the other sequence `buf` is filled from, if all of it is in this one.
    fn inner_offset(&self, buf: &[u8], offset: u64) -> io::Result<u64> {
        let end = offset.checked_add(buf.len() as u64);
        end.filter(|end| *end <= self.len_bytes)
            .map(|_| self.start_bytes + offset)
            .ok_or(io::ErrorKind::UnexpectedEof.into())
    }
}

impl ReadAt for Window {
    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buf, self.inner_offset(buf, offset)?)
    }

    fn read_stream_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_stream_at(buf, self.inner_offset(buf, offset)?)
    }

    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_once_at(buf, self.inner_offset(buf, offset)?)
    }

    fn will_read(&self, range: Range<u64>) {
        let within = |offset: u64| self.start_bytes + offset.min(self.len_bytes);
        self.inner.will_read(within(range.start)..within(range.end));
    }

    fn may_read(&self, ranges: &[Range<u64>]) -> bool {
        let within = |offset: u64| self.start_bytes + offset.min(self.len_bytes);
        let ranges: Vec<_> = ranges.iter().map(|range| within(range.start)..within(range.end)).collect();
        self.inner.may_read(&ranges)
    }

    fn file_at(&self, offset: u64) -> Option<(&File, u64)> {
        self.inner.file_at(self.start_bytes.checked_add(offset)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_the_same_bytes_and_the_same_end() {
        let path = std::env::current_exe().unwrap();
        let file = FileAt::new(File::open(&path).unwrap()).unwrap();
        let (mut streamed, mut read) = (vec![0; 300_000], vec![0; 300_000]);

        file.read_stream_at(&mut streamed, 1000).unwrap();
        file.read_exact_at(&mut read, 1000).unwrap();

        assert_eq!(streamed, read);
        let beyond = file.read_stream_at(&mut streamed, file.len() - 1).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_window_reads_only_its_own_bytes() {
        let bytes: Arc<dyn ReadAt> = Arc::new((0..100u8).collect::<Vec<_>>());
        let window = Window::new(bytes, 10, 5).unwrap();
        let mut buf = [0; 3];

        window.read_exact_at(&mut buf, 2).unwrap();

        assert_eq!(buf, [12, 13, 14]);
        assert_eq!(window.read_exact_at(&mut buf, 3).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(window.read_exact_at(&mut buf, u64::MAX).is_err());
    }

    #[test]
    fn a_window_cannot_reach_past_its_object() {
        let bytes: Arc<dyn ReadAt> = Arc::new(vec![0; 100]);

        assert!(Window::new(bytes.clone(), 90, 10).is_some());
        assert!(Window::new(bytes.clone(), 90, 11).is_none());
        assert!(Window::new(bytes, u64::MAX, 2).is_none());
    }
}
