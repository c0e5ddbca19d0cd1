//! What one look at the machine found.

use serde::Serialize;

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Ok,
    /// It works, and something else would work better.
    Slow,
    Missing,
}

impl State {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Slow => "slow",
            Self::Missing => "missing",
        }
    }
}

/// One line of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) state: State,
    /// Whether siphon cannot do without it.
    pub(super) needed: bool,
    /// What was found.
    pub(super) detail: String,
    /// A command, or where there is none a sentence.
    pub(super) mend: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state: State::Ok, needed: true, detail: detail.into(), mend: None }
    }

    pub(super) fn slow(name: &str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { state: State::Slow, mend: Some(mend.into()), ..Self::ok(name, detail) }
    }

    pub(super) fn missing(name: &str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { state: State::Missing, mend: Some(mend.into()), ..Self::ok(name, detail) }
    }

    /// The same, of something that only part of siphon uses.
    pub(super) fn optional(self) -> Self {
        Self { needed: false, ..self }
    }
}
