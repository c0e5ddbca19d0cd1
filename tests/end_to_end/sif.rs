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
