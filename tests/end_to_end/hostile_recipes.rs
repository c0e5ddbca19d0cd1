//! Recipes that mean harm: nothing outside the build changes, and nothing stays behind.

use super::recipes::{kept, recipe, wait_until};
use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read;
use std::process::Child;

/// Whether a program runs with these words.
fn runs(environment: &TestEnvironment, words: &str) -> bool {
    environment.processes().values().any(|line| line.contains(words))
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
}

/// The most memory that a process has had so far, in KiB.
fn most_memory(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn an_interrupted_build_leaves_nothing_behind() {
    let environment = TestEnvironment::new();
    recipe(
        &environment,
        "%post\n touch $APPTAINER_LABELS\n (while :; do sleep 0.1 & sleep 0.1; done) &\n sleep 1000\n",
    );
    environment.write("out.sif", "precious");

    let child = environment.siphon(&["build", "--force", "out.sif", "r.def"]).spawn();
    wait_until("the section runs", || runs(&environment, "sleep 1000"));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();

    assert_eq!(output.status.code(), Some(255), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_to_string(environment.work().join("out.sif")).unwrap(), "precious");
    assert!(kept(&environment, "work-").is_empty() && kept(&environment, "failed-").is_empty());
    assert!(!runs(&environment, "sleep 1000"));
}

#[test]
fn the_packing_ends_with_the_build_however_that_ends() {
    for (sections, end) in [("%post\n sleep 3\n false\n", None), ("%post\n sleep 3\n", Some(Signal::SIGKILL))] {
        let environment = TestEnvironment::new();
        recipe(&environment, sections);
        let mut child = environment.siphon(&["build", "out.sif", "r.def"]).spawn();
        wait_until("the packing has begun", || runs(&environment, "--when-told"));
        wait_until("the section runs", || runs(&environment, "sleep 3"));

        if let Some(signal) = end {
            kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        }
        let status = child.wait().unwrap();

        assert!(!status.success());
        wait_until("the packing has ended", || !runs(&environment, "--when-told"));
        wait_until("the section has ended", || !runs(&environment, "sleep 3"));
        let left: Vec<_> =
            std::fs::read_dir(environment.work()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name != "out.sif" && !name.to_string_lossy().starts_with('.')), "{left:?}");
    }
}

#[test]
fn a_section_that_prints_without_end_takes_no_memory_and_no_disk() {
    const MOST_KIB: u64 = 64 << 10;
    let environment = TestEnvironment::new();
    recipe(&environment, "%post -c /bin/sh\n exec yes 'no end'\n");

    let mut child = environment.siphon(&["build", "out.sif", "r.def"]).spawn();
    let mut output = child.stdout.take().unwrap();
    let mut buffer = vec![0; 1 << 20];
    (0..64).for_each(|_| output.read_exact(&mut buffer).unwrap());
    let memory_kib = most_memory(&child);
    let line = format!("du -sk {} 2>/dev/null | cut -f1", environment.cache().display());
    let disk = environment.shell(&line).stdout();
    interrupt(&child);
    // What is still in the pipe is nobody's.
    drop(output);
    let code = child.wait_with_output().unwrap().status.code();

    assert_eq!(code, Some(255));
    assert!(memory_kib < MOST_KIB, "{memory_kib} KiB");
    assert!(disk.parse::<u64>().unwrap() < MOST_KIB, "{disk} KiB");
    assert!(!runs(&environment, "no end"));
    assert!(kept(&environment, "work-").is_empty() && kept(&environment, "failed-").is_empty());
}

#[test]
fn a_section_that_forks_without_end_is_interrupted_and_gone() {
    const ENOUGH: usize = 100;
    let environment = TestEnvironment::new();
    // 127 shells that listen to nobody, each with ever new children.
    let bomb = "bomb() { if [ $1 -gt 0 ]; then bomb $(($1 - 1)) & bomb $(($1 - 1)) & fi; while :; do sleep 1; done; }";
    recipe(&environment, &format!("%post -c /bin/sh\n trap '' TERM INT HUP\n {bomb}\n bomb 6\n"));

    let child = environment.siphon(&["build", "out.sif", "r.def"]).spawn();
    let shells = || environment.processes().values().filter(|line| line.contains(".post.script")).count();
    wait_until("it has forked", || shells() >= ENOUGH);
    interrupt(&child);
    let code = child.wait_with_output().unwrap().status.code();

    assert_eq!((code, shells()), (Some(255), 0));
    assert!(kept(&environment, "work-").is_empty() && kept(&environment, "failed-").is_empty());
}

#[test]
fn files_of_a_stage_never_come_from_outside_of_it() {
    let environment = TestEnvironment::new();
    // Every host has this file, with something else in it.
    let text = format!(
        "Bootstrap: localimage\nFrom: {0}\nStage: evil\n%post\n echo of the stage > /etc/hostname\n ln -s /etc/hostname /link\n \
         ln -s ../../../../../../../../../etc/hostname /up\nBootstrap: localimage\nFrom: {0}\n%files from evil\n /link /one\n /up \
         /two\n ../../../../../../../../etc/hostname /three\n",
        environment.images().sif(),
    );
    environment.write("r.def", &text);

    environment.siphon(&["build", "out.sif", "r.def"]).stdout();

    let line = "cat /one /two /three";
    assert_eq!(environment.siphon(&["exec", "out.sif", "sh", "-c", line]).stdout(), ["of the stage"; 3].join("\n"));
}

