use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use crate::support::{is_root, skip};

#[test]
fn a_mounted_image_shows_its_tree_until_it_is_unmounted() {
    as_user_and_as_root(|environment| {
        let directory = environment.make_directory("mounted");
        let (image, root) = (environment.images().sif(), environment.images().root.display());

        environment.siphon(&["mount", image, "mounted"]).stdout();
        let compared = environment
            .shell(&format!("diff -r --no-dereference {root}/data mounted/data && stat -c %h mounted/data/greeting"))
            .run();
        environment.siphon(&["umount", "mounted"]).stdout();

        assert_eq!((compared.code, compared.stdout.trim()), (0, "2"), "{compared}");
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    });
}

#[test]
fn a_mounted_image_refuses_writes() {
    as_user_and_as_root(|environment| {
        environment.make_directory("mounted");
        environment.siphon(&["mount", environment.images().sif(), "mounted"]).stdout();

        let refused = environment.shell("touch mounted/data/new").run();
        environment.siphon(&["umount", "mounted"]).stdout();

        assert!(refused.stderr.contains("Read-only file system"), "{refused}");
    });
}

#[test]
fn an_image_that_becomes_another_under_a_mount_gives_errors_and_one_that_is_replaced_or_touched_none() {
    as_user_and_as_root(|environment| {
        let image = environment.images().sif();
        let other = environment.images().squashfs("gzip");
        let places = ["replaced", "touched", "changed"];
        let sum = |place: &str| environment.shell(&format!("md5sum < {place}/data/payload")).run();
        for place in places {
            environment.make_directory(place);
            environment.shell(&format!("cp {image} {place}.sif")).stdout();
            environment.siphon(&["mount", &format!("{place}.sif"), place]).stdout();
        }
        environment.shell(&format!("cp {image} new.sif && mv new.sif replaced.sif")).stdout();
        environment.shell("head -c 99 /dev/zero >> touched.sif").stdout();
        // In place, and longer than what was there.
        environment.shell(&format!("cat {other} {image} > changed.sif", other = other.display())).stdout();

        let sums = places.map(sum);
        let again = environment.siphon(&["exec", "replaced.sif", "cat", "/data/greeting"]).run();
        for place in places {
            environment.siphon(&["umount", place]).stdout();
        }

        assert_eq!((sums[0].code, sums[1].code, again.code), (0, 0, 0), "{} {} {again}", sums[0], sums[1]);
        assert!(sums[2].code != 0 && sums[2].stderr.contains("Input/output error"), "{}", sums[2]);
    });
}

#[test]
fn umount_leaves_alone_what_is_not_ours() {
    as_user_and_as_root(|environment| {
        for place in ["/proc", "."] {
            let finished = environment.siphon(&["umount", place]).run();

            assert_eq!(finished.code, 255, "{finished}");
        }
        assert!(std::path::Path::new("/proc/self").exists());
    });
}

#[test]
fn a_mount_whose_daemon_was_killed_is_replaced_by_the_next() {
    as_user_and_as_root(|environment| {
        environment.make_directory("mounted");
        let mount = || environment.siphon(&["mount", environment.images().sif(), "mounted"]).stdout();
        mount();
        for pid in environment.daemons() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        }
        while !environment.daemons().is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }

        mount();
        let greeting = environment.shell("cat mounted/data/greeting").run();
        environment.siphon(&["umount", "mounted"]).stdout();

        assert_eq!(greeting.stdout.trim_end(), "hello from the image", "{greeting}");
    });
}

#[test]
fn a_mount_right_after_an_unmount_does_not_join_the_daemon_that_is_leaving() {
    as_user_and_as_root(|environment| {
        environment.make_directory("mounted");

        // About one of 25 met the daemon of the mount before, and there was nothing to unmount afterwards.
        for _ in 0..40 {
            environment.siphon(&["mount", environment.images().sif(), "mounted"]).stdout();
            environment.siphon(&["umount", "mounted"]).stdout();
        }
    });
}

#[test]
fn a_mounted_sandbox_is_read_only_and_leaves_its_layer_to_a_run_that_writes() {
    as_user_and_as_root(|environment| {
        environment.make_directory("mounted");
        environment.siphon(&["build", "--sandbox", "sandbox", environment.images().sif()]).stdout();
        let write = |line: &str| environment.siphon(&["exec", "--writable", "sandbox", "sh", "-c", line]).stdout();
        write("for name in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do echo $name > /data/$name; done");

        environment.siphon(&["mount", "sandbox", "mounted"]).stdout();
        let refused = environment.shell("touch mounted/data/new").run();
        write("echo later > /data/later");
        let shown = environment.shell("cat mounted/data/later mounted/data/20 mounted/data/greeting").run();
        environment.siphon(&["umount", "mounted"]).stdout();

        assert!(refused.stderr.contains("Read-only file system"), "{refused}");
        assert_eq!(shown.stdout.trim_end(), "later\n20\nhello from the image", "{shown}");
    });
}

