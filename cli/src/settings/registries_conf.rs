//! `registries.conf`, as containers-registries.conf(5) has it: mirrors, insecure and blocked registries.

use serde::Deserialize;

/// What is ours of such a file. Short names are none: a name without a host is of docker.io, as with apptainer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RegistriesConf {
    /// The registries, or parts of them.
    pub registry: Vec<Registry>,
}

/// A registry, or a part of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Registry {
    /// Names that begin with it; `location` if it is missing.
    pub prefix: Option<String>,
    /// What takes the place of the prefix.
    pub location: Option<String>,
    /// Whether it may be asked over http.
    pub insecure: bool,
    /// Whether it may not be asked.
    pub blocked: bool,
    /// Whether mirrors are asked for digests only.
    pub mirror_by_digest_only: bool,
    /// Places to ask first.
    pub mirror: Vec<Mirror>,
}

/// A place that has what another has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Mirror {
    /// What takes the place of the prefix.
    pub location: String,
    /// Whether it may be asked over http.
    pub insecure: bool,
    /// `all`, `digest-only` or `tag-only`.
    pub pull_from_mirror: String,
}

impl RegistriesConf {
    /// Reads a file's text.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_passed_over() {
        let parsed = RegistriesConf::parse(
            "unqualified-search-registries = ['a']\nshort-name-mode = 'enforcing'\n[aliases]\nx = 'y/x'\n\
             [[registry]]\nlocation = 'docker.io'\n[[registry.mirror]]\nlocation = 'm:5000'\ninsecure = true\n",
        )
        .unwrap();

        assert_eq!(parsed.registry.len(), 1);
        assert_eq!(parsed.registry[0].mirror[0].location, "m:5000");
        assert!(RegistriesConf::parse("[[registry]]\nlocation = 7\n").is_err());
    }
}
