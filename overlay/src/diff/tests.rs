use super::*;
use crate::upper::{Base, Reset, ResetError, Upper};
use crate::view::OpenMode;
use siphon_image::directory::Directory;
use siphon_image::tree::Attr;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

struct Test {
    _dir: tempfile::TempDir,
    lower: Arc<Directory>,
    upper: PathBuf,
}

/// A lower tree with two directories, and a layer over it.
fn test() -> Test {
    let dir = tempfile::tempdir().unwrap();
    let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
    for directory in ["data/deep", "opt/old"] {
        std::fs::create_dir_all(lower.join(directory)).unwrap();
    }
    for file in ["data/a", "data/b", "data/deep/c", "opt/old/lost", "opt/z"] {
        std::fs::write(lower.join(file), file).unwrap();
    }
    let base = Base { version: 1, image: "/image".into(), identity: String::new() };
    Upper::create(&upper, &base).unwrap();
    let lower = Arc::new(Directory::open(&lower).unwrap());
    Test { _dir: dir, lower, upper }
}

impl Test {
    fn view(&self) -> View {
        View::new(self.lower.clone(), Some(Upper::open(&self.upper).unwrap())).unwrap()
    }

    /// Each change as a letter and a path.
    fn changes(&self) -> Vec<String> {
        let view = self.view();
        told(Changes::of_layer(self.lower.as_ref(), &view, Owners::Keep))
    }
}

fn told(changes: impl Iterator<Item = Result<Change, Error>>) -> Vec<String> {
    let letter = |change: &Change| match (&change.old, &change.new) {
        (None, _) => 'A',
        (_, None) => 'D',
        _ if change.apart.content => 'C',
        _ => 'M',
    };
    changes
        .map(|change| change.unwrap())
        .map(|change| format!("{} {}", letter(&change), change.path.display()))
        .collect()
}

fn find(view: &View, path: &str) -> Ino {
    path.split('/').fold(Ino::ROOT, |dir, name| view.lookup(dir, OsStr::new(name)).unwrap().0)
}

const WRITE: OpenMode = OpenMode { write: true, append: false, truncate: false };

fn write(view: &View, path: &str, bytes: &[u8]) {
    let file = view.open(find(view, path), WRITE).unwrap();
    view.write(&file, 0, bytes).unwrap();
}

#[test]
fn a_layer_without_changes_has_none() {
    assert_eq!(test().changes(), [""; 0]);
}

#[test]
fn every_kind_of_change_is_told_in_path_order() {
    let t = test();
    let view = t.view();
    write(&view, "data/a", b"new");
    let b = find(&view, "data/b");
    let change = crate::view::SetAttr { mode: Some(0o600), ..Default::default() };
    view.set_attr(b, &change).unwrap();
    let opt = find(&view, "opt");
    view.unlink(find(&view, "data/deep"), OsStr::new("c")).unwrap();
    std::fs::write(t.upper.join("data/new"), b"12").unwrap();
    std::fs::create_dir(t.upper.join("data/made")).unwrap();
    std::fs::write(t.upper.join("data/made/x"), b"x").unwrap();
    view.unlink(find(&view, "opt/old"), OsStr::new("lost")).unwrap();
    view.remove_directory(opt, OsStr::new("old")).unwrap();

    let told = t.changes();

    let expected = ["C /data/a", "M /data/b", "D /data/deep/c", "A /data/made", "A /data/made/x", "A /data/new"];
    assert_eq!(told, [&expected[..], &["D /opt/old", "D /opt/old/lost"]].concat());
}

#[test]
fn a_layer_is_told_as_the_two_trees_are() {
    let t = test();
    let view = t.view();
    write(&view, "opt/z", b"Z");
    view.unlink(find(&view, "data"), OsStr::new("b")).unwrap();

    let view = t.view();
    let between = told(Changes::between(t.lower.as_ref(), &view, Owners::Keep));

    assert_eq!(between, t.changes());
    assert_eq!(between, ["D /data/b", "C /opt/z"]);
}

