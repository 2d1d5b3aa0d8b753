//! The tables in a database server, and bringing them up to what this program writes. SQLite has its own:
//! `store::sqlite`.

use std::time::Duration;

use cdc_core::tls::ClientTls;
use sqlx::ConnectOptions;
use sqlx::mysql::MySqlConnectOptions;

use super::connection::{Connection, Target, Value};
use super::dialect::{Database, Dialect};
use super::{postgres_url, refused};
use crate::store::open::MysqlAddress;

/// A database server. Has no `Debug`: there is a password in it.
#[derive(Clone)]
pub struct SqlServer {
    pub(super) target: Target,
    pub(super) dialect: Dialect,
    /// Those that `target` names, to say what is wrong with them.
    files: ClientTls,
    /// Host, port and database, for people.
    shown: String,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenSqlError {
    #[error("store {shown}: {why}")]
    Sql {
        shown: String,
        cause: sqlx::Error,
        /// The cause, and what to do about it.
        why: String,
    },
    #[error(
        "store {shown} did not answer within {seconds} s; check {setting} and that the server is up"
    )]
    Silent {
        shown: String,
        seconds: u64,
        setting: &'static str,
    },
    #[error(
        "store {shown} has schema version {found}, this program knows up to {VERSION}: it was written by a newer milvus-cdc; use that one"
    )]
    Newer { shown: String, found: i64 },
}

/// The steps from nothing to the newest schema; the version is their number. Steps are only ever added. MySQL has no
/// transactions over them, so each can be repeated.
///
/// `{p}` is the prefix with a quote before it, `{q}` the quote, `{name}` a name (compared byte by byte), `{ts}` 20
/// digits, `{long}` any text, `{seq}` a counter, `{end}` what follows a table.
const STEPS: &[&[&str]] = &[
&[
    "CREATE TABLE IF NOT EXISTS {p}tasks{q} (id {name} PRIMARY KEY, spec {long} NOT NULL, desired {long} NOT NULL,
        created BIGINT NOT NULL, updated BIGINT NOT NULL){end}",
    "CREATE TABLE IF NOT EXISTS {p}events{q} ({q}seq{q} {seq}, task {name} NOT NULL, {q}at{q} BIGINT NOT NULL,
        {q}kind{q} {name} NOT NULL, {q}text{q} {long} NOT NULL, UNIQUE (task, {q}seq{q})){end}",
    "CREATE TABLE IF NOT EXISTS {p}channels{q} (task {name} NOT NULL, channel {name} NOT NULL,
        {q}position{q} {long} NOT NULL, {q}after{q} BIGINT NOT NULL, applied {ts} NOT NULL, sent {ts} NOT NULL,
        PRIMARY KEY (task, channel)){end}",
    "CREATE TABLE IF NOT EXISTS {p}detached{q} (task {name} NOT NULL, channel {name} NOT NULL,
        collection BIGINT NOT NULL, {q}position{q} {long} NOT NULL, {q}after{q} BIGINT NOT NULL, applied {ts} NOT NULL,
        sent {ts} NOT NULL, PRIMARY KEY (task, channel, collection)){end}",
    "CREATE TABLE IF NOT EXISTS {p}replicate{q} (task {name} PRIMARY KEY, {q}position{q} {long} NOT NULL){end}",
    "CREATE TABLE IF NOT EXISTS {p}collections{q} (task {name} NOT NULL, source BIGINT NOT NULL,
        object {long} NOT NULL, PRIMARY KEY (task, source)){end}",
    "CREATE TABLE IF NOT EXISTS {p}partitions{q} (task {name} NOT NULL, source BIGINT NOT NULL,
        object {long} NOT NULL, PRIMARY KEY (task, source)){end}",
    "CREATE TABLE IF NOT EXISTS {p}notes{q} (task {name} NOT NULL, collection BIGINT NOT NULL, note {long} NOT NULL,
        PRIMARY KEY (task, collection)){end}",
    "CREATE TABLE IF NOT EXISTS {p}floors{q} (target {name} NOT NULL, channel {name} NOT NULL, floor {ts} NOT NULL,
        PRIMARY KEY (target, channel)){end}",
    // One row. `beat` counts while the owner lives, `held` is 0 after a clean end.
    "CREATE TABLE IF NOT EXISTS {p}owner{q} (id BIGINT PRIMARY KEY, epoch BIGINT NOT NULL, beat BIGINT NOT NULL,
        held BIGINT NOT NULL, lease_ms BIGINT NOT NULL, name {name} NOT NULL){end}",
],
&[
    "CREATE TABLE IF NOT EXISTS {p}quarantine{q} (task {name} NOT NULL, id {name} NOT NULL, record {long} NOT NULL,
        PRIMARY KEY (task, id)){end}",
    // Base64: the other columns are text and numbers, too.
    "CREATE TABLE IF NOT EXISTS {p}messages{q} (task {name} NOT NULL, {q}message{q} {name} NOT NULL, {q}part{q} BIGINT NOT NULL,
        body {long} NOT NULL, PRIMARY KEY (task, {q}message{q}, {q}part{q})){end}",
]];

