use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Writes a definition file over the image of these tests.
pub(super) fn recipe(environment: &TestEnvironment, sections: &str) {
    environment.write("r.def", &format!("Bootstrap: localimage\nFrom: {}\n{sections}", environment.images().sif()));
}

/// What is kept of builds, by the beginnings of the names.
pub(super) fn kept(environment: &TestEnvironment, beginning: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(environment.cache().join("builds")).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning));
    named.map(|entry| entry.path()).collect()
}

/// Waits for something that happens soon, on a loaded machine too.
pub(super) fn wait_until(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !happened() {
        assert!(Instant::now() < deadline, "it does not come to this: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_recipe_becomes_an_image_with_all_that_its_sections_say() {
    as_user_and_as_root(|environment| {
        environment.write("mjkey.txt", "key\n");
        recipe(
            environment,
            "%files\n mjkey.txt\n%post\n cp /mjkey.txt /data/key\n rm /data/to-remove\n%environment\n export ADDED=1\n\
             %runscript\n echo \"$ADDED $(cat /data/key) $*\"\n%labels\n Who me\n%test\n test -f /data/key\n",
        );

        environment.siphon(&["build", "out.sif", "r.def"]).stdout();

        assert_eq!(environment.siphon(&["run", "out.sif", "x"]).stdout(), "1 key x");
        assert!(environment.siphon(&["inspect", "out.sif"]).stdout().contains("Who: me"));
        assert!(environment.siphon(&["inspect", "-d", "out.sif"]).stdout().contains("%post\n cp /mjkey.txt"));
        let list = environment.siphon(&["ls", "-R", "out.sif"]).stdout();
        assert!(!list.contains("to-remove") && !list.contains(".post.script"), "{list}");
    });
}

#[test]
fn a_recipe_becomes_a_sandbox() {
    let environment = TestEnvironment::new();
    recipe(&environment, "%post\n echo made > /made\n%runscript\n cat /made\n");

    environment.siphon(&["build", "--sandbox", "box", "r.def"]).stdout();

    assert_eq!(environment.siphon(&["run", "box"]).stdout(), "made");
    environment.siphon(&["exec", "-w", "box", "sh", "-c", "echo more >> /made"]).stdout();
    assert_eq!(environment.siphon(&["run", "box"]).stdout(), "made\nmore");
}

#[test]
fn a_sandbox_from_nothing_needs_nothing_else() {
    let environment = TestEnvironment::new();
    environment.write(
        "r.def",
        "Bootstrap: scratch\n%setup\n mkdir $APPTAINER_ROOTFS/bin; cp /bin/busybox $APPTAINER_ROOTFS/bin/sh\n",
    );

    environment.siphon(&["build", "--sandbox", "box", "r.def"]).stdout();
    environment.shell("chmod -R u+rwX cache; rm -rf cache").stdout();

    assert_eq!(environment.siphon(&["exec", "box", "/bin/sh", "-c", "echo it runs"]).stdout(), "it runs");
}

#[test]
fn sections_run_again_in_a_sandbox_that_is_there() {
    let environment = TestEnvironment::new();
    environment.siphon(&["build", "--sandbox", "box", environment.images().sif()]).stdout();
    environment.siphon(&["exec", "-w", "box", "sh", "-c", "echo before > /before"]).stdout();
    environment.write("r.def", "Bootstrap: docker\nFrom: nowhere\n%post\n cat /before > /after\n");

    environment.siphon(&["build", "--update", "box", "r.def"]).stdout();

    assert_eq!(environment.siphon(&["exec", "box", "cat", "/after"]).stdout(), "before");
}

#[test]
fn a_wrong_recipe_is_shown_where_it_is_wrong_before_anything_runs() {
    let environment = TestEnvironment::new();
    recipe(&environment, "%post\n touch /ran\n%pots\n true\n");

    let refused = environment.siphon(&["build", "out.sif", "r.def"]).run();
    let checked = environment.siphon(&["build", "--check", "r.def"]).run();

    for finished in [refused, checked] {
        assert_eq!(finished.code, 255, "{finished}");
        assert!(
            finished.stderr.contains("r.def:5:1: ") && finished.stderr.contains("did you mean %post?"),
            "{finished}"
        );
        assert!(finished.stderr.contains("5 | %pots"), "{finished}");
    }
    assert!(!environment.work().join("out.sif").exists());
    recipe(&environment, "%post\n true\n");
    environment.siphon(&["build", "--check", "r.def"]).stdout();
}

#[test]
fn what_did_not_change_does_not_run_again() {
    let environment = TestEnvironment::new();
    environment.write("one", "1\n");
    let build = |sections: &str| {
        recipe(&environment, sections);
        let finished = environment.siphon(&["build", "--force", "out.sif", "r.def"]).run();
        assert_eq!(finished.code, 0, "{finished}");
        finished.stderr.contains("+ echo post")
    };
    let post = "%files\n one /one\n%post\n echo post; cat /one > /two\n";

    assert!(build(post));
    assert!(!build(post));
    assert!(!build(&format!("{post}%environment\n export A=1\n")));
    assert_eq!(environment.siphon(&["exec", "out.sif", "sh", "-c", "echo $A; cat /two"]).stdout(), "1\n1");
    assert!(build(&format!("{post} true\n")));
    environment.write("one", "2\n");
    assert!(build(post));
    assert_eq!(environment.siphon(&["exec", "out.sif", "cat", "/two"]).stdout(), "2");
    assert!(!build(post));
    let uncached = environment.siphon(&["build", "-F", "--no-cache", "out.sif", "r.def"]).run();
    assert!(uncached.stderr.contains("+ echo post"), "{uncached}");
}

#[test]
fn what_a_failed_section_has_left_can_be_looked_at_and_gone_on_with() {
    let environment = TestEnvironment::new();
    recipe(&environment, "%post\n echo made >> /made; test -e /mended\n");

    let failed = environment.siphon(&["build", "out.sif", "r.def"]).run();
    let layer = kept(&environment, "failed-").remove(0).join("layer");
    let layer = layer.to_str().unwrap();

    assert_eq!(failed.code, 255, "{failed}");
    assert!(failed.stderr.contains(&format!("--writable {layer}")), "{failed}");
    assert!(failed.stderr.contains("siphon build --resume out.sif r.def"), "{failed}");
    let line = "cat /made; touch /mended";
    assert_eq!(environment.siphon(&["shell", "-f", "--writable", layer, "-c", line]).stdout(), "made");
    environment.siphon(&["build", "--resume", "out.sif", "r.def"]).stdout();
    assert_eq!(environment.siphon(&["exec", "out.sif", "cat", "/made"]).stdout(), "made\nmade");
    assert!(kept(&environment, "failed-").is_empty());
    // What was mended by hand is not what the recipe makes.
    assert_eq!(environment.siphon(&["build", "-F", "out.sif", "r.def"]).run().code, 255);
}

#[test]
fn a_failing_test_keeps_the_image_from_having_its_name() {
    let environment = TestEnvironment::new();
    recipe(&environment, "%test\n exit 3\n");

    let failed = environment.siphon(&["build", "out.sif", "r.def"]).run();

    assert_eq!(failed.code, 255, "{failed}");
    assert!(failed.stderr.contains("failed to execute %test script: exit status 3"), "{failed}");
    assert_eq!(std::fs::read_dir(environment.work()).unwrap().count(), 1);
    environment.siphon(&["build", "--notest", "out.sif", "r.def"]).stdout();
}

#[test]
fn binds_of_a_build_do_not_stay_in_the_image() {
    let environment = TestEnvironment::new();
    let shared = environment.make_directory("shared");
    environment.write("shared/seen", "from the host\n");
    recipe(&environment, "%post\n cat /bound/here/seen > /copied\n");

    let bind = format!("{}:/bound/here", shared.display());
    environment.siphon(&["build", "--bind", &bind, "out.sif", "r.def"]).stdout();

    assert_eq!(environment.siphon(&["exec", "out.sif", "cat", "/copied"]).stdout(), "from the host");
    assert!(!environment.siphon(&["ls", "out.sif"]).stdout().contains("bound"));
}

#[test]
fn owners_are_given_with_and_without_subordinate_ids() {
    let environment = TestEnvironment::new();
    recipe(&environment, "%post\n touch /owned; chown 7:8 /owned; mkdir /closed; chown 9 /closed; chmod 700 /closed\n");

    // Pretended owners are root's in the end.
    for (options, owners) in [(&["--no-cache"][..], "7:8\n9:0"), (&["--no-cache", "--ignore-subuid"], "0:0\n0:0")] {
        let words = [&["build", "--force"], options, &["out.sif", "r.def"]].concat();
        environment.siphon(&words).stdout();

        let line = "stat -c '%u:%g' /owned /closed";
        assert_eq!(environment.siphon(&["exec", "-f", "out.sif", "sh", "-c", line]).stdout(), owners, "{options:?}");
    }
}

#[test]
fn what_builds_keep_is_listed_and_cleaned() {
    as_user_and_as_root(|environment| {
        recipe(
            environment,
            "%files\n r.def /r.def\n%post\n touch /owned; chown 7:8 /owned; mkdir /closed; chmod 700 /closed; chown 9 /closed\n",
        );
        environment.siphon(&["build", "out.sif", "r.def"]).stdout();
        recipe(environment, "%post\n false\n");
        assert_eq!(environment.siphon(&["build", "failed.sif", "r.def"]).run().code, 255);
        let cache = |words: &[&str]| environment.siphon(&[&["cache"], words].concat()).run();

        let listed = cache(&["list", "--json", "-T", "build"]).stdout;
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
        let text = cache(&["list", "-v"]).stdout;
        let dry = cache(&["clean", "-f", "-n", "-T", "build"]).stderr;
        let others = cache(&["clean", "-f", "-T", "net,oci"]);
        let young = cache(&["clean", "-f", "-D", "1"]);

        assert_eq!(listed.len(), 3, "{listed:?}");
        assert!(listed.iter().all(|layer| layer["type"] == "build" && layer["stored_bytes"].as_u64().unwrap() > 0));
        assert!(text.contains(" build   r.def\n") && text.contains("There are 3 layer(s) of builds using "), "{text}");
        assert_eq!(dry.matches("Removing build cache entry: ").count(), 3, "{dry}");
        assert_eq!((others.code, young.code), (0, 0), "{others}\n{young}");
        assert_eq!(kept(environment, "").iter().filter(|path| path.join("layer").exists()).count(), 3);
        let cleaned = cache(&["clean", "--force"]);
        assert_eq!(cleaned.code, 0, "{cleaned}");
        assert_eq!(kept(environment, "").iter().filter(|path| path.join("layer").exists()).count(), 0);
        assert!(!cache(&["list"]).stdout.contains("layer(s)"));
    });
}

#[test]
fn what_a_running_build_may_use_is_not_cleaned() {
    let environment = TestEnvironment::new();
    recipe(&environment, "%post\n touch /made\n");
    environment.siphon(&["build", "out.sif", "r.def"]).stdout();
    environment.shell("mkfifo gate").stdout();
    // It waits for someone to open the other end.
    recipe(&environment, "%setup\n touch begun; cat gate\n%post\n touch /made\n");
    let build = environment.siphon(&["build", "--force", "out.sif", "r.def"]).spawn();
    wait_until("the build begins", || environment.work().join("begun").exists());

    let cleaned = environment.siphon(&["cache", "clean", "--force"]).run();
    environment.shell("echo go > gate").stdout();

    assert!(cleaned.code == 0 && cleaned.stderr.contains("a build is under way"), "{cleaned}");
    assert!(build.wait_with_output().unwrap().status.success());
    assert_eq!(kept(&environment, "").iter().filter(|path| path.join("layer").exists()).count(), 1);
}
