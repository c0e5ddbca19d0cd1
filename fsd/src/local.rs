//! Image files on this machine's file systems, of which some are served by other machines.
//!
//! A mounted image never changes, and a file may: it is written to in place, cut short, or replaced on another machine of a
//! cluster, which then takes away what is open here. So what tells a file's content from others (device, number, length and
//! time of the last change) is taken when it is opened, and looked at again after each read: what a change brought is not
//! handed out, and nothing any more from then on. A file that was replaced by renaming is still there for who has it open.
//!
//! Some files change and their images do not: they are touched, or get a signature or another object at their end. Where it is
//! known which bytes no two images have in common, these decide.
//!
//! `ESTALE` means that a server does not know the open file any more. After a restart it may know it by its path, so that
//! is tried, and is as good if it is the same file.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use siphon_image::read_at::{FileAt, ReadAt};

/// As long as the superblock of squashfs: it has the time at which the image was made, and where all of its tables are.
const HEAD_BYTES: usize = 96;

/// How often a file is opened again while it is in use. Servers are not restarted that often.
const MAX_REOPENED: usize = 16;

/// An image file that was opened by its path.
#[derive(Debug)]
pub struct LocalFile<O: Opened = FileAt> {
    path: PathBuf,
    content: Content,
    /// The file as it was opened first, and again.
    opened: [OnceLock<O>; 1 + MAX_REOPENED],
    /// Which of them is read.
    current: AtomicUsize,
    /// Whether others may write to it while it is read.
    is_shared: AtomicBool,
    /// Bytes that tell the image from others, and where they are.
    head: OnceLock<(u64, [u8; HEAD_BYTES])>,
    has_changed: AtomicBool,
}

/// An open file: the system's, but in tests.
pub trait Opened: ReadAt + Sized {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// Whatever the system says.
    fn open(path: &Path) -> io::Result<Self>;

    /// What it is at present.
    ///
    /// # Errors
    /// Whatever the system says.
    fn content(&self) -> io::Result<Content>;
}

/// What tells the content of a file from that of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Device and number.
    pub place: (u64, u64),
    /// The length in bytes.
    pub len_bytes: u64,
    /// Seconds and nanoseconds of the last change.
    pub changed: (i64, i64),
}

/// Another file is there than was opened.
#[derive(Debug, thiserror::Error)]
#[error("{path} was changed or replaced while it was in use; run it again to use what is there now")]
struct Changed {
    path: PathBuf,
}

impl Opened for FileAt {
    fn open(path: &Path) -> io::Result<Self> {
        Self::new(File::open(path)?)
    }

    fn content(&self) -> io::Result<Content> {
        let (file, _) = self.file_at(0).ok_or(io::ErrorKind::Unsupported)?;
        file.metadata().map(|data| Content::of(&data))
    }
}

impl Content {
    /// What the attributes of a file say.
    pub fn of(data: &Metadata) -> Self {
        Self { place: (data.dev(), data.ino()), len_bytes: data.size(), changed: (data.mtime(), data.mtime_nsec()) }
    }
}

