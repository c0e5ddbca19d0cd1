use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Writes a definition file over the image of these tests.
fn recipe(environment: &TestEnvironment, sections: &str) {
    environment.write("r.def", &format!("Bootstrap: localimage\nFrom: {}\n{sections}", environment.images().sif()));
}

/// What is kept of builds, by the beginnings of the names.
fn kept(environment: &TestEnvironment, beginning: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(environment.cache().join("builds")).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning));
    named.map(|entry| entry.path()).collect()
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
fn an_interrupted_build_leaves_nothing_behind() {
    let environment = TestEnvironment::new();
    recipe(
        &environment,
        "%post\n touch $APPTAINER_LABELS\n (while :; do sleep 0.1 & sleep 0.1; done) &\n sleep 1000\n",
    );
    environment.write("out.sif", "precious");

    let child = environment.siphon(&["build", "--force", "out.sif", "r.def"]).spawn();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !environment.processes().values().any(|line| line.contains("sleep 1000")) {
        assert!(Instant::now() < deadline, "the section does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();

    assert_eq!(output.status.code(), Some(255), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_to_string(environment.work().join("out.sif")).unwrap(), "precious");
    assert!(kept(&environment, "work-").is_empty() && kept(&environment, "failed-").is_empty());
    assert!(!environment.processes().values().any(|line| line.contains("sleep 1000")));
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
fn files_of_a_stage_never_come_from_outside_of_it() {
    let environment = TestEnvironment::new();
    // Every host has this file, with something else in it.
    let text = format!(
        "Bootstrap: localimage\nFrom: {0}\nStage: evil\n%post\n echo of the stage > /etc/hostname\n ln -s /etc/hostname /link\n \
         ln -s ../../../../../../../../../etc/hostname /up\nBootstrap: localimage\nFrom: {0}\n%files from evil\n /link /one\n /up \
         /two\n ../../../../../../../../etc/hostname /three\n",
        environment.images().sif(),
    );
    environment.write("r.def", &text);

    environment.siphon(&["build", "out.sif", "r.def"]).stdout();

    let line = "cat /one /two /three";
    assert_eq!(environment.siphon(&["exec", "out.sif", "sh", "-c", line]).stdout(), ["of the stage"; 3].join("\n"));
}

#[test]
fn files_never_lead_out_of_the_image() {
    let environment = TestEnvironment::new();
    environment.write("one", "1\n");
    let outside = environment.make_directory("outside");
    let text = format!(
        "%setup\n mkdir -p $APPTAINER_ROOTFS{0}; ln -s {0} $APPTAINER_ROOTFS/out; ln -s ../../../../../../../..{0}/file $APPTAINER_ROOTFS/file\n%files\n one \
         /out/one\n one /file\n one ../../../../../../../..{0}/up\n",
        outside.display()
    );
    recipe(&environment, &text);

    environment.siphon(&["build", "out.sif", "r.def"]).stdout();

    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
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
fn a_missing_program_of_the_host_is_named_with_its_package() {
    let environment = TestEnvironment::new();
    for (header, wanted) in [
        ("Bootstrap: yum\nMirrorURL: http://127.0.0.1:1/\n", "install the package dnf"),
        ("Bootstrap: arch\n", "install the package arch-install-scripts"),
        ("Bootstrap: debootstrap\nOSVersion: sid\n", "needs a line \"mirrorurl:\""),
        ("Bootstrap: busybox\nMirrorURL: http://127.0.0.1:1/%{OSVERSION}\n", "no line \"OSVersion:\""),
    ] {
        environment.write("r.def", header);

        let failed = environment.siphon(&["build", "out.sif", "r.def"]).env("PATH", "/nowhere").run();

        assert_eq!(failed.code, 255, "{failed}");
        assert!(failed.stderr.contains(wanted), "{failed}");
    }
}

/// Stands in for what the recipes below fetch and install: makes what they go on with, and says what it was asked for.
const STAND_IN: &str = r#"#!/bin/sh
echo "${0##*/} $*" >> /asked
last=; for last; do :; done
name=${last##*/}
case ${0##*/} in
    git) mkdir -p "${name%.git}" ;;
    fetch) : > "$name" ;;
    unpack) [ -f "$last" ] && mkdir -p "${name%.zip}" ;;
    apt) [ "$1" != install ] || mkdir -p /opt/conda/lib/python3.6/site-packages/mujoco_py /usr/local/lib/python3.5/dist-packages/mujoco_py ;;
esac
"#;

#[test]
fn the_recipes_of_the_tutorial_are_built_and_run() {
    let environment = TestEnvironment::new();
    environment.write("stand-in", STAND_IN);
    environment.write("mjkey.txt", "the key\n");
    let base = "%files\n stand-in /bin/stand-in\n%post\n chmod 755 /bin/stand-in; mkdir -p /usr/local /opt/conda/bin\n for name in apt \
                apt-get pip git fetch unpack; do ln -sf stand-in /bin/$name; done\n printf '#!/bin/sh\\nexec /bin/sh \"$@\"\\n' > /bin/bash; chmod 755 /bin/bash\n";
    recipe(&environment, base);
    environment.siphon(&["build", "base.sif", "r.def"]).stdout();
    let tutorial = [
        (
            "tools",
            include_str!("tutorial/tools.def"),
            "echo $SHELL; ls -d /dataset /tmp_log /final_log",
            "/bin/bash\n/dataset\n/final_log\n/tmp_log",
        ),
        (
            "pytorch",
            include_str!("tutorial/pytorch.def"),
            "cat $MUJOCO_PY_MJKEY_PATH; ls -d /Gym/gym /Gym/.mujoco/mujoco200; echo $SHELL",
            "the key\n/Gym/.mujoco/mujoco200\n/Gym/gym\n/bin/sh",
        ),
        (
            "tensorflow",
            include_str!("tutorial/tensorflow.def"),
            "cat $MUJOCO_PY_MJKEY_PATH; ls -d /usr/local/gym-miniworld; echo $SHELL",
            "the key\n/usr/local/gym-miniworld\n/bin/bash",
        ),
    ];

    for (name, text, line, expected) in tutorial {
        // The registry that has their bases is not here.
        let header = |line: &str| match line.split(':').next() {
            Some("Bootstrap") => "Bootstrap: localimage".to_owned(),
            Some("From") => "From: base.sif".to_owned(),
            // Busybox's own programs cannot be stood in for: its shell runs them whatever lies in the PATH.
            _ => line.replace("wget https", "fetch https").replace("unzip m", "unpack m"),
        };
        environment.write("t.def", &text.lines().map(|line| header(line) + "\n").collect::<String>());
        let image = format!("{name}.sif");

        environment.siphon(&["build", &image, "t.def"]).stdout();

        assert_eq!(environment.siphon(&["exec", &image, "sh", "-c", line]).stdout(), expected, "{name}");
        assert!(environment.siphon(&["exec", &image, "cat", "/asked"]).stdout().contains("install"), "{name}");
        if name != "tools" {
            assert_eq!(
                environment.siphon(&["run", &image, "-c", "echo from the runscript"]).stdout(),
                "from the runscript"
            );
        }
    }
}
