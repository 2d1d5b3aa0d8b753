//! The store in a SQL database: the same code for SQLite, PostgreSQL and MySQL or MariaDB. What they say differently
//! is in [`dialect`] and [`schema`].

mod connection;
mod dialect;
mod owner;
mod postgres_url;
mod read;
mod refused;
mod schema;
mod store;
mod write;
mod writer;

pub use schema::{OpenSqlError, SqlServer};
pub(crate) use schema::{explain_mysql, is_no_table, mysql_options};
pub use store::SqlStore;
