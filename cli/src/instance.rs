//! Instances: containers that run in the background, and where they are written down.
//!
//! ```text
//! DIR/NAME.json     one instance: its first process, its image, what a run in it has to know
//! DIR/logs/NAME.out what it prints, and NAME.err; they stay when it ends
//! DIR/lock          flock: held while a record is made or taken away
//! ```
//!
//! `DIR` is of one user and one host, on a disk that outlasts logins. A record counts only as long as the very process
//! that it names lives, whatever killed that: who finds a dead one takes it away. What a directory of another user
//! says is believed by root as far as processes of that user go.

mod process;
mod registry;
mod usage;

pub use process::Process;
pub use registry::{Registry, RegistryError};
pub use usage::{Source, Usage, usage};

use serde::{Deserialize, Serialize};
use siphon_image::open::Facts;
use std::path::PathBuf;

/// The longest name, in bytes: with an ending it is a file's name.
const MAX_NAME_BYTES: usize = 200;

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// The image, as a path or URL.
    pub image: String,
    /// Process 1 inside; until that is ready, the process that starts it.
    pub process: Process,
    /// Whether it has started: only then it can be joined.
    pub ready: bool,
    /// What the image says of itself, as far as a run in the instance has to know it.
    pub facts: Facts,
    /// The home directory inside.
    pub home: PathBuf,
    /// The directories inside that hold libraries of the host.
    pub library_path: String,
    /// Whether its user is root inside.
    pub as_root: bool,
    /// The socket of the daemon that pretends users and owners for it, if they are pretended.
    pub pretends_at: Option<PathBuf>,
    /// What `--overlay` put on its image, lowest first, as absolute paths.
    #[serde(default)]
    pub overlays: Vec<PathBuf>,
    /// Where its standard output goes.
    pub output: PathBuf,
    /// Where its standard error goes.
    pub error: PathBuf,
}

/// Whether an instance may be called so.
pub fn is_valid_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

/// Whether `name` is one of those that `pattern` means: `*` is any text, `?` any character, `[a-c]` one of these and
/// `[^a-c]` one of the others.
pub fn matches(pattern: &str, name: &str) -> bool {
    matches_bytes(pattern.as_bytes(), name.as_bytes())
}

fn matches_bytes(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        // Names are short, so that trying each rest costs nothing.
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|start| matches_bytes(rest, &name[start..])),
        ([b'?', rest @ ..], [_, others @ ..]) => matches_bytes(rest, others),
        ([b'[', set @ ..], [first, others @ ..]) => match set.iter().skip(1).position(|byte| *byte == b']') {
            Some(end) => is_in_set(&set[..=end], *first) && matches_bytes(&set[end + 2..], others),
            None => false,
        },
        ([byte, rest @ ..], [first, others @ ..]) => byte == first && matches_bytes(rest, others),
        _ => false,
    }
}

fn is_in_set(set: &[u8], byte: u8) -> bool {
    let (negated, mut set) = match set {
        [b'^', rest @ ..] => (true, rest),
        set => (false, set),
    };
    let mut found = false;
    while let [first, rest @ ..] = set {
        (found, set) = match rest {
            [b'-', last, rest @ ..] => (found || (*first..=*last).contains(&byte), rest),
            rest => (found || *first == byte, rest),
        };
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names_without_a_way_out() {
        for name in ["a", "web-1", "x.y_z", &"n".repeat(200)] {
            assert!(is_valid_name(name), "{name}");
        }
        for name in ["", "a/b", "a b", "ä", "a\n", "*", &"n".repeat(201)] {
            assert!(!is_valid_name(name), "{name}");
        }
    }

    #[test]
    fn patterns_mean_the_names_that_a_shell_would_take_them_for() {
        let cases = [
            ("web", "web", true),
            ("web", "web1", false),
            ("*", "", true),
            ("w*b", "web", true),
            ("w*b", "wb", true),
            ("*b*", "web1", true),
            ("we?", "web", true),
            ("we?", "we", false),
            ("we[a-c]", "web", true),
            ("we[^a-c]", "web", false),
            ("we[xb]1", "web1", true),
            ("we[]b]", "web", true),
            ("we[", "we[", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
