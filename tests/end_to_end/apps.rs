use crate::support::environment::TestEnvironment;

/// What apptainer's build puts into an image with apps, cut down to what its own script for them does.
const APPS_SCRIPT: &str = "if test -n \"${SINGULARITY_APPNAME:-}\"; then\n\
    if ! test -d /scif/apps/$SINGULARITY_APPNAME; then echo \"Could not locate $SINGULARITY_APPNAME\"; exit 1; fi\n\
    . /scif/apps/$SINGULARITY_APPNAME/scif/env/90-environment.sh\nfi\n";

/// A sandbox over the image with an app, a test script and a help text.
fn sandbox(environment: &TestEnvironment) {
    environment.siphon(&["build", "--sandbox", "box", environment.images().sif()]).stdout();
    environment.write("95-apps.sh", APPS_SCRIPT);
    let line = "mkdir -p /scif/apps/foo/scif/env /scif/apps/bar/scif/env; cd /scif/apps/foo/scif; \
        printf '#!/bin/sh\\necho foo-run \"$@\" $FOOVAR\\n' > runscript; \
        printf '#!/bin/sh\\necho foo-test $FOOVAR\\n' > test; chmod 755 runscript test; \
        echo foo help > runscript.help; echo '{\"VERS\": \"1\"}' > labels.json; \
        echo 'export FOOVAR=fooenv' > env/90-environment.sh; touch ../../bar/scif/env/90-environment.sh; \
        cd /.singularity.d; printf '#!/bin/sh\\necho image-test \"$@\"; exit 3\\n' > test; chmod 755 test; \
        echo image help > runscript.help; cp /given env/95-apps.sh";
    let bind = format!("{}:/given", environment.work().join("95-apps.sh").display());
    environment.siphon(&["exec", "--writable", "-B", &bind, "box", "sh", "-c", line]).stdout();
}

#[test]
fn the_scripts_and_the_environment_of_an_app_are_used() {
    let environment = TestEnvironment::new();
    sandbox(&environment);
    let print = "echo $FOOVAR $APPTAINER_APPNAME $SINGULARITY_APPNAME";

    assert_eq!(environment.siphon(&["run", "--app", "foo", "box", "x", "y"]).stdout(), "foo-run x y fooenv");
    assert_eq!(environment.siphon(&["test", "--app", "foo", "box"]).stdout(), "foo-test fooenv");
    let exec = environment.siphon(&["exec", "--app", "foo", "box", "sh", "-c", print]).stdout();
    assert_eq!(exec, "fooenv foo foo");
    let variable = environment.siphon(&["run", "box"]).env("SINGULARITY_APPNAME", "foo").stdout();
    assert_eq!(variable, "foo-run fooenv");
}

#[test]
fn an_app_without_a_script_is_named() {
    let environment = TestEnvironment::new();
    sandbox(&environment);

    let cases = [
        ("run", "bar", "ERROR:   no runscript for contained app: bar"),
        ("test", "bar", "ERROR:   No tests for contained app: bar"),
        ("run", "nosuch", "Could not locate nosuch"),
    ];
    for (command, app, message) in cases {
        let finished = environment.siphon(&[command, "--app", app, "box"]).run();

        assert_eq!(finished.code, 1, "{finished}");
        assert!(format!("{}{}", finished.stdout, finished.stderr).contains(message), "{finished}");
    }
}

#[test]
fn the_test_script_of_an_image_decides_the_exit_code() {
    let environment = TestEnvironment::new();
    sandbox(&environment);

    let tested = environment.siphon(&["test", "box", "one"]).run();
    let untested = environment.siphon(&["test", environment.images().sif()]).run();

    assert_eq!((tested.code, tested.stdout.as_str()), (3, "image-test one\n"), "{tested}");
    assert_eq!(untested.code, 0, "{untested}");
    assert!(untested.stderr.contains("INFO:    No test script found in container"), "{untested}");
}

#[test]
fn help_and_metadata_of_an_app_are_shown() {
    let environment = TestEnvironment::new();
    sandbox(&environment);
    let show = |arguments: &[&str]| environment.siphon(&[arguments, &["box"]].concat()).stdout();

    assert_eq!(show(&["run-help"]), "image help");
    assert_eq!(show(&["run-help", "--app", "foo"]), "foo help");
    assert_eq!(show(&["run-help", "--app", "bar"]), "No help sections were defined for this image");
    assert_eq!(show(&["inspect", "--list-apps"]), "bar\nfoo");
    assert_eq!(show(&["inspect", "--app", "foo"]), "VERS: 1");
    let json: serde_json::Value =
        serde_json::from_str(&show(&["inspect", "--app", "foo", "--json", "--environment", "--helpfile"])).unwrap();
    let app = &json["data"]["attributes"]["apps"]["foo"];
    assert_eq!(app["helpfile"], "foo help");
    assert_eq!(app["environment"]["/scif/apps/foo/scif/env/90-environment.sh"], "export FOOVAR=fooenv");
}
