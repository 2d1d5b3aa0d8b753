use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::testing::{Rows, delete, insert};
use super::*;
use milvus::proto::schema::FieldSchema;

/// Carries calls out, or not, and answers, or not.
struct Shaky {
    rows: Mutex<Rows>,
    random: Mutex<StdRng>,
    /// Of ten calls so many do not end well.
    bad: u32,
}

enum Fault {
    /// Nothing is done and that is known.
    Refused,
    /// Nothing is done, and who called does not know.
    Lost,
    /// It is done, and who called does not know.
    Unheard,
    /// A part of it is done.
    Half,
}

impl Shaky {
    fn fault(&self) -> Option<Fault> {
        let mut random = self.random.lock();
        (random.random_range(0..10) < self.bad).then(|| match random.random_range(0..4) {
            0 => Fault::Refused,
            1 => Fault::Lost,
            2 => Fault::Unheard,
            _ => Fault::Half,
        })
    }

    fn error(&self, code: Option<i32>) -> TargetError {
        let (uri, call) = ("t".to_owned(), "Insert");
        match code {
            Some(code) => TargetError::Refused {
                uri,
                call,
                code,
                reason: String::new(),
            },
            None => TargetError::Unknown {
                uri,
                call,
                cause: String::new(),
            },
        }
    }
}

#[async_trait]
impl RowCalls for Shaky {
    async fn insert(
        &self,
        at: &Place,
        columns: Vec<Bytes>,
        _: u64,
        _: Duration,
    ) -> Result<(), TargetError> {
        let mut rows = self.rows.lock();
        let before = rows.0.len();
        match self.fault() {
            None => rows.insert(&at.partition, &columns),
            Some(Fault::Refused) => return Err(self.error(Some(8))),
            Some(Fault::Lost) => return Err(self.error(None)),
            Some(Fault::Unheard) => {
                rows.insert(&at.partition, &columns);
                return Err(self.error(None));
            }
            Some(Fault::Half) => {
                rows.insert(&at.partition, &columns);
                let half = before + (rows.0.len() - before) / 2;
                rows.0.truncate(half);
                return Err(self.error(Some(65535)));
            }
        }
        Ok(())
    }

    async fn delete(&self, at: &Place, expr: &str, _: Duration) -> Result<(), TargetError> {
        match self.fault() {
            None => self.rows.lock().delete(&at.partition, expr),
            Some(Fault::Unheard) => {
                self.rows.lock().delete(&at.partition, expr);
                return Err(self.error(None));
            }
            Some(_) => return Err(self.error(Some(65535))),
        }
        Ok(())
    }
}

fn writer() -> PlainWriter {
    let writer = PlainWriter::default();
    let schema = CollectionSchema {
        fields: vec![FieldSchema {
            name: "pk".to_owned(),
            is_primary_key: true,
            ..Default::default()
        }],
        ..Default::default()
    };
    writer.learn("d", "c", CollectionId(1), &schema);
    writer
}

/// As a lane does: the same once more until it succeeds; all at once or in parts.
async fn deliver(writer: &PlainWriter, calls: &Shaky, msgs: &[Entry], parts: usize) {
    let channel = PChannel::new("plain-1-0");
    let within = Duration::from_secs(10);
    for part in msgs.chunks(parts) {
        while let Err(error) = writer.write(calls, "t", &channel, part, within).await {
            assert!(matches!(
                error,
                TargetError::Unknown { .. } | TargetError::Refused { .. }
            ));
        }
    }
}

proptest! {
    /// Whatever is refused, lost, half done or not answered: in the end each row is there as often as it should be. No
    /// key is inserted twice in a row: a source that holds a key twice can be left with one (see the module).
    #[test]
    fn nothing_is_lost_and_nothing_is_there_twice(
        messages in prop::collection::vec(
            (any::<bool>(), prop::collection::btree_set(0..8i64, 1..4)), 1..40),
        seed in any::<u64>(),
        bad in 0..6u32,
        parts in 1..20usize,
    ) {
        let mut wanted = Rows::default();
        let mut msgs = Vec::new();
        for (n, (adds, keys)) in messages.iter().enumerate() {
            let keys: Vec<i64> = keys.iter().copied().collect();
            let id = 2 * n as i64;
            wanted.remove("", &keys);
            msgs.push(delete(id, "", &keys));
            if *adds {
                wanted.add("p", &keys, id);
                msgs.push(insert(id + 1, "p", &keys, id));
            }
        }
        let calls = Shaky {
            rows: Mutex::default(),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            bad,
        };
        let writer = writer();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(deliver(&writer, &calls, &msgs, parts));
        prop_assert_eq!(&*calls.rows.lock(), &wanted);
        // Of what is done nothing is kept.
        prop_assert!(writer.fates.lock().is_empty());
    }
}

