//! From a Go server's task to one of ours, as far as there is one: read as a create request of its own, with the same
//! checks and the same words.

use cdc_core::ids::TaskId;
use serde_json::{Map, Value, json};

use super::kept::{CollectionInfo, PAUSED, TaskInfo};
use crate::fields::{Errors, Fields, clip};
use crate::request::{self, Limits};
use crate::store::Desired;
use crate::tasks::{Task, TaskLimits, task, unix_ms};

/// Something that is not taken: what, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Left {
    pub what: String,
    pub hint: String,
}

pub(super) fn left(what: impl Into<String>, hint: impl Into<String>) -> Left {
    Left {
        what: what.into(),
        hint: hint.into(),
    }
}

/// The task, without positions, and what of it is not taken.
///
/// # Errors
/// Why it cannot be taken.
pub(super) fn read(
    info: &TaskInfo,
    limits: &Limits,
    of_tasks: &TaskLimits,
) -> Result<(Task, Vec<Left>), Vec<Left>> {
    refuse(info)?;
    let notes = notes(info, limits);
    let request = request_of(info);
    let errors = Errors::default();
    let wanted = request::create(Fields::root(&request, &errors), limits);
    let correct = "delete it in the Go server and create it here as you want it, with on_conflict: adopt and its positions";
    errors.check().map_err(|all| -> Vec<Left> {
        all.into_iter().map(|what| left(what, correct)).collect()
    })?;
    let Some(wanted) = wanted else {
        return Err(vec![left("it is incomplete", correct)]);
    };
    let mut task = task(
        wanted,
        TaskId::new(info.task_id.as_str()),
        unix_ms(),
        of_tasks,
    );
    let reason = match (info.state, info.disable_auto_start) {
        (PAUSED, _) => Some(info.reason.clone()),
        (_, true) => Some("it was not to start by itself (DisableAutoStart)".to_owned()),
        _ => None,
    };
    if let Some(reason) = reason {
        task.desired = Desired::Paused {
            by: "the Go server".to_owned(),
            since: task.created,
            reason: one_line(&reason),
        };
    }
    Ok((task, notes))
}

