use crate::support::environment::{Invocation, TestEnvironment, as_user_and_as_root};
use crate::support::image::PAYLOAD_BYTES;
use crate::support::is_root;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::Child;
use std::time::{Duration, Instant};

/// A run of the SIF that holds on until its input ends.
fn running(environment: &TestEnvironment) -> Child {
    running_with(environment, &[])
}

/// The same with options.
fn running_with(environment: &TestEnvironment, options: &[&str]) -> Child {
    let program = [environment.images().sif(), "sh", "-c", "echo started; cat"];
    let mut child = environment.siphon(&[&["exec"], options, &program].concat()).spawn();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");
    child
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_second_run_joins_the_daemon_of_the_first() {
    as_user_and_as_root(|environment| {
        let first = running(environment);
        let daemons = environment.daemons();

        let second = running(environment);

        assert_eq!(daemons.len(), 1);
        assert_eq!(environment.daemons(), daemons);
        end(first);
        end(second);
    });
}

#[test]
fn thirty_two_concurrent_starts_make_one_daemon() {
    let environment = TestEnvironment::new();

    let children: Vec<_> = (0..32)
        .map(|_| environment.siphon(&["exec", environment.images().sif(), "sh", "-c", "echo started; cat"]).spawn())
        .collect();
    let children: Vec<_> = children
        .into_iter()
        .map(|mut child| {
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "started\n");
            child
        })
        .collect();

    assert_eq!(environment.daemons().len(), 1);
    children.into_iter().for_each(end);
}

#[test]
fn a_killed_daemon_is_replaced() {
    let environment = TestEnvironment::new();
    let run = environment.siphon(&["exec", environment.images().sif(), "true"]);
    run.env("SIPHON_IDLE_SECONDS", "1000").stdout();
    let killed = environment.daemons();

    for pid in &killed {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL).unwrap();
    }
    let next = running(&environment);

    assert_eq!(killed.len(), 1);
    assert_ne!(environment.daemons(), killed);
    end(next);
}

#[test]
fn a_mount_that_a_kill_left_among_the_states_of_daemons_is_taken_away() {
    if !is_root() {
        return println!("needs root");
    }
    let environment = TestEnvironment::root();
    let state = environment.runtime_directory().join("0123456789abcdef");
    std::fs::create_dir_all(state.join("root")).unwrap();
    std::fs::set_permissions(&state, PermissionsExt::from_mode(0o700)).unwrap();
    // As `fuse2fs` has it for a moment in the host's own tree.
    environment.shell(&format!("mount -t tmpfs left {}/root", state.display())).stdout();

    environment.siphon(&["exec", environment.images().sif(), "true"]).stdout();

    assert!(!state.exists());
}

#[test]
fn a_daemon_leaves_when_it_is_idle_and_not_before() {
    let environment = TestEnvironment::new();
    let run = running(&environment);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(environment.daemons().len(), 1, "the daemon left under a running program");

    end(run);

    let deadline = Instant::now() + Duration::from_secs(20);
    while !environment.daemons().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(environment.daemons(), Vec::<i32>::new());
}

#[test]
fn a_program_that_outlives_its_run_keeps_the_image() {
    let environment = TestEnvironment::new();
    let done = environment.work().join("done");

    let line = format!("(sleep 3; md5sum /data/payload > {0}.new; mv {0}.new {0}) >/dev/null 2>&1 &", done.display());
    environment.siphon(&["exec", environment.images().sif(), "sh", "-c", &line]).stdout();

    let deadline = Instant::now() + Duration::from_secs(30);
    while !done.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(std::fs::read_to_string(done).unwrap().contains("/data/payload"));
}

#[test]
fn a_replaced_image_is_a_new_mount() {
    let environment = TestEnvironment::new();
    let root = environment.make_directory("root");
    environment.shell(&format!("cp -a {}/. root", environment.images().root.display())).stdout();
    environment.siphon(&["build", "image.sif", "root"]).stdout();
    assert_eq!(environment.siphon(&["exec", "image.sif", "cat", "/data/greeting"]).stdout(), "hello from the image");

    std::fs::write(root.join("data/greeting"), "hello again\n").unwrap();
    environment.siphon(&["build", "--force", "image.sif", "root"]).stdout();

    assert_eq!(environment.siphon(&["exec", "image.sif", "cat", "/data/greeting"]).stdout(), "hello again");
}

#[test]
fn status_shows_the_running_daemon() {
    let environment = TestEnvironment::new();
    let run = running(&environment);

    let text = environment.siphon(&["status"]).stdout();
    let json: serde_json::Value = serde_json::from_str(&environment.siphon(&["status", "--json"]).stdout()).unwrap();

    assert!(text.contains("image.sif"), "{text}");
    assert!(json.to_string().contains("image.sif"), "{json}");
    end(run);
}