#[test]
fn a_mounted_directory_shows_what_is_written_to_it() {
    as_user_and_as_root(|environment| {
        let tree = environment.make_directory("tree");
        environment.make_directory("mounted");
        std::fs::write(tree.join("file"), "first").unwrap();
        environment.siphon(&["mount", "tree", "mounted"]).stdout();
        let read = || environment.shell("cat mounted/file").stdout();
        assert_eq!(read(), "first");

        std::fs::write(tree.join("file"), "other").unwrap();

        assert_eq!(read(), "other");
        environment.siphon(&["umount", "mounted"]).stdout();
    });
}

/// A plain directory with `file`, `keep/inner` and a hard link, an empty overlay, and a mount point.
fn make_disk(environment: &TestEnvironment) {
    environment
        .shell("mkdir -p image/keep overlay mounted && echo lower > image/file && echo inner > image/keep/inner")
        .stdout();
}

#[test]
fn a_mount_with_an_overlay_is_writable_and_keeps_its_changes() {
    as_user_and_as_root(|environment| {
        make_disk(environment);
        let mount = || environment.siphon(&["mount", "--overlay", "overlay", "image", "mounted"]).stdout();
        let umount = || environment.siphon(&["umount", "mounted"]).stdout();
        mount();
        environment
            .shell("cd mounted && echo new > new && echo more >> file && rm -r keep && mkfifo pipe && mv file moved")
            .stdout();
        umount();

        mount();
        let shown = environment.shell("cd mounted && ls && cat moved new; cat ../image/file ../image/keep/inner").run();
        umount();

        assert_eq!(shown.stdout, "moved\nnew\npipe\nlower\nmore\nnew\nlower\ninner\n", "{shown}");
        assert_eq!(
            environment.shell("ls -A overlay; ls overlay/upper").stdout(),
            "upper\nwork\nfile\nkeep\nmoved\nnew\npipe"
        );
    });
}

/// Watches a directory, has a shell change things in it, and prints what was told.
const WATCH: &str = r#"
import ctypes, os, struct, subprocess
libc = ctypes.CDLL(None)
watch = libc.inotify_init()
assert libc.inotify_add_watch(watch, b"mounted", 0xfff) == 1
subprocess.run("cd mounted && echo x > new && echo y >> file && mv new newer && rm newer", shell=True, check=True)
told, at = os.read(watch, 1 << 16), 0
while at < len(told):
    _, mask, _, length = struct.unpack_from("iIII", told, at)
    name = told[at + 16:at + 16 + length].rstrip(bytes(1)).decode()
    kinds = {0x2: "modified", 0x8: "closed", 0x40: "from", 0x80: "to", 0x100: "created", 0x200: "deleted"}
    at += 16 + length
    if mask in kinds:
        print(kinds[mask], name)
"#;

/// What a Python program says that works in a mount of an image with an overlay, `mounted`, which is gone then.
fn told_in_a_mount(environment: &TestEnvironment, program: &str) -> String {
    make_disk(environment);
    environment.siphon(&["mount", "--overlay", "overlay", "image", "mounted"]).stdout();
    environment.write("program.py", program);
    let told = environment.shell("python3 program.py").stdout();
    environment.siphon(&["umount", "mounted"]).stdout();
    told
}

#[test]
fn changes_within_a_mount_are_told_to_who_watches() {
    as_user_and_as_root(|environment| {
        let told = told_in_a_mount(environment, WATCH);

        let expected =
            "created new\nmodified new\nclosed new\nmodified file\nclosed file\nfrom new\nto newer\ndeleted newer";
        assert_eq!(told, expected);
    });
}

/// Makes files without names, and gives one of them one.
const UNNAMED: &str = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)

def unnamed(directory, flags=0):
    return os.open(directory, os.O_TMPFILE | os.O_RDWR | flags, 0o666)

def link(file, path):
    failed = libc.linkat(-100, b"/proc/self/fd/%d" % file, -100, path, 0x400)
    return os.strerror(ctypes.get_errno()) if failed else "linked"

