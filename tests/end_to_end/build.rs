use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use crate::support::image::{PAYLOAD_BYTES, partition_start};
use crate::support::{is_root, skip};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Changes of every kind, made inside a sandbox. They stay away from what is mounted from the host, homes above all.
const CHANGES: &str = "set -e; cd /data; echo new > new; mkdir -p made/deep; ln -s ../new made/link; rm to-remove; \
    echo more >> notes; mv empty moved; chmod 700 moved; ln new made/hard; truncate -s 1048576 made/sparse; \
    touch -d '2001-02-03 04:05:06' new; rm -r /opt/old; mkdir /opt/old; echo mine > /opt/old/file";

/// Everything about the tree that a copy must keep, as text: run inside a container, over what belongs to the image.
const MANIFEST: &str = "for d in /bin /data /opt /.singularity.d/env; do \
    find $d | sort | while read f; do stat -c '%n %F %a %h %s %Y' \"$f\" | sed '/directory/s/[0-9]* [0-9]* [0-9]*$//'; \
    if [ -L \"$f\" ]; then readlink \"$f\"; elif [ -f \"$f\" ]; then md5sum < \"$f\"; fi; done; done";

/// A sandbox over the SIF in which `line` was run.
fn sandbox(environment: &TestEnvironment, line: &str) -> PathBuf {
    let directory = environment.work().join("sandbox");
    environment.siphon(&["build", "--sandbox", "sandbox", environment.images().sif()]).stdout();
    environment.siphon(&["exec", "--writable", "sandbox", "sh", "-c", line]).stdout();
    directory
}

fn manifest(environment: &TestEnvironment, image: &str) -> String {
    environment.siphon(&["exec", image, "sh", "-c", MANIFEST]).stdout()
}

fn bytes_below(directory: &Path) -> u64 {
    let output = Command::new("du").arg("-sB1").arg(directory).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_sandbox_holds_nothing_of_the_image() {
    as_user_and_as_root(|environment| {
        let directory = sandbox(environment, "true");

        assert!(bytes_below(&directory) < PAYLOAD_BYTES / 100);
        assert_eq!(environment.siphon(&["exec", "sandbox", "cat", "/data/greeting"]).stdout(), "hello from the image");
    });
}

#[test]
fn a_writable_sandbox_keeps_its_changes() {
    as_user_and_as_root(|environment| {
        sandbox(environment, CHANGES);

        let line = "cat /data/new /data/notes /opt/old/file; test ! -e /data/to-remove && test -d /data/moved";
        let output = environment.siphon(&["exec", "sandbox", "sh", "-c", line]).stdout();

        assert_eq!(output, "new\nnote\nmore\nmine");
    });
}

#[test]
fn a_sandbox_is_read_only_without_the_writable_option() {
    let environment = TestEnvironment::new();
    sandbox(&environment, "true");

    let finished = environment.siphon(&["exec", "sandbox", "sh", "-c", "echo x > /data/new"]).run();

    assert_ne!(finished.code, 0);
    assert!(finished.stderr.contains("Read-only file system"), "{finished}");
}

#[test]
fn an_image_built_from_a_sandbox_equals_its_merged_view() {
    as_user_and_as_root(|environment| {
        sandbox(environment, CHANGES);

        environment.siphon(&["build", "final.sif", "sandbox"]).stdout();

        assert_eq!(manifest(environment, "final.sif"), manifest(environment, "sandbox"));
        assert_eq!(environment.siphon(&["run", "final.sif", "x"]).stdout(), "runscript: image: x");
    });
}

#[test]
fn commit_makes_the_same_image_as_build() {
    let environment = TestEnvironment::new();
    sandbox(&environment, CHANGES);

    environment.siphon(&["build", "built.sif", "sandbox"]).stdout();
    environment.siphon(&["commit", "sandbox", "committed.sif"]).stdout();

    assert_eq!(manifest(&environment, "committed.sif"), manifest(&environment, "built.sif"));
}

#[test]
fn a_sandbox_can_go_on_after_a_commit() {
    let environment = TestEnvironment::new();
    sandbox(&environment, "echo first > /data/first");
    environment.siphon(&["commit", "sandbox", "first.sif"]).stdout();

    environment.siphon(&["exec", "-w", "sandbox", "sh", "-c", "echo second > /data/second"]).stdout();
    environment.siphon(&["commit", "sandbox", "second.sif"]).stdout();

    assert_eq!(
        environment.siphon(&["exec", "second.sif", "cat", "/data/first", "/data/second"]).stdout(),
        "first\nsecond"
    );
    assert_ne!(environment.siphon(&["exec", "first.sif", "cat", "/data/second"]).run().code, 0);
}

#[test]
fn a_committed_image_is_read_by_unsquashfs() {
    let environment = TestEnvironment::new();
    sandbox(&environment, CHANGES);
    environment.siphon(&["commit", "sandbox", "final.sif"]).stdout();

    let start = partition_start(&environment.work().join("final.sif"));
    let listing = environment.shell(&format!("unsquashfs -o {start} -lls final.sif")).run();

    assert_eq!(listing.code, 0, "{listing}");
    assert!(listing.stdout.contains("squashfs-root/data/made/sparse"), "{listing}");
    assert!(!listing.stdout.contains("to-remove") && !listing.stdout.contains("/.siphon"), "{listing}");
}

#[test]
fn a_committed_image_mounted_by_the_kernel_equals_the_merged_view() {
    if !is_root() {
        return skip("only root mounts with the kernel");
    }
    let environment = TestEnvironment::new();
    sandbox(&environment, CHANGES);
    environment.siphon(&["commit", "sandbox", "final.sif"]).stdout();
    let mounted = environment.make_directory("mounted");
    let start = partition_start(&environment.work().join("final.sif"));

    // In a mount namespace of its own, so that the mount ends with the shell.
    let script =
        format!("mount -t squashfs -o ro,loop,offset={start} final.sif mounted && chroot mounted /bin/sh -c \"$0\"");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, MANIFEST])
        .current_dir(mounted.parent().unwrap())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();

    let by_kernel = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(by_kernel.trim_end(), manifest(&environment, "sandbox"));
}

