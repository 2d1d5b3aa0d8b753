//! Readers of a Pulsar source whose brokers are silent, break off, or send what cannot be read.
#![cfg(feature = "pulsar")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

mod pulsar_script;

use std::sync::Arc;
use std::time::Duration;

use cdc_core::ids::PChannel;
use cdc_core::source::{
    LogReader, LogSource, PulsarAuth, PulsarConfig, PulsarLogin, PulsarTls, QueueConfig,
    SourceError, Start, open_source,
};
use futures::future::join_all;
use tokio::time::timeout;

use pulsar_script::{Broker, Fault, SOON};

/// Longer than any test may take.
const NEVER: Duration = Duration::from_secs(600);

fn config(address: String, connect_timeout: Duration) -> PulsarConfig {
    PulsarConfig {
        address,
        tenant: "public".to_owned(),
        namespace: "default".to_owned(),
        auth: None,
        tls: PulsarTls::default(),
        max_message_size: 5 << 20,
        connect_timeout,
    }
}

async fn source(address: String, connect_timeout: Duration) -> Arc<dyn LogSource> {
    let config = config(address, connect_timeout);
    open_source(QueueConfig::Pulsar(config)).await.unwrap()
}

async fn opened(source: &Arc<dyn LogSource>, channel: &str) -> Box<dyn LogReader> {
    let channel = PChannel::new(channel);
    let open = source.open(&channel, Start::Earliest);
    timeout(SOON, open).await.unwrap().unwrap()
}

async fn next(reader: &mut Box<dyn LogReader>) -> Result<Vec<String>, SourceError> {
    let got = timeout(SOON, reader.next(1 << 20)).await;
    let text = |m: cdc_core::source::RawMessage| String::from_utf8(m.payload.to_vec()).unwrap();
    Ok(got
        .expect("an answer or an error")?
        .into_iter()
        .map(text)
        .collect())
}

/// A reader whose connection is gone, on its way to another one that says nothing.
async fn stuck(broker: &Broker, source: &Arc<dyn LogSource>) -> Box<dyn LogReader> {
    let mut reader = opened(source, "c").await;
    assert_eq!(next(&mut reader).await.unwrap(), ["one"]);
    let before = broker.connections();
    broker.silence(true);
    broker.cut();
    tokio::select! {
        got = reader.next(1) => panic!("{got:?}"),
        () = broker.connected(before + 1) => {}
    }
    reader
}

#[tokio::test]
async fn a_reader_that_nobody_asks_holds_up_no_other() {
    let broker = Broker::start().await;
    broker.holds(&[("one", Fault::None)]);
    let source = source(broker.url(), Duration::from_secs(2)).await;
    let mut reader = stuck(&broker, &source).await;
    let pinged = timeout(SOON, source.ping()).await.expect("no wait");
    let Err(SourceError::Unreachable { cause, .. }) = pinged else {
        panic!("{pinged:?}")
    };
    assert!(cause.contains("within 2s"), "{cause}");
    broker.silence(false);
    broker.holds(&[("one", Fault::None), ("two", Fault::None)]);
    timeout(SOON, source.ping()).await.unwrap().unwrap();
    // It was told nothing of its own try yet.
    assert!(next(&mut reader).await.is_err());
    assert_eq!(next(&mut reader).await.unwrap(), ["two"]);
}

