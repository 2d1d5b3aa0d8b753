//! What one message costs on its way: decoded, and made anew for the target. And what a source of 1,000 collections costs
//! to be put together.
#![allow(missing_docs, reason = "criterion's macro")]

use std::hint::black_box;
use std::sync::Arc;

use cdc_bench::source::shape::{Pool, Shape};
use cdc_bench::source::{Collection, messages, metadata, tso};
use cdc_core::catalog::View;
use cdc_core::catalog::assemble::Assembler;
use cdc_core::decode::{Event, Rows, decode, keys};
use cdc_core::ids::{CollectionId, FieldId, PartitionId, VChannel};
use cdc_core::route::encode::{self, Shard};
use cdc_core::route::tsmap::TsMap;
use cdc_core::tso::Tso;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const TS: u64 = tso(1_700_000_000_000_000);

fn insert(rows: usize) -> bytes::Bytes {
    let shape = Shape { dim: 768, text: 0 };
    let keys: Vec<i64> = (0..rows as i64).collect();
    let columns = Pool::new(1).columns(shape, &keys);
    messages::insert(&Collection::new(0, 1, TS), &keys, columns, TS, TS, 1)
}

fn decoded(rows: usize) -> Option<Rows> {
    match decode(&insert(rows)) {
        Ok(Event::Rows(rows)) => Some(rows),
        _ => None,
    }
}

fn shard() -> Shard {
    Shard {
        collection: CollectionId(77),
        vchannel: VChannel::new("null-rootcoord-dml_0_77v0"),
        database: "default".into(),
        name: "c0".into(),
    }
}

fn messages_of(c: &mut Criterion) {
    for rows in [1, 10, 1000] {
        let payload = insert(rows);
        let mut group = c.benchmark_group(format!("insert of {rows} rows"));
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function("decode", |b| b.iter(|| decode(black_box(&payload))));
        let Some(read) = decoded(rows) else { continue };
        let to = shard();
        for (name, map) in [
            ("rewrite", TsMap::Natural),
            ("rewrite, raised", TsMap::raise([TS], Tso(TS + 5))),
        ] {
            let one = || encode::rows(black_box(&read), &to, PartitionId(78), "_default", &map, 9);
            group.bench_function(name, |b| b.iter(one));
        }
        // As in a window that is in doubt: with a delete of its keys.
        let delete = || {
            let keys = keys::primary_keys(&read.body, FieldId(100))?;
            let (to, ts, map) = (&to, &read.timestamps, TsMap::Natural);
            Some(encode::delete_of(
                keys,
                ts,
                to,
                PartitionId(78),
                "_default",
                &map,
                9,
            ))
        };
        group.bench_function("its delete", |b| b.iter(delete));
        group.finish();
    }
}

fn times(c: &mut Criterion) {
    let mut group = c.benchmark_group("raise a stretch");
    for n in [10, 1000] {
        let times: Vec<u64> = (0..n).map(|i| TS + i * 7).collect();
        group.throughput(Throughput::Elements(n));
        group.bench_with_input(BenchmarkId::from_parameter(n), &times, |b, times| {
            b.iter_batched(
                || times.clone(),
                |times| TsMap::raise(times, Tso(TS + 50)),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn catalog(c: &mut Criterion) {
    let shape = Shape { dim: 768, text: 0 };
    let entries: Vec<(String, Vec<u8>)> = (0..1000)
        .flat_map(|i| metadata::of_collection(&Collection::new(i, 16, TS), vec![0; 8], shape))
        .map(|(key, value)| (key.to_string(), value))
        .collect();
    c.bench_function("metadata of 1,000 collections", |b| {
        b.iter(|| {
            let mut assembler = Assembler::after(Arc::new(View::default()));
            for (key, value) in &entries {
                assembler.apply(key, Some(value), 1);
            }
            assembler.commit(1)
        });
    });
}

criterion_group!(heart, messages_of, times, catalog);
criterion_main!(heart);
