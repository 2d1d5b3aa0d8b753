//! The day the source is gone: from a standby to a Milvus of its own.
//!
//! A standby writes no time ticks and takes no rows from clients: `common.ttMsgEnabled` is false there. With `true` its
//! own root coordinator ticks, with timestamps of its own oracle. Two things have to hold before: nothing of ours can
//! arrive any more, and the oracle is past everything ever sent (F of every lane), so that its first own tick is above
//! each of them. Then the rows that were sent behind the last tick are shown with that first tick, too.

use std::time::Duration;

use etcd_client::GetOptions;

use crate::catalog::CatalogError;
use crate::catalog::etcd::client::Link;
use crate::catalog::etcd::{EtcdConfig, roots};
use crate::engine::target_problem;
use crate::error::{ErrorClass, Problem};
use crate::target::grpc::plain::PlainTarget;
use crate::target::{Loaded, TargetError};

/// What is tried on a promoted target is a collection of this name in the database `default`; it is dropped again.
pub const SCRATCH: &str = "milvus_cdc_promote_check";
/// By its description a scratch collection of an earlier try is told from somebody's own of that name.
const MADE_BY: &str = "made by milvus-cdc promote to try inserts; can be dropped";
/// How long the scratch collection may take to load.
const LOAD: Duration = Duration::from_secs(60);

/// The key of a dynamic setting below the root path. A Milvus reads these from its etcd every 5 s, and they win over its
/// milvus.yaml, which it reads as often. Tried on 2.3.5: in effect after at most 5 s without a restart; so after a restart
/// with `false` in milvus.yaml; and without effect again at most 5 s after the key is deleted. Not where the etcd is
/// embedded in Milvus (`etcd.use.embed`): settings are looked for before that runs (`initConfigsFromRemote`), and never
/// again. Nor after one reading that failed (etcd silent for 3 s): 2.3.5 then stops reading until it is restarted. The
/// file is read in both cases.
pub const SWITCH: &str = "config/common/ttMsgEnabled";

/// Looks whether there is a Milvus below the root path, before anything is done that has no way back.
///
/// # Errors
/// etcd does not answer or refuses, or there is no Milvus; names what is there instead.
pub async fn check_switch(etcd: &EtcdConfig) -> Result<(), Problem> {
    let link = Link::new(etcd.clone());
    let meta = etcd.meta_prefix();
    let options = GetOptions::new()
        .with_prefix()
        .with_limit(1)
        .with_keys_only();
    let there = link
        .get(format!("{meta}root-coord/").as_bytes(), options)
        .await
        .map_err(|e| etcd_problem(&e))?;
    if there.kvs().is_empty() {
        let found = match roots(etcd).await {
            Ok(found) if found.is_empty() => "no Milvus at all is in it".to_owned(),
            Ok(found) => {
                let found: Vec<String> = found.into_iter().map(|(root, _)| root).collect();
                format!("found instead: {}", found.join(", "))
            }
            Err(_) => "what else is there cannot be listed".to_owned(),
        };
        return Err(Problem::new(
            ErrorClass::Configuration,
            format!(
                "the target's etcd at {} has no Milvus below {meta}; {found}",
                etcd.shown_endpoints()
            ),
            "give the etcd and the etcd.rootPath of the target (by-dev by default)",
        ));
    }
    Ok(())
}

/// Switches a target's own ticks on, through its etcd. Can be repeated.
///
/// # Errors
/// As [`check_switch`].
pub async fn switch_on(etcd: &EtcdConfig) -> Result<(), Problem> {
    check_switch(etcd).await?;
    let link = Link::new(etcd.clone());
    let key = match etcd.root_path.trim_matches('/') {
        "" => SWITCH.to_owned(),
        root => format!("{root}/{SWITCH}"),
    };
    link.call(|mut kv| {
        let key = key.clone();
        async move { kv.put(key, "true", None).await }
    })
    .await
    .map_err(|e| etcd_problem(&e))?;
    Ok(())
}

fn etcd_problem(error: &CatalogError) -> Problem {
    let problem = error.problem();
    let message = problem.message.replace("source etcd", "the target's etcd");
    Problem::new(
        problem.class,
        message.replace("sourceConfig.etcd.", "target_etcd."),
        "check the address and the login of the target's etcd, or switch it on by hand",
    )
}

/// What was tried on a promoted target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TriedOut {
    /// Collections that were read with Strong consistency.
    pub read: usize,
    /// Their rows.
    pub rows: u64,
    /// Collections that are not loaded.
    pub not_loaded: usize,
}

/// Reads these collections (database, name) with Strong consistency, which shows that the target's own ticks arrive on
/// their channels, and inserts into a scratch collection. Can be repeated.
///
/// # Errors
/// What does not work yet.
pub async fn try_out(
    target: &PlainTarget,
    collections: &[(String, String)],
) -> Result<TriedOut, Problem> {
    let failed = |e: TargetError| target_problem(&e);
    let mut tried = TriedOut::default();
    for (database, name) in collections {
        if target
            .describe(database, name)
            .await
            .map_err(failed)?
            .is_none()
        {
            continue;
        }
        match target.loaded(database, name).await.map_err(failed)? {
            Loaded::No => tried.not_loaded += 1,
            Loaded::Loading => {
                return Err(Problem::new(
                    ErrorClass::Transient,
                    format!("{database}.{name} is being loaded"),
                    "",
                ));
            }
            Loaded::Yes => {
                tried.rows += target.strong_count(database, name).await.map_err(failed)?;
                tried.read += 1;
            }
        }
    }
    scratch(target).await?;
    Ok(tried)
}

async fn scratch(target: &PlainTarget) -> Result<(), Problem> {
    let failed = |e: TargetError| target_problem(&e);
    const DB: &str = "default";
    match target.describe(DB, SCRATCH).await.map_err(failed)? {
        Some(there) if there.schema.description != MADE_BY => {
            return Err(Problem::new(
                ErrorClass::Configuration,
                format!("there is a collection {DB}.{SCRATCH} on the target that is not ours"),
                "rename it: inserts are tried under that name",
            ));
        }
        Some(_) => target.drop_collection(DB, SCRATCH).await.map_err(failed)?,
        None => {}
    }
    target
        .create_scratch(SCRATCH, MADE_BY)
        .await
        .map_err(failed)?;
    let load = async {
        while target.loaded(DB, SCRATCH).await? != Loaded::Yes {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, TargetError>(())
    };
    tokio::time::timeout(LOAD, load)
        .await
        .map_err(|_| {
            Problem::new(
                ErrorClass::Transient,
                format!("{DB}.{SCRATCH} is not loaded within {} s", LOAD.as_secs()),
                "look at the target's query node",
            )
        })?
        .map_err(failed)?;
    target.insert_into_scratch(SCRATCH).await.map_err(failed)?;
    let rows = target.strong_count(DB, SCRATCH).await.map_err(failed)?;
    if rows != 1 {
        return Err(Problem::new(
            ErrorClass::Transient,
            format!("a row was inserted into {DB}.{SCRATCH}, and {rows} are read"),
            "",
        ));
    }
    target.drop_collection(DB, SCRATCH).await.map_err(failed)
}
