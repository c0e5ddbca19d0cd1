//! Build arguments: `{{ NAME }}` in the text of a stage.
//!
//! A value comes from the command line, else from the file of arguments, else from `%arguments` of the stage, and may name
//! others itself, one level deep. Behind a `#` that is not `#!` nothing is replaced.

use super::error::{Error, Problem};
use super::text::{self, Line, Span};
use std::collections::{BTreeMap, BTreeSet};

/// More than values of a recipe take: text that replaces itself over and over.
const MAX_EXPANDED_BYTES: usize = 64 << 20;

/// Values from outside of the recipe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BuildArguments {
    values: BTreeMap<String, String>,
    /// Whether values that no stage uses are only warned of.
    may_be_unused: bool,
}

/// The text of a stage with its arguments in place.
pub(super) struct Expanded {
    pub(super) text: String,
    /// The names that were used.
    pub(super) used: BTreeSet<String>,
}

impl BuildArguments {
    /// Those of the text of a file, and then those of the command line, as `NAME=VALUE`.
    ///
    /// # Errors
    /// The one of the command line that is no such pair.
    pub fn new(
        file: Option<&str>,
        command_line: &[String],
        may_be_unused: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Self, String> {
        let mut values = BTreeMap::new();
        for line in file.unwrap_or_default().lines() {
            if line.trim().is_empty() || line.trim_start().starts_with('#') {
                continue;
            }
            match pair(line) {
                Ok((name, value)) => drop(values.insert(name, value)),
                Err(why) => warnings.push(format!("Skipping {line:?} in build arg file: {why}")),
            }
        }
        for text in command_line {
            let (name, value) = pair(text)?;
            values.insert(name, value);
        }
        Ok(Self { values, may_be_unused })
    }

    /// Whether all were used.
    pub(super) fn check_used(&self, used: &BTreeSet<String>, warnings: &mut Vec<String>) -> Result<(), Error> {
        let unused: Vec<_> = self.values.keys().filter(|name| !used.contains(*name)).map(String::as_str).collect();
        if unused.is_empty() {
            return Ok(());
        }
        let message = format!("unused build args: {}", unused.join(", "));
        if self.may_be_unused {
            warnings.push(message);
            return Ok(());
        }
        Err(Error::whole(format!(
            "{message}. Use option --warn-unused-build-args to show a warning instead of a fatal message"
        )))
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not a key=value pair"))?;
    match name.trim() {
        "" => Err(format!("missing key portion in {text:?}")),
        name => Ok((name.to_owned(), value.trim().to_owned())),
    }
}

/// Puts the arguments into the text of one stage.
pub(super) fn expand(
    text: &str,
    first_line: usize,
    given: &BuildArguments,
    warnings: &mut Vec<String>,
) -> Result<Expanded, Vec<Problem>> {
    let defaults = defaults(text, first_line, warnings);
    let value = |name: &str| given.values.get(name).or_else(|| defaults.get(name));
    let (mut expanded, mut used, mut problems) = (String::with_capacity(text.len()), BTreeSet::new(), Vec::new());
    let mut line_start = 0;
    for (number, line) in (first_line..).zip(text.split_inclusive('\n')) {
        let mut done = 0;
        for place in places(line) {
            if is_comment(&line[..place.start]) {
                continue;
            }
            expanded.push_str(&line[done..place.start]);
            done = place.start + place.length;
            match value(place.name) {
                Some(found) => {
                    expanded.push_str(&nested(found, value));
                    used.insert(place.name.to_owned());
                }
                None => {
                    let message = format!(
                        "build var {0} is not defined through either --build-arg (--build-arg-file) or 'arguments' \
                         section: give it with --build-arg {0}=VALUE, or a default in %arguments",
                        place.name
                    );
                    let line = Line { number, text: line.trim_end_matches(['\n', '\r']) };
                    problems.push(line.problem(Span { start: place.start, length: place.length }, &message));
                }
            }
            if expanded.len() > MAX_EXPANDED_BYTES {
                let line = Line { number, text: line.trim_end_matches(['\n', '\r']) };
                let message =
                    format!("the recipe is larger than {MAX_EXPANDED_BYTES} bytes with its arguments in place");
                return Err(vec![line.problem(Span { start: place.start, length: place.length }, &message)]);
            }
        }
        expanded.push_str(&line[done..]);
        line_start += line.len();
    }
    debug_assert_eq!(line_start, text.len());
    if problems.is_empty() { Ok(Expanded { text: expanded, used }) } else { Err(problems) }
}

/// The values of `%arguments`.
fn defaults(text: &str, first_line: usize, warnings: &mut Vec<String>) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut inside = false;
    for line in text::lines(text, first_line) {
        if line.begins_section() {
            let name = line.words().next().unwrap_or_default().trim_start_matches('%');
            inside = name.eq_ignore_ascii_case("arguments");
        } else if inside && !line.is_blank() {
            match pair(line.text.trim()) {
                Ok((name, value)) => drop(values.insert(name, value)),
                Err(why) => warnings.push(format!("Skipping {:?} in 'arguments' section: {why}", line.text.trim())),
            }
        }
    }
    values
}

/// A value with the arguments that it names itself.
fn nested<'a>(text: &str, value: impl Fn(&str) -> Option<&'a String>) -> String {
    let (mut whole, mut done) = (String::with_capacity(text.len()), 0);
    for place in places(text) {
        if let Some(found) = value(place.name) {
            whole.push_str(&text[done..place.start]);
            whole.push_str(found);
            done = place.start + place.length;
        }
    }
    whole.push_str(&text[done..]);
    whole
}

/// A `{{ NAME }}`.
struct Placeholder<'a> {
    start: usize,
    length: usize,
    name: &'a str,
}

fn places(text: &str) -> Vec<Placeholder<'_>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find("{{").map(|at| from + at) {
        let Some(inside) = text[start + 2..].find("}}").map(|length| &text[start + 2..start + 2 + length]) else {
            break;
        };
        // Of "{{{ X }}" the inner braces count.
        let name = inside.trim();
        if !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
            let length = inside.len() + 4;
            found.push(Placeholder { start, length, name });
            from = start + length;
        } else {
            from = start + 1;
        }
    }
    found
}

/// Whether what follows `before` on its line is a comment.
fn is_comment(before: &str) -> bool {
    let mut characters = before.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '#' && characters.peek() != Some(&'!') {
            return true;
        }
    }
    false
}
