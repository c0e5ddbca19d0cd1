//! `siphon buildcfg` and `siphon confgen`: what scripts ask of an installation. There is no configuration file, and nothing
//! is fixed when siphon is built; so the first says where things are, and the second what a file would say.

use crate::host::runtime_dir;
use crate::report::Report;
use crate::settings::Common;
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// What apptainer.conf would say, in its order.
const DIRECTIVES: &str = include_str!("configuration/apptainer.conf");

/// More than any apptainer.conf has: no more is looked at.
const MAX_BYTES: u64 = 1 << 20;

/// Prints what apptainer fixes when it is built: all of it as `NAME=VALUE`, or one value.
///
/// # Errors
/// If there is no such name, one of the use of `command`.
pub fn buildcfg(name: Option<&str>, mut command: clap::Command, common: &Common, report: Report) -> anyhow::Result<()> {
    let values = values(&prefix(), &runtime_dir(common));
    let text = match name {
        None => values.iter().map(|(name, value)| format!("{name}={value}\n")).collect(),
        Some(wanted) => match values.iter().find(|(name, _)| *name == wanted) {
            Some((_, value)) => format!("{value}\n"),
            None => {
                let message = format!("no variable named {wanted:?}");
                return Err(command.error(clap::error::ErrorKind::InvalidValue, message).into());
            }
        },
    };
    Ok(report.bytes(text.as_bytes())?)
}

/// The directory that siphon is installed below.
fn prefix() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let prefix = program.parent().filter(|directory| directory.ends_with("bin")).and_then(Path::parent);
    prefix.unwrap_or(Path::new("/usr/local")).into()
}

fn values(prefix: &Path, sessions: &Path) -> Vec<(&'static str, String)> {
    let below = |directory: &str| prefix.join(directory).display().to_string();
    let configuration = if prefix == Path::new("/usr") { "/etc".to_owned() } else { below("etc") };
    vec![
        ("PACKAGE_NAME", env!("CARGO_PKG_NAME").to_owned()),
        ("PACKAGE_VERSION", env!("CARGO_PKG_VERSION").to_owned()),
        ("BUILDDIR", String::new()),
        ("PREFIX", prefix.display().to_string()),
        ("EXECPREFIX", prefix.display().to_string()),
        ("BINDIR", below("bin")),
        ("SBINDIR", below("sbin")),
        ("LIBEXECDIR", below("libexec")),
        ("DATAROOTDIR", below("share")),
        ("DATADIR", below("share")),
        ("SYSCONFDIR", configuration.clone()),
        ("SHAREDSTATEDIR", below("com")),
        ("LOCALSTATEDIR", "/var".to_owned()),
        ("RUNSTATEDIR", "/run".to_owned()),
        ("INCLUDEDIR", below("include")),
        ("DOCDIR", below("share/doc/siphon")),
        ("INFODIR", below("share/info")),
        ("LIBDIR", below("lib")),
        ("LOCALEDIR", below("share/locale")),
        ("MANDIR", below("share/man")),
        ("APPTAINER_CONFDIR", format!("{configuration}/apptainer")),
        ("SESSIONDIR", sessions.display().to_string()),
        ("PLUGIN_ROOTDIR", below("libexec/apptainer/plugin")),
        ("APPTAINER_CONF_FILE", format!("{configuration}/apptainer/apptainer.conf")),
        ("APPTAINER_SUID_INSTALL", "0".to_owned()),
    ]
}

/// Writes what an apptainer.conf would have to say for apptainer to do as siphon does. Of an old file, `files` being both,
/// it says which of its directives have no effect.
///
/// # Errors
/// If one cannot be read or written.
pub fn confgen(files: &[PathBuf], report: Report) -> anyhow::Result<()> {
    let [old @ .., new] = files else { bail!("there is no file to write") };
    for path in old {
        let context = || format!("unable to parse {}", path.display());
        let file = match File::open(path) {
            // As apptainer: there is nothing to take over then.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            file => file.with_context(context)?,
        };
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).with_context(context)?;
        for directive in without_effect(&String::from_utf8_lossy(&text)) {
            report.warning(format_args!("{directive} has no effect: siphon has no configuration file"));
        }
    }
    std::fs::write(new, DIRECTIVES).with_context(|| format!("unable to create {}", new.display()))
}

/// The directives of `text` that say something else than siphon does.
fn without_effect(text: &str) -> Vec<String> {
    let mut known: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in directives(DIRECTIVES) {
        known.entry(name).or_default().push(value);
    }
    let differs = |(name, value): &(&str, &str)| known.get(name).is_none_or(|values| !values.contains(value));
    directives(text).filter(differs).map(|(name, value)| format!("{name} = {value}")).collect()
}

fn directives(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(name, value)| (name.trim(), value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_directory_of_the_program() {
        let at = |prefix: &str, name: &str| {
            let values = values(Path::new(prefix), Path::new("/run/user/7/siphon"));
            values.into_iter().find(|(found, _)| *found == name).unwrap().1
        };

        assert_eq!(at("/usr", "APPTAINER_CONF_FILE"), "/etc/apptainer/apptainer.conf");
        assert_eq!(at("/opt/siphon", "SYSCONFDIR"), "/opt/siphon/etc");
        assert_eq!(at("/opt/siphon", "SESSIONDIR"), "/run/user/7/siphon");
    }

    #[test]
    fn only_what_differs_from_what_siphon_does_is_without_effect() {
        let text = "# mount tmp = no\nmount home = no\n  mount tmp = yes \nbind path = /etc/hosts\nbind path = /scratch\nnew = 1\n";

        assert_eq!(without_effect(text), ["mount home = no", "bind path = /scratch", "new = 1"]);
        assert!(without_effect(DIRECTIVES).is_empty());
    }
}
