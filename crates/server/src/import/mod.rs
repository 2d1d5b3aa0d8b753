//! Takes over the tasks of a Go server (zilliztech/milvus-cdc): looks at what it has left, says what would become of it,
//! and makes the tasks.
//!
//! A task is made as a creation makes it, with the places of its collections as given positions: so each is adopted when
//! it is first met, with everything up to then in doubt and F above all that source and target have given out. What
//! the Go server has sent behind its places, or says nothing of, is replaced and not doubled.

mod kept;
mod places;
mod store;
mod wish;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use cdc_core::catalog::etcd::{EtcdCatalog, probe};
use cdc_core::catalog::{Catalog, View};
use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::TaskId;
use cdc_core::source::open_source;
use cdc_core::target::TargetConnector;
use cdc_core::target::grpc::GrpcConnector;
use cdc_core::task::{Pattern, Selection, TargetSpec};
use serde::Serialize;

use crate::config::Config;
use crate::engine_adapter::{etcd_config, queue_config};
use crate::request::Limits;
use crate::store::owner::{Claim, Taken, Term};
use crate::store::seal::{SealKey, Sealed};
use crate::store::{Backend, Desired};
use crate::tasks::{Read, Task, TaskError, TaskLimits, check_room, creation, read};
use kept::TaskInfo;
pub use places::Place;
use places::Source;
use store::Kept;
pub use wish::Left;
use wish::left;

/// A Go server with a running task writes its places several times a second.
const WATCH: Duration = Duration::from_secs(4);
const SOURCE_DEADLINE: Duration = Duration::from_secs(15);
/// How long the store may still be taken for that of a server that was killed; and how long we may be silent.
const LEASE: Duration = Duration::from_secs(30);
const OWNED_BY_US: Duration = Duration::from_secs(20);

/// What became, or would become, of everything.
#[derive(Serialize)]
pub struct Plan {
    /// Where the Go server keeps its tasks, and where ours are.
    pub from: String,
    pub to: String,
    pub tasks: Vec<Planned>,
    /// The Go server still runs, as far as that can be seen.
    pub running: Option<String>,
}

#[derive(Serialize)]
pub struct Planned {
    pub id: String,
    pub target: String,
    pub collections: String,
    pub state: String,
    pub outcome: Outcome,
    pub places: Vec<Place>,
    /// What is not taken of it; all of it, if it cannot be taken.
    pub left: Vec<Left>,
    #[serde(skip)]
    task: Option<Box<Task>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It can be taken; after that it is.
    New,
    Taken,
    /// A task of its id is here already.
    There,
    Refused,
}

impl Plan {
    pub fn count(&self, outcome: Outcome) -> usize {
        self.tasks.iter().filter(|t| t.outcome == outcome).count()
    }
}

/// What is kept of one task, or of one collection's places, by itself; `Err` is what a person is told.
pub(crate) fn read_kept(limits: &Limits, json: &[u8]) -> Result<(), String> {
    let of_tasks = TaskLimits {
        max_task_num: 1,
        memory_budget: 1 << 20,
        durable_every: Duration::from_secs(300),
        call_timeout: LEASE,
        answer_deadline: LEASE,
    };
    let said = |left: Vec<Left>| {
        let all: Vec<String> = left.into_iter().map(|l| l.what).collect();
        all.join("; ")
    };
    let places = kept::parse::<kept::Positions>("places", json).map_err(|e| e.to_string());
    let info: TaskInfo = kept::parse("task", json).map_err(|e| e.to_string())?;
    let (_, left) = wish::read(&info, limits, &of_tasks).map_err(said)?;
    match (left.is_empty(), places) {
        (false, _) => Err(said(left)),
        (true, places) => places.map(drop),
    }
}

