//! Patterns of file names, as a shell has them: `*`, `?`, `[a-z]`, `{a,b}`, and `**` for directories of any depth.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// More names than one line is meant to copy one by one.
const MAX_MATCHES: usize = 100_000;
/// Alternatives that braces may come to.
const MAX_ALTERNATIVES: usize = 1024;
/// Directories within each other that `**` goes into.
const MAX_DEPTH: usize = 64;

/// Where patterns are looked up.
pub(super) trait Names {
    /// The names in a directory, in any order; none if it cannot be read.
    fn list(&self, directory: &Path) -> Vec<OsString>;
    /// Whether there is something of this name, which may be a link to nowhere.
    fn exists(&self, path: &Path) -> bool;
    /// Whether it is a directory, and not a link to one.
    fn is_directory(&self, path: &Path) -> bool;
}

/// The files of the host.
#[derive(Debug)]
pub(super) struct Host;

impl Names for Host {
    fn list(&self, directory: &Path) -> Vec<OsString> {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect()
    }

    fn exists(&self, path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.symlink_metadata().is_ok_and(|found| found.is_dir())
    }
}

/// What a pattern stands for, in the order of names. A pattern without wildcards stands for itself, whether it exists or
/// not; one with wildcards for nothing if nothing matches.
pub(super) fn expand(names: &dyn Names, pattern: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for pattern in alternatives(pattern) {
        if !has_wildcards(&pattern) {
            found.push(PathBuf::from(unescaped(&pattern)));
            continue;
        }
        let start = if pattern.starts_with('/') { PathBuf::from("/") } else { PathBuf::new() };
        let parts: Vec<_> = pattern.split('/').filter(|part| !part.is_empty()).collect();
        let mut matched = Vec::new();
        descend(names, &start, &parts, 0, &mut matched);
        matched.sort();
        matched.dedup();
        found.extend(matched);
    }
    found
}

fn has_wildcards(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

fn descend(names: &dyn Names, at: &Path, parts: &[&str], depth: usize, found: &mut Vec<PathBuf>) {
    if found.len() >= MAX_MATCHES {
        return;
    }
    let Some((part, rest)) = parts.split_first() else {
        found.push(at.to_owned());
        return;
    };
    if *part == "**" {
        descend(names, at, rest, depth, found);
        if depth < MAX_DEPTH {
            for name in names.list(at).into_iter().filter(|name| !name.as_bytes().starts_with(b".")) {
                let below = at.join(name);
                if names.is_directory(&below) {
                    descend(names, &below, parts, depth + 1, found);
                } else if rest.is_empty() {
                    found.push(below);
                }
            }
        }
        return;
    }
    if !has_wildcards(part) {
        let next = at.join(unescaped(part));
        if *part == ".." || *part == "." || names.exists(&next) {
            descend(names, &next, rest, depth, found);
        }
        return;
    }
    for name in names.list(at) {
        let hidden = name.as_bytes().starts_with(b".") && !part.starts_with('.');
        if !hidden && matches(part.as_bytes(), name.as_bytes()) {
            descend(names, &at.join(&name), rest, depth, found);
        }
    }
}

/// Whether a name matches one part of a pattern. Without backtracking over more than the last `*`, so that it always ends
/// soon.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut index) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while index < name.len() {
        let step = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, index));
                at += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => match set(&pattern[at..], name[index]) {
                Some((true, length)) => Some(length),
                Some((false, _)) => None,
                None => (name[index] == b'[').then_some(1),
            },
            Some(b'\\') if at + 1 < pattern.len() => (pattern[at + 1] == name[index]).then_some(2),
            Some(byte) => (*byte == name[index]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(step), _) => {
                at += step;
                index += 1;
            }
            (None, Some((after, from))) => {
                at = after;
                index = from + 1;
                star = Some((after, from + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Whether a byte is in the set at the beginning of `pattern`, and how long the set is; nothing if it is none.
fn set(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let start = if negated { 2 } else { 1 };
    let length = pattern.iter().skip(start + 1).position(|byte| *byte == b']')? + start + 1;
    let mut inside = &pattern[start..length];
    let mut found = false;
    while let Some(first) = inside.first() {
        match inside {
            [low, b'-', high, rest @ ..] => {
                found |= (*low..=*high).contains(&byte);
                inside = rest;
            }
            _ => {
                found |= *first == byte;
                inside = &inside[1..];
            }
        }
    }
    Some((found != negated, length + 1))
}

fn unescaped(pattern: &str) -> String {
    let mut plain = String::with_capacity(pattern.len());
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next()),
            other => plain.push(other),
        }
    }
    plain
}

