//! Files of the form of docker's `config.json`: read leniently, changed without touching what is not ours.

use super::{Credentials, KeyringError, Secret, helper, keys};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Far more than any file of people who log in by hand.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What is ours of such a file.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// A registry that a file has credentials for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As the file names it.
    pub registry: String,
    /// The user, where the file itself says.
    pub username: Option<String>,
}

impl Auth {
    fn credentials(&self) -> Option<Credentials> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.identitytoken) {
            return Some(Credentials::Identity(Secret::new(token)));
        }
        if let Some(auth) = filled(&self.auth) {
            let decoded = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
            let (username, password) = decoded.trim_end_matches('\0').split_once(':')?;
            return Some(Credentials::Password { username: username.to_owned(), password: Secret::new(password) });
        }
        let username = filled(&self.username)?;
        Some(Credentials::Password { username, password: Secret::new(filled(&self.password)?) })
    }
}

/// What the file at `path` has for `registry`, by itself or by the program that it names.
pub(super) fn find(path: &Path, registry: &str) -> Result<Option<Credentials>, KeyringError> {
    let Some(config) = read(path)? else { return Ok(None) };
    let keys = keys(registry);
    for key in &keys {
        if let Some(name) = config.cred_helpers.get(key) {
            return helper::get(name, key, path);
        }
    }
    if let Some(found) = keys.iter().find_map(|key| config.auths.get(key)?.credentials()) {
        return Ok(Some(found));
    }
    match (&config.creds_store, keys.first()) {
        (Some(name), Some(key)) if !name.is_empty() => helper::get(name, key, path),
        _ => Ok(None),
    }
}

/// The registries that the file at `path` has something for.
///
/// # Errors
/// If it cannot be read; a missing one has none.
pub fn list(path: &Path) -> Result<Vec<Entry>, KeyringError> {
    let config = read(path)?.unwrap_or_default();
    let entry = |(registry, auth): (&String, &Auth)| {
        let username = match auth.credentials() {
            Some(Credentials::Password { username, .. }) => Some(username),
            _ => None,
        };
        Entry { registry: registry.clone(), username }
    };
    Ok(config.auths.iter().map(entry).collect())
}

/// Keeps a name and a password for `registry` in the file at `path`, which nobody else may read.
///
/// # Errors
/// If the file cannot be read or written; it is then as it was.
pub fn store(path: &Path, registry: &str, username: &str, password: &Secret) -> Result<(), KeyringError> {
    let auth = STANDARD.encode(format!("{username}:{}", password.reveal()));
    change(path, |auths| {
        forget(auths, registry);
        let entry = Map::from_iter([("auth".to_owned(), Value::String(auth.clone()))]);
        auths.insert(keys(registry).swap_remove(0), Value::Object(entry));
        true
    })
    .map(drop)
}

/// Forgets what the file at `path` has for `registry`; `false` if that was nothing.
///
/// # Errors
/// As [`store`].
pub fn remove(path: &Path, registry: &str) -> Result<bool, KeyringError> {
    if !path.exists() {
        return Ok(false);
    }
    change(path, |auths| forget(auths, registry))
}

fn forget(auths: &mut Map<String, Value>, registry: &str) -> bool {
    let before = auths.len();
    let keys = keys(registry);
    auths.retain(|key, _| !keys.contains(key));
    auths.len() != before
}

/// Rewrites the file under another name and puts it in place, if `edit` says that there was a change.
fn change(path: &Path, edit: impl FnOnce(&mut Map<String, Value>) -> bool) -> Result<bool, KeyringError> {
    let failed = |source| KeyringError::Write { path: path.to_owned(), source };
    let mut whole: Map<String, Value> = match text(path)? {
        Some(text) => parse(path, &text)?,
        None => Map::new(),
    };
    let auths = whole.entry("auths").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(auths) = auths else { return Err(KeyringError::Format { path: path.to_owned(), line: 1 }) };
    if !edit(auths) {
        return Ok(false);
    }
    let text = serde_json::to_string_pretty(&whole).map_err(|error| failed(error.into()))?;
    replace(path, &text).map(|()| true).map_err(failed)
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // A link to a file elsewhere stays one.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = directory.join(name);
    let written = write_whole(&temporary, text).and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        // The first error is the one that counts.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_whole(path: &PathBuf, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn read(path: &Path) -> Result<Option<Config>, KeyringError> {
    text(path)?.map(|text| parse(path, &text)).transpose()
}

