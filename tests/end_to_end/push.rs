use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use crate::support::image::make_system;
use crate::support::registry::Registry;
use serde_json::Value;
use std::process::Command;

/// What makes an OCI image in `layout`.
const MAKER: &str = include_str!("../support/oci_layout.py");

/// Makes an OCI image of two layers and puts it into the registry.
fn put_base(environment: &TestEnvironment, registry: &Registry) -> String {
    let root = tempfile::tempdir().unwrap();
    make_system(root.path(), &[]);
    let mut python = Command::new("python3");
    let made = python.args(["-c", MAKER]).args([root.path(), &environment.work()]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let uri = format!("docker://{}/base/image:1", registry.host());
    skopeo(environment, &["copy", "--dest-tls-verify=false", "oci:layout:made", &uri]);
    uri
}

fn skopeo(environment: &TestEnvironment, arguments: &[&str]) -> String {
    let output = Command::new("skopeo").args(arguments).current_dir(environment.work()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn inspect(environment: &TestEnvironment, uri: &str, kind: &[&str]) -> Value {
    let arguments = [&["inspect", "--tls-verify=false"], kind, &[uri]].concat();
    serde_json::from_str(&skopeo(environment, &arguments)).unwrap()
}

/// The layers of an image in a registry, the lowest first.
fn layers(environment: &TestEnvironment, uri: &str) -> Vec<String> {
    let manifest = inspect(environment, uri, &["--raw"]);
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

/// A sandbox over `image` in which `line` was run, as an image file.
fn commit(environment: &TestEnvironment, image: &str, line: &str, target: &str) {
    environment.siphon(&["build", "--force", "--sandbox", "box", image]).stdout();
    environment.siphon(&["exec", "--writable", "box", "sh", "-c", line]).stdout();
    environment.siphon(&["build", target, "box"]).stdout();
}

/// What an image that is made of layers has beside those.
const ADDED: [&str; 11] = [
    "/.exec",
    "/.run",
    "/.shell",
    "/.test",
    "/environment",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/home/",
    "/singularity",
    "/var/",
    "/var/tmp/",
];

/// Fails unless both have the same files, but for what every build adds and says of itself.
fn assert_same_files(environment: &TestEnvironment, one: &str, other: &str) {
    let listed = environment.siphon(&["diff", one, other]).stdout();
    let is_added = |line: &str| line.starts_with('A') && ADDED.iter().any(|path| line.ends_with(&format!(" {path}")));
    let differing: Vec<_> =
        listed.lines().filter(|line| !line.contains("/.singularity.d/") && !is_added(line)).collect();
    assert!(differing.is_empty(), "{differing:?}");
}

#[test]
fn an_image_file_is_sent_as_an_image_of_layers_that_others_unpack() {
    as_user_and_as_root(|environment| {
        let registry = Registry::start();
        let uri = format!("docker://{}/some/tool:1", registry.host());

        let pushed = environment.siphon(&["push", environment.images().sif(), &uri]).run();

        assert_eq!(pushed.code, 0, "{pushed}");
        assert!(pushed.stderr.contains("INFO:    Upload complete"), "{pushed}");
        let config = inspect(environment, &uri, &["--config"]);
        assert_eq!((config["os"].as_str(), config["architecture"].as_str()), (Some("linux"), Some("amd64")));
        skopeo(environment, &["copy", "--src-tls-verify=false", &uri, "oci:copied:latest"]);
        let work = environment.work().display().to_string();
        let unpack = format!("chmod -R a+rX copied; umoci unpack --rootless --image {work}/copied:latest bundle");
        let unpacked = Command::new("sh").args(["-c", &unpack]).current_dir(environment.work()).output().unwrap();
        assert!(unpacked.status.success(), "{unpacked:?}");
        let image = environment.images().sif();
        let greeting = std::fs::read_to_string(environment.work().join("bundle/rootfs/data/greeting")).unwrap();
        assert_eq!(environment.siphon(&["cat", image, "/data/greeting"]).stdout(), greeting.trim_end());
        environment.siphon(&["build", "back.sif", "oci:copied:latest"]).stdout();
        assert_same_files(environment, image, "back.sif");
        Command::new("rm").args(["-rf", "bundle"]).current_dir(environment.work()).status().unwrap();
    });
}

#[test]
fn of_a_committed_image_only_what_changed_is_sent_to_where_its_base_is() {
    let environment = TestEnvironment::new();
    let registry = Registry::start();
    let base = put_base(&environment, &registry);
    let line =
        "echo new > /layers/new; rm -r /opaque; rm /owned; mkdir -p /deep/er; echo x > /deep/er/x; ln /deep/er/x /y";
    commit(&environment, &base, line, "one.sif");
    commit(&environment, "one.sif", "rm /layers/new; mkdir /opaque; echo more > /opaque/more", "two.sif");
    let (same, other) = (base.replace(":1", ":2"), format!("docker://{}/other/place:1", registry.host()));

    let pushed = environment.siphon(&["push", "two.sif", &same]).run();
    let elsewhere = environment.siphon(&["push", "two.sif", &other]).run();
    let again = environment.siphon(&["push", "two.sif", &same]).run();

    assert_eq!((pushed.code, elsewhere.code, again.code), (0, 0, 0), "{pushed}\n{elsewhere}\n{again}");
    assert!(pushed.stderr.contains("2 there, 0 taken over, 0 sent"), "{pushed}");
    assert!(elsewhere.stderr.contains("0 there, 2 taken over, 0 sent"), "{elsewhere}");
    assert!(again.stderr.contains("was there already"), "{again}");
    let below = layers(&environment, &base);
    for uri in [&same, &other] {
        let found = layers(&environment, uri);
        assert!(found.len() == 3 && found[..2] == below, "{found:?} over {below:?}");
    }
    let config = inspect(&environment, &same, &["--config"]);
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/bin/echo", "entry point:"]));
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 3);
    environment.siphon(&["pull", "back.sif", &same]).stdout();
    assert_same_files(&environment, "two.sif", "back.sif");
    assert_eq!(environment.siphon(&["run", "back.sif", "here"]).stdout(), "entry point: here");
    assert_eq!(
        environment.siphon(&["exec", "back.sif", "sh", "-c", "ls /opaque /layers; stat -c %h /y"]).stdout(),
        "/layers:\nreplaced\n\n/opaque:\nmore\n2"
    );
}

#[test]
fn layers_of_a_base_in_another_registry_are_brought_over_and_without_it_all_is_sent() {
    let environment = TestEnvironment::new();
    let target = Registry::start();
    let uri = |tag: &str| format!("docker://{}/there/image:{tag}", target.host());
    let below = {
        let source = Registry::start();
        let base = put_base(&environment, &source);
        commit(&environment, &base, "echo new > /new", "image.sif");

        let pushed = environment.siphon(&["push", "image.sif", &uri("1")]).run();

        assert!(pushed.code == 0 && pushed.stderr.contains("0 there, 0 taken over, 2 sent"), "{pushed}");
        source.forget("base/image");
        let alone = environment.siphon(&["push", "image.sif", &uri("2")]).run();
        assert!(alone.code == 0 && alone.stderr.contains("the whole image is sent"), "{alone}");
        layers(&environment, &uri("1"))
    };

    assert_eq!((below.len(), layers(&environment, &uri("2")).len()), (3, 1));
    for tag in ["1", "2"] {
        let back = format!("back{tag}.sif");
        environment.siphon(&["pull", &back, &uri(tag)]).stdout();
        assert_same_files(&environment, "image.sif", &back);
    }
}

#[test]
fn a_runscript_and_an_environment_of_a_definition_file_go_along() {
    let environment = TestEnvironment::new();
    let registry = Registry::start();
    let image = environment.images().sif();
    let sections = "%environment\n export WORD=spoken\n%runscript\n echo \"$WORD: $*\"\n%labels\n speaker me\n";
    environment.write("r.def", &format!("Bootstrap: localimage\nFrom: {image}\n{sections}"));
    environment.siphon(&["build", "own.sif", "r.def"]).stdout();
    let uri = format!("docker://{}/own/image:1", registry.host());

    environment.siphon(&["push", "own.sif", &uri]).stdout();
    environment.siphon(&["pull", "back.sif", &uri]).stdout();
    environment.siphon(&["push", "back.sif", &uri.replace(":1", ":2")]).stdout();
    environment.siphon(&["pull", "again.sif", &uri.replace(":1", ":2")]).stdout();

    for image in ["own.sif", "back.sif", "again.sif"] {
        assert_eq!(environment.siphon(&["run", image, "a", "b"]).stdout(), "spoken: a b", "{image}");
    }
    let config = inspect(&environment, &uri, &["--config"]);
    assert_eq!(config["config"]["Labels"]["speaker"].as_str(), Some("me"), "{config}");
    let entry = config["config"]["Entrypoint"][0].as_str().unwrap();
    // As docker runs it: the entry point and nothing of ours around it.
    let ran = environment.siphon(&["exec", "--cleanenv", "back.sif", "env", "-i", entry, "c"]).stdout();
    assert_eq!(ran, "spoken: c");
}

#[test]
fn an_image_without_a_runscript_is_run_by_its_shell() {
    let environment = TestEnvironment::new();
    let registry = Registry::start();
    environment.write(
        "r.def",
        "Bootstrap: scratch\n%setup\n mkdir $APPTAINER_ROOTFS/bin; cp /bin/busybox $APPTAINER_ROOTFS/bin/sh\n",
    );
    environment.siphon(&["build", "bare.sif", "r.def"]).stdout();
    let uri = format!("docker://{}/bare:1", registry.host());

    environment.siphon(&["push", "bare.sif", &uri]).stdout();

    let config = inspect(&environment, &uri, &["--config"]);
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["/bin/sh"]), "{config}");
    assert!(config["config"].get("Entrypoint").is_none(), "{config}");
}

#[test]
fn what_is_no_image_file_or_goes_to_no_tag_is_not_pushed_as_layers() {
    let environment = TestEnvironment::new();
    environment.siphon(&["build", "--sandbox", "box", environment.images().sif()]).stdout();
    let digest = format!("docker://localhost:1/x@sha256:{}", "ab".repeat(32));

    for (image, uri, expected) in [
        ("box", "docker://localhost:1/x:1", "siphon commit box IMAGE.sif"),
        (environment.images().sif(), digest.as_str(), "is pushed to a tag"),
        (environment.images().sif(), "docker://localhost:1/x:1", "check the network"),
        ("nothing.sif", "docker://localhost:1/x:1", "No such file"),
    ] {
        let pushed = environment.siphon(&["push", image, uri]).run();

        assert_eq!(pushed.code, 255, "{pushed}");
        assert!(pushed.stderr.contains(expected), "{pushed}");
    }
}
