//! What is SQLite's own: whose the file is, its schema, and that one process has it.

mod header;
mod schema;

pub(crate) use header::check;
pub use schema::OpenError;
pub(crate) use schema::{options, prepare};
