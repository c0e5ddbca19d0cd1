//! Why a layer cannot be read in place.

use crate::tree;
use std::io;
use std::sync::Arc;

/// What is wrong, where, with which value. It can be handed to everyone who waits for the same bytes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A structure contradicts its format.
    #[error("{part} at byte {offset} is damaged: {problem}")]
    Damaged {
        /// The structure, such as `tar header`.
        part: &'static str,
        /// Where it is in what holds it.
        offset: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A table of contents is no valid JSON, or a field in it has the wrong type.
    #[error("the table of contents is not valid")]
    Json(#[source] Arc<serde_json::Error>),
    /// Something is larger than is accepted.
    #[error("{what} of {found} is larger than {max}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        found: u64,
        /// The largest that is accepted.
        max: u64,
    },
    /// A name that the kernel could not use.
    #[error("the name {0:?} is not allowed in a layer")]
    BadName(String),
    /// Something that is valid, and that this reader has no answer for.
    #[error("the layer has {0}, which cannot be read in place")]
    Unsupported(&'static str),
    /// Bytes do not have the digest that they must have.
    #[error("{part} at byte {offset} has the digest sha256:{found}, but must have sha256:{expected}")]
    Digest {
        /// What was read.
        part: &'static str,
        /// Where it begins in the layer.
        offset: u64,
        /// The digest that it must have, as hexadecimal digits.
        expected: String,
        /// The digest that it has.
        found: String,
    },
    /// The layer lacks what its format is recognised by.
    #[error("the layer has no {0}")]
    Missing(&'static str),
    /// A hard link to what is not there.
    #[error("{link:?} is a hard link to {target:?}, which is not in the image")]
    DanglingLink {
        /// The link.
        link: String,
        /// What it is a link to.
        target: String,
    },
    /// The pass over the stream ended before it reached what is wanted.
    #[error("the layer was read no further than byte {0}")]
    Abandoned(u64),
    /// The storage below failed.
    #[error("cannot read {needed} bytes at byte {offset} of the layer")]
    Read {
        /// Where it begins.
        offset: u64,
        /// How many bytes were wanted.
        needed: u64,
        /// What the storage says.
        #[source]
        source: Arc<io::Error>,
    },
}

impl Error {
    pub(super) fn damaged(part: &'static str, offset: u64, problem: &'static str) -> Self {
        Self::Damaged { part, offset, problem }
    }

    /// Nothing, if it may be that the bytes came wrong and would be right when they are fetched again.
    ///
    /// # Errors
    /// Itself, for all else.
    pub fn check_is_of_bytes(self) -> Result<(), Self> {
        match self {
            Self::Damaged { .. } | Self::Digest { .. } | Self::Json(_) | Self::Missing(_) => Ok(()),
            error => Err(error),
        }
    }

    /// `value` if it is at most `max`.
    pub(super) fn bounded(what: &'static str, value: u64, max: u64) -> Result<u64, Self> {
        if value > max { Err(Self::TooLarge { what, found: value, max }) } else { Ok(value) }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Read { source, .. } => source.kind(),
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

impl From<Error> for tree::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Read { .. } => Self::Io(error.into()),
            damage => Self::Damaged(Box::new(damage)),
        }
    }
}
