//! The rules of a standby on a real one: what the in-memory twin of `cdc-core` is held to as well (its test `rules`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use cdc_core::ids::PChannel;
use cdc_core::secret::Secret;
use cdc_core::target::contract::{Broken, Needs, Outcome, Rule, Seen, Standby, needs, scenario};
use cdc_core::target::grpc::GrpcConnector;
use cdc_core::target::{Target, TargetConnector, TargetError, carried_out_within};
use cdc_core::task::TargetSpec;
use cdc_core::tso::Tso;
use cdc_lab::client::{Client, Query, Value};
use cdc_lab::link::{Link, Way};
use cdc_lab::servers::{Milvus, Mq, Spec};
use futures::StreamExt;
use milvus::proto::common::{ConsistencyLevel, MsgBase, MsgType};
use milvus::proto::msg::TimeTickMsg;
use prost::Message;
use rand::rngs::StdRng;
use tokio::sync::{Barrier, Mutex};

use crate::harness::{say, tests};
use crate::lab::{DB, folder, progress};

tests![Alone: on_one_standby, over_a_restart_and_a_death];

/// Each collection has channels of its own.
const CHANNELS: &str = "64";
/// At once.
const SCENARIOS: usize = 4;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How late a call of a dead sender arrives.
const LATE: Duration = Duration::from_secs(1);
/// What the queue of the second server takes in one message: less than what a call may have.
const MAX_PAYLOAD: usize = 256 << 10;
/// How long a target may take to die.
const DEATH: Duration = Duration::from_secs(60);

struct Real {
    server: Mutex<Milvus>,
    target: Arc<dyn Target>,
    client: Client,
    /// To the same server.
    link: Link,
    by_link: Arc<dyn Target>,
    /// For those that need a restart.
    together: Barrier,
    progress: cdc_lab::progress::Progress,
}

async fn connect(uri: &str) -> Result<Arc<dyn Target>> {
    let spec = TargetSpec {
        uri: uri.to_owned(),
        token: Secret::new(""),
        tls: Default::default(),
        connect_timeout: CALL_TIMEOUT,
        call_timeout: CALL_TIMEOUT,
        mode: cdc_core::task::Mode::Replicate,
    };
    Ok(GrpcConnector.connect(&spec).await?)
}

impl Real {
    /// `restarts`: how many scenarios wait for one.
    async fn start(spec: Spec, restarts: usize) -> Result<Self> {
        let progress = progress();
        let spec = spec.set("rootCoord.dmlChannelNum", CHANNELS);
        let server = Milvus::start(spec, &progress).await?;
        let uri = server.uri();
        let link = Link::start(&uri).await?;
        Ok(Self {
            target: connect(&uri).await?,
            client: Client::connect("target", &uri).await?,
            by_link: connect(&format!("http://{}", link.address())).await?,
            link,
            server: Mutex::new(server),
            together: Barrier::new(restarts.max(1)),
            progress,
        })
    }

    async fn tried(&self, rule: Rule) -> Result<()> {
        let begun = Instant::now();
        let outcome = scenario(rule, self).await;
        let took = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                say(&format!("{took:6.1} s  {rule:?}"));
                Ok(())
            }
            Err(e) => {
                say(&format!("{took:6.1} s  {rule:?} IS BROKEN: {e}"));
                Err(e).with_context(|| format!("{rule:?}"))
            }
        }
    }

    /// The rules that need one thing after those that need another, so many of each at once. All are tried.
    async fn all(&self, groups: &[(Needs, usize)]) -> Result<()> {
        let mut broken = Vec::new();
        for (needs, at_once) in groups {
            let all = those_that_need(*needs).into_iter();
            let mut outcomes =
                futures::stream::iter(all.map(|rule| self.tried(rule))).buffer_unordered(*at_once);
            while let Some(outcome) = outcomes.next().await {
                broken.extend(outcome.err());
            }
        }
        ensure!(broken.is_empty(), "the server does otherwise: {broken:#?}");
        Ok(())
    }
}

fn broken(error: anyhow::Error) -> Broken {
    Broken(format!("{error:#}"))
}

#[async_trait]
impl Standby for Real {
    fn target(&self) -> Arc<dyn Target> {
        self.target.clone()
    }

