//! Properties that a source of 2.3.5 cannot have by itself: written into its etcd, in the form of later versions.

use anyhow::{Context, Result, ensure};
use cdc_core::catalog::proto::{CollectionInfo, DatabaseInfo, FieldIndex};
use cdc_lab::cdc::Cdc;
use cdc_lab::client::Client;
use cdc_lab::servers::lite::Lite;
use cdc_lab::servers::{Milvus, Mq, Spec};
use etcd_client::{Client as Etcd, GetOptions};
use milvus::proto::common::{ConsistencyLevel, KeyValuePair};
use milvus::proto::milvus::AlterDatabaseRequest;
use prost::Message;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::harness::{say, tests};
use crate::lab::{folder, progress, until};
use crate::plain::Plain;

tests![Alone: what_later_sources_have];

const SHOP: &str = "shop";
const MOST: (&str, &str) = ("database.max.collections", "7");
const TTL: (&str, &str) = ("collection.ttl.seconds", "864000");
const MMAP: (&str, &str) = ("mmap.enabled", "true");

fn pairs(of: &[(&str, &str)]) -> Vec<KeyValuePair> {
    let pair = |(key, value): &(&str, &str)| KeyValuePair {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    of.iter().map(pair).collect()
}

/// Changes the one value below a prefix that is of this. Its server does not read it again while it runs.
async fn edit<M: Message + Default>(
    source: &Milvus,
    below: &str,
    is: impl Fn(&M) -> bool,
    change: impl FnOnce(&mut M),
) -> Result<()> {
    let mut etcd = Etcd::connect([source.etcd()], None).await?;
    let prefix = format!("{}/meta/{below}/", source.root_path());
    let options = GetOptions::new().with_prefix();
    let found = etcd.get(prefix.as_str(), Some(options)).await?;
    for entry in found.kvs() {
        let Ok(mut value) = M::decode(entry.value()) else {
            continue;
        };
        if is(&value) {
            change(&mut value);
            etcd.put(entry.key(), value.encode_to_vec(), None).await?;
            return Ok(());
        }
    }
    anyhow::bail!("nothing of this below {prefix}")
}

/// What the source's database, collection and index have from now on.
async fn alter(
    source: &Milvus,
    database: &[(&str, &str)],
    collection: &[(&str, &str)],
    index: &[(&str, &str)],
) -> Result<()> {
    let of = pairs(database);
    let is = |info: &DatabaseInfo| info.name == SHOP;
    let below = "root-coord/database/db-info";
    edit(source, below, is, |info| info.properties = of).await?;
    let of = pairs(collection);
    let is = |info: &CollectionInfo| info.schema.as_ref().is_some_and(|s| s.name == "a");
    let below = "root-coord/database/collection-info";
    edit(source, below, is, |info| info.properties = of).await?;
    let of = pairs(index);
    let is = |info: &FieldIndex| info.index_info.is_some() && !info.deleted;
    edit(source, "field-index", is, |info| {
        if let Some(info) = &mut info.index_info {
            for list in [&mut info.user_index_params, &mut info.index_params] {
                list.retain(|p| p.key != MMAP.0);
                list.extend(of.clone());
            }
        }
    })
    .await
}

async fn task(cdc: &Cdc, id: &str) -> Result<Value> {
    let (status, task) = cdc.rest(&format!("/api/v1/tasks/{id}"), None).await?;
    ensure!(status == 200, "{status} {task}");
    Ok(task)
}

/// Waits until a task says this of its databases, and this of its collection.
async fn says(cdc: &Cdc, id: &str, of_databases: &str, of_collection: &str) -> Result<()> {
    let mut said = Value::Null;
    let waited = until("it is said", async || {
        let path = format!("/api/v1/tasks/{id}/collections");
        let (_, collections) = cdc.rest(&path, None).await?;
        said = json!([task(cdc, id).await?, collections]);
        let [problems, last] = [&said[0], &said[1]].map(Value::to_string);
        let of_databases = match of_databases {
            "" => !problems.contains("properties of database"),
            said => problems.contains(said),
        };
        Ok(of_databases && last.contains(of_collection))
    });
    waited
        .await
        .with_context(|| format!("{id}: {of_databases:?}, {of_collection:?}: {said}"))
}

async fn has(
    client: &Client,
    database: &[(&str, &str)],
    collection: &[(&str, &str)],
) -> Result<()> {
    let mut there = String::new();
    let waited = until("the properties are there", async || {
        let of_database = client.database_properties(SHOP).await?;
        let of_collection = client.describe(SHOP, "a").await?.properties;
        there = format!("{of_database:?} {of_collection:?}");
        Ok(of_database == pairs(database) && of_collection == pairs(collection))
    });
    waited.await.with_context(|| there)
}

async fn count(client: &Client, rows: usize) -> Result<()> {
    until("the rows are there", async || {
        let strong = ConsistencyLevel::Strong;
        let counted = client.count(SHOP, "a", &[], strong).await;
        Ok(counted.is_ok_and(|counted| counted == rows as u64))
    })
    .await
}

/// To a milvus-lite, which knows properties of databases and alters no index, and to a 2.3.5, which knows neither and takes
/// none of a collection away.
async fn what_later_sources_have(random: &mut StdRng) -> Result<()> {
    let (dir, progress) = (folder()?, progress());
    let source = Spec::source("source", Mq::Natsmq, dir.join("source"));
    let (source, old) = tokio::try_join!(
        Milvus::start(source, &progress),
        Milvus::start(Spec::plain("old", dir.join("old")), &progress),
    )?;
    let lite = Lite::start(dir.join("lite"), &progress).await?;
    let from = Client::connect("source", &source.uri()).await?;
    let to_lite = Client::connect("lite", &lite.uri()).await?;
    let to_old = Client::connect("old", &old.uri()).await?;
    let mut cdc = Cdc::start(&source, dir.join("cdc"), &progress).await?;
    from.create_database(SHOP).await?;
    let mut a = Plain::bare(&from, SHOP, "a", 1).await?;
    // milvus-lite calls every index after its field.
    let flat = [("index_type", "FLAT"), ("metric_type", "L2")];
    let flat = flat.map(|(k, v)| (k.to_owned(), v.to_owned()));
    from.create_index(SHOP, "a", "vec", "vec", &flat).await?;
    a.load(&from).await?;
    a.insert(&from, "", 50, random).await?;
    for (id, uri) in [("lite", lite.uri()), ("old", old.uri())] {
        let task = json!({
            "id": id, "target": {"uri": uri}, "collections": [{"include": "shop.*"}],
        });
        let (status, made) = cdc.rest("/api/v1/tasks", Some(&task)).await?;
        ensure!(status == 201 && made["mode"] == "plain", "{status} {made}");
    }
    for to in [&to_lite, &to_old] {
        count(to, a.keys.len()).await?;
    }
    let others = [("database.resource_groups", "rg1"), ("replicate.id", "x")];
    alter(&source, &[MOST, others[0], others[1]], &[TTL], &[MMAP]).await?;
    has(&to_lite, &[MOST], &[TTL]).await?;
    has(&to_old, &[], &[TTL]).await?;
    let of_index = "properties of index";
    says(&cdc, "lite", "", of_index).await?;
    let of_database =
        "properties of database shop are not as on the source: database.max.collections=7";
    says(&cdc, "old", of_database, of_index).await?;
    a.insert(&from, "", 20, random).await?;
    for to in [&to_lite, &to_old] {
        count(to, a.keys.len()).await?;
    }

    // All are taken away while nobody looks; a person has one of their own.
    cdc.kill9().await?;
    alter(&source, &[others[0]], &[], &[]).await?;
    let own = ("database.diskQuota.mb", "1000");
    let request = AlterDatabaseRequest {
        db_name: SHOP.to_owned(),
        properties: pairs(&[own]),
        ..Default::default()
    };
    let altered = to_lite.raw().alter_database(request).await?.into_inner();
    ensure!(altered.code == 0, "{altered:?}");
    cdc.restart(&progress).await?;
    has(&to_lite, &[own], &[]).await?;
    let of_old = "shop.a are not as on the source: collection.ttl.seconds taken away";
    says(&cdc, "old", "", of_old).await?;
    a.insert(&from, "", 20, random).await?;
    for to in [&to_lite, &to_old] {
        count(to, a.keys.len()).await?;
    }
    has(&to_old, &[], &[TTL]).await?;
    say(&task(&cdc, "old").await?.to_string());
    cdc.kill9().await?;
    drop((source, lite, old));
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
