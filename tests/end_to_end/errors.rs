use crate::support::environment::{Finished, TestEnvironment};
use crate::support::server::Server;

/// Asserts that a command failed as a runtime does, saying all of `words`, and that it did not panic.
fn assert_fatal(finished: &Finished, words: &[&str]) {
    assert_eq!(finished.code, 255, "{finished}");
    assert!(finished.stderr.contains("FATAL:   "), "{finished}");
    assert!(!finished.stderr.contains("panicked"), "{finished}");
    for word in words {
        assert!(finished.stderr.contains(word), "{word:?} is missing\n{finished}");
    }
}

#[test]
fn an_image_that_does_not_exist_is_named() {
    let environment = TestEnvironment::new();

    assert_fatal(&environment.siphon(&["exec", "missing.sif", "true"]).run(), &["missing.sif"]);
}

#[test]
fn a_name_that_is_nearly_one_of_a_registry_is_explained() {
    let environment = TestEnvironment::new();
    for (name, said) in [
        ("ubuntu:24.04", "is docker://ubuntu:24.04 meant?"),
        ("docker:/ubuntu", "is docker://ubuntu meant?"),
        ("dokcer://ubuntu", "images elsewhere are named docker://"),
    ] {
        assert_fatal(&environment.siphon(&["exec", name, "true"]).run(), &[name, said]);
    }
}

#[test]
fn a_command_of_apptainer_that_is_missing_is_refused_with_what_to_do() {
    let environment = TestEnvironment::new();
    for (line, said) in [
        (&["verify", "image.sif"][..], "siphon checks no signatures"),
        (&["config", "fakeroot", "--add", "user"], "usermod --add-subuids"),
        (&["exec", "--bnd", "/tmp", "image.sif", "true"], "did you mean --bind?"),
    ] {
        let finished = environment.siphon(line).run();

        assert_eq!(finished.code, 1, "{finished}");
        assert!(finished.stderr.contains(said), "{finished}");
    }
}

/// Runs `line` where the directory `full` is a filesystem of its own that has room for nothing, and `/dev/shm`, where
/// daemons then have their state, goes with the run.
fn beside_a_full_disk(environment: &TestEnvironment, line: &str) -> Finished {
    environment.make_directory("full");
    let line = format!(
        "unshare -rm sh -c 'mount -t tmpfs shm /dev/shm && mount -t tmpfs -o size=64k tmpfs full || exit 9
        head -c 100k /dev/zero > full/fill 2>/dev/null
        {line}'"
    );
    environment.shell(&line).run()
}

#[test]
fn a_run_needs_no_room_where_daemons_have_their_state() {
    let environment = TestEnvironment::new();
    let run = format!("siphon exec {} cat /data/greeting", environment.images().sif());
    let line = format!(
        "unset SIPHON_RUNTIME_DIR; export XDG_RUNTIME_DIR=$PWD/full; {run} && {run}; siphon status | grep -c \"daemon *pid\"
        mount -o remount,ro full; {run}"
    );

    let finished = beside_a_full_disk(&environment, &line);

    let greeting = "hello from the image";
    assert_eq!(finished.stdout, format!("{greeting}\n{greeting}\n1\n{greeting}\n"), "{finished}");
}

#[test]
fn a_sandbox_takes_writes_as_soon_as_there_is_room() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();
    let write = "SIPHON_IDLE_SECONDS=20 siphon exec --writable full/box sh -c \"echo x > /new; cat /new\"";
    // The daemon that could not lock the layer is there still when the second one asks, and leaves for it.
    let line = format!(
        "rm full/fill; siphon build --sandbox full/box {image}; head -c 100k /dev/zero > full/fill 2>/dev/null
        {write} || echo refused; rm full/fill; {write}; siphon status | sed -n \"s/.*daemon *pid \\([0-9]*\\).*/\\1/p\" | xargs kill"
    );

    let finished = beside_a_full_disk(&environment, &line);

    assert_eq!(finished.stdout, "refused\nx\n", "{finished}");
}

