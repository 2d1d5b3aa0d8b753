//! The catalog's pure part on raw keys and values as they are in a source's etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use cdc_core::catalog::assemble::Assembler;
use cdc_core::catalog::decode::{TOMBSTONE, tso_bound};
use cdc_core::catalog::keys::MetaKey;
use cdc_core::catalog::proto::*;
use cdc_core::catalog::{LoadState, ObjectState, View};
use cdc_core::ids::{CollectionId, DbId, FieldId, IndexId, PChannel, PartitionId};
use cdc_core::tso::Tso;
use milvus::proto::common::{KeyDataPair, KeyValuePair};
use milvus::proto::schema::{CollectionSchema, FieldSchema, FunctionSchema};
use proptest::prelude::*;
use prost::Message;

const C: CollectionId = CollectionId(449);

fn pair(key: &str, value: &str) -> KeyValuePair {
    KeyValuePair {
        key: key.into(),
        value: value.into(),
    }
}

fn info(name: &str, state: i32) -> CollectionInfo {
    CollectionInfo {
        id: C.0,
        schema: Some(CollectionSchema {
            name: name.into(),
            enable_dynamic_field: true,
            ..Default::default()
        }),
        create_time: 99,
        virtual_channel_names: vec!["dml_4_449v1".into(), "dml_3_449v0".into()],
        physical_channel_names: vec!["dml_4".into(), "dml_3".into()],
        shards_num: 2,
        start_positions: vec![
            KeyDataPair {
                key: "dml_4".into(),
                data: vec![4],
            },
            KeyDataPair {
                key: "dml_3".into(),
                data: vec![3],
            },
        ],
        consistency_level: 2,
        state,
        properties: vec![pair("collection.ttl.seconds", "7")],
        db_id: 1,
        ..Default::default()
    }
}

fn field(id: i64, name: &str) -> FieldSchema {
    FieldSchema {
        field_id: id,
        name: name.into(),
        is_primary_key: id == 100,
        ..Default::default()
    }
}

fn partition(id: i64, name: &str, state: i32) -> PartitionInfo {
    PartitionInfo {
        id,
        name: name.into(),
        created_timestamp: 98,
        collection_id: C.0,
        state,
    }
}

struct Meta {
    assembler: Assembler,
    revision: i64,
}

impl Meta {
    fn new() -> Self {
        let mut meta = Self {
            assembler: Assembler::default(),
            revision: 0,
        };
        let default = DatabaseInfo {
            name: "default".into(),
            id: 1,
            state: 1,
            ..Default::default()
        };
        meta.put("root-coord/database/db-info/1", &default);
        meta
    }

    /// With one complete collection "a" below database 1.
    fn with_collection() -> Self {
        let mut meta = Self::new();
        meta.put("root-coord/database/collection-info/1/449", &info("a", 0));
        meta.parts();
        meta
    }

    fn parts(&mut self) {
        for (id, name) in [
            (0, "RowID"),
            (1, "Timestamp"),
            (100, "id"),
            (101, "v"),
            (9, "nine"),
        ] {
            self.put(&format!("root-coord/fields/449/{id}"), &field(id, name));
        }
        self.put(
            "root-coord/partitions/449/450",
            &partition(450, "_default", 0),
        );
    }

    fn raw(&mut self, key: &str, value: Option<&[u8]>) {
        self.revision += 1;
        self.assembler.apply(key, value, self.revision);
    }

    fn put(&mut self, key: &str, value: &impl Message) {
        self.raw(key, Some(&value.encode_to_vec()));
    }

    fn view(&mut self) -> Arc<View> {
        self.assembler.commit(self.revision);
        self.assembler.view().clone()
    }

    fn collection(&mut self) -> Arc<cdc_core::catalog::Collection> {
        self.view().collections[&C].clone()
    }
}

fn ids() -> impl Strategy<Value = i64> {
    0..=i64::MAX
}

