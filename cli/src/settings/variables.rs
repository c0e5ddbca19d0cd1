//! The variables that a run sets inside, and those of the host that it keeps out.

use super::{Environment, SettingsError};
use crate::args::RunFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Prefixes of variables that are set inside the container, last one wins.
const CONTAINER_PREFIXES: [&str; 3] = ["SINGULARITYENV_", "APPTAINERENV_", "SIPHONENV_"];

/// What is set inside, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variables {
    /// `APPTAINERENV_X` and its kin, then `--env` over them.
    pub injected: BTreeMap<OsString, OsString>,
    /// Names that `--env` sets: a file does not.
    pub by_flag: BTreeSet<OsString>,
    /// Files of assignments, over `APPTAINERENV_X`; made absolute by whoever knows the working directory.
    pub files: Vec<PathBuf>,
    /// Whether the shell evaluates the values.
    pub evaluate: bool,
    /// Variables of the host that stay outside.
    pub blocked: BTreeSet<String>,
}

impl Default for Variables {
    fn default() -> Self {
        let (injected, by_flag) = (BTreeMap::new(), BTreeSet::new());
        Self { injected, by_flag, files: Vec::new(), evaluate: true, blocked: BTreeSet::new() }
    }
}

impl Variables {
    /// Reads flags and environment.
    ///
    /// # Errors
    /// [`SettingsError::Env`].
    pub(super) fn resolve(
        flags: &RunFlags,
        environment: &Environment,
        warnings: &mut Vec<String>,
    ) -> Result<Self, SettingsError> {
        let mut injected = prefixed(environment, warnings);
        let mut by_flag = BTreeSet::new();
        for pair in flags.env.iter().flat_map(|flag| split_pairs(flag)) {
            let (name, value) = pair.split_once('=').ok_or_else(|| SettingsError::Env(pair.clone()))?;
            injected.insert(name.into(), value.into());
            by_flag.insert(name.into());
        }
        // The home is chosen by --home alone.
        if injected.remove(OsStr::new("HOME")).is_some() {
            warnings.push("Overriding HOME environment variable with APPTAINERENV_HOME is not permitted".into());
        }
        let listed = |flag: &[String], key| match flag.is_empty() {
            true => environment.text(&[key]).iter().flat_map(|list| list.split(',')).map(str::to_owned).collect(),
            false => flag.to_vec(),
        };
        let filled = |word: &String| !word.is_empty();
        Ok(Self {
            injected,
            by_flag,
            files: listed(&flags.env_file, "ENV_FILE").into_iter().filter(filled).map(PathBuf::from).collect(),
            evaluate: !(flags.no_eval || environment.switch(&["NO_EVAL"])),
            blocked: listed(&flags.no_env, "NOENV").into_iter().filter(filled).collect(),
        })
    }
}

/// What the environment has for the container. Where two prefixes differ, the user may have forgotten one of them.
fn prefixed(environment: &Environment, warnings: &mut Vec<String>) -> BTreeMap<OsString, OsString> {
    let mut found: BTreeMap<OsString, (&str, OsString)> = BTreeMap::new();
    for prefix in CONTAINER_PREFIXES {
        for (name, value) in environment.variables() {
            let Some(name) = name.as_bytes().strip_prefix(prefix.as_bytes()).filter(|name| !name.is_empty()) else {
                continue;
            };
            let name = OsString::from_vec(name.to_vec());
            if let Some((other, _)) = found.get(&name).filter(|(_, before)| before.as_os_str() != value) {
                let key = name.display();
                warnings.push(format!("{other}{key} and {prefix}{key} have different values, using the latter"));
            }
            found.insert(name, (prefix, OsStr::to_owned(value)));
        }
    }
    found.into_iter().map(|(name, (_, value))| (name, value)).collect()
}

/// `A=1,B=2` is two pairs and `A=1,2` is one: only with more than one `=` do commas separate, and not within quotes.
fn split_pairs(flag: &str) -> Vec<String> {
    if flag.matches('=').count() <= 1 {
        return vec![flag.to_owned()];
    }
    let (mut pairs, mut current, mut quoted) = (Vec::new(), String::new(), false);
    for character in flag.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => pairs.push(std::mem::take(&mut current)),
            other => current.push(other),
        }
    }
    pairs.push(current);
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &RunFlags, pairs: &[(&str, &str)]) -> (Variables, Vec<String>) {
        let mut warnings = Vec::new();
        let resolved = Variables::resolve(flags, &Environment::made_up(pairs), &mut warnings).unwrap();
        (resolved, warnings)
    }

    fn pairs(variables: &Variables) -> Vec<(&str, &str)> {
        let pairs = variables.injected.iter();
        pairs.map(|(name, value)| (name.to_str().unwrap(), value.to_str().unwrap())).collect()
    }

    #[test]
    fn commas_separate_variables_only_where_several_are_given() {
        let flags = RunFlags { env: vec!["A=1,B=2".into(), "C=1,2".into()], ..RunFlags::default() };

        let (variables, _) = resolve(&flags, &[("APPTAINERENV_A", "0"), ("SINGULARITYENV_D", "4")]);

        assert_eq!(pairs(&variables), [("A", "1"), ("B", "2"), ("C", "1,2"), ("D", "4")]);
        assert!(variables.by_flag.contains(OsStr::new("A")) && !variables.by_flag.contains(OsStr::new("D")));
    }

    #[test]
    fn two_prefixes_that_differ_are_told_of() {
        let differing = [("SINGULARITYENV_Q", "2"), ("APPTAINERENV_Q", "1")];
        let same = [("SINGULARITYENV_Q", "1"), ("APPTAINERENV_Q", "1")];

        let (variables, warnings) = resolve(&RunFlags::default(), &differing);

        assert_eq!(pairs(&variables), [("Q", "1")]);
        assert_eq!(warnings, ["SINGULARITYENV_Q and APPTAINERENV_Q have different values, using the latter"]);
        assert!(resolve(&RunFlags::default(), &same).1.is_empty());
    }

    #[test]
    fn lists_come_from_flags_or_else_from_the_environment() {
        let flags = RunFlags { no_env: vec!["A".into()], ..RunFlags::default() };
        let set = [("APPTAINER_NOENV", "B,C"), ("APPTAINER_ENV_FILE", "one,two")];

        assert!(resolve(&flags, &set).0.blocked.iter().eq(["A"]));
        assert!(resolve(&RunFlags::default(), &set).0.blocked.iter().eq(["B", "C"]));
        assert_eq!(resolve(&flags, &set).0.files, [PathBuf::from("one"), PathBuf::from("two")]);
    }
}
