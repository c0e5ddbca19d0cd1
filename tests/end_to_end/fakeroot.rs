use crate::support::environment::{Finished, TestEnvironment, as_user_and_as_root};
use crate::support::image::partition_start;
use crate::support::skip;
use std::path::Path;

/// Root with other users beside it.
const WITH_OTHERS: &[&str] = &["--fakeroot"];
/// Root alone, with others pretended.
const ALONE: &[&str] = &["--fakeroot", "--ignore-subuid"];
/// A user of the container, in an image that has none.
const ADD_SERVICE: &str = "set -e; echo 'svc:x:42:43::/data:/bin/sh' >> /etc/passwd; echo 'svc:x:43:' >> /etc/group; ";

fn exec(environment: &TestEnvironment, options: &[&str], line: &str) -> Finished {
    environment.siphon(&[&["exec"], options, &[environment.images().sif(), "sh", "-c", line]].concat()).run()
}

/// What a line prints that may write, when it succeeds.
fn printed(environment: &TestEnvironment, options: &[&str], line: &str) -> String {
    let finished = exec(environment, &[options, &["--writable-tmpfs"]].concat(), line);
    assert_eq!(finished.code, 0, "{finished}");
    finished.stdout.trim_end().to_owned()
}

/// Whether the account may have other users inside.
fn has_subordinate_ids(environment: &TestEnvironment) -> bool {
    let account = format!("{}:", environment.user().name);
    let given =
        |path| std::fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line.starts_with(&account)));
    let given = given("/etc/subuid") && given("/etc/subgid");
    if !given {
        skip("this account has no subordinate ids");
    }
    given
}

#[test]
fn the_caller_is_root_at_home_in_root() {
    as_user_and_as_root(|environment| {
        for options in [WITH_OTHERS, ALONE] {
            let line =
                "id -u; id -g; whoami; echo $HOME; grep -c ^root: /etc/passwd; grep NoNewPrivs /proc/self/status";

            let output = exec(environment, options, line);

            assert_eq!(output.stdout, "0\n0\nroot\n/root\n1\nNoNewPrivs:\t0\n", "{output}");
        }
    });
}

#[test]
fn the_variable_is_as_good_as_the_flag() {
    let environment = TestEnvironment::new();
    let run = environment.siphon(&["exec", environment.images().sif(), "id", "-u"]);

    assert_eq!(run.env("APPTAINER_FAKEROOT", "1").stdout(), "0");
}

#[test]
fn files_made_in_the_home_are_the_callers_outside() {
    let environment = TestEnvironment::new();
    let home = environment.make_directory("home");
    let bind = format!("{}:/root", home.display());

    for (options, name) in [(WITH_OTHERS, "one"), (ALONE, "two")] {
        printed(&environment, &[options, &["--home", &bind]].concat(), &format!("touch ~/{name}"));

        let owner = environment.shell(&format!("stat -c %U home/{name}")).stdout();
        assert_eq!(owner, environment.user().name);
    }
}

#[test]
fn subordinate_ids_are_users_inside() {
    let environment = TestEnvironment::new();
    if !has_subordinate_ids(&environment) {
        return;
    }
    let line = "cd /data; chown 42:43 notes; mkdir own; chown svc: own; chmod 700 own; su svc -c 'touch own/new'; \
        su svc -c 'cat notes >> greeting' 2>/dev/null || echo refused; stat -c '%n %u:%g' notes own own/new greeting";

    let output = printed(&environment, WITH_OTHERS, &format!("{ADD_SERVICE}{line}"));

    assert_eq!(output, "refused\nnotes 42:43\nown 42:43\nown/new 42:43\ngreeting 0:0");
}

#[test]
fn a_setuid_program_serves_the_other_users() {
    let environment = TestEnvironment::new();
    if !has_subordinate_ids(&environment) {
        return;
    }
    // Root has no password, so that the program needs nothing but its own privileges to become it.
    let line =
        "sed -i s/^root:x:/root::/ /etc/passwd; chmod 4755 /bin/busybox; su svc -c 'id -u; su root -c \"id -u\"'";

    assert_eq!(printed(&environment, WITH_OTHERS, &format!("{ADD_SERVICE}{line}")), "42\n0");
}

