//! A view and a plain directory with the same content, and every operation done to both.

use crate::operation::{DIRECTORIES, How, Mode, Operation, Path as Names, any_path};
use crate::random::Random;
use crate::snapshot;
use rustix::fs::{self, AtFlags, FileType, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use siphon_image::directory::{Directory, host};
use siphon_image::tree::{Kind, Timestamp};
use siphon_overlay::error::Error;
use siphon_overlay::upper::Upper;
use siphon_overlay::view::{Ino, OpenFile, OpenMode, Permissions, RenameMode, SetAttr, SetTime, View};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All times that operations set are before this, all times of the machine's clock after it.
pub(crate) const SET_BEFORE: i64 = 1 << 30;

/// `statfs(2)`'s number of a filesystem in memory.
const TMPFS_MAGIC: fs::FsWord = 0x0102_1994;

pub(crate) struct Pair {
    root: PathBuf,
    plain: OwnedFd,
    view: Option<View>,
    open: Vec<Open>,
    /// How many files were made aside.
    asides: u64,
    /// Our numbers of nodes by those of the plain directory.
    numbers: HashMap<u64, u64>,
    kinds: HashMap<u64, Kind>,
    /// Whether the plain directory never uses an inode number twice.
    numbers_tell: bool,
}

struct Open {
    ours: OpenFile,
    plain: File,
    ino: Ino,
    /// Where the plain file is if it has no name in the tree, and the filesystem makes no file without.
    aside: Option<PathBuf>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(aside) = &self.aside {
            std::fs::remove_file(aside).unwrap();
        }
    }
}

type Outcome = Result<Vec<u8>, i32>;

impl Pair {
    pub(crate) fn new(root: &Path, random: &mut Random, links: bool) -> Self {
        rustix::process::umask(fs::Mode::empty());
        let seed = random.next();
        for name in ["lower", "plain"] {
            std::fs::create_dir(root.join(name)).unwrap();
            fill(&root.join(name), &mut Random::new(seed), links);
        }
        std::fs::create_dir(root.join("layer")).unwrap();
        copy_root(root);
        let plain = fs::open(root.join("plain"), OFlags::PATH, fs::Mode::empty()).unwrap();
        let mut pair = Self {
            root: root.to_owned(),
            plain,
            view: None,
            open: Vec::new(),
            asides: 0,
            numbers: HashMap::new(),
            kinds: HashMap::new(),
            numbers_tell: fs::statfs(root).unwrap().f_type == TMPFS_MAGIC,
        };
        pair.reopen();
        pair
    }

    pub(crate) fn close(&mut self) {
        self.open.clear();
        self.view = None;
    }

    pub(crate) fn reopen(&mut self) {
        self.close();
        let upper = Upper::open(&self.root.join("layer")).unwrap();
        lock(&upper);
        let lower = Directory::open(&self.root.join("lower")).unwrap();
        self.view = Some(View::new(Arc::new(lower), Some(upper)).unwrap());
        // Only files and directories can have written down whose copy they are.
        let kinds = &self.kinds;
        self.numbers.retain(|node, _| matches!(kinds.get(node), Some(Kind::File | Kind::Directory)));
    }

    /// Expects other numbers from now on: what the kernel copies up has no note of whose copy it is.
    pub(crate) fn forget_numbers(&mut self) {
        self.numbers.clear();
    }

    /// Gives all files their content, and closes.
    pub(crate) fn complete(&mut self) {
        self.view().complete().unwrap();
        assert!(!self.view().may_be_incomplete());
        self.close();
    }

    fn view(&self) -> &View {
        self.view.as_ref().unwrap()
    }

