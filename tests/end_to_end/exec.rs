use super::in_image::{exec, printed};
use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use crate::support::image::COMPRESSORS;
use std::io::{BufRead, BufReader, Write};

#[test]
fn exec_runs_a_program_of_the_image() {
    as_user_and_as_root(|environment| {
        assert_eq!(printed(environment, &[], "cat /data/greeting"), "hello from the image");
    });
}

#[test]
fn exec_returns_the_exit_code_of_the_program() {
    as_user_and_as_root(|environment| {
        for code in [0, 1, 3, 255] {
            assert_eq!(exec(environment, &[], &format!("exit {code}")).code, code);
        }
    });
}

#[test]
fn a_signal_gives_128_plus_its_number() {
    let environment = TestEnvironment::new();

    for (signal, number) in [("TERM", 15), ("KILL", 9), ("USR1", 10)] {
        assert_eq!(exec(&environment, &[], &format!("kill -{signal} $$")).code, 128 + number, "{signal}");
    }
}

#[test]
fn a_signal_to_siphon_reaches_the_program() {
    let environment = TestEnvironment::new();
    let line = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = environment.siphon(&["exec", environment.images().sif(), "sh", "-c", line]).spawn();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(output.next().unwrap().unwrap(), "ready");

    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();

    assert_eq!(output.next().unwrap().unwrap(), "caught");
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn every_format_of_one_tree_runs_the_same() {
    let environment = TestEnvironment::new();
    let images = environment.images();
    let squashfs = COMPRESSORS.map(|compressor| images.squashfs(compressor));

    for image in [&images.sif, &images.root, &images.simg()].into_iter().chain(&squashfs) {
        let output = environment.siphon(&["exec", image.to_str().unwrap(), "md5sum", "/data/payload"]).stdout();

        assert!(output.ends_with("/data/payload") && output.len() > 32, "{}: {output}", image.display());
        assert_eq!(output, printed(&environment, &[], "md5sum /data/payload"), "{}", image.display());
    }
}

#[test]
fn run_executes_the_runscript_with_its_arguments() {
    let environment = TestEnvironment::new();

    let output = environment.siphon(&["run", environment.images().sif(), "one", "two words"]).stdout();

    assert_eq!(output, "runscript: image: one two words");
}

#[test]
fn shell_reads_commands_from_its_input() {
    let environment = TestEnvironment::new();

    let output = environment.siphon(&["shell", environment.images().sif()]).stdin(b"cat /data/greeting\n").stdout();

    assert!(output.contains("hello from the image"), "{output}");
}

#[test]
fn options_after_the_image_belong_to_the_program() {
    let environment = TestEnvironment::new();

    let output = environment.siphon(&["exec", environment.images().sif(), "echo", "--env", "-B", "x"]).stdout();

    assert_eq!(output, "--env -B x");
}

#[test]
fn the_names_singularity_and_apptainer_behave_the_same() {
    let environment = TestEnvironment::new();

    for name in ["singularity", "apptainer"] {
        let output = environment.program(name, &["exec", environment.images().sif(), "cat", "/data/greeting"]).stdout();

        assert_eq!(output, "hello from the image", "{name}");
    }
}

#[test]
fn input_from_a_pipe_arrives_whole() {
    let environment = TestEnvironment::new();
    let input = "a line of input\n".repeat(100_000);

    let output = environment.siphon(&["exec", environment.images().sif(), "md5sum"]).stdin(input.as_bytes()).stdout();

    assert_eq!(output, environment.shell("md5sum").stdin(input.as_bytes()).stdout());
}

#[test]
fn a_terminal_is_a_terminal_and_a_pipe_is_none() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    let terminal = environment.shell(&format!("script -qec 'siphon exec {image} tty' /dev/null")).run();

    assert_eq!(terminal.code, 0, "{terminal}");
    assert!(terminal.stdout.trim().starts_with("/dev/pts/"), "{terminal}");
    assert_eq!(exec(&environment, &[], "tty").code, 1);
}

#[test]
fn a_closed_pipe_ends_the_program_and_no_privileges_can_be_gained() {
    let environment = TestEnvironment::new();

    let status = printed(&environment, &[], "grep -e ^SigIgn -e ^NoNewPrivs /proc/self/status");

    let fields: Vec<_> = status.split_whitespace().collect();
    let ignored = u64::from_str_radix(fields[1], 16).unwrap();
    assert_eq!(ignored & (1 << (nix::libc::SIGPIPE - 1)), 0, "{status}");
    assert_eq!(fields[2..], ["NoNewPrivs:", "1"]);
}

#[test]
fn a_working_directory_that_was_removed_gives_way_to_the_home() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    let line = format!("mkdir gone && cd gone && rmdir ../gone && siphon exec {image} pwd");

    assert_eq!(environment.shell(&line).stdout().trim(), environment.user().dir.to_str().unwrap());
}