#[test]
fn without_subordinate_ids_other_users_exist_by_their_own_words() {
    let environment = TestEnvironment::new();
    // A user, its children and grandchildren, what comes after it, and a way back that must not exist.
    let line =
        "su svc -c 'id -u; id -G; sh -c \"(id -g; setpriv --reuid 0 id -u 2>/dev/null || echo refused)\"'; id -u";

    let output = printed(&environment, ALONE, &format!("{ADD_SERVICE}{line}"));

    assert_eq!(output, "42\n43\n43\nrefused\n0");
}

#[test]
fn without_subordinate_ids_changes_of_owners_succeed_and_are_forgotten() {
    let environment = TestEnvironment::new();
    let line = "cd /data; chown svc:svc notes; cp notes new; chmod 4640 new; chown svc:svc new; chown -h 42 link; mknod device c 1 3; \
        chown -R 42:43 /opt; stat -c '%n %u:%g %a' notes new; chown svc lost 2>/dev/null || echo missing";

    let output = printed(&environment, ALONE, &format!("{ADD_SERVICE}{line}"));

    assert_eq!(output, "notes 0:0 644\nnew 0:0 4640\nmissing");
}

#[test]
fn root_alone_is_not_pretended_to_have_company_if_that_is_refused() {
    let environment = TestEnvironment::new();
    let options = [ALONE, &["--ignore-fakeroot-command"]].concat();

    let output = printed(&environment, &options, "chown 42 /data/notes 2>/dev/null || echo refused; id -u");

    assert_eq!(output, "refused\n0");
    let none = exec(&environment, &[ALONE, &["--ignore-userns"]].concat(), "true");
    assert_eq!(none.code, 255, "{none}");
    assert!(none.stderr.contains("--fakeroot requires"), "{none}");
}

#[test]
fn where_another_program_answers_system_calls_nobody_is_pretended_and_that_is_said() {
    let environment = TestEnvironment::new();
    let run = |options: &[&str]| {
        let arguments = [&["exec"], ALONE, options, &[environment.images().sif(), "id", "-u"]].concat();
        environment.siphon(&arguments).below_a_listener().run()
    };

    let refused = run(&[]);
    let plain = run(&["--ignore-fakeroot-command"]);

    assert_eq!(refused.code, 255, "{refused}");
    assert!(refused.stderr.contains("such as a container engine"), "{refused}");
    assert!(refused.stderr.contains("--ignore-fakeroot-command"), "{refused}");
    assert_eq!((plain.code, plain.stdout.as_str()), (0, "0\n"), "{plain}");
}

#[test]
fn an_archive_of_files_of_many_owners_is_unpacked() {
    let environment = TestEnvironment::new();
    environment.shell("mkdir tree; echo x > tree/file; tar -c --owner 42 --group 43 -f tree.tar tree").stdout();
    let bind = format!("{}:/mnt/tree.tar", environment.work().join("tree.tar").display());

    for options in [WITH_OTHERS, ALONE] {
        let options = [options, &["-B", &bind]].concat();

        assert_eq!(printed(&environment, &options, "cd /opt; tar -xpf /mnt/tree.tar; cat tree/file"), "x");
    }
}

#[test]
fn a_package_with_a_user_of_its_own_is_installed() {
    let environment = TestEnvironment::new();
    package(&environment);
    let bind = format!("{}:/mnt/tiny.deb", environment.work().join("tiny.deb").display());
    let line = "mkdir -p /var/lib/dpkg/info; touch /var/lib/dpkg/status; cd /; dpkg -i /mnt/tiny.deb >/dev/null; \
        cat /usr/share/tiny/made-by";

    for options in [WITH_OTHERS, ALONE] {
        let options = [options, &["-B", &bind]].concat();

        assert_eq!(printed(&environment, &options, &format!("{ADD_SERVICE}{line}")), "42");
    }
}

#[test]
fn root_inside_can_be_contained_with_processes_of_its_own() {
    as_user_and_as_root(|environment| {
        let line = "id -u; pwd; tr '\\0' ' ' < /proc/1/comm; chown 42:42 /tmp && echo given; echo x > /dev/null; ls /dev/shm; \
            hostname";

        for ids in [WITH_OTHERS, ALONE] {
            let output = exec(environment, &[ids, &["--compat", "--hostname", "inside"]].concat(), line);
            let with_init = exec(environment, &[ids, &["--containall"]].concat(), line);

            assert_eq!((output.code, output.stdout.as_str()), (0, "0\n/root\nsh\ngiven\ninside\n"), "{output}");
            assert!(with_init.stdout.starts_with("0\n/root\nsiphon-init\ngiven\n"), "{with_init}");
        }
    });
}