/// What a person or an error said, as one line of some length.
fn one_line(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    match line.char_indices().nth(400) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn refuse(info: &TaskInfo) -> Result<(), Vec<Left>> {
    let mut all = Vec::new();
    if !info.kafka_connect_param.address.is_empty() {
        all.push(left(
            format!(
                "its target is the topic {:?} of a Kafka (kafka_connect_param); only a Milvus can be one here",
                clip(&info.kafka_connect_param.topic)
            ),
            "leave this task with the Go server, in a store of its own",
        ));
    }
    if !info.name_mapping.is_empty() {
        all.push(left(
            "it writes to other names (name_mapping), which is not available in this version",
            "leave this task with the Go server, in a store of its own",
        ));
    }
    if !info.exclude_collections.is_empty() {
        let names: Vec<String> = info
            .exclude_collections
            .iter()
            .take(8)
            .map(|n| clip(n))
            .collect();
        all.push(left(
            format!(
                "it leaves out what other tasks carried when it was created ({}); here two tasks never overlap",
                names.join(", ")
            ),
            "create one task here for all of it, with on_conflict: adopt, in place of this one and those",
        ));
    }
    if all.is_empty() { Ok(()) } else { Err(all) }
}

/// What is not taken of a task that is.
fn notes(info: &TaskInfo, limits: &Limits) -> Vec<Left> {
    let mut all = Vec::new();
    if info.extra_info.enable_user_role {
        all.push(left(
            "users and roles (extra_info.enable_user_role) are not carried",
            "from now on change them on the target yourself",
        ));
    }
    let rpc = &info.rpc_request_channel_info;
    if !rpc.name.is_empty() && rpc.name != limits.replicate_channel {
        all.push(left(
            format!(
                "it read the replicate channel {:?}, sourceConfig.replicateChan is {:?}",
                clip(&rpc.name),
                clip(&limits.replicate_channel)
            ),
            "correct sourceConfig.replicateChan if it is the source's",
        ));
    }
    for key in info.others.keys() {
        all.push(left(
            format!("{} is not known here: of a newer Go server?", clip(key)),
            "compare the task with what it did there before you rely on it",
        ));
    }
    all
}

/// `request.CreateRequest` of what the task says, but for positions, which have become its progress.
fn request_of(info: &TaskInfo) -> Map<String, Value> {
    let mut databases: Map<String, Value> = Map::new();
    let shown = |infos: &[CollectionInfo]| -> Vec<Value> {
        infos
            .iter()
            .map(|info| {
                json!({ "name": info.name, "positions": {}, "use_start_position": info.use_start_position })
            })
            .collect()
    };
    for (database, infos) in &info.db_collections {
        let infos = shown(infos.as_deref().unwrap_or_default());
        databases.insert(database.clone(), Value::Array(infos));
    }
    // In the Go server these are of the database `default`, `*` too (`GetCollectionInfos` in server/cdc_impl.go).
    if !info.collection_infos.is_empty() {
        let infos = shown(&info.collection_infos);
        match databases.get_mut("default").and_then(Value::as_array_mut) {
            Some(there) => there.extend(infos),
            None => drop(databases.insert("default".to_owned(), Value::Array(infos))),
        }
    }
    Map::from_iter([
        ("task_id".to_owned(), json!(info.task_id)),
        (
            "milvus_connect_param".to_owned(),
            Value::Object(info.milvus_connect_param.clone()),
        ),
        ("db_collections".to_owned(), Value::Object(databases)),
    ])
}

#[cfg(test)]
mod tests {
    use cdc_core::position::QueueKind;
    use cdc_core::task::{Pattern, Selection};
    use std::time::Duration;

    use super::super::kept::parse;
    use super::*;

    fn taken(change: impl FnOnce(&mut Value)) -> Result<(Task, Vec<Left>), Vec<Left>> {
        let mut go = json!({
            "TaskID": "t1",
            "MilvusConnectParam": {
                "host": "", "port": 0, "enable_tls": false, "uri": "http://T:19530", "token": "root:hush-hush",
                "dial_config": {}, "channel_num": 16, "ignore_partition": false, "connect_timeout": 7,
            },
            "KafkaConnectParam": { "address": "", "topic": "", "enable_sasl": false, "sasl": {} },
            "WriterCacheConfig": { "period": 0, "size": 0 },
            "CollectionInfos": [{ "name": "*", "positions": null, "use_start_position": false }],
            "DBCollections": null, "NameMapping": null,
            "RPCRequestChannelInfo": { "name": "", "position": "" },
            "ExtraInfo": { "enable_user_role": false },
            "ExcludeCollections": null, "DisableAutoStart": false, "State": 1, "Reason": "",
        });
        change(&mut go);
        let limits = Limits {
            max_name_length: 256,
            queue: QueueKind::Natsmq,
            replicate_channel: "by-dev-replicate-msg".to_owned(),
            rows: false,
        };
        let of_tasks = TaskLimits {
            max_task_num: 9,
            memory_budget: 1,
            durable_every: Duration::from_secs(300),
            call_timeout: Duration::from_secs(1),
            answer_deadline: Duration::from_secs(1),
        };
        let info: TaskInfo = parse("k", go.to_string().as_bytes()).unwrap();
        read(&info, &limits, &of_tasks)
    }

    fn selected(change: impl FnOnce(&mut Value)) -> Selection {
        taken(change).map(|(task, _)| task.spec.selection).unwrap()
    }

    #[test]
    fn a_star_without_a_database_is_the_database_default() {
        let (task, notes) = taken(|_| {}).unwrap();
        let of_default = Selection::Collections(vec![Pattern::database("default")]);
        assert_eq!(task.spec.selection, of_default);
        assert_eq!((task.spec.id.as_str(), notes), ("t1", Vec::new()));
        assert_eq!(task.spec.target.uri, "http://t:19530");
        assert_eq!(task.spec.target.token.expose(), "root:hush-hush");
        assert_eq!(task.spec.target.connect_timeout, Duration::from_secs(7));
        assert_eq!(task.desired, Desired::Running);
        let shown = serde_json::to_string(&task.given).unwrap();
        assert!(!shown.contains("hush"), "{shown}");
        let everything = |go: &mut Value| {
            go["CollectionInfos"] = Value::Null;
            go["DBCollections"] = json!({ "*": [{ "name": "*" }] });
        };
        assert_eq!(selected(everything), Selection::All);
        let one = |go: &mut Value| go["CollectionInfos"][0]["name"] = json!("a");
        assert_eq!(
            selected(one),
            Selection::Collections(vec![Pattern::exact("default", "a")])
        );
    }

    #[test]
    fn a_paused_task_stays_paused_with_its_reason() {
        let paused = |go: &mut Value| {
            go["State"] = json!(2);
            go["Reason"] = json!("fail to\nread");
        };
        let Desired::Paused { by, reason, .. } = taken(paused).unwrap().0.desired else {
            panic!("it runs");
        };
        assert_eq!(
            (by.as_str(), reason.as_str()),
            ("the Go server", "fail to read")
        );
        let by_hand = taken(|go| go["DisableAutoStart"] = json!(true)).unwrap().0;
        assert!(matches!(by_hand.desired, Desired::Paused { .. }));
    }

    #[test]
    fn what_cannot_be_taken_is_said_with_a_way_out() {
        let kafka = |go: &mut Value| {
            go["MilvusConnectParam"]["uri"] = json!("");
            go["KafkaConnectParam"]["address"] = json!("k:9092");
        };
        let mapped = |go: &mut Value| {
            go["NameMapping"] = json!([{ "source_db": "a", "target_db": "b" }]);
        };
        let left_out = |go: &mut Value| go["ExcludeCollections"] = json!(["default.a"]);
        let partition = |go: &mut Value| go["MilvusConnectParam"]["ignore_partition"] = json!(true);
        let id = |go: &mut Value| go["TaskID"] = json!("a b");
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 5] = [
            (kafka, "kafka_connect_param"),
            (mapped, "name_mapping"),
            (left_out, "default.a"),
            (partition, "milvus_connect_param.ignore_partition"),
            (id, "task_id"),
        ];
        for (change, said) in cases {
            let why = taken(change).map(drop).unwrap_err();
            assert_eq!(why.len(), 1, "{why:?}");
            assert!(
                why[0].what.contains(said) && !why[0].hint.is_empty(),
                "{why:?}"
            );
        }
    }

    #[test]
    fn what_is_left_behind_of_a_task_is_said() {
        let (_, notes) = taken(|go| {
            go["ExtraInfo"]["enable_user_role"] = json!(true);
            go["RPCRequestChannelInfo"]["name"] = json!("other");
            go["Later"] = json!(1);
        })
        .unwrap();
        let all: String = notes.iter().map(|n| n.what.as_str()).collect();
        for said in ["enable_user_role", "\"other\"", "Later"] {
            assert!(all.contains(said), "{all}");
        }
    }
}
