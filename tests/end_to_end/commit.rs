use crate::support::environment::TestEnvironment;
use crate::support::image::{COMPRESSORS, PAYLOAD_BYTES, partition_start};
use crate::support::server::Server;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A sandbox over `image` in which `line` was run.
fn sandbox(environment: &TestEnvironment, image: &str, line: &str) {
    environment.siphon(&["build", "--force", "--sandbox", "sandbox", image]).stdout();
    environment.siphon(&["exec", "--writable", "sandbox", "sh", "-c", line]).stdout();
}

/// What the superblock of a squashfs says that it is compressed with.
fn compressor(path: &Path, start: u64) -> u16 {
    let mut id = [0; 2];
    std::fs::File::open(path).unwrap().read_exact_at(&mut id, start + 20).unwrap();
    u16::from_le_bytes(id)
}

fn names(environment: &TestEnvironment) -> Vec<String> {
    let entries = std::fs::read_dir(environment.work()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_commit_keeps_the_compressor_of_its_image_and_changes_it_on_demand() {
    let environment = TestEnvironment::new();
    for (name, id) in COMPRESSORS.into_iter().zip([1, 4, 3, 5, 6]) {
        let base = environment.images().squashfs(name);
        sandbox(&environment, base.to_str().unwrap(), "echo new > /data/new; echo more >> /data/notes");

        environment.siphon(&["build", "--force", "final.sqfs", "sandbox"]).stdout();

        let made = environment.work().join("final.sqfs");
        assert_eq!(compressor(&made, 0), id, "{name}");
        let line = "cat /data/new /data/notes /data/greeting";
        let shown = environment.siphon(&["exec", "final.sqfs", "sh", "-c", line]).stdout();
        assert_eq!(shown, "new\nnote\nmore\nhello from the image", "{name}");
    }
    for (compression, id) in [("lz4", 5), ("gzip:1", 1), ("none", 1), ("zstd:1", 6)] {
        environment.siphon(&["build", "-F", "--compression", compression, "other.sif", "sandbox"]).stdout();

        let made = environment.work().join("other.sif");
        assert_eq!(compressor(&made, partition_start(&made)), id, "{compression}");
        assert_eq!(environment.siphon(&["exec", "other.sif", "cat", "/data/new"]).stdout(), "new");
    }
}

#[test]
fn a_compression_that_squashfs_does_not_have_is_refused_with_those_it_has() {
    let environment = TestEnvironment::new();

    let refused = environment.siphon(&["build", "--compression", "brotli", "x.sif", environment.images().sif()]).run();

    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("zstd, gzip, lz4, xz, lzo or none"), "{refused}");
}

#[test]
fn what_did_not_change_is_copied_as_it_is_stored() {
    let environment = TestEnvironment::new();
    sandbox(&environment, environment.images().sif(), "echo new > /data/new");

    let built = environment.siphon(&["--verbose", "build", "final.sif", "sandbox"]).run();

    assert_eq!(built.code, 0, "{built}");
    let copied = built.stderr.lines().find(|line| line.contains("copied as it is stored")).expect("it is told");
    assert!(copied.contains(" MiB of content copied"), "{copied}");
    let length = |path: &Path| path.metadata().unwrap().len();
    let (base, made) = (length(&environment.images().sif), length(&environment.work().join("final.sif")));
    assert!(made < base + (64 << 10), "{made} bytes after {base}");
}

#[test]
fn an_image_and_the_layer_of_an_overlay_become_one_image() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();
    environment.shell("mkdir -p plain/data apptainers/upper/data apptainers/work").stdout();
    environment.shell("echo one > plain/data/one; echo two > apptainers/upper/data/two").stdout();

    environment.siphon(&["build", "--overlay", "plain", "one.sif", image]).stdout();
    environment.siphon(&["build", "--overlay", "apptainers", "two.sif", "one.sif"]).stdout();

    let shown = environment.siphon(&["exec", "two.sif", "cat", "/data/one", "/data/two", "/data/notes"]).stdout();
    assert_eq!(shown, "one\ntwo\nnote");
}

#[test]
fn a_commit_at_a_given_time_has_the_same_bytes_each_time() {
    let environment = TestEnvironment::new();
    sandbox(&environment, environment.images().sif(), "echo new > /data/new; echo more >> /data/notes");

    for name in ["one.sif", "two.sif"] {
        environment.siphon(&["commit", "sandbox", name]).env("SOURCE_DATE_EPOCH", "1700000000").stdout();
    }

    let read = |name: &str| std::fs::read(environment.work().join(name)).unwrap();
    assert!(read("one.sif") == read("two.sif"));
    assert_eq!(environment.siphon(&["exec", "one.sif", "stat", "-c", "%Y", "/data/new"]).stdout(), "1700000000");
    let wrong = environment.siphon(&["commit", "sandbox", "x.sif"]).env("SOURCE_DATE_EPOCH", "soon").run();
    assert!(wrong.code != 0 && wrong.stderr.contains("SOURCE_DATE_EPOCH"), "{wrong}");
}

