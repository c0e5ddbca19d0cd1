//! Lines of `%files`: a source and perhaps a destination.
//!
//! Words are separated by blanks, and are taken as they are between quotes or behind a backslash. A word that begins with
//! `#` begins a comment.

use super::error::Problem;
use super::text::{Line, Span};

/// A `%files` section, or all those with the same arguments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// The stage whose files are meant; the host's if there is none.
    pub from: Option<String>,
    /// What is copied, in order.
    pub transfers: Vec<Transfer>,
    /// The line of the (first) heading.
    pub line: usize,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transfer {
    /// A path or pattern.
    pub source: String,
    /// Where to; the source's own path if it is empty.
    pub destination: String,
}

/// Reads the lines below a heading.
pub(super) fn transfers(lines: &[Line<'_>], problems: &mut Vec<Problem>) -> Vec<Transfer> {
    let mut transfers = Vec::new();
    for line in lines.iter().filter(|line| !line.is_blank()) {
        match transfer(line) {
            Ok(transfer) => transfers.push(transfer),
            Err(problem) => problems.push(problem),
        }
    }
    transfers
}

fn transfer(line: &Line<'_>) -> Result<Transfer, Problem> {
    let mut words = words(line)?.into_iter();
    let (source, destination) = (words.next(), words.next());
    if let Some((start, word)) = words.next() {
        let message = "expected a source and at most one destination; quote a name that has blanks in it";
        return Err(line.problem(Span { start, length: word.len() }, message));
    }
    let source = match source {
        Some((_, source)) if !source.is_empty() => source,
        _ => return Err(line.problem(line.text.trim(), "expected the name of a file here")),
    };
    Ok(Transfer { source, destination: destination.map(|(_, word)| word).unwrap_or_default() })
}

/// The words, each with where it begins.
fn words(line: &Line<'_>) -> Result<Vec<(usize, String)>, Problem> {
    let mut words = Vec::new();
    let mut word: Option<(usize, String)> = None;
    let mut characters = line.text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '#' if word.is_none() => break,
            blank if blank.is_whitespace() => words.extend(word.take()),
            quote @ ('"' | '\'') => {
                let (_, text) = word.get_or_insert_with(|| (at, String::new()));
                loop {
                    match characters.next() {
                        Some((_, end)) if end == quote => break,
                        Some((_, inside)) => text.push(inside),
                        None => return Err(line.problem(Span { start: at, length: 1 }, "this quote is never closed")),
                    }
                }
            }
            '\\' => {
                let (_, text) = word.get_or_insert_with(|| (at, String::new()));
                match characters.next() {
                    Some((_, next)) if next.is_whitespace() || next == '"' || next == '\'' => text.push(next),
                    // Of a pattern: it stays what it is.
                    Some((_, next)) => text.extend(['\\', next]),
                    None => text.push('\\'),
                }
            }
            other => word.get_or_insert_with(|| (at, String::new())).1.push(other),
        }
    }
    words.extend(word);
    Ok(words)
}
