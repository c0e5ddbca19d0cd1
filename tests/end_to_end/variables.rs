use super::in_image::{exec, printed};
use crate::support::environment::TestEnvironment;

#[test]
fn a_file_of_variables_is_read_by_a_shell() {
    let environment = TestEnvironment::new();
    // As apptainer 1.4.5 gives them, where E runs no program.
    let text = "A=1\nB=\"two words\"\nC=$HOME/x\nexport D=4\n# comment\nE=$(echo sub)\nF=${A}2\nG='lit $HOME'\nH=\n\
        Q='\"'\"'\"\nU=$USER-$NOSUCH\n";
    environment.write("env", text);
    environment.write("more", "A=from-more\n");
    let home = environment.user().dir.display().to_string();
    let user = &environment.user().name;
    let line = "env | grep -E '^[A-HQU]=' | sort";

    let evaluated = printed(&environment, &["--env-file", "env"], line);
    let literal = printed(&environment, &["--no-eval", "--env-file", "env"], line);
    let both = printed(&environment, &["--env-file", "env,more"], "echo $A $D");

    let with = |lit: &str| format!("A=1\nB=two words\nC={home}/x\nD=4\nE=sub\nF=12\nG=lit {lit}\nH=\nQ=\"'\nU={user}-");
    assert_eq!(evaluated, with(&home));
    assert_eq!(literal, with("$HOME"));
    assert_eq!(both, "from-more 4");
}

#[test]
fn a_flag_wins_over_a_file_of_variables_and_that_over_the_environment() {
    let environment = TestEnvironment::new();
    environment.write("env", "A=file\nB=file\nPREPEND_PATH=/first\n");
    let arguments = ["exec", "--env-file", "env", "--env", "A=flag", environment.images().sif(), "sh", "-c"];

    let finished = environment
        .siphon(&[&arguments[..], &["echo $A $B ${PATH%%:*}"]].concat())
        .env("APPTAINERENV_B", "environment")
        .run();

    assert_eq!(finished.stdout, "flag file /first\n");
    assert_eq!(finished.stderr, "WARNING: Ignored environment file variable A: override from --env\n");
}

#[test]
fn a_file_of_variables_that_cannot_be_used_ends_the_run() {
    let environment = TestEnvironment::new();
    environment.write("broken", "A=$(\n");
    environment.write("large", &"A=1\n".repeat(20_000));

    for (file, word) in [("broken", "--env-file"), ("missing", "\"missing\""), ("large", "large")] {
        let finished = exec(&environment, &["--env-file", file], "true");

        assert_eq!(finished.code, 255, "{finished}");
        assert!(finished.stderr.contains("FATAL:   ") && finished.stderr.contains(word), "{finished}");
    }
}

#[test]
fn variables_of_the_host_can_be_kept_out() {
    let environment = TestEnvironment::new();
    let arguments = ["exec", "--no-env", "ONE", environment.images().sif(), "sh", "-c", "echo $ONE,$TWO"];

    let output = environment.siphon(&arguments).env("ONE", "1").env("TWO", "2").stdout();

    assert_eq!(output, ",2");
}

#[test]
fn two_prefixes_that_differ_are_told_of() {
    let environment = TestEnvironment::new();
    let finished = environment
        .siphon(&["exec", environment.images().sif(), "sh", "-c", "echo $Q"])
        .env("SINGULARITYENV_Q", "2")
        .env("APPTAINERENV_Q", "1")
        .run();

    assert_eq!(finished.stdout, "1\n");
    let warning = "WARNING: SINGULARITYENV_Q and APPTAINERENV_Q have different values, using the latter\n";
    assert_eq!(finished.stderr, warning);
}

#[test]
fn library_paths_can_be_put_before_and_behind() {
    let environment = TestEnvironment::new();
    let run = || environment.siphon(&["exec", environment.images().sif(), "sh", "-c", "echo $LD_LIBRARY_PATH"]);

    let both =
        run().env("APPTAINERENV_PREPEND_LD_LIBRARY_PATH", "/pre").env("APPTAINERENV_APPEND_LD_LIBRARY_PATH", "/app");

    assert_eq!(both.stdout(), "/pre:/.singularity.d/libs:/app");
    assert_eq!(run().stdout(), "/.singularity.d/libs");
}

#[test]
fn the_level_of_messages_can_be_a_number() {
    let environment = TestEnvironment::new();
    let run = |level| {
        let arguments = ["exec", "--no-mount", "nonsense", environment.images().sif(), "true"];
        environment.siphon(&arguments).env("APPTAINER_MESSAGELEVEL", level).run().stderr
    };

    assert!(run("0").contains("WARNING: "));
    assert_eq!(run("-4"), "");
}

#[test]
fn mounts_can_be_given_as_lists_of_fields() {
    let environment = TestEnvironment::new();
    let source = environment.make_directory("a,b");
    std::fs::write(source.join("file"), "bound").unwrap();
    let mount = format!("type=bind,\"source={}\",destination=/made/here,ro", source.display());

    let line = "cat /made/here/file; touch /made/here/x 2>/dev/null || echo , refused";
    assert_eq!(printed(&environment, &["--mount", &mount], line), "bound, refused");

    let refused = exec(&environment, &["--mount", "type=tmpfs,dst=/w"], "true");
    assert_eq!(refused.code, 255, "{refused}");
    assert!(refused.stderr.contains("unsupported mount type \"tmpfs\""), "{refused}");
}

#[test]
fn options_without_effect_are_taken_and_others_refused_by_name() {
    let environment = TestEnvironment::new();

    let taken =
        exec(&environment, &["-u", "--unsquash", "--sharens", "--runscript-timeout", "5s", "--no-privs"], "true");
    assert_eq!((taken.code, taken.stderr.as_str()), (0, ""), "{taken}");
    let warned = exec(&environment, &["--underlay"], "true");
    assert_eq!(warned.code, 0, "{warned}");
    assert!(warned.stderr.starts_with("WARNING: --underlay"), "{warned}");
    for option in [["--security", "seccomp:x"], ["--fusemount", "host:x /y"]] {
        let refused = exec(&environment, &option, "true");
        assert_eq!(refused.code, 255, "{refused}");
        assert!(refused.stderr.contains(&format!("FATAL:   {} is not supported; ", option[0])), "{refused}");
    }
}