#[tokio::test]
async fn a_call_that_was_dropped_counts_as_unknown() {
    struct Hanging(Shaky);
    #[async_trait]
    impl RowCalls for Hanging {
        async fn insert(
            &self,
            at: &Place,
            columns: Vec<Bytes>,
            rows: u64,
            within: Duration,
        ) -> Result<(), TargetError> {
            self.0.insert(at, columns, rows, within).await?;
            std::future::pending().await
        }

        async fn delete(
            &self,
            at: &Place,
            expr: &str,
            within: Duration,
        ) -> Result<(), TargetError> {
            self.0.delete(at, expr, within).await
        }
    }
    let shaky = || Shaky {
        rows: Mutex::default(),
        random: Mutex::new(StdRng::seed_from_u64(1)),
        bad: 0,
    };
    let (writer, channel) = (writer(), PChannel::new("plain-1-0"));
    let msgs = [insert(1, "p", &[1, 2], 7)];
    let hanging = Hanging(shaky());
    let within = Duration::from_secs(5);
    let hangs = writer.write(&hanging, "t", &channel, &msgs, within);
    assert!(
        tokio::time::timeout(Duration::from_millis(20), hangs)
            .await
            .is_err()
    );
    writer
        .write(&hanging.0, "t", &channel, &msgs, within)
        .await
        .unwrap();
    assert_eq!(hanging.0.rows.lock().0.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_has_no_time_is_left_for_the_next_call() {
    struct Slow(Shaky);
    #[async_trait]
    impl RowCalls for Slow {
        async fn insert(
            &self,
            at: &Place,
            columns: Vec<Bytes>,
            rows: u64,
            within: Duration,
        ) -> Result<(), TargetError> {
            tokio::time::sleep(Duration::from_millis(400)).await;
            self.0.insert(at, columns, rows, within).await
        }

        async fn delete(
            &self,
            at: &Place,
            expr: &str,
            within: Duration,
        ) -> Result<(), TargetError> {
            self.0.delete(at, expr, within).await
        }
    }
    let calls = Slow(Shaky {
        rows: Mutex::default(),
        random: Mutex::new(StdRng::seed_from_u64(1)),
        bad: 0,
    });
    let channel = PChannel::new("plain-1-0");
    // Four inserts, none of which can go with another.
    let msgs: Vec<Entry> = (0..4)
        .flat_map(|n| [delete(2 * n, "", &[1]), insert(2 * n + 1, "p", &[1], n)])
        .collect();
    let (writer, within) = (writer(), Duration::from_secs(1));
    let mut tries = 0;
    while let Err(error) = writer.write(&calls, "t", &channel, &msgs, within).await {
        assert!(matches!(error, TargetError::Unfinished { .. }), "{error}");
        tries += 1;
    }
    assert_eq!(tries, 1);
    assert_eq!(calls.0.rows.lock().0, [("p".to_owned(), 1, 3)]);
}

#[test]
fn each_shard_has_a_channel_of_its_own() {
    let all = channels(CollectionId(77), 2);
    assert_eq!(all[1].0.as_str(), "plain-77-1_77v1");
    for (n, (vchannel, pchannel)) in all.iter().enumerate() {
        assert_eq!(vchannel.pchannel(), *pchannel);
        assert_eq!(vchannel.shard(), Some(n));
    }
}

#[tokio::test]
async fn nothing_is_written_to_another_collection_of_that_name() {
    let calls = Shaky {
        rows: Mutex::default(),
        random: Mutex::new(StdRng::seed_from_u64(1)),
        bad: 0,
    };
    let channel = PChannel::new("plain-1-0");
    let msgs = [insert(1, "p", &[1], 7)];
    let (writer, within) = (writer(), Duration::from_secs(5));
    let write = async || writer.write(&calls, "t", &channel, &msgs, within).await;
    let newer = CollectionSchema {
        fields: vec![FieldSchema {
            is_primary_key: true,
            ..Default::default()
        }],
        ..Default::default()
    };
    writer.learn("d", "c", CollectionId(2), &newer);
    assert!(write().await.unwrap_err().is_not_found());
    writer.forget("d", "c");
    assert!(write().await.unwrap_err().is_not_found());
    assert!(calls.rows.lock().0.is_empty());
}
