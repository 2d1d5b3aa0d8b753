//! `cdc.yaml`: read strictly into a checked model.

pub mod access;
mod pulsar;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdc_core::position::QueueKind;
use cdc_core::secret::Secret;
use cdc_core::snapshot::grpc::RowsConfig;
use cdc_core::source::PulsarConfig;
use cdc_core::source::kafka::KafkaConfig;
use cdc_core::tls::ClientTls;
use serde_json::Value;

use crate::config_store;
use crate::fields::{Errors, Fields, clip};
use crate::request::normalise_uri;
use crate::store::open::StoreConfig;
use crate::tls_fields;
use access::Access;

/// For one answer of the source's queue or etcd.
pub const TIMEOUT: Duration = Duration::from_secs(5);

pub mod kafka;

/// The file that is used when none is given and the default one is not there.
pub const EMBEDDED: &str = include_str!("../../../configs/cdc.yaml");
pub const DEFAULT_PATH: &str = "./configs/cdc.yaml";

#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// `host:port` to listen on.
    pub address: String,
    pub access: Access,
    pub max_task_num: usize,
    /// In bytes.
    pub max_name_length: usize,
    pub store: StoreConfig,
    /// For the secrets in the store.
    pub secret_key: Option<Secret>,
    pub source: Source,
    pub log_level: String,
    pub log_json: bool,
    /// Bytes of messages one task may hold in memory.
    pub memory_budget: usize,
    /// How often what the target has not flushed is flushed, and the durable checkpoint moved.
    pub durable_every: Duration,
    /// Deadline of one ReplicateMessage call.
    pub call_timeout: Duration,
    /// Keys that were accepted and mean nothing here.
    pub ignored: Vec<String>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Source {
    pub etcd: Etcd,
    /// Its proxies, where rows are to be read.
    pub milvus: Option<RowsConfig>,
    pub replicate_channel: String,
    pub queue: Queue,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Etcd {
    pub endpoints: Vec<String>,
    pub root_path: String,
    pub meta_sub_path: String,
    pub kv_sub_path: String,
    pub login: Option<(String, Secret)>,
    /// Of use with `https://` endpoints only.
    pub tls: ClientTls,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Queue {
    /// `nats://host:port`
    Natsmq {
        address: String,
    },
    /// The directory of the source's RocksMQ.
    Rocksmq {
        path: PathBuf,
    },
    Pulsar(PulsarConfig),
    Kafka(KafkaConfig),
}

impl Queue {
    pub fn kind(&self) -> QueueKind {
        match self {
            Queue::Natsmq { .. } => QueueKind::Natsmq,
            Queue::Rocksmq { .. } => QueueKind::Rocksmq,
            Queue::Pulsar(_) => QueueKind::Pulsar,
            Queue::Kafka(_) => QueueKind::Kafka,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {cause}")]
    Read {
        path: PathBuf,
        cause: std::io::Error,
    },
    #[error("{origin} is not valid YAML: {cause}")]
    Syntax { origin: String, cause: String },
    #[error("{origin} has {} error(s):\n  {}", .errors.len(), .errors.join("\n  "))]
    Content { origin: String, errors: Vec<String> },
}

impl Config {
    /// Reads the file; without one the default file, and without that the embedded defaults.
    pub fn load(path: Option<&Path>) -> Result<(Self, String), ConfigError> {
        let default = Path::new(DEFAULT_PATH);
        let (text, origin) = match path {
            None if !default.exists() => (EMBEDDED.to_owned(), "the embedded defaults".to_owned()),
            _ => {
                let path = path.unwrap_or(default);
                let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read {
                    path: path.to_owned(),
                    cause,
                })?;
                (text, path.display().to_string())
            }
        };
        let config = Self::parse(&text, &origin, &|name| std::env::var(name).ok())?;
        Ok((config, origin))
    }

    /// Reads a YAML text. `environment` answers `${NAME}` references.
    pub fn parse(
        text: &str,
        origin: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let syntax = |cause: String| ConfigError::Syntax {
            origin: origin.to_owned(),
            cause,
        };
        let yaml: serde_yaml_ng::Value =
            serde_yaml_ng::from_str(text).map_err(|e| syntax(e.to_string()))?;
        let mut json = serde_json::to_value(&yaml).map_err(|e| syntax(e.to_string()))?;
        if json.is_null() {
            json = Value::Object(serde_json::Map::new());
        }
        let errors = Errors::default();
        expand(&mut json, "", environment, &errors);
        let Value::Object(map) = &json else {
            return Err(syntax("a mapping of keys to values expected".to_owned()));
        };
        let config = read(Fields::root(map, &errors));
        let content = |errors| ConfigError::Content {
            origin: origin.to_owned(),
            errors,
        };
        errors.check().map_err(content)?;
        config.ok_or_else(|| content(vec!["incomplete".to_owned()]))
    }
}

/// Replaces `${NAME}` in every string.
fn expand(
    value: &mut Value,
    path: &str,
    environment: &dyn Fn(&str) -> Option<String>,
    errors: &Errors,
) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                expand(value, &path, environment, errors);
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter_mut().enumerate() {
                expand(value, &format!("{path}[{i}]"), environment, errors);
            }
        }
        Value::String(text) if text.contains("${") => {
            let mut out = String::new();
            let mut rest = text.as_str();
            while let Some((before, after)) = rest.split_once("${") {
                out.push_str(before);
                let Some((name, tail)) = after.split_once('}') else {
                    errors.add(format!("{path}: '${{' without '}}'"));
                    return;
                };
                match environment(name) {
                    Some(value) => out.push_str(&value),
                    None => errors.add(format!(
                        "{path}: the environment variable {} is not set",
                        clip(name)
                    )),
                }
                rest = tail;
            }
            out.push_str(rest);
            *text = out;
        }
        _ => {}
    }
}

