//! Reads the store of a Go server. Writes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use sqlx::mysql::MySqlConnection;
use sqlx::{Connection, Row};

use super::kept::{Positions, TaskInfo, Unread, join, parse};
use crate::store::etcd::read_below;
use crate::store::open::{MysqlAddress, StoreConfig};
use crate::store::{explain_mysql, is_no_table, mysql_options};

const DEADLINE: Duration = Duration::from_secs(15);

/// All that a Go server keeps, at one instant.
pub(crate) struct Kept {
    /// Every task, by its key.
    pub(crate) tasks: Vec<Result<TaskInfo, Unread>>,
    pub(crate) positions: Vec<Positions>,
    /// Positions that cannot be read.
    pub(crate) unread: Vec<Unread>,
    /// As it is stored. A server that runs changes it several times a second.
    raw: BTreeMap<String, Vec<u8>>,
}

impl Kept {
    /// # Errors
    /// It is in no store of a Go server, or that cannot be read.
    pub(crate) async fn read(store: &StoreConfig) -> anyhow::Result<Self> {
        let read = async {
            match store {
                StoreConfig::Etcd(server) => {
                    let of = |name| format!("{}/", join(&server.root_path, name));
                    let (tasks, positions) = (of("task_info"), of("task_position"));
                    let [tasks, positions] = read_below(server, [&tasks, &positions]).await?;
                    anyhow::Ok(Self::of_etcd(tasks, positions))
                }
                StoreConfig::Mysql { address, root } => Self::of_mysql(address, root).await,
                StoreConfig::Sqlite(_) | StoreConfig::Postgres { .. } => bail!(
                    "a Go server keeps its tasks in etcd or MySQL, metaStoreConfig names {}: give that server's own cdc.yaml with --from",
                    store.shown()
                ),
            }
        };
        tokio::time::timeout(DEADLINE, read)
            .await
            .with_context(|| format!("no answer within {} s", DEADLINE.as_secs()))
            .and_then(|read| read)
            .with_context(|| format!("the Go server's store, {}", store.shown()))
    }

    /// Whether somebody has written since.
    pub(crate) fn differs_from(&self, earlier: &Self) -> bool {
        self.raw != earlier.raw
    }

    fn of_etcd(tasks: BTreeMap<String, Vec<u8>>, positions: BTreeMap<String, Vec<u8>>) -> Self {
        let mut kept = Self {
            tasks: tasks.iter().map(|(k, v)| parse(k, v)).collect(),
            positions: Vec::new(),
            unread: Vec::new(),
            raw: tasks,
        };
        for (key, value) in positions {
            match parse(&key, &value) {
                Ok(found) => kept.positions.push(found),
                Err(unread) => kept.unread.push(unread),
            }
            kept.raw.insert(key, value);
        }
        kept
    }

    async fn of_mysql(address: &MysqlAddress, root: &str) -> anyhow::Result<Self> {
        let mut c = MySqlConnection::connect_with(&mysql_options(address))
            .await
            .map_err(|error| anyhow::anyhow!(explain_mysql(address, &error)))?;
        let mut kept = Self {
            tasks: Vec::new(),
            positions: Vec::new(),
            unread: Vec::new(),
            raw: BTreeMap::new(),
        };
        // Both tables as of one instant. JSON comes as text from MySQL and MariaDB alike only if it is asked for.
        sqlx::query("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
            .execute(&mut c)
            .await?;
        let tasks = sqlx::query(
            "SELECT task_info_key, CAST(task_info_value AS CHAR) FROM task_info ORDER BY task_info_key",
        );
        let prefix = format!("{}/", join(root, "task_info"));
        for row in rows(tasks.fetch_all(&mut c).await)? {
            let (key, value): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            if key.starts_with(&prefix) {
                kept.tasks.push(parse(&key, value.as_bytes()));
                kept.raw.insert(key, value.into_bytes());
            }
        }
        let positions = sqlx::query(
            "SELECT task_position_key, task_id, collection_id, collection_name, CAST(task_position_value AS CHAR) \
             FROM task_position ORDER BY task_position_key",
        );
        let prefix = format!("{}/", join(root, "task_position"));
        for row in rows(positions.fetch_all(&mut c).await)? {
            let (key, value): (String, String) = (row.try_get(0)?, row.try_get(4)?);
            if !key.starts_with(&prefix) {
                continue;
            }
            match parse::<Option<_>>(&key, value.as_bytes()) {
                Ok(found) => kept.positions.push(Positions {
                    task_id: row.try_get(1)?,
                    collection_id: row.try_get(2)?,
                    collection_name: row.try_get(3)?,
                    positions: found.unwrap_or_default(),
                }),
                Err(unread) => kept.unread.push(unread),
            }
            kept.raw.insert(key, value.into_bytes());
        }
        c.close().await?;
        Ok(kept)
    }
}

/// A table that a Go server has never made is empty.
fn rows<T>(found: Result<Vec<T>, sqlx::Error>) -> Result<Vec<T>, sqlx::Error> {
    match found {
        Err(error) if is_no_table(&error) => Ok(Vec::new()),
        found => found,
    }
}
