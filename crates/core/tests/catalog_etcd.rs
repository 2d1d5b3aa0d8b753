//! The etcd catalog on a real etcd, whose address is in `CDC_TEST_ETCD` (`host:port`). Every test has a root path of
//! its own. The one that compacts may make the others list anew, which they have to stand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(feature = "e2e")]

use std::sync::Arc;
use std::time::Duration;

use cdc_core::catalog::etcd::{EtcdCatalog, EtcdConfig, probe};
use cdc_core::catalog::proto::{CollectionInfo, DatabaseInfo, PartitionInfo};
use cdc_core::catalog::{Catalog, CatalogError, View, decode};
use cdc_core::ids::{CollectionId, DbId, PartitionId};
use cdc_core::tso::Tso;
use etcd_client::{Client, Txn, TxnOp};
use milvus::proto::common::KeyValuePair;
use milvus::proto::schema::{CollectionSchema, FieldSchema};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(40);

fn endpoint() -> String {
    std::env::var("CDC_TEST_ETCD")
        .expect("CDC_TEST_ETCD has to hold the host:port of an etcd for tests")
}

struct Source {
    etcd: Client,
    config: EtcdConfig,
}

impl Source {
    async fn new() -> Self {
        let root_path = format!("cdc-test-{:016x}", rand::random::<u64>());
        println!("root path {root_path}");
        let config = EtcdConfig {
            endpoints: vec![endpoint()],
            root_path,
            ..EtcdConfig::default()
        };
        let etcd = Client::connect(&config.endpoints, None).await.unwrap();
        let source = Self { etcd, config };
        let default = DatabaseInfo {
            name: "default".into(),
            id: 1,
            state: 1,
            ..Default::default()
        };
        source
            .put("root-coord/database/db-info/1", default.encode_to_vec())
            .await;
        source
    }

    fn key(&self, key: &str) -> String {
        self.config.meta_prefix() + key
    }

    async fn put(&self, key: &str, value: impl Into<Vec<u8>>) {
        self.etcd
            .kv_client()
            .put(self.key(key), value, None)
            .await
            .unwrap();
    }

    async fn delete(&self, key: &str) {
        self.etcd
            .kv_client()
            .delete(self.key(key), None)
            .await
            .unwrap();
    }

    async fn collection(&self, db: i64, id: i64, name: &str) {
        self.put(&format!("root-coord/fields/{id}/100"), key_field())
            .await;
        self.put(&format!("root-coord/partitions/{id}/1"), partition(id, 1))
            .await;
        self.put(&info_key(db, id), info(db, id, name)).await;
    }
}

fn info_key(db: i64, id: i64) -> String {
    format!("root-coord/database/collection-info/{db}/{id}")
}

fn info(db_id: i64, id: i64, name: &str) -> Vec<u8> {
    let schema = Some(CollectionSchema {
        name: name.into(),
        ..Default::default()
    });
    CollectionInfo {
        id,
        db_id,
        schema,
        ..Default::default()
    }
    .encode_to_vec()
}

fn partition(collection_id: i64, id: i64) -> Vec<u8> {
    PartitionInfo {
        id,
        name: format!("p{id}"),
        collection_id,
        ..Default::default()
    }
    .encode_to_vec()
}

fn key_field() -> Vec<u8> {
    FieldSchema {
        field_id: 100,
        name: "id".into(),
        is_primary_key: true,
        ..Default::default()
    }
    .encode_to_vec()
}

async fn wait_view(
    views: &mut watch::Receiver<Arc<View>>,
    what: &str,
    mut is: impl FnMut(&View) -> bool,
) -> Arc<View> {
    let found =
        tokio::time::timeout(LIMIT, views.wait_for(|view| view.revision > 0 && is(view))).await;
    found
        .unwrap_or_else(|_| panic!("never seen: {what}"))
        .unwrap()
        .clone()
}

async fn wait_health(catalog: &EtcdCatalog, what: &str, limit: Duration, broken: bool) {
    let wait = async {
        while catalog.health().error.is_some() != broken {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(limit, wait)
        .await
        .unwrap_or_else(|_| panic!("never seen: {what}"));
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Line {
    Open,
    /// Connections are cut and refused.
    Cut,
    /// Connections stay, bytes do not come through.
    Silent,
}

/// A line to etcd that can break.
async fn line() -> (watch::Sender<Line>, String) {
    let (state, states) = watch::channel(Line::Open);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(relay(near, states.clone()));
        }
    });
    (state, address)
}