    /// A node's number stays what it is for as long as the node lives, copied up, renamed or mounted again.
    fn compare_numbers(&mut self) -> Result<(), String> {
        if !self.numbers_tell {
            return Ok(());
        }
        let ours = snapshot::numbers(self.view());
        let plain = snapshot::numbers(&Directory::open(&self.root.join("plain")).unwrap());
        let mut known = HashMap::new();
        for (path, (_, number)) in &ours {
            let (kind, node) = plain[path];
            match self.numbers.get(&node) {
                Some(before) if before != number => {
                    return Err(format!("{} was node {before} and is {number}", path.display()));
                }
                _ => known.insert(node, (kind, *number)),
            };
        }
        let by_number: HashMap<u64, u64> = known.iter().map(|(node, (_, number))| (*number, *node)).collect();
        if by_number.len() != known.len() {
            return Err(format!("two nodes have one number: {ours:?}"));
        }
        self.kinds = known.iter().map(|(node, (kind, _))| (*node, *kind)).collect();
        self.numbers = known.into_iter().map(|(node, (_, number))| (node, number)).collect();
        Ok(())
    }

    pub(crate) fn compare(&mut self) -> Result<(), String> {
        self.compare_trees()?;
        self.compare_numbers()
    }

    fn compare_trees(&self) -> Result<(), String> {
        let plain = snapshot::of_directory(&self.root.join("plain"));
        match snapshot::difference(&snapshot::of_tree(self.view()), &plain) {
            None => Ok(()),
            Some(difference) => Err(difference),
        }
    }

    /// A view that is gone has nothing left in `work`.
    pub(crate) fn check_leftovers(&mut self) -> Result<(), String> {
        self.close();
        let work = std::fs::read_dir(self.root.join("layer/.siphon/work")).unwrap();
        let left: Vec<_> = work.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        match left.is_empty() {
            true => Ok(()),
            false => Err(format!("left in work: {left:?}")),
        }
    }

    pub(crate) fn apply(&mut self, operation: &Operation) -> Result<(), String> {
        let (ours, plain) = match operation {
            Operation::Open(path, how) => return self.open(path, *how),
            Operation::CreateUnnamed(path, mode) => return self.create_unnamed(path, *mode),
            Operation::LinkOpen(which, path) => {
                let Some(index) = self.index(*which) else { return Ok(()) };
                let ours = self
                    .in_parent(path, |parent, name| self.made(self.view().link(self.open[index].ino, parent, name)));
                (outcome(ours), self.link_plainly(index, path).map(|()| Vec::new()).map_err(Errno::raw_os_error))
            }
            Operation::CloseOpen(which) => {
                if let Some(index) = self.index(*which) {
                    let closed = self.open.swap_remove(index);
                    let ino = closed.ino;
                    drop(closed);
                    self.view().forget(ino, 1);
                }
                return Ok(());
            }
            Operation::WriteOpen(which, ..)
            | Operation::ReadOpen(which)
            | Operation::StatOpen(which)
            | Operation::AllocateOpen(which, ..)
            | Operation::ResizeOpen(which, _) => {
                let Some(index) = self.index(*which) else { return Ok(()) };
                self.on_open(&self.open[index], operation)
            }
            _ => (outcome(self.ours(operation)), self.plainly(operation).map_err(Errno::raw_os_error)),
        };
        // Without xattrs, a node of the image lacks this one, where the filesystem lacks all.
        let no_xattrs = plain == Err(Errno::OPNOTSUPP.raw_os_error()) && ours == Err(Errno::NODATA.raw_os_error());
        if ours == plain || no_xattrs {
            Ok(())
        } else {
            Err(format!("{operation:?}\nhere:  {ours:?}\nplain: {plain:?}"))
        }
    }

