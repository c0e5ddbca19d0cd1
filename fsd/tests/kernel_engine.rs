//! The kernel's overlayfs over a filesystem of ours, as the engine `kernel` mounts it, against a plain directory: random
//! operations have to come to the same, also after another mount, and a view has to show the same of the layer.
//!
//! The operations are those of the view's own test (`overlay/tests/model.rs`); `SIPHON_MODEL_SEQUENCES` is how many
//! sequences are run, `SIPHON_MODEL_SEED` the first one's seed. Mounts need root.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, or says that it was skipped"
)]
#![allow(dead_code, reason = "the view's own test does more with what they share")]

#[path = "../../overlay/tests/model/operation.rs"]
mod operation;
#[path = "../../overlay/tests/model/pair.rs"]
mod pair;
#[path = "../../overlay/tests/model/random.rs"]
mod random;
#[path = "../../overlay/tests/model/snapshot.rs"]
mod snapshot;

use operation::Operation;
use pair::Pair;
use random::Random;
use rustix::fs::{Mode, OFlags};
use siphon_fsd::fs::{FileSystem, Options, Owners, Xattrs};
use siphon_fsd::fuse::Mounted;
use siphon_fsd::sys::mounts::{self, FuseMount, OverlayMount};
use siphon_image::directory::Directory;
use siphon_overlay::upper::{Base, Upper};
use siphon_overlay::view::{Ino, OpenMode, View};
use snapshot::Snapshot;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// One test at a time: one of them counts what the process has open.
static ALONE: Mutex<()> = Mutex::new(());

const DEFAULT_SEQUENCES: u64 = 100;
/// Of each of the two mounts of a sequence.
const OPERATIONS: u64 = 12;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

/// The merged tree of one sequence, for as long as it is mounted.
struct Merged {
    below: PathBuf,
    target: PathBuf,
    session: Option<JoinHandle<()>>,
}

impl Merged {
    /// `None`, with the reason printed, where nothing can be mounted.
    fn mount(root: &Path) -> Option<Self> {
        let [below, target, work] = ["below", "merged", "kernel-work"].map(|name| root.join(name));
        for directory in [&below, &target, &work] {
            std::fs::create_dir_all(directory).unwrap();
        }
        let view = View::new(Arc::new(Directory::open(&root.join("lower")).unwrap()), None).unwrap();
        let owners = Owners::AsStored { users: u32::MAX, groups: u32::MAX };
        let xattrs = Xattrs::BelowRootsOverlay;
        let options = Options { owners, read_only: true, stable: true, xattrs, far: false, keeps_privileges: true };
        let filesystem = Arc::new(FileSystem::new(Arc::new(view), options, Arc::default()));
        let lower = FuseMount { source: "siphon", target: &below, read_only: true, setuid: true, devices: true };
        let device = match lower.mount(0, 0) {
            Ok(device) => device,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "cannot mount FUSE: {error}");
                println!("skipped: {error}");
                return None;
            }
        };
        let mounted = Mounted::new(filesystem, device, 1).unwrap();
        let session = std::thread::spawn(move || mounted.serve().unwrap());
        let merged = Self { below: below.clone(), target: target.clone(), session: Some(session) };
        let upper = root.join("layer");
        let overlay = OverlayMount { source: "siphon".to_owned(), target, lower: below, upper, work, setuid: true };
        overlay.mount().unwrap();
        Some(merged)
    }
}

impl Drop for Merged {
    fn drop(&mut self) {
        for place in [&self.target, &self.below] {
            let _ = mounts::detach(place);
        }
        // It ends with its last mount.
        if let Some(session) = self.session.take() {
            let _ = session.join();
        }
    }
}

