use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};

/// Changes of every kind that leaves marks in a layer. They stay away from what is mounted from the host.
const CHANGES: &str = "
    echo new > /data/new
    echo more >> /data/greeting
    mkdir /data/made; echo in > /data/made/in; ln -s in /data/made/link
    rm -r /.singularity.d/env; mkdir /.singularity.d/env; echo only > /.singularity.d/env/only
    mv /.singularity.d/labels.json /.singularity.d/renamed
    rm /.singularity.d/runscript
    chmod 700 /data
";

/// What is at each name of the parts of the image that tests change, content too.
const LOOK: &str = "cd / && find data .singularity.d | sort | while read name; do
    stat -c '%n %F %a' $name; [ ! -f $name ] || [ $(stat -c %s $name) -gt 1000000 ] || cat $name
    [ ! -L $name ] || readlink $name; done";

fn run(environment: &TestEnvironment, engine: &str, line: &str) -> String {
    let words = ["exec", "--layer-engine", engine, "--writable", "sandbox", "sh", "-ec", line];
    environment.siphon(&words).stdout()
}

fn sandbox(environment: &TestEnvironment) {
    environment.siphon(&["build", "--sandbox", "sandbox", environment.images().sif()]).stdout();
}

fn engines(environment: &TestEnvironment) -> Vec<(String, String)> {
    let status: Value = serde_json::from_str(&environment.siphon(&["status", "--json"]).stdout()).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = status.as_array().unwrap().iter();
    found.map(|daemon| (text(&daemon["engine"]["name"]), text(&daemon["engine"]["reason"]))).collect()
}

#[test]
fn a_layer_that_one_engine_wrote_is_served_by_the_other() {
    as_user_and_as_root(|environment| {
        for (writer, reader) in [("kernel", "fuse"), ("fuse", "kernel")] {
            sandbox(environment);
            run(environment, writer, CHANGES);
            let written = run(environment, writer, LOOK);
            let read = run(environment, reader, LOOK);
            run(environment, reader, "rm -r /data/made; echo back >> /data/greeting; mv /data/new /data/newer");
            let changed = run(environment, reader, LOOK);
            let seen = run(environment, writer, LOOK);

            assert!(written.contains("data/made/link") && !written.contains("runscript"), "{written}");
            assert_eq!(read, written, "{reader} after {writer}");
            assert!(changed.contains("data/newer") && !changed.contains("data/made"), "{changed}");
            assert_eq!(seen, changed, "{writer} after {reader}");
            environment.shell("chmod -R u+rwX sandbox && rm -r sandbox").run();
        }
    });
}

#[test]
fn the_status_says_which_engine_serves_and_why() {
    as_user_and_as_root(|environment| {
        sandbox(environment);

        for (asked, served, why) in [
            ("fuse", "fuse", "asked for"),
            ("kernel", "kernel", "asked for, and a trial showed that it works here"),
            ("auto", "kernel", "a trial showed that it works here"),
        ] {
            let words = ["exec", "--layer-engine", asked, "--writable", "sandbox", "true"];
            // It has to be there still when it is asked.
            environment.siphon(&words).env("SIPHON_IDLE_SECONDS", "8").stdout();
            let last = engines(environment).pop().unwrap();
            let shown = environment.siphon(&["status"]).stdout();

            assert_eq!(last, (served.to_owned(), why.to_owned()), "{asked}");
            assert!(shown.contains(&format!("by {served}: {why}")), "{shown}");
        }
        environment.siphon(&["exec", environment.images().sif(), "true"]).env("SIPHON_IDLE_SECONDS", "8").stdout();
        assert_eq!(engines(environment).pop().unwrap().0, "", "an image without a layer has no engine");
    });
}

#[test]
fn what_is_siphons_own_in_a_layer_is_out_of_reach_whoever_merges() {
    as_user_and_as_root(|environment| {
        sandbox(environment);

        for engine in ["fuse", "kernel"] {
            let line = "cat /.siphon/base.json /.siphon/lock 2>/dev/null || true; ls -A /.siphon 2>/dev/null || true; \
                        rm -rf /.siphon 2>/dev/null || true; (echo x 2>/dev/null > /.siphon/new) 2>/dev/null || echo refused";
            assert_eq!(run(environment, engine, line), "refused", "{engine}");
            assert!(environment.work().join("sandbox/.siphon/base.json").exists(), "{engine}");
        }
    });
}

