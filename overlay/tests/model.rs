//! Random operations on a view and on a plain directory: results and trees must be the same.
//!
//! `SIPHON_MODEL_SEQUENCES` is how many sequences each test runs (2,000 by default, and fewer where they take longer),
//! `SIPHON_MODEL_SEED` the first one's seed.
//! `SIPHON_MODEL_DIRECTORY` is where: a filesystem of the kind to be tried. A failure prints seed and operations.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, or says that it was skipped"
)]

#[path = "model/operation.rs"]
mod operation;
#[path = "model/pair.rs"]
mod pair;
#[path = "model/random.rs"]
mod random;
#[path = "model/snapshot.rs"]
mod snapshot;

use operation::Operation;
use pair::Pair;
use random::Random;
use rustix::fs::RenameFlags;
use siphon_image::directory::Directory;
use siphon_image::tree::Kind;
use siphon_overlay::upper::Upper;
use siphon_overlay::view::{Ino, OpenMode, Permissions, SetAttr, View};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DEFAULT_SEQUENCES: u64 = 2000;
const OPERATIONS: u64 = 25;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

/// How many sequences to run, where by default it is the `share`th part.
fn sequences(share: u64) -> u64 {
    number("SIPHON_MODEL_SEQUENCES", DEFAULT_SEQUENCES / share)
}

fn scratch() -> tempfile::TempDir {
    if let Some(directory) = std::env::var_os("SIPHON_MODEL_DIRECTORY") {
        return tempfile::tempdir_in(directory).unwrap();
    }
    // Memory where it can hold xattrs, which is several times as fast.
    match tempfile::tempdir_in("/dev/shm") {
        Ok(dir) if rustix::fs::setxattr(dir.path(), "user.x", b"", rustix::fs::XattrFlags::empty()).is_ok() => dir,
        _ => tempfile::tempdir().unwrap(),
    }
}

/// Runs one sequence; `Err` says what was different.
fn run(root: &Path, seed: u64, log: &mut Vec<Operation>) -> Result<(), String> {
    let mut random = Random::new(seed);
    let links = random.below(3) == 0;
    let mut pair = Pair::new(root, &mut random, links);
    for _ in 0..OPERATIONS {
        let operation = Operation::any(&mut random);
        log.push(operation.clone());
        pair.apply(&operation)?;
        match random.below(20) {
            0 => pair.compare()?,
            1 => {
                log.push(Operation::Reopen);
                pair.reopen();
                pair.compare()?;
            }
            _ => {}
        }
    }
    pair.compare()?;
    log.push(Operation::Reopen);
    pair.reopen();
    pair.compare()?;
    pair.check_leftovers()
}

#[test]
fn a_view_behaves_like_a_directory() {
    run_all(scratch().path(), sequences(1));
}

#[test]
fn a_view_behaves_like_a_directory_where_there_are_no_xattrs() {
    let place = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if let Err(error) = rustix::mount::mount("none", place.path(), "ramfs", flags, None) {
        println!("skipped: cannot mount ramfs: {error}");
        return;
    }
    let mounted = Mounted(place.path().to_owned());
    let refused = rustix::fs::setxattr(&mounted.0, "user.x", b"", rustix::fs::XattrFlags::empty());
    assert_eq!(refused, Err(rustix::io::Errno::OPNOTSUPP));

    run_all(&mounted.0, sequences(5));

    drop(mounted);
}

/// bindfs hands everything on but xattrs and the flags of `renameat2`, as networks' filesystems refuse them. `None`, with the
/// reason printed, where it cannot be mounted.
fn mount_bindfs(behind: &Path, place: &Path) -> Option<Mounted> {
    let bindfs = std::process::Command::new("bindfs")
        .args(["--xattr-none", "-o", "attr_timeout=0,entry_timeout=0"])
        .args([behind, place])
        .status();
    if bindfs.is_ok_and(|status| status.success()) {
        return Some(Mounted(place.to_owned()));
    }
    assert!(std::env::var_os("CI").is_none(), "cannot mount bindfs");
    println!("skipped: cannot mount bindfs");
    None
}

