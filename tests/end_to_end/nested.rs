use crate::support::environment::TestEnvironment;

/// A user of the container, in an image that has none, and its number as it says itself.
const BECOME_SERVICE: &str =
    "echo svc:x:42:43::/data:/bin/sh >> /etc/passwd; chown 42:43 /data/notes && su svc -c 'id -u'; id -u";

/// Runs siphon in a container that was started with `outer` options, with `inner` ones, on `line`.
fn nested(environment: &TestEnvironment, outer: &[&str], inner: &str, line: &str) -> String {
    let shared = environment.images().sif.parent().unwrap().display().to_string();
    // The image has no libraries, and siphon needs some.
    let binds = format!("{shared},/usr,/lib,/lib64");
    // What runs inside keeps its state where the test looks after it.
    let run = environment.runtime_directory().display().to_string();
    let cache = environment.work().display().to_string();
    let command = format!(
        "SIPHON_RUNTIME_DIR={run} SIPHON_CACHEDIR={cache} SIPHON_IDLE_SECONDS=1 \
         {shared}/siphon exec {inner} {shared}/image.sif sh -c \"{line}\""
    );
    let binds = format!("{binds},{run}");
    let arguments = [&["exec", "-B", &binds], outer, &[environment.images().sif(), "sh", "-c", &command]].concat();
    environment.siphon(&arguments).stdout()
}

#[test]
fn a_container_runs_another() {
    let environment = TestEnvironment::new();

    for (outer, inner, user) in [
        (&[][..], "", environment.user().uid.as_raw()),
        (&[], "--fakeroot", 0),
        (&["--fakeroot"], "", 0),
        (&["--fakeroot"], "--fakeroot --writable-tmpfs", 0),
        (&["--fakeroot", "--ignore-subuid"], "", 0),
        (&["--fakeroot", "--ignore-subuid"], "--fakeroot --writable-tmpfs", 0),
    ] {
        let output = nested(&environment, outer, inner, "id -u; cat /data/greeting");

        assert_eq!(output, format!("{user}\nhello from the image"), "{outer:?} {inner}");
    }
}

#[test]
fn a_container_that_pretends_users_does_so_for_the_one_inside() {
    let environment = TestEnvironment::new();

    let outer = ["--fakeroot", "--ignore-subuid"];
    let output = nested(&environment, &outer, "--fakeroot --writable-tmpfs", BECOME_SERVICE);

    assert_eq!(output, "42\n0");
}

#[test]
fn a_user_namespace_of_another_program_is_good_enough() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    let plain = environment.shell(&format!("unshare -r siphon exec {image} cat /data/greeting")).stdout();
    let command = format!("unshare -r siphon exec -f --writable-tmpfs {image} sh -c \"{BECOME_SERVICE}\"");
    let fakeroot = environment.shell(&command).stdout();

    assert_eq!(plain, "hello from the image");
    assert_eq!(fakeroot, "42\n0");
}

#[test]
fn a_host_without_user_namespaces_is_told_what_to_change() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();
    // No more namespaces may be made below the one that this is in.
    let script = format!("echo 0 > /proc/sys/user/max_user_namespaces; siphon exec {image} true");

    let finished = environment.shell(&format!("unshare -c --keep-caps sh -c '{script}'")).run();

    assert_eq!(finished.code, 255, "{finished}");
    assert!(finished.stderr.contains("sysctl user.max_user_namespaces"), "{finished}");
}
