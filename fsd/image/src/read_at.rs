//! Random access to the bytes of an image: the only way that bytes enter this crate.

use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A byte sequence of fixed length that is read at any offset by any number of threads.
pub trait ReadAt: Send + Sync + std::fmt::Debug {
    /// The length in bytes. It never changes while the object lives.
    fn len(&self) -> u64;

    /// Fills all of `buf` from `offset` bytes into the sequence. Blocks until the bytes are there.
    ///
    /// # Errors
    /// `UnexpectedEof` if the range ends after [`ReadAt::len`]; otherwise whatever the storage says.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Says that the `len` bytes from `offset` will be read soon, so that they may be fetched in the background. Does
    /// not wait for them and promises nothing: what is beyond the end is left out, and a failure shows in the read.
    fn will_need(&self, _offset: u64, _len: u64) {}

    /// Whether the sequence has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A local file whose length was taken when it was opened.
#[derive(Debug)]
pub struct FileAt {
    file: File,
    len_bytes: u64,
}

impl FileAt {
    /// Takes over `file` and pins its present length. The kernel is told to read nothing ahead on its own, because
    /// whoever reads an image knows better than offsets tell what comes next, and says so with [`ReadAt::will_need`].
    ///
    /// # Errors
    /// If the file's attributes cannot be read.
    pub fn new(file: File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        advise(&file, 0, len_bytes, Advice::Random);
        Ok(Self { file, len_bytes })
    }
}

impl ReadAt for FileAt {
    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn will_need(&self, offset: u64, len: u64) {
        advise(&self.file, offset, len, Advice::WillNeed);
    }
}

/// Advice changes how fast bytes come, never which, so that a filesystem that takes none is as good.
fn advise(file: &File, offset: u64, len: u64, advice: Advice) {
    // A length of 0 would stand for all that follows.
    if let Some(len) = NonZeroU64::new(len) {
        let _ = fadvise(file, offset, Some(len), advice);
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
}

impl ReadAt for Window {
    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        if end > self.len_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.inner.read_exact_at(buf, self.start_bytes + offset)
    }

    fn will_need(&self, offset: u64, len: u64) {
        let len = len.min(self.len_bytes.saturating_sub(offset));
        if len > 0 {
            self.inner.will_need(self.start_bytes + offset, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A hundred bytes that remember what will be needed of them.
    #[derive(Debug, Default)]
    struct Hinted(Mutex<Vec<(u64, u64)>>);

    impl ReadAt for Hinted {
        fn len(&self) -> u64 {
            100
        }

        fn read_exact_at(&self, _buf: &mut [u8], _offset: u64) -> io::Result<()> {
            Ok(())
        }

        fn will_need(&self, offset: u64, len: u64) {
            self.0.lock().unwrap().push((offset, len));
        }
    }

    #[test]
    fn a_window_will_need_only_its_own_bytes() {
        let hinted = Arc::new(Hinted::default());
        let window = Window::new(hinted.clone(), 10, 5).unwrap();

        for (offset, len) in [(0, 5), (2, 1), (3, 9), (5, 1), (1, 0), (u64::MAX, u64::MAX)] {
            window.will_need(offset, len);
        }

        assert_eq!(*hinted.0.lock().unwrap(), [(10, 5), (12, 1), (13, 2)]);
    }

    #[test]
    fn a_file_reads_the_same_after_any_hint() {
        let path = std::env::current_exe().unwrap();
        let file = FileAt::new(File::open(&path).unwrap()).unwrap();
        let (mut hinted, mut read) = ([0; 4096], [0; 4096]);

        for (offset, len) in [(0, 0), (0, 4096), (file.len(), 1), (u64::MAX, u64::MAX)] {
            file.will_need(offset, len);
        }
        file.read_exact_at(&mut hinted, 0).unwrap();
        File::open(&path).unwrap().read_exact_at(&mut read, 0).unwrap();

        assert_eq!(hinted, read);
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
