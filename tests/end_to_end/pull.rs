use crate::support::environment::TestEnvironment;
use crate::support::image::make_system;
use crate::support::registry::Registry;
use crate::support::stalling::Stalling;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Command;

/// What makes an OCI image in `layout`.
const MAKER: &str = include_str!("../support/oci_layout.py");

/// An OCI image in a registry; `made:1`. The layout it came from is gone.
fn serve(environment: &TestEnvironment) -> Registry {
    let registry = Registry::start();
    let (root, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_system(root.path(), &[]);
    let made = Command::new("python3").args(["-c", MAKER]).args([root.path(), out.path()]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let (layout, uri) =
        (format!("oci:{}/layout:made", out.path().display()), format!("docker://{}/made:1", registry.host()));
    let sent = Command::new("skopeo").args(["copy", "--dest-tls-verify=false", &layout, &uri]).output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
    environment.write("image.sif", "precious");
    registry
}

/// Fails unless the working directory has what it had before the pull, and the cache no image.
fn assert_untouched(environment: &TestEnvironment, what: &str) {
    let names: Vec<_> =
        std::fs::read_dir(environment.work()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["image.sif"], "{what}");
    assert_eq!(std::fs::read_to_string(environment.work().join("image.sif")).unwrap(), "precious", "{what}");
    let cached = std::fs::read_dir(environment.cache().join("oci-tmp")).into_iter().flatten();
    assert_eq!(cached.count(), 0, "{what}");
}

#[test]
fn a_pull_that_is_ended_at_half_of_a_layer_leaves_the_old_file_and_nothing_else() {
    let environment = TestEnvironment::new();
    let registry = serve(&environment);
    for (signal, code) in [(Signal::SIGINT, Some(255)), (Signal::SIGTERM, Some(255)), (Signal::SIGKILL, None)] {
        let way = Stalling::start(&registry.host(), 200_000);
        let uri = format!("docker://{}/made:1", way.host());

        let pull = environment.siphon(&["pull", "--force", "image.sif", &uri]).spawn();
        way.wait();
        kill(Pid::from_raw(pull.id().try_into().unwrap()), signal).unwrap();
        let ended = pull.wait_with_output().unwrap();

        assert_eq!(ended.status.code(), code, "{signal}: {ended:?}");
        assert_untouched(&environment, signal.as_str());
    }
}

#[test]
fn a_pull_without_room_leaves_the_old_file_and_nothing_else() {
    let environment = TestEnvironment::new();
    let registry = serve(&environment);

    // A limit of the process is as a full disk is, for one process; without the trap it would be killed.
    let line =
        format!("trap '' XFSZ; ulimit -f 500; siphon pull --force image.sif docker://{}/made:1", registry.host());
    let failed = environment.shell(&line).run();

    assert_eq!(failed.code, 255, "{failed}");
    assert!(failed.stderr.contains("cannot write the image: File too large"), "{failed}");
    assert_untouched(&environment, "no room");
}

#[test]
fn a_registry_that_lies_about_a_layer_or_has_lost_it_leaves_the_old_file_and_nothing_else() {
    let environment = TestEnvironment::new();
    let registry = serve(&environment);
    let uri = format!("docker://{}/made:1", registry.host());
    let raw = Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &uri]).output().unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&raw.stdout).unwrap();
    let digest = manifest["layers"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let mut expected = vec![];

    for (change, said) in [
        (Change::LastByte, "does not have a matching checksum"),
        (Change::Shorter, "its length is not the one"),
        (Change::Gone, "does not exist"),
    ] {
        match change {
            // The trailer of gzip: what was decoded before it is right.
            Change::LastByte => registry.damage_end(&digest),
            Change::Shorter => registry.shorten(&digest, 1000),
            Change::Gone => registry.lose(&digest),
        }
        let failed = environment.siphon(&["pull", "--force", "image.sif", &uri]).run();
        expected.push((failed.code, failed.stderr.contains(said), failed.to_string()));
        assert_untouched(&environment, said);
    }

    assert!(expected.iter().all(|(code, is_said, _)| *code == 255 && *is_said), "{expected:?}");
}

/// What happens to a blob in a registry.
#[derive(Debug, Clone, Copy)]
enum Change {
    LastByte,
    Shorter,
    Gone,
}
