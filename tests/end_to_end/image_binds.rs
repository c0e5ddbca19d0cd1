use super::in_image::{exec, printed};
use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use crate::support::image::{pack, wrap_data};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longer than a loaded machine takes for anything here.
const LIMIT: Duration = Duration::from_secs(30);

/// A squashfs with files, a directory and links, one of which leads to a file that only the image of the run has.
fn squashfs(environment: &TestEnvironment) -> PathBuf {
    let tree = environment.make_directory("tree");
    std::fs::create_dir(tree.join("sub")).unwrap();
    std::fs::write(tree.join("file"), "data\n").unwrap();
    std::fs::write(tree.join("sub/deep"), "deep\n").unwrap();
    symlink("/sub", tree.join("link")).unwrap();
    symlink("/etc/hostname", tree.join("out")).unwrap();
    std::fs::set_permissions(&tree, PermissionsExt::from_mode(0o755)).unwrap();
    let image = environment.work().join("data.sqfs");
    pack(&tree, &image, "gzip");
    std::fs::remove_dir_all(&tree).unwrap();
    image
}

#[test]
fn files_of_another_image_are_bound() {
    as_user_and_as_root(|environment| {
        squashfs(environment);
        let cases: [(&[&str], &str); 7] = [
            (&["-B", "data.sqfs:/new:image-src=/"], "file link out sub"),
            (&["-B", "data.sqfs:/new:image-src=/sub,ro"], "deep"),
            (&["-B", "data.sqfs:/new:image-src=link"], "deep"),
            (&["-B", "data.sqfs:/new/x:image-src=/file"], "x"),
            (&["--mount", "type=bind,src=data.sqfs,dst=/new,image-src=/sub"], "deep"),
            (&["-B", "data.sqfs:/one:image-src=/sub,data.sqfs:/new:image-src=/sub"], "deep"),
            (&["--fakeroot", "-B", "data.sqfs:/new:image-src=/sub"], "deep"),
        ];
        for (options, expected) in cases {
            assert_eq!(printed(environment, options, "echo $(ls /new)"), expected, "{options:?}");
        }
        let line = "cat /new/file; echo x > /new/file; grep -c siphon.*images /proc/self/mountinfo; grep ' /new ' /proc/self/mountinfo";

        let finished = exec(environment, &["-B", "data.sqfs:/new:image-src=/,ro", "-B", "/var/tmp"], line);

        assert!(finished.stdout.starts_with("data\n0\n"), "{finished}");
        assert!(finished.stdout.contains("ro,nosuid,nodev"), "{finished}");
        assert!(finished.stderr.contains("Read-only file system"), "{finished}");
        assert!(!finished.stderr.contains("WARNING"), "{finished}");
    });
}

#[test]
fn a_data_partition_of_a_sif_is_bound_by_its_number() {
    let environment = TestEnvironment::new();
    let first = squashfs(&environment);
    let sif = environment.work().join("data.sif");
    wrap_data(&[&first, &environment.images().squashfs("gzip")], &sif);
    let listed = |options: &str| printed(&environment, &["-B", &format!("data.sif:/new:{options}")], "echo $(ls /new)");

    assert_eq!(listed("image-src=/"), "file link out sub");
    assert_eq!(listed("image-src=/sub,id=1"), "deep");
    assert_eq!(listed("id=2,image-src=/data/empty/.."), "empty greeting link notes payload same-greeting to-remove");
}

#[test]
fn an_image_bind_that_cannot_be_says_why() {
    let environment = TestEnvironment::new();
    wrap_data(&[&squashfs(&environment)], &environment.work().join("data.sif"));
    environment.write("text.sqfs", "no image");
    environment.make_directory("directory");
    let cases = [
        ("data.sqfs:/new:image-src=/none", "/none doesn't exist in image"),
        // A link leads nowhere but to files of its own image.
        ("data.sqfs:/new:image-src=/out", "/out doesn't exist in image"),
        ("data.sif:/new:id=2", "no data partition with the number 2"),
        ("data.sif:/new:id=0", "is not a number from 1 on"),
        ("text.sqfs:/new:image-src=/", "is a text file"),
        ("none.sqfs:/new:image-src=/", "No such file"),
        ("directory:/new:image-src=/", "Is a directory"),
    ];
    for (bind, reason) in cases {
        let finished = exec(&environment, &["-B", bind], "true");

        assert_eq!(finished.code, 255, "{finished}");
        assert!(finished.stderr.contains("FATAL:") && finished.stderr.contains(reason), "{reason}: {finished}");
    }
    let image = environment.images().sif();
    let without_data = exec(&environment, &["-B", &format!("{image}:/new:image-src=/")], "true");
    assert!(without_data.stderr.contains("no data partition found"), "{without_data}");
}

#[test]
fn runs_share_the_mount_of_a_bound_image_and_a_changed_image_is_another() {
    let environment = TestEnvironment::new();
    let image = squashfs(&environment);
    let options = ["-B", "data.sqfs:/new:image-src=/sub"];
    let device = || printed(&environment, &options, "stat -c %d /new; cat /new/deep");

    let (first, second) = (device(), device());
    let tree = environment.make_directory("other");
    std::fs::create_dir(tree.join("sub")).unwrap();
    std::fs::write(tree.join("sub/deep"), "changed\n").unwrap();
    std::fs::remove_file(&image).unwrap();
    pack(&tree, &image, "gzip");

    assert_eq!(first, second);
    assert!(device().ends_with("changed"));
}

#[test]
fn the_daemon_lets_go_of_an_image_that_nobody_binds_any_more() {
    as_user_and_as_root(|environment| {
        squashfs(environment);
        let image = environment.images().sif();
        let mut other = environment.siphon(&["exec", image, "sh", "-c", "echo up; cat"]).spawn();
        BufReader::new(other.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        let bound = || printed(environment, &["-B", "data.sqfs:/new:image-src=/"], "cat /new/file");
        assert_eq!(bound(), "data");
        let daemon = environment.daemons()[0];
        let mounted = || std::fs::read_to_string(format!("/proc/{daemon}/mountinfo")).unwrap().contains("/images/");

        let deadline = Instant::now() + LIMIT;
        while mounted() {
            assert!(Instant::now() < deadline, "the image stays");
            std::thread::sleep(Duration::from_millis(50));
        }

        assert_eq!(bound(), "data");
        assert_eq!(environment.daemons(), [daemon]);
        drop(other.stdin.take());
        other.wait().unwrap();
    });
}
