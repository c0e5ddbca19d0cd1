use crate::support::environment::TestEnvironment;

#[test]
fn inspect_shows_what_the_image_says_of_itself() {
    let environment = TestEnvironment::new();
    let cases = [
        (None, "maker: siphon tests"),
        (Some("--labels"), "maker: siphon tests"),
        (Some("--deffile"), "bootstrap: scratch"),
        (Some("--runscript"), "echo \"runscript"),
        (Some("--environment"), "export FROM_IMAGE=image"),
    ];

    for (option, expected) in cases {
        let arguments: Vec<_> = ["inspect"].into_iter().chain(option).chain([environment.images().sif()]).collect();
        let output = environment.siphon(&arguments).stdout();

        assert!(output.contains(expected), "{option:?}: {output}");
    }
}

#[test]
fn inspect_speaks_apptainers_json() {
    let environment = TestEnvironment::new();

    let output = environment.siphon(&["inspect", "--json", environment.images().sif()]).stdout();

    let json: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!(json["type"], "container");
    assert_eq!(json["data"]["attributes"]["labels"]["maker"], "siphon tests");
}

#[test]
fn looking_into_an_image_starts_no_daemon() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    let listing = environment.siphon(&["ls", image, "/data"]).stdout();
    let content = environment.siphon(&["cat", image, "/data/greeting"]).stdout();
    let through_a_link = environment.siphon(&["cat", image, "/data/link"]).stdout();

    for name in ["greeting", "same-greeting", "link", "payload", "empty"] {
        assert!(listing.contains(name), "{name}: {listing}");
    }
    assert_eq!(content, "hello from the image");
    assert_eq!(through_a_link, content);
    assert_eq!(environment.daemons(), Vec::<i32>::new());
}

#[test]
fn cat_copies_every_byte() {
    let environment = TestEnvironment::new();
    let (image, root) = (environment.images().sif(), environment.images().root.display());

    environment.shell(&format!("siphon cat {image} /data/payload | cmp - {root}/data/payload")).stdout();
}

#[test]
fn a_reader_that_stops_early_is_no_error() {
    let environment = TestEnvironment::new();

    let line = format!("siphon cat {} /data/payload | head -c 10 | wc -c", environment.images().sif());
    let finished = environment.shell(&line).run();

    assert_eq!((finished.stdout.trim(), finished.stderr.as_str()), ("10", ""), "{finished}");
}