fn read(top: Fields<'_>) -> Option<Config> {
    let mut ignored = top.accept(&[
        "detectDeadLock",
        "batchMode",
        "enableReverse",
        "reverseMilvus",
        "currentMilvus",
        "retry",
        "replicateID",
        "packer",
    ]);
    if top.boolean("dryRun") == Some(true) {
        top.wrong(
            "dryRun",
            "true is not available in this version; leave it out",
        );
    }
    let address = top
        .string("address")
        .unwrap_or_else(|| "127.0.0.1:8444".to_owned());
    let address = if address.starts_with(':') {
        format!("0.0.0.0{address}")
    } else {
        address
    };
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(_))) {
        top.wrong(
            "address",
            format_args!(
                "host:port with a port up to 65535 expected, not {:?}",
                clip(&address)
            ),
        );
    }
    let max_task_num = top.integer("maxTaskNum", 1..=10_000).unwrap_or(100) as usize;
    let max_name_length = top.integer("maxNameLength", 1..=65_535).unwrap_or(256) as usize;
    let log_level = top.string("logLevel").unwrap_or_else(|| "info".to_owned());
    if let Err(part) = check_filter(&log_level) {
        top.wrong(
            "logLevel",
            format_args!(
                "{:?} is no level; one of trace, debug, info, warn, error, off expected, and after it, if wanted, module=level with commas between (info,cdc_core::lane=debug)",
                clip(&part)
            ),
        );
    }
    let log_json = top
        .choice("logFormat", &[("text", false), ("json", true)])
        .unwrap_or(false);
    let memory_budget =
        top.integer("memoryBudgetMB", 4..=65_536).unwrap_or(64) as usize * 1024 * 1024;
    let target = top.object("target");
    let call_timeout = target
        .as_ref()
        .and_then(|t| t.integer("callTimeoutMs", 100..=600_000))
        .unwrap_or(5_000);
    let durable_every = target
        .as_ref()
        .and_then(|t| t.integer("durableSeconds", 1..=86_400))
        .unwrap_or(300);
    if let Some(target) = target {
        target.finish();
    }
    let (store, secret_key) = config_store::read(&top, &mut ignored);
    let access = access::read(&top);
    let source = read_source(&top, &mut ignored);
    top.finish();
    Some(Config {
        address,
        access,
        max_task_num,
        max_name_length,
        store,
        secret_key,
        source: source?,
        log_level,
        log_json,
        memory_budget,
        durable_every: Duration::from_secs(durable_every),
        call_timeout: Duration::from_millis(call_timeout),
        ignored: ignored
            .into_iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
    })
}

