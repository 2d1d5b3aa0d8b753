//! What an error means for the work: the one place that says retry, wait for a person, or refuse.

use serde::{Deserialize, Serialize};

/// What is done about an error. Chosen by one function per seam, next to the error type it reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorClass {
    /// Goes away by itself: tried again for ever, with back-off and jitter.
    Transient,
    /// Two things want to be the same: that collection waits for a choice, the others go on.
    Conflict,
    /// What was asked for cannot work: refused at creation, naming the field.
    Configuration,
    /// One message or object cannot be carried: its collection is detached, the others go on.
    Data,
    /// A promise inside this program was broken. Reported like `Data`, never a panic of the process.
    Bug,
}

impl std::fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ErrorClass::Transient => "transient",
            ErrorClass::Conflict => "conflict",
            ErrorClass::Configuration => "configuration",
            ErrorClass::Data => "data",
            ErrorClass::Bug => "bug",
        })
    }
}

/// What programs may want to tell apart within a class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProblemCode {
    /// A source or target did not accept the login, or does not permit it what is needed.
    Login,
    /// A target cannot do something of which everything else is independent: it stays so, and nothing waits for it.
    Unable,
}

/// An error as a person sees it: the cause and the next step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    pub class: ErrorClass,
    /// What happened, with the values that matter.
    pub message: String,
    /// What to do about it; empty if there is nothing to do but wait.
    pub hint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ProblemCode>,
}

impl Problem {
    pub fn new(class: ErrorClass, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            hint: hint.into(),
            code: None,
        }
    }

    #[must_use]
    pub fn with_code(self, code: ProblemCode) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }
}
