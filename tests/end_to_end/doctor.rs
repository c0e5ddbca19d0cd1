use crate::support::driver::{Driver, LIBRARIES};
use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use serde_json::Value;

/// Where no user namespace can be made any more, runs `line`.
fn without_namespaces(line: &str) -> String {
    format!(
        "unshare --user --map-current-user --keep-caps sh -c 'echo 0 >/proc/sys/user/max_user_namespaces && {line}'"
    )
}

#[test]
fn a_machine_that_runs_images_is_well() {
    as_user_and_as_root(|environment| {
        let checks: Value = serde_json::from_str(&environment.siphon(&["doctor", "--json"]).stdout()).unwrap();

        let state = |name: &str| {
            let check = checks.as_array().unwrap().iter().find(|check| check["name"] == name);
            check.unwrap_or_else(|| panic!("no check {name}: {checks}"))["state"].clone()
        };
        for name in ["namespaces", "FUSE", "tmpfs"] {
            assert_eq!(state(name), "ok", "{checks}");
        }
        assert_ne!(state("cache"), "missing", "{checks}");
    });
}

#[test]
fn what_is_missing_is_said_with_what_mends_it_and_the_exit_code_is_1() {
    let environment = TestEnvironment::new();

    let finished = environment.shell(&without_namespaces("siphon doctor")).run();

    assert_eq!(finished.code, 1, "{finished}");
    assert!(finished.stdout.starts_with("missing  namespaces"), "{finished}");
    assert!(finished.stdout.contains("-> as root: sysctl user.max_user_namespaces="), "{finished}");
    assert_eq!(finished.stderr, "", "{finished}");
}

#[test]
fn a_run_that_the_machine_prevents_points_to_the_doctor() {
    let environment = TestEnvironment::new();
    let line = without_namespaces(&format!("siphon exec {} true", environment.images().sif()));

    let prevented = environment.shell(&line).run();
    let mistaken = environment.siphon(&["exec", "missing.sif", "true"]).run();

    assert_eq!(prevented.code, 255, "{prevented}");
    assert!(prevented.stderr.contains("INFO:    \"siphon doctor\" shows"), "{prevented}");
    assert!(!mistaken.stderr.contains("doctor"), "{mistaken}");
}

#[test]
fn a_cache_that_cannot_be_written_is_missing() {
    let environment = TestEnvironment::new();

    let finished = environment.siphon(&["doctor"]).env("SIPHON_CACHEDIR", "/proc/self/no").run();

    assert_eq!(finished.code, 1, "{finished}");
    let line = finished.stdout.lines().find(|line| line.starts_with("missing  cache"));
    assert!(line.is_some_and(|line| line.contains("cannot be written to")), "{finished}");
}

#[test]
fn the_driver_is_listed_where_it_was_asked_for() {
    let environment = TestEnvironment::new();
    let driver = Driver::make(&environment.make_directory("driver"), &[("libcuda", "libcuda.so.1")]);
    let root = driver.root.to_str().unwrap();

    let finished = environment.siphon(&["doctor", "--nv"]).env("SIPHON_DRIVER_ROOT", root).run();

    let names = |words: [&str; 3]| finished.stdout.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(names(["ok ", "libcuda.so.1", &format!("{root}/{LIBRARIES}/libcuda.so.1")]), "{finished}");
    assert!(names(["ok ", "program", "usr/bin/nvidia-smi"]), "{finished}");
    assert!(names(["missing ", "not found", "libnvidia-ml"]), "{finished}");
}
