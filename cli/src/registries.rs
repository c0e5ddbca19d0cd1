//! Has this process treat registries as the command line, the environment and the files of this machine say.

use crate::report::Report;
use crate::settings::{RegistriesConf, RegistrySettings};
use anyhow::{Context, bail};
use siphon_fsd::credentials::{Credentials, Keyring, Secret};
use siphon_fsd::source::{Mirror, Registries, Rule, configure};
use std::io::Read;
use std::path::{Path, PathBuf};

/// No configuration of registries is longer.
const MAX_CONFIGURATION_BYTES: u64 = 1 << 20;

/// Applies the settings to all that this process asks of registries.
///
/// # Errors
/// If a name and a password are to be asked for and nobody answers.
pub fn apply(settings: RegistrySettings, report: Report) -> anyhow::Result<()> {
    let mut explicit = settings.explicit.map(|(username, password)| password_of(username, password));
    if settings.asks {
        let context = "could not ask for a name and a password";
        let username = report.ask("Enter Docker Username: ").context(context)?;
        explicit = Some(password_of(username, report.ask_secret("Enter Docker Password: ").context(context)?));
    }
    let rules = rules(&settings.configuration).unwrap_or_else(|error| {
        report.warning(format_args!("{error:#}"));
        Vec::new()
    });
    configure(Registries {
        plain_http: settings.plain_http,
        keyring: Keyring { explicit, files: settings.files },
        authfile: settings.authfile.map(|path| std::path::absolute(&path).unwrap_or(path)),
        rules,
        library: settings.library,
        hub: settings.hub,
        docker_host: settings.docker_host.filter(|host| !host.is_empty()),
        library_token: None,
    });
    Ok(())
}

fn password_of(username: String, password: String) -> Credentials {
    Credentials::Password { username, password: Secret::new(password) }
}

/// What the first of the files that exists says, and the drop-in files beside it.
fn rules(files: &[PathBuf]) -> anyhow::Result<Vec<Rule>> {
    let Some(file) = files.iter().find(|file| file.exists()) else { return Ok(Vec::new()) };
    let mut drop_ins = file.as_os_str().to_owned();
    drop_ins.push(".d");
    let mut all = vec![file.clone()];
    if let Ok(entries) = std::fs::read_dir(Path::new(&drop_ins)) {
        let mut found: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        found.retain(|path| path.extension().is_some_and(|ending| ending == "conf"));
        found.sort();
        all.extend(found);
    }
    let mut rules: Vec<Rule> = Vec::new();
    for file in all {
        for rule in read(&file)? {
            // A later file overrides what an earlier one says of the same prefix.
            rules.retain(|earlier| earlier.prefix != rule.prefix);
            rules.push(rule);
        }
    }
    // The most particular counts.
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.prefix.len()));
    Ok(rules)
}

fn read(file: &Path) -> anyhow::Result<Vec<Rule>> {
    let mut text = String::new();
    let opened =
        std::fs::File::open(file).and_then(|file| file.take(MAX_CONFIGURATION_BYTES).read_to_string(&mut text));
    opened.with_context(|| format!("cannot read {}", file.display()))?;
    let parsed = match RegistriesConf::parse(&text) {
        Ok(parsed) => parsed,
        Err(reason) => bail!("{} is not understood and has no effect: {reason}", file.display()),
    };
    let rules = parsed.registry.into_iter().filter_map(|registry| {
        let prefix = registry.prefix.or_else(|| registry.location.clone()).filter(|prefix| !prefix.is_empty())?;
        let mirrors = registry.mirror.into_iter().map(|mirror| Mirror {
            location: mirror.location,
            plain_http: mirror.insecure,
            has_digests: mirror.pull_from_mirror != "tag-only",
            has_tags: !registry.mirror_by_digest_only && mirror.pull_from_mirror != "digest-only",
        });
        Some(Rule {
            location: registry.location.unwrap_or_else(|| prefix.clone()),
            prefix,
            plain_http: registry.insecure,
            is_blocked: registry.blocked,
            mirrors: mirrors.collect(),
        })
    });
    Ok(rules.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_in_file_overrides_what_the_file_says_of_a_prefix() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("registries.conf");
        std::fs::create_dir(directory.path().join("registries.conf.d")).unwrap();
        let drop_in = directory.path().join("registries.conf.d/10-x.conf");
        std::fs::write(
            &file,
            "[[registry]]\nlocation='a.io'\nblocked=true\n[[registry]]\nprefix='a.io/x'\nlocation='b'\n",
        )
        .unwrap();
        std::fs::write(&drop_in, "[[registry]]\nlocation='a.io'\ninsecure=true\n").unwrap();

        let rules = rules(&[directory.path().join("missing"), file]).unwrap();

        let found: Vec<_> =
            rules.iter().map(|rule| (rule.prefix.as_str(), rule.location.as_str(), rule.is_blocked)).collect();
        assert_eq!(found, [("a.io/x", "b", false), ("a.io", "a.io", false)]);
        assert!(rules[1].plain_http);
    }
}
