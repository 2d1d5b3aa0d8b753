//! Opening the file: whose it is, which version it has, and bringing it up to ours.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};

use super::header;

/// `PRAGMA application_id`: "MCDC".
pub(super) const APPLICATION: i64 = 0x4d43_4443;

/// The steps from an empty file to the newest schema; the version is their number. Steps are only ever added.
///
/// Timestamps of Milvus are 20 digits with leading zeros: SQLite's integers have a sign, and text of one length orders
/// as the numbers do.
const STEPS: &[&str] = &["
    CREATE TABLE tasks (id TEXT PRIMARY KEY, spec TEXT NOT NULL, desired TEXT NOT NULL,
        created INTEGER NOT NULL, updated INTEGER NOT NULL) STRICT;
    CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, at INTEGER NOT NULL,
        kind TEXT NOT NULL, text TEXT NOT NULL) STRICT;
    CREATE INDEX events_of_task ON events (task, seq);
    CREATE TABLE channels (task TEXT NOT NULL, channel TEXT NOT NULL, position TEXT NOT NULL, after INTEGER NOT NULL,
        applied TEXT NOT NULL, sent TEXT NOT NULL, PRIMARY KEY (task, channel)) STRICT, WITHOUT ROWID;
    CREATE TABLE detached (task TEXT NOT NULL, channel TEXT NOT NULL, collection INTEGER NOT NULL,
        position TEXT NOT NULL, after INTEGER NOT NULL, applied TEXT NOT NULL, sent TEXT NOT NULL,
        PRIMARY KEY (task, channel, collection)) STRICT, WITHOUT ROWID;
    CREATE TABLE replicate (task TEXT PRIMARY KEY, position TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE collections (task TEXT NOT NULL, source INTEGER NOT NULL, object TEXT NOT NULL,
        PRIMARY KEY (task, source)) STRICT, WITHOUT ROWID;
    CREATE TABLE partitions (task TEXT NOT NULL, source INTEGER NOT NULL, object TEXT NOT NULL,
        PRIMARY KEY (task, source)) STRICT, WITHOUT ROWID;
    CREATE TABLE notes (task TEXT NOT NULL, collection INTEGER NOT NULL, note TEXT NOT NULL,
        PRIMARY KEY (task, collection)) STRICT, WITHOUT ROWID;
    CREATE TABLE floors (target TEXT NOT NULL, channel TEXT NOT NULL, floor TEXT NOT NULL,
        PRIMARY KEY (target, channel)) STRICT, WITHOUT ROWID;
", "
    CREATE TABLE quarantine (task TEXT NOT NULL, id TEXT NOT NULL, record TEXT NOT NULL,
        PRIMARY KEY (task, id)) STRICT, WITHOUT ROWID;
    CREATE TABLE messages (task TEXT NOT NULL, message TEXT NOT NULL, part INTEGER NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (task, message, part)) STRICT;
"];

/// The schema this program writes.
pub(crate) const VERSION: i64 = STEPS.len() as i64;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("store {path}: {cause}")]
    Io {
        path: PathBuf,
        cause: std::io::Error,
    },
    #[error(
        "store {path} is no store of milvus-cdc ({what}); set metaStoreConfig.sqlite.path to another file"
    )]
    NotOurs { path: PathBuf, what: String },
    #[error(
        "store {path} has schema version {found}, this program knows up to {VERSION}: it was written by a newer milvus-cdc; use that one"
    )]
    Newer { path: PathBuf, found: i64 },
    #[error(
        "store {path} is in use by another milvus-cdc; stop that one or set metaStoreConfig.sqlite.path to another file"
    )]
    InUse { path: PathBuf },
    #[error("store {path}: {cause}")]
    Sqlite { path: PathBuf, cause: sqlx::Error },
}

/// How every connection is opened.
pub(crate) fn options(path: &Path) -> SqliteConnectOptions {
    set_up_options(path).journal_mode(SqliteJournalMode::Wal)
}

/// In the journal mode the file has.
fn set_up_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging()
}

/// Checks whose the file is, makes it if it is missing, locks it against a second process, brings it up to [`VERSION`].
/// The lock lasts as long as the file that is given back.
pub(crate) async fn prepare(path: &Path) -> Result<(SqliteConnection, File), OpenError> {
    // Before anything is touched.
    header::check(path)?;
    let lock = open_files(path)?;
    let sqlite = |cause| OpenError::Sqlite {
        path: path.to_owned(),
        cause,
    };
    // Not in WAL mode yet: the mark that says whose it is has to be in the file itself, see `header`.
    let mut connection = set_up_options(path)
        .connect()
        .await
        .map_err(|cause| match &cause {
            sqlx::Error::Database(e) if e.message().contains("not a database") => {
                OpenError::NotOurs {
                    path: path.to_owned(),
                    what: e.message().to_owned(),
                }
            }
            _ => sqlite(cause),
        })?;
    let application = pragma(&mut connection, "PRAGMA application_id")
        .await
        .map_err(sqlite)?;
    let found = pragma(&mut connection, "PRAGMA user_version")
        .await
        .map_err(sqlite)?;
    let tables = pragma(&mut connection, "SELECT count(*) FROM sqlite_schema")
        .await
        .map_err(sqlite)?;
    if application != APPLICATION && (application != 0 || found != 0 || tables != 0) {
        let what = format!(
            "a SQLite file of something else: application id {application}, {tables} tables"
        );
        return Err(OpenError::NotOurs {
            path: path.to_owned(),
            what,
        });
    }
    if found > VERSION {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
        });
    }
    let missing = STEPS.iter().skip(usize::try_from(found).unwrap_or(0));
    let mut transaction = connection.begin().await.map_err(sqlite)?;
    for step in missing {
        sqlx::raw_sql(*step)
            .execute(&mut *transaction)
            .await
            .map_err(sqlite)?;
    }
    // Pragmas take no bound values; both are constants.
    let mark = format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};");
    sqlx::raw_sql(sqlx::AssertSqlSafe(mark))
        .execute(&mut *transaction)
        .await
        .map_err(sqlite)?;
    transaction.commit().await.map_err(sqlite)?;
    sqlx::raw_sql("PRAGMA journal_mode = WAL")
        .execute(&mut connection)
        .await
        .map_err(sqlite)?;
    Ok((connection, lock))
}

async fn pragma(connection: &mut SqliteConnection, sql: &'static str) -> Result<i64, sqlx::Error> {
    sqlx::query(sql).fetch_one(connection).await?.try_get(0)
}

/// The directories, the file with mode 0600 (it holds tokens; SQLite gives its side files the same), the lock.
fn open_files(path: &Path) -> Result<File, OpenError> {
    let io = |cause| OpenError::Io {
        path: path.to_owned(),
        cause,
    };
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(io)?;
    }
    let open = |path: &Path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
    };
    let file = open(path).map_err(io)?;
    file.set_permissions(Permissions::from_mode(0o600))
        .map_err(io)?;
    let lock = open(&beside(path, ".lock")).map_err(io)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(cause)) => Err(io(cause)),
    }
}

/// The path with something added to its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