#[test]
fn a_file_that_was_written_with_what_it_had_changes_at_most_its_time() {
    let t = test();
    let view = t.view();
    write(&view, "data/a", b"d");
    let time = siphon_image::tree::Timestamp { seconds: 1, nanos: 0 };
    let change = crate::view::SetAttr { mtime: Some(crate::view::SetTime::At(time)), ..Default::default() };
    view.set_attr(find(&view, "data/a"), &change).unwrap();

    assert_eq!(t.changes(), ["M /data/a"]);
}

#[test]
fn a_directory_in_itself_is_an_error() {
    #[derive(Debug)]
    struct Looped;
    impl Tree for Looped {
        fn root(&self) -> NodeId {
            NodeId(0)
        }
        fn attr(&self, _: NodeId) -> Result<Attr, tree::Error> {
            tree::EmptyTree.attr(NodeId(0))
        }
        fn lookup(&self, _: NodeId, _: &OsStr) -> Result<Option<NodeId>, tree::Error> {
            Ok(Some(NodeId(0)))
        }
        fn entries(&self, _: NodeId) -> Result<Vec<tree::Entry>, tree::Error> {
            Ok(vec![tree::Entry { name: "x".into(), node: NodeId(0), kind: Kind::Directory }])
        }
        fn read_link(&self, _: NodeId) -> Result<OsString, tree::Error> {
            Err(tree::Error::NotASymlink)
        }
        fn read(&self, _: NodeId, _: u64, _: &mut [u8]) -> Result<usize, tree::Error> {
            Err(tree::Error::NotAFile)
        }
        fn xattrs(&self, _: NodeId) -> Result<Vec<tree::Xattr>, tree::Error> {
            Ok(Vec::new())
        }
        fn statistics(&self) -> tree::Statistics {
            tree::Statistics::default()
        }
    }

    let told: Vec<_> = Changes::between(&tree::EmptyTree, &Looped, Owners::Keep).collect();

    assert!(told.last().unwrap().is_err(), "{told:?}");
}

fn reset(t: &Test, path: &str) -> Result<Reset, ResetError> {
    let upper = Upper::open(&t.upper).unwrap();
    upper.lock_exclusive().unwrap();
    upper.reset(&Path::new(path).iter().map(OsStr::to_owned).collect::<Vec<_>>(), t.lower.as_ref())
}

#[test]
fn paths_go_back_to_the_image_one_by_one() {
    let t = test();
    let view = t.view();
    write(&view, "data/a", b"new");
    view.unlink(find(&view, "data"), OsStr::new("b")).unwrap();
    std::fs::create_dir(t.upper.join("data/made")).unwrap();
    std::fs::write(t.upper.join("data/made/x"), b"x").unwrap();

    assert_eq!(reset(&t, "data/a").unwrap(), Reset::Done);
    assert_eq!(t.changes(), ["D /data/b", "A /data/made", "A /data/made/x"]);
    assert_eq!(reset(&t, "data/b").unwrap(), Reset::Done);
    assert_eq!(reset(&t, "data/made").unwrap(), Reset::Done);

    assert_eq!(t.changes(), [""; 0]);
    assert_eq!(reset(&t, "data/a").unwrap(), Reset::Unchanged);
}

#[test]
fn what_lies_below_a_removed_directory_goes_back_with_that_only() {
    let t = test();
    let view = t.view();
    view.unlink(find(&view, "opt/old"), OsStr::new("lost")).unwrap();
    view.remove_directory(find(&view, "opt"), OsStr::new("old")).unwrap();

    let Err(ResetError::Replaced(path)) = reset(&t, "opt/old/lost") else { panic!("it cannot go back alone") };

    assert_eq!(path, Path::new("/opt/old"));
    assert_eq!(reset(&t, "opt/old").unwrap(), Reset::Done);
    assert_eq!(t.changes(), [""; 0]);
}

#[test]
fn all_names_of_a_hard_linked_file_are_told_when_one_was_written() {
    let t = test_with_a_hard_link();
    write(&t.view(), "opt/z", b"Z");

    assert_eq!(t.changes(), ["C /data/deep/other", "C /opt/z"]);
}

/// The base with `data/deep/other` as a second name of `opt/z`.
fn test_with_a_hard_link() -> Test {
    let t = test();
    let lower = t.upper.with_file_name("lower");
    std::fs::hard_link(lower.join("opt/z"), lower.join("data/deep/other")).unwrap();
    Test { lower: Arc::new(Directory::open(&lower).unwrap()), ..t }
}

