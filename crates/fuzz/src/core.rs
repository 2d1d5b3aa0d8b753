//! What comes from a source's queue and from its etcd.

use bytes::Bytes;
use cdc_core::catalog::assemble::Assembler;
use cdc_core::catalog::keys::MetaKey;
use cdc_core::catalog::{View, decode as values};
use cdc_core::decode::header::header;
use cdc_core::decode::{Event, Rows, decode, keys};
use cdc_core::ids::{CollectionId, FieldId, PartitionId, VChannel};
use cdc_core::position::{Position, QueueKind};
use cdc_core::route::encode::{self, Shard};
use cdc_core::route::tsmap::TsMap;
use cdc_core::tso::Tso;

use crate::{Target, way};

pub(crate) const MESSAGE: Target = Target {
    name: "message",
    run: message,
    words: &[],
};
pub(crate) const POSITION: Target = Target {
    name: "position",
    run: position,
    words: &[],
};
pub(crate) const CATALOG: Target = Target {
    name: "catalog",
    run: catalog,
    words: &[
        "root-coord/database/db-info/1",
        "root-coord/database/collection-info/1/7",
        "root-coord/collection/7",
        "root-coord/partitions/7/8",
        "root-coord/fields/7/100",
        "root-coord/functions/7/1",
        "root-coord/struct-array-fields/7/101",
        "root-coord/database/aliases/1/a",
        "root-coord/aliases/a",
        "root-coord/collection-alias/a",
        "field-index/7/9",
        "querycoord-collection-loadinfo/7",
        "querycoord-partition-loadinfo/7/8",
        "\u{26fc}",
    ],
};
pub(crate) const KEY: Target = Target {
    name: "key",
    run: key,
    words: CATALOG.words,
};

/// A message of a data channel: what is read of it, and what is made of that for a target.
fn message(data: &[u8]) -> u64 {
    let payload = Bytes::copy_from_slice(data);
    let head = header(data);
    let event = decode(&payload);
    match &event {
        Ok(Event::Rows(rows)) => {
            assert_eq!(head.collection_id, Some(rows.collection.0));
            carried(rows);
        }
        Ok(Event::DropCollection { collection, .. }) => {
            assert_eq!(head.collection_id.unwrap_or_default(), collection.0);
        }
        Ok(Event::DropPartition {
            collection,
            partition,
            ..
        }) => {
            assert_eq!(head.collection_id.unwrap_or_default(), collection.0);
            assert_eq!(head.partition_id.unwrap_or_default(), partition.0);
        }
        Ok(Event::Tick(_) | Event::Other(_)) | Err(_) => {}
    }
    let way_of_event = match &event {
        Ok(Event::Tick(_)) => "tick".to_owned(),
        Ok(Event::Rows(rows)) => format!(
            "{:?} {} {}",
            rows.kind,
            rows.body.len().min(20),
            keys::primary_keys(&rows.body, FieldId(100)).is_some()
        ),
        Ok(Event::DropCollection { .. }) => "collection".to_owned(),
        Ok(Event::DropPartition { .. }) => "partition".to_owned(),
        Ok(Event::Other(kind)) => format!("other {}", kind % 64),
        Err(error) => format!("{} {}", error.cause, error.collection.is_some()),
    };
    way((way_of_event, head.broken.is_some(), head.kind()))
}

/// What goes to a target says the same as what came, but for where it goes and when.
fn carried(rows: &Rows) {
    let to = Shard {
        collection: CollectionId(77),
        vchannel: VChannel::new("by-dev-rootcoord-dml_0_77v0"),
        database: "default".to_owned(),
        name: "c".to_owned(),
    };
    let floor = Tso(1 << 40);
    for map in [
        TsMap::Natural,
        TsMap::raise(rows.timestamps.iter().copied(), floor),
    ] {
        let sent = encode::rows(rows, &to, PartitionId(78), "p", &map, 5);
        let again = decode(&sent.whole());
        let wanted = Rows {
            id: 5,
            collection: to.collection,
            partition: PartitionId(78),
            vchannel: to.vchannel.clone(),
            timestamps: rows.timestamps.iter().map(|ts| map.get(*ts)).collect(),
            ..rows.clone()
        };
        assert_eq!(again, Ok(Event::Rows(wanted)));
    }
}

/// A message id of each queue.
fn position(data: &[u8]) -> u64 {
    let kinds = [
        QueueKind::Natsmq,
        QueueKind::Rocksmq,
        QueueKind::Kafka,
        QueueKind::Pulsar,
    ];
    let read = kinds.map(|kind| Position::from_bytes(kind, data));
    for found in &read {
        match found {
            Ok(position) => {
                let bytes = position.to_bytes();
                let again = Position::from_bytes(position.kind(), &bytes);
                assert_eq!(again.as_ref(), Ok(position));
                let json = serde_json::to_string(position).unwrap_or_default();
                assert_eq!(serde_json::from_str(&json).ok().as_ref(), Some(position));
                assert!(!position.to_string().is_empty());
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    way(read.map(|r| r.is_ok()))
}

/// Keys and values of a source's etcd: `key`, 0, two bytes of a length, so much of the value, and again.
fn catalog(data: &[u8]) -> u64 {
    let mut assembler = Assembler::after(std::sync::Arc::new(View::default()));
    let mut ways = Vec::new();
    let mut rest = data;
    let mut revision = 1;
    while let Some(end) = rest.iter().position(|b| *b == 0) {
        let (key, behind) = (&rest[..end], &rest[end + 1..]);
        let Some((length, behind)) = behind.split_first_chunk::<2>() else {
            break;
        };
        let length = usize::from(u16::from_le_bytes(*length)).min(behind.len());
        let (value, next) = behind.split_at(length);
        rest = next;
        let key = String::from_utf8_lossy(key);
        if let Some(meta) = MetaKey::parse(&key) {
            let read = values::decode(&meta, value);
            let what = match read {
                Ok(entry) => entry.is_some().to_string(),
                Err(cause) => cause.chars().filter(|c| !c.is_ascii_digit()).collect(),
            };
            ways.push((std::mem::discriminant(&meta), what));
        }
        let gone = value.is_empty() && revision % 2 == 0;
        assembler.apply(&key, (!gone).then_some(value), revision);
        revision += 1;
        if revision % 3 == 0 {
            let _ = assembler.commit(revision);
        }
        if revision > 64 {
            break;
        }
    }
    let _ = assembler.commit(revision);
    let view = assembler.view();
    for collection in view.collections.values() {
        let _ = (collection.primary_key(), collection.has_partition_key());
    }
    let _ = values::tso_bound(data);
    way((
        ways,
        view.collections.len().min(8),
        assembler.undecodable().len().min(8),
    ))
}

/// A key of a source's etcd: read, written and read again it is the same.
fn key(data: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(data);
    let vchannel = VChannel::new(text.as_ref());
    assert!(text.starts_with(vchannel.pchannel().as_str()));
    let meta = MetaKey::parse(&text);
    if let Some(meta) = &meta {
        assert_eq!(MetaKey::parse(&meta.to_string()).as_ref(), Some(meta));
        let _ = meta.collection();
    }
    way((
        meta.map(|m| std::mem::discriminant(&m)),
        vchannel.shard().is_some(),
    ))
}