#[tokio::test]
async fn a_reader_that_is_dropped_connects_no_longer() {
    let broker = Broker::start().await;
    broker.holds(&[("one", Fault::None)]);
    let source = source(broker.url(), NEVER).await;
    let reader = stuck(&broker, &source).await;
    drop(reader);
    broker.left().await;
    broker.silence(false);
    timeout(SOON, source.ping()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_silent_broker_holds_up_no_reader_of_another() {
    let (broker, hole) = (Broker::start().await, Broker::start().await);
    hole.silence(true);
    broker.holds(&[("one", Fault::None)]);
    broker.elsewhere("far", hole.url());
    let source = source(broker.url(), NEVER).await;
    let waiting = source.clone();
    let far = tokio::spawn(async move {
        let opened = waiting.open(&PChannel::new("far"), Start::Earliest).await;
        opened.map(|_| ())
    });
    hole.connected(1).await;
    let mut near = opened(&source, "near").await;
    assert_eq!(next(&mut near).await.unwrap(), ["one"]);
    assert!(!far.is_finished());
    far.abort();
}

#[tokio::test]
async fn one_attempt_for_all_and_the_address_that_answered_is_the_first_to_be_tried() {
    let (hole, broker) = (Broker::start().await, Broker::start().await);
    hole.silence(true);
    let address = format!("{},127.0.0.1:{}", hole.url(), broker.port);
    let source = source(address, Duration::from_secs(2)).await;
    for pinged in timeout(SOON, join_all((0..10).map(|_| source.ping())))
        .await
        .unwrap()
    {
        pinged.unwrap();
    }
    assert_eq!((hole.connections(), broker.connections()), (1, 1));
    source.ping().await.unwrap();
    broker.cut();
    reconnected(&broker, &source, 2).await;
    assert_eq!((hole.connections(), broker.connections()), (1, 2));
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_told_and_ends_no_other_reader() {
    let broker = Broker::start().await;
    broker.holds(&[("one", Fault::None), ("two", Fault::Checksum)]);
    let source = source(broker.url(), Duration::from_secs(10)).await;
    let mut reader = opened(&source, "c").await;
    assert_eq!(next(&mut reader).await.unwrap(), ["one"]);
    for _ in 0..2 {
        let error = next(&mut reader).await.unwrap_err();
        let SourceError::Unreachable { cause, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(
            cause.contains("7:1") && cause.contains("checksum"),
            "{cause}"
        );
    }
    assert_eq!(broker.connections(), 1);
    broker.holds(&[("one", Fault::None), ("two", Fault::None)]);
    assert_eq!(next(&mut reader).await.unwrap(), ["two"]);
}

#[tokio::test]
async fn a_first_message_that_cannot_be_read_is_told() {
    let broker = Broker::start().await;
    broker.holds(&[("one", Fault::Checksum)]);
    let source = source(broker.url(), Duration::from_secs(10)).await;
    let channel = PChannel::new("c");
    let open = timeout(SOON, source.open(&channel, Start::Earliest)).await;
    let error = open.unwrap().err().unwrap();
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_again_and_again_is_told_with_its_cause() {
    let broker = Broker::start().await;
    broker.holds(&[("one", Fault::None), ("two", Fault::Length)]);
    let source = source(broker.url(), Duration::from_secs(10)).await;
    let mut reader = opened(&source, "c").await;
    assert_eq!(next(&mut reader).await.unwrap(), ["one"]);
    for _ in 0..2 {
        let error = next(&mut reader).await.unwrap_err();
        let SourceError::Unreachable { cause, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(cause.contains("a frame of 4294967295 bytes"), "{cause}");
    }
    broker.holds(&[("one", Fault::None), ("two", Fault::None)]);
    assert_eq!(next(&mut reader).await.unwrap(), ["two"]);
}

#[tokio::test]
async fn what_a_topic_holds_is_asked_to_the_end_however_short_the_calls_are() {
    let broker = Broker::start().await;
    broker.holds(&[("one", Fault::None), ("three", Fault::Gap)]);
    // The broker is asked for four times as long.
    let source = source(broker.url(), Duration::from_millis(500)).await;
    let mut reader = opened(&source, "c").await;
    assert_eq!(next(&mut reader).await.unwrap(), ["one"]);
    broker.forgets();
    let told = async {
        loop {
            let short = timeout(Duration::from_millis(100), reader.next(1));
            if let Ok(got) = short.await {
                return got.unwrap_err();
            }
        }
    };
    let error = timeout(SOON, told).await.unwrap().to_string();
    assert!(error.contains("does not tell what it holds"), "{error}");
}

#[tokio::test]
async fn a_token_in_a_file_is_read_whenever_the_broker_wants_to_see_it() {
    let broker = Broker::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "one\n").unwrap();
    let source = open_source(QueueConfig::Pulsar(PulsarConfig {
        auth: Some(PulsarAuth {
            method: "token".to_owned(),
            data: PulsarLogin::File(path.clone()),
        }),
        ..config(broker.url(), Duration::from_secs(10))
    }));
    let source = source.await.unwrap();
    source.ping().await.unwrap();
    assert_eq!(broker.login(1).await, "one");
    std::fs::write(&path, "two").unwrap();
    broker.challenge();
    assert_eq!(broker.login(2).await, "two");
    source.ping().await.unwrap();
    assert_eq!(broker.connections(), 1);

    std::fs::write(&path, "three").unwrap();
    broker.cut();
    reconnected(&broker, &source, 2).await;
    assert_eq!(broker.login(3).await, "three");

    // What is wrong with the file is told, and nothing of what is in it.
    broker.cut();
    broker.left().await;
    let hush = "hush".repeat(20_000);
    for (content, cause) in [
        (Some(b" \n".to_vec()), "it is empty"),
        (Some(hush.into_bytes()), "more than 65536 bytes"),
        (Some(b"hush\xff".to_vec()), "not text"),
        (None, "No such file"),
    ] {
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let told = until(&source, cause).await;
        assert!(told.contains(&path.display().to_string()), "{told}");
        assert!(!told.contains("hush"), "{told}");
    }
    std::fs::create_dir(&path).unwrap();
    until(&source, "not a file").await;
}

/// What a ping says, once the break of the last connection is seen: then always this.
async fn until(source: &Arc<dyn LogSource>, cause: &str) -> String {
    let told = async {
        loop {
            let told = source.ping().await.unwrap_err().to_string();
            if told.contains(cause) {
                return told;
            }
        }
    };
    timeout(SOON, told)
        .await
        .unwrap_or_else(|_| panic!("{cause} is told"))
}

/// Asks until the break is seen and there is another connection, the `n`th.
async fn reconnected(broker: &Broker, source: &Arc<dyn LogSource>, n: usize) {
    let again = async { while source.ping().await.is_err() || broker.connections() < n {} };
    timeout(SOON, again).await.unwrap();
}