    async fn read(&self, name: &str) -> Outcome<Seen> {
        let client = self.client.clone().with_deadline(CALL_TIMEOUT);
        let output = ["pk".to_owned(), "version".to_owned()];
        let query = Query {
            db: DB,
            collection: name,
            partitions: &[],
            expr: "pk >= 0",
            output: &output,
            // No wait for a tick.
            consistency: ConsistencyLevel::Eventually,
        };
        let read = async {
            let rows = client.query(&query).await?;
            let count = client
                .count(DB, name, &[], ConsistencyLevel::Eventually)
                .await?;
            let number = |value: Option<&Value>| match value {
                Some(Value::Int(n)) => Ok(*n),
                other => bail!("{other:?} is no number"),
            };
            let mut rows = rows
                .iter()
                .map(|row| Ok((number(row.get("pk"))?, number(row.get("version"))?)))
                .collect::<Result<Vec<_>>>()?;
            rows.sort_unstable();
            let count = usize::try_from(count)?;
            anyhow::Ok(Seen { count, rows })
        };
        read.await.map_err(broken)
    }

    async fn names_segments(&self, name: &str) -> Outcome<bool> {
        let segments = self.client.persistent_segments(DB, name).await;
        Ok(!segments.map_err(broken)?.is_empty())
    }

    /// With a message between the two that the queue does not take.
    async fn cut_short(
        &self,
        channel: &PChannel,
        first: Vec<Bytes>,
        rest: Vec<Bytes>,
        end: Tso,
    ) -> Outcome<TargetError> {
        let ballast = ("ballast".to_owned(), "x".repeat(2 * MAX_PAYLOAD));
        let too_large = TimeTickMsg {
            base: Some(MsgBase {
                properties: [ballast].into(),
                ..MsgBase::new(MsgType::TimeTick)
            }),
        };
        let too_large = Bytes::from(too_large.encode_to_vec());
        let msgs = [first, vec![too_large], rest].concat();
        match self
            .target
            .replicate(
                channel,
                msgs.into_iter().map(Into::into).collect(),
                end,
                end,
            )
            .await
        {
            Err(e) => Ok(e),
            Ok(()) => Err(Broken("its queue takes what is too large".to_owned())),
        }
    }

    async fn send_and_die(
        &self,
        channel: &PChannel,
        msgs: Vec<Bytes>,
        end: Tso,
    ) -> Outcome<Duration> {
        self.link.fault(Way::Delay(LATE), CALL_TIMEOUT);
        let call = self.by_link.replicate(
            channel,
            msgs.into_iter().map(Into::into).collect(),
            end,
            end,
        );
        // Long enough to leave, too short to arrive.
        match tokio::time::timeout(LATE / 2, call).await {
            Err(_) => Ok(carried_out_within(CALL_TIMEOUT)),
            Ok(answer) => Err(Broken(format!("it was answered: {answer:?}"))),
        }
    }

    async fn restart(&self) -> Outcome {
        if self.together.wait().await.is_leader() {
            let mut server = self.server.lock().await;
            server.kill9().await.map_err(broken)?;
            server.restart(&self.progress).await.map_err(broken)?;
        }
        self.together.wait().await;
        Ok(())
    }

    async fn dies(&self) -> bool {
        let end = Instant::now() + DEATH;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.server.lock().await.ended() {
                say(&format!("it ended with {status}"));
                return true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        false
    }
}

fn those_that_need(wanted: Needs) -> Vec<Rule> {
    let all = Rule::ALL.iter().copied();
    all.filter(|rule| needs(*rule) == wanted).collect()
}

async fn on_one_standby(_: &mut StdRng) -> Result<()> {
    let dir = folder()?;
    let real = Real::start(Spec::standby("target", dir.join("target")), 0).await?;
    real.all(&[(Needs::Nothing, SCENARIOS), (Needs::Quiet, 1)])
        .await?;
    real.server.lock().await.kill9().await?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

async fn over_a_restart_and_a_death(_: &mut StdRng) -> Result<()> {
    let dir = folder()?;
    let mut spec = Spec::standby("target", dir.join("target"))
        .set("natsmq.server.maxPayload", &MAX_PAYLOAD.to_string());
    spec.mq = Mq::Natsmq;
    let at_once = those_that_need(Needs::Restart).len();
    let real = Real::start(spec, at_once).await?;
    real.all(&[
        (Needs::CutShort, 1),
        (Needs::Restart, at_once),
        (Needs::Death, 1),
    ])
    .await?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