/// Looks at everything and changes nothing. `from`: the Go server's own configuration.
///
/// # Errors
/// The Go server's store, ours, or the source cannot be read.
pub async fn plan(config: &Config, from: &Config) -> anyhow::Result<Plan> {
    let before = Kept::read(&from.store).await?;
    let limits = Limits {
        max_name_length: config.max_name_length,
        queue: config.source.queue.kind(),
        replicate_channel: config.source.replicate_channel.clone(),
        rows: config.source.milvus.is_some(),
    };
    let of_tasks = TaskLimits::of(config);
    let key = config.secret_key.as_ref().map(SealKey::parse).transpose()?;
    let ours = match config.store.look(key).await? {
        Some(store) => read(store.as_ref(), &of_tasks).await?,
        None => Read::default(),
    };
    let (running, now) = tokio::join!(answers(&from.address), async {
        tokio::time::sleep(WATCH).await;
        Kept::read(&from.store).await
    });
    let kept = now?;
    let running = match kept.differs_from(&before) {
        true => Some("its store changes".to_owned()),
        false => running,
    };
    let looked = Looked {
        limits,
        of_tasks,
        view: view(config).await?,
        queue: open_source(queue_config(config)?).await?,
    };
    let mut plan = Plan {
        from: from.store.shown(),
        to: config.store.shown(),
        tasks: Vec::new(),
        running,
    };
    // With those that are planned, so that they fit each other.
    let mut all = ours;
    let mut targets = BTreeMap::new();
    for info in &kept.tasks {
        let planned = match info {
            Ok(info) => looked.task(info, &kept, &mut all, &mut targets).await,
            Err(unread) => Planned::refused(
                &unread.key,
                vec![left(
                    format!("it cannot be read: {unread}"),
                    "look at it with the Go server, or create it here by hand",
                )],
            ),
        };
        plan.tasks.push(planned);
    }
    for unread in &kept.unread {
        plan.tasks.push(Planned::refused(
            &unread.key,
            vec![left(
                format!("a place that cannot be read: {unread}"),
                "its collection begins at its creation, or asks what to do",
            )],
        ));
    }
    Ok(plan)
}

/// Makes the tasks that can be taken. No server may own our store.
///
/// # Errors
/// The Go server still runs, a server of ours owns the store, or that cannot be written.
pub async fn apply(config: &Config, plan: &mut Plan) -> anyhow::Result<()> {
    if let Some(why) = &plan.running {
        bail!(
            "the Go server still runs ({why}): stop it for good, and apply again; nothing was changed"
        );
    }
    let key = config.secret_key.as_ref().map(SealKey::parse).transpose()?;
    let sealed = Sealed::open(config.store.open().await?, key).await?;
    let term = take(&sealed).await?;
    let store = sealed.of_term(&term);
    let outcome = async {
        sealed.seal_what_is_plain(&term).await?;
        for planned in &mut plan.tasks {
            let Some(task) = planned.task.take() else {
                continue;
            };
            let text = format!("taken over from the Go server in {}", plan.from);
            store.write_tasks(creation(&task, text)?).await?;
            planned.outcome = Outcome::Taken;
        }
        anyhow::Ok(())
    };
    let outcome = outcome.await;
    // Whatever came of it: the server that is started next need not wait.
    sealed.release(&term).await?;
    store.close(Duration::from_secs(1)).await;
    outcome.context("the store of metaStoreConfig")
}

async fn take(backend: &Sealed) -> anyhow::Result<Term> {
    let claim = Claim {
        name: format!("milvus-cdc import-go (pid {})", std::process::id()),
        lease: LEASE,
    };
    let end = tokio::time::Instant::now() + OWNED_BY_US;
    loop {
        match backend.take(&claim).await? {
            Taken::Ours(term) => return Ok(term),
            Taken::Theirs(name) if tokio::time::Instant::now() >= end => bail!(
                "{name} owns the store and runs its tasks: stop it, apply, and start it again; nothing was changed"
            ),
            // One that was killed is known to be gone only after its lease.
            Taken::Theirs(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

async fn view(config: &Config) -> anyhow::Result<Arc<View>> {
    let etcd = etcd_config(config);
    let read = async {
        probe(&etcd).await?;
        let catalog = EtcdCatalog::connect(etcd.clone());
        let mut views = catalog.subscribe();
        let view = views.wait_for(|view| view.revision != 0).await?.clone();
        anyhow::Ok(view)
    };
    tokio::time::timeout(SOURCE_DEADLINE, read)
        .await
        .with_context(|| format!("no answer within {} s", SOURCE_DEADLINE.as_secs()))
        .and_then(|read| read)
        .context("the source's metadata (sourceConfig.etcd)")
}

/// Whether something that is not this program listens where the Go server would.
async fn answers(address: &str) -> Option<String> {
    let url = format!(
        "http://{}/healthz",
        address.replacen("0.0.0.0", "127.0.0.1", 1)
    );
    let asked = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(2)))
            .http_status_as_error(false)
            .build()
            .into();
        agent.get(&url).call().map(|reply| reply.status().as_u16())
    });
    // The Go server has no such path; ours has, and is told by its store.
    match asked.await {
        Ok(Ok(404)) => Some(format!("{address} answers")),
        _ => None,
    }
}

struct Looked {
    limits: Limits,
    of_tasks: TaskLimits,
    view: Arc<View>,
    queue: Arc<dyn cdc_core::source::LogSource>,
}

type Targets = BTreeMap<String, Result<(), Problem>>;

