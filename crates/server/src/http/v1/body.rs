//! What the bodies of requests look like, for the OpenAPI document; they are read by `request`, which says more about
//! what is wrong than a deserializer could. The tests send what this describes.

use std::collections::BTreeMap;

use cdc_core::select;
use serde::Serialize;
use utoipa::ToSchema;

/// A task to be made.
#[derive(Serialize, ToSchema)]
#[schema(as = NewTask)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTask {
    /// Chosen by the client, so that a request can be repeated: the same id with the same content is the same task.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    pub(crate) id: Option<String>,
    pub(crate) target: NewTarget,
    /// Collections by database and name, or ordered rules, of which the last one that matches a collection decides.
    #[schema(min_items = 1)]
    pub(crate) collections: Vec<NewStep>,
    pub(crate) start: Option<Start>,
    pub(crate) on_conflict: Option<OnConflict>,
    /// `auto` if left out.
    pub(crate) mode: Option<Mode>,
    /// `incremental` if left out. `snapshot`: the rows of the collections that are there now are copied first. `auto`: of
    /// those whose first message the source's queue does not hold any more.
    pub(crate) initial: Option<Initial>,
    /// Load a collection on the source that is not loaded, for as long as it is copied.
    pub(crate) load_for_snapshot: Option<bool>,
    /// How many rows of all its collections together are copied at most.
    #[schema(minimum = 1, maximum = 1_099_511_627_776_u64)]
    pub(crate) rows_per_second: Option<u64>,
    #[schema(minimum = 1, maximum = 1_099_511_627_776_u64)]
    pub(crate) bytes_per_second: Option<u64>,
    /// Names on the target; the first that matches counts, what none matches keeps its name.
    pub(crate) mapping: Option<Vec<NewMapping>>,
    /// What happens on the source and is not carried.
    pub(crate) skip_operations: Option<Vec<Operation>>,
}

/// The Milvus that takes the rows, and its login: `token`, or `username` and `password`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTarget {
    /// `http://host:port` or `https://host:port`
    #[schema(example = "http://standby:19530")]
    pub(crate) uri: String,
    /// `user:password` or an API key. Never shown again.
    #[schema(write_only)]
    pub(crate) token: Option<String>,
    pub(crate) username: Option<String>,
    #[schema(write_only)]
    pub(crate) password: Option<String>,
    /// Seconds; 10 if left out.
    #[schema(minimum = 0, maximum = 300)]
    pub(crate) connect_timeout: Option<u64>,
    /// For an https address.
    pub(crate) dial_config: Option<DialConfig>,
}

/// PEM files on this server's machine; each connection reads them anew. Without an authority the system's certificates
/// count.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DialConfig {
    /// The target's authority.
    pub(crate) ca_pem_path: Option<String>,
    /// Instead of that: the target's own certificate.
    pub(crate) server_pem_path: Option<String>,
    /// A certificate of our own, with `client_key_path`.
    pub(crate) client_pem_path: Option<String>,
    pub(crate) client_key_path: Option<String>,
    /// If the certificate is for another name than the address.
    pub(crate) server_name: Option<String>,
}

/// One step of a selection.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum NewStep {
    Named(NewSelected),
    Rule(NewRule),
}

/// A rule: exactly one of `include` and `exclude`. A pattern is `database.name` with `*` and `?` in either part,
/// `database./regex/`, or `/regex/` over the whole of it.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRule {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) include: Option<Patterns>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exclude: Option<Patterns>,
    /// Then the patterns are of names alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) database: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Patterns {
    One(String),
    Several(Vec<String>),
}

/// How collections are called on the target. In `to`, `*` stands for what the one `*` of the same part of `from` does,
/// `{}` for the whole name of that part, `{database}` and `{name}` for those.
#[derive(Clone, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewMapping {
    #[schema(example = "db1.*")]
    pub(crate) from: String,
    #[schema(example = "db2.{}_copy")]
    pub(crate) to: String,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Initial {
    Incremental,
    Snapshot,
    Auto,
}

/// Where a collection goes on that has lost its position.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Beginning {
    Earliest,
    Now,
    Snapshot,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    DropDatabase,
    DropCollection,
    DropPartition,
    CreateIndex,
    DropIndex,
    Load,
    Release,
    Flush,
    RenameCollection,
    AlterCollection,
    AlterDatabase,
    AlterIndex,
    Alias,
}