impl<O: Opened> LocalFile<O> {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = O::open(path)?;
        let content = file.content()?;
        let opened = std::array::from_fn(|_| OnceLock::new());
        let first: &OnceLock<O> = &opened[0];
        drop(first.set(file));
        let (is_shared, has_changed) = (AtomicBool::new(false), AtomicBool::new(false));
        let (current, head) = (AtomicUsize::new(0), OnceLock::new());
        Ok(Self { path: path.to_owned(), content, opened, current, is_shared, head, has_changed })
    }

    /// What it was when it was opened.
    pub fn content(&self) -> Content {
        self.content
    }

    /// Says that others may write to it while it is read: then the time of its last change says nothing.
    pub fn set_shared(&self) {
        self.is_shared.store(true, Ordering::Relaxed);
    }

    /// Says that an image of squashfs begins at `offset`. As long as its superblock stays, the file may get longer, and have
    /// another time.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn tell_by_superblock_at(&self, offset: u64) -> io::Result<()> {
        let mut head = [0; HEAD_BYTES];
        self.read_exact_at(&mut head, offset)?;
        // The first one stays.
        let _known = self.head.set((offset, head));
        Ok(())
    }

    fn file(&self) -> (usize, &O) {
        let current = self.current.load(Ordering::Acquire);
        (current, self.opened[current].get().expect("what is read was opened before"))
    }

    /// Reads by `read`, of the file that was opened and of no other.
    fn read(&self, read: impl Fn(&O) -> io::Result<()>) -> io::Result<()> {
        if self.has_changed.load(Ordering::Relaxed) {
            return Err(self.changed());
        }
        let (number, file) = self.file();
        let done = read(file).and_then(|()| self.check(file));
        match done {
            Err(error) if is_stale(&error) => {
                let file = self.open_again(number)?;
                read(file).and_then(|()| self.check(file))
            }
            // It was cut short, which says more than that there are no bytes.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.check(file).err().unwrap_or(error)),
            done => done,
        }
    }

    /// # Errors
    /// If it is not what was opened.
    fn check(&self, file: &O) -> io::Result<()> {
        let now = file.content()?;
        let goes_on = || now.place == self.content.place && now.len_bytes >= self.content.len_bytes;
        if now == self.content || goes_on() && (self.is_shared.load(Ordering::Relaxed) || self.has_its_head(file)?) {
            return Ok(());
        }
        Err(self.changed())
    }

    fn has_its_head(&self, file: &O) -> io::Result<bool> {
        let Some((offset, head)) = self.head.get() else { return Ok(false) };
        let mut now = [0; HEAD_BYTES];
        file.read_exact_at(&mut now, *offset)?;
        Ok(now == *head)
    }

    fn changed(&self) -> io::Error {
        self.has_changed.store(true, Ordering::Relaxed);
        io::Error::other(Changed { path: self.path.clone() })
    }

    /// The file at the same path, if it is the same as number `stale`, which the server does not know any more.
    fn open_again(&self, stale: usize) -> io::Result<&O> {
        let (current, file) = self.file();
        if current != stale {
            // Another thread was here.
            return Ok(file);
        }
        let next = self.opened.get(stale + 1).ok_or_else(|| io::Error::from(io::ErrorKind::StaleNetworkFileHandle))?;
        if next.get().is_none() {
            let file = match O::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.changed()),
                file => file?,
            };
            self.check(&file)?;
            tracing::info!(path = %self.path.display(), "the file was stale, and is read on by its path");
            // The other of two that do so at once is the same file.
            drop(next.set(file));
        }
        self.current.fetch_max(stale + 1, Ordering::AcqRel);
        Ok(next.get().expect("it was set"))
    }
}

impl<O: Opened> ReadAt for LocalFile<O> {
    fn len(&self) -> u64 {
        self.content.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let buf = std::cell::RefCell::new(buf);
        self.read(|file| file.read_exact_at(&mut buf.borrow_mut(), offset))
    }

    fn read_stream_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let buf = std::cell::RefCell::new(buf);
        self.read(|file| file.read_stream_at(&mut buf.borrow_mut(), offset))
    }

    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let buf = std::cell::RefCell::new(buf);
        self.read(|file| file.read_once_at(&mut buf.borrow_mut(), offset))
    }

    fn will_read(&self, range: Range<u64>) {
        self.file().1.will_read(range);
    }

    fn file_at(&self, offset: u64) -> Option<(&File, u64)> {
        self.file().1.file_at(offset)
    }
}