/// The patterns that braces stand for.
fn alternatives(pattern: &str) -> Vec<String> {
    let mut done = Vec::new();
    let mut pending = vec![pattern.to_owned()];
    while let Some(pattern) = pending.pop() {
        match braces(&pattern).filter(|_| pending.len() + done.len() < MAX_ALTERNATIVES) {
            Some((before, parts, after)) => {
                pending.extend(parts.iter().rev().map(|part| format!("{before}{part}{after}")));
            }
            None => done.push(pattern),
        }
    }
    done
}

/// The first braces with alternatives: what is before them, the alternatives, and what is behind.
fn braces(pattern: &str) -> Option<(&str, Vec<&str>, &str)> {
    for (open, _) in pattern.match_indices('{') {
        let (mut depth, mut start, mut parts) = (0, open + 1, Vec::new());
        for (at, character) in pattern[open..].char_indices().map(|(at, character)| (open + at, character)) {
            match character {
                '{' => depth += 1,
                ',' if depth == 1 => {
                    parts.push(&pattern[start..at]);
                    start = at + 1;
                }
                '}' if depth == 1 => {
                    if parts.is_empty() {
                        break;
                    }
                    parts.push(&pattern[start..at]);
                    return Some((&pattern[..open], parts, &pattern[at + 1..]));
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    None
}

/// The source of a copy from the host with `~` and variables in place, as the shell of apptainer puts them.
pub(super) fn with_variables(source: &str, value: impl Fn(&str) -> Option<OsString>) -> String {
    let text = |name: &str| value(name).unwrap_or_default().to_string_lossy().into_owned();
    let source = match source.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => text("HOME") + rest,
        _ => source.to_owned(),
    };
    let mut whole = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find('$') {
        whole.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, length) = match after.strip_prefix('{').and_then(|inside| inside.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let end = after.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
                let end = end.unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        if name.is_empty() || name.starts_with(|letter: char| letter.is_ascii_digit()) {
            whole.push('$');
            rest = after;
            continue;
        }
        whole.push_str(&text(name));
        rest = &after[length..];
    }
    whole + rest
}

/// Whether nothing can match, which is told from a name that does not exist.
pub(super) fn is_pattern(source: &str) -> bool {
    has_wildcards(source) || OsStr::new(source).as_bytes().contains(&b'{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        let cases = [
            ("*", "anything", true),
            ("*.c", "a.c", true),
            ("*.c", "a.cc", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("[]x", "[]x", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("*a*b*c*", "xxaxxbxxcxx", true),
            ("*a*b*c*", "xxaxxcxxbxx", false),
            ("", "", true),
            ("a", "", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
        assert!(!matches(&b"*a".repeat(2000), &b"a".repeat(1999)));
    }

    #[test]
    fn a_pattern_stands_for_what_is_there_in_the_order_of_names() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b/x.c", "b/y.h", "a/z.c", "a/deep/er/w.c", ".hidden.c", "top.c"] {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let expand = |pattern: &str| {
            let whole = format!("{}/{pattern}", directory.path().display());
            let found = super::expand(&Host, &whole).into_iter();
            found.map(|path| path.strip_prefix(directory.path()).unwrap().display().to_string()).collect::<Vec<_>>()
        };

        assert_eq!(expand("*/*.c"), ["a/z.c", "b/x.c"]);
        assert_eq!(expand("**/*.c"), ["a/deep/er/w.c", "a/z.c", "b/x.c", "top.c"]);
        assert_eq!(expand("{b/x,top}.c"), ["b/x.c", "top.c"]);
        assert_eq!(expand("b/*.[ch]"), ["b/x.c", "b/y.h"]);
        assert_eq!(expand("*.none"), Vec::<String>::new());
        assert_eq!(expand("missing"), ["missing"]);
    }

    #[test]
    fn braces_and_variables_are_put_in_place() {
        assert_eq!(alternatives("a{b,c{d,e}}f"), ["abf", "acdf", "acef"]);
        assert_eq!(alternatives("{a}"), ["{a}"]);
        let value = |name: &str| (name == "HOME").then(|| OsString::from("/home/me"));
        for (source, expected) in [
            ("~/x", "/home/me/x"),
            ("~x", "~x"),
            ("$HOME/x", "/home/me/x"),
            ("${HOME}x", "/home/mex"),
            ("$UNSET/x", "/x"),
            ("a$", "a$"),
            ("$1", "$1"),
        ] {
            assert_eq!(with_variables(source, value), expected);
        }
    }
}
