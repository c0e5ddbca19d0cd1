use super::state::DEFAULT_ACL;
use super::*;
use crate::upper::{Base, PRIVATE_NAME};
use rustix::fs;
use rustix::io::Errno;
use rustix::thread;
use siphon_image::directory::Directory;
use siphon_image::tree::Kind;
use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

struct Test {
    _dir: tempfile::TempDir,
    lower: PathBuf,
    upper: PathBuf,
    view: View,
}

fn test(fill: impl FnOnce(&std::path::Path)) -> Test {
    let dir = tempfile::tempdir().unwrap();
    let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
    std::fs::create_dir(&lower).unwrap();
    fill(&lower);
    let base = Base { version: 1, image: "/image".into(), identity: String::new() };
    let layer = Upper::create(&upper, &base).unwrap();
    let view = View::new(Arc::new(Directory::open(&lower).unwrap()), Some(layer)).unwrap();
    Test { _dir: dir, lower, upper, view }
}

fn find(view: &View, path: &str) -> Result<Ino, i32> {
    path.split('/').try_fold(Ino::ROOT, |dir, name| match view.lookup(dir, OsStr::new(name)) {
        Ok((ino, _)) => Ok(ino),
        Err(error) => Err(error.errno()),
    })
}

fn content(view: &View, file: &OpenFile) -> Vec<u8> {
    let mut buf = vec![0; 100];
    let read = view.read(file, 0, &mut buf).unwrap();
    buf.truncate(read);
    buf
}

const WRITE: OpenMode = OpenMode { write: true, append: false, truncate: false };

#[test]
fn a_file_opened_before_its_copy_up_reads_what_is_written_after_it() {
    let t = test(|lower| std::fs::write(lower.join("f"), b"lower").unwrap());
    let ino = find(&t.view, "f").unwrap();
    let before = t.view.open(ino, OpenMode::default()).unwrap();
    assert_eq!(content(&t.view, &before), b"lower");

    let writer = t.view.open(ino, WRITE).unwrap();
    t.view.write(&writer, 0, b"upper").unwrap();

    assert_eq!(content(&t.view, &before), b"upper");
    assert_eq!(find(&t.view, "f").unwrap(), ino);
    assert_eq!(std::fs::read(t.lower.join("f")).unwrap(), b"lower");
}

#[test]
fn all_names_of_a_hard_linked_file_see_a_write_through_one() {
    let t = test(|lower| {
        std::fs::write(lower.join("a"), b"lower").unwrap();
        std::fs::hard_link(lower.join("a"), lower.join("b")).unwrap();
    });
    let a = find(&t.view, "a").unwrap();
    let writer = t.view.open(a, WRITE).unwrap();
    t.view.write(&writer, 0, b"UPPER").unwrap();

    t.view.unlink(Ino::ROOT, OsStr::new("a")).unwrap();
    t.view.forget(a, 1);

    let b = find(&t.view, "b").unwrap();
    assert_eq!(b, a);
    assert_eq!(t.view.attr(b).unwrap().nlink, 1);
    assert_eq!(content(&t.view, &t.view.open(b, OpenMode::default()).unwrap()), b"UPPER");
}

