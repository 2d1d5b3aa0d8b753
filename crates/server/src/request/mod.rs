//! Requests: JSON to what is asked for, checked.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::Uri;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::ids::{PChannel, VChannel};
use cdc_core::position::{Position, QueueKind};
use cdc_core::secret::Secret;
use cdc_core::task::{Choice, OnConflict, Selection, StartPoint};
use cdc_core::tso::Tso;
use serde_json::Value;

use crate::fields::{Fields, clip, objects_of};

/// Limits that come from the configuration.
#[derive(Clone, Debug)]
pub struct Limits {
    pub max_name_length: usize,
    pub queue: QueueKind,
    pub replicate_channel: String,
}

#[derive(Clone, PartialEq, Debug)]
pub struct CreateTask {
    pub id: Option<String>,
    pub uri: String,
    pub token: Secret,
    pub connect_timeout: Duration,
    pub selection: Selection,
    pub start: StartPoint,
    pub positions: BTreeMap<PChannel, Position>,
    pub on_conflict: OnConflict,
}

/// A person's answer for one collection.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    pub database: String,
    pub name: String,
    pub choice: Choice,
}

const STARTS: &[(&str, StartPoint)] = &[
    ("created", StartPoint::Created),
    ("earliest", StartPoint::Earliest),
    ("now", StartPoint::Now),
];
const CONFLICTS: &[(&str, OnConflict)] = &[
    ("ask", OnConflict::Ask),
    ("adopt", OnConflict::Adopt),
    ("recreate", OnConflict::Recreate),
];

