//! Reasons as a status holds them.

use std::fmt;

use super::{ALL, Reason};

/// A reason as a status holds it. Another version of the operator may have written it: a word that this one does not know
/// is kept as it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stored {
    /// One of ours.
    Known(Reason),
    /// Another version's word.
    Other(String),
}

impl Stored {
    /// Reads a word of a status.
    #[must_use]
    pub fn parse(word: &str) -> Self {
        let known = ALL.iter().find(|entry| entry.word == word);
        known.map_or_else(
            || Self::Other(word.to_owned()),
            |entry| Self::Known(entry.reason),
        )
    }

    /// The reason, where this version knows it.
    #[must_use]
    pub const fn known(&self) -> Option<Reason> {
        match self {
            Self::Known(reason) => Some(*reason),
            Self::Other(_) => None,
        }
    }

    /// Whether it is one of these.
    #[must_use]
    pub fn is_one_of(&self, reasons: &[Reason]) -> bool {
        self.known().is_some_and(|known| reasons.contains(&known))
    }

    /// The word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(reason) => reason.word(),
            Self::Other(word) => word,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<Reason> for Stored {
    fn from(reason: Reason) -> Self {
        Self::Known(reason)
    }
}

impl From<Reason> for String {
    fn from(reason: Reason) -> Self {
        reason.word().to_owned()
    }
}

impl From<Stored> for String {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Known(reason) => reason.into(),
            Stored::Other(word) => word,
        }
    }
}

impl PartialEq<Reason> for Stored {
    fn eq(&self, reason: &Reason) -> bool {
        self.known() == Some(*reason)
    }
}

/// Tests look from outside, where a reason is its word.
#[cfg(any(test, feature = "fixture"))]
impl PartialEq<&str> for Reason {
    fn eq(&self, word: &&str) -> bool {
        self.word() == *word
    }
}

/// Tests look from outside, where a reason is its word.
#[cfg(any(test, feature = "fixture"))]
impl PartialEq<&str> for Stored {
    fn eq(&self, word: &&str) -> bool {
        self.as_str() == *word
    }
}
