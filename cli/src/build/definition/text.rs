//! Lines with their numbers, and places in them.

use super::error::Problem;

/// A line of a recipe, without its end.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Counted from 1.
    pub number: usize,
    /// Without the line's end, `\r\n` included.
    pub text: &'a str,
}

/// A place in a line, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub start: usize,
    /// How long it is.
    pub length: usize,
}

/// The lines of `text`, counted from `first` on. A last line without an end counts too.
pub(super) fn lines(text: &str, first: usize) -> Vec<Line<'_>> {
    let plain = text.split_inclusive('\n').map(|line| line.strip_suffix('\n').unwrap_or(line));
    let plain = plain.map(|line| line.strip_suffix('\r').unwrap_or(line));
    plain.enumerate().map(|(index, text)| Line { number: first + index, text }).collect()
}

impl<'a> Line<'a> {
    /// The words.
    pub fn words(&self) -> impl Iterator<Item = &'a str> {
        self.text.split_whitespace()
    }

    /// Whether there is nothing but blanks or a comment.
    pub fn is_blank(&self) -> bool {
        self.words().next().is_none_or(|word| word.starts_with('#'))
    }

    /// Whether the first word begins with `%`.
    pub fn begins_section(&self) -> bool {
        self.text.trim_start().starts_with('%')
    }

    /// A problem with a part of this line.
    pub(super) fn problem(&self, at: impl Into<Place<'a>>, message: &str) -> Problem {
        let span = match at.into() {
            Place::Span(span) => span,
            Place::Part(part) => Span::of(self.text, part),
        };
        Problem::new(self.number, self.text, span, message.to_owned())
    }
}

/// What a problem is with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    Span(Span),
    Part(&'a str),
}

impl From<Span> for Place<'_> {
    fn from(span: Span) -> Self {
        Self::Span(span)
    }
}

impl<'a> From<&'a str> for Place<'a> {
    fn from(part: &'a str) -> Self {
        Self::Part(part)
    }
}

impl Span {
    /// Where `part`, which is a piece of `line` itself, lies in it; the first that equals it otherwise.
    pub fn of(line: &str, part: &str) -> Self {
        let offset = (part.as_ptr() as usize).wrapping_sub(line.as_ptr() as usize);
        let inside = offset <= line.len() && offset.checked_add(part.len()).is_some_and(|end| end <= line.len());
        let start = if inside { offset } else { line.find(part).unwrap_or(0) };
        Self { start, length: part.len() }
    }

    /// Where the last `part` in `line` lies.
    pub fn last_of(line: &str, part: &str) -> Self {
        Self { start: line.rfind(part).unwrap_or(0), length: part.len() }
    }
}