/// Reads `request_data` of a create request. What is wrong goes to the errors of `data`.
pub fn create(data: Fields<'_>, limits: &Limits) -> Option<CreateTask> {
    let id = data.string("task_id").filter(|id| !id.is_empty());
    if let Some(id) = &id
        && !(id.len() <= 64
            && id
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'))
    {
        data.wrong("task_id", "up to 64 letters, digits, '-' and '_' expected");
    }
    refuse_what_is_not_there(&data, limits);
    data.accept(&["buffer_config"]);
    let target = match data.object("milvus_connect_param") {
        Some(param) => connect_param(param),
        None => {
            if !data.has("milvus_connect_param") {
                data.wrong("milvus_connect_param", "missing");
            }
            None
        }
    };
    let mut reader = SelectionReader {
        limits,
        all: false,
        list: Vec::new(),
        positions: BTreeMap::new(),
    };
    let mut start = data.choice("start", STARTS);
    let mut given = false;
    for info in data.objects("collection_infos").unwrap_or_default() {
        given = true;
        reader.info(None, info, &mut start);
    }
    if let Some(databases) = data.object("db_collections") {
        for (database, list) in databases.entries() {
            given = true;
            reader.database(&data, database, list, &mut start);
        }
    }
    if !given && !data.has("collection_infos") && !data.has("db_collections") {
        data.wrong(
            "collection_infos",
            "missing; [{\"name\": \"*\"}] stands for every collection",
        );
    } else if !given {
        data.wrong(
            "collection_infos",
            "empty; [{\"name\": \"*\"}] stands for every collection",
        );
    }
    if reader.all && !reader.list.is_empty() {
        data.wrong(
            "collection_infos",
            "'*' stands for every collection; name no other one beside it",
        );
    }
    reader.positions(&data);
    let on_conflict = data.choice("on_conflict", CONFLICTS).unwrap_or_default();
    let selection = if reader.all {
        Selection::All
    } else {
        Selection::Collections(reader.list)
    };
    let positions = reader.positions;
    data.finish();
    let (uri, token, connect_timeout) = target?;
    let start = start.unwrap_or_default();
    Some(CreateTask {
        id,
        uri,
        token,
        connect_timeout,
        selection,
        start,
        positions,
        on_conflict,
    })
}

/// What the Go server can do and would change the outcome, but is not there yet.
fn refuse_what_is_not_there(data: &Fields<'_>, limits: &Limits) {
    let later = "not available in this version";
    if let Some(kafka) = data.get("kafka_connect_param")
        && kafka.get("address").and_then(Value::as_str) != Some("")
    {
        data.wrong("kafka_connect_param", later);
    }
    if data
        .get("name_mapping")
        .is_some_and(|v| v.as_array().is_none_or(|list| !list.is_empty()))
    {
        data.wrong("name_mapping", later);
    }
    if data.boolean("disable_auto_start") == Some(true) {
        data.wrong("disable_auto_start", later);
    }
    if let Some(extra) = data.object("extra_info") {
        if extra.boolean("enable_user_role") == Some(true) {
            extra.wrong("enable_user_role", later);
        }
        extra.finish();
    }
    if let Some(rpc) = data.object("rpc_channel_info") {
        let name = rpc.string("name").unwrap_or_default();
        if !name.is_empty() && name != limits.replicate_channel {
            let expected = &limits.replicate_channel;
            rpc.wrong(
                "name",
                format_args!(
                    "{expected} expected (sourceConfig.replicateChan), not {:?}",
                    clip(&name)
                ),
            );
        }
        if rpc.string("position").is_some_and(|p| !p.is_empty()) {
            rpc.wrong("position", later);
        }
        rpc.finish();
    }
}

fn connect_param(param: Fields<'_>) -> Option<(String, Secret, Duration)> {
    let uri = param.string("uri").filter(|uri| !uri.is_empty());
    let host = param.string("host").filter(|host| !host.is_empty());
    let port = param.integer("port", 0..=65_535).filter(|port| *port > 0);
    let tls = param.boolean("enable_tls").unwrap_or(false);
    let uri = match (uri, host, port) {
        (Some(uri), ..) => match normalise_uri(&uri) {
            Ok(uri) => Some(uri),
            Err(cause) => {
                param.wrong("uri", cause);
                None
            }
        },
        (None, Some(host), Some(port)) => {
            match normalise_uri(&format!("{}://{host}:{port}", scheme(tls))) {
                Ok(uri) => Some(uri),
                Err(cause) => {
                    param.wrong("host", cause);
                    None
                }
            }
        }
        _ => {
            param.wrong(
                "uri",
                "missing; http://host:port of the target (or host and port)",
            );
            None
        }
    };
    let token = param.secret("token").filter(|t| !t.is_empty());
    let username = param.string("username").filter(|t| !t.is_empty());
    let password = param.secret("password").filter(|t| !t.is_empty());
    let token = match (token, username, password) {
        (Some(token), ..) => token,
        (None, Some(username), Some(password)) => format!("{username}:{password}"),
        (None, None, None) => String::new(),
        (None, Some(_), None) => {
            param.wrong("password", "missing; username and password go together");
            String::new()
        }
        (None, None, Some(_)) => {
            param.wrong("username", "missing; username and password go together");
            String::new()
        }
    };
    let timeout = param
        .integer("connect_timeout", 0..=300)
        .filter(|s| *s > 0)
        .unwrap_or(10);
    param.accept(&["channel_num"]);
    if param
        .get("dial_config")
        .is_some_and(|v| v.as_object().is_none_or(|map| !map.is_empty()))
    {
        param.wrong(
            "dial_config",
            "not available in this version; https uses the system's certificates",
        );
    }
    if param.boolean("ignore_partition") == Some(true) {
        param.wrong("ignore_partition", "not available in this version");
    }
    param.finish();
    Some((uri?, Secret::new(token), Duration::from_secs(timeout)))
}

fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// Lower case, with scheme and port, without a path: one target has one spelling.
pub fn normalise_uri(uri: &str) -> Result<String, String> {
    let expected = "http://host:port or https://host:port expected";
    if uri.contains('@') {
        // Not shown: what is before the @ may be a password.
        return Err(format!("{expected}, without a login; use token"));
    }
    let bad = || format!("{expected}, not {:?}", clip(uri));
    let full = if uri.contains("://") {
        uri.to_owned()
    } else {
        format!("http://{uri}")
    };
    let parsed: Uri = full.parse().map_err(|_| bad())?;
    let scheme = parsed
        .scheme_str()
        .map(str::to_ascii_lowercase)
        .filter(|s| s == "http" || s == "https");
    let (Some(scheme), Some(host)) = (scheme, parsed.host().filter(|h| !h.is_empty())) else {
        return Err(bad());
    };
    if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() {
        return Err(bad());
    }
    let port = match (
        parsed.port_u16(),
        parsed.authority().map(|a| a.as_str().len() > host.len()),
    ) {
        (Some(0), _) | (None, Some(true)) => return Err(bad()),
        (Some(port), _) => port,
        (None, _) => 19530,
    };
    Ok(format!("{scheme}://{}:{port}", host.to_ascii_lowercase()))
}

struct SelectionReader<'l> {
    limits: &'l Limits,
    all: bool,
    list: Vec<(String, String)>,
    positions: BTreeMap<PChannel, Position>,
}

