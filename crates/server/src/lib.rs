//! The server of milvus-cdc: configuration, store, tasks and the HTTP interface around the corelib.
//!
//! A request passes [`http`] (JSON to a checked request), [`tasks`] (what a task may become) and [`runtime`] (the seam
//! to the corelib); what has to survive goes to [`store`].

pub mod cli;
pub mod client;
pub mod command;
pub mod config;
mod config_store;
pub mod doctor;
pub mod engine_adapter;
pub mod fields;
pub mod http;
pub mod import;
pub mod listen;
pub mod maintenance;
#[doc(hidden)]
pub mod reading;
pub mod request;
pub mod runtime;
pub mod serve;
pub mod states;
pub mod store;
pub mod tasks;
mod terms;
pub mod tls_fields;
