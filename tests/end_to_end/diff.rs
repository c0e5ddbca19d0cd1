use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use serde_json::Value;

/// A sandbox over the SIF in which `line` was run.
fn sandbox(environment: &TestEnvironment, line: &str) {
    environment.siphon(&["build", "--sandbox", "sandbox", environment.images().sif()]).stdout();
    environment.siphon(&["exec", "--writable", "sandbox", "sh", "-c", line]).stdout();
}

/// The letters and paths of a diff.
fn changes(environment: &TestEnvironment, arguments: &[&str]) -> Vec<String> {
    let told = environment.siphon(&[&["diff"], arguments].concat()).stdout();
    told.lines().map(|line| format!("{} {}", &line[..1], line.split_whitespace().last().unwrap())).collect()
}

const CHANGES: &str = "cd /data; echo new > new; mkdir made; echo x > made/x; rm to-remove; echo more >> notes; \
    chmod 600 greeting; rm -r /opt/old";
const TOLD: [&str; 7] = [
    "M /data/greeting",
    "A /data/made/",
    "A /data/made/x",
    "A /data/new",
    "C /data/notes",
    "D /data/to-remove",
    "D /opt/old/",
];

#[test]
fn diff_tells_what_a_sandbox_changes() {
    as_user_and_as_root(|environment| {
        sandbox(environment, CHANGES);

        let told = changes(environment, &["sandbox"]);

        assert_eq!(told, [&TOLD[..], &["D /opt/old/lost"]].concat());
    });
}

#[test]
fn diff_leaves_out_what_was_made_to_mount_on_by_either_engine() {
    as_user_and_as_root(|environment| {
        let bind = format!("{}:/made/here", environment.work().display());
        for engine in ["kernel", "fuse"] {
            environment.siphon(&["build", "--sandbox", engine, environment.images().sif()]).stdout();
            let run = ["exec", "--layer-engine", engine, "--writable", "--bind", &bind, engine, "sh", "-c"];
            environment.siphon(&[&run[..], &["true"]].concat()).stdout();

            assert_eq!(changes(environment, &[engine]), [""; 0], "{engine}");
            environment.siphon(&[&run[..], &["echo x > /made/file"]].concat()).stdout();
            assert_eq!(changes(environment, &[engine]), ["A /made/", "A /made/file"], "{engine}");
        }
    });
}

#[test]
fn diff_of_two_images_is_that_of_the_sandbox_between_them() {
    let environment = TestEnvironment::new();
    sandbox(&environment, CHANGES);
    environment.siphon(&["commit", "sandbox", "new.sif"]).stdout();
    let old = environment.images().sif().to_owned();

    // The new image has labels of its own, and the places to mount on like any other directory.
    let between = |old: &str, new: &str| {
        let mut told = changes(&environment, &[old, new]);
        told.retain(|line| ["/data", "/opt"].iter().any(|directory| line[2..].starts_with(directory)));
        told
    };

    assert_eq!(between(&old, "new.sif"), [&TOLD[..], &["D /opt/old/lost"]].concat());
    assert_eq!(between("sandbox", "new.sif"), [""; 0]);
    assert_eq!(changes(&environment, &[&old, &old]), [""; 0]);
}

#[test]
fn diff_as_json_has_the_bytes_and_what_differs() {
    let environment = TestEnvironment::new();
    sandbox(&environment, "echo more >> /data/notes; chmod 600 /data/greeting; rm /data/to-remove");

    let told = environment.siphon(&["diff", "--json", "sandbox"]).stdout();

    let lines = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let lines: Vec<_> = lines.filter(|line| line["path"].as_str().unwrap().starts_with("/data")).collect();
    assert_eq!(lines.len(), 3, "{told}");
    assert_eq!((&lines[0]["path"], &lines[0]["change"]), (&"/data/greeting".into(), &"metadata".into()));
    assert_eq!(lines[0]["differs"], serde_json::json!(["mode"]));
    assert_eq!((&lines[1]["bytes"], &lines[1]["old_bytes"]), (&10.into(), &5.into()));
    assert_eq!((&lines[2]["change"], &lines[2]["bytes"]), (&"deleted".into(), &4.into()));
}

#[test]
fn diff_of_a_lone_image_says_what_is_missing() {
    let environment = TestEnvironment::new();

    let refused = environment.siphon(&["diff", environment.images().sif()]).run();

    assert_eq!(refused.code, 255, "{refused}");
    assert!(refused.stderr.contains("no sandbox; name a second image"), "{refused}");
}

#[test]
fn reset_puts_paths_back_to_the_image() {
    as_user_and_as_root(|environment| {
        sandbox(environment, CHANGES);

        environment
            .siphon(&["layer", "reset", "/data/notes", "/data/made", "data/to-remove", "/opt/old", "sandbox"])
            .stdout();

        assert_eq!(changes(environment, &["sandbox"]), ["M /data/greeting", "A /data/new"]);
        let line = "cat /data/notes /data/to-remove /opt/old/lost; test ! -e /data/made";
        assert_eq!(environment.siphon(&["exec", "sandbox", "sh", "-c", line]).stdout(), "note\nold\nlost");
    });
}

#[test]
fn reset_says_what_it_cannot_put_back() {
    let environment = TestEnvironment::new();
    sandbox(&environment, CHANGES);

    let typo = environment.siphon(&["layer", "reset", "/data/notes", "/data/nots", "sandbox"]).run();
    let below = environment.siphon(&["layer", "reset", "/opt/old/lost", "sandbox"]).run();
    let root = environment.siphon(&["layer", "reset", "/", "sandbox"]).run();

    assert!(typo.code == 255 && typo.stderr.contains("/data/nots is neither in sandbox nor in its image"), "{typo}");
    assert!(below.code == 255 && below.stderr.contains("/opt/old was removed or replaced as a whole"), "{below}");
    assert!(root.code == 255 && root.stderr.contains("make a new sandbox"), "{root}");
    assert_eq!(changes(&environment, &["sandbox"]).len(), TOLD.len() + 1, "nothing was put back");
}

#[test]
fn reset_leaves_a_layer_to_who_writes_to_it() {
    let environment = TestEnvironment::new();
    sandbox(&environment, "echo new > /data/new");
    let line = "echo ready; read line";
    let mut writer = environment.siphon(&["exec", "--writable", "sandbox", "sh", "-c", line]).spawn();
    let mut ready = [0; 6];
    std::io::Read::read_exact(writer.stdout.as_mut().unwrap(), &mut ready).unwrap();

    let refused = environment.siphon(&["layer", "reset", "/data/new", "sandbox"]).run();

    assert_eq!(refused.code, 255, "{refused}");
    assert!(refused.stderr.contains("is in use by process "), "{refused}");
    drop(writer.stdin.take());
    writer.wait().unwrap();
    environment.siphon(&["layer", "reset", "/data/new", "sandbox"]).stdout();
    assert_eq!(changes(&environment, &["sandbox"]), [""; 0]);
}