/// `tiny.deb`, which gives a file of its own to a user of its own, and makes another as that user.
fn package(environment: &TestEnvironment) {
    let script = "set -e; mkdir -p tiny/DEBIAN tiny/usr/share/tiny; echo content > tiny/usr/share/tiny/file; \
        printf 'Package: tiny\\nVersion: 1\\nArchitecture: all\\nMaintainer: none <none@localhost>\\nDescription: tiny\\n' \
            > tiny/DEBIAN/control; \
        { echo '#!/bin/sh'; echo set -e; echo 'chown svc:svc /usr/share/tiny /usr/share/tiny/file'; \
          echo 'su svc -c \"id -u > /usr/share/tiny/made-by\"'; } > tiny/DEBIAN/postinst; \
        chmod 755 tiny/DEBIAN/postinst; dpkg-deb -Zgzip --root-owner-group -b tiny tiny.deb";
    environment.shell(script).stdout();
}

/// A sandbox in which a service got files, and the image that is built from it.
fn built(environment: &TestEnvironment, options: &[&str]) -> Finished {
    let line =
        "cd /data; chown 42:43 notes; mkdir own; touch own/new; chown -R svc:svc own; chmod 700 own; chmod 600 own/new";
    environment.siphon(&["build", "--force", "--sandbox", "box", environment.images().sif()]).stdout();
    let arguments = [&["exec"], options, &["--writable", "box", "sh", "-c"]].concat();
    environment.siphon(&[arguments, vec![&format!("{ADD_SERVICE}{line}")]].concat()).stdout();
    environment.siphon(&["build", "--force", "new.sif", "box"]).stdout();
    let start = partition_start(&environment.work().join("new.sif"));
    let names = "data/notes data/own data/own/new data/greeting";
    let listed =
        environment.shell(&format!("unsquashfs -o {start} -lln new.sif {names} | awk '$6 ~ /data./ {{print $6, $2}}'"));
    listed.run()
}

#[test]
fn owners_inside_are_owners_in_the_built_image() {
    let environment = TestEnvironment::new();
    if !has_subordinate_ids(&environment) {
        return;
    }

    let listed = built(&environment, WITH_OTHERS);

    for line in ["notes 42/43", "own 42/43", "own/new 42/43", "greeting 0/0"] {
        assert!(listed.stdout.contains(&format!("squashfs-root/data/{line}\n")), "{line} is missing: {listed}");
    }
    // Outside of a namespace nobody but those users may enter or remove it.
    environment.siphon(&["build", "--force", "--sandbox", "box", environment.images().sif()]).stdout();
    assert!(!Path::new(&environment.work().join("box/data")).exists());
}

#[test]
fn pretended_owners_are_roots_in_the_built_image() {
    let environment = TestEnvironment::new();

    let listed = built(&environment, ALONE);

    for name in ["notes", "own", "own/new", "greeting"] {
        assert!(listed.stdout.contains(&format!("squashfs-root/data/{name} 0/0\n")), "{name} is missing: {listed}");
    }
    assert_eq!(environment.siphon(&["exec", "new.sif", "stat", "-c", "%a", "/data/own/new"]).stdout(), "600");
}

#[test]
fn a_sandbox_is_handed_over_between_runs_with_different_ids() {
    let environment = TestEnvironment::new();
    environment.siphon(&["build", "--sandbox", "box", environment.images().sif()]).stdout();
    let line = "echo x >> /data/notes; wc -l < /data/notes";
    // The daemon of each run stays, with nothing to do, for much longer than the next one waits.
    let run = |options: &[&str]| {
        let arguments = [&["exec"], options, &["--writable", "box", "sh", "-c", line]].concat();
        environment.siphon(&arguments).env("SIPHON_IDLE_SECONDS", "60").stdout()
    };

    let outputs = [run(&[]), run(ALONE), run(WITH_OTHERS), run(&[])];

    // Without other ids root alone is the same as root with others that do not exist.
    assert_eq!(outputs, ["2", "3", "4", "5"]);
    for daemon in environment.daemons() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::SIGTERM).unwrap();
    }
}
