//! The error of everything that is parsed, worded for the person who wrote it.

/// A rule or a published port that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {problem}; {expected}")]
pub struct ParseError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
    /// The form that is expected.
    pub expected: &'static str,
}
