//! The twin as a Milvus of its own: Insert and Delete get their time from its clock, and are shown at once.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use milvus::proto::schema::i_ds::IdField;
use milvus::proto::schema::{FieldData, IDs, LongArray, StringArray};
use prost::Message;

use super::calls::Session;
use super::state::{Refusal, State};
use crate::ids::{PChannel, PartitionId};
use crate::route::encode::{self, Shard};
use crate::route::tsmap::TsMap;
use crate::target::TargetError;
use crate::target::plain::{Place, RowCalls};
use crate::tso::Tso;

#[async_trait]
impl RowCalls for Session {
    async fn insert(
        &self,
        at: &Place,
        columns: Vec<Bytes>,
        rows: u64,
        within: Duration,
    ) -> Result<(), TargetError> {
        let at = at.clone();
        let call = self.write_rows("Insert", within, move |state| {
            state.insert_rows(&at, &columns, rows)
        });
        self.through("insert rows", call).await
    }

    async fn delete(&self, at: &Place, expr: &str, within: Duration) -> Result<(), TargetError> {
        let (at, expr) = (at.clone(), expr.to_owned());
        let call = self.write_rows("Delete", within, move |state| state.delete_rows(&at, &expr));
        self.through("delete rows", call).await
    }
}

impl Session {
    async fn through(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<(), TargetError>> + Send,
    ) -> Result<(), TargetError> {
        let gate = self.inner.row_gate.lock().clone();
        match gate {
            Some(gate) => gate.pass_rows(name, Box::pin(call)).await,
            None => call.await,
        }
    }
}

/// Where rows of a place are written to, and when.
struct Spot {
    shard: Shard,
    channel: PChannel,
    partition: PartitionId,
    ts: Tso,
}

impl State {
    fn spot(&mut self, at: &Place) -> Result<Spot, Refusal> {
        let clock = self.clock;
        let Some(content) = self.find(&at.database, &at.collection) else {
            return Err((100, format!("collection not found[{}]", at.collection)));
        };
        let keyed = content.source.has_partition_key();
        let partition = match at.partition.as_str() {
            "" => PartitionId(-1),
            _ if keyed => {
                let why = "not support manually specifying the partition names if partition key mode is used";
                return Err((65535, why.to_owned()));
            }
            name => match content.partitions.get(name) {
                Some(partition) => partition.id,
                None => return Err((200, format!("partition not found[{name}]"))),
            },
        };
        let vchannel = content.vchannels[0].clone();
        let channel = vchannel.pchannel();
        let (database, name) = (at.database.clone(), at.collection.clone());
        let collection = self.databases[&database][&name];
        let ts = clock.max(Tso(self.last_tick(&channel).0 + 1));
        let shard = Shard {
            collection,
            vchannel,
            database,
            name,
        };
        Ok(Spot {
            shard,
            channel,
            partition,
            ts,
        })
    }

    /// One message and the tick that shows it.
    fn at_once(&mut self, spot: &Spot, message: Bytes) -> Result<(), Refusal> {
        let tick = encode::tick(spot.ts, self.id());
        self.replicate(&spot.channel, &[message, tick], spot.ts, 2)
    }

    fn insert_rows(&mut self, at: &Place, columns: &[Bytes], rows: u64) -> Result<(), Refusal> {
        let mut spot = self.spot(at)?;
        if spot.partition.0 < 0 {
            // The default one, or, with a partition key, any.
            let content = self.find(&at.database, &at.collection);
            let first = content.and_then(|c| c.partitions.values().next().map(|p| p.id));
            spot.partition = first.unwrap_or(PartitionId(-1));
        }
        let columns: Result<Vec<FieldData>, _> = columns
            .iter()
            .map(|c| FieldData::decode(c.clone()))
            .collect();
        let columns = columns.map_err(|e| (1100, e.to_string()))?;
        let id = self.id();
        let row_ids = (0..rows as i64).collect();
        let (to, partition, ts) = (&spot.shard, spot.partition, spot.ts);
        let insert = encode::insert_of(columns, row_ids, to, partition, &at.partition, ts, id);
        self.at_once(&spot, insert)
    }

    fn delete_rows(&mut self, at: &Place, expr: &str) -> Result<(), Refusal> {
        let spot = self.spot(at)?;
        let keys = keys_of(expr).ok_or_else(|| (1100, format!("cannot parse {expr}")))?;
        let count = match &keys.id_field {
            Some(IdField::StrId(keys)) => keys.data.len(),
            Some(IdField::IntId(keys)) => keys.data.len(),
            _ => 0,
        };
        let times = vec![spot.ts.0; count];
        let id = self.id();
        let (to, partition) = (&spot.shard, spot.partition);
        let delete = encode::delete_of(
            keys,
            &times,
            to,
            partition,
            &at.partition,
            &TsMap::Natural,
            id,
        );
        self.at_once(&spot, delete)
    }
}

/// Of `field in [...]`.
fn keys_of(expr: &str) -> Option<IDs> {
    let (_, list) = expr.split_once(" in ")?;
    let id_field = match serde_json::from_str::<Vec<i64>>(list) {
        Ok(data) => IdField::IntId(LongArray { data }),
        Err(_) => IdField::StrId(StringArray {
            data: serde_json::from_str(list).ok()?,
        }),
    };
    Some(IDs {
        id_field: Some(id_field),
    })
}