#[test]
fn nothing_of_the_kernels_engine_stays_beside_the_sandbox_also_after_a_kill() {
    as_user_and_as_root(|environment| {
        sandbox(environment);
        let beside = || {
            let entries = std::fs::read_dir(environment.work()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let wait_for_the_end = || {
            while !environment.daemons().is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        };

        run(environment, "kernel", "echo one > /data/one");
        for pid in environment.daemons() {
            // It may have left by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        wait_for_the_end();
        let again = run(environment, "kernel", "cat /data/one; echo two > /data/two");
        wait_for_the_end();

        assert_eq!(again, "one");
        assert_eq!(beside(), ["sandbox"]);
        assert_eq!(run(environment, "fuse", "cat /data/two"), "two");
    });
}

#[test]
fn mount_points_that_the_image_lacks_are_made_by_either_engine() {
    as_user_and_as_root(|environment| {
        environment.write("file", "bound");
        sandbox(environment);
        for engine in ["kernel", "fuse"] {
            let (place, work) = (format!("/{engine}/place"), environment.work());
            let bind = format!("{}:{place}", work.join("file").display());
            let words = ["exec", "--layer-engine", engine, "--writable", "--bind", &bind, "sandbox", "cat", &place];

            assert_eq!(environment.siphon(&words).stdout(), "bound", "{engine}");
            assert_eq!(run(environment, engine, &format!("stat -c %F {place}")), "regular empty file", "{engine}");
        }
    });
}

#[test]
fn writes_that_are_forgotten_are_merged_by_either_engine() {
    as_user_and_as_root(|environment| {
        for engine in ["kernel", "fuse"] {
            let line = "echo x >> /data/greeting; rm /.singularity.d/runscript; cat /data/greeting; ls /.singularity.d";
            let image = environment.images().sif();
            let words = ["exec", "--layer-engine", engine, "--writable-tmpfs", image, "sh", "-ec", line];
            let shown = environment.siphon(&words).stdout();

            assert!(
                shown.starts_with("hello from the image\nx\n") && !shown.contains("runscript"),
                "{engine}: {shown}"
            );
        }
    });
}

#[test]
fn the_kernels_engine_says_why_it_cannot_be_had() {
    let environment = TestEnvironment::new();
    let plain = environment.make_directory("plain");
    let copied = format!("cp -a {}/. {}", environment.images().root.display(), plain.display());
    assert_eq!(environment.shell(&copied).run().code, 0);
    let write = |engine: &str| {
        environment.siphon(&["exec", "--layer-engine", engine, "--writable", "plain", "sh", "-c", "echo x > /new"])
    };

    let refused = write("kernel").run();
    let served = write("auto").run();
    let misspelt = write("krenel").run();

    assert_eq!(refused.code, 255, "{refused}");
    assert!(refused.stderr.contains("a plain directory is written to as it is"), "{refused}");
    assert_eq!(served.code, 0, "{served}");
    assert!(plain.join("new").exists());
    assert!(misspelt.stderr.contains("auto, kernel, fuse"), "{misspelt}");
}

#[test]
fn writing_to_a_file_takes_its_setuid_bit_whoever_merges() {
    as_user_and_as_root(|environment| {
        sandbox(environment);
        // A file of the image too, which is copied for it. Each is looked at first, so that its mode is in the kernel's memory.
        let line = "cd /data; for change in 'echo x >> f' 'truncate -s 1 f' 'chown $(id -u):$(id -g) f' ': > f'; do
            rm -f f; echo content > f; chmod 6755 f; stat -c %a f; eval $change; stat -c %a f; done
            chmod 6711 greeting; stat -c %a greeting; echo more >> greeting; stat -c %a greeting
            rm -f f; echo content > f; chmod 2644 f; echo x >> f; stat -c %a f; chmod 644 greeting";
        let is_root = run(environment, "fuse", "id -u") == "0";
        // The kernel's engine takes no sandbox with a root in it.
        let cases: [(&str, &[&str]); 4] = [
            ("fuse", &["--writable"]),
            ("kernel", &["--writable"]),
            ("fuse", &["--writable", "--fakeroot"]),
            ("fuse", &["--writable", "--fakeroot", "--ignore-subuid"]),
        ];
        for (engine, options) in cases {
            let words = ["exec", "--layer-engine", engine];
            let shown = environment.siphon(&[&words, options, &["sandbox", "sh", "-ec", line]].concat()).stdout();
            let modes: Vec<_> = shown.lines().collect();

            // Root of the host keeps them when it writes, but not when it gives a file to someone. Without the right to execute, the
            // setgid bit is none to take.
            let expected = if is_root {
                ["6755", "6755", "6755", "6755", "6755", "755", "6755", "6755", "6711", "6711", "2644"]
            } else {
                ["6755", "755", "6755", "755", "6755", "755", "6755", "755", "6711", "711", "2644"]
            };
            assert_eq!(modes, expected, "{engine} {options:?}");
        }
    });
}

#[test]
fn a_directory_of_more_than_100000_entries_is_listed_whole_and_emptied() {
    let environment = TestEnvironment::new();
    sandbox(&environment);
    let line = "mkdir /data/many && cd /data/many && seq 1 101000 | sed 's/^/name-/' | xargs touch
        ls | wc -l; ls | sort -u | wc -l
        rm name-7 name-100999; mv name-8 moved; ls | grep -c .; ls | grep -cx 'name-7\\|name-8\\|moved'
        cd /; rm -r /data/many; ls /data | grep -c many || true";

    assert_eq!(run(&environment, "fuse", line), "101000\n101000\n100998\n1\n0");
}

#[test]
fn a_program_that_outlives_its_daemon_keeps_others_from_writing_while_the_kernel_merges() {
    as_user_and_as_root(|environment| {
        sandbox(environment);
        let words = ["exec", "--layer-engine", "kernel", "--writable", "sandbox", "sh", "-c", "echo up; read line"];
        let mut left = environment.siphon(&words).spawn();
        let mut line = String::new();
        BufReader::new(left.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let daemons = environment.daemons();
        for pid in &daemons {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
        }
        while environment.daemons().iter().any(|pid| daemons.contains(pid)) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }

        let write = |engine| {
            let words = ["exec", "--layer-engine", engine, "--writable", "sandbox", "sh", "-c", "echo x > /data/x"];
            environment.siphon(&words).run()
        };
        let refused = [write("fuse"), write("kernel")];
        let read = environment.siphon(&["exec", "sandbox", "cat", "/data/greeting"]).stdout();
        left.kill().unwrap();
        left.wait().unwrap();
        environment.wait_for_daemons_to_leave();
        let after = write("auto");

        for refused in refused {
            assert_ne!(refused.code, 0, "{refused}");
            assert!(refused.stderr.contains(&format!("process {} (sh)", left.id())), "{refused}");
        }
        assert_eq!(read, "hello from the image");
        assert_eq!(after.code, 0, "{after}");
    });
}
