//! The gRPC side: calls are told apart by their path, so that only those that are answered have to be written down (the
//! generated trait of the server has 150). What nobody answers is counted by name.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use milvus::proto::common::{ErrorCode, IndexState, LoadState, MsgBase, ServerInfo, Status};
use milvus::proto::milvus::{self as rpc, MutationResult};
use milvus::proto::schema::{CollectionSchema, LongArray};
use parking_lot::Mutex;
use prost::Message;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codec::ProstCodec;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response};

use super::ledger::Ledger;
use super::objects::{Collection, Missing, New, Objects};
use super::report::report;

const PREFIX: &str = "/milvus.proto.milvus.MilvusService/";
/// What a Milvus proxy takes (`proxy.grpc.serverMaxRecvSize`).
const MAX_REQUEST: usize = 64 << 20;
const VERSION: &str = "2.3.5";
/// Of the ledger's HTTP: a whole request line and its answer.
const HTTP_DEADLINE: Duration = Duration::from_secs(5);

/// How it behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Between a call with rows and its answer.
    pub ack_delay: Duration,
    /// Bytes of such calls in a second, over all channels: the answer comes when they would be written. `None`: no
    /// limit.
    pub bytes_per_second: Option<u64>,
    /// A Milvus of its own: takes Insert and Delete, and no replicated messages.
    pub plain: bool,
}

/// A running target. Ends with the process, or when it is dropped.
pub struct NullTarget {
    shared: Arc<Shared>,
    tasks: tokio::task::JoinSet<()>,
}

struct Shared {
    options: Options,
    state: Mutex<State>,
    /// When the slow disk is through with what it was given.
    written: Mutex<Instant>,
    started: String,
}

struct State {
    objects: Objects,
    ledger: Ledger,
    calls: BTreeMap<String, u64>,
    unknown: BTreeMap<String, u64>,
}

impl NullTarget {
    /// Serves gRPC on `rpc` and the ledger on `http`.
    ///
    /// # Errors
    /// A listener has no address.
    pub fn start(rpc: TcpListener, http: TcpListener, options: Options) -> Result<Self> {
        let address = rpc.local_addr().context("the address of the listener")?;
        let shared = Arc::new(Shared {
            options,
            state: Mutex::new(State {
                objects: Objects::new("null"),
                ledger: Ledger::default(),
                calls: BTreeMap::new(),
                unknown: BTreeMap::new(),
            }),
            written: Mutex::new(Instant::now()),
            started: format!("{} at {}", address, now_us()),
        });
        let mut tasks = tokio::task::JoinSet::new();
        let service = Rpc(shared.clone());
        tasks.spawn(async move {
            let served = Server::builder()
                .initial_stream_window_size(16 << 20)
                .initial_connection_window_size(64 << 20)
                .serve_with_incoming(service, TcpIncoming::from(rpc).with_nodelay(Some(true)))
                .await;
            if let Err(error) = served {
                eprintln!("cdc-null-target: {error}");
            }
        });
        let of_http = shared.clone();
        tasks.spawn(async move {
            loop {
                if let Ok((stream, _)) = http.accept().await {
                    let shared = of_http.clone();
                    tokio::spawn(tokio::time::timeout(HTTP_DEADLINE, async move {
                        // Whoever asks and goes away hears nothing.
                        let _ = answer_http(&shared, stream).await;
                    }));
                }
            }
        });
        Ok(Self { shared, tasks })
    }

    pub fn report(&self) -> Value {
        self.shared.report()
    }

