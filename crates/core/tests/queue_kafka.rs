//! The contract of the message queues on a real Kafka, at `CDC_TEST_KAFKA`; what is special to it beside.
#![cfg(all(feature = "kafka", feature = "e2e"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cdc_core::ids::PChannel;
use cdc_core::position::Position;
use cdc_core::secret::Secret;
use cdc_core::source::contract::{self, ContractHarness};
use cdc_core::source::kafka::{KafkaConfig, KafkaSasl, KafkaSource, KafkaTls, SaslMechanism};
use cdc_core::source::{LogReader, LogSource, RawMessage, SourceError, Start};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, FutureProducer, FutureRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::RwLock;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// The test that counts what runs in this process has it to itself.
static TURNS: RwLock<()> = RwLock::const_new(());

fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is set by `cdc-lab beside`, see CONTRIBUTING.md"))
}

fn config(brokers: &str) -> KafkaConfig {
    KafkaConfig {
        brokers: brokers.to_owned(),
        tls: None,
        sasl: None,
        timeout: Duration::from_secs(5),
        prefetch: 16 << 10,
    }
}

struct Kafka {
    source: KafkaSource,
    address: String,
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
}

impl Kafka {
    /// `compression`: zstd is what Milvus' producer has.
    fn at(address: String, compression: &str) -> Self {
        let mut own = ClientConfig::new();
        own.set("bootstrap.servers", &address)
            .set("compression.codec", compression)
            .set("message.max.bytes", "10485760")
            .set("linger.ms", "0");
        Self {
            source: KafkaSource::connect(&config(&address)).unwrap(),
            admin: own.create().unwrap(),
            producer: own.create().unwrap(),
            address,
        }
    }

    fn new() -> Self {
        Self::at(variable("CDC_TEST_KAFKA"), "zstd")
    }

    async fn delete(&self, channel: &PChannel) {
        let options = AdminOptions::new();
        let deleted = self.admin.delete_topics(&[channel.as_str()], &options);
        deleted.await.unwrap().pop().unwrap().unwrap();
    }

    async fn create_as(&self, name: &str, settings: &[(&str, &str)]) -> PChannel {
        let mut topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new();
        let made = self.admin.create_topics([&topic], &options);
        made.await.unwrap().pop().unwrap().unwrap();
        // Told before every broker's answers show it.
        let channel = PChannel::new(name);
        let end = Instant::now() + PATIENCE;
        while self.source.bounds(&channel).await.is_err() {
            assert!(Instant::now() < end, "the topic does not appear");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        channel
    }
}

fn new_name() -> String {
    format!("cdc-test-{:016x}", rand::random::<u64>())
}

#[async_trait]
impl ContractHarness for Kafka {
    fn source(&self) -> &dyn LogSource {
        &self.source
    }

    async fn create(&self) -> PChannel {
        self.create_as(&new_name(), &[]).await
    }

    async fn append(&self, channel: &PChannel, payload: Bytes) -> Position {
        let record = FutureRecord::<(), _>::to(channel.as_str())
            .partition(0)
            .payload(&payload[..]);
        let sent = self.producer.send(record, PATIENCE).await;
        Position::Kafka(sent.map_err(|(e, _)| e).unwrap().offset)
    }

