use crate::support::environment::TestEnvironment;
use crate::support::image::partition_start;

#[test]
fn the_objects_of_a_sif_are_listed_as_siftool_does() {
    let environment = TestEnvironment::new();
    let root = environment.images().root.display().to_string();
    environment.siphon(&["build", "made.sif", &root]).env("SOURCE_DATE_EPOCH", "1700000000").stdout();
    let made = environment.work().join("made.sif");
    let (start, end) = (partition_start(&made), made.metadata().unwrap().len());

    let list = environment.siphon(&["sif", "list", "made.sif"]).stdout();
    let header = environment.siphon(&["sif", "header", "made.sif"]).stdout();
    let info = environment.siphon(&["sif", "info", "3", "made.sif"]).stdout();
    let dump = environment.siphon(&["sif", "dump", "1", "made.sif"]).stdout();

    let last = format!("{:<5}|1       |NONE    |{:<26}|FS (Squashfs/*System/amd64)", 3, format!("{start}-{end}"));
    assert_eq!(list.lines().last(), Some(last.as_str()), "{list}");
    assert!(
        header.starts_with("Launch Script:        #!/usr/bin/env run-singularity\nVersion:              01\n"),
        "{header}"
    );
    assert!(
        header.contains("Created At:           2023-11-14 22:13:20 +0000 UTC\n") && !header.contains("\nID:"),
        "{header}"
    );
    assert!(
        header.contains("Descriptors Free:     45\n") && header.contains("Descriptors Size:     27 KiB\n"),
        "{header}"
    );
    assert!(info.contains(&format!("  Offset:           {start}\n")), "{info}");
    assert!(info.ends_with("  Partition Type:   *System\n  Architecture:     amd64"), "{info}");
    assert!(dump.starts_with("bootstrap: localimage\nfrom: "), "{dump}");
}

#[test]
fn an_object_that_is_not_there_is_an_error() {
    let environment = TestEnvironment::new();

    let missing = environment.siphon(&["sif", "info", "77", environment.images().sif()]).run();

    assert!(missing.code == 255 && missing.stderr.contains("has no object 77"), "{missing}");
}

#[test]
fn objects_are_added_and_taken_out_as_siftool_does() {
    let environment = TestEnvironment::new();
    environment.write("object", "hello\n");
    let sif = |words: &[&str]| environment.siphon(&[&["sif"], words].concat()).stdout();
    let listed = || {
        let list = sif(&["list", "made.sif"]);
        list.lines().skip(3).map(|line| line.trim_end().to_owned()).collect::<Vec<_>>()
    };
    let partition = |kind: &str| {
        let words =
            ["add", "--datatype", "4", "--partfs", "1", "--parttype", kind, "--partarch", "2", "made.sif", "object"];
        environment.siphon(&[&["sif"], &words[..]].concat()).run()
    };

    sif(&["new", "made.sif"]);
    assert_eq!(listed(), [""; 0]);
    sif(&["add", "--datatype", "1", "made.sif", "object"]);
    assert_eq!(partition("2").code, 0);
    assert_eq!(partition("1").code, 0);
    sif(&["add", "--datatype", "6", "--filename", "nm", "--groupid", "3", "--link", "1", "made.sif", "object"]);
    let refused = partition("2");
    sif(&["setprim", "3", "made.sif"]);
    sif(&["del", "2", "made.sif"]);

    // What apptainer 1.4.5 lists after the same.
    let expected = [
        "1    |NONE    |NONE    |32176-32182               |Def.FILE",
        "3    |NONE    |NONE    |36864-36870               |FS (Squashfs/*System/amd64)",
        "4    |3       |1       |36870-36876               |JSON.Generic",
    ];
    assert_eq!(listed(), expected);
    assert!(refused.stderr.contains("image already contains a primary partition"), "{refused}");
    let header = sif(&["header", "made.sif"]);
    assert!(
        header.contains("Primary Architecture: amd64\n") && header.contains("Descriptors Free:     45\n"),
        "{header}"
    );
    assert_eq!(sif(&["dump", "4", "made.sif"]), "hello");
    for (words, message) in [
        (&["del", "9", "made.sif"][..], "object not found"),
        (&["setprim", "1", "made.sif"], "data object not a partition"),
        (&["add", "--datatype", "4", "made.sif", "object"], "--partfs, --parttype and --partarch must be passed"),
    ] {
        let finished = environment.siphon(&[&["sif"], words].concat()).run();
        assert!(finished.code == 255 && finished.stderr.contains(message), "{finished}");
    }
}
