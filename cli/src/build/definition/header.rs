//! The header: `Key: value` lines.
//!
//! A `#` begins a comment wherever it is. A line that ends in a backslash goes on in the next one, whose leading blanks
//! are dropped; `\n\` stands for a line's end there.

use super::error::Problem;
use super::text::Line;
use std::collections::BTreeMap;

/// Keys that there are.
pub(super) const KEYS: [&str; 25] = [
    "bootstrap",
    "from",
    "includecmd",
    "mirrorurl",
    "updateurl",
    "osversion",
    "include",
    "library",
    "registry",
    "namespace",
    "stage",
    "product",
    "user",
    "regcode",
    "productpgp",
    "registerurl",
    "modules",
    "fingerprints",
    "confurl",
    "setopt",
    "target",
    "frontend",
    "filename",
    "buildargs",
    "otherurl",
];

/// Whether `key`, in lower case, may stand in a header: `otherurl` has a number behind it.
pub(super) fn is_key(key: &str) -> bool {
    match key.strip_prefix("otherurl") {
        Some(number) => !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()),
        None => KEYS.contains(&key),
    }
}

/// Reads the lines above the first section.
pub(super) fn parse(lines: &[Line<'_>], problems: &mut Vec<Problem>) -> BTreeMap<String, String> {
    let mut header = BTreeMap::new();
    // A key whose value goes on.
    let mut open: Option<(String, String)> = None;
    for line in lines {
        if line.is_blank() {
            header.extend(open.take());
            continue;
        }
        let plain = line.text.split('#').next().unwrap_or_default();
        let (key, value) = match open.take() {
            Some((key, begun)) => (key, begun + plain.trim()),
            None => match entry(line, plain, problems) {
                Some(entry) => entry,
                None => continue,
            },
        };
        match value.strip_suffix('\\') {
            Some(begun) => {
                let begun = begun.strip_suffix("\\n").map_or_else(|| begun.to_owned(), |begun| format!("{begun}\n"));
                open = Some((key, begun));
            }
            None => drop(header.insert(key, value)),
        }
    }
    header.extend(open);
    header
}

fn entry(line: &Line<'_>, plain: &str, problems: &mut Vec<Problem>) -> Option<(String, String)> {
    let Some((key, value)) = plain.split_once(':') else {
        problems.push(line.problem(
            line.text.trim(),
            "expected a header line \"Key: value\", or a section such as \"%post\" at the beginning of the line",
        ));
        return None;
    };
    let name = key.trim().to_ascii_lowercase();
    if !is_key(&name) {
        let near = nearest(&name).map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
        let known = KEYS.iter().filter(|known| **known != "otherurl").copied().collect::<Vec<_>>().join(", ");
        let message = format!("invalid header keyword found: {name}{near} The keys are {known} and otherurlN");
        problems.push(line.problem(super::Span::of(line.text, key.trim()), &message));
        return None;
    }
    Some((name, value.trim().to_owned()))
}

/// The key that was meant, if one is off by two letters at most.
fn nearest(name: &str) -> Option<&'static str> {
    if name.len() > 32 {
        return None;
    }
    let near = KEYS.iter().map(|key| (distance(name, key), *key)).min()?;
    (near.0 <= 2 && near.0 < name.len()).then_some(near.1)
}

/// How many letters have to be changed, added or taken away (Levenshtein).
pub(super) fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, wanted) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *wanted);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}
