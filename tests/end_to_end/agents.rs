//! Base systems that programs of this machine make.

use crate::support::environment::TestEnvironment;
use crate::support::server::Server;
use std::process::Command;

/// Makes the repository that `dnf` and `zypper` install from, in the directory `rpms`.
fn make_rpms(environment: &TestEnvironment) -> String {
    let (place, spec) = (environment.make_directory("rpms"), include_str!("agents/tiny.spec"));
    let spec = environment.write("tiny.spec", spec);
    let mut rpmbuild = Command::new("rpmbuild");
    // What it does after installing, such as stripping programs, is of no use here.
    rpmbuild.args(["-bb", "--quiet", "--define", "__os_install_post %{nil}"]);
    rpmbuild.args([
        "--define",
        "_binaries_in_noarch_packages_terminate_build 0",
        "--define",
        "_build_name_fmt %%{NAME}.rpm",
    ]);
    let scratch = tempfile::tempdir().unwrap();
    rpmbuild.arg("--define").arg(format!("_topdir {}", scratch.path().display()));
    succeed(rpmbuild.arg("--define").arg(format!("_rpmdir {}", place.display())).arg(spec));
    succeed(Command::new("createrepo_c").arg("--quiet").arg(&place));
    format!("file://{}", place.display())
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; run tests/setup first"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Builds the recipe with these header lines, and prints what a file of the image holds.
fn build(environment: &TestEnvironment, header: &str, line: &str) -> String {
    environment.write("r.def", &format!("{header}\n%post\n ls /dev\n"));
    let built = environment.siphon(&["build", "--force", "out.sif", "r.def"]).run();
    assert_eq!(built.code, 0, "{built}");
    environment.siphon(&["exec", "--fakeroot", "out.sif", "sh", "-c", line]).stdout()
}

#[test]
fn dnf_makes_a_system() {
    let environment = TestEnvironment::new();
    let repository = make_rpms(&environment);
    for agent in ["dnf", "yum"] {
        let header = format!("Bootstrap: {agent}\nOSVersion: 9\nMirrorURL: {repository}\nInclude: greeting");

        let said = build(&environment, &header, "greet; cat /etc/redhat-release; stat -c %u:%g /etc/greeting");

        assert_eq!(said, "hello from 0\nTiny Linux\n7:8");
        let files = environment.siphon(&["ls", "-R", "out.sif"]).stdout();
        assert!(!files.contains("bootstrap-yum") && !files.contains("/dev/null"), "{files}");
    }
}

#[test]
fn zypper_makes_a_system() {
    let environment = TestEnvironment::new();
    let header = format!("Bootstrap: zypper\nOSVersion: 15\nMirrorURL: {}\nInclude: greeting", make_rpms(&environment));

    let said = build(&environment, &header, "greet; cat /etc/aaa_base");

    assert_eq!(said, "hello from 0\nsuse");
}

#[test]
fn pacman_makes_a_system() {
    let environment = TestEnvironment::new();
    let place = environment.make_directory("packages");
    let script = environment.write("tiny.sh", include_str!("agents/tiny.sh"));
    environment.shell(&format!("HOME={0} bash {1} {0}", place.display(), script.display())).stdout();
    let configuration = format!(
        "[options]\nArchitecture = auto\nSigLevel = Never\n[tiny]\nServer = file://{}/repository\n",
        place.display()
    );
    let server = Server::start(&environment.work());
    environment.write("pacman.conf", &configuration);
    let header = format!("Bootstrap: arch\nConfURL: {}\nInclude: greeting", server.url("pacman.conf"));

    let said = build(&environment, &header, "cat /etc/base /etc/haveged /etc/greeting");

    assert_eq!(said, "base\nhaveged\nhello from 0");
}

#[test]
fn busybox_makes_a_system() {
    let environment = TestEnvironment::new();
    let directory = environment.make_directory("busybox-1");
    std::fs::copy("/bin/busybox", directory.join("busybox")).unwrap();
    // Many a mirror knows no ranges.
    let server = Server::start_without_ranges(&environment.work());
    let header = format!("Bootstrap: busybox\nOSVersion: 1\nMirrorURL: {}-%{{OSVERSION}}", server.url("busybox"));

    let said = build(&environment, &header, "id -u; readlink /bin/sh");

    assert_eq!(said, "0\nbusybox");
}

#[test]
fn a_missing_program_of_the_host_is_named_with_its_package() {
    let environment = TestEnvironment::new();
    for (header, wanted) in [
        ("Bootstrap: yum\nMirrorURL: http://127.0.0.1:1/\n", "install the package dnf"),
        ("Bootstrap: arch\n", "install the package pacman-package-manager"),
        ("Bootstrap: debootstrap\nOSVersion: sid\n", "needs a line \"mirrorurl:\""),
        ("Bootstrap: busybox\nMirrorURL: http://127.0.0.1:1/%{OSVERSION}\n", "no line \"OSVersion:\""),
    ] {
        environment.write("r.def", header);

        let failed = environment.siphon(&["build", "out.sif", "r.def"]).env("PATH", "/nowhere").run();

        assert_eq!(failed.code, 255, "{failed}");
        assert!(failed.stderr.contains(wanted), "{failed}");
    }
}