fn keys() -> impl Strategy<Value = MetaKey> {
    let name = "[a-zA-Z_][a-zA-Z0-9_]{0,20}";
    prop_oneof![
        ids().prop_map(|d| MetaKey::Database(DbId(d))),
        (ids(), ids()).prop_map(|(d, c)| MetaKey::Collection {
            db: DbId(d),
            id: CollectionId(c)
        }),
        ids().prop_map(|c| MetaKey::LegacyCollection(CollectionId(c))),
        (ids(), ids()).prop_map(|(c, p)| MetaKey::Partition {
            collection: CollectionId(c),
            partition: PartitionId(p)
        }),
        (ids(), ids()).prop_map(|(c, f)| MetaKey::Field {
            collection: CollectionId(c),
            field: FieldId(f)
        }),
        (ids(), ids()).prop_map(|(c, function)| MetaKey::Function {
            collection: CollectionId(c),
            function
        }),
        (ids(), ids()).prop_map(|(c, f)| MetaKey::StructArrayField {
            collection: CollectionId(c),
            field: FieldId(f)
        }),
        (ids(), name).prop_map(|(d, name)| MetaKey::Alias { db: DbId(d), name }),
        name.prop_map(MetaKey::LegacyAlias),
        name.prop_map(MetaKey::AncientAlias),
        (ids(), ids()).prop_map(|(c, i)| MetaKey::FieldIndex {
            collection: CollectionId(c),
            index: IndexId(i)
        }),
        ids().prop_map(|c| MetaKey::CollectionLoad(CollectionId(c))),
        (ids(), ids()).prop_map(|(c, p)| MetaKey::PartitionLoad {
            collection: CollectionId(c),
            partition: PartitionId(p)
        }),
    ]
}

proptest! {
    #[test]
    fn keys_round_trip_and_lie_in_what_is_listed_and_watched(key in keys()) {
        use cdc_core::catalog::keys::{PREFIXES, RANGE_END, RANGE_START};
        let text = key.to_string();
        prop_assert_eq!(MetaKey::parse(&text), Some(key));
        prop_assert!(PREFIXES.iter().any(|prefix| text.starts_with(prefix)));
        prop_assert!(RANGE_START <= text.as_str() && text.as_str() < RANGE_END);
    }

    #[test]
    fn any_bytes_at_any_key_are_an_entry_or_a_named_error(key in keys(), value in proptest::collection::vec(any::<u8>(), 0..60)) {
        let mut assembler = Assembler::default();
        assembler.apply(&key.to_string(), Some(&value), 1);
        assembler.commit(1);
    }
}

#[test]
fn other_keys_are_not_read() {
    for key in [
        "snapshots/root-coord/database/collection-info/1/449_ts445",
        "root-coord/database/collection-info/1/449_ts445",
        "root-coord/database/collection-info/1",
        "root-coord/database/collection-info/1/449/3",
        "root-coord/database/collection-info/1/-449",
        "root-coord/database/db-info/+1",
        "root-coord/credential/users/root",
        "root-coord/fields/449",
        "root-coord/partitions/449/",
        "root-coord/aliases/",
        "session/rootcoord",
        "",
    ] {
        assert_eq!(MetaKey::parse(key), None, "{key}");
    }
    let range = cdc_core::catalog::keys::RANGE_START..cdc_core::catalog::keys::RANGE_END;
    for noise in [
        "snapshots/root-coord/x",
        "session/x",
        "datacoord-meta/s/1",
        "segment-index/1",
        "streamingcoord-meta/1",
    ] {
        assert!(!range.contains(&noise), "{noise}");
    }
}