#[test]
fn an_unlinked_file_stays_usable_while_it_is_referred_to() {
    for is_lower in [true, false] {
        let t = test(|lower| std::fs::write(lower.join("f"), b"bytes").unwrap());
        let ino = find(&t.view, "f").unwrap();
        if !is_lower {
            t.view.set_attr(ino, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
        }
        let reader = t.view.open(ino, OpenMode::default()).unwrap();

        t.view.unlink(Ino::ROOT, OsStr::new("f")).unwrap();

        assert_eq!(find(&t.view, "f"), Err(Errno::NOENT.raw_os_error()));
        assert_eq!(content(&t.view, &reader), b"bytes");
        assert_eq!(t.view.attr(ino).unwrap().nlink, 0, "{is_lower}");
        t.view.set_attr(ino, &SetAttr { size: Some(2), ..SetAttr::default() }).unwrap();
        assert_eq!(content(&t.view, &reader), b"by");
        assert_eq!(std::fs::read_dir(t.upper.join(".siphon/work")).unwrap().count(), 0);
    }
}

#[test]
fn a_file_without_a_name_gets_one_once_and_is_gone_without() {
    let t = test(|lower| std::fs::create_dir_all(lower.join("d/e")).unwrap());
    let [d, e] = ["d", "d/e"].map(|path| find(&t.view, path).unwrap());
    let permissions = Permissions { mode: 0o666, umask: 0o027 };
    let create = || t.view.create_unnamed(e, permissions, None, WRITE).unwrap();

    let (kept, attr, file) = create();
    t.view.write(&file, 0, b"bytes").unwrap();
    t.view.rename(d, OsStr::new("e"), Ino::ROOT, OsStr::new("moved"), RenameMode::Replace).unwrap();

    assert_eq!((attr.kind, attr.mode, attr.nlink, attr.size), (Kind::File, 0o640, 0, 0));
    assert!(t.view.entries(e).unwrap().is_empty());
    let (named, attr) = t.view.link(kept, e, OsStr::new("f")).unwrap();
    assert_eq!((named, attr.nlink, attr.size), (kept, 1, 5));
    assert_eq!(find(&t.view, "moved/f"), Ok(kept));
    t.view.unlink(e, OsStr::new("f")).unwrap();
    assert_eq!(content(&t.view, &file), b"bytes");
    let again = t.view.link(kept, e, OsStr::new("f")).unwrap_err();
    assert_eq!(again.errno(), Errno::NOENT.raw_os_error());
    t.view.remove_directory(Ino::ROOT, OsStr::new("moved")).unwrap();
    let removed = t.view.create_unnamed(e, permissions, None, WRITE).unwrap_err();
    assert_eq!(removed.errno(), Errno::NOENT.raw_os_error());
    let no_directory = t.view.create_unnamed(kept, permissions, None, WRITE).unwrap_err();
    assert_eq!(no_directory.errno(), Errno::NOTDIR.raw_os_error());
    let nodes = || t.view.layer.as_ref().unwrap().state.read().nodes.len();
    let before = nodes();
    let (lost, _, file) = t.view.create_unnamed(d, permissions, None, WRITE).unwrap();
    drop(file);
    t.view.forget(lost, 1);
    assert_eq!(nodes(), before);
    assert_eq!(std::fs::read_dir(t.upper.join(".siphon/work")).unwrap().count(), 0);
}

/// Has this thread go on without the rights over files of others and their modes that root has.
fn give_up_capabilities() {
    let held = thread::capabilities(None).unwrap();
    let none = thread::CapabilitySet::empty();
    thread::set_capabilities(None, thread::CapabilitySets { effective: none, ..held }).unwrap();
}

/// Made as `open(2)` has it: the mode counts for those who open it later.
#[test]
fn a_new_file_is_open_whatever_its_mode_is_and_whoever_serves_it() {
    let t = test(|lower| {
        std::fs::create_dir(lower.join("acl")).unwrap();
        std::fs::write(lower.join("removed"), b"lower").unwrap();
    });
    let acl_directory = find(&t.view, "acl").unwrap();
    if t.view.has_acls() {
        t.view.set_xattr(acl_directory, OsStr::new(DEFAULT_ACL), &acl(), 0).unwrap();
    }
    t.view.unlink(Ino::ROOT, OsStr::new("removed")).unwrap();
    give_up_capabilities();

    for (parent, name, mode) in [
        (Ino::ROOT, "plain", 0o444),
        (Ino::ROOT, "removed", 0o444),
        (Ino::ROOT, "special", 0o4000),
        (acl_directory, "f", 0),
    ] {
        let permissions = Permissions::exactly(mode);
        let (_, attr, file) = t.view.create(parent, OsStr::new(name), permissions, None, WRITE).unwrap();
        t.view.write(&file, 0, b"bytes").unwrap();

        assert_eq!((attr.mode, content(&t.view, &file)), (mode, b"bytes".to_vec()), "{name}");
    }
    let unreadable = Permissions::exactly(0o200);
    for name in ["read", "removed"] {
        let _ = t.view.unlink(Ino::ROOT, OsStr::new(name));
        let (_, _, file) = t.view.create(Ino::ROOT, OsStr::new(name), unreadable, None, OpenMode::default()).unwrap();

        assert_eq!(content(&t.view, &file), b"", "{name}");
    }
    let append = OpenMode { append: true, ..WRITE };
    let (ino, attr, file) = t.view.create_unnamed(Ino::ROOT, Permissions::exactly(0o400), None, append).unwrap();
    t.view.write(&file, 0, b"by").unwrap();
    t.view.write(&file, 0, b"tes").unwrap();
    let (_, linked) = t.view.link(ino, Ino::ROOT, OsStr::new("named")).unwrap();

    assert_eq!((attr.mode, attr.nlink, content(&t.view, &file)), (0o400, 0, b"bytes".to_vec()));
    assert_eq!((linked.mode, linked.nlink, linked.size), (0o400, 1, 5));
    assert_eq!(std::fs::read_dir(t.upper.join(".siphon/work")).unwrap().count(), 0);
}

#[test]
fn a_file_without_a_name_belongs_to_the_group_that_its_directory_hands_on() {
    if rustix::process::geteuid().as_raw() != 0 {
        println!("skipped: only root gives files away");
        return;
    }
    let t = test(|lower| {
        std::fs::create_dir(lower.join("d")).unwrap();
        std::os::unix::fs::chown(lower.join("d"), None, Some(7)).unwrap();
        std::fs::set_permissions(lower.join("d"), PermissionsExt::from_mode(0o2777)).unwrap();
    });
    let d = find(&t.view, "d").unwrap();

    for (owner, expected) in [(None, (0, 7)), (Some((5, 7)), (5, 7)), (Some((5, 6)), (5, 7))] {
        let (_, attr, _) = t.view.create_unnamed(d, Permissions::exactly(0o4755), owner, WRITE).unwrap();

        assert_eq!(((attr.uid, attr.gid), attr.mode), (expected, 0o4755), "{owner:?}");
    }
}

#[test]
fn a_removed_directory_is_kept_open_for_who_refers_to_it_alone() {
    let t = test(|_| {});
    let permissions = Permissions::exactly(0o755);
    let made = |name| {
        let (directory, _) = t.view.make_directory(Ino::ROOT, OsStr::new(name), permissions, None).unwrap();
        let (file, _) = t.view.make_node(directory, OsStr::new("f"), Kind::File, permissions, 0, None).unwrap();
        t.view.unlink(directory, OsStr::new("f")).unwrap();
        t.view.forget(file, 1);
        directory
    };
    let kept_open = || {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let paths = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        paths.filter(|path| path.starts_with(&t.upper) && path.to_string_lossy().ends_with(" (deleted)")).count()
    };
    let (removed, replaced, _) = (made("removed"), made("replaced"), made("other"));

    t.view.remove_directory(Ino::ROOT, OsStr::new("removed")).unwrap();
    t.view.rename(Ino::ROOT, OsStr::new("other"), Ino::ROOT, OsStr::new("replaced"), RenameMode::Replace).unwrap();
    let before = kept_open();
    t.view.forget(removed, 1);
    t.view.forget(replaced, 1);

    assert_eq!((before, kept_open()), (2, 0));
}

#[test]
fn what_the_layer_numbers_as_it_did_a_removed_directory_is_another_node() {
    let t = test(|_| {});
    let (removed, _) = t.view.make_directory(Ino::ROOT, OsStr::new("d"), Permissions::exactly(0o755), None).unwrap();
    let key = state::key_of(&fs::stat(t.upper.join("d")).unwrap());
    let number = || t.view.layer.as_ref().unwrap().state.write().number(key, None, false);
    assert_eq!(number(), removed);

    t.view.remove_directory(Ino::ROOT, OsStr::new("d")).unwrap();
    let other = number();
    t.view.forget(removed, 1);

    assert_ne!(other, removed);
    assert_eq!(number(), other);
}

#[test]
fn the_private_directory_is_neither_shown_nor_made() {
    let t = test(|lower| std::fs::create_dir(lower.join(PRIVATE_NAME)).unwrap());
    let name = OsStr::new(PRIVATE_NAME);

    assert!(t.view.entries(Ino::ROOT).unwrap().is_empty());
    assert_eq!(find(&t.view, PRIVATE_NAME), Err(Errno::NOENT.raw_os_error()));
    let refused = t.view.make_directory(Ino::ROOT, name, Permissions::exactly(0o755), None).unwrap_err();
    assert_eq!(refused.errno(), Errno::PERM.raw_os_error());
    t.view.make_directory(Ino::ROOT, OsStr::new("d"), Permissions::exactly(0o755), None).unwrap();
    let refused = t.view.rename(Ino::ROOT, OsStr::new("d"), Ino::ROOT, name, RenameMode::Replace).unwrap_err();
    assert_eq!(refused.errno(), Errno::PERM.raw_os_error());
}

#[test]
fn a_link_planted_in_the_layer_leads_nowhere() {
    let t = test(|lower| std::fs::create_dir_all(lower.join("d/e")).unwrap());
    let outside = tempfile::tempdir().unwrap();
    let e = find(&t.view, "d/e").unwrap();
    t.view.make_directory(e, OsStr::new("first"), Permissions::exactly(0o755), None).unwrap();
    std::fs::rename(t.upper.join("d"), t.upper.join("away")).unwrap();
    symlink(outside.path(), t.upper.join("d")).unwrap();

    // A directory that was found before is the same one wherever it is now.
    let made = t.view.make_directory(e, OsStr::new("new"), Permissions::exactly(0o755), None);

    assert!(made.is_err() || t.upper.join("away/e/new").exists());
    assert!(std::fs::read_dir(outside.path()).unwrap().next().is_none());
}

#[test]
fn holes_stay_holes_in_a_copy() {
    let t = test(|lower| {
        let file = std::fs::File::create(lower.join("f")).unwrap();
        file.set_len(8 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 5 << 20).unwrap();
    });
    let ino = find(&t.view, "f").unwrap();

    t.view.open(ino, WRITE).unwrap();

    let attr = t.view.attr(ino).unwrap();
    assert_eq!(attr.size, 8 << 20);
    assert!(attr.blocks < 100, "{}", attr.blocks);
}

#[test]
fn truncating_a_file_copies_nothing_of_it() {
    let t = test(|lower| std::fs::write(lower.join("f"), b"content").unwrap());
    let ino = find(&t.view, "f").unwrap();

    let file = t.view.open(ino, OpenMode { write: true, truncate: true, append: false }).unwrap();

    assert_eq!(t.view.attr(ino).unwrap().size, 0);
    assert_eq!(content(&t.view, &file), b"");
}

#[test]
fn without_a_layer_every_change_fails_as_read_only() {
    let t = test(|lower| std::fs::write(lower.join("f"), b"content").unwrap());
    let view = View::new(Arc::new(Directory::open(&t.lower).unwrap()), None).unwrap();
    let ino = find(&view, "f").unwrap();
    let read_only = Errno::ROFS.raw_os_error();

    assert_eq!(view.open(ino, WRITE).unwrap_err().errno(), read_only);
    assert_eq!(view.unlink(Ino::ROOT, OsStr::new("f")).unwrap_err().errno(), read_only);
    assert_eq!(view.set_attr(ino, &SetAttr::default()).unwrap_err().errno(), read_only);
    assert_eq!(view.set_xattr(ino, OsStr::new("user.a"), b"", 0).unwrap_err().errno(), read_only);
    assert_eq!(content(&view, &view.open(ino, OpenMode::default()).unwrap()), b"content");
}

#[test]
fn an_overlay_xattr_set_through_the_view_does_not_act_on_the_layer() {
    let t = test(|lower| std::fs::create_dir_all(lower.join("d/inside")).unwrap());
    let d = find(&t.view, "d").unwrap();
    let name = OsStr::new("user.overlay.opaque");
    match t.view.set_xattr(d, name, b"y", 0) {
        Err(error) if error.errno() == Errno::OPNOTSUPP.raw_os_error() => return println!("skipped: no xattrs"),
        other => other.unwrap(),
    }

    assert!(find(&t.view, "d/inside").is_ok());
    assert_eq!(t.view.xattr(d, name).unwrap(), Some(b"y".to_vec()));
    assert_eq!(t.view.xattr_names(d).unwrap(), [name]);
}

#[test]
fn a_whiteout_device_cannot_be_made() {
    let t = test(|_| {});

    let made = t.view.make_node(Ino::ROOT, OsStr::new("w"), Kind::CharDevice, Permissions::exactly(0o600), 0, None);

    assert_eq!(made.unwrap_err().errno(), Errno::PERM.raw_os_error());
}

#[test]
fn a_path_longer_than_the_kernel_takes_is_written_to() {
    let long = "n".repeat(200);
    let t = test(|lower| {
        let mut here = fs::open(lower, fs::OFlags::PATH, fs::Mode::empty()).unwrap();
        for _ in 0..30 {
            fs::mkdirat(&here, &long, fs::Mode::RWXU).unwrap();
            here = fs::openat(&here, &long, fs::OFlags::PATH, fs::Mode::empty()).unwrap();
        }
    });
    let deepest = find(&t.view, &vec![long.as_str(); 30].join("/")).unwrap();

    t.view.make_symlink(deepest, OsStr::new("s"), OsStr::new("target"), None).unwrap();

    assert_eq!(t.view.entries(deepest).unwrap().len(), 1);
}

#[test]
fn what_is_forgotten_takes_no_memory_and_is_found_again() {
    let t = test(|lower| std::fs::create_dir_all(lower.join("d/e")).unwrap());
    let (d, e) = (find(&t.view, "d").unwrap(), find(&t.view, "d/e").unwrap());
    let nodes = || t.view.layer.as_ref().unwrap().state.read().nodes.len();
    assert_eq!(nodes(), 3);

    t.view.forget(d, 2);
    assert_eq!(nodes(), 3, "the parent of a node in use stays");
    t.view.forget(e, 1);

    assert_eq!(nodes(), 1);
    assert_eq!(find(&t.view, "d/e").unwrap(), e);
}

#[test]
fn many_threads_copy_one_file_up_once_and_none_reads_a_part() {
    let bytes = vec![7; 3 << 20];
    let t = test(|lower| std::fs::write(lower.join("f"), &bytes).unwrap());
    let ino = find(&t.view, "f").unwrap();

    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (view, bytes) = (&t.view, &bytes);
            scope.spawn(move || {
                let file = view.open(ino, OpenMode { write: thread % 2 == 0, ..OpenMode::default() }).unwrap();
                let mut buf = vec![0; bytes.len()];
                assert_eq!(view.read(&file, 0, &mut buf).unwrap(), bytes.len());
                assert!(buf == *bytes);
            });
        }
    });

    assert_eq!(std::fs::read_dir(t.upper.join(".siphon/work")).unwrap().count(), 0);
}

