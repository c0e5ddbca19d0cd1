//! Cases and what came of them: the files of `tests/compat/groups`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    /// In order.
    #[serde(rename = "case")]
    pub(crate) cases: Vec<Case>,
}

/// A line for the host's shell that calls `apptainer` or `singularity`, and what is expected of siphon under that name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// A sentence.
    pub(crate) name: String,
    /// What is run, in an empty directory.
    pub(crate) line: String,
    /// How much of stderr counts.
    #[serde(default)]
    pub(crate) stderr: Messages,
    /// Words that stderr has to hold, whichever runtime wrote it.
    #[serde(default)]
    pub(crate) says: Vec<String>,
    /// Why siphon does not do this yet.
    pub(crate) pending: Option<String>,
    /// Why siphon does something else, on purpose. It needs `siphon`.
    pub(crate) differs: Option<String>,
    /// Where siphon's outcome differs from apptainer's.
    pub(crate) siphon: Option<Deviation>,
}

/// How much of stderr counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Messages {
    /// The levels of the messages from warnings upwards, in their order: the words are each runtime's own.
    #[default]
    Levels,
    /// All of it.
    Text,
    /// None of it.
    Ignored,
}

/// What a line came to, as far as it counts, without what differs from machine to machine.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outcome {
    /// As a shell shows it.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The parts of an outcome that differ.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deviation {
    code: Option<i32>,
    stdout: Option<String>,
    stderr: Option<String>,
}

impl Deviation {
    /// The outcome that is expected where `other` is apptainer's.
    pub(crate) fn from(&self, other: &Outcome) -> Outcome {
        Outcome {
            code: self.code.unwrap_or(other.code),
            stdout: self.stdout.as_ref().unwrap_or(&other.stdout).clone(),
            stderr: self.stderr.as_ref().unwrap_or(&other.stderr).clone(),
        }
    }
}

/// A file of what apptainer answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recording {
    /// The version that was asked.
    pub(crate) apptainer: String,
    /// In the order of the cases.
    #[serde(rename = "case")]
    pub(crate) cases: Vec<Recorded>,
}

/// What apptainer made of one case.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) name: String,
    /// As it was when it was recorded.
    pub(crate) line: String,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

impl Group {
    /// Reads the cases of the group `name`.
    pub(crate) fn read(name: &str) -> Self {
        let group: Self = parse(&file(name, ".toml"));
        let names: BTreeSet<_> = group.cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), group.cases.len(), "{name}: two cases have the same name");
        for case in &group.cases {
            let marked =
                case.differs.is_some() == case.siphon.is_some() && !(case.differs.is_some() && case.pending.is_some());
            assert!(marked, "{name}: {:?} must have `differs` with `siphon`, or `pending`, or none of them", case.name);
        }
        group
    }
}

impl Recording {
    /// Reads what apptainer made of the group `name`.
    pub(crate) fn read(name: &str) -> Self {
        parse(&file(name, ".apptainer.toml"))
    }

    /// Writes it.
    pub(crate) fn write(&self, name: &str) {
        let text = toml::to_string_pretty(self).unwrap();
        std::fs::write(file(name, ".apptainer.toml"), format!("# Made by `make compat`.\n\n{text}")).unwrap();
    }

    /// What apptainer made of `case`, if that was recorded as the case now is.
    pub(crate) fn of(&self, case: &Case) -> Option<&Outcome> {
        let recorded = self.cases.iter().find(|recorded| recorded.name == case.name);
        recorded.filter(|recorded| recorded.line == case.line).map(|recorded| &recorded.outcome)
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn file(group: &str, ending: &str) -> PathBuf {
    directory().join(format!("{group}{ending}"))
}

/// Where cases and recordings lie.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/compat/groups")
}
