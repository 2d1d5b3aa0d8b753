//! Every shape of a collection.

use anyhow::Result;
use cdc_lab::client::{Key, key_expr, keys};
use cdc_lab::workload::Shape;
use rand::rngs::StdRng;

use crate::harness::tests;
use crate::lab::{DB, Lab};

tests![Test: schema_matrix];

/// The first six have every type, both keys, auto id, partition key and 1 to 4 shards; those after them are mixed.
const SHAPES: usize = 9;

async fn schema_matrix(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    for n in 0..SHAPES {
        let name = format!("shape{n}");
        let shape = Shape::numbered(n, &name, random);
        from.create_collection(DB, &shape.schema, &shape.options())
            .await?;
        let mut made: Vec<Key> = Vec::new();
        for batch in 0..3u64 {
            let new: Vec<Option<Key>> = (0..40)
                .map(|k| (!shape.auto_id()).then(|| shape.key(1 + batch * 40 + k, random)))
                .collect();
            let rows: Vec<_> = new.iter().map(|k| shape.row(k.clone(), random)).collect();
            let answer = from.insert(DB, &shape.schema, "", &rows).await?;
            if shape.auto_id() {
                made.extend(keys(answer.i_ds));
            } else {
                made.extend(new.into_iter().flatten());
            }
        }
        from.create_index(DB, &name, "vec", "by_vec", &shape.vector_index(random))
            .await?;
        for field in shape.indexable() {
            from.create_index(DB, &name, field, &format!("by_{field}"), &[])
                .await?;
        }
        from.load(DB, &name).await?;
        from.delete(DB, &name, "", &key_expr("pk", &made[..10]))
            .await?;
        // With a partition key the old row of another partition would stay.
        if !shape.auto_id() && shape.key_partitions == 0 {
            let rows: Vec<_> = made[5..30]
                .iter()
                .map(|k| shape.row(Some(k.clone()), random))
                .collect();
            from.upsert(DB, &shape.schema, "", &rows).await?;
        }
    }
    lab.equal().await.map(drop)
}