#[test]
fn a_directory_is_synced_while_names_in_it_change() {
    let t = test(|_| {});
    let view = Arc::new(t.view);
    let (done, finished) = std::sync::mpsc::channel();

    for thread in 0..4 {
        let (view, done) = (view.clone(), done.clone());
        std::thread::spawn(move || {
            let name = thread.to_string();
            for _ in 0..300 {
                if thread % 2 == 0 {
                    view.sync_directory(Ino::ROOT).unwrap();
                } else {
                    let (ino, _) =
                        view.make_directory(Ino::ROOT, OsStr::new(&name), Permissions::exactly(0o755), None).unwrap();
                    view.remove_directory(Ino::ROOT, OsStr::new(&name)).unwrap();
                    view.forget(ino, 1);
                }
            }
            done.send(()).unwrap();
        });
    }

    // Threads that wait for each other are left behind: the test fails all the same.
    for _ in 0..4 {
        finished.recv_timeout(std::time::Duration::from_secs(60)).expect("syncing and changing wait for each other");
    }
}

#[test]
fn a_mapped_page_is_written_in_place_through_a_handle_that_appends() {
    let t = test(|lower| std::fs::write(lower.join("f"), b"lower").unwrap());
    let append = OpenMode { write: true, append: true, truncate: false };
    let file = t.view.open(find(&t.view, "f").unwrap(), append).unwrap();

    t.view.write_mapped(&file, 0, b"L").unwrap();
    t.view.write(&file, 0, b"!").unwrap();
    t.view.write_mapped(&file, 1, b"O").unwrap();

    assert_eq!(content(&t.view, &file), b"LOwer!");
}

