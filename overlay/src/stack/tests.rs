use super::*;
use rustix::fs::{self, CWD, FileType, Mode, XattrFlags};
use siphon_image::directory::Directory;
use siphon_image::tree::{Kind, NodeId};
use std::ffi::OsStr;
use std::path::Path;
use tempfile::TempDir;

/// Directories with these files in them; a name that ends in a slash is a directory.
fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(if name.ends_with('/') { &path } else { path.parent().unwrap() }).unwrap();
        if !name.ends_with('/') {
            std::fs::write(path, content).unwrap();
        }
    }
    directory
}

fn tree(directory: &TempDir) -> Arc<dyn Tree> {
    Arc::new(Directory::open(directory.path()).unwrap())
}

fn whiteout(path: &Path) {
    fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn opaque(path: &Path) {
    fs::setxattr(path, "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
}

fn find(tree: &dyn Tree, path: &str) -> Option<NodeId> {
    path.split('/').try_fold(tree.root(), |dir, name| tree.lookup(dir, OsStr::new(name)).unwrap())
}

fn content(tree: &dyn Tree, path: &str) -> String {
    let mut buf = [0; 64];
    let read = tree.read(find(tree, path).unwrap(), 0, &mut buf).unwrap();
    String::from_utf8(buf[..read].to_vec()).unwrap()
}

fn names(tree: &dyn Tree, path: &str) -> Vec<String> {
    let dir = if path.is_empty() { tree.root() } else { find(tree, path).unwrap() };
    let entries = tree.entries(dir).unwrap();
    for entry in &entries {
        assert_eq!(tree.lookup(dir, &entry.name).unwrap(), Some(entry.node), "{entry:?}");
        assert_eq!(tree.attr(entry.node).unwrap().kind, entry.kind, "{entry:?}");
    }
    entries.into_iter().map(|entry| entry.name.into_string().unwrap()).collect()
}

/// How a layer is put on a stack.
type Push = fn(&mut Stack, &TempDir);

const PUSHES: [Push; 2] = [
    |stack, layer| stack.push_directory(Upper::open_overlay_read_only(layer.path()).unwrap()).unwrap(),
    |stack, layer| stack.push_tree(tree(layer)).unwrap(),
];

#[test]
fn the_topmost_layer_that_has_a_name_wins_and_directories_merge() {
    for (first, second) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let image = directory(&[("d/a", "image"), ("d/b", "image"), ("d/c", "image"), ("only/i", "image")]);
        let one = directory(&[("d/b", "one"), ("d/c", "one"), ("d/one", "one")]);
        let two = directory(&[("d/c", "two"), ("top/t", "two")]);
        let mut stack = Stack::new(tree(&image));
        PUSHES[first](&mut stack, &one);
        PUSHES[second](&mut stack, &two);

        let tree = stack.tree();

        assert_eq!(["d/a", "d/b", "d/c", "d/one"].map(|path| content(&*tree, path)), ["image", "one", "two", "one"]);
        assert_eq!(names(&*tree, ""), ["d", "only", "top"]);
        assert_eq!(names(&*tree, "d"), ["a", "b", "c", "one"]);
        assert_eq!((names(&*tree, "only"), names(&*tree, "top")), (vec!["i".to_owned()], vec!["t".to_owned()]));
    }
}

#[test]
fn whiteouts_and_opaque_directories_of_any_layer_hide_all_below() {
    for (first, second) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let image = directory(&[("gone", "image"), ("d/old", "image"), ("kept/x", "image"), ("tree/deep/x", "")]);
        let one = directory(&[("d/new", "one"), ("tree", "a file now")]);
        whiteout(&one.path().join("gone"));
        opaque(&one.path().join("d"));
        let two = directory(&[("kept/y", "two"), ("d/newest", "two"), ("tree/other", "two")]);
        whiteout(&two.path().join("kept/x"));
        let mut stack = Stack::new(tree(&image));
        PUSHES[first](&mut stack, &one);
        PUSHES[second](&mut stack, &two);

        let tree = stack.tree();

        assert_eq!(names(&*tree, ""), ["d", "kept", "tree"]);
        assert_eq!(
            (names(&*tree, "d"), names(&*tree, "kept")),
            (vec!["new".into(), "newest".into()], vec!["y".into()])
        );
        assert_eq!(names(&*tree, "tree"), ["other"]);
        assert_eq!((find(&*tree, "gone"), find(&*tree, "kept/x"), find(&*tree, "d/old")), (None, None, None));
    }
}

