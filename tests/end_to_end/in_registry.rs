//! OCI images that are run where they are, in whichever form their layers have.

use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use crate::support::image::make_system;
use crate::support::registry::Registry;
use std::path::Path;
use std::process::Command;

/// When the image was created, as it says itself: later than any file in it.
const CREATED: &str = "2000000000";
/// What makes an image, and what writes its layers in another form.
const MAKER: &str = include_str!("../support/oci_layout.py");
const FORMS: &str = include_str!("../support/oci_forms.py");

fn python(script: &str, arguments: &[&Path]) {
    let made = Command::new("python3").args(["-c", script]).args(arguments).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// An image in a directory, as `oci:` names it.
fn layout(directory: &Path) -> std::path::PathBuf {
    let root = tempfile::tempdir().unwrap();
    make_system(root.path(), &[]);
    python(MAKER, &[root.path(), directory]);
    directory.join("layout")
}

/// Sends an image to a registry as it is, and returns its name there.
fn send(layout: &Path, registry: &Registry, name: &str) -> String {
    let uri = format!("docker://{}/some/{name}:1", registry.host());
    copy(&format!("oci:{}", layout.display()), &uri, &["--preserve-digests"]);
    uri
}

fn copy(from: &str, to: &str, options: &[&str]) {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--insecure-policy", "--dest-tls-verify=false"]).args(options);
    let sent = skopeo.args([from, to]).output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
}

#[test]
fn an_image_is_the_same_read_in_place_and_converted_whatever_the_form_of_its_layers() {
    as_user_and_as_root(|environment| {
        let registry = Registry::start();
        let place = tempfile::tempdir().unwrap();
        let made = layout(place.path());
        let [tar, estargz] = ["tar", "estargz"].map(|form| {
            let other = place.path().join(form);
            python(FORMS, &[&made, &other, Path::new(form)]);
            other
        });
        // Skopeo compresses what is not compressed yet.
        let [zstd, chunked] = ["zstd", "zstd:chunked"].map(|form| {
            let other = place.path().join(form.replace(':', "-"));
            copy(
                &format!("oci:{}", tar.display()),
                &format!("oci:{}", other.display()),
                &["--dest-compress-format", form],
            );
            other
        });
        let forms = [("gzip", &made), ("tar", &tar), ("estargz", &estargz), ("zstd", &zstd), ("chunked", &chunked)];
        let images = forms.map(|(name, layout)| send(layout, &registry, name));
        for uri in &images {
            // What skopeo 1.9 makes of chunks decompresses to another archive than the configuration says, which is refused.
            let converted = if uri.contains("chunked") { &images[0] } else { uri };
            let pull = ["pull", "--force", "pulled.sif", converted];
            let pulled = environment.siphon(&pull).env("SOURCE_DATE_EPOCH", CREATED).run();
            assert_eq!(pulled.code, 0, "{pulled}");

            let differs = environment.siphon(&["diff", uri, "pulled.sif"]).run();
            let ran = environment.siphon(&["run", uri, "mine"]).run();
            let again = environment.siphon(&["exec", uri, "sh", "-c", "cat /layers/replaced; echo $FROM_IMAGE"]).run();

            // The table of an eStargz is a file of its archive, and none of the image.
            let is_meant = |line: &&str| {
                line.ends_with("/stargz.index.json") || converted != uri && line.contains("/.singularity.d/")
            };
            let differing = differs.stdout.lines().find(|line| !is_meant(line));
            assert_eq!((differs.code, differing), (0, None), "{uri}: {differs}");
            assert_eq!((ran.code, ran.stdout.as_str()), (0, "entry point: mine\n"), "{uri}: {ran}");
            assert_eq!((again.code, again.stdout.as_str()), (0, "above\nsome words\n"), "{uri}: {again}");
            assert!(!ran.stderr.contains("Converting"), "{uri}: {ran}");
        }
    });
}

/// Bytes of layers, and of what else comes from a registry, in the cache.
fn stored_bytes(environment: &TestEnvironment) -> u64 {
    let listed = environment.siphon(&["cache", "list", "--json", "--type", "blob"]).stdout();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    listed.as_array().unwrap().iter().map(|entry| entry["stored_bytes"].as_u64().unwrap()).sum()
}

#[test]
fn an_index_that_one_machine_has_sent_saves_another_the_layers() {
    as_user_and_as_root(|environment| {
        let registry = Registry::start();
        let place = tempfile::tempdir().unwrap();
        let uri = send(&layout(place.path()), &registry, "tool");
        let line = ["cat", &uri, "/layers/replaced"];

        assert_eq!(environment.siphon(&line).stdout(), "above");
        let whole = stored_bytes(environment);
        let sent = environment.siphon(&["index", "--push", &uri]).run();
        environment.siphon(&["cache", "clean", "-f"]).stdout();
        let nothing = stored_bytes(environment);
        let again = environment.siphon(&line).stdout();

        assert_eq!(sent.code, 0, "{sent}");
        assert!(sent.stderr.contains("2 of 2 layers"), "{sent}");
        assert_eq!((again.as_str(), nothing), ("above", 0));
        let part = stored_bytes(environment);
        assert!(part < whole / 2, "{part} of {whole} bytes");
    });
}

#[test]
fn what_was_read_of_an_image_is_there_when_its_registry_is_gone() {
    let environment = TestEnvironment::new();
    let registry = Registry::start();
    let place = tempfile::tempdir().unwrap();
    let uri = send(&layout(place.path()), &registry, "tool");
    let line = ["cat", &uri, "/layers/replaced"];

    let before = environment.siphon(&line).stdout();
    drop(registry);
    let after = environment.siphon(&line).run();
    let none = environment.siphon(&["cat", &format!("{uri}2"), "/layers/replaced"]).run();

    assert_eq!((before.as_str(), after.stdout.as_str()), ("above", "above\n"), "{after}");
    assert_eq!(none.code, 255, "{none}");
}

#[test]
fn a_layer_that_is_another_than_its_digest_says_is_refused() {
    let environment = TestEnvironment::new();
    let registry = Registry::start();
    let place = tempfile::tempdir().unwrap();
    let made = layout(place.path());
    let uri = send(&made, &registry, "tool");
    let blobs = std::fs::read_dir(made.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let largest = blobs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let digest = largest.file_name().unwrap().to_str().unwrap();
    registry.damage(digest);

    let refused = environment.siphon(&["exec", &uri, "true"]).run();

    assert_eq!(refused.code, 255, "{refused}");
    assert!(refused.stderr.contains(&format!("cannot read the layer sha256:{digest}")), "{refused}");
}

#[test]
fn a_pinned_image_of_layers_runs_without_its_registry_as_what_it_was() {
    as_user_and_as_root(|environment| {
        let registry = Registry::start();
        let place = tempfile::tempdir().unwrap();
        let made = layout(place.path());
        let (uri, other) = (send(&made, &registry, "tool"), send(&made, &registry, "other"));
        let list = || environment.siphon(&["pin", "--list"]).stdout();

        let pinned = [&uri, &other].map(|uri| environment.siphon(&["pin", uri]).run());
        let both = list();
        let let_go = environment.siphon(&["pin", "--unpin", &other]).run();
        let one = list();
        // Neither a clean cache nor one that is kept to nothing takes it away.
        let cleaned = environment.siphon(&["cache", "clean", "--force"]).run();
        environment.siphon(&["cache", "limit", "1K"]).stdout();
        let moved = place.path().join("moved");
        python(FORMS, &[&made, &moved, Path::new("tar")]);
        send(&moved, &registry, "tool");
        let online = environment.siphon(&["exec", &uri, "cat", "/layers/replaced"]).run();
        let status = environment.siphon(&["status", "--json"]).stdout();
        environment.wait_for_daemons_to_leave();
        drop(registry);
        let offline = environment.siphon(&["exec", &uri, "cat", "/layers/replaced"]).run();
        let all = environment.siphon(&["exec", &uri, "sh", "-c", "cat /layers/* /bin/* > /dev/null"]).run();
        let unpinned = environment.siphon(&["pin", "--unpin", &uri]).run();

        for pinned in &pinned {
            assert!(pinned.code == 0 && pinned.stderr.contains("Pinned docker://"), "{pinned}");
        }
        assert!(both.contains(&uri) && both.contains(&other), "{both}");
        assert_eq!(let_go.code, 0, "{let_go}");
        assert!(one.contains(&uri) && !one.contains(&other), "{one}");
        assert!(cleaned.stderr.contains("Keeping what is pinned"), "{cleaned}");
        for run in [online, offline] {
            assert_eq!((run.code, run.stdout.as_str()), (0, "above\n"), "{run}");
        }
        assert!(status.contains(r#""requests": 0"#) && status.contains(r#""pinned": true"#), "{status}");
        assert!(all.code == 0 && !all.stderr.contains("error"), "{all}");
        assert_eq!((unpinned.code, list().as_str()), (0, ""), "{unpinned}");
    });
}

#[test]
fn an_image_file_in_a_registry_starts_without_it_and_is_pinned() {
    let environment = TestEnvironment::new();
    let registry = Registry::start();
    let uri = format!("oras://{}/some/file:1", registry.host());
    environment.siphon(&["push", environment.images().sif(), &uri]).stdout();
    let greeting = ["exec", &uri, "cat", "/data/greeting"];
    environment.siphon(&greeting).stdout();
    environment.wait_for_daemons_to_leave();

    let pinned = environment.siphon(&["pin", &uri]).run();
    let unpinned = environment.siphon(&["pin", "--unpin", &uri]).run();
    drop(registry);
    let known = environment.siphon(&greeting).run();
    let listed = environment.siphon(&["ls", &uri, "/data"]).run();
    environment.wait_for_daemons_to_leave();
    let again = environment.siphon(&["pin", &uri]).run();
    let silent = environment.siphon(&greeting).run();

    assert!(pinned.code == 0 && pinned.stderr.contains(&uri), "{pinned}");
    assert_eq!(unpinned.code, 0, "{unpinned}");
    assert_eq!((known.code, known.stdout.as_str()), (0, "hello from the image\n"), "{known}");
    assert_eq!(listed.code, 0, "{listed}");
    assert_eq!(again.code, 0, "{again}");
    assert_eq!((silent.code, silent.stdout.as_str(), silent.stderr.as_str()), (0, "hello from the image\n", ""));
}