    /// Does the operation to `merged`, which the kernel merges of the same two directories, and to the plain directory.
    /// What needs open files or a whole listing is left out, and so is a rename that the kernel has no form for.
    pub(crate) fn apply_through(&mut self, merged: &OwnedFd, operation: &Operation) -> Result<(), String> {
        match operation {
            Operation::Open(..) | Operation::CloseOpen(_) | Operation::List(_) | Operation::Reopen => return Ok(()),
            Operation::WriteOpen(..) | Operation::ReadOpen(_) | Operation::StatOpen(_) => return Ok(()),
            Operation::AllocateOpen(..) | Operation::ResizeOpen(..) => return Ok(()),
            Operation::CreateUnnamed(..) | Operation::LinkOpen(..) => return Ok(()),
            _ => {}
        }
        let plain = std::mem::replace(&mut self.plain, merged.try_clone().unwrap());
        let theirs = self.plainly(operation);
        self.plain = plain;
        match (&theirs, operation) {
            (Err(Errno::XDEV), _) => return Ok(()),
            // It may take two names of one file for two files, and finds then that they are one.
            (Err(Errno::STALE), Operation::Rename(one, other, _)) if self.are_one_file(one, other) => return Ok(()),
            _ => {}
        }
        let plain = self.plainly(operation);
        match theirs == plain {
            true => Ok(()),
            false => Err(format!("{operation:?}\nkernel: {theirs:?}\nplain:  {plain:?}")),
        }
    }

    /// Whether the plain directory has one file under both names.
    fn are_one_file(&self, one: &Names, other: &Names) -> bool {
        let number = |path| self.object(path).and_then(fs::fstat).map(|stat| (stat.st_dev, stat.st_ino));
        matches!((number(one), number(other)), (Ok(one), Ok(other)) if one == other)
    }

    fn index(&self, which: u64) -> Option<usize> {
        let count = self.open.len() as u64;
        (count > 0).then(|| usize::try_from(which % count).unwrap())
    }

    fn on_open(&self, open: &Open, operation: &Operation) -> (Outcome, Outcome) {
        let io = |error: std::io::Error| error.raw_os_error().unwrap();
        match operation {
            Operation::WriteOpen(_, offset, byte) => {
                let data = [*byte; 3000];
                let ours = self.view().write(&open.ours, *offset, &data);
                (
                    ours.map(|_| Vec::new()).map_err(|error| error.errno()),
                    open.plain.write_all_at(&data, *offset).map(|()| Vec::new()).map_err(io),
                )
            }
            Operation::AllocateOpen(_, mode, offset, length) => {
                let ours = self.view().allocate(&open.ours, (*mode).try_into().unwrap(), *offset, *length);
                let mode = fs::FallocateFlags::from_bits(*mode).unwrap();
                let plain = fs::fallocate(&open.plain, mode, *offset, *length);
                (
                    ours.map(|()| Vec::new()).map_err(|error| error.errno()),
                    plain.map(|()| Vec::new()).map_err(Errno::raw_os_error),
                )
            }
            Operation::ResizeOpen(_, size) => {
                let change = SetAttr { size: Some(*size), ..SetAttr::default() };
                let ours = self.view().set_attr(open.ino, &change);
                let plain = host::reopen(open.plain.as_fd(), OFlags::WRONLY).map(|file| fs::ftruncate(file, *size));
                (
                    ours.map(|_| Vec::new()).map_err(|error| error.errno()),
                    plain.map_err(io).and_then(|done| done.map(|()| Vec::new()).map_err(Errno::raw_os_error)),
                )
            }
            Operation::StatOpen(_) => {
                let ours = self.view().attr(open.ino).map(|attr| format!("{} {}", attr.size, attr.nlink).into_bytes());
                let stat = fs::fstat(&open.plain).unwrap();
                let links = stat.st_nlink - u64::from(open.aside.is_some());
                (ours.map_err(|error| error.errno()), Ok(format!("{} {links}", stat.st_size).into_bytes()))
            }
            _ => {
                let (mut ours, mut plain) = (vec![0; 40_000], vec![0; 40_000]);
                let read = self.view().read(&open.ours, 0, &mut ours);
                let plainly = open.plain.read_at(&mut plain, 0).unwrap();
                plain.truncate(plainly);
                let ours = read.map(|read| ours[..read].to_vec());
                (ours.map_err(|error| error.errno()), Ok(plain))
            }
        }
    }