#[test]
fn a_view_over_a_view_keeps_the_nodes_of_the_image_and_of_the_layer_apart() {
    let t = test(|lower| std::fs::write(lower.join("lower"), b"lower").unwrap());
    for number in 0..100 {
        let name = format!("upper{number}");
        let (ino, _) =
            t.view.make_node(Ino::ROOT, OsStr::new(&name), Kind::File, Permissions::exactly(0o644), 0, None).unwrap();
        t.view.write(&t.view.open(ino, WRITE).unwrap(), 0, name.as_bytes()).unwrap();
    }
    let outer = View::new(Arc::new(t.view), None).unwrap();

    let mut seen = std::collections::HashSet::new();
    for name in ["lower".to_owned()].into_iter().chain((0..100).map(|number| format!("upper{number}"))) {
        let ino = find(&outer, &name).unwrap();

        assert_eq!(content(&outer, &outer.open(ino, OpenMode::default()).unwrap()), name.as_bytes());
        assert!(seen.insert(ino), "{name}");
    }
}

fn reopened(t: &Test) -> View {
    View::new(Arc::new(Directory::open(&t.lower).unwrap()), Some(Upper::open(&t.upper).unwrap())).unwrap()
}

#[test]
fn changes_of_attributes_links_and_names_copy_no_content() {
    let t = test(|lower| {
        std::fs::create_dir(lower.join("d")).unwrap();
        std::fs::write(lower.join("d/f"), vec![b'l'; 1 << 20]).unwrap();
    });
    let f = find(&t.view, "d/f").unwrap();
    let before = t.view.attr(f).unwrap();

    let times = SetAttr { mtime: Some(SetTime::At(Timestamp { seconds: 5, nanos: 0 })), ..SetAttr::default() };
    t.view.set_attr(f, &SetAttr { mode: Some(0o711), uid: Some(1), ..times }).unwrap();
    t.view.set_xattr(f, OsStr::new("user.note"), b"x", 0).unwrap();
    t.view.link(f, Ino::ROOT, OsStr::new("link")).unwrap();
    t.view.rename(Ino::ROOT, OsStr::new("d"), Ino::ROOT, OsStr::new("e"), RenameMode::Replace).unwrap();

    let on_disk = std::fs::metadata(t.upper.join("e/f")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::blocks(&on_disk) * 512 / (1 << 20), 0);
    for view in [&t.view, &reopened(&t)] {
        let f = find(view, "e/f").unwrap();
        assert_eq!(find(view, "link").unwrap(), f);
        let after = view.attr(f).unwrap();
        assert_eq!((after.mode, after.size, after.blocks, after.nlink), (0o711, 1 << 20, before.blocks, 2));
        assert_eq!(content(view, &view.open(f, OpenMode::default()).unwrap()), [b'l'; 100]);
    }
}

