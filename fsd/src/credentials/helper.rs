//! Programs that keep credentials: `docker-credential-NAME get`, asked over standard input.

use super::{Credentials, KeyringError, Secret};
use serde::Deserialize;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// An answer is a name and a token.
const MAX_ANSWER_BYTES: u64 = 256 << 10;
/// What is shown of what a program says in place of an answer.
const MAX_REASON_CHARS: usize = 200;
/// What programs say that have nothing for a registry, by the protocol's own library.
const NOTHING: &str = "credentials not found";
/// The name that stands for a token in place of a password.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the program `docker-credential-NAME` for `registry`. `path` is the file that named it.
pub(super) fn get(name: &str, registry: &str, path: &Path) -> Result<Option<Credentials>, KeyringError> {
    let failed = |reason: String| KeyringError::Helper {
        helper: name.escape_default().to_string(),
        path: path.to_owned(),
        registry: registry.to_owned(),
        reason,
    };
    // It is looked for in PATH, and a name with a slash would be a path.
    if name.contains(['/', '\0']) {
        return Err(failed("this is no name of a program".to_owned()));
    }
    let (succeeded, text) = ask(name, registry).map_err(|error| failed(error.to_string()))?;
    if !succeeded {
        let said = text.trim();
        if said.to_ascii_lowercase().starts_with(NOTHING) {
            return Ok(None);
        }
        return Err(failed(said.escape_debug().take(MAX_REASON_CHARS).collect()));
    }
    let answer: Answer =
        serde_json::from_str(&text).map_err(|_| failed("its answer is no JSON of its kind".to_owned()))?;
    if answer.username == TOKEN_USER {
        return Ok(Some(Credentials::Identity(Secret::new(answer.secret))));
    }
    Ok(Some(Credentials::Password { username: answer.username, password: Secret::new(answer.secret) }))
}

fn ask(name: &str, registry: &str) -> io::Result<(bool, String)> {
    let mut child = Command::new(format!("docker-credential-{name}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read may answer all the same.
        let _ = input.write_all(registry.as_bytes());
    }
    let mut text = String::new();
    let read = child.stdout.take().map_or(Ok(0), |output| output.take(MAX_ANSWER_BYTES).read_to_string(&mut text));
    let status = child.wait()?;
    read?;
    Ok((status.success(), text))
}