#[test]
fn files_never_lead_out_of_the_image() {
    let environment = TestEnvironment::new();
    environment.write("one", "1\n");
    let outside = environment.make_directory("outside");
    let text = format!(
        "%setup\n mkdir -p $APPTAINER_ROOTFS{0}; ln -s {0} $APPTAINER_ROOTFS/out; ln -s ../../../../../../../..{0}/file $APPTAINER_ROOTFS/file\n%files\n one \
         /out/one\n one /file\n one ../../../../../../../..{0}/up\n",
        outside.display()
    );
    recipe(&environment, &text);

    environment.siphon(&["build", "out.sif", "r.def"]).stdout();

    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn what_an_image_says_of_itself_is_never_written_outside_of_it() {
    let environment = TestEnvironment::new();
    let outside = environment.make_directory("outside");
    environment.write("outside/labels.json", "{}");
    let path = outside.display();
    for line in [
        format!("rm -rf /.singularity.d; ln -s {path} /.singularity.d"),
        format!("rm -rf /.singularity.d; ln -s ../../../../../../../../{path} /.singularity.d"),
        format!(
            "rm -rf /.singularity.d/*; ln -s {path}/labels.json /.singularity.d/labels.json; ln -s {path} /.singularity.d/env"
        ),
        format!("ln -s {path}/labels.json /.build.labels"),
        "mkfifo /.build.labels".to_owned(),
        "mkdir /.build.labels.d; ln -s /dev/zero /.build.labels".to_owned(),
    ] {
        recipe(&environment, &format!("%post\n{line}\n%labels\n A b\n%environment\n export A=1\n%runscript\n true\n"));

        environment.siphon(&["build", "--force", "out.sif", "r.def"]).run();

        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "{line}");
        assert_eq!(std::fs::read_to_string(outside.join("labels.json")).unwrap(), "{}", "{line}");
    }
}

#[test]
fn labels_without_end_are_an_error() {
    let environment = TestEnvironment::new();
    recipe(&environment, "%post\n yes 'a label' | head -c 2000000 > $APPTAINER_LABELS\n");

    let failed = environment.siphon(&["build", "out.sif", "r.def"]).run();

    assert_eq!(failed.code, 255, "{failed}");
    assert!(failed.stderr.contains("/.build.labels of the image is larger than 1048576 bytes"), "{failed}");
}

#[test]
fn a_user_makes_no_device_nodes_and_roots_have_no_effect() {
    as_user_and_as_root(|environment| {
        let text = format!(
            "Bootstrap: localimage\nFrom: {0}\nStage: one\n%post\n mkdir /nodes\n mknod /nodes/memory c 1 1 || echo refused\n \
             mknod /nodes/null c 1 3 || true\n mknod /nodes/nothing c 0 0 || true\n mkfifo /nodes/pipe\n\
             Bootstrap: localimage\nFrom: {0}\n%files from one\n /nodes /nodes\n",
            environment.images().sif()
        );
        environment.write("r.def", &text);

        environment.siphon(&["build", "out.sif", "r.def"]).stdout();

        // Nothing of them reaches a device, whoever built it.
        let line = "test -p /nodes/pipe && ! head -c 1 /nodes/memory && ! echo x > /nodes/null && echo nothing";
        assert_eq!(environment.siphon(&["exec", "out.sif", "sh", "-c", line]).stdout(), "nothing");
    });
}

#[test]
fn names_of_one_file_stay_names_of_one_file_when_a_stage_is_copied() {
    let environment = TestEnvironment::new();
    let text = format!(
        "Bootstrap: localimage\nFrom: {0}\nStage: one\n%post\n mkdir -p /tree/below; echo once > /tree/a; ln /tree/a /tree/b; \
         ln /tree/a /tree/below/c; ln /tree/a /elsewhere\nBootstrap: localimage\nFrom: {0}\n%files from one\n /tree /copied\n",
        environment.images().sif()
    );
    environment.write("r.def", &text);

    environment.siphon(&["build", "out.sif", "r.def"]).stdout();

    let line = "cd /copied; stat -c %h a; [ a -ef b ] && [ a -ef below/c ] && cat below/c";
    assert_eq!(environment.siphon(&["exec", "out.sif", "sh", "-c", line]).stdout(), "3\nonce");
}

#[test]
fn what_sections_find_and_leave_in_tmp_is_their_own() {
    let environment = TestEnvironment::new();
    let name = format!("left-{}", std::process::id());
    let line = format!("ls -A /tmp /var/tmp; echo x > /tmp/{name}; echo x > /var/tmp/{name}; stat -c %a /tmp");
    recipe(&environment, &format!("%post\n {{ {line}; }} > /seen\n%test\n test ! -e /tmp/{name}\n"));

    environment.siphon(&["build", "out.sif", "r.def"]).stdout();

    let seen = environment.siphon(&["exec", "out.sif", "cat", "/seen"]).stdout();
    assert_eq!(seen, "/tmp:\n\n/var/tmp:\n1777");
    assert!(!environment.siphon(&["ls", "-R", "out.sif"]).stdout().contains(&name));
    assert!(["/tmp", "/var/tmp"].iter().all(|directory| !std::path::Path::new(directory).join(&name).exists()));
    assert!(kept(&environment, "work-").is_empty());
}