/// Checks `level[,module=level]*`; gives back the part that is wrong.
pub(crate) fn check_filter(filter: &str) -> Result<(), String> {
    let levels = ["trace", "debug", "info", "warn", "error", "off"];
    for (i, part) in filter.split(',').map(str::trim).enumerate() {
        let (module, level) = part
            .split_once('=')
            .map_or((None, part), |(m, l)| (Some(m), l));
        let module_ok = match module {
            None => i == 0,
            Some(m) => !m.is_empty() && m.chars().all(|c| c.is_alphanumeric() || "_:-".contains(c)),
        };
        if !module_ok || !levels.contains(&level) {
            return Err(part.to_owned());
        }
    }
    Ok(())
}

fn read_source(top: &Fields<'_>, ignored: &mut Vec<String>) -> Option<Source> {
    let Some(source) = top.object("sourceConfig") else {
        if !top.has("sourceConfig") {
            top.wrong(
                "sourceConfig",
                "missing; it needs one of natsmq, rocksmq, kafka, pulsar",
            );
        }
        return None;
    };
    ignored.extend(source.accept(&[
        "readChanLen",
        "channelNum",
        "timeTickInterval",
        "defaultPartitionName",
    ]));
    let etcd = read_etcd(&source, ignored);
    let replicate_channel = source
        .string("replicateChan")
        .unwrap_or_else(|| "by-dev-replicate-msg".to_owned());
    if replicate_channel.is_empty() {
        source.wrong(
            "replicateChan",
            "the name of the source's replicate channel expected, not \"\"",
        );
    }
    let queue = read_queue(&source, ignored);
    let milvus = source.secret_object("milvus").and_then(read_milvus);
    source.finish();
    Some(Source {
        etcd,
        milvus,
        replicate_channel,
        queue: queue?,
    })
}

/// Where rows of the source are read that were there before a task.
fn read_milvus(fields: Fields<'_>) -> Option<RowsConfig> {
    let uri = fields.string("uri");
    if uri.is_none() && !fields.has("uri") {
        fields.wrong(
            "uri",
            "missing; http://host:port expected, of the source's Milvus",
        );
    }
    let uri = uri.and_then(|uri| match normalise_uri(&uri) {
        Ok(uri) => Some(uri),
        Err(why) => {
            fields.wrong("uri", why);
            None
        }
    });
    let (token, username, password) = (
        fields.secret("token"),
        fields.string("username"),
        fields.secret("password"),
    );
    let login = match (token, username, password) {
        (None, None, None) => Some(String::new()),
        (Some(token), None, None) => Some(token),
        (None, Some(username), Some(password)) => match resolve_secret(&password) {
            Ok(password) => Some(format!("{username}:{}", password.expose())),
            Err(cause) => {
                fields.wrong("password", cause);
                None
            }
        },
        _ => {
            fields.wrong("token", "either token, or username and password expected");
            None
        }
    };
    let token = login.and_then(|login| match resolve_secret(&login) {
        Ok(token) => Some(token),
        Err(cause) => {
            fields.wrong("token", cause);
            None
        }
    });
    let tls = match uri
        .as_deref()
        .is_some_and(|uri| uri.starts_with("https://"))
    {
        true => tls_fields::etcd(&fields),
        false => {
            fields.accept(&tls_fields::ETCD);
            ClientTls::default()
        }
    };
    fields.finish();
    Some(RowsConfig {
        uri: uri?,
        token: token?,
        tls,
    })
}