#[test]
fn a_collection_comes_together_from_its_keys() {
    let c = Meta::with_collection().collection();
    assert_eq!(
        (c.name.as_str(), c.db, c.state, c.create_ts),
        ("a", DbId(1), ObjectState::Created, Tso(99))
    );
    assert_eq!((c.consistency_level, c.properties.len()), (2, 1));
    let fields: Vec<i64> = c.schema.fields.iter().map(|f| f.field_id).collect();
    assert_eq!(fields, [0, 1, 9, 100, 101], "by number, not by text");
    assert_eq!(c.primary_key(), Some(FieldId(100)));
    assert_eq!(
        c.shards
            .iter()
            .map(|s| s.pchannel.as_str())
            .collect::<Vec<_>>(),
        ["dml_3", "dml_4"],
        "in shard order"
    );
    assert_eq!(c.start_positions[&PChannel::new("dml_3")], [3]);
    let p = &c.partitions[&PartitionId(450)];
    assert_eq!(
        (p.name.as_str(), p.state, p.create_ts),
        ("_default", ObjectState::Created, Tso(98))
    );
    assert_eq!(c.load, LoadState::Released);
}

#[test]
fn a_database_id_is_not_a_prefix_of_another() {
    let mut meta = Meta::new();
    meta.put(
        "root-coord/database/db-info/10",
        &DatabaseInfo {
            name: "ten".into(),
            id: 10,
            state: 1,
            ..Default::default()
        },
    );
    meta.put(
        "root-coord/database/collection-info/10/449",
        &CollectionInfo {
            db_id: 10,
            ..info("a", 0)
        },
    );
    meta.parts();
    assert!(meta.view().find("ten", "a").is_some());
    assert!(meta.view().find("default", "a").is_none());
}

#[test]
fn a_tombstone_and_a_delete_are_the_same() {
    for value in [None, Some(TOMBSTONE)] {
        for (key, gone) in [
            ("root-coord/database/collection-info/1/449", "collection"),
            ("root-coord/partitions/449/450", "partition"),
            ("root-coord/fields/449/101", "field"),
            ("root-coord/database/db-info/1", "database"),
            ("root-coord/database/aliases/1/x", "alias"),
        ] {
            let mut meta = Meta::with_collection();
            let alias = AliasInfo {
                name: "x".into(),
                collection_id: 449,
                db_id: 1,
                ..Default::default()
            };
            meta.put("root-coord/database/aliases/1/x", &alias);
            assert_eq!(meta.view().aliases.len(), 1);
            meta.raw(key, value);
            let view = meta.view();
            match gone {
                "collection" => assert!(view.collections.is_empty()),
                "partition" => assert!(view.collections[&C].partitions.is_empty()),
                "field" => assert_eq!(view.collections[&C].schema.fields.len(), 4),
                "database" => assert!(view.databases.is_empty()),
                _ => assert!(view.aliases.is_empty()),
            }
            assert!(meta.assembler.undecodable().is_empty());
        }
    }
}

#[test]
fn states_of_the_creation_of_2_3() {
    let mut meta = Meta::new();
    meta.put("root-coord/database/collection-info/1/449", &info("a", 1));
    assert_eq!(meta.collection().state, ObjectState::Creating);
    meta.parts();
    assert_eq!(meta.collection().state, ObjectState::Creating);
    meta.put("root-coord/database/collection-info/1/449", &info("a", 0));
    assert_eq!(meta.collection().state, ObjectState::Created);
    for dropped in [2, 3] {
        meta.put(
            "root-coord/database/collection-info/1/449",
            &info("a", dropped),
        );
        assert_eq!(meta.collection().state, ObjectState::Dropping);
    }
    // What its garbage collection removes first does not bring it back to life.
    for id in [0, 1, 9, 100, 101] {
        meta.raw(&format!("root-coord/fields/449/{id}"), Some(TOMBSTONE));
    }
    meta.raw("root-coord/partitions/449/450", Some(TOMBSTONE));
    assert_eq!(meta.collection().state, ObjectState::Dropping);
    assert!(meta.view().find("default", "a").is_none());
}

