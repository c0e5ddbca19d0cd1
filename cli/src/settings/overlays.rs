//! `--overlay`.

use super::Environment;
use std::path::PathBuf;

/// An overlay as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlaySpec {
    /// What was named.
    pub path: PathBuf,
    /// Whether it is only to be read.
    pub read_only: bool,
}

impl OverlaySpec {
    /// One of `PATH` or `PATH:ro`. As in apptainer, a colon begins options, of which all but `ro` mean nothing.
    pub fn parse(spec: &str) -> Self {
        let (path, options) = spec.split_once(':').unwrap_or((spec, ""));
        Self { path: path.into(), read_only: options == "ro" }
    }

    /// All of the command line, or if there are none, those of the environment, lowest first.
    pub(super) fn resolve(flags: &[String], environment: &Environment) -> Vec<Self> {
        let variable = if flags.is_empty() { environment.text(&["OVERLAY", "OVERLAYIMAGE"]) } else { None };
        let specs = flags.iter().chain(&variable).flat_map(|list| list.split(','));
        specs.filter(|spec| !spec.is_empty()).map(Self::parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(flags: &[&str], pairs: &[(&str, &str)]) -> Vec<(String, bool)> {
        let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let found = OverlaySpec::resolve(&flags, &Environment::made_up(pairs));
        found.into_iter().map(|spec| (spec.path.display().to_string(), spec.read_only)).collect()
    }

    #[test]
    fn overlays_are_listed_by_flags_and_commas() {
        let expected = [("a".to_owned(), true), ("b".to_owned(), false), ("c".to_owned(), false)];

        assert_eq!(resolved(&["a:ro,b", "c:rw"], &[]), expected);
    }

    #[test]
    fn those_of_the_environment_count_where_there_are_no_others() {
        let both = [("APPTAINER_OVERLAY", "a:ro,b"), ("APPTAINER_OVERLAYIMAGE", "c")];

        assert_eq!(resolved(&[], &both), [("a".to_owned(), true), ("b".to_owned(), false)]);
        assert_eq!(resolved(&[], &both[1..]), [("c".to_owned(), false)]);
        assert_eq!(resolved(&["d"], &both), [("d".to_owned(), false)]);
    }
}
