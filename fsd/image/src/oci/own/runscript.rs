//! The runscript of an OCI image: its entry point with its arguments, or with the caller's in place of those.

use super::quoting::{in_double_quotes, single_quoted};

/// What does the work, behind the two variables. Tools read those, so they are written as apptainer writes them.
const UNEVALUATED: &str = r#"
# With --no-eval, or SINGULARITY_NO_EVAL set, words are taken as they are, as other OCI runtimes do.
if [ -n "$SINGULARITY_NO_EVAL" ]; then
    [ $# -gt 0 ] || set --CMD
    set --ENTRYPOINT "$@"
    exec "$@"
fi
"#;
const EVALUATED: &str = r#"
# Else the shell expands what is in them, the caller's arguments included.
if [ $# -gt 0 ]; then
    SINGULARITY_OCI_RUN="$OCI_ENTRYPOINT"
    for arg in "$@"; do
        SINGULARITY_OCI_RUN="$SINGULARITY_OCI_RUN \"$arg\""
    done
else
    SINGULARITY_OCI_RUN="$OCI_ENTRYPOINT $OCI_CMD"
fi
eval "set -- $SINGULARITY_OCI_RUN"
exec "$@"
"#;

/// The script for these words.
pub(super) fn runscript(entrypoint: &[String], cmd: &[String]) -> String {
    let variable = |words: &[String]| {
        let words: Vec<_> = words.iter().map(|word| format!("\"{}\"", in_double_quotes(word))).collect();
        single_quoted(&words.join(" "))
    };
    let arguments =
        |words: &[String]| -> String { words.iter().map(|word| format!(" {}", single_quoted(word))).collect() };
    // Both at once: a word may hold the name of the other place.
    let (before, rest) = UNEVALUATED.split_once("CMD").unwrap_or((UNEVALUATED, ""));
    let (between, after) = rest.split_once("ENTRYPOINT").unwrap_or((rest, ""));
    format!(
        "#!/bin/sh\nOCI_ENTRYPOINT={}\nOCI_CMD={}\n{before}{}{between}{}{after}{EVALUATED}",
        variable(entrypoint),
        variable(cmd),
        arguments(cmd),
        arguments(entrypoint),
    )
}

/// Whether `script` is the one for these words, whoever wrote it: that of apptainer keeps them in the same two variables.
pub fn is_generated(script: &str, entrypoint: &[String], cmd: &[String]) -> bool {
    let own = runscript(entrypoint, cmd);
    let words = |script: &str| {
        let found = |name: &str| script.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        Some((found("OCI_ENTRYPOINT=")?, found("OCI_CMD=")?))
    };
    words(script).is_some_and(|found| Some(found) == words(&own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What the script runs, with the words of each program a line.
    fn run(entrypoint: &[&str], cmd: &[&str], arguments: &[&str], no_eval: bool) -> String {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let script = runscript(&words(entrypoint), &words(cmd));
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &script, "runscript"]).args(arguments).env("X", "expanded").env_remove("SINGULARITY_NO_EVAL");
        if no_eval {
            shell.env("SINGULARITY_NO_EVAL", "1");
        }
        let output = shell.output().expect("there is a shell");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn the_callers_arguments_replace_the_commands() {
        let print: &[&str] = &["printf", "<%s>"];

        for no_eval in [false, true] {
            assert_eq!(run(print, &["a b", "c'd", "e\"f"], &[], no_eval), "<a b><c'd><e\"f>");
            assert_eq!(run(print, &["a"], &["x y", "z"], no_eval), "<x y><z>");
            assert_eq!(run(print, &[], &["CMD", "ENTRYPOINT"], no_eval), "<CMD><ENTRYPOINT>");
            assert_eq!(run(&[], &["printf", "<%s>", "ENTRYPOINT"], &[], no_eval), "<ENTRYPOINT>");
            assert_eq!(run(&[], &["false"], &["printf", "x"], no_eval), "x");
        }
    }

    #[test]
    fn the_callers_arguments_are_expanded_unless_that_is_switched_off() {
        let print: &[&str] = &["printf", "<%s>"];

        assert_eq!(run(print, &["$X"], &[], false), "<$X>");
        assert_eq!(run(print, &[], &["$X"], false), "<expanded>");
        assert_eq!(run(print, &[], &["$X"], true), "<$X>");
    }

    #[test]
    fn the_words_are_kept_in_variables_as_apptainer_keeps_them() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let script = runscript(&words(&["/bin/sh", "-c", "echo \"$0\" '$x'", "a b"]), &words(&["c'd"]));

        let head: Vec<_> = script.lines().take(3).collect();
        let entrypoint = r#"OCI_ENTRYPOINT='"/bin/sh" "-c" "echo \"\$0\" '"'"'\$x'"'"'" "a b"'"#;
        assert_eq!(head, ["#!/bin/sh", entrypoint, r#"OCI_CMD='"c'"'"'d"'"#]);
    }
}