#[test]
fn a_sandbox_that_cannot_be_made_leaves_nothing() {
    let environment = TestEnvironment::new();
    let line = format!("siphon build --sandbox full/box {}; ls full", environment.images().sif());

    let finished = beside_a_full_disk(&environment, &line);

    assert!(finished.stderr.contains("No space left on device"), "{finished}");
    assert_eq!(finished.stdout, "fill\n", "{finished}");
}

#[test]
fn a_file_that_is_no_image_is_refused() {
    let environment = TestEnvironment::new();
    for (name, content) in
        [("empty", ""), ("text", "just some text\n"), ("half.sif", "#!/usr/bin/env run-singularity\n")]
    {
        environment.write(name, content);

        for command in
            [&["exec", name, "true"][..], &["ls", name], &["inspect", name], &["build", "--sandbox", "box", name]]
        {
            assert_fatal(&environment.siphon(command).run(), &[name]);
        }
    }
}

#[test]
fn a_truncated_image_is_refused_and_does_not_hang() {
    let environment = TestEnvironment::new();
    environment.shell(&format!("head -c 1000000 {} > cut.sif", environment.images().sif())).stdout();

    assert_fatal(&environment.siphon(&["exec", "cut.sif", "true"]).run(), &["cut.sif"]);
}

#[test]
fn a_program_that_is_not_in_the_image_is_named() {
    let environment = TestEnvironment::new();

    let finished = environment.siphon(&["exec", environment.images().sif(), "no-such-program"]).run();

    assert_fatal(&finished, &["no-such-program"]);
}

#[test]
fn a_bind_whose_source_is_missing_is_named() {
    let environment = TestEnvironment::new();

    let finished = environment.siphon(&["exec", "-B", "/no/such/place:/x", environment.images().sif(), "true"]).run();

    assert_fatal(&finished, &["/no/such/place"]);
}

#[test]
fn an_image_cannot_be_run_writable() {
    let environment = TestEnvironment::new();

    let finished = environment.siphon(&["exec", "--writable", environment.images().sif(), "true"]).run();

    assert_fatal(&finished, &["image.sif"]);
}

#[test]
fn a_sandbox_whose_base_is_gone_says_so() {
    let environment = TestEnvironment::new();
    environment.shell(&format!("cp {} base.sif", environment.images().sif())).stdout();
    environment.siphon(&["build", "--sandbox", "box", "base.sif"]).stdout();
    std::fs::remove_file(environment.work().join("base.sif")).unwrap();

    assert_fatal(&environment.siphon(&["exec", "box", "true"]).run(), &["base.sif"]);
}

#[test]
fn a_wrong_command_line_exits_with_1() {
    let environment = TestEnvironment::new();

    for command in [&["exec"][..], &["no-such-command"], &["exec", "--no-such-option", "image.sif", "true"]] {
        assert_eq!(environment.siphon(command).run().code, 1, "{command:?}");
    }
}

#[test]
fn a_block_cache_of_no_size_is_refused() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    for size in ["much", "12Q", "-1", "0", "2047K", "99999999999G"] {
        let flag = environment.siphon(&["exec", &format!("--block-cache={size}"), image, "true"]).run();
        let variable = environment.siphon(&["exec", image, "true"]).env("SIPHON_BLOCK_CACHE", size).run();

        assert_fatal(&flag, &["--block-cache", size, "K, M or G"]);
        assert_fatal(&variable, &["SIPHON_BLOCK_CACHE", size, "K, M or G"]);
    }
}

#[test]
fn a_server_without_ranges_is_refused() {
    let environment = TestEnvironment::new();
    let server = Server::start_without_ranges(environment.images().sif.parent().unwrap());

    let finished = environment.siphon(&["exec", &server.url("image.sif"), "true"]).run();

    assert_fatal(&finished, &["range"]);
}

#[test]
fn a_remote_image_that_does_not_exist_is_named() {
    let environment = TestEnvironment::new();
    let server = Server::start(environment.images().sif.parent().unwrap());

    assert_fatal(&environment.siphon(&["exec", &server.url("missing.sif"), "true"]).run(), &["missing.sif", "404"]);
}