async fn relay(near: TcpStream, mut state: watch::Receiver<Line>) {
    if *state.borrow() == Line::Cut {
        return;
    }
    let Ok(far) = TcpStream::connect(endpoint()).await else {
        return;
    };
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let (there, back) = (
        pump(near_read, far_write, state.clone()),
        pump(far_read, near_write, state.clone()),
    );
    let both = async { tokio::join!(there, back) };
    tokio::select! {
        _ = both => {}
        _ = state.wait_for(|line| *line == Line::Cut) => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut state: watch::Receiver<Line>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if state.wait_for(|line| *line != Line::Silent).await.is_err()
            || to.write_all(&buffer[..n]).await.is_err()
        {
            return;
        }
    }
}

#[tokio::test]
async fn nothing_is_lost_between_list_and_watch() {
    let source = Source::new().await;
    let (writing, mut turns) = watch::channel(0);
    let writer = async {
        for id in 1000..1600 {
            source.put(&info_key(1, id), info(1, id, "a")).await;
            if id % 3 == 0 {
                source.delete(&info_key(1, id - 1)).await;
            }
            writing.send_replace(id);
        }
    };
    let readers = async {
        let mut catalogs = Vec::new();
        for at in (1000..1600).step_by(60) {
            turns.wait_for(|turn| *turn >= at).await.unwrap();
            catalogs.push(EtcdCatalog::connect(source.config.clone()));
        }
        catalogs
    };
    let ((), catalogs) = tokio::join!(writer, readers);
    source.put(&info_key(1, 9999), info(1, 9999, "last")).await;
    let gone = |id: &i64| id % 3 == 2 && *id < 1599;
    let expected: Vec<i64> = (1000..1600).filter(|id| !gone(id)).chain([9999]).collect();
    for catalog in &catalogs {
        let mut views = catalog.subscribe();
        let last = CollectionId(9999);
        let view = wait_view(&mut views, "the last write", |view| {
            view.collections.contains_key(&last)
        })
        .await;
        assert_eq!(
            view.collections.keys().map(|id| id.0).collect::<Vec<_>>(),
            expected
        );
    }
}

#[tokio::test]
async fn a_list_of_many_pages_is_complete() {
    let source = Source::new().await;
    for chunk in (1..=1300).collect::<Vec<i64>>().chunks(100) {
        let put = |id: &i64| {
            TxnOp::put(
                source.key(&format!("root-coord/partitions/7/{id}")),
                partition(7, *id),
                None,
            )
        };
        let all: Vec<TxnOp> = chunk.iter().map(put).collect();
        source
            .etcd
            .kv_client()
            .txn(Txn::new().and_then(all))
            .await
            .unwrap();
    }
    source.collection(1, 7, "a").await;
    let catalog = EtcdCatalog::connect(source.config.clone());
    let view = wait_view(&mut catalog.subscribe(), "the list", |_| true).await;
    let listed = &view.collections[&CollectionId(7)];
    assert_eq!(listed.partitions.len(), 1300);
    assert_eq!(
        catalog
            .read_collection(CollectionId(7))
            .await
            .unwrap()
            .as_ref(),
        Some(&**listed)
    );
}

#[tokio::test]
async fn a_transaction_is_seen_whole() {
    let source = Source::new().await;
    source.collection(1, 7, "a").await;
    let catalog = EtcdCatalog::connect(source.config.clone());
    let mut views = catalog.subscribe();
    wait_view(&mut views, "the list", |_| true).await;
    let mut written = None;
    let moves = async {
        for turn in 0..100 {
            let (from, to) = if turn % 2 == 0 { (1, 2) } else { (2, 1) };
            let ops = [
                TxnOp::put(source.key(&info_key(from, 7)), decode::TOMBSTONE, None),
                TxnOp::put(
                    source.key(&info_key(to, 7)),
                    info(to, 7, &format!("turn{turn}")),
                    None,
                ),
            ];
            source
                .etcd
                .kv_client()
                .txn(Txn::new().and_then(ops))
                .await
                .unwrap();
            // The view may not know of the move yet, and where it has moved from a tombstone stays.
            let read = catalog.read_collection(CollectionId(7)).await.unwrap();
            assert_eq!(read.map(|c| c.name), Some(format!("turn{turn}")));
            // Where it is and where it was: each turn has written both.
            let last = catalog.written_at(DbId(from), CollectionId(7)).await;
            assert!(last.unwrap() > written, "turn {turn}");
            written = catalog.written_at(DbId(to), CollectionId(7)).await.unwrap();
        }
        let none = catalog.written_at(DbId(3), CollectionId(7)).await;
        assert_eq!(none, Ok(None));
    };
    let last = wait_view(&mut views, "the last move", |view| {
        assert!(
            view.collections.contains_key(&CollectionId(7)),
            "lost at revision {}",
            view.revision
        );
        view.collections[&CollectionId(7)].name == "turn99"
    });
    let ((), view) = tokio::join!(moves, last);
    assert_eq!(view.collections[&CollectionId(7)].db, DbId(1));
}