#[test]
fn a_node_has_the_same_number_each_time_and_no_other_node_has_it() {
    let image = directory(&[("d/a", "image"), ("d/b", "image")]);
    let layers = [directory(&[("d/b", "one"), ("d/c", "one")]), directory(&[("d/c", "two"), ("d/e", "two")])];
    let numbers = |order: [usize; 3]| {
        let mut stack = Stack::new(tree(&image));
        PUSHES[0](&mut stack, &layers[0]);
        PUSHES[1](&mut stack, &layers[1]);
        PUSHES[0](&mut stack, &layers[0]);
        let tree = stack.tree();
        let paths = ["d/a", "d/e", "d/c"];
        let mut found: Vec<_> = order.map(|index| (paths[index], find(&*tree, paths[index]).unwrap())).into();
        found.sort();
        found
    };

    let first = numbers([0, 1, 2]);

    assert_eq!(first, numbers([2, 1, 0]));
    let mut different: Vec<_> = first.iter().map(|(_, node)| node).collect();
    different.dedup();
    assert_eq!(different.len(), 3);
}

#[test]
fn a_layer_that_takes_writes_lies_on_a_stack_as_on_an_image() {
    let image = directory(&[("d/a", "image")]);
    let layer = directory(&[("d/b", "layer"), ("d/hidden", "layer")]);
    let top = tempfile::tempdir().unwrap();
    let mut stack = Stack::new(tree(&image));
    PUSHES[0](&mut stack, &layer);
    PUSHES[1](&mut stack, &layer);
    let view = View::new(stack.tree(), Some(Upper::open_overlay(top.path()).unwrap())).unwrap();
    let (d, _) = view.lookup(crate::view::Ino::ROOT, OsStr::new("d")).unwrap();

    let (b, _) = view.lookup(d, OsStr::new("b")).unwrap();
    view.set_attr(b, &crate::view::SetAttr { mode: Some(0o600), ..Default::default() }).unwrap();
    view.unlink(d, OsStr::new("hidden")).unwrap();

    assert_eq!(names(&view, "d"), ["a", "b"]);
    assert_eq!(view.attr(b).unwrap().mode, 0o600);
    assert_eq!(view.attr(d).unwrap().kind, Kind::Directory);
    assert_eq!(std::fs::read(layer.path().join("d/b")).unwrap(), b"layer");
    assert_eq!(content(&view, "d/b"), "layer");
}

#[test]
fn overlayfs_own_xattrs_of_an_image_do_not_show() {
    let (image, layer) = (directory(&[("d/a", "")]), directory(&[("d/b", "")]));
    opaque(&layer.path().join("d"));
    fs::setxattr(layer.path().join("d"), "user.note", b"v", XattrFlags::empty()).unwrap();
    let mut stack = Stack::new(tree(&image));
    PUSHES[1](&mut stack, &layer);

    let found = stack.tree().xattrs(find(&*stack.tree(), "d").unwrap()).unwrap();

    assert_eq!(found, [("user.note".into(), b"v".to_vec())]);
}

#[test]
fn more_layers_than_there_are_numbers_for_are_refused() {
    let image = directory(&[]);
    let mut stack = Stack::new(tree(&image));
    for _ in 0..MAX_LAYERS {
        stack.push_tree(tree(&image)).unwrap();
    }

    assert!(stack.push_tree(tree(&image)).is_err());
}

#[test]
fn marks_of_fuse_overlayfs_hide_in_an_overlay_directory_that_it_wrote() {
    let image = directory(&[("d/gone", "image"), ("d/kept", "image"), ("hidden/x", "image")]);
    let layer = directory(&[("upper/d/.wh.gone", ""), ("upper/hidden/y", "layer"), ("work/work/", "")]);
    fs::setxattr(layer.path().join("upper/hidden"), "user.fuseoverlayfs.opaque", b"y", XattrFlags::empty()).unwrap();
    let mut stack = Stack::new(tree(&image));
    stack.push_directory(Upper::open_overlay_read_only(layer.path()).unwrap()).unwrap();
    let written = View::new(tree(&image), Some(Upper::open_overlay(layer.path()).unwrap())).unwrap();

    let read = stack.tree();
    for tree in [&*read, &written as &dyn Tree] {
        assert_eq!((names(tree, "d"), names(tree, "hidden")), (vec!["kept".into()], vec!["y".into()]));
    }
}