    async fn purge_to(&self, channel: &PChannel, position: Position) {
        let Position::Kafka(offset) = position else {
            panic!("{position} is not of kafka")
        };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(channel.as_str(), 0, Offset::Offset(offset + 1))
            .unwrap();
        let options = AdminOptions::new();
        let purged = self.admin.delete_records(&list, &options);
        purged.await.unwrap();
    }
}

/// Reads until `n` messages are there.
async fn read(reader: &mut dyn LogReader, n: usize) -> Vec<RawMessage> {
    let mut got = Vec::new();
    while got.len() < n {
        let batch = timeout(PATIENCE, reader.next(1 << 20)).await;
        got.extend(batch.expect("no message came").unwrap());
    }
    got
}

fn payloads(messages: &[RawMessage]) -> Vec<String> {
    let text = |m: &RawMessage| String::from_utf8_lossy(&m.payload).into_owned();
    messages.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_on_kafka() {
    let _turn = TURNS.read().await;
    // Its payloads are dots: packed, all of them would be on their way before retention can overtake a reader.
    contract::run(Kafka::at(variable("CDC_TEST_KAFKA"), "none")).await;
}

#[tokio::test]
async fn nothing_is_left_behind_and_nothing_is_made() {
    let _turn = TURNS.read().await;
    let kafka = Kafka::new();
    let channel = kafka.create().await;
    kafka.append(&channel, Bytes::from_static(b"one")).await;
    let mut reader = kafka.source.open(&channel, Start::Earliest).await.unwrap();
    read(&mut *reader, 1).await;
    let missing = PChannel::new(new_name());
    kafka.source.ping().await.unwrap();
    assert!(kafka.source.bounds(&missing).await.is_err());
    assert!(kafka.source.open(&missing, Start::Latest).await.is_err());
    drop(reader);
    let address = kafka.address.clone();
    tokio::task::spawn_blocking(move || {
        let mut own = ClientConfig::new();
        own.set("bootstrap.servers", address)
            .set("group.id", "milvus-cdc");
        let asks: BaseConsumer = own.create().unwrap();
        let groups = asks.fetch_group_list(None, PATIENCE).unwrap();
        assert!(
            groups
                .groups()
                .iter()
                .all(|g| !g.name().contains("milvus-cdc")),
            "a group was made"
        );
        let topics = asks.fetch_metadata(None, PATIENCE).unwrap();
        let mine = |n: &str| n == missing.as_str() || n.contains("ping");
        assert!(!topics.topics().iter().any(|t| mine(t.name())));
        let mut list = TopicPartitionList::new();
        list.add_partition(channel.as_str(), 0);
        let committed = asks.committed_offsets(list, PATIENCE).unwrap();
        let offset = committed.elements()[0].offset();
        assert_eq!(offset, Offset::Invalid, "an offset was committed");
    })
    .await
    .unwrap();
}

/// Marks of transactions take offsets, and what was aborted is not shown.
#[tokio::test]
async fn gaps_of_transactions_are_none() {
    let _turn = TURNS.read().await;
    let kafka = Kafka::new();
    let channel = kafka.create().await;
    let mut reader = kafka.source.open(&channel, Start::Earliest).await.unwrap();
    let (address, topic) = (kafka.address.clone(), channel.to_string());
    tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", address)
            .set("transactional.id", &topic)
            .create()
            .unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        for (i, commit) in [true, false, true, false, false, true]
            .into_iter()
            .enumerate()
        {
            producer.begin_transaction().unwrap();
            for part in ["a", "b"] {
                let text = format!("{i}{part}");
                let record = rdkafka::producer::BaseRecord::<(), str>::to(&topic)
                    .partition(0)
                    .payload(&text);
                producer.send(record).map_err(|(e, _)| e).unwrap();
            }
            if commit {
                producer.commit_transaction(PATIENCE).unwrap();
            } else {
                producer.flush(PATIENCE).unwrap();
                producer.abort_transaction(PATIENCE).unwrap();
            }
        }
    })
    .await
    .unwrap();
    let got = read(&mut *reader, 6).await;
    assert_eq!(payloads(&got), ["0a", "0b", "2a", "2b", "5a", "5b"]);
    let Position::Kafka(last) = got[5].position else {
        panic!()
    };
    assert!(last > 6, "the offsets had gaps: {last}");
    // Behind a mark, and at an offset that is one.
    for start in [Start::After(got[1].position), Start::At(Position::Kafka(2))] {
        let mut reader = kafka.source.open(&channel, start).await.unwrap();
        assert_eq!(payloads(&read(&mut *reader, 4).await), payloads(&got[2..]));
    }
}

#[tokio::test]
async fn several_readers_of_one_channel_do_not_disturb_each_other() {
    let _turn = TURNS.read().await;
    let kafka = Kafka::new();
    let channel = kafka.create().await;
    let mut all = Vec::new();
    for i in 0..50 {
        let payload = Bytes::from(format!("{i}"));
        let position = kafka.append(&channel, payload.clone()).await;
        all.push(RawMessage { position, payload });
    }
    let mut readers = Vec::new();
    for i in [0, 30, 10, 45] {
        let start = Start::At(all[i].position);
        readers.push((i, kafka.source.open(&channel, start).await.unwrap()));
    }
    for (i, reader) in &mut readers {
        assert_eq!(read(&mut **reader, all.len() - *i).await, all[*i..]);
    }
    // One goes, another one comes in its place, further back.
    readers.remove(1);
    let mut reader = kafka.source.open(&channel, Start::Earliest).await.unwrap();
    assert_eq!(read(&mut *reader, 50).await, all);
    let position = kafka.append(&channel, Bytes::from_static(b"new")).await;
    for (_, reader) in &mut readers {
        assert_eq!(read(&mut **reader, 1).await[0].position, position);
    }
}