impl SelectionReader<'_> {
    fn database(
        &mut self,
        data: &Fields<'_>,
        database: &str,
        list: &Value,
        start: &mut Option<StartPoint>,
    ) {
        let at = format!("db_collections.{}", clip(database));
        let Value::Array(list) = list else {
            data.errors().add(format!("{at}: a list expected"));
            return;
        };
        if database != "*"
            && let Err(cause) = check_name(database, self.limits.max_name_length)
        {
            data.errors().add(format!("{at}: database name: {cause}"));
        }
        if list.is_empty() {
            data.errors()
                .add(format!("{at}: empty; name the collections"));
        }
        for info in objects_of(&at, list, data.errors()) {
            self.info(Some(database), info, start);
        }
    }

    fn info(&mut self, database: Option<&str>, info: Fields<'_>, start: &mut Option<StartPoint>) {
        let name = info.string("name");
        if info.boolean("use_start_position") == Some(true) {
            match start {
                None | Some(StartPoint::Created) => *start = Some(StartPoint::Created),
                Some(_) => info.wrong(
                    "use_start_position",
                    "true contradicts start; leave out one of them",
                ),
            }
        }
        self.positions(&info);
        match (name.as_deref(), database) {
            (None, _) => {
                if !info.has("name") {
                    info.wrong("name", "missing");
                }
            }
            (Some("*"), None | Some("*")) => self.all = true,
            (Some("*"), Some(_)) | (Some(_), Some("*")) => info.wrong(
                "name",
                "a whole database, or one name in all of them, is not available in this version; name each collection, or '*' for everything",
            ),
            (Some(name), _) => {
                let (db, name) = match database {
                    Some(db) => (db, name),
                    None => name.split_once('.').unwrap_or(("default", name)),
                };
                for part in [db, name] {
                    if let Err(cause) = check_name(part, self.limits.max_name_length) {
                        info.wrong("name", cause);
                    }
                }
                let pair = (db.to_owned(), name.to_owned());
                if self.list.contains(&pair) {
                    info.wrong("name", format_args!("{}.{} is named twice", clip(db), clip(name)));
                } else {
                    self.list.push(pair);
                }
            }
        }
        info.finish();
    }

    fn positions(&mut self, fields: &Fields<'_>) {
        for (channel, position) in positions(fields, self.limits.queue) {
            match self.positions.insert(channel.clone(), position) {
                Some(before) if before != position => {
                    fields.wrong(
                        "positions",
                        format_args!("{channel} is given twice: {before} and {position}"),
                    );
                }
                _ => {}
            }
        }
    }
}

/// Reads `positions`: channel (physical or virtual) to position.
fn positions(fields: &Fields<'_>, queue: QueueKind) -> Vec<(PChannel, Position)> {
    let Some(map) = fields.object("positions") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (channel, value) in map.entries() {
        let vchannel = VChannel::new(channel.as_str());
        let pchannel = if vchannel.shard().is_some() {
            vchannel.pchannel()
        } else {
            PChannel::new(channel.as_str())
        };
        match value
            .as_str()
            .ok_or_else(|| "a string expected".to_owned())
            .and_then(|s| decode_position(queue, s))
        {
            Ok(position) => found.push((pchannel, position)),
            Err(cause) => map.wrong(&clip(channel), cause),
        }
    }
    found
}

/// Names of databases and collections, as Milvus takes them.
pub fn check_name(name: &str, max: usize) -> Result<(), String> {
    if name.is_empty() {
        return Err("a name expected, not \"\"".to_owned());
    }
    if name.len() > max {
        return Err(format!(
            "{:?} has {} bytes, maxNameLength allows {max}",
            clip(name),
            name.len()
        ));
    }
    let head = name
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !head
        || !name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    {
        return Err(format!(
            "{:?} is not a legal name: a letter or '_' first, then letters, digits, '_' and '$'",
            clip(name)
        ));
    }
    Ok(())
}