fn read_queue(source: &Fields<'_>, ignored: &mut Vec<String>) -> Option<Queue> {
    let natsmq = source.object("natsmq").and_then(|natsmq| {
        let address = natsmq.string("address");
        let ok = address.as_deref().is_some_and(|a| {
            a.strip_prefix("nats://")
                .and_then(|rest| rest.trim_end_matches('/').rsplit_once(':'))
                .is_some_and(|(host, port)| {
                    !host.is_empty() && !host.contains('@') && port.parse::<u16>().is_ok()
                })
        });
        if !ok {
            // Not shown: somebody may have put a password into it.
            natsmq.wrong("address", "nats://host:port expected, without a login");
        }
        natsmq.finish();
        address
            .filter(|_| ok)
            .map(|address| Queue::Natsmq { address })
    });
    let rocksmq = source.object("rocksmq").and_then(|rocksmq| {
        let path = rocksmq.string("path").filter(|p| !p.is_empty());
        if path.is_none() {
            rocksmq.wrong("path", "missing; the directory of the source's RocksMQ expected (rocksmq.path of its milvus.yaml)");
        }
        rocksmq.finish();
        path.map(|path| Queue::Rocksmq { path: path.into() })
    });
    let pulsar = source.object("pulsar").and_then(|pulsar| {
        let queue = pulsar::read(&pulsar, ignored);
        pulsar.finish();
        queue
    });
    let kafka = source.object("kafka").and_then(|kafka| {
        let queue = kafka::read(&kafka, ignored);
        kafka.finish();
        queue
    });
    let given = ["natsmq", "rocksmq", "pulsar", "kafka"]
        .iter()
        .filter(|key| source.has(key))
        .count();
    if given != 1 {
        source.wrong(
            "natsmq | rocksmq | kafka | pulsar",
            format_args!(
                "exactly one queue expected, {given} given; allowed: natsmq, rocksmq, kafka, pulsar"
            ),
        );
        return None;
    }
    let queue = natsmq.or(rocksmq).or(kafka).or(pulsar)?;
    #[allow(clippy::match_like_matches_macro)] // it is a table of features, whatever this build has
    let built = match queue {
        Queue::Rocksmq { .. } => cfg!(feature = "rocksmq"),
        Queue::Natsmq { .. } => cfg!(feature = "natsmq"),
        Queue::Pulsar(_) => cfg!(feature = "pulsar"),
        Queue::Kafka(_) => cfg!(feature = "kafka"),
    };
    if !built {
        source.wrong(
            &queue.kind().to_string(),
            "this program was built without this queue",
        );
    }
    Some(queue)
}

fn read_etcd(source: &Fields<'_>, ignored: &mut Vec<String>) -> Etcd {
    let mut read = Etcd {
        endpoints: vec!["http://127.0.0.1:2379".to_owned()],
        root_path: "by-dev".to_owned(),
        meta_sub_path: "meta".to_owned(),
        kv_sub_path: "kv".to_owned(),
        login: None,
        tls: ClientTls::default(),
    };
    let old = read_old_etcd(source, &read, ignored);
    if let Some(etcd) = source.object("etcd") {
        let path = source.path("etcd");
        let mut ignored_here = Vec::new();
        read_new_etcd(etcd, &mut read, &mut ignored_here);
        if old.is_some() {
            ignored.push(path);
        } else {
            ignored.append(&mut ignored_here);
        }
    }
    old.unwrap_or(read)
}

