//! Runs with limits: a scope of systemd's around the same command line.

use anyhow::Context;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The flag that says to siphon that it is in such a scope.
const LIMITED: &str = "--limited";

/// Becomes this command line in a scope with these properties: the user's own or, for root, the system's. systemd takes
/// the scope away with its last process. Returns only if that fails.
///
/// # Errors
/// What failed.
pub fn start_again(properties: &[String], as_user: bool) -> anyhow::Result<Infallible> {
    let executable = std::env::current_exe().context("cannot find the siphon program itself")?;
    let mut command = Command::new("systemd-run");
    command.args(["--scope", "--quiet", "--collect"]);
    if expands_words() {
        command.arg("--expand-environment=no");
    }
    if as_user {
        command.arg("--user");
    }
    for property in properties {
        command.args(["-p", property]);
    }
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let error = command.arg("--").arg(executable).arg(LIMITED).args(words).exec();
    match error.kind() {
        ErrorKind::NotFound => anyhow::bail!("cannot limit a run: this machine runs systemd and has no systemd-run"),
        _ => Err(error).context("cannot run systemd-run"),
    }
}

/// Whether `systemd-run` replaces `$X` in the words of a command unless it is told not to: from version 254 on.
fn expands_words() -> bool {
    let output = Command::new("systemd-run").arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|version| version.parse::<u32>().ok()).is_some_and(|version| version >= 254)
}