fn parse<T: for<'a> Deserialize<'a>>(path: &Path, text: &str) -> Result<T, KeyringError> {
    // What an editor left empty is as good as missing.
    let text = if text.trim().is_empty() { "{}" } else { text };
    // The parser's own message may quote what it stumbled over, which may be a password.
    serde_json::from_str(text).map_err(|error| KeyringError::Format { path: path.to_owned(), line: error.line() })
}

fn text(path: &Path) -> Result<Option<String>, KeyringError> {
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
        Ok(text)
    };
    match read() {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(source) => Err(KeyringError::Read { path: path.to_owned(), source }),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::super::{DOCKER_HUB, Keyring};
    use super::*;

    fn keyring(text: &str) -> (tempfile::TempDir, Keyring) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, text).unwrap();
        (directory, Keyring { explicit: None, files: vec![path] })
    }

    fn password(username: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { username: username.to_owned(), password: Secret::new(password) })
    }

    #[test]
    fn every_form_of_an_entry_is_understood() {
        let (_kept, keyring) = keyring(
            r#"{"auths": {
                "a:5000": {"auth": "bWU6cGE6c3M="},
                "https://b": {"username": "me", "password": "word"},
                "c": {"auth": "", "identitytoken": "tok"},
                "https://index.docker.io/v1/": {"auth": "aHViOng="},
                "d": {}
            }, "HttpHeaders": {"x": "y"}}"#,
        );
        let find = |registry| keyring.find(registry).unwrap();

        assert_eq!(find("a:5000"), password("me", "pa:ss"));
        assert_eq!(find("b"), password("me", "word"));
        assert_eq!(find("c"), Some(Credentials::Identity(Secret::new("tok"))));
        assert_eq!(find(DOCKER_HUB), password("hub", "x"));
        assert_eq!((find("d"), find("a"), find("a:5001")), (None, None, None));
    }

    #[test]
    fn the_first_file_with_an_entry_counts_and_what_was_given_before_all() {
        let (_one, first) = keyring(r#"{"auths": {"h": {"auth": "Zmlyc3Q6MQ=="}}}"#);
        let (_two, second) = keyring(r#"{"auths": {"h": {"auth": "c2Vjb25kOjI="}, "i": {"auth": "c2Vjb25kOjI="}}}"#);
        let missing = PathBuf::from("/nonexistent/config.json");
        let files = [vec![missing], first.files, second.files].concat();
        let mut both = Keyring { explicit: None, files };

        assert_eq!(both.find("h").unwrap(), password("first", "1"));
        assert_eq!(both.find("i").unwrap(), password("second", "2"));
        both.explicit = password("given", "3");
        assert_eq!(both.find("h").unwrap(), password("given", "3"));
    }

    #[test]
    fn a_login_is_kept_beside_what_else_is_there_and_forgotten_again() {
        let (_kept, keyring) = keyring(r#"{"auths": {"other": {"auth": "bWU6cA=="}}, "currentContext": "x"}"#);
        let path = &keyring.files[0];

        store(path, "h:1", "me", &Secret::new("pa ss")).unwrap();

        assert_eq!(keyring.find("h:1").unwrap(), password("me", "pa ss"));
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(path).unwrap().contains("currentContext"));
        assert_eq!(list(path).unwrap().len(), 2);
        assert!(remove(path, "h:1").unwrap() && !remove(path, "h:1").unwrap());
        assert_eq!(keyring.find("h:1").unwrap(), None);
        assert_eq!(keyring.find("other").unwrap(), password("me", "p"));
    }

    #[test]
    fn a_damaged_file_is_named_and_not_quoted() {
        let (_kept, keyring) = keyring(r#"{"auths": {"h": {"auth": 7, "password": "hush"}}}"#);

        let error = keyring.find("h").unwrap_err();

        let text = format!("{error} {error:?}");
        assert!(text.contains("config.json") && !text.contains("hush"), "{text}");
    }

    #[test]
    fn a_helper_is_asked_for_the_registries_that_it_has() {
        let (kept, keyring) =
            keyring(r#"{"credHelpers": {"h": "siphon-none-such"}, "auths": {"i": {"auth": "bWU6cA=="}}}"#);

        let error = keyring.find("h").unwrap_err().to_string();

        assert!(error.contains("docker-credential-siphon-none-such") && error.contains("for h"), "{error}");
        assert_eq!(keyring.find("i").unwrap(), password("me", "p"));
        drop(kept);
    }
}
