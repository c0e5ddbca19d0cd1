//! Files of variables, as `--env-file` names them. The container's shell evaluates them; what is found out here is which
//! names to ask it for afterwards, since no shell can say portably what an evaluation has set.

use super::identifier;
use std::ffi::OsStr;

/// The names that `text` assigns, in order and once each: those at the beginning of a line or behind a semicolon, with
/// `export` before them or not.
pub(super) fn assigned_names(text: &str) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for statement in text.split(['\n', ';']) {
        let words = statement.split_whitespace();
        let exported = statement.split_whitespace().next() == Some("export");
        for word in words.skip(usize::from(exported)) {
            let name = word.split_once('=').map(|(name, _)| name).or(exported.then_some(word));
            // What follows anything but an assignment is a command.
            let Some(name) = name.and_then(|name| identifier(OsStr::new(name))) else { break };
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_told_from_other_lines() {
        let cases: [(&str, &[&str]); 8] = [
            ("A=1\nB=\"two words\"\n", &["A", "B"]),
            ("export A=1 B=2", &["A", "B"]),
            ("A=1; export A", &["A"]),
            ("  A=1 B=2 command C=3", &["A", "B"]),
            ("# A=1\necho B=2", &[]),
            ("1A=x\nA-B=1", &[]),
            ("A=$(echo x)", &["A"]),
            ("", &[]),
        ];
        for (text, names) in cases {
            assert_eq!(assigned_names(text), names, "{text}");
        }
    }
}
