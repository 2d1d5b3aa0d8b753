use std::collections::HashMap;

use milvus::proto::schema::{CollectionSchema, DataType, FieldSchema, ScalarField};
use milvus::proto::schema::{field_data::Field, scalar_field::Data};

use super::*;
use crate::catalog::{self, LoadState, Partition};
use crate::ids::{DbId, TaskId, VChannel};
use crate::position::Position;
use crate::secret::Secret;
use crate::store::Progress;
use crate::task::{OnConflict, Selection, StartPoint, TargetSpec};
use crate::tls::ClientTls;

fn field(id: i64, name: &str, kind: DataType) -> FieldSchema {
    FieldSchema {
        field_id: id,
        name: name.to_owned(),
        data_type: kind.into(),
        is_primary_key: id == 100,
        is_partition_key: name == "tenant",
        ..Default::default()
    }
}

/// With a partition key: four partitions from 10 on; two shards.
fn keyed() -> Collection {
    let partition = |n: i64| Partition {
        id: PartitionId(10 + n),
        name: format!("_default_{n}"),
        state: ObjectState::Created,
        create_ts: Tso(1),
    };
    let shard = |n: usize| catalog::Shard {
        vchannel: VChannel::new(format!("s_{n}_7v{n}")),
        pchannel: PChannel::new(format!("s_{n}")),
    };
    Collection {
        id: CollectionId(7),
        db: DbId(1),
        name: "c".to_owned(),
        state: ObjectState::Created,
        schema: CollectionSchema {
            fields: vec![
                field(100, "pk", DataType::Int64),
                field(101, "tenant", DataType::VarChar),
            ],
            ..Default::default()
        },
        create_ts: Tso(1),
        shards: (0..2).map(shard).collect(),
        start_positions: HashMap::new(),
        consistency_level: 0,
        properties: Vec::new(),
        partitions: (0..4)
            .map(|n| (PartitionId(10 + n), partition(n)))
            .collect(),
        indexes: BTreeMap::new(),
        load: LoadState::Released,
    }
}

fn column(name: &str, data: Data) -> FieldData {
    FieldData {
        field_name: name.to_owned(),
        field: Some(Field::Scalars(ScalarField {
            data: Some(data),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// One row where the source has it.
fn wanted(key: i64, tenant: &str) -> Repair {
    let place = Value::Str(tenant).place(4) as i64;
    Repair {
        collection: CollectionId(7),
        partition: None,
        read_at: Tso(50),
        keys: Keys::Int(vec![key]),
        rows: vec![NewRows {
            partition: PartitionId(10 + place),
            shard: Value::Int(key).place(2),
            columns: vec![
                column(
                    "tenant",
                    Data::StringData(StringArray {
                        data: vec![tenant.to_owned()],
                    }),
                ),
                column("pk", Data::LongData(LongArray { data: vec![key] })),
            ],
        }],
        flush: false,
    }
}

#[test]
fn a_row_is_taken_only_where_the_source_itself_has_put_it() {
    let source = keyed();
    for key in 0..20 {
        let good = wanted(key, &format!("t{key}"));
        let inserts = checked(&source, &good).ok().unwrap();
        assert_eq!((inserts.len(), inserts[0].1.rows), (1, 1));
        let mut shard = good.clone();
        shard.rows[0].shard = 1 - shard.rows[0].shard;
        let why = checked(&source, &shard).err().unwrap();
        assert!(why.contains(&format!("{key} is of shard")), "{why}");
        let mut partition = good.clone();
        partition.rows[0].partition.0 = 10 + (partition.rows[0].partition.0 - 9) % 4;
        let why = checked(&source, &partition).err().unwrap();
        assert!(why.contains("is of the partition _default_"), "{why}");
    }
}

fn spec() -> TaskSpec {
    TaskSpec {
        id: TaskId::new("t"),
        target: TargetSpec {
            uri: "http://t:1".to_owned(),
            token: Secret::default(),
            tls: ClientTls::default(),
            connect_timeout: std::time::Duration::from_secs(1),
            call_timeout: std::time::Duration::from_secs(1),
            mode: crate::task::Mode::Replicate,
        },
        selection: Selection::All,
        mapping: Default::default(),
        skip: Default::default(),
        start: StartPoint::Created,
        starts: Default::default(),
        added: Default::default(),
        created: Tso::ZERO,
        positions: Default::default(),
        on_conflict: OnConflict::Ask,
        memory_budget: 1,
        snapshot: Default::default(),
        durable_every: std::time::Duration::from_secs(1),
    }
}

#[test]
fn every_channel_it_goes_on_is_in_doubt_by_its_own_record() {
    let at = |applied: u64, sent: u64| Progress {
        position: Position::Natsmq(1),
        after: true,
        applied: Tso(applied),
        sent: Tso(sent),
    };
    let channel = |n: usize| PChannel::new(format!("s_{n}"));
    let mut stored = TaskProgress::default();
    let source = keyed();
    let none = in_doubt(&spec(), &stored, &source, Tso(50)).unwrap_err();
    assert!(none.message.contains("has not begun to read s_0"), "{none}");
    stored.channels = [(channel(0), at(40, 45)), (channel(1), at(90, 90))].into();
    // The channel has gone on without it.
    let own = (channel(1), source.id);
    stored.detached.insert(own.clone(), at(50, 90));
    let mut changes = in_doubt(&spec(), &stored, &source, Tso(50)).unwrap();
    raise(&mut changes, Tso(70));
    let wanted = [
        Change::RaiseSent {
            task: TaskId::new("t"),
            channel: channel(0),
            sent: Tso(70),
        },
        Change::PutDetached {
            task: TaskId::new("t"),
            channel: channel(1),
            collection: source.id,
            progress: at(50, 90),
        },
    ];
    assert_eq!(changes, wanted);
    // What was read is older than what is applied, on one of them.
    stored.detached.insert(own, at(51, 90));
    let old = in_doubt(&spec(), &stored, &source, Tso(50)).unwrap_err();
    assert!(old.message.contains("they may be old"), "{old}");
}
