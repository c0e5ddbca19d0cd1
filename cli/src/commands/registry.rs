//! `siphon registry`: passwords of registries kept, forgotten and listed.

use crate::args::{LoginArgs, LogoutArgs, RegistryListArgs, RegistryVerb};
use crate::host::home;
use crate::report::{Report, columns};
use crate::settings::{Environment, credentials_file};
use anyhow::{Context, bail};
use siphon_fsd::credentials::{self, Credentials, DOCKER_HUB, Secret};
use siphon_fsd::source;
use std::path::{Path, PathBuf};

/// No password or token is longer.
const MAX_PASSWORD_BYTES: usize = 64 << 10;

/// Does what `verb` says.
///
/// # Errors
/// If the registry does not take the password, or the file cannot be read or written.
pub fn registry(verb: &RegistryVerb, environment: &Environment, report: Report) -> anyhow::Result<()> {
    match verb {
        RegistryVerb::Login(args) => login(args, environment, report),
        RegistryVerb::Logout(args) => logout(args, environment, report),
        RegistryVerb::List(args) => list(args, environment, report),
    }
}

fn login(args: &LoginArgs, environment: &Environment, report: Report) -> anyhow::Result<()> {
    let registry = host(&args.uri)?;
    let file = file(args.authfile.as_deref(), environment)?;
    let username = match &args.username {
        Some(username) if !username.is_empty() && !username.contains(':') => username.clone(),
        Some(username) => bail!("{username:?} is no name: it is empty or has a colon"),
        None if args.password_stdin => bail!("--password-stdin requires --username"),
        None => report.ask("Enter Username: ").context("could not ask for a name; give it with --username")?,
    };
    let password = if args.password_stdin {
        report.password_from_input(MAX_PASSWORD_BYTES).context("cannot read the password from standard input")?
    } else if let Some(password) = &args.password {
        password.clone()
    } else {
        let context = "could not ask for a password; give it with --password-stdin";
        report.ask_secret("Enter Password / Token: ").context(context)?
    };
    if password.is_empty() {
        bail!("the password is empty");
    }
    let password = Secret::new(password);
    let given = Credentials::Password { username: username.clone(), password: password.clone() };
    source::log_in(registry, &given).with_context(|| format!("cannot log in to {registry} as {username}"))?;
    credentials::store(&file, registry, &username, &password)?;
    report.info(format_args!("Token stored in {}", file.display()));
    Ok(())
}

fn logout(args: &LogoutArgs, environment: &Environment, report: Report) -> anyhow::Result<()> {
    let registry = host(&args.uri)?;
    let file = file(args.authfile.as_deref(), environment)?;
    if !credentials::remove(&file, registry)? {
        report.warning(format_args!("{} has no password for {registry}", file.display()));
        return Ok(());
    }
    report.info("Logout succeeded");
    Ok(())
}

fn list(args: &RegistryListArgs, environment: &Environment, report: Report) -> anyhow::Result<()> {
    let file = file(args.authfile.as_deref(), environment)?;
    let entries = credentials::list(&file)?;
    if entries.is_empty() {
        report.info(format_args!("No registry passwords are kept in {}", file.display()));
        return Ok(());
    }
    let mut rows = vec![vec!["URI".to_owned(), "USERNAME".to_owned()]];
    rows.extend(entries.into_iter().map(|entry| {
        let plain = entry.registry.trim_start_matches("https://").trim_start_matches("http://");
        let registry = if plain.starts_with("index.docker.io") { DOCKER_HUB } else { plain };
        vec![format!("docker://{registry}"), entry.username.unwrap_or_default()]
    }));
    let table = columns(&rows);
    Ok(report.line(table.trim_end())?)
}

fn file(authfile: Option<&Path>, environment: &Environment) -> anyhow::Result<PathBuf> {
    let own = || credentials_file(environment, home().as_deref());
    let named = authfile.map(Path::to_owned).or_else(|| environment.setting(&["AUTH_FILE"]).map(PathBuf::from));
    named.or_else(own).context("there is no home directory to keep passwords in; name a file with --authfile")
}

/// The host, with its port, in `docker://HOST[:PORT]`, `oras://...` or without a scheme.
fn host(uri: &str) -> anyhow::Result<&str> {
    let schemes = ["docker://", "oras://", "https://", "http://"];
    let rest = schemes.iter().find_map(|scheme| uri.strip_prefix(scheme)).unwrap_or(uri);
    let host = rest.split('/').next().unwrap_or_default();
    let is_plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
    if host.is_empty() || !is_plain || rest.contains("://") {
        bail!("{uri:?} names no registry: write docker://HOST or oras://HOST");
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_named_with_or_without_a_scheme() {
        for (uri, expected) in [
            ("docker://docker.io", "docker.io"),
            ("oras://h:5000", "h:5000"),
            ("h:5000/path", "h:5000"),
            ("https://h/v2/", "h"),
        ] {
            assert_eq!(host(uri).unwrap(), expected);
        }
        for wrong in ["", "docker://", "ftp://h", "me@h", "docker:///x"] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }
}