/// The keys before `etcd`. As in the Go server `etcdAddress` replaces the whole of `etcd`, and without it the other two
/// mean nothing.
fn read_old_etcd(source: &Fields<'_>, default: &Etcd, ignored: &mut Vec<String>) -> Option<Etcd> {
    let empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty);
    let address = source.get("etcdAddress").filter(|v| !empty(v));
    let root_path = source.string("etcdRootPath");
    let meta_sub_path = source.string("etcdMetaSubPath");
    let Some(address) = address else {
        ignored.extend(source.accept(&["etcdAddress", "etcdRootPath", "etcdMetaSubPath"]));
        return None;
    };
    let default = default.clone();
    Some(Etcd {
        endpoints: endpoints(source, "etcdAddress", address).unwrap_or_default(),
        root_path: root_path.unwrap_or(default.root_path),
        meta_sub_path: meta_sub_path.unwrap_or(default.meta_sub_path),
        ..default
    })
}

fn read_new_etcd(etcd: Fields<'_>, read: &mut Etcd, ignored: &mut Vec<String>) {
    if let Some(found) = etcd
        .get("address")
        .and_then(|v| endpoints(&etcd, "address", v))
    {
        read.endpoints = found;
    }
    for (key, place) in [
        ("rootPath", &mut read.root_path),
        ("metaSubPath", &mut read.meta_sub_path),
        ("kvSubPath", &mut read.kv_sub_path),
    ] {
        if let Some(given) = etcd.string(key) {
            *place = given;
        }
    }
    let (username, password) = (etcd.string("username"), etcd.secret("password"));
    if etcd.boolean("enableAuth") == Some(true) {
        match (username, password) {
            (Some(username), Some(password)) => match resolve_secret(&password) {
                Ok(password) => read.login = Some((username, password)),
                Err(cause) => etcd.wrong("password", cause),
            },
            _ => etcd.wrong("enableAuth", "true needs username and password"),
        }
    }
    let https = read.endpoints.iter().any(|e| e.starts_with("https://"));
    if etcd.boolean("enableTLS").unwrap_or(https) {
        read.tls = tls_fields::etcd(&etcd);
        for endpoint in &mut read.endpoints {
            *endpoint = endpoint.replacen("http://", "https://", 1);
        }
    } else {
        ignored.extend(etcd.accept(&tls_fields::ETCD));
    }
    etcd.finish();
}

/// A list of `http(s)://host:port`, or one of them.
pub(crate) fn endpoints(
    fields: &Fields<'_>,
    key: &'static str,
    value: &Value,
) -> Option<Vec<String>> {
    let list: Vec<&Value> = match value {
        Value::Array(list) => list.iter().collect(),
        one => vec![one],
    };
    let mut found = Vec::new();
    for value in &list {
        let Some(text) = value.as_str() else {
            fields.wrong(key, "a list of http://host:port expected");
            return None;
        };
        let rest = text
            .strip_prefix("http://")
            .or_else(|| text.strip_prefix("https://"))
            .unwrap_or(text);
        let ok = rest
            .trim_end_matches('/')
            .rsplit_once(':')
            .is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains(['/', '@']) && port.parse::<u16>().is_ok()
            });
        if !ok {
            fields.wrong(
                key,
                "http://host:port or https://host:port expected, without a login",
            );
            return None;
        }
        found.push(if rest == text {
            format!("http://{text}")
        } else {
            text.to_owned()
        });
    }
    if found.is_empty() {
        fields.wrong(key, "at least one http://host:port expected");
        return None;
    }
    let secure = found.iter().filter(|e| e.starts_with("https://")).count();
    if secure != 0 && secure != found.len() {
        fields.wrong(key, "all with https:// or all with http:// expected");
        return None;
    }
    Some(found)
}

/// `file:PATH` stands for what is in the file, without the line end.
pub(crate) fn resolve_secret(value: &str) -> Result<Secret, String> {
    let Some(path) = value.strip_prefix("file:") else {
        return Ok(Secret::new(value));
    };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Secret::new(text.trim_end_matches(['\n', '\r']))),
        Err(cause) => Err(format!("cannot read {path}: {cause}")),
    }
}
