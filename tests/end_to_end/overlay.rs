use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use std::path::Path;

/// The image in a file that the caller may write to.
fn copy_image(environment: &TestEnvironment) {
    environment.shell(&format!("cp {} image.sif && chmod u+w image.sif", environment.images().sif())).stdout();
}

fn exec(environment: &TestEnvironment, options: &[&str], image: &str, line: &str) -> String {
    let mut words = vec!["exec"];
    words.extend(options);
    words.extend([image, "sh", "-c", line]);
    environment.siphon(&words).stdout()
}

/// Waits until the daemons are gone, and with them what holds image files.
fn wait_for_daemons(environment: &TestEnvironment) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !environment.processes().is_empty() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn check_filesystem(environment: &TestEnvironment, image: &str) {
    let checked = environment.shell(&format!("e2fsck -fn {image}")).run();
    assert_eq!(checked.code, 0, "{checked}");
}

#[test]
fn an_ext3_image_keeps_changes_and_can_be_read_alone() {
    as_user_and_as_root(|environment| {
        let image = environment.images().sif();
        environment.siphon(&["overlay", "create", "layer.img"]).stdout();

        let changes = "echo more >> /data/greeting; rm /data/notes; mkdir -p /new/deep; mv /data/link /new/deep/link";
        exec(environment, &["-o", "layer.img"], image, changes);
        wait_for_daemons(environment);
        let shown = "cat /data/greeting; ls /new/deep; ls /data/notes; touch /data/x";
        let read = environment.siphon(&["exec", "-o", "layer.img:ro", image, "sh", "-c", shown]).run();
        let again = exec(environment, &["-o", "layer.img"], image, "cat /data/greeting");
        wait_for_daemons(environment);

        assert_eq!(read.stdout, "hello from the image\nmore\nlink\n", "{read}");
        assert!(read.stderr.contains("notes") && read.stderr.contains("Read-only file system"), "{read}");
        assert_eq!(again, "hello from the image\nmore");
        check_filesystem(environment, "layer.img");
    });
}

#[test]
fn an_ext3_image_has_one_writer_whom_others_are_told_of() {
    as_user_and_as_root(|environment| {
        let (image, other) = (environment.images().sif(), environment.images().squashfs("gzip"));
        environment.siphon(&["overlay", "create", "--sparse", "layer.img"]).stdout();
        let script = "echo held > /data/held; cat";
        let mut writer = environment.siphon(&["exec", "-o", "layer.img", image, "sh", "-c", script]).spawn();
        let is_held = || exec(environment, &["-o", "layer.img"], image, "ls /data").lines().any(|name| name == "held");
        while !is_held() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }

        let daemon = environment.daemons()[0];
        let reader = environment.siphon(&["exec", "-o", "layer.img:ro", image, "true"]).run();
        let elsewhere = environment.siphon(&["exec", "-o", "layer.img", other.to_str().unwrap(), "true"]).run();
        drop(writer.stdin.take());
        writer.wait().unwrap();

        for refused in [reader, elsewhere] {
            assert_eq!(refused.code, 255, "{refused}");
            assert!(refused.stderr.contains(&format!("by process {daemon} on ")), "{refused}");
        }
    });
}

#[test]
fn an_overlay_partition_of_a_sif_is_written_with_writable_and_read_without() {
    as_user_and_as_root(|environment| {
        copy_image(environment);
        environment.siphon(&["overlay", "create", "image.sif"]).stdout();
        let again = environment.siphon(&["overlay", "create", "image.sif"]).run();

        exec(environment, &["--writable"], "image.sif", "echo new > /data/new; rm /data/notes");
        let shared = environment.siphon(&["exec", "image.sif", "sh", "-c", "cat /data/new; touch /data/x"]).run();
        wait_for_daemons(environment);
        let alone = environment.siphon(&["exec", "image.sif", "sh", "-c", "cat /data/new; touch /data/x"]).run();
        let notes = environment.siphon(&["exec", "image.sif", "ls", "/data/notes"]).run();
        let forgotten = exec(environment, &["--writable-tmpfs"], "image.sif", "echo x > /data/new; cat /data/new");

        assert!(again.code == 255 && again.stderr.contains("already exists"), "{again}");
        for read in [shared, alone] {
            assert_eq!(read.stdout, "new\n", "{read}");
            assert!(read.stderr.contains("Read-only file system"), "{read}");
        }
        assert_ne!(notes.code, 0, "{notes}");
        assert_eq!(forgotten, "x");
        assert_eq!(exec(environment, &[], "image.sif", "cat /data/new"), "new");
    });
}

#[test]
fn readers_of_an_overlay_directory_are_not_kept_waiting_by_its_writer() {
    as_user_and_as_root(|environment| {
        let (image, other) = (environment.images().sif(), environment.images().squashfs("gzip"));
        environment.make_directory("layer");
        let script = "echo held > /data/held; cat";
        let mut writer = environment.siphon(&["exec", "-o", "layer", image, "sh", "-c", script]).spawn();
        while !environment.work().join("layer/upper/data/held").exists() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }

        let read = exec(environment, &["-o", "layer:ro"], image, "cat /data/held");
        let elsewhere = environment.siphon(&["exec", "-o", "layer", other.to_str().unwrap(), "true"]).run();
        drop(writer.stdin.take());
        writer.wait().unwrap();

        assert_eq!(read, "held");
        assert!(elsewhere.code == 255 && elsewhere.stderr.contains("in use by process "), "{elsewhere}");
    });
}