#[test]
fn a_disk_that_is_full_leaves_the_old_image_and_nothing_else() {
    let environment = TestEnvironment::new();
    sandbox(&environment, environment.images().sif(), "echo new > /data/new");
    environment.write("final.sif", "precious");

    // A limit of the process is as a full disk is, for one process; without the trap it would be killed.
    let blocks = PAYLOAD_BYTES / 2 / 512;
    let line = format!("trap '' XFSZ; ulimit -f {blocks}; siphon build --force final.sif sandbox");
    let failed = environment.shell(&line).run();

    assert_eq!(failed.code, 255, "{failed}");
    assert!(failed.stderr.contains("cannot make final.sif: cannot write the image: File too large"), "{failed}");
    environment.wait_for_daemons_to_leave();
    assert_eq!(names(&environment), ["final.sif", "sandbox"]);
    assert_eq!(std::fs::read_to_string(environment.work().join("final.sif")).unwrap(), "precious");
}

#[test]
fn an_interrupted_commit_leaves_nothing() {
    let environment = TestEnvironment::new();
    let root = environment.images().root.display().to_string();
    environment.write("final.sif", "precious");

    let line = format!(
        "siphon build --force --compression xz:9 final.sif {root} & build=$!; \
         until ls -l /proc/$build/fd | grep -q '/work/[#.].*'; do sleep 0.02; done; kill -INT $build; wait $build"
    );
    let interrupted = environment.shell(&line).run();

    assert_eq!(interrupted.code, 255, "{interrupted}");
    assert!(interrupted.stderr.contains("cancelled"), "{interrupted}");
    assert_eq!(names(&environment), ["final.sif"]);
    assert_eq!(std::fs::read_to_string(environment.work().join("final.sif")).unwrap(), "precious");
}

#[test]
fn a_commit_carries_its_history_on() {
    let environment = TestEnvironment::new();
    sandbox(&environment, environment.images().sif(), "echo new > /data/new");
    environment.siphon(&["commit", "sandbox", "one.sif"]).stdout();
    environment.siphon(&["build", "two.sif", "one.sif"]).stdout();

    let deffile = environment.siphon(&["inspect", "--deffile", "two.sif"]).stdout();
    let labels = environment.siphon(&["inspect", "two.sif"]).stdout();
    let history = ["/.singularity.d/bootstrap_history/Apptainer0", "/.singularity.d/bootstrap_history/Apptainer1"];
    let history = history.map(|path| environment.siphon(&["cat", "two.sif", path]).stdout());

    assert_eq!(deffile.trim_end(), "bootstrap: localimage\nfrom: one.sif");
    assert!(labels.contains("maker: siphon tests"), "{labels}");
    assert!(labels.contains("org.label-schema.usage.singularity.deffile.from: one.sif"), "{labels}");
    assert_eq!(history[0].lines().next(), Some("bootstrap: scratch"));
    assert_eq!(history[1].trim_end(), "bootstrap: localimage\nfrom: sandbox");
    assert_eq!(environment.siphon(&["run", "two.sif", "x"]).stdout(), "runscript: image: x");
}

#[test]
fn a_sandbox_over_a_remote_image_is_committed_through_the_network() {
    let environment = TestEnvironment::new();
    let server = Server::start(environment.images().sif.parent().unwrap());
    sandbox(&environment, &server.url("image.sif"), "echo new > /data/new");

    environment.siphon(&["commit", "sandbox", "final.sif"]).stdout();

    drop(server);
    let line = "cat /data/new /data/greeting; md5sum < /data/payload";
    let remote = environment.siphon(&["exec", "final.sif", "sh", "-c", line]).stdout();
    let local =
        environment.siphon(&["exec", environment.images().sif(), "sh", "-c", "md5sum < /data/payload"]).stdout();
    assert_eq!(remote, format!("new\nhello from the image\n{local}"));
}

#[test]
fn the_layer_of_an_instance_becomes_an_image() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();
    environment.make_directory("layer");
    environment.siphon(&["build", "--sandbox", "box", image]).stdout();
    for (name, more) in
        [("over", &["--overlay", "layer", image][..]), ("box", &["--writable", "box"]), ("none", &[image])]
    {
        environment.siphon(&[&["instance", "start"], more, &[name]].concat()).stdout();
        let line = format!("echo {name} > /data/new");
        let _only_where_it_is_kept =
            environment.siphon(&["exec", &format!("instance://{name}"), "sh", "-c", &line]).run();
    }

    for name in ["over", "box"] {
        let target = format!("{name}.sif");
        environment.siphon(&["build", &target, &format!("instance://{name}")]).stdout();
        assert_eq!(
            environment.siphon(&["exec", &target, "cat", "/data/new", "/data/greeting"]).stdout(),
            format!("{name}\nhello from the image")
        );
    }
    let none = environment.siphon(&["build", "none.sif", "instance://none"]).run();
    let unknown = environment.siphon(&["build", "none.sif", "instance://unknown"]).run();
    environment.siphon(&["instance", "stop", "--all"]).stdout();

    assert!(none.code == 255 && none.stderr.contains("keeps no changes"), "{none}");
    assert!(unknown.code == 255 && unknown.stderr.contains("unknown"), "{unknown}");
}
