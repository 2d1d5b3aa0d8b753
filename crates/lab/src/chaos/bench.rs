//! The servers of a run, what breaks between them, and the faults as they are done.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::disk::Disk;
use super::plan::{Chosen, Fault, Kind, Place, Wire};
use super::starts::Starts;
use crate::cdc::{Addresses, Cdc};
use crate::link::{Link, Way};
use crate::progress::Progress;
use crate::proxy::{Faults, Proxy};
use crate::servers::stores::{StoreKind, StoreServer};
use crate::servers::{Milvus, Mq, Spec};

/// For calls to etcd.
const ETCD: Duration = Duration::from_secs(20);
/// Of the calls during [`Kind::LostReplies`].
const LOST: f64 = 0.3;

/// What has happened to it so far.
#[derive(Debug, Default)]
pub(super) struct Happened {
    pub(super) faults: BTreeMap<String, u64>,
    /// Servers that ended although no fault killed them.
    pub(super) ended: Vec<String>,
    pub(super) starts: Starts,
}

/// The servers, with links and a proxy between them and milvus-cdc. Dropping it kills them.
pub(super) struct Bench {
    pub(super) source: Milvus,
    pub(super) target: Milvus,
    pub(super) cdc: Cdc,
    pub(super) task: String,
    pub(super) happened: Happened,
    etcd_url: String,
    /// The source's etcd, where that is a process of its own.
    etcd: Option<StoreServer>,
    to_target: Link,
    to_etcd: Link,
    to_queue: Option<Link>,
    /// Between the link and the target.
    proxy: Proxy,
    progress: Progress,
    /// Last: milvus-cdc has it open.
    disk: Option<Disk>,
}

impl Bench {
    /// What turns out to be impossible on this machine moves from the kinds to what is left out.
    ///
    /// # Errors
    /// A server does not start.
    pub(super) async fn start(
        queue: Mq,
        seed: u64,
        chosen: &mut Chosen,
        dir: &Path,
        progress: &Progress,
    ) -> Result<Self> {
        let disk = possible(chosen, Kind::FullDisk, || Disk::mount(&dir.join("store")));
        let mut spec = Spec::source("source", queue, dir.join("source"));
        let mut etcd = None;
        if chosen.kinds.contains(&Kind::KillEtcd) {
            match StoreServer::start(StoreKind::Etcd).await {
                Ok(server) => {
                    let address = authority(&server.url()).to_owned();
                    spec = spec
                        .set("etcd.use.embed", "false")
                        .set("etcd.endpoints", &address);
                    etcd = Some(server);
                }
                Err(e) => leave_out(chosen, Kind::KillEtcd, &e),
            }
        }
        let (source, target) = tokio::try_join!(
            Milvus::start(spec, progress),
            Milvus::start(Spec::standby("target", dir.join("target")), progress),
        )?;
        let proxy = Proxy::start(&target.uri(), Faults::default(), seed).await?;
        let to_target = Link::start(&proxy.uri()).await?;
        let etcd_url = etcd
            .as_ref()
            .map_or_else(|| source.etcd(), StoreServer::url);
        let to_etcd = Link::start(&etcd_url).await?;
        let mut addresses = Addresses::of(&source);
        addresses.etcd = format!("http://{}", to_etcd.address());
        let to_queue = match queue {
            Mq::Natsmq => Some(Link::start(&source.nats()).await?),
            _ => None,
        };
        if let Some(link) = &to_queue {
            addresses.nats = format!("nats://{}", link.address());
        }
        let folder = dir.join("cdc");
        let store = disk.as_ref().map(|disk| disk.dir().join("milvus-cdc.db"));
        let edit = |yaml: String| match &store {
            Some(store) => yaml.replace(
                &folder.join("milvus-cdc.db").display().to_string(),
                &store.display().to_string(),
            ),
            None => yaml,
        };
        let cdc = Cdc::start_edited(&addresses, &folder, edit, progress).await?;
        let task = cdc
            .create_cluster_task(&format!("http://{}", to_target.address()))
            .await?;
        Ok(Self {
            source,
            target,
            cdc,
            task,
            happened: Happened::default(),
            etcd_url,
            etcd,
            to_target,
            to_etcd,
            to_queue,
            proxy,
            progress: progress.clone(),
            disk,
        })
    }