fn is_stale(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StaleNetworkFileHandle
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::sync::Mutex;

    fn read<O: Opened>(file: &LocalFile<O>, offset: u64) -> Result<[u8; 4], String> {
        let mut buf = [0; 4];
        file.read_exact_at(&mut buf, offset).map(|()| buf).map_err(|error| error.to_string())
    }

    fn is_changed(read: &Result<[u8; 4], String>) -> bool {
        read.as_ref().is_err_and(|error| error.contains("was changed or replaced"))
    }

    #[test]
    fn a_file_that_is_replaced_by_renaming_is_read_on() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("image"), directory.path().join("new"));
        fs::write(&path, "old bytes").unwrap();
        fs::write(&other, "new bytes").unwrap();
        let file: LocalFile = LocalFile::open(&path).unwrap();

        fs::rename(&other, &path).unwrap();

        assert_eq!(read(&file, 0), Ok(*b"old "));
    }

    #[test]
    fn a_file_that_is_changed_or_cut_short_in_place_is_not_read_on() {
        let changes: [fn(&mut File); 3] = [
            |file| file.write_all(b"NEW").unwrap(),
            |file| file.set_len(2).unwrap(),
            |file| file.set_len(100).unwrap(),
        ];
        for change in changes {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("image");
            fs::write(&path, "old bytes").unwrap();
            let file: LocalFile = LocalFile::open(&path).unwrap();
            assert_eq!(read(&file, 4), Ok(*b"byte"));
            // The clock of file systems is no finer than some milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(30));

            change(&mut fs::OpenOptions::new().write(true).open(&path).unwrap());

            assert!(is_changed(&read(&file, 4)));
            fs::write(&path, "old bytes").unwrap();
            assert!(is_changed(&read(&file, 0)), "what was handed out before may be of either");
        }
    }

    #[test]
    fn a_file_that_others_write_to_elsewhere_is_read_until_it_is_cut_short() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        fs::write(&path, "old bytes").unwrap();
        let file: LocalFile = LocalFile::open(&path).unwrap();
        file.set_shared();

        std::thread::sleep(std::time::Duration::from_millis(30));
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b" more").unwrap();
        assert_eq!(read(&file, 0), Ok(*b"old "));
        fs::File::options().write(true).open(&path).unwrap().set_len(8).unwrap();

        assert!(is_changed(&read(&file, 0)));
    }

    #[test]
    fn a_file_with_the_same_superblock_has_the_same_image() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let image = [&[b'-'; 32][..], &[b's'; 96], b"tables"].concat();
        fs::write(&path, &image).unwrap();
        let file: LocalFile = LocalFile::open(&path).unwrap();
        file.tell_by_superblock_at(32).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));

        let mut changing = fs::OpenOptions::new().write(true).open(&path).unwrap();
        changing.write_all(b"other objects").unwrap();
        assert_eq!(read(&file, 128), Ok(*b"tabl"));
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b" signature").unwrap();
        assert_eq!(read(&file, 128), Ok(*b"tabl"));
        changing.write_all(&[b'x'; 32]).unwrap();

        assert!(is_changed(&read(&file, 128)));
    }

    /// What the server of a fake file says of it: its number, and reads until it forgets what is open.
    static SERVED: Mutex<(u64, usize)> = Mutex::new((1, 0));

    /// A file of a server that forgets it.
    #[derive(Debug)]
    struct Forgotten {
        number: u64,
        reads_left: Mutex<usize>,
    }

    impl ReadAt for Forgotten {
        fn len(&self) -> u64 {
            8
        }

        fn read_exact_at(&self, buf: &mut [u8], _: u64) -> io::Result<()> {
            let mut left = self.reads_left.lock().unwrap();
            *left = left.checked_sub(1).ok_or(io::ErrorKind::StaleNetworkFileHandle)?;
            buf.fill(b'x');
            Ok(())
        }
    }

    impl Opened for Forgotten {
        fn open(_: &Path) -> io::Result<Self> {
            let (number, reads) = *SERVED.lock().unwrap();
            Ok(Self { number, reads_left: Mutex::new(reads) })
        }

        fn content(&self) -> io::Result<Content> {
            Ok(Content { place: (1, self.number), len_bytes: 8, changed: (0, 0) })
        }
    }

    #[test]
    fn a_file_that_its_server_forgot_is_opened_again_if_it_is_the_same() {
        let serve = |number, reads| *SERVED.lock().unwrap() = (number, reads);
        serve(1, 1);
        let file: LocalFile<Forgotten> = LocalFile::open(Path::new("image")).unwrap();

        assert_eq!(read(&file, 0), Ok(*b"xxxx"));
        assert_eq!(read(&file, 0), Ok(*b"xxxx"), "the second needs another descriptor");
        serve(1, 0);
        let still_stale = read(&file, 0);
        serve(2, 9);
        let replaced = read(&file, 0);
        serve(1, 9);

        assert!(still_stale.is_err() && !is_changed(&still_stale), "{still_stale:?}");
        assert!(is_changed(&replaced), "{replaced:?}");
        assert!(is_changed(&read(&file, 0)), "it is not gone on with");
    }
}
