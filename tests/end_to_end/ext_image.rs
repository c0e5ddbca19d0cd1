use crate::support::environment::{TestEnvironment, as_user_and_as_root};

/// Makes `image.ext3` out of the files of the usual image, with the caller as the owner of all.
fn make_image(environment: &TestEnvironment) {
    let images = environment.images();
    let squashfs = images.squashfs("gzip").display().to_string();
    let user = environment.user();
    let line = format!(
        "PATH=$PATH:/usr/sbin:/sbin; unsquashfs -q -n -no-xattrs -d tree {squashfs} > unpacked 2>&1;
        chmod -R u+rwX tree; truncate -s 64M image.ext3 &&
        mke2fs -q -F -t ext3 -E root_owner={}:{} -d tree image.ext3 && rm -rf tree unpacked",
        user.uid, user.gid
    );
    let made = environment.shell(&line).run();
    assert_eq!(made.code, 0, "{made}");
}

#[test]
fn an_ext3_file_system_is_an_image() {
    as_user_and_as_root(|environment| {
        make_image(environment);

        let run = environment.siphon(&["exec", "image.ext3", "cat", "/data/greeting"]).stdout();
        let refused = environment.siphon(&["exec", "image.ext3", "sh", "-c", "echo x > /data/greeting"]).run();
        let listed = environment.siphon(&["ls", "image.ext3", "/data"]).stdout();
        let packed = environment.shell("siphon --silent build new.sif image.ext3 && siphon cat new.sif /data/greeting");

        assert_eq!(run, "hello from the image");
        assert!(refused.stderr.contains("Read-only file system"), "{refused}");
        assert!(listed.lines().any(|name| name == "greeting"), "{listed}");
        assert_eq!(packed.stdout(), "hello from the image");
    });
}

#[test]
fn writes_to_an_ext3_image_stay_in_it() {
    as_user_and_as_root(|environment| {
        make_image(environment);

        let change = "echo changed > /data/greeting; mkdir /new";
        environment.siphon(&["exec", "--writable", "image.ext3", "sh", "-c", change]).stdout();
        let beside = environment.siphon(&["exec", "image.ext3", "cat", "/data/greeting"]).stdout();
        environment.wait_for_daemons_to_leave();
        let after = environment.siphon(&["ls", "image.ext3", "/"]).run();
        let checked = environment.shell("PATH=$PATH:/usr/sbin:/sbin; e2fsck -fn image.ext3").run();

        assert_eq!(beside, "changed");
        let names: Vec<_> = after.stdout.lines().collect();
        assert!(names.contains(&"new") && !names.contains(&".siphon"), "{after}");
        assert_eq!(checked.code, 0, "{checked}");
    });
}

#[test]
fn files_of_an_ext3_image_are_bound() {
    let environment = TestEnvironment::new();
    make_image(&environment);
    let image = environment.images().sif();

    let words = ["exec", "-B", "image.ext3:/new:image-src=/data,ro", image, "cat", "/new/greeting"];
    let finished = environment.siphon(&words).run();

    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("hello from the image\n", ""), "{finished}");
}