/// What `status --json` says of the only daemon.
fn status(environment: &TestEnvironment) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_str(&environment.siphon(&["status", "--json"]).stdout()).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 1, "{all}");
    all[0].clone()
}

/// One of its counters.
fn counter(status: &serde_json::Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap_or_else(|| panic!("{name} is no number in {status}"))
}

/// Reads the 24 MiB of the payload through the mount.
fn read_payload(environment: &TestEnvironment) {
    environment.siphon(&["exec", environment.images().sif(), "md5sum", "/data/payload"]).stdout();
}

#[test]
fn the_counters_grow_with_what_is_read() {
    as_user_and_as_root(|environment| {
        let run = running(environment);
        let before = status(environment);

        read_payload(environment);

        let after = status(environment);
        let grown = |name| counter(&after, name) - counter(&before, name);
        for name in ["lookups", "reads", "bytes_read_ahead", "cache_hits", "cache_misses", "storage_reads"] {
            assert!(grown(name) > 0, "{name}: {before} {after}");
        }
        // What was read ahead was not asked for any more.
        assert!(grown("bytes_read") + grown("bytes_read_ahead") >= PAYLOAD_BYTES, "{before} {after}");
        // Some of it lay in what had been read before.
        assert!(counter(&after, "storage_bytes") >= PAYLOAD_BYTES, "{after}");
        // The program and its libraries; the payload is stored as it is.
        assert!(counter(&after, "decoded_bytes") > counter(&after, "decoded_blocks"), "{after}");
        // The kernel opens the files of a read-only mount without asking.
        assert_eq!((counter(&after, "opens"), counter(&after, "writes")), (0, 0));
        end(run);
    });
}

#[test]
fn metrics_have_the_text_format_of_prometheus() {
    let environment = TestEnvironment::new();
    let run = running(&environment);
    read_payload(&environment);

    let text = environment.siphon(&["status", "--prometheus"]).stdout();

    let labels = format!("{{image=\"{}\",mount=\"", environment.images().sif());
    let (mut typed, mut values) = (BTreeSet::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<_> = comment.splitn(3, ' ').collect();
            assert!(words[0] == "HELP" || matches!(words[..], ["TYPE", _, "counter" | "gauge"]), "{line}");
            typed.insert(words[1]);
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split_once(&labels).unwrap().0;
            assert!(typed.contains(name) && series.ends_with("\"}"), "{line}");
            assert_eq!(values.insert(name, value.parse::<f64>().unwrap()), None, "{line}");
        }
    }
    assert_eq!(values.len(), typed.len());
    let read = values["siphon_read_bytes_total"] + values["siphon_read_ahead_bytes_total"];
    assert!(read >= PAYLOAD_BYTES as f64, "{text}");
    assert!(values["siphon_storage_read_bytes_total"] >= PAYLOAD_BYTES as f64, "{text}");
    assert!(values["siphon_storage_wait_seconds_total"] > 0.0, "{text}");
    end(run);
}

#[test]
fn the_block_cache_has_the_size_that_the_daemon_was_started_with() {
    let environment = TestEnvironment::new();
    let first = running_with(&environment, &["--block-cache", "3M"]);

    let second = running_with(&environment, &["--block-cache", "5M"]);

    assert_eq!(status(&environment)["cache_bytes"], 3 << 20);
    end(first);
    end(second);
}

#[test]
fn the_block_cache_follows_the_memory_unless_a_variable_says_its_size() {
    let environment = TestEnvironment::new();
    environment.make_directory("mounted");
    let mount = || environment.siphon(&["mount", environment.images().sif(), "mounted"]);
    let measured = |mounted: Invocation| {
        mounted.stdout();
        let bytes = status(&environment)["cache_bytes"].as_u64().unwrap();
        environment.siphon(&["umount", "mounted"]).stdout();
        while !environment.daemons().is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        bytes
    };

    assert_eq!(measured(mount().env("SIPHON_BLOCK_CACHE", "2048K")), 2 << 20);
    assert!((16 << 20..=64 << 20).contains(&measured(mount())));
}

#[test]
fn the_next_start_takes_away_what_a_killed_daemon_left() {
    let environment = TestEnvironment::new();
    let mut forgetful = running_with(&environment, &["--writable-tmpfs"]);
    let states = || {
        let entries = std::fs::read_dir(environment.runtime_directory()).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
    };
    for pid in environment.daemons() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    }
    // Its program has lost its files.
    forgetful.kill().unwrap();
    forgetful.wait().unwrap();
    environment.wait_for_daemons_to_leave();
    assert_eq!(states(), 1);

    let next = running(&environment);

    assert_eq!((states(), environment.daemons().len()), (1, 1));
    let beside = running_with(&environment, &["--writable-tmpfs"]);
    assert_eq!((states(), environment.daemons().len()), (2, 2), "what lives was taken away");
    end(next);
    end(beside);
}