#[test]
fn a_created_collection_without_key_field_or_partition_is_still_being_created() {
    let mut meta = Meta::new();
    meta.put("root-coord/database/collection-info/1/449", &info("a", 0));
    meta.put("root-coord/fields/449/101", &field(101, "v"));
    meta.put(
        "root-coord/partitions/449/450",
        &partition(450, "_default", 0),
    );
    assert_eq!(meta.collection().state, ObjectState::Creating);
    meta.put("root-coord/fields/449/100", &field(100, "id"));
    assert_eq!(meta.collection().state, ObjectState::Created);
    meta.raw("root-coord/partitions/449/450", None);
    assert_eq!(meta.collection().state, ObjectState::Creating);
}

#[test]
fn parts_alone_are_no_collection() {
    let mut meta = Meta::new();
    meta.parts();
    assert!(meta.view().collections.is_empty());
}

#[test]
fn partition_states() {
    let mut meta = Meta::with_collection();
    for (number, state) in [
        (1, ObjectState::Creating),
        (0, ObjectState::Created),
        (2, ObjectState::Dropping),
    ] {
        meta.put(
            "root-coord/partitions/449/451",
            &partition(451, "p", number),
        );
        assert_eq!(meta.collection().partitions[&PartitionId(451)].state, state);
    }
}

#[test]
fn databases_have_numbers_of_their_own_for_states() {
    let mut meta = Meta::new();
    for (state, alive) in [(0, true), (1, true), (2, false), (3, false), (4, false)] {
        let name = "d".to_owned();
        meta.put(
            "root-coord/database/db-info/5",
            &DatabaseInfo {
                name,
                id: 5,
                state,
                ..Default::default()
            },
        );
        assert_eq!(
            meta.view().databases.contains_key(&DbId(5)),
            alive,
            "{state}"
        );
    }
}

#[test]
fn a_rename_changes_the_value_only() {
    let mut meta = Meta::with_collection();
    let before = meta.collection();
    meta.put("root-coord/database/collection-info/1/449", &info("b", 0));
    let after = meta.collection();
    assert_eq!((before.id, after.id, after.name.as_str()), (C, C, "b"));
    assert_eq!(before.partitions, after.partitions);
}

#[test]
fn a_rename_into_another_database_is_neither_drop_nor_create() {
    let moved = CollectionInfo {
        db_id: 2,
        ..info("a", 0)
    };
    for remove_first in [true, false] {
        for value in [None, Some(TOMBSTONE)] {
            let mut meta = Meta::with_collection();
            meta.put(
                "root-coord/database/db-info/2",
                &DatabaseInfo {
                    name: "two".into(),
                    id: 2,
                    state: 1,
                    ..Default::default()
                },
            );
            meta.view();
            if remove_first {
                meta.raw("root-coord/database/collection-info/1/449", value);
            }
            meta.put("root-coord/database/collection-info/2/449", &moved);
            if !remove_first {
                meta.raw("root-coord/database/collection-info/1/449", value);
            }
            let c = meta.collection();
            assert_eq!((c.id, c.db, c.state), (C, DbId(2), ObjectState::Created));
            assert_eq!(meta.view().collections.len(), 1);
            assert!(meta.view().find("two", "a").is_some());
        }
    }
}

#[test]
fn while_both_keys_exist_the_newer_one_counts() {
    let mut meta = Meta::new();
    meta.put(
        "root-coord/database/collection-info/7/449",
        &CollectionInfo {
            db_id: 7,
            ..info("old", 0)
        },
    );
    meta.put(
        "root-coord/database/collection-info/2/449",
        &CollectionInfo {
            db_id: 2,
            ..info("new", 0)
        },
    );
    assert_eq!(
        (meta.collection().db, meta.collection().name.as_str()),
        (DbId(2), "new")
    );
}