impl From<select::Operation> for Operation {
    fn from(operation: select::Operation) -> Self {
        match operation {
            select::Operation::DropDatabase => Self::DropDatabase,
            select::Operation::DropCollection => Self::DropCollection,
            select::Operation::DropPartition => Self::DropPartition,
            select::Operation::CreateIndex => Self::CreateIndex,
            select::Operation::DropIndex => Self::DropIndex,
            select::Operation::Load => Self::Load,
            select::Operation::Release => Self::Release,
            select::Operation::Flush => Self::Flush,
            select::Operation::RenameCollection => Self::RenameCollection,
            select::Operation::AlterCollection => Self::AlterCollection,
            select::Operation::AlterDatabase => Self::AlterDatabase,
            select::Operation::AlterIndex => Self::AlterIndex,
            select::Operation::Alias => Self::Alias,
        }
    }
}

/// Collections by database and name.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSelected {
    /// `*` is any; `default` if left out.
    #[schema(pattern = r"^(\*|[A-Za-z_][A-Za-z0-9_$]{0,254})$")]
    pub(crate) database: Option<String>,
    /// `*` is any.
    #[schema(pattern = r"^(\*|[A-Za-z_][A-Za-z0-9_$]{0,254})$")]
    pub(crate) name: String,
    pub(crate) start: Option<Start>,
    /// Where to begin, by virtual channel: base64 of a `MsgPosition`.
    pub(crate) positions: Option<BTreeMap<String, String>>,
}

/// Where collections begin that are there when the task is created: at their creation, at the first message the queue
/// holds, or now.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Start {
    Created,
    Earliest,
    Now,
}

/// How the target is written to: as a standby, by replicated messages; as any Milvus, by its ordinary calls; or as what
/// it is found to be at the creation.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Auto,
    Replicate,
    Plain,
}

/// What to do with a collection that is on the target already and not empty: wait for an answer, go on into it, or drop
/// it there and begin anew.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnConflict {
    Ask,
    Adopt,
    Recreate,
}

/// A change of a task: at least one of these.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = TaskPatch)]
#[serde(deny_unknown_fields)]
pub(crate) struct Patch {
    pub(crate) state: Option<WantedState>,
    /// Why it is paused, in one line.
    #[schema(max_length = 200)]
    pub(crate) reason: Option<String>,
    /// For collections that wait for a person; the task has to run.
    pub(crate) answers: Option<Vec<Answer>>,
    pub(crate) target: Option<PatchTarget>,
    /// Replaces the list of the task. What is added joins, with its `start` and `positions`; what is left out stays on the
    /// target as it is, and goes on from there if it is added again. The others go on as they are.
    #[schema(min_items = 1)]
    pub(crate) collections: Option<Vec<NewStep>>,
    /// For collections that are met from now on, and those that wait in Conflict.
    pub(crate) on_conflict: Option<OnConflict>,
    /// Replaces the task's; collections that are carried already have to keep their names.
    pub(crate) mapping: Option<Vec<NewMapping>>,
    /// Replaces the task's.
    pub(crate) skip_operations: Option<Vec<Operation>>,
}

/// What changes of how the target is reached; what is left out stays. Not its address: what is known of the target's
/// time and objects goes by it. Tasks to one target share the login of the one that was running first: to give them
/// another one, pause them all, edit each, and let them run.
#[derive(Default, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PatchTarget {
    /// Taken if it is the one the task has.
    pub(crate) uri: Option<String>,
    /// `user:password` or an API key; empty for none. Never shown again.
    #[schema(write_only)]
    pub(crate) token: Option<String>,
    pub(crate) username: Option<String>,
    #[schema(write_only)]
    pub(crate) password: Option<String>,
    /// Seconds.
    #[schema(minimum = 0, maximum = 300)]
    pub(crate) connect_timeout: Option<u64>,
    /// Replaces all of the one before.
    pub(crate) dial_config: Option<DialConfig>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WantedState {
    Running,
    Paused,
}