#[test]
fn a_plain_directory_becomes_an_image() {
    let environment = TestEnvironment::new();

    environment.siphon(&["build", "made.sif", environment.images().root.to_str().unwrap()]).stdout();

    assert_eq!(environment.siphon(&["exec", "made.sif", "cat", "/data/greeting"]).stdout(), "hello from the image");
}

#[test]
fn build_keeps_an_existing_file_unless_it_is_forced() {
    let environment = TestEnvironment::new();
    let root = environment.images().root.to_str().unwrap().to_owned();
    environment.write("made.sif", "precious");

    let refused = environment.siphon(&["build", "made.sif", &root]).run();

    assert_ne!(refused.code, 0, "{refused}");
    assert_eq!(std::fs::read_to_string(environment.work().join("made.sif")).unwrap(), "precious");
    environment.siphon(&["build", "--force", "made.sif", &root]).stdout();
    assert_eq!(environment.siphon(&["exec", "made.sif", "cat", "/data/greeting"]).stdout(), "hello from the image");
}

#[test]
fn mount_points_of_a_run_do_not_reach_the_committed_image_of_another() {
    let environment = TestEnvironment::new();
    let source = environment.make_directory("source");
    sandbox(&environment, "true");

    let bind = format!("{}:/bound/here", source.display());
    environment.siphon(&["exec", "-B", &bind, environment.images().sif(), "true"]).stdout();
    environment.siphon(&["commit", "sandbox", "final.sif"]).stdout();

    assert_ne!(environment.siphon(&["exec", "final.sif", "ls", "/bound"]).run().code, 0);
}

#[test]
fn a_file_that_nobody_may_read_is_committed() {
    let environment = TestEnvironment::new();
    sandbox(&environment, "echo secret > /data/secret; chmod 000 /data/secret; chmod 000 /data/greeting");

    environment.siphon(&["commit", "sandbox", "final.sif"]).stdout();

    let line = "stat -c '%a %s' /data/secret /data/greeting";
    assert_eq!(environment.siphon(&["exec", "final.sif", "sh", "-c", line]).stdout(), "0 7\n0 21");
}

#[test]
fn a_sandbox_that_was_moved_is_the_same_sandbox() {
    let environment = TestEnvironment::new();
    sandbox(&environment, "echo before > /data/new");

    environment.shell("mv sandbox moved").stdout();
    environment.siphon(&["exec", "--writable", "moved", "sh", "-c", "echo after >> /data/new"]).stdout();

    assert_eq!(environment.siphon(&["exec", "moved", "cat", "/data/new"]).stdout(), "before\nafter");
}

#[test]
fn what_siphon_keeps_in_a_plain_directory_is_not_part_of_its_image() {
    let environment = TestEnvironment::new();
    let root = environment.images().root.display().to_string();
    environment.shell(&format!("cp -r {root} plain")).stdout();
    environment.siphon(&["exec", "--writable", "plain", "sh", "-c", "rm /data/to-remove; touch /data/new"]).stdout();

    environment.siphon(&["build", "final.sif", "plain"]).stdout();

    assert!(!environment.siphon(&["ls", "plain"]).stdout().contains(".siphon"));
    let listing = environment.siphon(&["ls", "-R", "final.sif"]).stdout();
    assert!(listing.contains("/data/new") && !listing.contains(".siphon") && !listing.contains("to-remove"));
}

#[test]
fn a_run_sees_what_the_one_before_changed_of_the_images_own_shell() {
    as_user_and_as_root(|environment| {
        sandbox(environment, "rm /bin/sh");

        let exec = environment.siphon(&["exec", "sandbox", "/bin/busybox", "echo", "still here"]).run();
        let run = environment.siphon(&["run", "sandbox"]).run();

        assert_eq!((exec.code, exec.stdout.trim_end()), (0, "still here"), "{exec}");
        assert!(run.stderr.contains("no /bin/sh"), "{run}");
    });
}

#[test]
fn a_sandbox_over_a_directory_knows_it_again_and_no_other() {
    let environment = TestEnvironment::new();
    let root = environment.images().root.display();
    environment.shell(&format!("cp -r {root} base; siphon build --sandbox box base; touch base/data/later")).stdout();

    let after = environment.siphon(&["exec", "box", "ls", "/data/later"]).stdout();
    environment.shell("mv base old; cp -r old base").stdout();
    environment.wait_for_daemons_to_leave();
    let other = environment.siphon(&["exec", "box", "true"]).run();

    assert_eq!(after, "/data/later");
    assert_eq!(other.code, 255, "{other}");
    assert!(other.stderr.contains("which has changed since"), "{other}");
}
