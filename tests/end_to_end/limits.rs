use crate::support::environment::{Invocation, TestEnvironment};
use crate::support::{is_root, skip};
use std::os::unix::fs::PermissionsExt;

/// Says what it was asked for, and starts the command as `systemd-run --scope` does: as the same process.
const SYSTEMD_RUN: &str = "#!/bin/sh
[ \"$1\" = --version ] && echo 'systemd 255 (255.4)' && exit
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
    directory.display().to_string()
}

#[test]
fn a_run_with_limits_is_started_in_a_scope_of_systemds() {
    // Users are asked for a session of systemd's, which test machines have not got.
    if !is_root() {
        return skip("only root needs no session of systemd's");
    }
    let environment = TestEnvironment::root();
    let path = systemd(&environment);
    let image = environment.images().sif();
    let line = format!("siphon exec --memory 64M --pids-limit 50 {image} sh -c 'exit 7'");

    let invocation = with_run(&environment, "mkdir -p /run/systemd/system; PATH=$SYSTEMD:$PATH", &line);
    let finished = invocation.env("SYSTEMD", &path).env("APPTAINER_CPUS", "0.5").run();

    assert_eq!((finished.code, finished.stderr.as_str()), (7, ""), "{finished}");
    let asked = std::fs::read_to_string(environment.work().join("asked")).unwrap();
    let properties = "-p CPUQuota=50% -p MemoryMax=67108864 -p TasksMax=50";
    assert_eq!(asked, format!("--scope --quiet --collect --expand-environment=no {properties}\n"));
}

/// A line in a mount namespace with a `/run` of its own, in which nothing is but what `first` makes.
fn with_run(environment: &TestEnvironment, first: &str, line: &str) -> Invocation {
    let script = environment.write("in-run", &format!("mount -t tmpfs run /run || exit 99; {first}\n{line}\n"));
    environment.shell(&format!("unshare -m sh {}", script.display()))
}

#[test]
fn without_systemd_root_has_limits_by_a_cgroup_that_goes_with_the_run() {
    if !is_root() {
        return skip("only root has cgroups on every machine");
    }
    let environment = TestEnvironment::root();
    let image = environment.images().sif();
    environment.write("limits.toml", "[pids]\nlimit = 7\n");
    let forks = "i=0; while [ $i -lt 20 ]; do sleep 1 & i=$((i+1)); done; wait";

    for options in ["--pids-limit 7", "--apply-cgroups limits.toml"] {
        let line = format!(
            "siphon exec {options} {image} cat /proc/self/cgroup
            siphon exec {options} {image} sh -c '{forks}'; echo code $?"
        );
        let finished = with_run(&environment, "", &line).run();

        let own =
            finished.stdout.lines().find_map(|line| line.split_once(":/").filter(|(_, path)| path.contains("siphon-")));
        let (_, own) = own.unwrap_or_else(|| panic!("{options}: {finished}"));
        assert!(finished.stderr.contains("fork") && !finished.stdout.ends_with("code 0\n"), "{options}: {finished}");
        let name = own.rsplit('/').next().unwrap();
        let left = format!("find /sys/fs/cgroup -name {name} 2>/dev/null");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !environment.shell(&left).run().stdout.is_empty() {
            assert!(std::time::Instant::now() < deadline, "{options}: the cgroup {name} stays");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

#[test]
fn a_file_that_makes_no_limits_is_refused_by_what_is_wrong() {
    let environment = TestEnvironment::new();
    environment.write("wrong.toml", "[cpu]\nshares = 1\n");

    for (file, words) in [("wrong.toml", "cpu.shares is 1"), ("none.toml", "No such file or directory")] {
        let refused = environment.siphon(&["exec", "--apply-cgroups", file, environment.images().sif(), "true"]).run();

        assert_eq!(refused.code, 255, "{refused}");
        assert!(refused.stderr.contains(words) && refused.stderr.contains(file), "{refused}");
    }
}

#[test]
fn limits_that_do_not_hold_are_refused_with_what_is_missing() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    let wrong = environment.siphon(&["exec", "--memory", "lots", image, "true"]).run();

    assert!(wrong.stderr.contains("--memory does not take \"lots\""), "{wrong}");
    if is_root() {
        // No hierarchy at all: whoever asks for a limit gets it or nothing.
        let root = TestEnvironment::root();
        let line = format!("umount -l /sys/fs/cgroup; siphon exec --memory 64M {image} echo ran");
        let refused = with_run(&root, "", &line).run();
        assert_eq!((refused.code, refused.stdout.as_str()), (255, ""), "{refused}");
        assert!(refused.stderr.contains("FATAL:   cannot limit a run: no cgroup v2 is mounted"), "{refused}");
    }
}