    fn open(&mut self, path: &Names, how: How) -> Result<(), String> {
        let plain = self.parent(path).and_then(|parent| {
            let mut flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            flags |= match how {
                How::Read => OFlags::RDONLY,
                How::Write => OFlags::RDWR,
                How::Append => OFlags::RDWR | OFlags::APPEND,
                How::Truncate => OFlags::RDWR | OFlags::TRUNC,
            };
            let stat = fs::statat(&parent, *path.last().unwrap(), AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Errno::OPNOTSUPP);
            }
            fs::openat(&parent, *path.last().unwrap(), flags, fs::Mode::empty())
        });
        if plain.as_ref().is_err_and(|error| *error == Errno::OPNOTSUPP) {
            return Ok(());
        }
        let mode = OpenMode { write: how != How::Read, append: how == How::Append, truncate: how == How::Truncate };
        let ours = self.walk(path).and_then(|inos| {
            let ino = *inos.last().unwrap();
            let file = self.view().open(ino, mode);
            // One reference stays with the open file.
            self.forget(&inos[..inos.len() - 1]);
            Ok((ino, file?))
        });
        match (ours, plain) {
            (Ok((ino, ours)), Ok(plain)) => self.open.push(Open { ours, plain: plain.into(), ino, aside: None }),
            (Err(ours), Err(plain)) if ours.errno() == plain.raw_os_error() => {}
            (ours, plain) => return Err(format!("open {path:?}\nhere:  {ours:?}\nplain: {plain:?}")),
        }
        Ok(())
    }

    fn create_unnamed(&mut self, path: &Names, mode: u32) -> Result<(), String> {
        let plain = self.object(path).and_then(|directory| {
            if FileType::from_raw_mode(fs::fstat(&directory)?.st_mode) != FileType::Directory {
                return Err(Errno::NOTDIR);
            }
            let mode = fs::Mode::from_raw_mode(mode);
            match fs::openat(&directory, ".", OFlags::TMPFILE | OFlags::RDWR, mode) {
                Err(Errno::OPNOTSUPP) => {
                    self.asides += 1;
                    let aside = self.root.join(format!("aside-{}", self.asides));
                    let file = fs::open(&aside, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR, mode)?;
                    Ok((file, Some(aside)))
                }
                file => Ok((file?, None)),
            }
        });
        let mode = Permissions::exactly(u16::try_from(mode).unwrap());
        let open = OpenMode { write: true, ..OpenMode::default() };
        let ours = self.at(path, |directory| self.view().create_unnamed(directory, mode, None, open));
        match (ours, plain) {
            (Ok((ino, _, ours)), Ok((plain, aside))) => {
                self.open.push(Open { ours, plain: plain.into(), ino, aside });
            }
            (Err(ours), Err(plain)) if ours.errno() == plain.raw_os_error() => {}
            (ours, plain) => return Err(format!("create unnamed {path:?}\nhere:  {ours:?}\nplain: {plain:?}")),
        }
        Ok(())
    }

    /// Gives an open file of the plain directory another name, or its first.
    fn link_plainly(&mut self, index: usize, new: &Names) -> Result<(), Errno> {
        let (parent, name) = (self.parent(new)?, *new.last().unwrap());
        let open = &mut self.open[index];
        let Some(aside) = open.aside.as_ref() else {
            let path = host::path_of(open.plain.as_fd());
            return fs::linkat(fs::CWD, path, &parent, name, AtFlags::SYMLINK_FOLLOW);
        };
        match fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => fs::renameat(fs::CWD, aside, &parent, name)?,
            found => return found.and(Err(Errno::EXIST)),
        }
        open.aside = None;
        Ok(())
    }

    /// The numbers of the nodes on the way, one reference each, the root first.
    fn walk(&self, names: &[&str]) -> Result<Vec<Ino>, Error> {
        let mut inos = vec![Ino::ROOT];
        for name in names {
            match self.view().lookup(*inos.last().unwrap(), OsStr::new(name)) {
                Ok((ino, _)) => inos.push(ino),
                Err(error) => {
                    self.forget(&inos);
                    return Err(error);
                }
            }
        }
        Ok(inos)
    }

    fn forget(&self, inos: &[Ino]) {
        inos.iter().skip(1).rev().for_each(|ino| self.view().forget(*ino, 1));
    }

    fn at<T>(&self, names: &[&str], act: impl FnOnce(Ino) -> Result<T, Error>) -> Result<T, Error> {
        let inos = self.walk(names)?;
        let result = act(*inos.last().unwrap());
        self.forget(&inos);
        result
    }

    fn in_parent<T>(&self, path: &Names, act: impl FnOnce(Ino, &OsStr) -> Result<T, Error>) -> Result<T, Error> {
        let (name, parents) = path.split_last().unwrap();
        self.at(parents, |parent| match self.view().attr(parent)?.kind {
            // The kernel looks at all parents before it asks for anything.
            Kind::Directory => act(parent, OsStr::new(name)),
            _ => Err(Errno::NOTDIR.into()),
        })
    }

    fn made(&self, made: Result<(Ino, siphon_image::tree::Attr), Error>) -> Result<Vec<u8>, Error> {
        made.map(|(ino, _)| {
            self.view().forget(ino, 1);
            Vec::new()
        })
    }

    fn ours(&self, operation: &Operation) -> Result<Vec<u8>, Error> {
        let view = self.view();
        let change = |path: &Names, change: SetAttr| self.at(path, |ino| view.set_attr(ino, &change).map(drop));
        match operation {
            Operation::Create(path, mode) => self.in_parent(path, |parent, name| {
                let open = OpenMode { write: true, ..OpenMode::default() };
                let (ino, attr, file) =
                    view.create(parent, name, Permissions::exactly(u16::try_from(*mode).unwrap()), None, open)?;
                view.write(&file, 0, b"created")?;
                drop(file);
                self.made(Ok((ino, attr)))
            }),
            Operation::MakeDirectory(path, mode) => self.in_parent(path, |parent, name| {
                self.made(view.make_directory(parent, name, Permissions::exactly(u16::try_from(*mode).unwrap()), None))
            }),
            Operation::Symlink(path) => self.in_parent(path, |parent, name| {
                self.made(view.make_symlink(parent, name, OsStr::new("/etc/nowhere"), None))
            }),
            Operation::Fifo(path) => self.in_parent(path, |parent, name| {
                self.made(view.make_node(parent, name, Kind::Fifo, Permissions::exactly(0o640), 0, None))
            }),
            Operation::Link(path, new) => {
                self.at(path, |ino| self.in_parent(new, |parent, name| self.made(view.link(ino, parent, name))))
            }
            Operation::Unlink(path) => {
                self.in_parent(path, |parent, name| view.unlink(parent, name).map(|()| Vec::new()))
            }
            Operation::RemoveDirectory(path) => {
                self.in_parent(path, |parent, name| view.remove_directory(parent, name).map(|()| Vec::new()))
            }
            Operation::Rename(path, new, mode) => {
                let mode = match mode {
                    Mode::Replace => RenameMode::Replace,
                    Mode::NoReplace => RenameMode::NoReplace,
                    Mode::Exchange => RenameMode::Exchange,
                };
                self.in_parent(path, |from, name| {
                    self.in_parent(new, |to, new_name| view.rename(from, name, to, new_name, mode))
                })?;
                Ok(Vec::new())
            }
            Operation::Chmod(path, mode) => {
                let mode = u16::try_from(*mode).unwrap();
                change(path, SetAttr { mode: Some(mode), ..SetAttr::default() }).map(|()| Vec::new())
            }
            Operation::Chown(path, id) => {
                change(path, SetAttr { uid: Some(*id), gid: Some(*id), ..SetAttr::default() }).map(|()| Vec::new())
            }
            Operation::Resize(path, size) => {
                change(path, SetAttr { size: Some(*size), ..SetAttr::default() }).map(|()| Vec::new())
            }
            Operation::Touch(path, seconds) => {
                let at = SetTime::At(Timestamp { seconds: seconds % SET_BEFORE, nanos: 5 });
                change(path, SetAttr { mtime: Some(at), ..SetAttr::default() }).map(|()| Vec::new())
            }
            Operation::SetXattr(path, name, value, flags) => {
                let flags = i32::try_from(*flags).unwrap();
                self.at(path, |ino| view.set_xattr(ino, OsStr::new(name), &[*value], flags).map(|()| Vec::new()))
            }
            Operation::RemoveXattr(path, name) => {
                self.at(path, |ino| view.remove_xattr(ino, OsStr::new(name)).map(|()| Vec::new()))
            }
            Operation::List(path) => self.at(path, |ino| {
                let mut entries = view.entries(ino)?;
                entries.retain(|entry| snapshot::is_content(&entry.name));
                Ok(entries.iter().map(|entry| format!("{:?} ", entry.name)).collect::<String>().into_bytes())
            }),
            _ => unreachable!(),
        }
    }

    fn parent(&self, path: &Names) -> Result<OwnedFd, Errno> {
        let (_, parents) = path.split_last().unwrap();
        host::walk(self.plain.as_fd(), parents).map_err(|error| Errno::from_io_error(&error).unwrap())
    }

    fn object(&self, path: &Names) -> Result<OwnedFd, Errno> {
        let parent = self.parent(path)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        fs::openat(&parent, *path.last().unwrap(), flags, fs::Mode::empty())
    }

    fn plainly(&self, operation: &Operation) -> Result<Vec<u8>, Errno> {
        let raw = fs::Mode::from_raw_mode;
        match operation {
            Operation::Create(path, mode) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
                let file = File::from(fs::openat(self.parent(path)?, *path.last().unwrap(), flags, raw(*mode))?);
                file.write_all_at(b"created", 0).unwrap();
            }
            Operation::MakeDirectory(path, mode) => {
                let (parent, name) = (self.parent(path)?, *path.last().unwrap());
                fs::mkdirat(&parent, name, raw(*mode))?;
                let inherited = fs::statat(&parent, name, AtFlags::empty())?.st_mode & 0o2000;
                fs::chmodat(&parent, name, raw(*mode | inherited), AtFlags::empty())?;
            }
            Operation::Symlink(path) => fs::symlinkat("/etc/nowhere", self.parent(path)?, *path.last().unwrap())?,
            Operation::Fifo(path) => {
                fs::mknodat(self.parent(path)?, *path.last().unwrap(), FileType::Fifo, raw(0o640), 0)?;
            }
            Operation::Link(path, new) => {
                let object = self.object(path)?;
                let path = host::path_of(object.as_fd());
                fs::linkat(fs::CWD, path, self.parent(new)?, *new.last().unwrap(), AtFlags::SYMLINK_FOLLOW)?;
            }
            Operation::Unlink(path) => fs::unlinkat(self.parent(path)?, *path.last().unwrap(), AtFlags::empty())?,
            Operation::RemoveDirectory(path) => {
                fs::unlinkat(self.parent(path)?, *path.last().unwrap(), AtFlags::REMOVEDIR)?;
            }
            Operation::Rename(path, new, mode) => {
                let flags = match mode {
                    Mode::Replace => RenameFlags::empty(),
                    Mode::NoReplace => RenameFlags::NOREPLACE,
                    Mode::Exchange => RenameFlags::EXCHANGE,
                };
                let (from, to) = (self.parent(path)?, self.parent(new)?);
                let (name, new_name) = (*path.last().unwrap(), *new.last().unwrap());
                match fs::renameat_with(&from, name, &to, new_name, flags) {
                    // Its filesystem takes no flags; the kernel has seen that there is nothing to replace.
                    Err(Errno::INVAL) if *mode == Mode::NoReplace => fs::renameat(&from, name, &to, new_name)?,
                    done => done?,
                }
            }
            Operation::Chmod(path, mode) => fs::chmod(host::path_of(self.object(path)?.as_fd()), raw(*mode))?,
            Operation::Chown(path, id) => {
                let (uid, gid) = (fs::Uid::from_raw(*id), fs::Gid::from_raw(*id));
                fs::chownat(self.object(path)?, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
            }
            Operation::Resize(path, size) => {
                let object = self.object(path)?;
                let kind = FileType::from_raw_mode(fs::fstat(&object)?.st_mode);
                match kind {
                    FileType::Directory => return Err(Errno::ISDIR),
                    FileType::RegularFile => {
                        let file = host::reopen(object.as_fd(), OFlags::WRONLY).unwrap();
                        fs::ftruncate(file, *size)?;
                    }
                    _ => return Err(Errno::INVAL),
                }
            }
            Operation::Touch(path, seconds) => {
                let times = Timestamps {
                    last_access: Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
                    last_modification: Timespec { tv_sec: seconds % SET_BEFORE, tv_nsec: 5 },
                };
                fs::utimensat(fs::CWD, host::path_of(self.object(path)?.as_fd()), &times, AtFlags::empty())?;
            }
            Operation::SetXattr(path, name, value, flags) => {
                let flags = XattrFlags::from_bits(*flags).unwrap();
                fs::setxattr(host::path_of(self.object(path)?.as_fd()), *name, &[*value], flags)?;
            }
            Operation::RemoveXattr(path, name) => {
                fs::removexattr(host::path_of(self.object(path)?.as_fd()), *name)?;
            }
            Operation::List(path) => {
                let directory = host::walk(self.plain.as_fd(), path);
                let directory = directory.map_err(|error| Errno::from_io_error(&error).unwrap())?;
                let mut names: Vec<_> = host::list(directory.as_fd()).unwrap();
                names.retain(|entry| snapshot::is_content(&entry.name));
                names.sort_by(|a, b| a.name.cmp(&b.name));
                return Ok(names.iter().map(|entry| format!("{:?} ", entry.name)).collect::<String>().into_bytes());
            }
            _ => unreachable!(),
        }
        Ok(Vec::new())
    }
}

