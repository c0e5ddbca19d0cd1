use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use crate::support::image::make_system;
use crate::support::registry::Registry;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

/// What makes the images of these tests.
const MAKER: &str = include_str!("../support/oci_layout.py");

/// Makes `layout`, `oci.tar` and `docker.tar` of the same image in the working directory.
fn make(environment: &TestEnvironment) {
    let root = tempfile::tempdir().unwrap();
    make_system(root.path(), &[]);
    let mut python = Command::new("python3");
    let made = python.args(["-c", MAKER]).args([root.path(), &environment.work()]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// What is in the working directory.
fn names(environment: &TestEnvironment) -> Vec<String> {
    let entries = fs::read_dir(environment.work()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Cuts the largest blob of the layout short.
fn damage(layout: &Path) {
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let largest = blobs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let bytes = fs::read(&largest).unwrap();
    fs::write(&largest, &bytes[..bytes.len() - 1000]).unwrap();
}

#[test]
fn a_layout_becomes_an_image_of_its_merged_layers() {
    as_user_and_as_root(|environment| {
        make(environment);

        environment.siphon(&["build", "out.sif", "oci:layout:made"]).stdout();

        let line = "cat /layers/replaced /opaque/above /linked; ls /layers /opaque; stat -c '%a %h' /owned";
        let output = environment.siphon(&["exec", "out.sif", "sh", "-c", line]).stdout();
        assert_eq!(output, "above\nabove\nowned\n/layers:\nreplaced\n\n/opaque:\nabove\n4755 2");
        let listed = environment.siphon(&["ls", "-l", "out.sif", "/owned"]).stdout();
        assert!(listed.contains("1234") && listed.contains("4321"), "{listed}");
    });
}

#[test]
fn an_image_is_run_as_its_configuration_says() {
    let environment = TestEnvironment::new();
    make(&environment);
    environment.siphon(&["build", "out.sif", "oci:layout"]).stdout();

    assert_eq!(environment.siphon(&["run", "out.sif"]).stdout(), "entry point: its own words");
    assert_eq!(environment.siphon(&["run", "out.sif", "mine"]).stdout(), "entry point: mine");
    let line = "printf '%s' \"$FROM_IMAGE\"";
    assert_eq!(environment.siphon(&["exec", "out.sif", "sh", "-c", line]).stdout(), "some words");
    let labels = environment.siphon(&["inspect", "out.sif"]).stdout();
    assert!(labels.contains("maker: somebody") && labels.contains("deffile.bootstrap: oci"), "{labels}");
    let objects = environment.siphon(&["sif", "list", "out.sif"]).stdout();
    assert_eq!(objects.matches("JSON.Generic").count(), 2, "{objects}");
    assert!(objects.contains("FS (Squashfs/*System/amd64)"), "{objects}");
    assert_eq!(
        environment.siphon(&["exec", "out.sif", "readlink", "/singularity"]).stdout(),
        ".singularity.d/runscript"
    );
}

#[test]
fn an_archive_is_run_by_its_name_and_converted_once() {
    let environment = TestEnvironment::new();
    make(&environment);

    let first = environment.siphon(&["exec", "oci-archive:oci.tar", "cat", "/layers/replaced"]).run();
    let second = environment.siphon(&["run", "oci-archive:oci.tar:made", "again"]).run();

    assert_eq!((first.code, first.stdout.trim()), (0, "above"), "{first}");
    assert!(first.stderr.contains("INFO:    Converting OCI blobs to SIF format"), "{first}");
    assert_eq!((second.code, second.stdout.trim()), (0, "entry point: again"), "{second}");
    assert!(!second.stderr.contains("Converting"), "{second}");
}

#[test]
fn a_layout_is_run_and_looked_into_where_it_is() {
    let environment = TestEnvironment::new();
    make(&environment);
    environment.siphon(&["build", "out.sif", "oci:layout"]).stdout();
    // Lengths of directories, and the time of what every image has on top, are the format's.
    let listed = |image: &str| {
        let line = format!("siphon ls -lR {image} / | grep -v singularity.d | awk '{{print $1, $3, $4, $8, $9, $10}}'");
        environment.shell(&line).stdout()
    };

    let first = environment.siphon(&["exec", "oci:layout", "cat", "/layers/replaced"]).run();
    let second = environment.siphon(&["run", "oci:layout:made", "again"]).run();
    let elsewhere = environment.shell("mkdir sub && cd sub && siphon cat oci:../layout:made /layers/replaced").stdout();

    for (finished, said) in [(&first, "above"), (&second, "entry point: again")] {
        assert_eq!((finished.code, finished.stdout.trim()), (0, said), "{finished}");
        assert!(!finished.stderr.contains("Converting"), "{finished}");
    }
    assert_eq!(elsewhere.trim(), "above");
    assert!(!environment.cache().join("oci-tmp").exists(), "nothing was converted");
    assert_eq!(listed("oci:layout"), listed("out.sif"));
    // Another image under the same name is another daemon's.
    let index = environment.work().join("layout/index.json");
    fs::write(&index, fs::read_to_string(&index).unwrap().replace("made", "other")).unwrap();
    assert_eq!(environment.siphon(&["exec", "oci:layout:other", "cat", "/layers/replaced"]).stdout(), "above");
    let gone = environment.siphon(&["exec", "oci:layout:made", "true"]).run();
    assert!(gone.code == 255 && gone.stderr.contains("there is no image named \"made\", only other"), "{gone}");
}

#[test]
fn a_layer_of_a_layout_that_is_damaged_is_not_run() {
    let environment = TestEnvironment::new();
    make(&environment);
    damage(&environment.work().join("layout"));

    let short = environment.siphon(&["exec", "oci:layout", "true"]).run();
    let missing = environment.siphon(&["exec", "oci:nowhere", "true"]).run();

    assert!(short.code == 255 && short.stderr.contains("bytes and should have"), "{short}");
    assert!(
        missing.code == 255 && missing.stderr.contains("nowhere/index.json: No such file or directory"),
        "{missing}"
    );
}

#[test]
fn converted_images_are_listed_and_cleaned_with_the_cache() {
    let environment = TestEnvironment::new();
    make(&environment);
    environment.siphon(&["exec", "oci-archive:oci.tar", "true"]).stdout();

    let before = environment.siphon(&["cache", "list", "--type", "oci"]).stdout();
    let cleaned = environment.siphon(&["cache", "clean", "--force", "--type", "oci"]).run();
    let after = environment.siphon(&["cache", "list", "--type", "oci"]).stdout();

    assert!(before.contains("There are 1 container file(s)"), "{before}");
    assert!(cleaned.stderr.contains("Removing oci cache entry: sha256-"), "{cleaned}");
    assert!(after.contains("There are 0 container file(s)"), "{after}");
}

#[test]
fn an_image_that_a_sandbox_lies_on_is_not_cleaned_away() {
    let environment = TestEnvironment::new();
    make(&environment);
    environment.siphon(&["build", "--sandbox", "box", "oci:layout"]).stdout();
    let clean = || environment.siphon(&["cache", "clean", "--force", "--type", "oci"]).run();

    let kept = clean();

    let path = environment.work().join("box").display().to_string();
    assert!(kept.stderr.contains(&format!("the sandbox {path} lies on it")), "{kept}");
    assert_eq!(environment.siphon(&["exec", "box", "cat", "/layers/replaced"]).stdout(), "above");
    environment.wait_for_daemons_to_leave();
    fs::remove_dir_all(environment.work().join("box")).unwrap();
    let cleaned = clean();
    assert!(cleaned.stderr.contains("Removing oci cache entry: sha256-"), "{cleaned}");
    let left = fs::read_dir(environment.cache().join("oci-tmp")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn archives_hold_the_same_image_as_the_layout() {
    let environment = TestEnvironment::new();
    make(&environment);
    environment.shell("gzip -k docker.tar").stdout();

    let build = |target: &str, source: &str| {
        let built = environment.siphon(&["build", target, source]).env("SOURCE_DATE_EPOCH", "1700000000");
        built.stdout();
        let line = format!("siphon ls -lR {target} / | grep -v singularity.d");
        environment.shell(&line).stdout()
    };

    let layout = build("a.sif", "oci:layout");
    for (target, source) in [
        ("b.sif", "oci-archive:oci.tar"),
        ("c.sif", "oci-archive:oci.tar:made"),
        ("d.sif", "docker-archive:docker.tar"),
        ("e.sif", "docker-archive:docker.tar.gz:made"),
        ("f.sif", "docker-archive:docker-links.tar"),
    ] {
        assert_eq!(build(target, source), layout, "{source}");
    }
}

#[test]
fn a_reproducible_image_has_the_same_bytes_each_time() {
    let environment = TestEnvironment::new();
    make(&environment);
    let build = |target: &str| {
        environment.siphon(&["build", target, "oci:layout"]).env("SOURCE_DATE_EPOCH", "1700000000").stdout();
        fs::read(environment.work().join(target)).unwrap()
    };

    assert!(build("a.sif") == build("b.sif"));
}

#[test]
fn a_sandbox_over_an_oci_image_takes_writes() {
    let environment = TestEnvironment::new();
    make(&environment);

    environment.siphon(&["build", "--sandbox", "box", "oci:layout"]).stdout();
    let none = environment.siphon(&["build", "--sandbox", "--force", "box", "oci:nowhere"]).run();
    assert_eq!(none.code, 255, "{none}");

    let line = "echo new > /layers/new; cat /layers/replaced /layers/new";
    assert_eq!(environment.siphon(&["exec", "--writable", "box", "sh", "-c", line]).stdout(), "above\nnew");
}

#[test]
fn a_layer_that_is_damaged_leaves_nothing_behind() {
    let environment = TestEnvironment::new();
    make(&environment);
    damage(&environment.work().join("layout"));
    environment.write("out.sif", "what was there");
    let before = names(&environment);

    let finished = environment.siphon(&["build", "--force", "out.sif", "oci:layout"]).run();

    assert_eq!(finished.code, 255, "{finished}");
    assert!(finished.stderr.contains("bytes, and has "), "{finished}");
    assert_eq!(names(&environment), before);
    assert_eq!(fs::read_to_string(environment.work().join("out.sif")).unwrap(), "what was there");
}

#[test]
fn what_is_no_image_is_said() {
    let environment = TestEnvironment::new();
    make(&environment);
    environment.write("text", &"no archive\n".repeat(100));

    for (source, message) in [
        ("oci:nowhere", "nowhere/index.json: No such file or directory"),
        ("oci:layout:other", "there is no image named \"other\", only made"),
        ("oci-archive:text", "no valid tar header"),
        ("docker-archive:oci.tar", "the archive has no manifest.json"),
        ("docker-archive:docker.tar:other", "one has to be named: made:latest"),
    ] {
        let finished = environment.siphon(&["build", "out.sif", source]).run();
        assert_eq!(finished.code, 255, "{finished}");
        assert!(finished.stderr.contains(message), "{source}: {finished}");
    }
}

#[test]
fn an_image_in_a_registry_is_pulled_run_and_built_on() {
    as_user_and_as_root(|environment| {
        make(environment);
        let registry = Registry::start();
        let uri = format!("docker://{}/some/made:1", registry.host());
        let layout = format!("oci:{}:made", environment.work().join("layout").display());
        let mut skopeo = Command::new("skopeo");
        let sent = skopeo.args(["copy", "--dest-tls-verify=false", &layout, &uri]).output().unwrap();
        assert!(sent.status.success(), "{sent:?}");

        environment.siphon(&["pull", &uri]).stdout();
        let first = environment.siphon(&["exec", &uri, "cat", "/layers/replaced"]).run();
        let second = environment.siphon(&["run", &uri, "mine"]).run();
        let none = environment.siphon(&["exec", &format!("{uri}2"), "true"]).run();
        let recipe =
            format!("Bootstrap: docker\nRegistry: {}\nFrom: some/made:1\n%post\necho more > /more\n", registry.host());
        environment.write("recipe.def", &recipe);
        environment.siphon(&["build", "built.sif", "recipe.def"]).stdout();

        assert_eq!(environment.siphon(&["run", "made_1.sif", "here"]).stdout(), "entry point: here");
        assert!(first.code == 0 && first.stdout == "above\n", "{first}");
        assert!(!first.stderr.contains("Converting"), "{first}");
        assert!(second.code == 0 && second.stdout == "entry point: mine\n", "{second}");
        assert_eq!((none.code, none.stderr.matches("FATAL:").count()), (255, 1), "{none}");
        assert_eq!(
            environment.siphon(&["exec", "built.sif", "cat", "/more", "/layers/replaced"]).stdout(),
            "more\nabove"
        );
    });
}

/// Answers like a docker daemon, on a socket, until all of `answers` were given: the first line of a request, and an archive if
/// there is one.
fn daemon(socket: &Path, answers: Vec<(&'static str, Option<Vec<u8>>)>) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    fs::set_permissions(socket, fs::Permissions::from_mode(0o777)).unwrap();
    std::thread::spawn(move || {
        for (expected, archive) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            assert!(lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).count() > 0);
            assert_eq!(first, format!("GET {expected} HTTP/1.1"));
            let Some(archive) = archive else {
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
                continue;
            };
            // In pieces of unknown number, as a daemon sends it.
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n").unwrap();
            for piece in archive.chunks(100_000) {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).unwrap();
                stream.write_all(piece).unwrap();
                stream.write_all(b"\r\n").unwrap();
            }
            stream.write_all(b"0\r\n\r\n").unwrap();
        }
    })
}

#[test]
fn an_image_of_a_docker_daemon_is_pulled_and_built_on() {
    let environment = TestEnvironment::new();
    make(&environment);
    let archive = fs::read(environment.work().join("docker.tar")).unwrap();
    let socket = environment.work().join("socket");
    let paths = ["/images/some/made:latest/get", "/images/made:1/get", "/images/made:2/get"];
    let answers = vec![(paths[0], Some(archive.clone())), (paths[1], Some(archive)), (paths[2], None)];
    let daemon = daemon(&socket, answers);
    let host = format!("unix://{}", socket.display());
    let siphon = |arguments: &[&str]| environment.siphon(arguments).env("DOCKER_HOST", &host);
    environment.write("r.def", "Bootstrap: docker-daemon\nFrom: made:1\n%post\n echo more > /more\n");

    siphon(&["pull", "docker-daemon://some/made"]).stdout();
    siphon(&["build", "two.sif", "r.def"]).stdout();
    let none = siphon(&["build", "three.sif", "docker-daemon:made:2"]).run();
    daemon.join().unwrap();
    let nobody =
        environment.siphon(&["pull", "four.sif", "docker-daemon:made"]).env("DOCKER_HOST", "unix:///nowhere").run();

    assert_eq!(environment.siphon(&["run", "made_latest.sif", "here"]).stdout(), "entry point: here");
    assert_eq!(environment.siphon(&["exec", "two.sif", "cat", "/more", "/layers/replaced"]).stdout(), "more\nabove");
    assert!(none.code == 255 && none.stderr.contains("docker-daemon:made:2 does not exist"), "{none}");
    assert!(nobody.code == 255 && nobody.stderr.contains("unix:///nowhere"), "{nobody}");
    assert!(!names(&environment).iter().any(|name| name.starts_with("three") || name.starts_with("four")));
}