#[tokio::test]
async fn tombstones_and_deletes_are_followed() {
    let source = Source::new().await;
    source.collection(1, 7, "a").await;
    source.collection(1, 8, "b").await;
    let catalog = EtcdCatalog::connect(source.config.clone());
    let mut views = catalog.subscribe();
    wait_view(&mut views, "both", |view| view.collections.len() == 2).await;
    source.put(&info_key(1, 7), decode::TOMBSTONE).await;
    wait_view(&mut views, "the tombstone", |view| {
        view.collections.len() == 1
    })
    .await;
    source.delete(&info_key(1, 8)).await;
    wait_view(&mut views, "the delete", |view| view.collections.is_empty()).await;
    source.put(&info_key(1, 9), *b"\xff\xff").await;
    source.collection(1, 10, "c").await;
    wait_view(&mut views, "what follows a broken value", |view| {
        view.collections.len() == 1
    })
    .await;
    assert_eq!(
        catalog.health().undecodable.keys().collect::<Vec<_>>(),
        [&info_key(1, 9)]
    );
}

#[tokio::test]
async fn what_was_compacted_while_the_line_was_cut_is_seen_by_a_new_list() {
    let source = Source::new().await;
    for id in [7, 8, 9] {
        source.collection(1, id, "a").await;
    }
    let (line, address) = line().await;
    let catalog = EtcdCatalog::connect(EtcdConfig {
        endpoints: vec![address],
        ..source.config.clone()
    });
    let mut views = catalog.subscribe();
    let before = wait_view(&mut views, "the list", |view| view.collections.len() == 3).await;
    wait_health(&catalog, "health", LIMIT, false).await;
    line.send_replace(Line::Cut);
    wait_health(&catalog, "the cut", LIMIT, true).await;
    source.delete(&info_key(1, 7)).await;
    source.put(&info_key(1, 8), info(1, 8, "renamed")).await;
    source.collection(1, 10, "new").await;
    let revision = source
        .etcd
        .kv_client()
        .get("x", None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    source
        .etcd
        .kv_client()
        .compact(revision, None)
        .await
        .unwrap();
    line.send_replace(Line::Open);
    let after = wait_view(&mut views, "the new list", |view| {
        view.collections.contains_key(&CollectionId(10))
    })
    .await;
    assert_eq!(
        after.collections.keys().map(|id| id.0).collect::<Vec<_>>(),
        [8, 9, 10]
    );
    assert_eq!(after.collections[&CollectionId(8)].name, "renamed");
    let same = CollectionId(9);
    assert!(Arc::ptr_eq(
        &before.collections[&same],
        &after.collections[&same]
    ));
    wait_health(&catalog, "the end of the cut", LIMIT, false).await;
}

#[tokio::test]
async fn a_silent_line_is_noticed_and_survived() {
    let source = Source::new().await;
    let (line, address) = line().await;
    let catalog = EtcdCatalog::connect(EtcdConfig {
        endpoints: vec![address],
        ..source.config.clone()
    });
    let mut views = catalog.subscribe();
    wait_view(&mut views, "the list", |_| true).await;
    // Idle is not silent: the watch outlives its own deadline.
    let news = tokio::time::timeout(Duration::from_secs(12), async {
        while catalog.health().error.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(
        news.await.is_err(),
        "an idle watch was taken for a dead one"
    );
    line.send_replace(Line::Silent);
    wait_health(&catalog, "the silence", Duration::from_secs(12), true).await;
    source.collection(1, 7, "a").await;
    line.send_replace(Line::Open);
    wait_view(&mut views, "what came in the silence", |view| {
        view.collections.len() == 1
    })
    .await;
    wait_health(&catalog, "the end of the silence", LIMIT, false).await;
}

#[tokio::test]
async fn properties_of_a_database_are_seen_to_change() {
    let source = Source::new().await;
    let catalog = EtcdCatalog::connect(source.config.clone());
    let mut views = catalog.subscribe();
    for properties in [&[("a", "1"), ("b", "2")][..], &[("b", "3")], &[]] {
        let pair = |(key, value): &(&str, &str)| KeyValuePair {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        let info = DatabaseInfo {
            name: "shop".into(),
            id: 12,
            state: 1,
            properties: properties.iter().map(pair).collect(),
            ..Default::default()
        };
        let key = "root-coord/database/db-info/12";
        source.put(key, info.encode_to_vec()).await;
        wait_view(&mut views, "what was altered", |view| {
            let shop = view.databases.get(&DbId(12));
            shop.is_some_and(|shop| shop.properties == decode::pairs(&info.properties))
        })
        .await;
    }
}

#[tokio::test]
async fn one_collection_is_read_linearizably() {
    let source = Source::new().await;
    let catalog = EtcdCatalog::connect(source.config.clone());
    let mut views = catalog.subscribe();
    wait_view(&mut views, "the list", |_| true).await;
    let read = async |id| catalog.read_collection(CollectionId(id)).await;
    assert_eq!(read(7).await, Ok(None));
    source
        .put(
            "root-coord/database/db-info/12",
            DatabaseInfo {
                id: 12,
                state: 1,
                ..Default::default()
            }
            .encode_to_vec(),
        )
        .await;
    // Right behind the write: the view need not know it yet.
    source.collection(12, 7, "a").await;
    let found = read(7).await.unwrap().unwrap();
    assert_eq!(
        (found.db, found.name.as_str(), found.schema.fields.len()),
        (DbId(12), "a", 1)
    );
    assert!(found.partitions.contains_key(&PartitionId(1)));
    wait_view(&mut views, "it in the view", |view| {
        view.collections.contains_key(&CollectionId(7))
    })
    .await;
    source.delete(&info_key(12, 7)).await;
    source.put(&info_key(1, 7), info(1, 7, "moved")).await;
    assert_eq!(read(7).await.unwrap().unwrap().name, "moved");
    source
        .put("root-coord/collection/8", info(0, 8, "legacy"))
        .await;
    assert_eq!(read(8).await.unwrap().unwrap().db, DbId(1));
    source.put(&info_key(1, 7), decode::TOMBSTONE).await;
    assert_eq!(read(7).await, Ok(None));
    source.put(&info_key(1, 7), *b"\xff\xff").await;
    assert!(
        matches!(read(7).await, Err(CatalogError::Undecodable { key, .. }) if key == info_key(1, 7))
    );
}

#[tokio::test]
async fn the_bound_of_the_oracle_is_read() {
    let source = Source::new().await;
    let catalog = EtcdCatalog::connect(source.config.clone());
    assert!(matches!(
        catalog.tso_bound().await,
        Err(CatalogError::NoMilvus { .. })
    ));
    let key = format!("{}/kv/gid/timestamp", source.config.root_path);
    source
        .etcd
        .kv_client()
        .put(key, 1_700_000_000_123_456_789_u64.to_be_bytes(), None)
        .await
        .unwrap();
    assert_eq!(
        catalog.tso_bound().await,
        Ok(Tso::from_millis(1_700_000_000_124))
    );
}

#[tokio::test]
async fn a_source_is_looked_at_before_it_is_taken() {
    let source = Source::new().await;
    let session = |version: &str| {
        format!(r#"{{"ServerID":5,"ServerName":"rootcoord","Version":"{version}"}}"#)
    };
    assert_eq!(
        probe(&source.config).await.unwrap().version,
        "",
        "a source that is down"
    );
    for (version, readable) in [
        ("2.3.5", true),
        ("2.5.27", true),
        ("2.6.0", false),
        ("2.2.9", false),
    ] {
        source.put("session/rootcoord", session(version)).await;
        match probe(&source.config).await {
            Ok(info) => assert!(readable && info.version == version),
            Err(error) => assert_eq!(
                (readable, error),
                (
                    false,
                    CatalogError::Version {
                        version: version.into()
                    }
                )
            ),
        }
    }
    source.delete("root-coord/database/db-info/1").await;
    assert!(matches!(
        probe(&source.config).await,
        Err(CatalogError::Elsewhere { .. })
    ));
    source.delete("session/rootcoord").await;
    match probe(&source.config).await {
        Err(CatalogError::NoMilvus { prefix, .. }) => {
            assert_eq!(prefix, source.config.meta_prefix())
        }
        other => panic!("{other:?}"),
    }
    source.put("root-coord/database/db-info/1", *b"").await;
    source.put("streamingcoord-meta/pchannel/x", *b"").await;
    assert!(matches!(
        probe(&source.config).await,
        Err(CatalogError::Version { .. })
    ));
}