fn outcome(result: Result<Vec<u8>, Error>) -> Outcome {
    result.map_err(|error| error.errno())
}

/// The root of a new layer has the owner, mode and time of the image's root.
fn copy_root(root: &Path) {
    for name in ["lower", "plain", "layer"] {
        std::fs::set_permissions(root.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
}

/// Makes the same random tree for the same `random`.
fn fill(root: &Path, random: &mut Random, links: bool) {
    for name in DIRECTORIES {
        let _ = std::fs::create_dir(root.join(name));
        for inner in DIRECTORIES {
            if random.below(2) == 0 {
                std::fs::create_dir(root.join(name).join(inner)).unwrap();
            }
        }
    }
    for _ in 0..10 {
        let path = root.join(any_path(random).iter().collect::<PathBuf>());
        let choice = random.below(6);
        let bytes = vec![b'l'; usize::try_from(random.below(9000)).unwrap()];
        match choice {
            0 => drop(std::os::unix::fs::symlink("/lower/nowhere", path)),
            1 if links => {
                let other = root.join(any_path(random).iter().collect::<PathBuf>());
                if other.is_file() {
                    let _ = std::fs::hard_link(other, path);
                }
            }
            _ => {
                if path.symlink_metadata().is_err() && std::fs::write(&path, bytes).is_ok() {
                    let _ = fs::setxattr(&path, "user.a", b"lower", XattrFlags::empty());
                }
            }
        }
    }
}

/// Takes the lock, which a program that another test is starting may hold for the moment between its fork and its exec.
fn lock(upper: &Upper) {
    for _ in 0..200 {
        if !matches!(upper.lock_exclusive(), Err(Error::Locked { .. })) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    upper.lock_exclusive().unwrap();
}