    /// Waits for the end of its tasks, which does not come by itself.
    pub async fn serve(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Shared {
    /// When a call with so many bytes is answered.
    fn until(&self, bytes: usize) -> Instant {
        let begin = Instant::now();
        let until = begin + self.options.ack_delay;
        let Some(rate) = self.options.bytes_per_second else {
            return until;
        };
        let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let mut written = self.written.lock();
        *written = (*written).max(begin) + takes;
        until.max(*written)
    }

    fn report(&self) -> Value {
        let state = self.state.lock();
        report(&state.ledger, &state.calls, &state.unknown)
    }
}

/// `GET /ledger`; `POST /forget`: latencies from now on. One request a connection.
async fn answer_http(shared: &Shared, mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < 8192 {
        let mut part = [0; 1024];
        let n = stream.read(&mut part).await?;
        if n == 0 {
            return Ok(());
        }
        head.extend_from_slice(&part[..n]);
    }
    let (status, body) = if head.starts_with(b"GET /ledger ") {
        ("200 OK", shared.report().to_string())
    } else if head.starts_with(b"POST /forget ") {
        shared.state.lock().ledger.forget_late();
        ("200 OK", "{}".to_owned())
    } else {
        ("404 Not Found", "{}".to_owned())
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

fn now_us() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// ReplicateMessageRequest with entries that share the memory they came in.
#[derive(Clone, PartialEq, Message)]
struct Replicate {
    #[prost(message, optional, tag = "1")]
    base: Option<MsgBase>,
    #[prost(string, tag = "2")]
    channel_name: String,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    msgs: Vec<Bytes>,
}

#[derive(Clone)]
struct Rpc(Arc<Shared>);

impl Service<http::Request<Body>> for Rpc {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move { Ok(answer(shared, request).await) })
    }
}

/// Decodes a request, and encodes what `handler` makes of it.
async fn unary<Q, A, F>(
    request: http::Request<Body>,
    mut handler: impl FnMut(Q) -> F,
) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Default + Send + 'static,
    F: Future<Output = A> + Send,
{
    let service = tower::service_fn(move |request: Request<Q>| {
        let answer = handler(request.into_inner());
        async move { Ok::<_, tonic::Status>(Response::new(answer.await)) }
    });
    tonic::server::Grpc::new(ProstCodec::<A, Q>::default())
        .max_decoding_message_size(MAX_REQUEST)
        .unary(service, request)
        .await
}

#[allow(deprecated, reason = "a client of 2.3 reads error_code")]
fn refused(error_code: ErrorCode, code: i32, reason: String) -> Status {
    Status {
        error_code: error_code as i32,
        code,
        reason,
        ..Default::default()
    }
}

/// As a 2.3.5 says it.
fn missing(name: &str) -> Status {
    refused(
        ErrorCode::CollectionNotExists,
        100,
        format!("collection not found[collection={name}]"),
    )
}

fn ok() -> Option<Status> {
    Some(Status::default())
}

/// A bare status.
fn done(outcome: Result<(), Missing>, name: &str) -> Status {
    match outcome {
        Ok(()) => Status::default(),
        Err(Missing) => missing(name),
    }
}

/// `milvus.InsertRequest` with columns that share the memory they came in.
#[derive(Clone, PartialEq, Message)]
struct Insert {
    #[prost(bytes = "bytes", repeated, tag = "5")]
    fields_data: Vec<Bytes>,
    #[prost(uint32, tag = "7")]
    num_rows: u32,
}

/// How many keys a delete names: those of `field in [...]`.
fn keys(expr: &str) -> u64 {
    let list = expr.split_once('[').map_or("", |(_, list)| list);
    match list.starts_with(']') || list.is_empty() {
        true => 0,
        false => list.matches(',').count() as u64 + 1,
    }
}

/// What a Milvus of its own says of rows that it has taken.
async fn written(shared: Arc<Shared>, bytes: usize, inserted: u64, deleted: u64) -> MutationResult {
    if !shared.options.plain {
        return MutationResult {
            status: Some(refused(
                ErrorCode::UnexpectedError,
                1303,
                "it is a standby, and takes no rows of clients".to_owned(),
            )),
            ..Default::default()
        };
    }
    let until = shared.until(bytes);
    shared
        .state
        .lock()
        .ledger
        .rows(bytes as u64, inserted, deleted);
    if until > Instant::now() {
        tokio::time::sleep_until(until).await;
    }
    MutationResult {
        status: ok(),
        insert_cnt: inserted as i64,
        delete_cnt: deleted as i64,
        timestamp: (now_us() / 1000) << 18,
        ..Default::default()
    }
}

async fn replicate(shared: Arc<Shared>, call: Replicate) -> rpc::ReplicateMessageResponse {
    let refuse = |code, reason: &str| rpc::ReplicateMessageResponse {
        status: Some(refused(ErrorCode::UnexpectedError, code, reason.to_owned())),
        ..Default::default()
    };
    if shared.options.plain {
        return refuse(1900, "only a standby takes replicated messages");
    }
    if call.channel_name.is_empty() {
        return refuse(
            1100,
            "invalid channel name for the replicate message request",
        );
    }
    if call.msgs.is_empty() {
        return refuse(65535, "empty msgs");
    }
    let begin = Instant::now();
    let until = shared.until(call.msgs.iter().map(Bytes::len).sum());
    let answered = now_us() + until.duration_since(begin).as_micros() as u64;
    shared
        .state
        .lock()
        .ledger
        .call(&call.channel_name, &call.msgs, answered);
    if until > begin {
        tokio::time::sleep_until(until).await;
    }
    rpc::ReplicateMessageResponse {
        status: ok(),
        // Of a RocksMQ: base64 of eight bytes. Nobody can read on from it.
        position: "AAAAAAAAAAA=".to_owned(),
    }
}

#[allow(deprecated, reason = "clients of 2.3 ask and read it")]
async fn answer(shared: Arc<Shared>, request: http::Request<Body>) -> http::Response<Body> {
    let path = request.uri().path().to_owned();
    let name = path.strip_prefix(PREFIX).unwrap_or(&path);
    {
        let calls = &mut shared.state.lock().calls;
        match calls.get_mut(name) {
            Some(calls) => *calls += 1,
            None => drop(calls.insert(name.to_owned(), 1)),
        }
    }
    /// One answer that is made while the state is held.
    macro_rules! at_once {
        (|$state:ident, $q:ident: $request:ty| $answer:expr) => {
            unary(request, |$q: $request| {
                #[allow(unused_mut, reason = "not every call changes something")]
                let mut $state = shared.state.lock();
                let answer = $answer;
                drop($state);
                ready(answer)
            })
            .await
        };
    }
    match name {
        "ReplicateMessage" => unary(request, |q| replicate(shared.clone(), q)).await,
        "Insert" => {
            unary(request, |q: Insert| {
                let bytes = q.fields_data.iter().map(Bytes::len).sum();
                written(shared.clone(), bytes, q.num_rows.into(), 0)
            })
            .await
        }
        "Delete" => {
            unary(request, |q: rpc::DeleteRequest| {
                written(shared.clone(), q.expr.len(), 0, keys(&q.expr))
            })
            .await
        }
        "Connect" => at_once!(|_s, _q: rpc::ConnectRequest| rpc::ConnectResponse {
            status: ok(),
            identifier: 1,
            server_info: Some(ServerInfo {
                build_tags: VERSION.to_owned(),
                ..Default::default()
            }),
        }),
        "GetVersion" => at_once!(|_s, _q: rpc::GetVersionRequest| rpc::GetVersionResponse {
            status: ok(),
            version: VERSION.to_owned(),
        }),
        "AllocTimestamp" => {
            at_once!(
                |_s, _q: rpc::AllocTimestampRequest| rpc::AllocTimestampResponse {
                    status: ok(),
                    timestamp: (now_us() / 1000) << 18,
                }
            )
        }
        "GetMetrics" => at_once!(|_s, _q: rpc::GetMetricsRequest| rpc::GetMetricsResponse {
            status: ok(),
            response: topology(&shared.started),
            component_name: "null".to_owned(),
        }),
        "ListDatabases" => {
            at_once!(
                |s, _q: rpc::ListDatabasesRequest| rpc::ListDatabasesResponse {
                    status: ok(),
                    db_names: s.objects.databases(),
                    ..Default::default()
                }
            )
        }
        "CreateDatabase" => at_once!(|s, q: rpc::CreateDatabaseRequest| {
            s.objects.create_database(&q.db_name);
            Status::default()
        }),
        "DropDatabase" => at_once!(|s, q: rpc::DropDatabaseRequest| {
            s.objects.drop_database(&q.db_name);
            Status::default()
        }),
        "ShowCollections" => at_once!(|s, q: rpc::ShowCollectionsRequest| {
            let (collection_names, collection_ids) =
                s.objects.collections(&q.db_name).into_iter().unzip();
            rpc::ShowCollectionsResponse {
                status: ok(),
                collection_names,
                collection_ids,
                ..Default::default()
            }
        }),
        "HasCollection" => at_once!(|s, q: rpc::HasCollectionRequest| rpc::BoolResponse {
            status: ok(),
            value: s.objects.get(&q.db_name, &q.collection_name).is_ok(),
        }),
        "DescribeCollection" => at_once!(|s, q: rpc::DescribeCollectionRequest| {
            match s.objects.get(&q.db_name, &q.collection_name) {
                Ok(found) => describe(&q, found),
                Err(Missing) => rpc::DescribeCollectionResponse {
                    status: Some(missing(&q.collection_name)),
                    ..Default::default()
                },
            }
        }),
        "CreateCollection" => at_once!(|s, q: rpc::CreateCollectionRequest| {
            let created = q.base.and_then(|b| b.replicate_info);
            match CollectionSchema::decode(&q.schema[..]) {
                Ok(schema) => {
                    let new = New {
                        schema,
                        shards: q.shards_num,
                        consistency_level: q.consistency_level,
                        properties: q.properties,
                        partitions: q.num_partitions,
                        created: created.map(|i| i.msg_timestamp).unwrap_or_default(),
                    };
                    let made = s.objects.create(&q.db_name, &q.collection_name, new);
                    done(made, &q.db_name)
                }
                Err(e) => refused(ErrorCode::IllegalArgument, 1100, e.to_string()),
            }
        }),
        "DropCollection" => at_once!(|s, q: rpc::DropCollectionRequest| {
            s.objects.drop_collection(&q.db_name, &q.collection_name);
            Status::default()
        }),
        "GetCollectionStatistics" => {
            at_once!(|_s, _q: rpc::GetCollectionStatisticsRequest| {
                rpc::GetCollectionStatisticsResponse {
                    status: ok(),
                    stats: Vec::new(),
                }
            })
        }
        "ShowPartitions" => at_once!(|s, q: rpc::ShowPartitionsRequest| {
            match s.objects.get(&q.db_name, &q.collection_name) {
                Ok(found) => {
                    let (partition_names, partition_i_ds) =
                        found.partitions.iter().cloned().unzip();
                    rpc::ShowPartitionsResponse {
                        status: ok(),
                        partition_names,
                        partition_i_ds,
                        ..Default::default()
                    }
                }
                Err(Missing) => rpc::ShowPartitionsResponse {
                    status: Some(missing(&q.collection_name)),
                    ..Default::default()
                },
            }
        }),
        "HasPartition" => at_once!(|s, q: rpc::HasPartitionRequest| {
            let found = s.objects.get(&q.db_name, &q.collection_name);
            let has = |c: &Collection| c.partitions.iter().any(|(n, _)| *n == q.partition_name);
            rpc::BoolResponse {
                status: ok(),
                value: found.is_ok_and(has),
            }
        }),
        "CreatePartition" => at_once!(|s, q: rpc::CreatePartitionRequest| {
            let made =
                s.objects
                    .create_partition(&q.db_name, &q.collection_name, &q.partition_name);
            done(made, &q.collection_name)
        }),
        "DropPartition" => at_once!(|s, q: rpc::DropPartitionRequest| {
            if let Ok(found) = s.objects.get_mut(&q.db_name, &q.collection_name) {
                found.partitions.retain(|(n, _)| *n != q.partition_name);
            }
            Status::default()
        }),
        "CreateIndex" => at_once!(|s, q: rpc::CreateIndexRequest| {
            let made = s.objects.create_index(
                &q.db_name,
                &q.collection_name,
                &q.field_name,
                &q.index_name,
                q.extra_params,
            );
            done(made, &q.collection_name)
        }),
        "DropIndex" => at_once!(|s, q: rpc::DropIndexRequest| {
            if let Ok(found) = s.objects.get_mut(&q.db_name, &q.collection_name) {
                found
                    .indexes
                    .retain(|i| i.name != q.index_name && i.field != q.field_name);
            }
            Status::default()
        }),
        "DescribeIndex" => at_once!(|s, q: rpc::DescribeIndexRequest| {
            let found = s.objects.get(&q.db_name, &q.collection_name);
            let index_descriptions: Vec<_> = found.iter().flat_map(|c| indexes(c)).collect();
            let status = match (&found, index_descriptions.is_empty()) {
                (Err(Missing), _) => Some(missing(&q.collection_name)),
                (Ok(_), true) => Some(refused(
                    ErrorCode::IndexNotExist,
                    700,
                    format!("index not found[collection={}]", q.collection_name),
                )),
                _ => ok(),
            };
            rpc::DescribeIndexResponse {
                status,
                index_descriptions,
            }
        }),
        "GetIndexState" => {
            at_once!(
                |_s, _q: rpc::GetIndexStateRequest| rpc::GetIndexStateResponse {
                    status: ok(),
                    state: IndexState::Finished as i32,
                    ..Default::default()
                }
            )
        }
        "GetLoadState" => at_once!(|s, q: rpc::GetLoadStateRequest| {
            let found = s.objects.get(&q.db_name, &q.collection_name);
            let state = match found {
                Err(Missing) => LoadState::NotExist,
                Ok(c) if c.loaded => LoadState::Loaded,
                Ok(_) => LoadState::NotLoad,
            };
            rpc::GetLoadStateResponse {
                status: ok(),
                state: state as i32,
            }
        }),
        "GetLoadingProgress" => {
            at_once!(
                |_s, _q: rpc::GetLoadingProgressRequest| rpc::GetLoadingProgressResponse {
                    status: ok(),
                    progress: 100,
                    refresh_progress: 100,
                }
            )
        }
        "LoadCollection" => at_once!(|s, q: rpc::LoadCollectionRequest| {
            let found = s.objects.get_mut(&q.db_name, &q.collection_name);
            done(found.map(|c| c.loaded = true), &q.collection_name)
        }),
        "LoadPartitions" => at_once!(|s, q: rpc::LoadPartitionsRequest| {
            let found = s.objects.get_mut(&q.db_name, &q.collection_name);
            done(found.map(|c| c.loaded = true), &q.collection_name)
        }),
        "ReleaseCollection" => at_once!(|s, q: rpc::ReleaseCollectionRequest| {
            let found = s.objects.get_mut(&q.db_name, &q.collection_name);
            done(found.map(|c| c.loaded = false), &q.collection_name)
        }),
        "ReleasePartitions" => at_once!(|s, q: rpc::ReleasePartitionsRequest| {
            let found = s.objects.get_mut(&q.db_name, &q.collection_name);
            done(found.map(drop), &q.collection_name)
        }),
        "Flush" => at_once!(|_s, q: rpc::FlushRequest| {
            let none = || {
                q.collection_names
                    .iter()
                    .map(|n| (n.clone(), LongArray::default()))
                    .collect()
            };
            let sealed = q.collection_names.iter().map(|n| (n.clone(), 0));
            rpc::FlushResponse {
                status: ok(),
                coll_seg_i_ds: none(),
                flush_coll_seg_i_ds: none(),
                coll_seal_times: sealed.collect(),
                ..Default::default()
            }
        }),
        "GetFlushState" => {
            at_once!(
                |_s, _q: rpc::GetFlushStateRequest| rpc::GetFlushStateResponse {
                    status: ok(),
                    flushed: true,
                }
            )
        }
        "GetPersistentSegmentInfo" => at_once!(|_s, _q: rpc::GetPersistentSegmentInfoRequest| {
            rpc::GetPersistentSegmentInfoResponse {
                status: ok(),
                infos: Vec::new(),
            }
        }),
        _ => {
            let unknown = &mut shared.state.lock().unknown;
            *unknown.entry(name.to_owned()).or_default() += 1;
            tonic::Status::unimplemented("the null target has no such call").into_http()
        }
    }
}

fn describe(
    asked: &rpc::DescribeCollectionRequest,
    found: &Collection,
) -> rpc::DescribeCollectionResponse {
    rpc::DescribeCollectionResponse {
        status: ok(),
        schema: Some(found.schema.clone()),
        collection_id: found.id,
        collection_name: asked.collection_name.clone(),
        db_name: asked.db_name.clone(),
        virtual_channel_names: found.vchannels.clone(),
        physical_channel_names: found.pchannels.clone(),
        shards_num: found.vchannels.len() as i32,
        consistency_level: found.consistency_level,
        properties: found.properties.clone(),
        created_timestamp: found.created,
        created_utc_timestamp: found.created >> 18,
        num_partitions: found.partitions.len() as i64,
        ..Default::default()
    }
}

fn indexes(found: &Collection) -> Vec<rpc::IndexDescription> {
    let index = |i: &super::objects::Index| rpc::IndexDescription {
        index_name: i.name.clone(),
        index_id: i.id,
        field_name: i.field.clone(),
        params: i.params.clone(),
        state: IndexState::Finished as i32,
        ..Default::default()
    };
    found.indexes.iter().map(index).collect()
}

/// One data node and one query node, which never change (`internal/util/metricsinfo`).
fn topology(started: &str) -> String {
    let node = |kind: &str, id: i64| {
        serde_json::json!({ "identifier": id, "infos": {
            "has_error": false, "error_reason": "", "name": format!("{kind}{id}"),
            "created_time": started, "type": kind, "id": id } })
    };
    serde_json::json!({ "nodes_info": [node("datanode", 1), node("querynode", 2)] }).to_string()
}
