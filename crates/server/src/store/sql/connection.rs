//! One connection, or a pool of them, to any of the SQL databases: the same few calls on each.

use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlPool};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection as _, MySqlConnection, PgConnection,
    Row as _, SqliteConnection, TypeInfo,
};

use super::dialect::Statement;

/// What goes into a statement and comes out of a row. Timestamps of Milvus are text, see `dialect`.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Value {
    Text(String),
    Int(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value::Int(number)
    }
}

/// The values of one row, in the order of the columns asked for.
pub(crate) type Row = Vec<Value>;

/// How to make a connection. Has no `Debug`: there may be a password in it.
#[derive(Clone)]
pub(crate) enum Target {
    Sqlite(SqliteConnectOptions),
    Postgres(PgConnectOptions),
    Mysql(MySqlConnectOptions),
}

/// What every connection to a server is told first. A process that is stopped within a transaction must not keep its
/// locks: the server ends it.
const POSTGRES_SESSION: &str = "SET idle_in_transaction_session_timeout = '4s'; SET lock_timeout = '4s'; \
     SET statement_timeout = '8s'; SET synchronous_commit = on";
/// `wait_timeout`: seconds without a statement, after which the server ends the session, in a transaction or not.
const MYSQL_SESSION: &str = "SET SESSION innodb_lock_wait_timeout = 4, wait_timeout = 4, \
     sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', transaction_isolation = 'REPEATABLE-READ'";
/// MariaDB before 11.1 has no session variable `transaction_isolation`.
const MARIADB_SESSION: &str = "SET SESSION innodb_lock_wait_timeout = 4, wait_timeout = 4, \
     sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', tx_isolation = 'REPEATABLE-READ'";

pub(crate) enum Connection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
    Mysql(MySqlConnection),
}

/// Runs the same code on whichever connection or pool it is, with `$db` as its database.
macro_rules! each {
    ($of:ident, $self:expr, $c:ident, $db:ident => $body:expr) => {
        match $self {
            $of::Sqlite($c) => {
                type $db = sqlx::Sqlite;
                $body
            }
            $of::Postgres($c) => {
                type $db = sqlx::Postgres;
                $body
            }
            $of::Mysql($c) => {
                type $db = sqlx::MySql;
                $body
            }
        }
    };
}

/// A statement with its values bound.
macro_rules! bound {
    ($db:ident, $statement:expr) => {{
        let mut query = sqlx::query::<$db>(AssertSqlSafe($statement.sql.clone()));
        for value in &$statement.values {
            query = match value {
                Value::Text(text) => query.bind(text.clone()),
                Value::Int(number) => query.bind(*number),
            };
        }
        query
    }};
}

/// The values of rows of any database. Only two types of columns are ever asked for.
macro_rules! values {
    ($rows:expr) => {
        $rows
            .iter()
            .map(|row| {
                row.columns()
                    .iter()
                    .map(|column| {
                        let at = column.ordinal();
                        if is_number(column.type_info().name()) {
                            row.try_get(at).map(Value::Int)
                        } else {
                            row.try_get(at).map(Value::Text)
                        }
                    })
                    .collect()
            })
            .collect()
    };
}

/// The names the three databases have for 64 bits with a sign.
fn is_number(kind: &str) -> bool {
    matches!(kind, "INTEGER" | "INT8" | "BIGINT")
}

impl Connection {
    pub(crate) async fn open(target: &Target) -> Result<Self, sqlx::Error> {
        let mut connection = match target {
            Target::Sqlite(options) => Connection::Sqlite(options.connect().await?),
            Target::Postgres(options) => Connection::Postgres(options.connect().await?),
            Target::Mysql(options) => Connection::Mysql(options.connect().await?),
        };
        connection.set_up().await?;
        Ok(connection)
    }