/// Runs one sequence; `Err` says what was different, `Ok(false)` that nothing can be mounted.
fn run(root: &Path, seed: u64, log: &mut Vec<Operation>) -> Result<bool, String> {
    let mut random = Random::new(seed);
    let mut pair = Pair::new(root, &mut random, false);
    pair.close();
    for _ in 0..2 {
        let Some(merged) = Merged::mount(root) else { return Ok(false) };
        let top = rustix::fs::open(&merged.target, OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..OPERATIONS {
            let operation = Operation::any(&mut random);
            log.push(operation.clone());
            pair.apply_through(&top, &operation)?;
        }
        drop(top);
        let [here, plain] =
            [&merged.target, &root.join("plain")].map(|tree| without_numbers(snapshot::of_directory(tree)));
        if let Some(difference) = snapshot::difference(&here, &plain) {
            return Err(format!("through the kernel: {difference}"));
        }
        drop(merged);
    }
    pair.forget_numbers();
    pair.reopen();
    pair.compare()?;
    Ok(true)
}

/// Two names of one file need not have one number: overlayfs knows a file by what it copied it of, until it forgets that.
fn without_numbers(mut seen: Snapshot) -> Snapshot {
    for (path, node) in &mut seen {
        node.first.clone_from(path);
    }
    seen
}

#[test]
fn the_kernels_engine_behaves_like_a_directory() {
    let _alone = ALONE.lock();
    let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let first = number("SIPHON_MODEL_SEED", 1);
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let open_before = open();
    for seed in first..first + number("SIPHON_MODEL_SEQUENCES", DEFAULT_SEQUENCES) {
        let root = scratch.path().join(seed.to_string());
        std::fs::create_dir(&root).unwrap();
        let mut log = Vec::new();
        match run(&root, seed, &mut log) {
            Ok(true) => std::fs::remove_dir_all(&root).unwrap(),
            Ok(false) => return,
            Err(difference) => panic!("seed {seed}: {difference}\nafter {log:?}"),
        }
    }
    assert_eq!(open(), open_before, "a mount that is gone leaves nothing open");
}

#[test]
fn a_file_of_the_image_with_two_names_becomes_one_of_its_own_under_that_which_is_written() {
    let _alone = ALONE.lock();
    let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let root = scratch.path();
    let lower = root.join("lower");
    std::fs::create_dir(&lower).unwrap();
    std::fs::write(lower.join("one"), "old").unwrap();
    std::fs::hard_link(lower.join("one"), lower.join("two")).unwrap();
    let base = Base { version: Base::VERSION, image: "/image".into(), identity: String::new() };
    drop(Upper::create(&root.join("layer"), &base).unwrap());
    let Some(merged) = Merged::mount(root) else { return };
    let [one, two, three] = ["one", "two", "three"].map(|name| merged.target.join(name));
    let number = |path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let links = |path| std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata(path).unwrap());

    assert_eq!((number(&one), links(&one)), (number(&two), 2));
    std::fs::write(&one, "new").unwrap();
    // The copy has all links that a file can have: those that were made of it.
    std::fs::hard_link(&one, &three).unwrap();
    std::fs::write(&three, "newer").unwrap();
    assert_eq!([&one, &two, &three].map(|path| std::fs::read_to_string(path).unwrap()), ["newer", "old", "newer"]);
    assert_eq!((number(&one), links(&one)), (number(&three), 2));
    assert_ne!(number(&one), number(&two));
    drop(merged);

    let view =
        View::new(Arc::new(Directory::open(&lower).unwrap()), Some(Upper::open(&root.join("layer")).unwrap())).unwrap();
    for (name, expected) in [("one", "newer"), ("two", "old"), ("three", "newer")] {
        let (ino, _) = view.lookup(Ino::ROOT, OsStr::new(name)).unwrap();
        let mut content = [0; 16];
        let read = view.read(&view.open(ino, OpenMode::default()).unwrap(), 0, &mut content).unwrap();
        assert_eq!(content[..read], *expected.as_bytes(), "{name}");
    }
    assert_eq!(std::fs::read_to_string(lower.join("one")).unwrap(), "old");
}