#[test]
fn a_view_behaves_like_a_directory_on_a_filesystem_that_refuses_xattrs_and_swaps() {
    let (behind, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(mounted) = mount_bindfs(behind.path(), place.path()) else { return };
    for name in ["a", "b"] {
        std::fs::write(mounted.0.join(name), name).unwrap();
    }
    let (from, to) = (mounted.0.join("a"), mounted.0.join("b"));
    let swapped = rustix::fs::renameat_with(rustix::fs::CWD, &from, rustix::fs::CWD, &to, RenameFlags::EXCHANGE);
    assert_eq!(swapped, Err(rustix::io::Errno::INVAL));
    let refused = rustix::fs::setxattr(&from, "user.x", b"", rustix::fs::XattrFlags::empty());
    assert_eq!(refused, Err(rustix::io::Errno::OPNOTSUPP));

    run_all(&mounted.0, sequences(20));

    drop(mounted);
}

/// A view of a directory with the file `f`, whose content is `content`, and of a layer, which are on bindfs. They go in this order.
struct OnBindfs {
    view: View,
    _mounted: Mounted,
    _directories: [tempfile::TempDir; 2],
}

impl OnBindfs {
    fn new() -> Option<Self> {
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mounted = mount_bindfs(directories[0].path(), directories[1].path())?;
        for directory in ["lower", "layer"] {
            std::fs::create_dir(mounted.0.join(directory)).unwrap();
        }
        std::fs::write(mounted.0.join("lower/f"), "content").unwrap();
        let lower = Directory::open(&mounted.0.join("lower")).unwrap();
        let view = View::new(Arc::new(lower), Some(Upper::open(&mounted.0.join("layer")).unwrap())).unwrap();
        Some(Self { view, _mounted: mounted, _directories: directories })
    }
}

/// bindfs knows files by their names, and keeps a removed one only for who has it open.
#[test]
fn a_file_that_was_opened_before_its_copy_up_outlasts_its_name_where_names_are_all_that_is_known() {
    let Some(on_bindfs) = OnBindfs::new() else { return };
    let view = &on_bindfs.view;
    let name = OsStr::new("f");
    let (ino, _) = view.lookup(Ino::ROOT, name).unwrap();
    let reader = view.open(ino, OpenMode::default()).unwrap();

    view.set_attr(ino, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    view.unlink(Ino::ROOT, name).unwrap();

    let attr = view.attr(ino).unwrap();
    let mut content = [0; 16];
    let read = view.read(&reader, 0, &mut content).unwrap();
    assert_eq!((attr.mode, attr.size, &content[..read]), (0o600, 7, &b"content"[..]));
}

#[test]
fn a_file_of_the_image_that_was_opened_and_removed_is_changed_where_names_are_all_that_is_known() {
    let Some(on_bindfs) = OnBindfs::new() else { return };
    let view = &on_bindfs.view;
    let name = OsStr::new("f");
    let (ino, _) = view.lookup(Ino::ROOT, name).unwrap();
    let reader = view.open(ino, OpenMode::default()).unwrap();
    view.unlink(Ino::ROOT, name).unwrap();

    view.set_attr(ino, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    let attr = view.set_attr(ino, &SetAttr { size: Some(4), ..SetAttr::default() }).unwrap();

    let mut content = [0; 16];
    let read = view.read(&reader, 0, &mut content).unwrap();
    assert_eq!((attr.mode, attr.size, &content[..read]), (0o600, 4, &b"cont"[..]));
}

/// What is behind bindfs gives the number of a removed directory to the next one, also while somebody is in it.
#[test]
fn a_new_directory_is_no_removed_one_where_names_are_all_that_is_known() {
    let Some(on_bindfs) = OnBindfs::new() else { return };
    let view = &on_bindfs.view;
    let permissions = Permissions::exactly(0o755);
    let mut left_in_use = Vec::new();

    for round in 0..16 {
        let (name, inner) = (round.to_string(), OsStr::new("inner"));
        let (directory, _) = view.make_directory(Ino::ROOT, OsStr::new(&name), permissions, None).unwrap();
        let (file, _) = view.make_node(directory, inner, Kind::File, permissions, 0, None).unwrap();
        view.unlink(directory, inner).unwrap();
        view.forget(file, 1);
        view.remove_directory(Ino::ROOT, OsStr::new(&name)).unwrap();

        assert!(!left_in_use.contains(&directory), "round {round}");
        match round % 2 {
            0 => view.forget(directory, 1),
            _ => left_in_use.push(directory),
        }
    }
}

fn run_all(scratch: &Path, count: u64) {
    let first = number("SIPHON_MODEL_SEED", 1);
    for seed in first..first + count {
        let root = scratch.join(seed.to_string());
        std::fs::create_dir(&root).unwrap();
        let mut log = Vec::new();
        if let Err(difference) = run(&root, seed, &mut log) {
            panic!("seed {seed}: {difference}\nafter {log:?}");
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}

/// Unmounts also when the test fails.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::empty());
    }
}

/// The kernel's merge of `lower` and `layer`; `None`, with the reason printed, where there can be none.
fn mount(root: &Path) -> Option<Mounted> {
    let [merged, work] = ["merged", "kernel-work"].map(|name| root.join(name));
    for directory in [&merged, &work] {
        std::fs::create_dir_all(directory).unwrap();
    }
    let [lower, layer] = ["lower", "layer"].map(|name| root.join(name).display().to_string());
    let options = format!("lowerdir={lower},upperdir={layer},workdir={},userxattr", work.display());
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if let Err(error) = rustix::mount::mount("overlay", &merged, "overlay", flags, options.as_c_str()) {
        assert!(std::env::var_os("CI").is_none(), "cannot mount overlay: {error}");
        println!("skipped: cannot mount overlay: {error}");
        return None;
    }
    Some(Mounted(merged))
}

#[test]
fn a_view_shows_a_layer_that_the_kernel_wrote() {
    let scratch = scratch();
    for seed in 1..=sequences(40) {
        let root = scratch.path().join(seed.to_string());
        std::fs::create_dir(&root).unwrap();
        let mut random = Random::new(seed);
        let mut pair = Pair::new(&root, &mut random, false);
        for round in 0..3 {
            pair.close();
            let Some(mounted) = mount(&root) else { return };
            let merged = rustix::fs::open(&mounted.0, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
            for _ in 0..OPERATIONS {
                pair.apply_through(&merged, &Operation::any(&mut random)).unwrap();
            }
            drop((merged, mounted));
            pair.forget_numbers();
            pair.reopen();
            if let Err(difference) = pair.compare() {
                panic!("seed {seed}, round {round}: {difference}");
            }
            // And on by the view, whose changes the next round finds.
            for _ in 0..OPERATIONS {
                pair.apply(&Operation::any(&mut random)).unwrap();
            }
            pair.complete();
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}

#[test]
fn the_kernel_mounts_a_layer_that_a_view_wrote() {
    let scratch = scratch();
    for seed in 1..=sequences(40) {
        let root = scratch.path().join(seed.to_string());
        std::fs::create_dir(&root).unwrap();
        let mut random = Random::new(seed);
        let mut pair = Pair::new(&root, &mut random, seed % 3 == 0);
        for _ in 0..OPERATIONS * 2 {
            pair.apply(&Operation::any(&mut random)).unwrap();
        }
        // The kernel follows no stubs, and knows nothing of links that the image has.
        pair.complete();
        let Some(mounted) = mount(&root) else { return };
        let seen = snapshot::of_directory(&mounted.0);
        drop(mounted);
        assert_eq!(snapshot::difference(&seen, &snapshot::of_directory(&root.join("plain"))), None, "seed {seed}");
        std::fs::remove_dir_all(&root).unwrap();
    }
}
