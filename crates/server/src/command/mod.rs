//! The commands beside `server`.

mod client;
pub mod doctor;
pub mod promote;

/// How a command prints what it found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Json,
}