pub(crate) const VERSION: i64 = STEPS.len() as i64;
const DEADLINE: Duration = Duration::from_secs(15);

impl SqlServer {
    /// `url`: `postgres://user:password@host:port/database?sslmode=…`; `root` keeps several stores in one database
    /// apart.
    ///
    /// # Errors
    /// What is wrong with the URL; the password is not shown.
    pub fn postgres(url: &str, root: &str) -> Result<Self, String> {
        let (options, files) = postgres_url::read(url)?;
        let shown = format!(
            "postgres {}:{}/{}",
            options.get_host(),
            options.get_port(),
            options.get_database().unwrap_or_default()
        );
        Ok(Self {
            target: Target::Postgres(
                options
                    .application_name("milvus-cdc")
                    .disable_statement_logging(),
            ),
            dialect: dialect(Database::Postgres, root),
            files,
            shown,
        })
    }

    pub fn mysql(address: &MysqlAddress, root: &str) -> Self {
        Self {
            target: Target::Mysql(mysql_options(address)),
            dialect: dialect(Database::Mysql, root),
            files: address.files.clone(),
            shown: address.to_string(),
        }
    }

    fn setting(&self) -> &'static str {
        match self.dialect.database {
            Database::Postgres => "metaStoreConfig.postgresSourceUrl",
            _ => "metaStoreConfig.mysqlSourceUrl",
        }
    }

    /// Brings the tables up to [`VERSION`], one server at a time.
    pub(super) async fn prepare(&self) -> Result<(), OpenSqlError> {
        self.in_time(self.prepare_slowly()).await
    }

    /// Whether there are tables of ours. Changes nothing.
    pub(super) async fn is_there(&self) -> Result<bool, OpenSqlError> {
        self.in_time(async {
            let mut c = Connection::open(&self.target)
                .await
                .map_err(|cause| self.sql(cause))?;
            let found = self.version(&mut c).await;
            c.close().await;
            match found {
                Err(OpenSqlError::Sql { cause, .. }) if is_no_table(&cause) => Ok(false),
                found => Ok(found? > 0),
            }
        })
        .await
    }

    async fn in_time<T>(
        &self,
        asked: impl Future<Output = Result<T, OpenSqlError>>,
    ) -> Result<T, OpenSqlError> {
        match tokio::time::timeout(DEADLINE, asked).await {
            Ok(done) => done,
            Err(_) => Err(OpenSqlError::Silent {
                shown: self.shown.clone(),
                seconds: DEADLINE.as_secs(),
                setting: self.setting(),
            }),
        }
    }

    fn sql(&self, cause: sqlx::Error) -> OpenSqlError {
        OpenSqlError::Sql {
            shown: self.shown.clone(),
            why: refused::explain(&self.target, &self.files, &cause),
            cause,
        }
    }

    /// 0 if none is written yet.
    async fn version(&self, c: &mut Connection) -> Result<i64, OpenSqlError> {
        let id = [("id", Value::Int(1))];
        let of = self.dialect.select("version", &["version"], &id, "");
        let rows = c.fetch(&of).await.map_err(|cause| self.sql(cause))?;
        match rows.first().and_then(|row| row.first()) {
            Some(Value::Int(found)) if *found > VERSION => Err(OpenSqlError::Newer {
                shown: self.shown.clone(),
                found: *found,
            }),
            Some(Value::Int(found)) => Ok(*found),
            _ => Ok(0),
        }
    }

    async fn prepare_slowly(&self) -> Result<(), OpenSqlError> {
        let sql = |cause| self.sql(cause);
        let mut c = Connection::open(&self.target).await.map_err(sql)?;
        // Ends with the connection.
        let lock = match self.dialect.database {
            Database::Postgres => "SELECT pg_advisory_lock(1296254019)",
            _ => "SELECT GET_LOCK('milvus-cdc schema', 10)",
        };
        c.raw(lock).await.map_err(sql)?;
        let outcome = self.migrate(&mut c).await;
        c.close().await;
        outcome
    }

    async fn migrate(&self, c: &mut Connection) -> Result<(), OpenSqlError> {
        let d = &self.dialect;
        let sql = |cause| self.sql(cause);
        let version = self.words("CREATE TABLE IF NOT EXISTS {p}version{q} (id BIGINT PRIMARY KEY, version BIGINT NOT NULL){end}");
        c.raw(&version).await.map_err(sql)?;
        let id = [("id", Value::Int(1))];
        let found = self.version(c).await?;
        for step in STEPS.iter().skip(usize::try_from(found).unwrap_or(0)) {
            for statement in *step {
                c.raw(&self.words(statement)).await.map_err(sql)?;
            }
        }
        let nobody = [
            ("epoch", Value::Int(0), super::dialect::Keep::Larger),
            ("beat", Value::Int(0), super::dialect::Keep::Larger),
            ("held", Value::Int(0), super::dialect::Keep::Larger),
            ("lease_ms", Value::Int(0), super::dialect::Keep::Larger),
            ("name", Value::from(""), super::dialect::Keep::Larger),
        ];
        c.execute(&d.upsert("owner", &id, &nobody))
            .await
            .map_err(sql)?;
        let now = ("version", Value::Int(VERSION), super::dialect::Keep::Larger);
        c.execute(&d.upsert("version", &id, &[now]))
            .await
            .map_err(sql)?;
        Ok(())
    }

    /// A step in the words of the database.
    fn words(&self, step: &str) -> String {
        let (q, name, ts, long, seq, end) = match self.dialect.database {
            Database::Mysql => (
                "`",
                // 255 × 4 bytes, and three of a key are at most 3072.
                "VARCHAR(255) COLLATE utf8mb4_bin",
                "CHAR(20) COLLATE utf8mb4_bin",
                "LONGTEXT",
                "BIGINT AUTO_INCREMENT PRIMARY KEY",
                " ENGINE = InnoDB DEFAULT CHARSET = utf8mb4",
            ),
            _ => (
                "\"",
                "TEXT COLLATE \"C\"",
                "TEXT COLLATE \"C\"",
                "TEXT",
                "BIGSERIAL PRIMARY KEY",
                "",
            ),
        };
        step.replace("{p}", &format!("{q}{}", self.dialect.prefix))
            .replace("{q}", q)
            .replace("{name}", name)
            .replace("{ts}", ts)
            .replace("{long}", long)
            .replace("{seq}", seq)
            .replace("{end}", end)
    }
}

pub(crate) fn mysql_options(address: &MysqlAddress) -> MySqlConnectOptions {
    let mut options = MySqlConnectOptions::new()
        .username(&address.user)
        .password(address.password.expose())
        .database(&address.database)
        .ssl_mode(address.tls)
        .disable_statement_logging();
    if let Some(trusted) = &address.files.trusted {
        options = options.ssl_ca(trusted);
    }
    if let Some(identity) = &address.files.identity {
        options = options
            .ssl_client_cert(&identity.certificate)
            .ssl_client_key(&identity.key);
    }
    match &address.socket {
        Some(socket) => options.socket(socket),
        None => options.host(&address.host).port(address.port),
    }
}

/// Why another reader of this MySQL cannot use it, and what to do about it.
pub(crate) fn explain_mysql(address: &MysqlAddress, error: &sqlx::Error) -> String {
    let target = Target::Mysql(mysql_options(address));
    refused::explain(&target, &address.files, error)
}

/// `42P01` of PostgreSQL, `42S02` of MySQL and MariaDB.
pub(crate) fn is_no_table(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("42P01" | "42S02"))
}

fn dialect(database: Database, root: &str) -> Dialect {
    Dialect {
        database,
        prefix: format!("{root}_"),
    }
}