#[test]
fn layers_are_read_in_order_and_their_removals_hide() {
    as_user_and_as_root(|environment| {
        let image = environment.images().sif();
        for (name, line) in [("one", "echo one > /data/greeting; rm /data/notes"), ("two", "echo two > /data/greeting")]
        {
            environment.make_directory(name);
            exec(environment, &["-o", name], image, line);
        }
        let line = "cat /data/greeting; ls /data/notes 2>/dev/null || echo hidden";

        let over = exec(environment, &["-o", "one:ro,two:ro"], image, line);
        let under = exec(environment, &["-o", "two:ro", "-o", "one:ro"], image, line);

        assert_eq!((over.as_str(), under.as_str()), ("two\nhidden", "one\nhidden"));
    });
}

#[test]
fn a_limit_for_writes_that_are_forgotten_is_kept() {
    as_user_and_as_root(|environment| {
        let image = environment.images().sif();
        let options = ["--writable-tmpfs", "--writable-tmpfs-size", "1M"];
        let mut words = vec!["exec"];
        words.extend(options);
        words.extend([image, "sh", "-c", "dd if=/dev/zero of=/data/big bs=65536 count=40"]);

        let full = environment.siphon(&words).run();
        let roomy =
            exec(environment, &["--writable-tmpfs"], image, "head -c 3000000 /dev/zero > /data/big; wc -c < /data/big");

        assert!(full.stderr.contains("No space left on device"), "{full}");
        assert_eq!(roomy, "3000000");
    });
}

#[test]
fn what_cannot_be_made_or_used_is_refused_and_leaves_nothing() {
    as_user_and_as_root(|environment| {
        environment.write("text", "text");
        environment.siphon(&["overlay", "create", "-S", "layer.img"]).stdout();
        let cut = "head -c 10000000 layer.img > cut.img";
        environment.shell(cut).stdout();
        let image = environment.images().sif();
        for words in [
            &["overlay", "create", "layer.img"][..],
            &["overlay", "create", "--size", "63", "new.img"],
            &["overlay", "create", "--create-dir", "../outside", "new.img"],
            &["overlay", "create", "text"],
            &["overlay", "create", "."],
            &["exec", "-o", "text", image, "true"],
            &["exec", "-o", "missing", image, "true"],
            &["exec", "-o", "cut.img", image, "true"],
            &["exec", "-o", image, image, "true"],
            &["exec", "-w", "-o", "layer.img", image, "true"],
            &["exec", "--writable-tmpfs", "-o", "layer.img", image, "true"],
        ] {
            let refused = environment.siphon(words).run();
            assert_eq!(refused.code, 255, "{refused}");
        }
        assert_eq!(environment.shell("ls -A").stdout(), "cut.img\nlayer.img\ntext");
    });
}

#[test]
fn an_overlay_for_fakeroot_is_roots() {
    as_user_and_as_root(|environment| {
        let image = environment.images().sif();
        environment
            .siphon(&["overlay", "create", "-S", "--fakeroot", "--create-dir", "made/here", "layer.img"])
            .stdout();

        let line = "touch /data/new; stat -c %u /data/new /made /made/here";
        let owners = exec(environment, &["--fakeroot", "-o", "layer.img"], image, line);

        assert_eq!(owners, "0\n0\n0");
        assert!(Path::new(&environment.work().join("layer.img")).exists());
    });
}

#[test]
fn a_sandbox_takes_overlays_as_an_image_does() {
    as_user_and_as_root(|environment| {
        environment.siphon(&["build", "--sandbox", "box", environment.images().sif()]).stdout();
        let change = "echo sandbox > /data/of-sandbox; echo sandbox >> /data/greeting; mkdir /dir; echo s > /dir/s";
        exec(environment, &["--writable"], "box", change);
        environment.make_directory("over");
        let over = "echo over > /data/of-overlay; echo over >> /data/greeting; echo o > /dir/o; rm /data/of-sandbox";
        exec(environment, &["--overlay", "over"], "box", over);
        let look = "cat /data/greeting /data/of-overlay /dir/*; ls /data/of-sandbox 2>/dev/null; cat /data/link";

        let read = environment.siphon(&["exec", "--overlay", "over:ro", "box", "sh", "-c", look]).run();
        let written = environment.siphon(&["exec", "--overlay", "over", "box", "sh", "-c", look]).run();
        let without =
            exec(environment, &[], "box", "cat /data/of-sandbox /dir/*; ls /data/of-overlay 2>/dev/null || true");

        assert!(read.stdout.starts_with("hello from the image\nsandbox\nover\nover\no\ns\n"), "{read}");
        assert_eq!(written.stdout, read.stdout, "{written}");
        assert_eq!(without, "sandbox\ns");
    });
}