    async fn set_up(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Connection::Sqlite(_) => Ok(()),
            Connection::Postgres(c) => set_up_postgres(c).await,
            Connection::Mysql(c) => set_up_mysql(c).await,
        }
    }

    /// Statements without values, one or several.
    pub(crate) async fn raw(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        let sql = AssertSqlSafe(sql.to_owned());
        each!(Connection, self, c, _Db => sqlx::raw_sql(sql).execute(c).await.map(drop))
    }

    /// The number of rows it hit.
    pub(crate) async fn execute(&mut self, statement: &Statement) -> Result<u64, sqlx::Error> {
        each!(Connection, self, c, Db => {
            Ok(bound!(Db, statement).execute(c).await?.rows_affected())
        })
    }

    pub(crate) async fn fetch(&mut self, statement: &Statement) -> Result<Vec<Row>, sqlx::Error> {
        each!(Connection, self, c, Db => values!(bound!(Db, statement).fetch_all(c).await?))
    }

    pub(crate) async fn ping(&mut self) -> Result<(), sqlx::Error> {
        each!(Connection, self, c, _Db => c.ping().await)
    }

    pub(crate) async fn close(self) {
        let _ = each!(Connection, self, c, _Db => c.close().await);
    }
}

async fn set_up_postgres(c: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(POSTGRES_SESSION).execute(c).await.map(drop)
}

async fn set_up_mysql(c: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    match sqlx::raw_sql(MYSQL_SESSION).execute(&mut *c).await {
        Ok(_) => Ok(()),
        Err(_) => sqlx::raw_sql(MARIADB_SESSION).execute(c).await.map(drop),
    }
}

/// Connections for reading, and for what the owner says of itself.
#[derive(Clone)]
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
    Mysql(MySqlPool),
}

const CONNECTIONS: u32 = 4;
const ACQUIRE: Duration = Duration::from_secs(10);
/// Below the `wait_timeout` of the sessions.
const IDLE: Duration = Duration::from_secs(3);

impl Pool {
    /// Does not wait for the server.
    pub(crate) fn new(target: &Target) -> Self {
        match target {
            Target::Sqlite(options) => Pool::Sqlite(
                sqlx::pool::PoolOptions::new()
                    .max_connections(CONNECTIONS)
                    .acquire_timeout(ACQUIRE)
                    .connect_lazy_with(options.clone()),
            ),
            Target::Postgres(options) => Pool::Postgres(
                sqlx::pool::PoolOptions::new()
                    .max_connections(CONNECTIONS)
                    .acquire_timeout(ACQUIRE)
                    .after_connect(|c, _| Box::pin(async move { set_up_postgres(c).await }))
                    .connect_lazy_with(options.clone()),
            ),
            Target::Mysql(options) => Pool::Mysql(
                sqlx::pool::PoolOptions::new()
                    .max_connections(CONNECTIONS)
                    .acquire_timeout(ACQUIRE)
                    .idle_timeout(IDLE)
                    .after_connect(|c, _| Box::pin(async move { set_up_mysql(c).await }))
                    .connect_lazy_with(options.clone()),
            ),
        }
    }

    pub(crate) async fn execute(&self, statement: &Statement) -> Result<u64, sqlx::Error> {
        each!(Pool, self, pool, Db => {
            Ok(bound!(Db, statement).execute(pool).await?.rows_affected())
        })
    }

    pub(crate) async fn fetch(&self, statement: &Statement) -> Result<Vec<Row>, sqlx::Error> {
        each!(Pool, self, pool, Db => values!(bound!(Db, statement).fetch_all(pool).await?))
    }

    /// All of them at one instant.
    pub(crate) async fn snapshot(
        &self,
        begin: &'static str,
        statements: &[Statement],
    ) -> Result<Vec<Vec<Row>>, sqlx::Error> {
        each!(Pool, self, pool, Db => {
            let mut transaction = pool.begin_with(begin).await?;
            let mut all = Vec::with_capacity(statements.len());
            for statement in statements {
                let rows = bound!(Db, statement).fetch_all(&mut *transaction).await?;
                let rows: Result<Vec<Row>, sqlx::Error> = values!(rows);
                all.push(rows?);
            }
            transaction.rollback().await?;
            Ok(all)
        })
    }

    pub(crate) async fn close(&self) {
        each!(Pool, self, pool, _Db => pool.close().await);
    }
}
