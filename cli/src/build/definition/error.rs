//! What is wrong with a recipe, and where.

use super::text::Span;
use std::fmt;

/// Problems that are shown: the rest of a file that is no recipe at all says nothing new.
const MAX_SHOWN: usize = 10;
/// Characters of a line that are shown around the place.
const MAX_SHOWN_CHARACTERS: usize = 160;

/// A recipe that cannot be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The file, if it is known.
    pub name: String,
    /// In the order of the file; at least one, or there is a `summary`.
    pub problems: Vec<Problem>,
    /// What is wrong with all of it.
    summary: Option<String>,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// How many characters are meant; at least one.
    pub width: usize,
    /// The line itself.
    pub text: String,
    /// What is wrong, and what was expected.
    pub message: String,
}

impl Error {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Self { name: String::new(), problems, summary: None }
    }

    /// Something that has no place.
    pub(super) fn whole(message: String) -> Self {
        Self { name: String::new(), problems: Vec::new(), summary: Some(message) }
    }

    /// The same, of the file `name`.
    pub fn of(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }
}

impl Problem {
    pub(super) fn new(line: usize, text: &str, span: Span, message: String) -> Self {
        let start = (0..=span.start.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let wanted = span.start.saturating_add(span.length).min(text.len()).max(start);
        let end = (wanted..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        let column = text[..start].chars().count() + 1;
        Self { line, column, width: text[start..end].chars().count().max(1), text: text.to_owned(), message }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "recipe" } else { &self.name };
        if let Some(summary) = &self.summary {
            return write!(f, "{name}: {summary}");
        }
        for (index, problem) in self.problems.iter().take(MAX_SHOWN).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{name}:{problem}")?;
        }
        match self.problems.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n{name}: and {more} more"),
        }
    }
}

impl fmt::Display for Problem {
    /// `12:3: message`, the line, and marks below the place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:{}: {}", self.line, self.column, self.message)?;
        // A window of a long line, and nothing that would move the terminal's cursor.
        let skip = (self.column - 1).saturating_sub(MAX_SHOWN_CHARACTERS / 2);
        let plain = |character: char| if character.is_control() { ' ' } else { character };
        let shown: String = self.text.chars().skip(skip).take(MAX_SHOWN_CHARACTERS).map(plain).collect();
        let number = self.line.to_string();
        let before = self.column - 1 - skip;
        let width = self.width.min(shown.chars().count().saturating_sub(before)).max(1);
        writeln!(f, "    {number} | {}", shown.trim_end())?;
        write!(f, "    {:1$} | ", "", number.len())?;
        write!(f, "{:before$}{}", "", "^".repeat(width))
    }
}
