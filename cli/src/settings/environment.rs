//! The process environment, and how settings are found in it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Prefixes of the variables, first one first.
const PREFIXES: [&str; 3] = ["SIPHON_", "APPTAINER_", "SINGULARITY_"];

/// The process environment, read once.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Takes the variables.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        Self(variables.into_iter().collect())
    }

    /// All variables by name.
    pub fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// A variable as it stands; `None` if it is absent or empty.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The first of `keys` that is set under one of the prefixes.
    pub fn setting(&self, keys: &[&str]) -> Option<&OsStr> {
        keys.iter().find_map(|key| PREFIXES.iter().find_map(|prefix| self.get(&format!("{prefix}{key}"))))
    }

    pub(super) fn text(&self, keys: &[&str]) -> Option<String> {
        self.setting(keys).map(|value| value.to_string_lossy().into_owned())
    }

    /// Whether one of `keys` is set, and not to a word for no.
    pub fn switch(&self, keys: &[&str]) -> bool {
        self.setting(keys).is_some_and(|value| {
            !matches!(value.as_bytes().to_ascii_lowercase().as_slice(), b"0" | b"false" | b"no" | b"off" | b"f" | b"n")
        })
    }
}

impl Environment {
    /// Takes the variables away that would switch one of `flags` on: the command line wins.
    pub fn switch_off(&mut self, flags: &[String]) {
        for key in flags.iter().map(|flag| flag.to_uppercase()) {
            for prefix in PREFIXES {
                self.0.remove(OsStr::new(&format!("{prefix}{key}")));
                self.0.remove(OsStr::new(&format!("{prefix}UNSHARE_{key}")));
            }
        }
    }
}

#[cfg(test)]
impl Environment {
    /// An environment of these variables, for tests.
    pub fn made_up(pairs: &[(&str, &str)]) -> Self {
        Self::new(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_that_is_off_wins_over_its_variable() {
        let mut environment = Environment::made_up(&[("APPTAINER_NO_HOME", "1"), ("SINGULARITY_UNSHARE_PID", "1")]);

        environment.switch_off(&["no_home".to_owned(), "pid".to_owned()]);

        assert!(!environment.switch(&["NO_HOME"]) && !environment.switch(&["PID", "UNSHARE_PID"]));
    }

    #[test]
    fn variables_of_siphon_win_over_apptainers_and_those_over_singularitys() {
        let both = Environment::made_up(&[("SINGULARITY_CWD", "/s"), ("APPTAINER_CWD", "/a")]);
        let empty = Environment::made_up(&[("SINGULARITY_CWD", "/s"), ("APPTAINER_CWD", "")]);

        assert_eq!(both.setting(&["CWD"]), Some(OsStr::new("/a")));
        assert_eq!(empty.setting(&["CWD"]), Some(OsStr::new("/s")));
    }
}