impl Looked {
    async fn task(
        &self,
        info: &TaskInfo,
        kept: &Kept,
        all: &mut Read,
        targets: &mut Targets,
    ) -> Planned {
        let id = TaskId::new(info.task_id.as_str());
        if let Some(there) = all.tasks.get(&id) {
            let mut planned = Planned::of(there, Outcome::There);
            planned.task = None;
            return planned;
        }
        let (mut task, mut notes) = match wish::read(info, &self.limits, &self.of_tasks) {
            Ok(read) => read,
            Err(why) => return Planned::refused(&info.task_id, why),
        };
        let refused = |task: &Task, why: Vec<Left>| Planned {
            left: why,
            task: None,
            ..Planned::of(task, Outcome::Refused)
        };
        if let Err(error) = check_room(&all.tasks, &all.unreadable, &self.of_tasks, &task.spec, &[])
        {
            let why = match error {
                TaskError::Conflict(problem) | TaskError::Refused(problem) => {
                    left(problem.message, problem.hint)
                }
                other => left(other.to_string(), "see the task of this id here"),
            };
            return refused(&task, vec![why]);
        }
        match target(&task.spec.target, targets).await {
            Err(problem) if problem.class == ErrorClass::Transient => notes.push(left(
                format!("the target does not answer now: {problem}"),
                "the task waits until it does",
            )),
            Err(problem) => return refused(&task, vec![left(problem.message, problem.hint)]),
            Ok(()) => {}
        }
        let source = Source {
            view: &self.view,
            queue: self.queue.as_ref(),
        };
        let places = match places::of_task(&source, &task.spec, &kept.positions).await {
            Ok(places) => places,
            Err(why) => return refused(&task, why),
        };
        notes.extend(places.left);
        task.spec.positions = places.given;
        all.tasks.insert(id, task.clone());
        Planned {
            places: places.shown,
            left: notes,
            ..Planned::of(&task, Outcome::New)
        }
    }
}

/// Whether a task could write to this target. Writes nothing.
async fn target(spec: &TargetSpec, known: &mut Targets) -> Result<(), Problem> {
    let key = format!("{}\n{}", spec.uri, spec.token.expose());
    if let Some(known) = known.get(&key) {
        return known.clone();
    }
    let look = async {
        let target = GrpcConnector.connect(spec).await.map_err(|e| e.problem())?;
        target.probe().await.map_err(|e| e.problem())
    };
    let found = tokio::time::timeout(spec.connect_timeout + spec.call_timeout, look)
        .await
        .unwrap_or_else(|_| {
            let why = format!("{} does not answer in time", spec.uri);
            Err(Problem::new(ErrorClass::Transient, why, ""))
        });
    known.insert(key, found.clone());
    found
}

impl Planned {
    fn of(task: &Task, outcome: Outcome) -> Self {
        Self {
            id: task.spec.id.to_string(),
            target: task.spec.target.uri.clone(),
            collections: collections(&task.spec.selection),
            state: match &task.desired {
                Desired::Running => "Running".to_owned(),
                Desired::Paused { reason, .. } => format!("Paused ({reason})"),
                Desired::Promoting { .. } => "Promoting".to_owned(),
                Desired::Promoted { .. } => "Promoted".to_owned(),
            },
            outcome,
            places: Vec::new(),
            left: Vec::new(),
            task: Some(Box::new(task.clone())),
        }
    }

    fn refused(id: &str, why: Vec<Left>) -> Self {
        Self {
            id: id.to_owned(),
            target: String::new(),
            collections: String::new(),
            state: String::new(),
            outcome: Outcome::Refused,
            places: Vec::new(),
            left: why,
            task: None,
        }
    }
}

fn collections(selection: &Selection) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "*".to_owned());
    let named = |p: &Pattern| format!("{}.{}", part(&p.database), part(&p.name));
    match selection {
        Selection::All => "*.*".to_owned(),
        Selection::Collections(list) => list.iter().map(named).collect::<Vec<_>>().join(", "),
        Selection::Rules(rules) => {
            let rules = rules.0.iter().map(ToString::to_string);
            rules.collect::<Vec<_>>().join("; ")
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// The address of one that gives every request this status.
    async fn server(status: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_go_server_is_told_from_ours_by_what_it_does_not_know() {
        let go = server("404 Not Found").await;
        assert_eq!(answers(&go).await, Some(format!("{go} answers")));
        let everywhere = go.replacen("127.0.0.1", "0.0.0.0", 1);
        assert!(answers(&everywhere).await.is_some());
        assert_eq!(answers(&server("200 OK").await).await, None);
        let nobody = cdc_lab::servers::free_port().unwrap();
        assert_eq!(answers(&format!("127.0.0.1:{nobody}")).await, None);
    }
}
