//! The rules of a source on a real one: what the simulation's model of a source is held to as well (the test
//! `source_rules` of `cdc-core`).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use async_trait::async_trait;
use cdc_core::catalog::Catalog;
use cdc_core::catalog::etcd::{EtcdCatalog, EtcdConfig};
use cdc_core::ids::{CollectionId, PChannel};
use cdc_core::source::rules::course::{CHANNELS, course};
use cdc_core::source::rules::{Act, Answer, Name, Origin, judge, unnoticed};
use cdc_core::source::{LogSource, QueueConfig, open_source};
use cdc_core::tso::Tso;
use cdc_lab::client::Client;
use cdc_lab::servers::{Milvus, Mq, Spec};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{say, tests};
use crate::lab::{folder, progress};
use crate::plain::Plain;

tests![Alone: on_one_source];

const TIMEOUT: Duration = Duration::from_secs(5);
/// What a message may take: so that some hundred rows are several of them.
const MAX_MESSAGE: &str = "4096";
/// How much is done that no rule asks for.
const ROUNDS: usize = 120;

struct Real {
    name: String,
    client: Client,
    log: Arc<dyn LogSource>,
    catalog: Arc<dyn Catalog>,
}

impl Real {
    async fn id(&self, of: &Name) -> Result<CollectionId> {
        let found = self.client.describe(&of.db, &of.name).await?;
        Ok(CollectionId(found.collection_id))
    }

    async fn carry_out(&self, act: &Act) -> Result<Answer> {
        let client = &self.client;
        let is_new = matches!(act, Act::Create { .. } | Act::Write { .. });
        let known = act.of().filter(|_| !is_new);
        let mut answer = Answer::default();
        if let Some(of) = known {
            answer.collection = Some(self.id(of).await?);
        }
        match act {
            Act::CreateDatabase(name) => client.create_database(name).await?,
            Act::DropDatabase(name) => client.drop_database(name).await?,
            Act::Create { name, shards } => {
                let before = self.id(name).await.ok();
                let shards = i32::try_from(*shards)?;
                Plain::bare(client, &name.db, &name.name, shards).await?;
                answer.collection = Some(self.id(name).await?);
                // One of the same form is taken for made.
                ensure!(before != answer.collection, "it is there already");
            }
            Act::Drop(of) => client.drop_collection(&of.db, &of.name).await?,
            Act::CreatePartition { of, partition } => {
                client.create_partition(&of.db, &of.name, partition).await?;
            }
            Act::DropPartition { of, partition } => {
                client.drop_partition(&of.db, &of.name, partition).await?;
            }
            Act::Write {
                of,
                partition,
                write,
                keys,
            } => {
                let partition = partition.as_deref().unwrap_or_default();
                let first = keys.first().copied().unwrap_or_default();
                let mut random = StdRng::seed_from_u64(first.unsigned_abs());
                let mut rows = Plain::known(&of.name);
                rows.is_named(&of.db, &of.name);
                let ts = rows.request(client, partition, *write, keys, &mut random);
                answer.ts = Tso(ts.await?);
            }
            Act::Index(of) => rows_of(of).index(client).await?,
            Act::DropIndex(of) => {
                client.drop_index(&of.db, &of.name, "vec", "by_vec").await?;
            }
            Act::Load(of) => rows_of(of).load(client).await?,
            Act::Release(of) => client.release(&of.db, &of.name).await?,
            Act::Rename { of, to } => {
                let to = (to.db.as_str(), to.name.as_str());
                client.rename_collection(&of.db, &of.name, to).await?;
            }
            Act::Alias { of, alias } => {
                if let Err(e) = client.create_alias(&of.db, alias, &of.name).await {
                    let altered = client.alter_alias(&of.db, alias, &of.name).await;
                    ensure!(altered.is_ok(), "{e:#}; {altered:?}");
                }
            }
            Act::DropAlias(alias) => client.drop_alias(&alias.db, &alias.name).await?,
        }
        Ok(answer)
    }
}

fn rows_of(of: &Name) -> Plain {
    let mut rows = Plain::known(&of.name);
    rows.is_named(&of.db, &of.name);
    rows
}

#[async_trait]
impl Origin for Real {
    fn log(&self) -> Arc<dyn LogSource> {
        self.log.clone()
    }

    fn catalog(&self) -> Arc<dyn Catalog> {
        self.catalog.clone()
    }

    fn channels(&self) -> Vec<PChannel> {
        let channel = |i| PChannel::new(format!("{}-rootcoord-dml_{i}", self.name));
        (0..CHANNELS).map(channel).collect()
    }

    async fn act(&self, act: &Act) -> Result<Answer, String> {
        self.carry_out(act).await.map_err(|e| format!("{e:#}"))
    }

    async fn pass(&self) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn on_one_source(random: &mut StdRng) -> Result<()> {
    let dir = folder()?;
    let name = "source";
    let spec = Spec::source(name, Mq::Natsmq, &dir)
        .set("rootCoord.dmlChannelNum", &CHANNELS.to_string())
        .set("pulsar.maxMessageSize", MAX_MESSAGE);
    let mut server = Milvus::start(spec, &progress()).await?;
    let etcd = EtcdConfig {
        endpoints: vec![server.etcd()],
        root_path: server.root_path().to_owned(),
        ..EtcdConfig::default()
    };
    let queue = QueueConfig::Natsmq {
        address: server.nats(),
        connect_timeout: TIMEOUT,
    };
    let real = Real {
        name: name.to_owned(),
        client: Client::connect("source", &server.uri()).await?,
        log: open_source(queue).await?,
        catalog: Arc::new(EtcdCatalog::connect(etcd)),
    };
    let trace = course(&real, random.random(), ROUNDS).await?;
    let mut broken = Vec::new();
    for (rule, outcome) in judge(&trace) {
        match outcome {
            Ok(seen) => say(&format!("{seen:6}  {rule:?}")),
            Err(e) => {
                say(&format!("IS BROKEN: {rule:?}: {e}"));
                broken.push(format!("{rule:?}: {e}"));
            }
        }
    }
    for (what, seen) in trace.notes() {
        say(&format!("{seen:6}  {what}"));
    }
    ensure!(broken.is_empty(), "the server does otherwise: {broken:#?}");
    let unnoticed = unnoticed(&trace);
    ensure!(
        unnoticed.is_empty(),
        "of these a break is not noticed: {unnoticed:?}"
    );
    server.kill9().await?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