#[test]
fn an_image_behind_a_link_goes_by_the_name_of_the_link() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    let line = format!("ln -s {image} latest.sif && siphon exec latest.sif sh -c 'echo $APPTAINER_CONTAINER'");

    assert_eq!(environment.shell(&line).stdout().trim(), environment.work().join("latest.sif").to_str().unwrap());
}

#[test]
fn the_shells_own_count_stays_outside() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    let own = environment.siphon(&["exec", image, "env"]).env("SHLVL", "7").stdout();
    let clean = environment.siphon(&["exec", "-e", image, "env"]).env("SHLVL", "7").stdout();

    assert!(own.contains("SHLVL=7"), "{own}");
    assert!(!clean.contains("SHLVL="), "{clean}");
}

#[test]
fn the_caller_keeps_its_ids_and_has_a_name() {
    as_user_and_as_root(|environment| {
        let user = environment.user();

        let output = printed(environment, &[], "id -u; id -g; id -un");

        assert_eq!(output, format!("{}\n{}\n{}", user.uid, user.gid, user.name));
    });
}

#[test]
fn the_program_has_no_descriptors_beyond_those_of_its_caller() {
    let environment = TestEnvironment::new();
    let line = "cd /proc/$$/fd && echo *";

    let outside = environment.shell(&format!("exec busybox sh -c '{line}'")).stdout();

    assert_eq!(printed(&environment, &[], line), outside);
}

#[test]
fn home_temporary_and_working_directories_are_the_hosts() {
    as_user_and_as_root(|environment| {
        let home = environment.user().dir.to_str().unwrap().to_owned();
        environment.write("in-work", "work");

        let line = "pwd; cat in-work; echo; echo $HOME; stat -c %i $HOME /tmp /var/tmp; echo new > made";
        let output = printed(environment, &[], line);

        let inodes = environment.shell(&format!("stat -c %i {home} /tmp /var/tmp")).stdout();
        assert_eq!(output, format!("{}\nwork\n{home}\n{inodes}", environment.work().display()));
        assert_eq!(std::fs::read_to_string(environment.work().join("made")).unwrap(), "new\n");
    });
}

#[test]
fn the_kernels_filesystems_and_the_hosts_network_files_are_there() {
    let environment = TestEnvironment::new();

    let line =
        "test -e /proc/self/status && test -d /sys/kernel && test -c /dev/null && test -c /dev/tty && cat /etc/hosts";
    let output = printed(&environment, &[], line);

    assert_eq!(output, std::fs::read_to_string("/etc/hosts").unwrap().trim_end());
}

#[test]
fn pwd_and_home_can_be_chosen() {
    let environment = TestEnvironment::new();
    let other = environment.make_directory("other");
    std::fs::write(other.join("mark"), "other home").unwrap();

    for option in ["--pwd", "--cwd"] {
        assert_eq!(printed(&environment, &[option, "/data"], "pwd"), "/data", "{option}");
    }
    let home = format!("{}:/home/elsewhere", other.display());
    assert_eq!(printed(&environment, &["-H", &home], "echo $HOME; cat $HOME/mark"), "/home/elsewhere\nother home");
}

#[test]
fn binds_bring_directories_and_files_where_they_are_asked_for() {
    as_user_and_as_root(|environment| {
        let source = environment.make_directory("source");
        std::fs::write(source.join("file"), "bound").unwrap();
        let file = environment.write("single", "single file");
        let (source, file) = (source.display(), file.display());

        // Neither target exists in the image.
        let binds = format!("{source}:/made/for/bind,{file}:/made/single:ro");
        let output = printed(environment, &["-B", &binds], "cat /made/for/bind/file /made/single");
        let same_place = printed(environment, &["--bind", &source.to_string()], &format!("cat {source}/file"));

        assert_eq!(output, "boundsingle file");
        assert_eq!(same_place, "bound");
    });
}

#[test]
fn a_read_only_bind_cannot_be_written_and_another_can() {
    let environment = TestEnvironment::new();
    let source = environment.make_directory("source");

    let read_only = format!("{}:/bound:ro", source.display());
    let writable = format!("{}:/bound", source.display());

    assert_ne!(exec(&environment, &["-B", &read_only], "echo x > /bound/file").code, 0);
    assert_eq!(exec(&environment, &["-B", &writable], "echo x > /bound/file").code, 0);
    assert_eq!(std::fs::read_to_string(source.join("file")).unwrap(), "x\n");
}

#[test]
fn a_read_only_bind_holds_for_the_mounts_below_it_too() {
    let environment = TestEnvironment::new();

    // /dev/shm is a mount of its own, which anyone may write to.
    let finished = exec(&environment, &["-B", "/dev:/made/dev:ro"], "touch /made/dev/shm/siphon-test");

    assert_ne!(finished.code, 0);
    assert!(finished.stderr.contains("Read-only file system"), "{finished}");
}

