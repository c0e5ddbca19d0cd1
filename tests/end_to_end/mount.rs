use crate::support::environment::as_user_and_as_root;

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