/// The answer for one collection: exactly one of `on_conflict`, `start`, `positions`, `skip`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    /// `default` if left out.
    pub(crate) database: Option<String>,
    pub(crate) name: String,
    /// For `Conflict`: `adopt` or `recreate`.
    pub(crate) on_conflict: Option<OnConflict>,
    /// For `PositionLost`. `snapshot`: the collection is dropped on the target, made anew, and the rows that the source has
    /// now are copied.
    pub(crate) start: Option<Beginning>,
    /// For `PositionLost`: by virtual channel.
    pub(crate) positions: Option<BTreeMap<String, String>>,
    /// For `Quarantined`, or `Failing` at one message: leave that message out.
    pub(crate) skip: Option<bool>,
}

/// How a target is promoted.
#[derive(Serialize, ToSchema)]
#[schema(as = Promote)]
#[serde(deny_unknown_fields)]
pub(crate) struct Promote {
    /// The target's own etcd, through which its time is switched on; without it a person does that, and is waited for.
    pub(crate) target_etcd: Option<TargetEtcd>,
    /// How long each step may take, the wait for a person included; an hour if left out.
    #[schema(minimum = 1, maximum = 604_800)]
    pub(crate) patience_seconds: Option<u64>,
}

/// An etcd; the files are on this server's machine.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetEtcd {
    /// `http://host:port`, or `https://` for all of them.
    #[schema(min_items = 1, example = json!(["http://target-etcd:2379"]))]
    pub(crate) address: Vec<String>,
    /// The target's `etcd.rootPath`; `by-dev` if left out.
    #[serde(rename = "rootPath")]
    pub(crate) root_path: Option<String>,
    /// `meta` if left out.
    #[serde(rename = "metaSubPath")]
    pub(crate) meta_sub_path: Option<String>,
    /// With `password`. It has to read below `{rootPath}/meta/` and to write `{rootPath}/config/common/ttMsgEnabled`.
    pub(crate) username: Option<String>,
    #[schema(write_only)]
    pub(crate) password: Option<String>,
    /// Its authority, as a PEM file; only with `https://`, as all of these.
    #[serde(rename = "tlsCACertPath")]
    pub(crate) tls_ca_cert_path: Option<String>,
    /// A certificate of our own, with `tlsKeyPath`.
    #[serde(rename = "tlsCertPath")]
    pub(crate) tls_cert_path: Option<String>,
    #[serde(rename = "tlsKeyPath")]
    pub(crate) tls_key_path: Option<String>,
    /// `1.2` if left out.
    #[serde(rename = "tlsMinVersion")]
    pub(crate) tls_min_version: Option<String>,
}

/// Rows to be copied anew: exactly one of `int_keys` and `string_keys`.
#[derive(Serialize, ToSchema)]
#[schema(as = Repair)]
#[serde(deny_unknown_fields)]
pub(crate) struct Repair {
    /// The source's id.
    #[schema(pattern = "^[0-9]{1,19}$")]
    pub(crate) collection_id: String,
    /// The source's id of the partition in which the keys are looked at; left out with a partition key.
    #[schema(pattern = "^[0-9]{1,19}$")]
    pub(crate) partition_id: Option<String>,
    /// A timestamp of the source that was given out before the rows were read.
    #[schema(pattern = "^[0-9]{1,19}$")]
    pub(crate) read_at: String,
    /// The primary keys, each once. They are deleted on the target; those in `rows` are inserted again.
    #[schema(min_items = 1, max_items = 1000)]
    pub(crate) int_keys: Option<Vec<String>>,
    #[schema(min_items = 1, max_items = 1000)]
    pub(crate) string_keys: Option<Vec<String>>,
    /// What the source holds of these keys.
    pub(crate) rows: Option<Vec<RepairRows>>,
    /// Ask the target to flush the collection behind it.
    pub(crate) flush: Option<bool>,
}

/// Rows of one partition and one shard, as the source's proxy would have put them there.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RepairRows {
    /// The source's id.
    #[schema(pattern = "^[0-9]{1,19}$")]
    pub(crate) partition_id: String,
    #[schema(maximum = 65_535)]
    pub(crate) shard: u64,
    /// Base64 of a `milvus.proto.msg.InsertRequest`, of which `fields_data` counts: every field once, by its name.
    #[schema(content_encoding = "base64")]
    pub(crate) insert: String,
}

/// One more target that the doctor shall look at.
#[derive(Serialize, ToSchema)]
#[schema(as = DoctorRequest)]
#[serde(deny_unknown_fields)]
pub(crate) struct Doctor {
    pub(crate) milvus_connect_param: Option<NewTarget>,
}
