//! Properties of databases and indexes, from values as they are in a source's etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use cdc_core::catalog::assemble::Assembler;
use cdc_core::catalog::decode::index;
use cdc_core::catalog::proto::{DatabaseInfo, FieldIndex, IndexInfo};
use cdc_core::ids::DbId;
use milvus::proto::common::KeyValuePair;
use prost::Message;

fn pair(key: &str, value: &str) -> KeyValuePair {
    KeyValuePair {
        key: key.into(),
        value: value.into(),
    }
}

fn strs(of: &[(String, String)]) -> Vec<(&str, &str)> {
    of.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

/// Since 2.4 (`etcd_meta.proto`, `DatabaseInfo.properties`): each alteration writes the whole value anew.
#[test]
fn properties_of_a_database_come_and_go_with_its_value() {
    let (mut assembler, mut revision) = (Assembler::default(), 0);
    let mut put = |properties: &[(&str, &str)]| {
        let info = DatabaseInfo {
            name: "d".into(),
            id: 5,
            state: 1,
            properties: properties.iter().map(|(k, v)| pair(k, v)).collect(),
            ..Default::default()
        };
        revision += 1;
        let key = "root-coord/database/db-info/5";
        assembler.apply(key, Some(&info.encode_to_vec()), revision);
        assembler.commit(revision);
        assembler.view().databases[&DbId(5)].clone()
    };
    for (properties, carried) in [
        (&[][..], &[][..]),
        (
            &[("database.max.collections", "7"), ("replicate.id", "x")],
            &[("database.max.collections", "7")],
        ),
        (
            &[("a", "1"), ("b", "2"), ("database.resource_groups", "rg")],
            &[("a", "1"), ("b", "2")],
        ),
        (&[("b", "2")], &[("b", "2")]),
        (&[], &[]),
    ] {
        let database = put(properties);
        assert_eq!(strs(&database.properties), properties);
        assert_eq!(strs(&database.own_properties()), carried);
        // What is the same stays the same.
        assert!(Arc::ptr_eq(&database, &put(properties)));
    }
}

/// AlterIndex of 2.4 and later changes both lists (`internal/datacoord/index_service.go`); what the user asked for at the
/// creation, `params`, stays.
#[test]
fn parameters_of_an_index_that_can_be_altered_are_told_apart() {
    for (altered, wanted) in [
        (None, &[][..]),
        (Some("true"), &[("mmap.enabled", "true")]),
        (Some("false"), &[("mmap.enabled", "false")]),
    ] {
        let typed = [pair("index_type", "HNSW"), pair("metric_type", "L2")];
        let altered: Vec<_> = altered
            .iter()
            .map(|value| pair("mmap.enabled", value))
            .collect();
        let with = |one: KeyValuePair| [&[one], &typed[..], &altered[..]].concat();
        let value = FieldIndex {
            index_info: Some(IndexInfo {
                collection_id: 449,
                field_id: 101,
                index_name: "v".into(),
                index_id: 7,
                index_params: with(pair("M", "16")),
                user_index_params: with(pair("params", r#"{"M":16}"#)),
                ..Default::default()
            }),
            ..Default::default()
        };
        let read = FieldIndex::decode(&value.encode_to_vec()[..]).unwrap();
        let index = index(&read).unwrap();
        assert_eq!(strs(&index.properties()), wanted);
        assert_eq!(index.params.len(), 3 + wanted.len());
    }
    // A scalar index made without any parameter, and altered.
    let value = FieldIndex {
        index_info: Some(IndexInfo {
            index_params: vec![pair("index_type", "INVERTED"), pair("mmap.enabled", "true")],
            user_index_params: vec![pair("mmap.enabled", "true")],
            ..Default::default()
        }),
        ..Default::default()
    };
    let index = index(&value).unwrap();
    assert_eq!(strs(&index.properties()), [("mmap.enabled", "true")]);
}
