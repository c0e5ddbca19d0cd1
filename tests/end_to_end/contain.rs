use super::in_image::{exec, printed};
use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_contained_run_has_few_devices_and_they_work() {
    as_user_and_as_root(|environment| {
        let line = "echo x >/dev/null && head -c 2 /dev/zero | wc -c && head -c 3 /dev/urandom | wc -c && \
            echo y | cat /dev/stdin && echo x >/dev/shm/file && ls /dev";

        let output = printed(environment, &["--contain"], line);

        let names = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero";
        assert_eq!(output, format!("2\n3\ny\n{}", names.replace(' ', "\n")));
        assert!(printed(environment, &["--contain", "--ipc"], "ls /dev").contains("mqueue"));
        assert!(!printed(environment, &["--contain", "--no-mount", "devpts"], "ls /dev").contains("pt"));
    });
}

#[test]
fn a_contained_run_has_a_terminal_and_can_make_new_ones() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    // Whoever opens ptmx has a new terminal, of which pts then has the other end.
    let inner = "tty; exec 3</dev/ptmx; ls -1 /dev/pts";
    let line = format!("script -qec 'siphon exec --contain {image} sh -c \"{inner}\"' /dev/null");
    let finished = environment.shell(&line).run();

    let lines: Vec<_> = finished.stdout.lines().map(str::trim).collect();
    assert_eq!(lines, ["/dev/console", "0", "ptmx"], "{finished}");
}

#[test]
fn a_contained_run_starts_in_an_empty_home_and_leaves_nothing() {
    as_user_and_as_root(|environment| {
        let mark = environment.write("mark", "");
        let (mark, home) = (mark.display(), environment.user().dir.display());

        let line = "pwd; ls -A . /tmp /var/tmp; touch ~/contained /tmp/contained /var/tmp/contained; stat -c %a /tmp";
        let output = printed(environment, &["-c"], &format!("{line}; test ! -e {mark}"));

        assert_eq!(output, format!("{home}\n.:\n\n/tmp:\n\n/var/tmp:\n1777"));
        let host = environment.shell(&format!("ls {home} /tmp /var/tmp")).run();
        assert!(!host.stdout.contains("contained"), "{host}");
    });
}

#[test]
fn a_contained_run_can_be_given_a_home_and_binds() {
    let environment = TestEnvironment::new();
    let given = environment.make_directory("given");
    std::fs::write(given.join("file"), "given").unwrap();
    let home = format!("{}:/home/other", given.display());
    let bind = format!("{}:/tmp/made/here", given.display());

    assert_eq!(printed(&environment, &["-c", "--no-home"], "pwd"), "/");
    assert_eq!(printed(&environment, &["-c", "-H", &home], "pwd; cat file"), "/home/other\ngiven");
    assert_eq!(printed(&environment, &["-c", "-B", &bind], "cat /tmp/made/here/file"), "given");
    assert_eq!(printed(&environment, &["-c", "-B", "/dev/ptmx"], "test -c /dev/ptmx && echo there"), "there");
}

#[test]
fn a_workdir_keeps_what_a_contained_run_writes() {
    as_user_and_as_root(|environment| {
        let kept = environment.make_directory("kept");
        let line = "echo h > ~/f; echo t > /tmp/f; echo v > /var/tmp/f; echo s > /scratch/here/f";

        printed(environment, &["-c", "-W", "kept", "-S", "/scratch/here"], line);

        for (name, content) in [("home", "h\n"), ("tmp", "t\n"), ("var_tmp", "v\n"), ("scratch/scratch/here", "s\n")] {
            assert_eq!(std::fs::read_to_string(kept.join(name).join("f")).unwrap(), content, "{name}");
        }
        assert_eq!(kept.join("tmp").metadata().unwrap().permissions().mode() & 0o7777, 0o1777);
        assert_eq!(printed(environment, &["-c", "-W", "kept"], "cat ~/f"), "h");
        let missing = exec(environment, &["-c", "-W", "/no/such"], "true");
        assert_eq!(missing.code, 255, "{missing}");
        assert!(missing.stderr.contains("/no/such"), "{missing}");
    });
}

#[test]
fn scratch_directories_are_empty_and_forgotten_wherever_they_are() {
    let environment = TestEnvironment::new();
    let inside = environment.make_directory("inside").display().to_string();
    let line = format!("touch /scr/file {inside}/file && ls -A /scr {inside}");

    let output = printed(&environment, &["-S", &format!("/scr,{inside}")], &line);

    assert_eq!(output, format!("/scr:\nfile\n\n{inside}:\nfile"));
    assert_eq!(environment.shell(&format!("ls {inside}")).stdout(), "");
}

#[test]
fn the_umask_is_the_callers_unless_it_is_not_wanted() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();
    let umask = |options: &str| {
        let line = format!("umask 0077; siphon exec {options} {image} sh -c 'umask; cat /etc/passwd >/dev/null'");
        environment.shell(&line).stdout()
    };

    assert_eq!(umask(""), "0077");
    assert_eq!(umask("--no-umask"), "0022");
    assert_eq!(umask("--pid --no-umask"), "0022");
}

#[test]
fn name_servers_can_be_chosen() {
    let environment = TestEnvironment::new();

    let chosen = printed(&environment, &["--dns", "1.2.3.4,8.8.8.8"], "cat /etc/resolv.conf");

    assert_eq!(chosen, "nameserver 1.2.3.4\nnameserver 8.8.8.8");
    let refused = exec(&environment, &["--dns", "nonsense"], "true");
    assert_eq!(refused.code, 255, "{refused}");
    assert!(refused.stderr.contains("dns ip nonsense is not a valid IP address"), "{refused}");
}

#[test]
fn containing_all_leaves_nothing_of_the_host_to_see() {
    as_user_and_as_root(|environment| {
        let image = environment.images().sif();
        let line = "cat /proc/1/comm; ls /dev/mqueue; echo $FROM_HOST; touch /data/x 2>/dev/null || echo refused";
        let run =
            |option| environment.siphon(&["exec", option, image, "sh", "-c", line]).env("FROM_HOST", "host").stdout();

        assert_eq!(run("-C"), "siphon-init\n\nrefused");
        assert_eq!(run("--compat"), "sh");
    });
}

#[test]
fn a_compatible_run_takes_values_as_they_are() {
    let environment = TestEnvironment::new();

    let output = printed(&environment, &["--compat", "--env", "A=$HOME"], "echo $A $SINGULARITY_NO_EVAL");

    assert_eq!(output, "$HOME 1");
}

#[test]
fn a_mount_to_leave_out_that_does_not_exist_is_named() {
    let environment = TestEnvironment::new();

    let finished = exec(&environment, &["--no-mount", "nonsense,hostfs,devpts"], "true");

    assert_eq!(finished.code, 0, "{finished}");
    assert_eq!(finished.stderr.trim(), "WARNING: Ignoring unknown mount type 'nonsense'");
}