os.umask(0o027)
file = unnamed("mounted/keep")
os.write(file, b"content")
made = os.fstat(file)
print(made.st_nlink, oct(made.st_mode), made.st_size, os.listdir("mounted/keep"))
os.rename("mounted/keep", "mounted/moved")
print(link(file, b"mounted/moved/named"), os.fstat(file).st_nlink, sorted(os.listdir("mounted/moved")))
print(os.fstat(file).st_ino == os.stat("mounted/moved/named").st_ino == made.st_ino)
os.link("mounted/moved/named", "mounted/other")
os.write(file, b" and more")
os.unlink("mounted/other")
print(os.fstat(file).st_nlink, open("mounted/moved/named").read())
print(link(unnamed("mounted", os.O_EXCL), b"mounted/excluded"))
reader = os.open("/proc/self/fd/%d" % unnamed("mounted"), os.O_RDONLY)
print(os.fstat(reader).st_nlink)
"#;

#[test]
fn a_file_that_is_made_without_a_name_gets_one_or_is_gone() {
    as_user_and_as_root(|environment| {
        let told = told_in_a_mount(environment, UNNAMED);
        let left =
            environment.shell("cat overlay/upper/moved/named; ls overlay/upper overlay/work/.siphon/work").stdout();

        let expected = "0 0o100640 7 ['inner']\nlinked 1 ['inner', 'named']\nTrue\n1 content and more\n\
                        No such file or directory\n0";
        assert_eq!(told, expected);
        assert_eq!(left, "content and moreoverlay/upper:\nkeep\nmoved\n\noverlay/work/.siphon/work:");
    });
}

#[test]
fn an_image_can_be_mounted_with_an_overlay() {
    as_user_and_as_root(|environment| {
        make_disk(environment);
        environment.siphon(&["mount", "-o", "overlay", environment.images().sif(), "mounted"]).stdout();

        environment.shell("echo changed > mounted/data/greeting").stdout();
        environment.siphon(&["umount", "mounted"]).stdout();

        assert_eq!(environment.shell("cat overlay/upper/data/greeting").stdout(), "changed");
    });
}

#[test]
fn what_root_mounts_with_an_overlay_is_a_disk_like_any_other() {
    if !is_root() {
        return skip("only root mounts for all users");
    }
    let environment = TestEnvironment::root();
    make_disk(&environment);
    let mount = || environment.siphon(&["mount", "--overlay", "overlay", "image", "mounted"]).stdout();
    let umount = || environment.siphon(&["umount", "mounted"]).stdout();
    mount();
    let as_other = "setpriv --reuid 4321 --regid 4322 --clear-groups";
    let made = "cd mounted && chmod 1777 . && chown 70000:70001 file && mknod null c 1 3 && echo lost > null \
                && cp /usr/bin/id id && chown 4400 id && chmod 4755 id";
    environment.shell(made).stdout();

    let ran = environment.shell(&format!("cd mounted && {as_other} sh -c './id -u; touch others; echo > file'")).run();
    umount();
    mount();
    let listed = environment.shell("cd mounted && stat -c '%n %u:%g %A %t,%T' file id null others").stdout();
    umount();

    assert_eq!(ran.stdout, "4400\n", "{ran}");
    assert!(ran.stderr.contains("ermission denied"), "{ran}");
    let expected = "file 70000:70001 -rw-r--r-- 0,0\nid 4400:0 -rwsr-xr-x 0,0\nnull 0:0 crw-r--r-- 1,3\n\
                    others 4321:4322 -rw-r--r-- 0,0";
    assert_eq!(listed, expected);
}

#[test]
fn an_overlay_that_is_mounted_is_refused_to_a_second_mount_which_is_told_who_has_it() {
    as_user_and_as_root(|environment| {
        make_disk(environment);
        environment.make_directory("second");
        environment.siphon(&["mount", "--overlay", "overlay", "image", "mounted"]).stdout();

        let refused = environment.siphon(&["mount", "--overlay", "overlay", "image", "second"]).run();
        let holder = environment.daemons();
        environment.siphon(&["umount", "mounted"]).stdout();

        assert_eq!(refused.code, 255, "{refused}");
        assert!(refused.stderr.contains(&format!("in use by process {} on ", holder[0])), "{refused}");
    });
}

#[test]
fn a_mount_point_or_an_overlay_inside_what_is_mounted_is_refused() {
    as_user_and_as_root(|environment| {
        make_disk(environment);
        for (overlay, image, target) in [
            ("overlay", "image", "image/keep"),
            ("mounted", "image", "mounted"),
            ("image/keep", "image", "mounted"),
            ("image", "image/keep", "mounted"),
            ("nowhere", "image", "mounted"),
            ("image/file", "image", "mounted"),
        ] {
            let refused = environment.siphon(&["mount", "--overlay", overlay, image, target]).run();

            assert_eq!(refused.code, 255, "{overlay} {image} {target}: {refused}");
        }
        assert_eq!(environment.shell("find image overlay mounted | wc -l").stdout(), "6");
    });
}