#[test]
fn a_hard_linked_file_goes_back_under_all_its_names_whichever_is_told() {
    for path in ["opt/z", "data/deep/other", "data/deep", "opt"] {
        let t = test_with_a_hard_link();
        write(&t.view(), "opt/z", b"Z");

        assert_eq!(reset(&t, path).unwrap(), Reset::Done, "{path}");

        assert_eq!(t.changes(), [""; 0], "{path}");
        let view = t.view();
        let (one, other) = (find(&view, "opt/z"), find(&view, "data/deep/other"));
        assert_eq!((one, view.attr(one).unwrap().nlink), (other, 2), "{path}");
        assert_eq!(std::fs::read_dir(t.upper.join(".siphon/links")).unwrap().count(), 0, "{path}");
    }
}

#[test]
fn a_removed_hard_link_that_goes_back_counts_again() {
    for path in ["data/deep/other", "data/deep"] {
        let t = test_with_a_hard_link();
        let view = t.view();
        view.unlink(find(&view, "data/deep"), OsStr::new("other")).unwrap();
        assert_eq!(view.attr(find(&view, "opt/z")).unwrap().nlink, 1);
        drop(view);

        assert_eq!(reset(&t, path).unwrap(), Reset::Done, "{path}");

        let view = t.view();
        assert_eq!(view.attr(find(&view, "opt/z")).unwrap().nlink, 2, "{path}");
    }
}

#[test]
fn a_copy_under_a_name_that_the_image_lacks_is_a_file_of_its_own_once_the_others_went_back() {
    let t = test_with_a_hard_link();
    let view = t.view();
    write(&view, "opt/z", b"Z");
    let (opt, data) = (find(&view, "opt"), find(&view, "data"));
    view.rename(opt, OsStr::new("z"), data, OsStr::new("moved"), crate::view::RenameMode::Replace).unwrap();
    drop(view);

    assert_eq!(reset(&t, "opt/z").unwrap(), Reset::Done);

    assert_eq!(reset(&t, "data/deep/other").unwrap(), Reset::Unchanged);
    let view = t.view();
    assert_eq!(t.changes(), ["A /data/moved"]);
    // Whichever is looked up first.
    let moved = find(&view, "data/moved");
    assert_ne!(moved, find(&view, "opt/z"));
    assert_eq!(view.attr(find(&view, "opt/z")).unwrap().nlink, 2);
}

#[test]
fn a_renamed_file_is_one_of_its_own_once_its_name_went_back() {
    let t = test();
    let view = t.view();
    write(&view, "data/a", b"changed");
    let data = find(&view, "data");
    view.rename(data, OsStr::new("a"), data, OsStr::new("moved"), crate::view::RenameMode::Replace).unwrap();
    drop(view);

    assert_eq!(reset(&t, "data/a").unwrap(), Reset::Done);

    let view = t.view();
    let moved = find(&view, "data/moved");
    assert_ne!(moved, find(&view, "data/a"));
    assert_eq!(t.changes(), ["A /data/moved"]);
}

#[test]
fn places_to_mount_on_are_no_changes_until_something_is_in_them() {
    let t = test();
    let view = t.view();
    for directory in ["home", "home/user", "mnt", "mnt/used"] {
        std::fs::create_dir(t.upper.join(directory)).unwrap();
        view.note_place(&Path::new("/").join(directory)).unwrap();
    }
    for (file, content) in [("hosts", ""), ("written", "x"), ("mnt/used/file", "x"), ("own", "")] {
        std::fs::write(t.upper.join(file), content).unwrap();
    }
    view.note_place(Path::new("/hosts")).unwrap();
    view.note_place(Path::new("/written")).unwrap();
    drop(view);

    let places = Upper::open(&t.upper).unwrap().places().unwrap();
    let view = t.view();
    let told = told(Changes::of_layer(t.lower.as_ref(), &view, Owners::Keep).without(places));

    assert_eq!(told, ["A /mnt", "A /mnt/used", "A /mnt/used/file", "A /own", "A /written"]);
}
