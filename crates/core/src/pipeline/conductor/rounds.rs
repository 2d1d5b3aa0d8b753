//! Rounds that move the durable checkpoint: what is looked at, and what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::Conductor;
use crate::pipeline::reader::{Inner, Reader};
use crate::pipeline::settle::{self, Carried, Round, Settled, Stood};

/// A reader that waits for a tick of the target holds its gate for as long, and the tick may wait for the conductor. All
/// of them are waited for so long together.
const LOOKED_WITHIN: Duration = Duration::from_millis(500);

/// `None`: it is left out of this round, and its durable place stays where it is.
async fn look_into(reader: &Reader, deadline: Instant) -> Option<MutexGuard<'_, Inner>> {
    let gate = tokio::time::timeout_at(deadline, reader.gate.lock());
    gate.await.ok()
}

impl Conductor<'_> {
    pub(super) async fn start_round(&mut self) {
        let age = self.begun.elapsed();
        let mut readers = Vec::new();
        let mut collections = BTreeMap::new();
        let all: Vec<Arc<Reader>> = self
            .mains
            .values()
            .chain(self.catching.values())
            .cloned()
            .collect();
        let deadline = Instant::now() + LOOKED_WITHIN;
        for reader in all {
            let Some(inner) = look_into(&reader, deadline).await else {
                continue;
            };
            let routes = reader.carried(&inner);
            // First how far it is, then what is acknowledged: the second has to cover the first.
            let at = reader.books.lock().progress().into();
            for route in &routes {
                let flushed = self.flushed.get(&route.source);
                let rows = flushed.filter(|(of, _)| of.ptr_eq(&Arc::downgrade(&route.stream)));
                let rows = rows.map(|(_, rows)| *rows);
                // The last look counts: a collection may be read on several channels.
                collections.insert(route.source, Carried::new(route, rows, age));
            }
            let carried = routes.iter().map(|r| r.source).collect();
            drop(inner);
            readers.push(Stood {
                reader,
                at,
                carried,
            });
        }
        let round = Round {
            readers,
            collections: collections.into_values().collect(),
        };
        self.rounds.spawn(settle::settle(self.ctx.clone(), round));
    }

    pub(super) async fn settled(&mut self, settled: Settled) {
        for (carried, flushed) in settled.round.collections.iter().zip(&settled.flushed) {
            if *flushed {
                let stream = Arc::downgrade(&carried.route.stream);
                let of = carried.route.source;
                self.flushed.insert(of, (stream, carried.rows));
            }
        }
        self.flushed.retain(|_, (of, _)| of.strong_count() > 0);
        let mut now = Vec::new();
        let deadline = Instant::now() + LOOKED_WITHIN;
        for reader in self.mains.values().chain(self.catching.values()) {
            let Some(inner) = look_into(reader, deadline).await else {
                continue;
            };
            now.push((
                reader.clone(),
                reader
                    .collections(&inner)
                    .into_iter()
                    .collect::<BTreeSet<_>>(),
            ));
        }
        let _guard = self.ctx.progress.lock().await;
        settle::put(&mut self.ctx.durable.lock(), &settled, |reader| {
            let mut found = now.iter();
            let found = found.find(|(r, _)| std::ptr::eq(Arc::as_ptr(r), reader));
            found.map(|(_, carried)| carried.clone())
        });
        self.board.lock().durable(settled.problems);
        self.ctx.commit(Vec::new()).await;
    }
}