#[test]
fn a_stub_gets_its_content_with_the_first_write_and_keeps_its_times_until_then() {
    let t = test(|lower| std::fs::write(lower.join("f"), b"content").unwrap());
    let f = find(&t.view, "f").unwrap();
    t.view.set_attr(f, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    let reader = t.view.open(f, OpenMode::default()).unwrap();
    let before = t.view.attr(f).unwrap();

    let writer = t.view.open(f, WRITE).unwrap();
    assert_eq!(t.view.attr(f).unwrap().mtime, before.mtime);
    t.view.write(&writer, 0, b"C").unwrap();

    assert_eq!(content(&t.view, &reader), b"Content");
    assert_eq!(std::fs::read(t.upper.join("f")).unwrap(), b"Content");
}

#[test]
fn a_stub_that_a_crash_left_cut_has_no_more_than_its_length() {
    let t = test(|lower| std::fs::write(lower.join("f"), b"content").unwrap());
    let f = find(&t.view, "f").unwrap();
    t.view.set_attr(f, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    std::fs::OpenOptions::new().write(true).open(t.upper.join("f")).unwrap().set_len(3).unwrap();

    let reader = reopened(&t);
    let f = find(&reader, "f").unwrap();
    assert!(reader.open(f, OpenMode::default()).is_err(), "who may not write mends nothing");

    let upper = Upper::open(&t.upper).unwrap();
    upper.lock_exclusive().unwrap();
    let view = View::new(Arc::new(Directory::open(&t.lower).unwrap()), Some(upper)).unwrap();
    let f = find(&view, "f").unwrap();

    assert_eq!(view.attr(f).unwrap().size, 3);
    assert_eq!(content(&view, &view.open(f, OpenMode::default()).unwrap()), b"con");
}

#[test]
fn a_stub_that_leads_nowhere_is_an_error() {
    let t = test(|lower| std::fs::write(lower.join("f"), b"content").unwrap());
    let f = find(&t.view, "f").unwrap();
    t.view.set_attr(f, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    let set = |path: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(t.upper.join("f"), "user.overlay.redirect", path, flags).unwrap();
    };

    for path in [b"/gone".as_slice(), b"", b"/../../etc/passwd", b"/f/f"] {
        set(path);

        assert!(find(&reopened(&t), "f").is_err(), "{}", path.escape_ascii());
    }
}

#[test]
fn a_completed_layer_needs_no_image_for_what_it_has() {
    let t = test(|lower| {
        std::fs::create_dir(lower.join("d")).unwrap();
        std::fs::write(lower.join("d/f"), b"content").unwrap();
        std::fs::hard_link(lower.join("d/f"), lower.join("g")).unwrap();
    });
    let f = find(&t.view, "d/f").unwrap();
    t.view.set_attr(f, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    assert!(t.view.may_be_incomplete());

    assert_eq!(t.view.complete().unwrap(), 1);

    assert!(!t.view.may_be_incomplete());
    assert_eq!(std::fs::read(t.upper.join("d/f")).unwrap(), b"content");
    let view = reopened(&t);
    assert_eq!(content(&view, &view.open(find(&view, "g").unwrap(), OpenMode::default()).unwrap()), b"content");
}

#[test]
fn hard_links_of_the_image_and_inode_numbers_outlast_the_view() {
    let t = test(|lower| {
        std::fs::write(lower.join("a"), b"lower").unwrap();
        for name in ["b", "c", "d"] {
            std::fs::hard_link(lower.join("a"), lower.join(name)).unwrap();
        }
    });
    let a = find(&t.view, "a").unwrap();
    t.view.write(&t.view.open(a, WRITE).unwrap(), 0, b"UPPER").unwrap();
    t.view.unlink(Ino::ROOT, OsStr::new("b")).unwrap();
    let (own, _) =
        t.view.make_node(Ino::ROOT, OsStr::new("own"), Kind::File, Permissions::exactly(0o644), 0, None).unwrap();

    let view = reopened(&t);

    for name in ["a", "c", "d"] {
        let ino = find(&view, name).unwrap();
        assert_eq!(ino, a, "{name}");
        assert_eq!(view.attr(ino).unwrap().nlink, 3, "{name}");
        assert_eq!(content(&view, &view.open(ino, OpenMode::default()).unwrap()), b"UPPER", "{name}");
    }
    assert_eq!(find(&view, "own").unwrap(), own);
}

#[test]
fn nothing_is_written_down_of_links_that_are_all_gone() {
    let t = test(|lower| {
        std::fs::write(lower.join("a"), b"lower").unwrap();
        std::fs::hard_link(lower.join("a"), lower.join("b")).unwrap();
    });
    let a = find(&t.view, "a").unwrap();
    t.view.write(&t.view.open(a, WRITE).unwrap(), 0, b"UPPER").unwrap();

    t.view.unlink(Ino::ROOT, OsStr::new("a")).unwrap();
    t.view.unlink(Ino::ROOT, OsStr::new("b")).unwrap();

    assert_eq!(std::fs::read_dir(t.upper.join(".siphon/links")).unwrap().count(), 0);
}

#[test]
fn a_name_of_256_bytes_is_too_long_in_every_directory() {
    let t = test(|lower| std::fs::create_dir(lower.join("d")).unwrap());
    let d = find(&t.view, "d").unwrap();
    let long = "n".repeat(256);

    for error in [
        t.view.lookup(d, OsStr::new(&long)).map(drop),
        t.view.make_symlink(d, OsStr::new(&long), OsStr::new("x"), None).map(drop),
        t.view.unlink(d, OsStr::new(&long)),
    ] {
        assert_eq!(error.unwrap_err().errno(), Errno::NAMETOOLONG.raw_os_error());
    }
}

#[test]
fn a_large_file_is_copied_up_while_others_are_changed() {
    let t = test(|lower| {
        std::fs::create_dir(lower.join("d")).unwrap();
        let file = std::fs::File::create(lower.join("d/large")).unwrap();
        file.set_len(1 << 28).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 1 << 20], (1 << 28) - (1 << 20)).unwrap();
    });
    let large = find(&t.view, "d/large").unwrap();
    let d = find(&t.view, "d").unwrap();

    std::thread::scope(|scope| {
        let copying = scope.spawn(|| t.view.open(large, WRITE).map(drop));
        let mut made = 0;
        while !copying.is_finished() && made < 1000 {
            let name = made.to_string();
            let permissions = Permissions::exactly(0o644);
            t.view.make_node(d, OsStr::new(&name), Kind::File, permissions, 0, None).unwrap();
            made += 1;
        }
        copying.join().unwrap().unwrap();
        assert!(made > 1, "nothing was made while the file was copied");
    });
    assert_eq!(t.view.attr(large).unwrap().size, 1 << 28);
}

/// A tree that answers the first question for the xattrs of each node only once it is let on.
#[derive(Debug)]
struct Late {
    tree: Directory,
    seen: Mutex<std::collections::HashSet<NodeId>>,
    asked: std::sync::mpsc::SyncSender<()>,
    let_on: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Tree for Late {
    fn root(&self) -> NodeId {
        self.tree.root()
    }
    fn attr(&self, node: NodeId) -> Result<siphon_image::tree::Attr, siphon_image::tree::Error> {
        self.tree.attr(node)
    }
    fn lookup(&self, dir: NodeId, name: &OsStr) -> Result<Option<NodeId>, siphon_image::tree::Error> {
        self.tree.lookup(dir, name)
    }
    fn entries(&self, dir: NodeId) -> Result<Vec<siphon_image::tree::Entry>, siphon_image::tree::Error> {
        self.tree.entries(dir)
    }
    fn read_link(&self, node: NodeId) -> Result<std::ffi::OsString, siphon_image::tree::Error> {
        self.tree.read_link(node)
    }
    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, siphon_image::tree::Error> {
        self.tree.read(node, offset, buf)
    }
    fn xattrs(&self, node: NodeId) -> Result<Vec<siphon_image::tree::Xattr>, siphon_image::tree::Error> {
        if self.seen.lock().insert(node) {
            self.asked.send(()).unwrap();
            // So late an answer means that the one that it waits for waits itself, which that one then tells.
            let _ = self.let_on.lock().recv_timeout(std::time::Duration::from_secs(10));
        }
        self.tree.xattrs(node)
    }
    fn statistics(&self) -> siphon_image::tree::Statistics {
        self.tree.statistics()
    }
}

#[test]
fn a_directory_of_an_image_that_answers_late_is_renamed_while_others_make_files() {
    let t = test(|lower| {
        std::fs::create_dir_all(lower.join("d/deep")).unwrap();
        std::fs::write(lower.join("d/file"), b"lower").unwrap();
        std::fs::write(lower.join("d/deep/file"), b"lower").unwrap();
    });
    let (asked, questions) = std::sync::mpsc::sync_channel(0);
    let (answer, let_on) = std::sync::mpsc::channel();
    let tree = Directory::open(&t.lower).unwrap();
    let late = Late { tree, seen: Mutex::default(), asked, let_on: Mutex::new(let_on) };
    let view = View::new(Arc::new(late), Some(Upper::open(&t.upper).unwrap())).unwrap();

    let made = std::thread::scope(|scope| {
        let view = &view;
        let renaming = scope
            .spawn(move || view.rename(Ino::ROOT, OsStr::new("d"), Ino::ROOT, OsStr::new("e"), RenameMode::Replace));
        let mut made = 0;
        // The tree is at a question until it is let on.
        while made < 4 {
            questions.recv().unwrap();
            let asked = std::time::Instant::now();
            let name = made.to_string();
            let permissions = Permissions::exactly(0o644);
            view.make_node(Ino::ROOT, OsStr::new(&name), Kind::File, permissions, 0, None).unwrap();
            assert!(asked.elapsed() < std::time::Duration::from_secs(10), "question {made} was asked under the lock");
            answer.send(()).unwrap();
            made += 1;
        }
        renaming.join().unwrap().unwrap();
        made
    });

    assert_eq!(made, 4, "one question for each of two directories and two files");
    assert!(find(&view, "e/deep/file").is_ok());
    assert!(find(&view, "d").is_err());
}

/// user::rwx, user:2:rwx, group::r-x, mask::rwx, other::---, as `setfacl -d` writes it.
fn acl() -> Vec<u8> {
    let entry = |tag: u16, rights: u16, id: u32| {
        [tag.to_le_bytes(), rights.to_le_bytes()].concat().into_iter().chain(id.to_le_bytes()).collect::<Vec<u8>>()
    };
    let none = u32::MAX;
    let entries = [entry(1, 7, none), entry(2, 7, 2), entry(4, 5, none), entry(0x10, 7, none), entry(0x20, 0, none)];
    [2u32.to_le_bytes().to_vec(), entries.concat()].concat()
}

/// A layer over a directory `d` of the image, which hands an ACL on. `None`, with the reason printed, where there are none.
fn test_of_acls() -> Option<(Test, Ino)> {
    let t = test(|lower| std::fs::create_dir(lower.join("d")).unwrap());
    if !t.view.has_acls() {
        println!("skipped: there are no ACLs here");
        return None;
    }
    let d = find(&t.view, "d").unwrap();
    t.view.set_xattr(d, OsStr::new(DEFAULT_ACL), &acl(), 0).unwrap();
    Some((t, d))
}

#[test]
fn a_default_acl_is_inherited_and_overrules_the_umask() {
    let Some((t, d)) = test_of_acls() else { return };

    let permissions = Permissions { mode: 0o666, umask: 0o077 };
    let (file, attr) = t.view.make_node(d, OsStr::new("f"), Kind::File, permissions, 0, None).unwrap();
    let (inner, _) = t.view.make_directory(d, OsStr::new("e"), permissions, None).unwrap();
    let (plain, _) = t.view.make_node(Ino::ROOT, OsStr::new("f"), Kind::File, permissions, 0, None).unwrap();

    let (unnamed, unnamed_attr, _) = t.view.create_unnamed(d, permissions, None, WRITE).unwrap();

    assert_eq!((attr.mode, unnamed_attr.mode), (0o660, 0o660));
    let acl_of = |ino| t.view.xattr(ino, OsStr::new("system.posix_acl_access")).unwrap();
    assert_eq!(acl_of(unnamed), acl_of(file));
    assert!(t.view.xattr(file, OsStr::new("system.posix_acl_access")).unwrap().is_some());
    assert_eq!(t.view.xattr(inner, OsStr::new(DEFAULT_ACL)).unwrap(), Some(acl()));
    assert_eq!(t.view.attr(plain).unwrap().mode, 0o600);
    assert_eq!(std::fs::read_dir(t.upper.join(".siphon/work")).unwrap().count(), 0);
}

#[test]
fn the_umask_counts_again_once_a_default_acl_is_taken_away() {
    let Some((t, d)) = test_of_acls() else { return };
    let permissions = Permissions { mode: 0o666, umask: 0o077 };
    let made = |name| {
        let (_, named) = t.view.make_node(d, OsStr::new(name), Kind::File, permissions, 0, None).unwrap();
        let (_, unnamed, _) = t.view.create_unnamed(d, permissions, None, WRITE).unwrap();
        (named.mode, unnamed.mode)
    };
    assert_eq!(made("before"), (0o660, 0o660));

    t.view.remove_xattr(d, OsStr::new(DEFAULT_ACL)).unwrap();

    assert_eq!(made("after"), (0o600, 0o600));
}

#[test]
fn what_cannot_be_made_where_an_acl_is_handed_on_leaves_nothing() {
    let Some((t, d)) = test_of_acls() else { return };

    let made = t.view.make_node(d, OsStr::new("w"), Kind::CharDevice, Permissions::exactly(0o600), 0, None);

    assert_eq!(made.unwrap_err().errno(), Errno::PERM.raw_os_error());
    assert_eq!(std::fs::read_dir(t.upper.join(".siphon/work")).unwrap().count(), 0);
}

#[test]
fn a_stub_is_known_without_the_notes_of_its_layer() {
    let t = test(|lower| std::fs::write(lower.join("f"), b"content").unwrap());
    let f = find(&t.view, "f").unwrap();
    t.view.set_attr(f, &SetAttr { mode: Some(0o4755), ..SetAttr::default() }).unwrap();
    std::fs::remove_file(t.upper.join(".siphon/stubs")).unwrap();
    rustix::fs::removexattr(t.upper.join("f"), "user.overlay.siphon.origin").unwrap();

    let again = reopened(&t);
    let f = find(&again, "f").unwrap();
    let file = again.open(f, OpenMode::default()).unwrap();
    let mut buf = [0; 7];

    assert_eq!(again.read(&file, 0, &mut buf).unwrap(), 7);
    assert_eq!(&buf, b"content");
}

#[test]
fn a_stub_in_an_overlay_directory_is_an_error_and_never_zeros() {
    let (lower, overlay) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(lower.path().join("f"), b"content").unwrap();
    let open = || Upper::open_overlay(overlay.path()).unwrap();
    let view = |upper| View::new(Arc::new(Directory::open(lower.path()).unwrap()), Some(upper)).unwrap();
    let first = view(open());
    let f = find(&first, "f").unwrap();
    first.set_attr(f, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    let copy = overlay.path().join("upper/f");
    assert_eq!(std::fs::read(&copy).unwrap(), b"content", "a layer for any image has all of its content");
    assert!(rustix::fs::getxattr(&copy, "user.overlay.siphon.origin", &mut [0; 64][..]).is_err());

    rustix::fs::setxattr(&copy, "user.overlay.metacopy", b"", rustix::fs::XattrFlags::empty()).unwrap();

    assert!(find(&view(open()), "f").is_err());
    assert!(find(&view(Upper::open_overlay_read_only(overlay.path()).unwrap()), "f").is_err());
}

#[test]
fn completing_a_file_leaves_its_mode_as_it_is() {
    let t = test(|lower| std::fs::write(lower.join("f"), b"content").unwrap());
    let f = find(&t.view, "f").unwrap();
    t.view.set_attr(f, &SetAttr { mode: Some(0o6755), ..SetAttr::default() }).unwrap();

    t.view.complete().unwrap();

    assert_eq!(std::fs::metadata(t.upper.join("f")).unwrap().permissions().mode() & 0o7777, 0o6755);
}