#[test]
fn legacy_keys_belong_to_the_default_database() {
    let mut meta = Meta::new();
    meta.put(
        "root-coord/collection/449",
        &CollectionInfo {
            db_id: 0,
            ..info("old", 0)
        },
    );
    meta.parts();
    let alias = AliasInfo {
        name: "x".into(),
        collection_id: 449,
        ..Default::default()
    };
    meta.put("root-coord/aliases/x", &alias);
    meta.put("root-coord/collection-alias/y", &info("old", 0));
    let view = meta.view();
    assert_eq!(view.find("default", "old").map(|c| c.id), Some(C));
    for name in ["x", "y"] {
        assert_eq!(view.aliases[&(DbId(1), name.to_owned())].collection, C);
    }
    // The layout of databases wins over what an upgrade left behind.
    meta.put("root-coord/database/collection-info/1/449", &info("new", 0));
    meta.put(
        "root-coord/database/aliases/1/x",
        &AliasInfo {
            collection_id: 7,
            ..alias
        },
    );
    assert_eq!(meta.collection().name, "new");
    assert_eq!(
        meta.view().aliases[&(DbId(1), "x".to_owned())].collection,
        CollectionId(7)
    );
}

#[test]
fn fields_and_partitions_inside_the_value_win() {
    let mut meta = Meta::new();
    let mut old = info("old", 0);
    old.schema.as_mut().unwrap().fields = vec![field(101, "v"), field(100, "id")];
    old.partition_ids = vec![7, 8];
    old.partition_names = vec!["_default".into(), "p".into()];
    old.partition_created_timestamps = vec![70];
    meta.put("root-coord/collection/449", &old);
    let c = meta.collection();
    assert_eq!(c.state, ObjectState::Created);
    assert_eq!(
        c.schema
            .fields
            .iter()
            .map(|f| f.field_id)
            .collect::<Vec<_>>(),
        [100, 101]
    );
    assert_eq!(c.partitions[&PartitionId(7)].create_ts, Tso(70));
    assert_eq!(
        (
            c.partitions[&PartitionId(8)].name.as_str(),
            c.partitions[&PartitionId(8)].create_ts
        ),
        ("p", Tso(99))
    );
}

#[test]
fn aliases_that_are_not_in_force_are_left_out() {
    let mut meta = Meta::new();
    for state in [1, 2, 3] {
        meta.put(
            "root-coord/database/aliases/1/x",
            &AliasInfo {
                name: "x".into(),
                collection_id: 449,
                state,
                ..Default::default()
            },
        );
        assert!(meta.view().aliases.is_empty(), "{state}");
    }
}

#[test]
fn functions_come_from_their_keys() {
    let mut meta = Meta::with_collection();
    meta.put(
        "root-coord/functions/449/100",
        &FunctionSchema {
            id: 100,
            name: "bm25".into(),
            ..Default::default()
        },
    );
    assert_eq!(meta.collection().schema.functions[0].name, "bm25");
}

fn index(user: &[(&str, &str)], expanded: &[(&str, &str)], auto: bool) -> FieldIndex {
    let list = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| pair(k, v)).collect();
    let index_info = Some(IndexInfo {
        collection_id: C.0,
        field_id: 101,
        index_name: "vi".into(),
        index_id: 460,
        index_params: list(expanded),
        user_index_params: list(user),
        is_auto_index: auto,
        ..Default::default()
    });
    FieldIndex {
        index_info,
        deleted: false,
        create_time: 97,
    }
}

