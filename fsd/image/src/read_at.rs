//! Random access to the bytes of an image: the only way that bytes enter this crate.

use std::fs::File;
use std::io;
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
    /// Takes over `file` and pins its present length.
    ///
    /// # Errors
    /// If the file's attributes cannot be read.
    pub fn new(file: File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
