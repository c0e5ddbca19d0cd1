use super::*;

fn layer(form: Form) -> (tempfile::TempDir, Upper) {
    let dir = tempfile::tempdir().unwrap();
    let mut upper = Upper::open(dir.path()).unwrap();
    upper.form = form;
    upper.markers = AtomicBool::new(form == Form::Marker);
    (dir, upper)
}

const FORMS: [Form; 3] = [Form::Device, Form::Xattr, Form::Marker];

#[test]
fn a_whiteout_of_every_form_hides_a_name_and_gives_way_to_a_node() {
    for form in FORMS {
        let (_dir, upper) = layer(form);
        let name = OsStr::new("name");

        upper.whiteout(upper.root(), name).unwrap();

        assert!(matches!(upper.place(upper.root(), name).unwrap(), Place::Whiteout), "{form:?}");
        let staged = upper.temporary();
        fs::mkdirat(upper.work().unwrap(), &staged, Mode::RWXU).unwrap();
        upper.install(&staged, upper.root(), name).unwrap();
        assert!(matches!(upper.place(upper.root(), name).unwrap(), Place::Object(_)), "{form:?}");
        upper.remove(upper.root(), name).unwrap();
        assert!(matches!(upper.place(upper.root(), name).unwrap(), Place::Absent), "{form:?}");
    }
}

#[test]
fn a_whiteout_replaces_a_directory_with_whiteouts_in_it() {
    for form in FORMS {
        let (dir, upper) = layer(form);
        std::fs::create_dir_all(dir.path().join("d/e/f")).unwrap();
        let d = host::open_directory(upper.root(), OsStr::new("d")).unwrap();
        upper.whiteout(d.as_fd(), OsStr::new("inside")).unwrap();

        upper.whiteout(upper.root(), OsStr::new("d")).unwrap();

        assert!(matches!(upper.place(upper.root(), OsStr::new("d")).unwrap(), Place::Whiteout), "{form:?}");
        assert!(host::list(upper.work().unwrap()).unwrap().is_empty(), "{form:?}");
    }
}

#[test]
fn every_form_of_an_opaque_directory_is_recognised() {
    for form in FORMS {
        let (_dir, upper) = layer(form);
        assert!(!upper.is_opaque(upper.root()).unwrap());

        upper.make_opaque(upper.root()).unwrap();

        assert!(upper.is_opaque(upper.root()).unwrap(), "{form:?}");
    }
}

#[test]
fn markers_are_remembered_and_are_names_like_any_other_before() {
    let (dir, upper) = layer(Form::Device);
    assert!(!upper.is_mark(OsStr::new(".wh.x")));

    let marking = Upper { form: Form::Marker, ..upper };
    marking.whiteout(marking.root(), OsStr::new("x")).unwrap();

    assert!(Upper::open(dir.path()).unwrap().is_mark(OsStr::new(".wh.x")));
}

#[test]
fn a_name_of_255_bytes_is_marked_apart_from_one_that_differs_at_its_end() {
    let (_dir, upper) = layer(Form::Marker);
    for length in [251, 252, 255] {
        let [name, other] = ["a", "b"].map(|end| OsString::from("n".repeat(length - 1) + end));

        upper.whiteout(upper.root(), &name).unwrap();

        assert!(matches!(upper.place(upper.root(), &name).unwrap(), Place::Whiteout), "{length}");
        assert!(matches!(upper.place(upper.root(), &other).unwrap(), Place::Absent), "{length}");
        upper.unmark(upper.root(), &name).unwrap();
        assert!(matches!(upper.place(upper.root(), &name).unwrap(), Place::Absent), "{length}");
    }
}

#[test]
fn a_marker_tells_whose_absence_it_marks_however_long_the_name() {
    let (dir, upper) = layer(Form::Marker);
    for name in ["x".to_owned(), ".wh.x".to_owned(), "n".repeat(251), "n".repeat(252), "n".repeat(255)] {
        upper.whiteout(upper.root(), OsStr::new(&name)).unwrap();

        let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let told: Vec<_> = entries.filter_map(|entry| upper.marked_name(upper.root(), &entry).unwrap()).collect();
        assert_eq!(told, [OsString::from(&name)]);
        upper.unmark(upper.root(), OsStr::new(&name)).unwrap();
    }
}

#[test]
fn a_directory_that_replaces_another_by_markers_leaves_none_behind() {
    let (dir, upper) = layer(Form::Marker);
    std::fs::create_dir_all(dir.path().join("d/old")).unwrap();
    let staged = upper.temporary();
    fs::mkdirat(upper.work().unwrap(), &staged, Mode::RWXU).unwrap();

    upper.install(&staged, upper.root(), OsStr::new("d")).unwrap();

    assert!(matches!(upper.place(upper.root(), OsStr::new("d")).unwrap(), Place::Object(_)));
    assert!(std::fs::read_dir(dir.path().join("d")).unwrap().next().is_none());
    assert!(!upper.is_marked(upper.root(), OsStr::new("d")).unwrap());
}

#[test]
fn a_second_writer_is_told_who_has_the_layer() {
    let (dir, upper) = layer(Form::Device);
    upper.lock_exclusive().unwrap();

    let refused = Upper::open(dir.path()).unwrap().lock_exclusive().unwrap_err();

    assert!(refused.to_string().contains(&format!("process {} on ", std::process::id())), "{refused}");
    drop(upper);
    Upper::open(dir.path()).unwrap().lock_exclusive().unwrap();
}

#[test]
fn a_layer_that_the_kernel_still_merges_has_no_other_writer() {
    let (dir, killed) = layer(Form::Device);
    killed.lock_exclusive().unwrap();
    killed.note_merged(Some(Path::new("/proc/1/fd/9"))).unwrap();
    drop(killed);

    let next = Upper::open(dir.path()).unwrap();
    let mut asked = String::new();
    let refused = next.lock_exclusive_unless(|option| {
        option.clone_into(&mut asked);
        Some("process 7 (sh)".to_owned())
    });

    assert_eq!(asked, "upperdir=/proc/1/fd/9");
    assert!(refused.unwrap_err().to_string().contains("process 7 (sh)"));
    next.lock_exclusive_unless(|_| None).unwrap();
    drop(next);
    Upper::open(dir.path()).unwrap().lock_exclusive_unless(|option| panic!("{option} is noted still")).unwrap();
}

#[test]
fn locking_clears_what_a_crash_left_in_work() {
    let (dir, upper) = layer(Form::Device);
    std::fs::create_dir_all(dir.path().join(".siphon/work/left/deep/deeper")).unwrap();
    std::fs::write(dir.path().join(".siphon/work/left/file"), b"x").unwrap();

    upper.lock_exclusive().unwrap();

    assert!(host::list(upper.work().unwrap()).unwrap().is_empty());
}

#[test]
fn a_layer_knows_its_base_and_is_made_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    let base = Base { version: 1, image: "/images/a.sif".into(), identity: "abc".into() };

    assert_eq!(Base::read(dir.path()).unwrap(), None);
    Upper::create(&path, &base).unwrap();

    assert_eq!(Base::read(&path).unwrap(), Some(base.clone()));
    assert_eq!(Upper::create(&path, &base).unwrap_err().errno(), Errno::EXIST.raw_os_error());
}

#[test]
fn a_private_directory_that_is_a_link_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join(PRIVATE_NAME)).unwrap();

    assert!(Upper::open(dir.path()).is_err());
    assert!(std::fs::read_dir(outside.path()).unwrap().next().is_none());
}
