use crate::support::environment::TestEnvironment;
use crate::support::{is_root, skip};
use std::os::unix::fs::PermissionsExt;

/// Says what it was asked for, and starts the command as `systemd-run --scope` does: as the same process.
const SYSTEMD_RUN: &str = "#!/bin/sh
echo \"$@\" | sed 's/ -- .*//' >> asked
while [ \"$1\" != -- ]; do shift; done
shift
exec \"$@\"
";

/// A directory with a program that stands for systemd's.
fn systemd(environment: &TestEnvironment) -> String {
    let directory = environment.make_directory("bin");
    std::fs::write(directory.join("systemd-run"), SYSTEMD_RUN).unwrap();
    std::fs::set_permissions(directory.join("systemd-run"), PermissionsExt::from_mode(0o755)).unwrap();
    format!("{}:/usr/bin:/bin", directory.display())
}

#[test]
fn a_run_with_limits_is_started_in_a_scope_of_systemds() {
    // Users are asked for a session of systemd's, which test machines have not got.
    if !is_root() {
        return skip("only root needs no session of systemd's");
    }
    let environment = TestEnvironment::root();
    let path = systemd(&environment);
    let words = ["exec", "--memory", "64M", "--pids-limit", "50", environment.images().sif(), "sh", "-c", "exit 7"];

    let finished = environment.siphon(&words).env("PATH", &path).env("APPTAINER_CPUS", "0.5").run();

    assert_eq!((finished.code, finished.stderr.as_str()), (7, ""), "{finished}");
    let asked = std::fs::read_to_string(environment.work().join("asked")).unwrap();
    let properties = "-p CPUQuota=50% -p MemoryMax=67108864 -p TasksMax=50";
    assert_eq!(asked, format!("--scope --quiet --collect {properties}\n"));
}

#[test]
fn without_systemd_limits_are_refused_with_what_is_missing() {
    let environment = TestEnvironment::new();

    let refused = environment.siphon(&["exec", "--memory", "64M", environment.images().sif(), "true"]).run();
    let wrong = environment.siphon(&["exec", "--memory", "lots", environment.images().sif(), "true"]).run();

    assert_eq!(refused.code, 255, "{refused}");
    assert!(
        refused.stderr.contains("FATAL:   cannot limit a run: ") && refused.stderr.contains("systemd"),
        "{refused}"
    );
    assert!(wrong.stderr.contains("--memory does not take \"lots\""), "{wrong}");
    if is_root() {
        let root = TestEnvironment::root();
        let refused = root.siphon(&["exec", "--memory", "64M", root.images().sif(), "true"]).env("PATH", "/none").run();
        assert!(refused.stderr.contains("this machine has no systemd-run"), "{refused}");
    }
}
