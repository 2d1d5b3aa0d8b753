//! The operations, each a few calls at most, and what each means for the workload's account.

use anyhow::Result;
use rand::Rng;
use rand::seq::SliceRandom;

use super::{Collection, DATABASES, LOAD_DEADLINE, Load, Op, Partition, Shape, Workload};
use crate::client::{Key, key_expr, keys};

const DEFAULT_PARTITION: &str = "_default";
const VECTOR_INDEX: &str = "by_vec";

impl Workload<'_> {
    /// One operation; where none of its kind is possible, nothing.
    pub(super) async fn step(&mut self, op: Op) -> Result<()> {
        match op {
            Op::Insert => self.insert().await,
            Op::Upsert => self.upsert().await,
            Op::Delete => self.delete().await,
            Op::CreatePartition => self.create_partition().await,
            Op::DropPartition => self.drop_partition().await,
            Op::CreateIndex => self.create_index().await,
            Op::DropIndex => self.drop_index().await,
            Op::Load => match self.any(|c| c.vector_indexed && c.load != Load::All) {
                Some(at) => self.load(at).await,
                None => Ok(()),
            },
            Op::Release => match self.any(|c| c.load != Load::Not) {
                Some(at) => self.release(at).await,
                None => Ok(()),
            },
            Op::LoadPartitions => self.load_partitions().await,
            Op::ReleasePartitions => self.release_partitions().await,
            Op::Flush => self.flush().await,
            Op::Recreate => self.recreate().await,
            Op::CreateDatabase => self.create_database().await,
            Op::DropDatabase => self.drop_database().await,
        }
    }

    /// Creates a collection of the next shape, under a new name or the one given; its index in the account.
    pub(super) async fn create_collection(
        &mut self,
        db: &str,
        name: Option<&str>,
    ) -> Result<usize> {
        let n = self.counter;
        self.counter += 1;
        let name = name.map_or_else(|| format!("{}c{n}", self.plan.prefix), str::to_owned);
        let mut shape = Shape::numbered(n, &name, &mut self.random);
        if self.plan.lite {
            shape.without_binary_vectors();
        }
        self.client
            .create_collection(db, &shape.schema, &shape.options())
            .await?;
        self.tell(format!(
            "create collection {db}.{name} ({} shards, {} fields)",
            shape.shards,
            shape.schema.fields.len()
        ));
        self.collections.push(Collection {
            db: db.to_owned(),
            shape,
            partitions: vec![Partition {
                name: DEFAULT_PARTITION.to_owned(),
                keys: Vec::new(),
            }],
            vector_indexed: false,
            scalar_indexes: Vec::new(),
            load: Load::Not,
            next: 1,
        });
        Ok(self.collections.len() - 1)
    }

    /// Where rows go: a collection, one of its partitions and what a request calls it.
    fn place(&mut self, fits: impl Fn(&Collection) -> bool) -> Option<(usize, usize, String)> {
        let at = self.any(fits)?;
        let c = &self.collections[at];
        if c.keyed_partitions() {
            return Some((at, 0, String::new()));
        }
        let p = self.random.random_range(0..c.partitions.len());
        Some((at, p, self.collections[at].partitions[p].name.clone()))
    }

    async fn insert(&mut self) -> Result<()> {
        let Some((at, p, partition)) = self.place(|_| true) else {
            return Ok(());
        };
        // Once the rows of the plan are there, the other operations are what is missing.
        let most = if self.done.rows_inserted < self.plan.rows {
            self.plan.batch.max(1)
        } else {
            5
        };
        let count = self.random.random_range(1..=most);
        let random = &mut self.random;
        let c = &mut self.collections[at];
        let made: Vec<Option<Key>> = (0..count)
            .map(|_| {
                c.next += 1;
                (!c.shape.auto_id()).then(|| c.shape.key(c.next, random))
            })
            .collect();
        let rows: Vec<_> = made
            .iter()
            .map(|key| c.shape.row(key.clone(), random))
            .collect();
        let answer = self
            .client
            .insert(&c.db, &c.shape.schema, &partition, &rows)
            .await?;
        let new = if c.shape.auto_id() {
            keys(answer.i_ds)
        } else {
            made.into_iter().flatten().collect()
        };
        c.partitions[p].keys.extend(new);
        self.done.rows_inserted += rows.len() as u64;
        let what = format!(
            "insert {count} rows into {}.{}",
            self.collections[at].db,
            self.collections[at].name()
        );
        self.tell(what);
        Ok(())
    }

    async fn upsert(&mut self) -> Result<()> {
        let Some((at, p, partition)) = self.place(|c| !c.shape.auto_id()) else {
            return Ok(());
        };
        let random = &mut self.random;
        let c = &mut self.collections[at];
        // Of a partition key collection the old row is found only by a key that keeps its partition: the server
        // hashes the new value, and the old row of another partition would stay. New keys there.
        let old = if c.keyed_partitions() {
            Vec::new()
        } else {
            pick(&c.partitions[p].keys, 60, random)
        };
        let mut new: Vec<Key> = Vec::new();
        for _ in 0..random.random_range(1..20) {
            c.next += 1;
            new.push(c.shape.key(c.next, random));
        }
        let rows: Vec<_> = old
            .iter()
            .chain(&new)
            .map(|key| c.shape.row(Some(key.clone()), random))
            .collect();
        self.client
            .upsert(&c.db, &c.shape.schema, &partition, &rows)
            .await?;
        c.partitions[p].keys.extend(new);
        self.done.rows_upserted += rows.len() as u64;
        let what = format!(
            "upsert {} rows into {}.{}",
            rows.len(),
            self.collections[at].db,
            self.collections[at].name()
        );
        self.tell(what);
        Ok(())
    }

    async fn delete(&mut self) -> Result<()> {
        let Some((at, p, partition)) =
            self.place(|c| c.partitions.iter().any(|p| !p.keys.is_empty()))
        else {
            return Ok(());
        };
        let random = &mut self.random;
        let c = &mut self.collections[at];
        let mut gone = pick(&c.partitions[p].keys, 80, random);
        if gone.is_empty() {
            return Ok(());
        }
        c.partitions[p].keys.retain(|k| !gone.contains(k));
        // A key that is not there must not matter.
        c.next += 1;
        gone.push(c.shape.key(c.next, random));
        // With and without the partition's name are two different messages.
        let partition = if random.random() {
            partition
        } else {
            String::new()
        };
        self.client
            .delete(&c.db, c.name(), &partition, &key_expr("pk", &gone))
            .await?;
        self.done.rows_deleted += gone.len() as u64;
        let what = format!(
            "delete {} keys from {}.{}",
            gone.len(),
            self.collections[at].db,
            self.collections[at].name()
        );
        self.tell(what);
        Ok(())
    }

    async fn create_partition(&mut self) -> Result<()> {
        let Some(at) = self.any(|c| !c.keyed_partitions() && c.partitions.len() < 5) else {
            return Ok(());
        };
        let c = &mut self.collections[at];
        // Few names: the same one comes again after a drop.
        let Some(name) = (0..5)
            .map(|n| format!("p{n}"))
            .find(|n| c.partitions.iter().all(|p| p.name != *n))
        else {
            return Ok(());
        };
        self.client.create_partition(&c.db, c.name(), &name).await?;
        let what = format!("create partition {}.{}/{name}", c.db, c.name());
        c.partitions.push(Partition {
            name,
            keys: Vec::new(),
        });
        self.tell(what);
        Ok(())
    }

    async fn drop_partition(&mut self) -> Result<()> {
        let Some(at) = self.any(|c| c.partitions.len() > 1) else {
            return Ok(());
        };
        if self.collections[at].load != Load::Not {
            self.release(at).await?;
        }
        let p = self
            .random
            .random_range(1..self.collections[at].partitions.len());
        let c = &mut self.collections[at];
        let gone = c.partitions.swap_remove(p);
        self.client
            .drop_partition(&c.db, c.name(), &gone.name)
            .await?;
        let what = format!(
            "drop partition {}.{}/{} with {} rows",
            c.db,
            c.name(),
            gone.name,
            gone.keys.len()
        );
        self.tell(what);
        if self.random.random() && self.collections[at].vector_indexed {
            self.load(at).await?;
        }
        Ok(())
    }

    pub(super) async fn index_vector(&mut self, at: usize) -> Result<()> {
        let c = &mut self.collections[at];
        let params = c.shape.vector_index(&mut self.random);
        self.client
            .create_index(&c.db, c.name(), "vec", VECTOR_INDEX, &params)
            .await?;
        c.vector_indexed = true;
        let what = format!("create index {} on {}.{}", params[0].1, c.db, c.name());
        self.tell(what);
        Ok(())
    }

    async fn create_index(&mut self) -> Result<()> {
        if let Some(at) = self.any(|c| !c.vector_indexed) {
            return self.index_vector(at).await;
        }
        let Some(at) = self.any(|c| c.shape.indexable().len() > c.scalar_indexes.len()) else {
            return Ok(());
        };
        let c = &mut self.collections[at];
        let Some(field) = c
            .shape
            .indexable()
            .into_iter()
            .find(|f| !c.scalar_indexes.iter().any(|i| i == f))
        else {
            return Ok(());
        };
        let field = field.to_owned();
        self.client
            .create_index(&c.db, c.name(), &field, &format!("by_{field}"), &[])
            .await?;
        let what = format!("create index on {}.{} {field}", c.db, c.name());
        c.scalar_indexes.push(field);
        self.tell(what);
        Ok(())
    }

    async fn drop_index(&mut self) -> Result<()> {
        let Some(at) = self.any(|c| c.vector_indexed) else {
            return Ok(());
        };
        if self.collections[at].load != Load::Not {
            self.release(at).await?;
        }
        let c = &mut self.collections[at];
        let (field, index) = match c.scalar_indexes.pop() {
            Some(field) => (field.clone(), format!("by_{field}")),
            None => {
                c.vector_indexed = false;
                ("vec".to_owned(), VECTOR_INDEX.to_owned())
            }
        };
        self.client
            .drop_index(&c.db, c.name(), &field, &index)
            .await?;
        let what = format!("drop index on {}.{} {field}", c.db, c.name());
        self.tell(what);
        Ok(())
    }

    pub(super) async fn load(&mut self, at: usize) -> Result<()> {
        let c = &mut self.collections[at];
        self.client.load_rest(&c.db, c.name()).await?;
        self.client
            .wait_loaded(&c.db, c.name(), &[], LOAD_DEADLINE)
            .await?;
        c.load = Load::All;
        let what = format!("load collection {}.{}", c.db, c.name());
        self.tell(what);
        Ok(())
    }

    async fn release(&mut self, at: usize) -> Result<()> {
        let c = &mut self.collections[at];
        self.client.release(&c.db, c.name()).await?;
        c.load = Load::Not;
        let what = format!("release collection {}.{}", c.db, c.name());
        self.tell(what);
        Ok(())
    }

    async fn load_partitions(&mut self) -> Result<()> {
        let Some(at) =
            self.any(|c| c.vector_indexed && c.load == Load::Not && c.partitions.len() > 1)
        else {
            return Ok(());
        };
        let c = &mut self.collections[at];
        let mut names: Vec<String> = c.partitions.iter().map(|p| p.name.clone()).collect();
        names.shuffle(&mut self.random);
        names.truncate(self.random.random_range(1..names.len()));
        self.client.load_partitions(&c.db, c.name(), &names).await?;
        self.client
            .wait_loaded(&c.db, c.name(), &names, LOAD_DEADLINE)
            .await?;
        let what = format!("load partitions {names:?} of {}.{}", c.db, c.name());
        c.load = Load::Some(names);
        self.tell(what);
        Ok(())
    }

    /// Of a collection loaded whole, or in part: the others stay loaded.
    async fn release_partitions(&mut self) -> Result<()> {
        let fits = |c: &Collection| match &c.load {
            Load::All => c.partitions.len() > 1 && !c.keyed_partitions(),
            Load::Some(loaded) => loaded.len() > 1,
            Load::Not => false,
        };
        let Some(at) = self.any(fits) else {
            return Ok(());
        };
        let c = &mut self.collections[at];
        let mut loaded = match &c.load {
            Load::Some(loaded) => loaded.clone(),
            _ => c.partitions.iter().map(|p| p.name.clone()).collect(),
        };
        let gone = [loaded.swap_remove(self.random.random_range(0..loaded.len()))];
        self.client
            .release_partitions(&c.db, c.name(), &gone)
            .await?;
        c.load = Load::Some(loaded);
        let what = format!("release partitions {gone:?} of {}.{}", c.db, c.name());
        self.tell(what);
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        let Some(at) = self.any(|_| true) else {
            return Ok(());
        };
        let c = &self.collections[at];
        self.client.flush(&c.db, &[c.name().to_owned()]).await?;
        let what = format!("flush {}.{}", c.db, c.name());
        self.tell(what);
        Ok(())
    }

    /// Drops a collection and creates one of another shape under its name, with nothing in between.
    async fn recreate(&mut self) -> Result<()> {
        let Some(at) = self.any(|_| true) else {
            return Ok(());
        };
        let old = self.collections.swap_remove(at);
        self.client.drop_collection(&old.db, old.name()).await?;
        self.tell(format!("drop collection {}.{}", old.db, old.name()));
        let at = self.create_collection(&old.db, Some(old.name())).await?;
        if self.random.random() {
            self.index_vector(at).await?;
            self.load(at).await?;
        }
        Ok(())
    }

    async fn create_database(&mut self) -> Result<()> {
        // Few names: the same one comes again after a drop.
        let Some(name) = (0..2)
            .map(|n| format!("{}guest{n}", self.plan.prefix))
            .find(|n| !self.databases.contains(n))
        else {
            return Ok(());
        };
        self.client.create_database(&name).await?;
        self.databases.push(name.clone());
        self.tell(format!("create database {name}"));
        let at = self.create_collection(&name, None).await?;
        self.index_vector(at).await
    }

    async fn drop_database(&mut self) -> Result<()> {
        // The first ones stay.
        if self.databases.len() <= DATABASES.len() {
            return Ok(());
        }
        let db = self.databases.remove(DATABASES.len());
        while let Some(at) = self.collections.iter().position(|c| c.db == db) {
            let old = self.collections.swap_remove(at);
            self.client.drop_collection(&db, old.name()).await?;
            self.tell(format!("drop collection {db}.{}", old.name()));
        }
        self.client.drop_database(&db).await?;
        self.tell(format!("drop database {db}"));
        Ok(())
    }
}

/// Up to `most` of the keys, none twice.
fn pick(keys: &[Key], most: usize, random: &mut rand::rngs::StdRng) -> Vec<Key> {
    let count = keys.len().min(random.random_range(1..=most));
    rand::seq::index::sample(random, keys.len(), count)
        .into_iter()
        .map(|n| keys[n].clone())
        .collect()
}
