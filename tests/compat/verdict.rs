//! Whether siphon's outcome is the one that a case asks for.

use super::case::{Case, Outcome};
use super::runtime::Ran;

/// What is wrong with siphon's outcome, or with the case's marks; `None` if nothing is.
pub(crate) fn complaint(case: &Case, apptainer: &Outcome, siphon: &Ran) -> Option<String> {
    let missing = missing_words(case, siphon);
    let same = siphon.outcome == *apptainer && missing.is_empty();
    if case.pending.is_some() {
        return same.then(|| "is marked `pending`, and passes: take the mark away".to_owned());
    }
    let Some(deviation) = &case.siphon else {
        return (!same).then(|| difference(apptainer, siphon, &missing));
    };
    let expected = deviation.from(apptainer);
    if expected == *apptainer {
        return Some("is marked `differs`, and `siphon` says what apptainer does: take the mark away".to_owned());
    }
    (siphon.outcome != expected || !missing.is_empty()).then(|| difference(&expected, siphon, &missing))
}

/// Words that the case expects on stderr and that are not there.
pub(crate) fn missing_words<'a>(case: &'a Case, ran: &Ran) -> Vec<&'a str> {
    case.says.iter().map(String::as_str).filter(|words| !ran.stderr.contains(words)).collect()
}

fn difference(expected: &Outcome, ran: &Ran, missing: &[&str]) -> String {
    let mut lines = Vec::new();
    let Outcome { code, stdout, stderr } = &ran.outcome;
    let parts = [
        ("exit code", expected.code.to_string(), code.to_string()),
        ("stdout", expected.stdout.clone(), stdout.clone()),
        ("stderr", expected.stderr.clone(), stderr.clone()),
    ];
    for (name, expected, found) in parts.into_iter().filter(|(_, expected, found)| expected != found) {
        lines.push(format!("{name}: expected {expected:?}\n{:width$}found    {found:?}", "", width = name.len() + 2));
    }
    lines.extend(missing.iter().map(|words| format!("stderr does not say {words:?}")));
    lines.push(format!("all of stderr: {:?}", ran.stderr));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(extra: &str) -> Case {
        toml::from_str(&format!("name = 'a case'\nline = 'true'\n{extra}")).unwrap()
    }

    fn ran(stdout: &str, stderr: &str) -> Ran {
        let outcome = Outcome { stdout: stdout.into(), ..Outcome::default() };
        Ran { outcome, stderr: stderr.into() }
    }

    fn complains(extra: &str, siphon: &Ran) -> bool {
        complaint(&case(extra), &ran("apptainer", "").outcome, siphon).is_some()
    }

    #[test]
    fn a_case_passes_where_the_outcomes_are_the_same() {
        assert!(!complains("", &ran("apptainer", "")));
        assert!(complains("", &ran("something else", "")));
    }

    #[test]
    fn a_pending_case_fails_when_it_passes() {
        assert!(complains("pending = 'not built'", &ran("apptainer", "")));
        assert!(!complains("pending = 'not built'", &ran("something else", "")));
    }

    #[test]
    fn a_case_that_differs_has_an_outcome_of_its_own() {
        let differs = "differs = 'better'\nsiphon = { stdout = 'better' }";

        assert!(!complains(differs, &ran("better", "")));
        assert!(complains(differs, &ran("apptainer", "")));
        assert!(complains("differs = 'not really'\nsiphon = { stdout = 'apptainer' }", &ran("apptainer", "")));
    }

    #[test]
    fn expected_words_have_to_be_there() {
        assert!(!complains("says = ['no such file']", &ran("apptainer", "x: no such file")));
        assert!(complains("says = ['no such file']", &ran("apptainer", "x")));
    }
}