#[test]
fn a_mount_point_in_a_directory_of_the_host_is_made_there() {
    let environment = TestEnvironment::new();
    let source = environment.write("source", "bound");
    let target = environment.work().join("made/for/file");

    let bind = format!("{}:{}", source.display(), target.display());
    let output = printed(&environment, &["-B", &bind], &format!("cat {}", target.display()));

    assert_eq!(output, "bound");
    assert!(target.is_file());
}

#[test]
fn a_mount_point_for_another_run_appears_where_it_was_looked_for_in_vain() {
    let environment = TestEnvironment::new();
    let source = environment.make_directory("source");
    // The kernel then remembers that there is no such name, and the listing without it.
    let line =
        "ls / | grep -x made; ls -d /made 2>/dev/null; echo missing; read go; ls / | grep -x made; ls -d /made/for";
    let mut child = environment.siphon(&["exec", environment.images().sif(), "sh", "-c", line]).spawn();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(output.next().unwrap().unwrap(), "missing");

    printed(&environment, &["-B", &format!("{}:/made/for/bind", source.display())], "true");
    writeln!(child.stdin.take().unwrap(), "go").unwrap();

    assert_eq!(output.next().unwrap().unwrap(), "made");
    assert_eq!(output.next().unwrap().unwrap(), "/made/for");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn binds_from_the_environment_and_the_command_line_add_up() {
    let environment = TestEnvironment::new();
    let first = environment.write("first", "1");
    let second = environment.write("second", "2");
    let image = environment.images().sif();

    let arguments = ["exec", "-B", &format!("{}:/one", first.display()), image, "cat", "/one", "/two"];
    let output = environment.siphon(&arguments).env("SINGULARITY_BIND", &format!("{}:/two", second.display())).stdout();

    assert_eq!(output, "12");
}

#[test]
fn the_image_is_read_only_without_a_layer() {
    as_user_and_as_root(|environment| {
        let finished = exec(environment, &[], "echo x > /data/new");

        assert_ne!(finished.code, 0);
        assert!(finished.stderr.contains("Read-only file system"), "{finished}");
    });
}

#[test]
fn a_writable_tmpfs_takes_writes_and_forgets_them() {
    as_user_and_as_root(|environment| {
        let line = "echo x > /data/new && rm /data/to-remove && echo more >> /data/greeting && cat /data/new";

        assert_eq!(printed(environment, &["--writable-tmpfs"], line), "x");

        assert_eq!(
            printed(environment, &["--writable-tmpfs"], "cat /data/to-remove; ls /data/new 2>&1 | wc -l"),
            "old\n1"
        );
        assert_eq!(printed(environment, &[], "cat /data/greeting"), "hello from the image");
    });
}

#[test]
fn the_images_variables_win_over_the_hosts_and_the_callers_over_both() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();
    let variables = "echo $FROM_IMAGE,${EMPTY_IN_IMAGE-unset},$FROM_HOST,$CHOSEN";

    let run = |options: &[&str]| {
        environment
            .siphon(&[&["exec"], options, &[image, "sh", "-c", variables]].concat())
            .env("FROM_IMAGE", "host")
            .env("FROM_HOST", "host")
    };

    assert_eq!(run(&[]).stdout(), "image,,host,");
    // A variable that the image sets to nothing hides the host's altogether.
    assert_eq!(run(&[]).env("EMPTY_IN_IMAGE", "host").stdout(), "image,unset,host,");
    assert_eq!(run(&["--env", "FROM_IMAGE=caller,CHOSEN=caller"]).stdout(), "caller,,host,caller");
    assert_eq!(run(&[]).env("SINGULARITYENV_FROM_IMAGE", "caller").stdout(), "caller,,host,");
    assert_eq!(
        run(&[]).env("APPTAINERENV_CHOSEN", "new").env("SINGULARITYENV_CHOSEN", "old").stdout(),
        "image,,host,new"
    );
    assert_eq!(run(&["--cleanenv"]).stdout(), "image,,,");
    assert_eq!(run(&["-e"]).env("SINGULARITYENV_CHOSEN", "caller").stdout(), "image,,,caller");
}

#[test]
fn the_search_path_is_the_containers_own_and_library_paths_stay_outside() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    let output = environment
        .siphon(&[
            "exec",
            image,
            "sh",
            "-c",
            "echo $PATH; echo $LD_LIBRARY_PATH; echo $SINGULARITY_CONTAINER; echo $APPTAINER_NAME",
        ])
        .env("LD_LIBRARY_PATH", "/host/libraries")
        .stdout();

    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[0], "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    assert!(!lines[1].contains("/host/libraries"), "{output}");
    assert_eq!(lines[2..], [image, "image.sif"]);
}

#[test]
fn nv_without_a_gpu_runs_all_the_same() {
    let environment = TestEnvironment::new();

    assert_eq!(printed(&environment, &["--nv"], "echo ran"), "ran");
}