    /// Does it, and waits until it is over; but a broken connection heals by itself while other things happen.
    ///
    /// # Errors
    /// A server does not come up again, or the fault cannot be done.
    pub(super) async fn suffer(&mut self, fault: Fault) -> Result<()> {
        *self.happened.faults.entry(fault.kind.name()).or_default() += 1;
        let (down, quiet) = (fault.lasts, Progress::silent());
        match fault.kind {
            Kind::KillCdc => {
                self.happened.starts.ended();
                self.cdc.kill9().await?;
                tokio::time::sleep(down).await;
                self.start_cdc().await?;
            }
            Kind::FreezeCdc => {
                self.cdc.freeze();
                tokio::time::sleep(down).await;
                self.cdc.thaw();
            }
            Kind::Wire(place, wire) => {
                let way = match wire {
                    Wire::Cut => Way::Cut,
                    Wire::Delay => Way::Delay(fault.delay),
                    Wire::BlackHole => Way::BlackHole,
                    Wire::HalfClose => Way::HalfClose,
                };
                let link = match place {
                    Place::Target => &self.to_target,
                    Place::Etcd => &self.to_etcd,
                    Place::Queue => self.to_queue.as_ref().context("no link to this queue")?,
                };
                // A half-close is over at once, for those it has met.
                link.fault(way, down.max(Duration::from_millis(10)));
            }
            Kind::LostReplies => {
                self.proxy.set(Faults {
                    lose_reply: LOST,
                    ..Faults::default()
                });
                tokio::time::sleep(down).await;
                self.proxy.set(Faults::default());
            }
            Kind::CompactEtcd | Kind::DefragEtcd => {
                tokio::time::timeout(ETCD, maintain(&self.etcd_url, fault.kind))
                    .await
                    .with_context(|| format!("{fault} not within {ETCD:?}"))?
                    .with_context(|| fault.to_string())?;
            }
            Kind::FullDisk => {
                let disk = self.disk.as_ref().context("no disk of its own")?;
                disk.fill()?;
                tokio::time::sleep(down).await;
                disk.free()?;
            }
            Kind::KillBroker => self.source.restart_broker(down, &quiet).await?,
            Kind::KillEtcd => {
                let etcd = self.etcd.as_mut().context("no etcd of its own")?;
                etcd.kill9().await?;
                tokio::time::sleep(down).await;
                etcd.restart().await?;
            }
            Kind::KillSource => self.source.restart_alone(down, &quiet).await?,
            Kind::KillTarget => self.target.restart_alone(down, &quiet).await?,
        }
        self.still_there().await
    }

    async fn start_cdc(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.cdc.restart(&Progress::silent()).await?;
        self.happened.starts.begun(&self.cdc, &self.task, begun);
        Ok(())
    }

    /// What has ended by itself is noted, and started again as an operator's machinery would.
    pub(super) async fn still_there(&mut self) -> Result<()> {
        let quiet = Progress::silent();
        if let Some(status) = self.cdc.ended()? {
            self.note(format!("milvus-cdc: {status}"));
            self.happened.starts.ended();
            self.start_cdc().await?;
        }
        if let Some(status) = self.source.ended()? {
            self.note(format!("source: {status}"));
            self.source.restart_alone(Duration::ZERO, &quiet).await?;
        }
        if let Some(status) = self.target.ended()? {
            self.note(format!("target: {status}"));
            self.target.restart_alone(Duration::ZERO, &quiet).await?;
        }
        Ok(())
    }

    fn note(&mut self, what: String) {
        self.progress.line(&format!("ENDED BY ITSELF: {what}"));
        self.happened.ended.push(what);
    }

    /// The faults are over.
    ///
    /// # Errors
    /// A server does not come up.
    pub(super) async fn heal(&mut self) -> Result<()> {
        self.proxy.set(Faults::default());
        let links = [
            Some(&self.to_target),
            Some(&self.to_etcd),
            self.to_queue.as_ref(),
        ];
        for link in links.into_iter().flatten() {
            link.heal();
        }
        self.still_there().await
    }

    /// SIGKILL to all.
    pub(super) async fn end(mut self) {
        // Dropping them kills them as well.
        let _ = self.cdc.kill9().await;
        let _ = tokio::join!(self.source.kill9(), self.target.kill9());
    }
}

/// `host:port` of a URL.
fn authority(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

fn possible<T>(chosen: &mut Chosen, kind: Kind, make: impl FnOnce() -> Result<T>) -> Option<T> {
    if !chosen.kinds.contains(&kind) {
        return None;
    }
    match make() {
        Ok(made) => Some(made),
        Err(e) => {
            leave_out(chosen, kind, &e);
            None
        }
    }
}

fn leave_out(chosen: &mut Chosen, kind: Kind, why: &anyhow::Error) {
    chosen.kinds.retain(|k| *k != kind);
    chosen
        .left_out
        .insert(kind.name(), format!("not possible here: {why:#}"));
}

/// At the revision etcd has now: nobody can watch from an earlier one any more.
async fn maintain(etcd: &str, kind: Kind) -> Result<()> {
    let mut client = etcd_client::Client::connect([etcd], None).await?;
    match kind {
        Kind::CompactEtcd => {
            let now = client.get("revision", None).await?;
            let revision = now
                .header()
                .context("an answer without a header")?
                .revision();
            client.compact(revision, None).await?;
        }
        Kind::DefragEtcd => _ = client.defragment().await?,
        other => bail!("{} is nothing for etcd", other.name()),
    }
    Ok(())
}