/// The clients of the library in this process.
fn clients() -> usize {
    let names = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |t: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(t.unwrap().path().join("comm")).unwrap_or_default()
    };
    names.map(name).filter(|n| n.trim() == "rdk:main").count()
}

async fn until_clients(n: usize) {
    let end = Instant::now() + PATIENCE;
    while clients() != n {
        assert!(Instant::now() < end, "{} clients, not {n}", clients());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn sixteen_readers_share_one_client_and_a_second_reader_gives_its_own_back() {
    let _turn = TURNS.write().await;
    let kafka = Kafka::new();
    // The source's, and those of this test that makes topics and messages.
    until_clients(3).await;
    let mut readers = Vec::new();
    let mut channels = Vec::new();
    for _ in 0..16 {
        let channel = kafka.create().await;
        let mut reader = kafka.source.open(&channel, Start::Earliest).await.unwrap();
        kafka.append(&channel, Bytes::from_static(b"x")).await;
        read(&mut *reader, 1).await;
        readers.push(reader);
        channels.push(channel);
    }
    assert_eq!(clients(), 3);
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    println!("{threads} threads in all with sixteen readers, an admin client and a producer");
    let mut second = Vec::new();
    for channel in &channels[..3] {
        let mut reader = kafka.source.open(channel, Start::Earliest).await.unwrap();
        read(&mut *reader, 1).await;
        second.push(reader);
    }
    assert_eq!(clients(), 4);
    drop(second);
    until_clients(3).await;
    for (channel, reader) in channels.iter().zip(&mut readers) {
        kafka.append(channel, Bytes::from_static(b"y")).await;
        assert_eq!(payloads(&read(&mut **reader, 1).await), ["y"]);
    }
}

#[tokio::test]
async fn a_topic_made_anew_is_a_lost_position() {
    let _turn = TURNS.read().await;
    let kafka = Kafka::new();
    let channel = kafka.create().await;
    for _ in 0..5 {
        kafka.append(&channel, Bytes::from_static(b"old")).await;
    }
    let mut reader = kafka.source.open(&channel, Start::Earliest).await.unwrap();
    read(&mut *reader, 5).await;
    kafka.delete(&channel).await;
    let mut gone = false;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match kafka.source.bounds(&channel).await {
            Err(SourceError::NoSuchChannel { .. }) => {
                gone = true;
                break;
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    assert!(gone, "the topic is not deleted");
    kafka.create_as(channel.as_str(), &[]).await;
    kafka.append(&channel, Bytes::from_static(b"new")).await;
    let end = Instant::now() + PATIENCE;
    loop {
        match timeout(PATIENCE, reader.next(100)).await.unwrap() {
            Err(SourceError::PositionLost { .. }) => break,
            // While it was away.
            Err(SourceError::NoSuchChannel { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < end);
    }
}

#[tokio::test]
async fn logins_over_tls() {
    let _turn = TURNS.read().await;
    let address = variable("CDC_TEST_KAFKA_SECURED");
    let with = |password: &str, mechanism, ca: Option<String>, verify_hostname| {
        let config = KafkaConfig {
            tls: Some(KafkaTls {
                ca: ca.map(Into::into),
                client: None,
                verify_hostname,
            }),
            sasl: Some(KafkaSasl {
                mechanism,
                username: variable("CDC_TEST_KAFKA_USERNAME"),
                password: Secret::new(password),
            }),
            ..config(&address)
        };
        KafkaSource::connect(&config).unwrap()
    };
    let password = variable("CDC_TEST_KAFKA_PASSWORD");
    let ca = Some(variable("CDC_TEST_KAFKA_CA"));
    let kafka = Kafka::new();
    let channel = kafka.create().await;
    kafka.append(&channel, Bytes::from_static(b"one")).await;
    for mechanism in [
        SaslMechanism::Plain,
        SaslMechanism::ScramSha256,
        SaslMechanism::ScramSha512,
    ] {
        let source = with(&password, mechanism, ca.clone(), true);
        source.ping().await.unwrap();
        let mut reader = source.open(&channel, Start::Earliest).await.unwrap();
        assert_eq!(payloads(&read(&mut *reader, 1).await), ["one"]);

        let error = with("hush-hush", mechanism, ca.clone(), true)
            .ping()
            .await
            .unwrap_err();
        let SourceError::Login { address: at, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(at, &address);
        assert!(!format!("{error:?} {error}").contains("hush-hush"));
    }
    // A certificate nobody vouches for.
    let error = with(&password, SaslMechanism::Plain, None, true)
        .ping()
        .await
        .unwrap_err();
    assert!(
        matches!(&error, SourceError::Unreachable { cause, .. } if cause.contains("certificate")),
        "{error:?}"
    );
    // One that is renewed while it is used.
    let dir = tempfile::tempdir().unwrap();
    let renewed = dir.path().join("ca.pem");
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/ca.pem");
    std::fs::copy(other, &renewed).unwrap();
    let path = renewed.display().to_string();
    let source = with(&password, SaslMechanism::Plain, Some(path), true);
    source.ping().await.unwrap_err();
    std::fs::copy(variable("CDC_TEST_KAFKA_CA"), &renewed).unwrap();
    source.ping().await.unwrap();
    let mut reader = source.open(&channel, Start::Earliest).await.unwrap();
    assert_eq!(payloads(&read(&mut *reader, 1).await), ["one"]);
    std::fs::copy(other, &renewed).unwrap();
    kafka.append(&channel, Bytes::from_static(b"two")).await;
    assert_eq!(payloads(&read(&mut *reader, 1).await), ["two"], "as before");
    source.ping().await.unwrap_err();
    std::fs::copy(variable("CDC_TEST_KAFKA_CA"), &renewed).unwrap();
    source.ping().await.unwrap();
    kafka.append(&channel, Bytes::from_static(b"three")).await;
    assert_eq!(payloads(&read(&mut *reader, 1).await), ["three"]);
}

/// A broker of this test's own, which may be killed.
struct Broker {
    lab: Child,
    _input: ChildStdin,
    address: String,
    pid: String,
}

impl Broker {
    fn start(dir: &std::path::Path, port: Option<&str>) -> Self {
        let mut command = Command::new(variable("CDC_LAB_BIN"));
        command.arg("kafka").arg("--dir").arg(dir);
        if let Some(port) = port {
            command.args(["--port", port]);
        }
        let mut lab = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(lab.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let (address, pid) = line.trim().split_once(' ').expect("address and pid");
        Self {
            _input: lab.stdin.take().unwrap(),
            lab,
            address: address.to_owned(),
            pid: pid.to_owned(),
        }
    }

    fn kill9(mut self) {
        let killed = Command::new("kill").args(["-9", &self.pid]).status();
        assert!(killed.unwrap().success());
        self.lab.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_comes_back() {
    let _turn = TURNS.read().await;
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), None);
    let port = broker.address.rsplit_once(':').unwrap().1.to_owned();
    let kafka = Kafka::at(broker.address.clone(), "zstd");
    let channel = kafka.create().await;
    let mut all = Vec::new();
    for i in 0..20 {
        let payload = Bytes::from(format!("{i:08}"));
        let position = kafka.append(&channel, payload.clone()).await;
        all.push(RawMessage { position, payload });
    }
    let mut reader = kafka.source.open(&channel, Start::Earliest).await.unwrap();
    // The rest stays for afterwards: fetched or not.
    let mut got = timeout(PATIENCE, reader.next(20)).await.unwrap().unwrap();

    let mut waiting = kafka.source.open(&channel, Start::Latest).await.unwrap();
    assert!(
        timeout(Duration::from_millis(500), waiting.next(100))
            .await
            .is_err()
    );
    broker.kill9();
    // One that waits for messages tells that there is nobody to send them, and who.
    let error = timeout(PATIENCE, waiting.next(100)).await.unwrap();
    let Err(SourceError::Unreachable { address, cause }) = &error else {
        panic!("{error:?}")
    };
    assert!(address.ends_with(&port) && !cause.is_empty(), "{error:?}");
    println!("told while away: {}", error.as_ref().unwrap_err());
    let told = kafka.source.ping().await.unwrap_err();
    assert!(matches!(told, SourceError::Unreachable { .. }), "{told:?}");

    let broker = Broker::start(dir.path(), Some(&port));
    let back = Instant::now();
    let position = kafka.append(&channel, Bytes::from_static(b"after")).await;
    let payload = Bytes::from_static(b"after");
    all.push(RawMessage { position, payload });
    while got.len() < all.len() {
        match timeout(PATIENCE, reader.next(1000)).await.unwrap() {
            Ok(batch) => got.extend(batch),
            Err(SourceError::Unreachable { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert!(back.elapsed() < PATIENCE);
    }
    assert_eq!(got, all);
    let first = loop {
        match timeout(PATIENCE, waiting.next(1000)).await.unwrap() {
            Ok(batch) => break batch,
            Err(SourceError::Unreachable { .. }) => assert!(back.elapsed() < PATIENCE),
            Err(error) => panic!("{error:?}"),
        }
    };
    assert_eq!(first, all[20..]);
    println!("all read {:?} after it was back", back.elapsed());
    broker.kill9();
}