/// Reads the answers of a resume request: `collections`.
pub fn answers(data: &Fields<'_>, limits: &Limits) -> Vec<Answer> {
    let mut found = Vec::new();
    for item in data.objects("collections").unwrap_or_default() {
        let database = item.string("db").unwrap_or_else(|| "default".to_owned());
        let name = item.string("name");
        if name.is_none() && !item.has("name") {
            item.wrong("name", "missing");
        }
        let at: BTreeMap<_, _> = positions(&item, limits.queue).into_iter().collect();
        let choices: Vec<Choice> = [
            item.choice("on_conflict", &CONFLICTS[1..])
                .map(Choice::Conflict),
            item.choice("start", &STARTS[1..]).map(Choice::Start),
            (!at.is_empty()).then_some(Choice::At(at)),
            (item.boolean("skip") == Some(true)).then_some(Choice::Skip),
        ]
        .into_iter()
        .flatten()
        .collect();
        if choices.len() != 1 {
            item.wrong(
                "name",
                "exactly one answer expected: on_conflict, start, positions or skip: true",
            );
        }
        item.finish();
        if let (Some(name), Some(choice)) = (name, choices.into_iter().next()) {
            found.push(Answer {
                database,
                name,
                choice,
            });
        }
    }
    found
}

/// Reads a position as Milvus' tools write it: base64 of a `MsgPosition`, or of the bare message id.
pub fn decode_position(queue: QueueKind, text: &str) -> Result<Position, String> {
    let bytes = STANDARD
        .decode(text.trim())
        .map_err(|_| format!("base64 expected, not {:?}", clip(text)))?;
    if let Ok(position) = Position::from_bytes(queue, &bytes)
        && queue != QueueKind::Pulsar
    {
        return Ok(position);
    }
    let id = message_id(&bytes)
        .ok_or_else(|| format!("{:?} is no message position of {queue}", clip(text)))?;
    Position::from_bytes(queue, id).map_err(|e| e.to_string())
}

/// Field 2 (msgID) of a `MsgPosition`; `None` if the bytes are not one.
fn message_id(mut bytes: &[u8]) -> Option<&[u8]> {
    let mut id = None;
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        match tag & 7 {
            0 => {
                varint(&mut bytes)?;
            }
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                if tag >> 3 == 2 {
                    id = Some(value);
                }
            }
            _ => return None,
        }
    }
    id
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Writes a position as base64 of a `MsgPosition{channel_name, msgID, timestamp}`.
pub fn encode_position(channel: &PChannel, position: &Position, timestamp: Tso) -> String {
    let mut out = Vec::new();
    for (tag, value) in [
        (0x0au8, channel.as_str().as_bytes()),
        (0x12, &position.to_bytes()),
    ] {
        out.push(tag);
        put_varint(&mut out, value.len() as u64);
        out.extend_from_slice(value);
    }
    if timestamp != Tso::ZERO {
        out.push(0x20);
        put_varint(&mut out, timestamp.0);
    }
    STANDARD.encode(out)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written_and_bare() {
        let position = Position::Natsmq(300);
        let text = encode_position(
            &PChannel::new("by-dev-rootcoord-dml_0"),
            &position,
            Tso::from_millis(1_700_000_000_000),
        );
        assert_eq!(decode_position(QueueKind::Natsmq, &text), Ok(position));
        assert_eq!(
            decode_position(QueueKind::Natsmq, &STANDARD.encode(position.to_bytes())),
            Ok(position)
        );
        for bad in ["%%%", "AAAA", ""] {
            assert!(decode_position(QueueKind::Natsmq, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_target_has_one_spelling() {
        for uri in [
            "http://HOST:19530",
            "host:19530",
            "http://host",
            "HTTP://host:19530/",
        ] {
            assert_eq!(
                normalise_uri(uri).as_deref(),
                Ok("http://host:19530"),
                "{uri}"
            );
        }
        for bad in [
            "ftp://h:1",
            "http://",
            "http://h:0",
            "http://h:99999",
            "http://h:1/path",
            "",
        ] {
            assert!(normalise_uri(bad).is_err(), "{bad}");
        }
        assert!(
            !normalise_uri("http://u:hush@h:1")
                .unwrap_err()
                .contains("hush")
        );
    }
}