#[test]
fn an_index_has_what_the_user_sent() {
    let expanded = [("index_type", "HNSW"), ("metric_type", "L2"), ("M", "8")];
    let params = |user: &[(&str, &str)], auto| {
        let mut meta = Meta::with_collection();
        meta.put("field-index/449/460", &index(user, &expanded, auto));
        let c = meta.collection();
        let found = &c.indexes[&IndexId(460)];
        assert_eq!(
            (found.field, found.name.as_str(), found.create_ts),
            (FieldId(101), "vi", Tso(97))
        );
        found
            .params
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let sent = [
        ("index_type", "HNSW"),
        ("metric_type", "L2"),
        ("params", "{\"M\":8}"),
    ];
    assert_eq!(
        params(&sent, false),
        "index_type=HNSW metric_type=L2 params={\"M\":8}"
    );
    assert_eq!(params(&[], false), "index_type=HNSW metric_type=L2 M=8");
    assert_eq!(
        params(&[("params", "{\"M\":8}")], false),
        "params={\"M\":8} index_type=HNSW metric_type=L2"
    );
    assert_eq!(
        params(&[("index_type", "AUTOINDEX")], true),
        "index_type=AUTOINDEX metric_type=L2"
    );
}

#[test]
fn an_index_is_dropped_by_a_flag() {
    let mut meta = Meta::with_collection();
    meta.put(
        "field-index/449/460",
        &index(&[("index_type", "FLAT")], &[], false),
    );
    assert_eq!(meta.collection().indexes.len(), 1);
    meta.put(
        "field-index/449/460",
        &FieldIndex {
            deleted: true,
            ..index(&[], &[], false)
        },
    );
    assert!(meta.collection().indexes.is_empty());
}

#[test]
fn load_states() {
    let mut meta = Meta::with_collection();
    let load = |load_type| CollectionLoadInfo {
        collection_id: 449,
        replica_number: 2,
        status: 1,
        load_type,
    };
    let part = PartitionLoadInfo {
        collection_id: 449,
        partition_id: 450,
        status: 2,
    };
    meta.put("querycoord-partition-loadinfo/449/450", &part);
    assert_eq!(meta.collection().load, LoadState::Released);
    meta.put("querycoord-collection-loadinfo/449", &load(2));
    assert_eq!(
        meta.collection().load,
        LoadState::Collection { replicas: 2 }
    );
    // A partition that is being created is not released, one that is created without being loaded is.
    let all = LoadState::Collection { replicas: 2 };
    let first = LoadState::Partitions {
        replicas: 2,
        partitions: vec![PartitionId(450)],
    };
    for (state, expected) in [(1, &all), (0, &first), (2, &all)] {
        meta.put("root-coord/partitions/449/451", &partition(451, "p", state));
        assert_eq!(meta.collection().load, *expected, "{state}");
    }
    meta.put("querycoord-collection-loadinfo/449", &load(1));
    assert_eq!(
        meta.collection().load,
        LoadState::Partitions {
            replicas: 2,
            partitions: vec![PartitionId(450)]
        }
    );
    meta.raw("querycoord-partition-loadinfo/449/450", None);
    meta.put("querycoord-collection-loadinfo/449", &load(2));
    assert_eq!(
        meta.collection().load,
        all,
        "metadata without keys for partitions"
    );
    meta.raw("querycoord-collection-loadinfo/449", None);
    assert_eq!(meta.collection().load, LoadState::Released);
}

#[test]
fn what_cannot_be_decoded_is_named_and_hurts_nothing_else() {
    let mut meta = Meta::with_collection();
    for key in [
        "root-coord/database/collection-info/1/7",
        "field-index/449/460",
        "root-coord/partitions/449/451",
    ] {
        meta.raw(key, Some(b"\xff\xff\xff"));
        assert!(meta.assembler.undecodable().contains_key(key));
    }
    let view = meta.view();
    assert_eq!(view.collections.keys().collect::<Vec<_>>(), [&C]);
    assert_eq!(
        (
            view.collections[&C].indexes.len(),
            view.collections[&C].partitions.len()
        ),
        (0, 1)
    );
    // Repaired, or gone.
    meta.raw("root-coord/database/collection-info/1/7", Some(TOMBSTONE));
    meta.raw("field-index/449/460", None);
    meta.put("root-coord/partitions/449/451", &partition(451, "p", 0));
    assert!(meta.assembler.undecodable().is_empty());
    assert_eq!(meta.collection().partitions.len(), 2);
}

#[test]
fn a_value_of_another_id_or_state_is_not_believed() {
    let mut meta = Meta::new();
    meta.put("root-coord/database/collection-info/1/7", &info("a", 0));
    meta.put("root-coord/database/collection-info/1/449", &info("a", 9));
    meta.put("root-coord/partitions/449/451", &partition(452, "p", 0));
    assert_eq!(meta.assembler.undecodable().len(), 3);
    assert!(meta.view().collections.is_empty());
}

#[test]
fn a_known_collection_does_not_vanish_when_its_metadata_breaks() {
    for key in [
        "root-coord/database/collection-info/1/449",
        "root-coord/fields/449/101",
    ] {
        let mut meta = Meta::with_collection();
        let before = meta.collection();
        meta.raw(key, Some(b"\xff"));
        assert!(Arc::ptr_eq(&before, &meta.collection()), "{key}");
        // Nor by a new list.
        let mut again = Assembler::after(meta.view());
        again.apply(key, Some(b"\xff"), 50);
        again.commit(50);
        assert!(Arc::ptr_eq(&before, &again.view().collections[&C]), "{key}");
        // It does once the key is gone.
        again.apply(key, None, 51);
        again.commit(51);
        assert!(again.view().collections.is_empty());
    }
}

fn many(assembler: &mut Assembler, count: i64) {
    for id in 1000..1000 + count {
        let collection = CollectionInfo { id, ..info("a", 0) };
        assembler.apply(
            &format!("root-coord/database/collection-info/1/{id}"),
            Some(&collection.encode_to_vec()),
            1,
        );
        assembler.apply(
            &format!("root-coord/fields/{id}/100"),
            Some(&field(100, "id").encode_to_vec()),
            1,
        );
        let default = PartitionInfo {
            collection_id: id,
            ..partition(1, "_default", 0)
        };
        assembler.apply(
            &format!("root-coord/partitions/{id}/1"),
            Some(&default.encode_to_vec()),
            1,
        );
    }
}

#[test]
fn only_what_was_touched_is_built_anew() {
    let mut assembler = Assembler::default();
    many(&mut assembler, 1000);
    let before = assembler.commit(1).unwrap();
    let renamed = CollectionInfo {
        id: 1500,
        ..info("b", 0)
    };
    assembler.apply(
        "root-coord/database/collection-info/1/1500",
        Some(&renamed.encode_to_vec()),
        2,
    );
    let after = assembler.commit(2).unwrap();
    assert_eq!(
        (before.collections.len(), after.collections.len()),
        (1000, 1000)
    );
    for (id, new) in &after.collections {
        assert_eq!(
            Arc::ptr_eq(&before.collections[id], new),
            id.0 != 1500,
            "{id}"
        );
    }
    // A new list that says the same is no news, and one that lacks a collection keeps the others.
    let mut again = Assembler::after(after.clone());
    many(&mut again, 1000);
    again.apply(
        "root-coord/database/collection-info/1/1500",
        Some(&renamed.encode_to_vec()),
        3,
    );
    assert_eq!(again.commit(3), None);
    let mut fewer = Assembler::after(after.clone());
    many(&mut fewer, 1);
    let view = fewer.commit(4).unwrap();
    assert_eq!(view.collections.len(), 1);
    assert!(Arc::ptr_eq(
        &view.collections[&CollectionId(1000)],
        &after.collections[&CollectionId(1000)]
    ));
}

#[test]
fn the_same_value_again_is_no_news() {
    let mut meta = Meta::with_collection();
    let before = meta.view();
    meta.put("root-coord/database/collection-info/1/449", &info("a", 0));
    meta.raw("root-coord/credential/users/root", Some(b"{}"));
    assert_eq!(meta.assembler.commit(99), None);
    assert!(Arc::ptr_eq(&before, &meta.view()));
}

#[test]
fn an_empty_source_has_a_view_too() {
    let view = Assembler::default().commit(5).unwrap();
    assert_eq!(view.revision, 5);
}

#[test]
fn the_bound_of_the_oracle_is_big_endian_nanoseconds() {
    let ns: u64 = 1_700_000_000_123_456_789;
    let bound = tso_bound(&ns.to_be_bytes()).unwrap();
    assert!(bound > Tso(Tso::from_millis(1_700_000_000_123).0 + 0x3FFFF));
    assert_eq!(bound, Tso::from_millis(1_700_000_000_124));
    assert!(tso_bound(&[1, 2, 3]).is_err());
}
