//! The seam: what is asked of a source to read its rows.

use async_trait::async_trait;
use cdc_keys::{Key, Range};
use milvus::proto::schema::FieldData;

use crate::error::{ErrorClass, Problem};
use crate::ids::CollectionId;
use crate::repair::Keys;
use crate::repair::columns::column;
use crate::tso::Tso;

/// A collection as it is read.
#[derive(Clone, PartialEq, Debug)]
pub struct Of {
    pub database: String,
    pub name: String,
    /// Its key.
    pub primary: String,
    pub has_string_key: bool,
    /// All fields that a row is written with, the key among them.
    pub fields: Vec<String>,
}

/// Which of its rows.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// By name; `None`: all.
    pub partition: Option<String>,
    pub range: Range,
}

#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum RowsError {
    #[error("source {address}: {cause}")]
    Configuration {
        address: String,
        cause: String,
        hint: String,
    },
    /// No answer, or one that says: later.
    #[error("source {address}: {call}: {cause}")]
    Unavailable {
        address: String,
        call: &'static str,
        cause: String,
    },
    /// The answer would be larger than the source, or we, allow: ask for less.
    #[error("source {address}: {call}: too large: {cause}")]
    TooLarge {
        address: String,
        call: &'static str,
        cause: String,
    },
    /// The source answered, with an error.
    #[error("source {address}: {call}: {reason} (code {code})")]
    Refused {
        address: String,
        call: &'static str,
        code: i32,
        reason: String,
    },
}

impl RowsError {
    /// Whether the same question may be answered in a moment.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            RowsError::Unavailable { .. } => true,
            // Something is not there, not loaded, asked wrongly, or not allowed.
            RowsError::Refused { code, .. } => {
                !matches!(code, 100 | 101 | 200 | 800 | 1100..=1102 | 1400 | 1401)
            }
            RowsError::Configuration { .. } | RowsError::TooLarge { .. } => false,
        }
    }

    pub fn problem(&self) -> Problem {
        let (class, hint) = match self {
            RowsError::Configuration { hint, .. } => (ErrorClass::Configuration, hint.clone()),
            RowsError::Unavailable { .. } => (
                ErrorClass::Transient,
                "is the source up? the copy goes on by itself".to_owned(),
            ),
            RowsError::TooLarge { .. } => (
                ErrorClass::Data,
                "one row is larger than the source's proxy sends".to_owned(),
            ),
            RowsError::Refused { .. } => (
                ErrorClass::Transient,
                "the copy is tried again by itself; see the source's log".to_owned(),
            ),
        };
        Problem::new(class, self.to_string(), hint)
    }
}

impl From<RowsError> for Problem {
    fn from(error: RowsError) -> Self {
        error.problem()
    }
}

/// Reads rows of the source as a client does. The contract:
///
/// 1. *Not older than asked.* What is counted and read at `at` is what the source shows at that timestamp of its own, or
///    later: a row that was there then, and that nothing happened to since, is there.
/// 2. *All of a part*, but for one thing that real servers do: where a key is there more than once, an answer may leave
///    out copies of it, and rows of other keys. `count` counts every copy of every row.
/// 3. *Named by its name*: whoever asks looks whether it still is the same collection ([`SourceRows::describe`]).
/// 4. Every call has a deadline, and may be repeated.
#[async_trait]
pub trait SourceRows: Send + Sync {
    /// What this name means now; `None`: nothing.
    async fn describe(&self, database: &str, name: &str)
    -> Result<Option<CollectionId>, RowsError>;

    /// Whether all of these partitions can be read; without any, whether something of it can.
    async fn is_loaded(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<bool, RowsError>;

    /// Asks to load it, and returns at once.
    async fn load(&self, database: &str, name: &str) -> Result<(), RowsError>;

    async fn release(&self, database: &str, name: &str) -> Result<(), RowsError>;

    async fn count(&self, of: &Of, part: &Part, at: Tso) -> Result<u64, RowsError>;

    /// One column for each of `of.fields`, in any order.
    async fn read(&self, of: &Of, part: &Part, at: Tso) -> Result<Vec<FieldData>, RowsError>;
}

/// The keys in a column.
pub(super) fn keys(columns: &[FieldData], primary: &str) -> Option<Vec<Key>> {
    Some(match column(columns, primary)? {
        Keys::Int(keys) => keys.into_iter().map(Key::Int).collect(),
        Keys::Str(keys) => keys.into_iter().map(Key::Str).collect(),
    })
}
