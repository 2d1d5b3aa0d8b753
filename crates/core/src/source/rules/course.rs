//! What is done to a source while it is watched.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::acts::{Act, Name, Origin, Write};
use super::record::Recorder;
use super::trace::Trace;
use super::{Outcome, Rule};

const DB: &str = "default";
const OTHER: &str = "other";

/// How many data channels a source has to have: so few that collections share them, enough for each shard of one.
pub const CHANNELS: usize = 8;
/// So many rows are several messages, where a message takes no more than 16 KiB.
const MANY: i64 = 600;

fn name(name: &str) -> Name {
    Name::new(DB, name)
}

fn write(of: &Name, partition: Option<&str>, write: Write, keys: Vec<i64>) -> Act {
    Act::Write {
        of: of.clone(),
        partition: partition.map(str::to_owned),
        write,
        keys,
    }
}

fn create(name: &Name, shards: usize) -> Act {
    Act::Create {
        name: name.clone(),
        shards,
    }
}

fn rename(of: &Name, to: &Name) -> Act {
    Act::Rename {
        of: of.clone(),
        to: to.clone(),
    }
}

fn alias(of: &Name, alias: &str) -> Act {
    Act::Alias {
        of: of.clone(),
        alias: alias.to_owned(),
    }
}

/// All that rules speak of, and then `rounds` of anything. The source is new, without collections.
///
/// # Errors
/// It cannot be done, or be watched.
pub async fn course(origin: &dyn Origin, seed: u64, rounds: usize) -> Outcome<Trace> {
    let mut course = Course {
        all: Recorder::start(origin),
        random: StdRng::seed_from_u64(seed),
        next: 1_000_000,
    };
    course.rows().await?;
    course.partitions().await?;
    course.used().await?;
    course.names().await?;
    course.drops().await?;
    course.anything(rounds).await?;
    course.all.finish().await
}

struct Course<'a> {
    all: Recorder<'a>,
    random: StdRng,
    /// The next key that was not there yet.
    next: i64,
}

impl Course<'_> {
    fn new_keys(&mut self, n: i64) -> Vec<i64> {
        self.next += n;
        (self.next - n..self.next).collect()
    }

    async fn rows(&mut self) -> Outcome {
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let creations = vec![create(&a, 2), create(&c, 3)];
        self.all.surely(create(&b, 1)).await?;
        self.all.together(creations).await?;
        let many: Vec<i64> = (0..MANY).collect();
        let write_all = |write_as, keys: &[i64]| write(&a, None, write_as, keys.to_vec());
        self.all.surely(write_all(Write::Insert, &many)).await?;
        self.all.surely(write_all(Write::Upsert, &many)).await?;
        self.all
            .surely(write_all(Write::Upsert, &[3, 700, 5]))
            .await?;
        self.all
            .surely(write_all(Write::Delete, &[4, 5, 6]))
            .await?;
        // Keys that are nowhere.
        self.all
            .surely(write_all(Write::Delete, &[-1, -2, -3]))
            .await?;
        for _ in 0..6 {
            let acts = self.requests(&[&a, &b, &c], 12);
            self.all.together(acts).await?;
        }
        Ok(())
    }

    /// Requests to any of them, of keys that are there and of others.
    fn requests(&mut self, of: &[&Name], n: usize) -> Vec<Act> {
        let one = |course: &mut Self| {
            let random = &mut course.random;
            let kind = *[Write::Insert, Write::Upsert, Write::Delete]
                .choose(random)
                .unwrap_or(&Write::Insert);
            let n = random.random_range(1..40);
            let keys = match kind {
                Write::Insert => course.new_keys(n),
                _ => {
                    let mut keys: Vec<i64> = (0..MANY).collect();
                    keys.shuffle(&mut course.random);
                    keys.truncate(n as usize);
                    keys
                }
            };
            let at = course.random.random_range(0..of.len());
            write(of[at], None, kind, keys)
        };
        (0..n).map(|_| one(self)).collect()
    }

    async fn partitions(&mut self) -> Outcome {
        let a = name("a");
        let made = Act::CreatePartition {
            of: a.clone(),
            partition: "p".to_owned(),
        };
        let dropped = Act::DropPartition {
            of: a.clone(),
            partition: "p".to_owned(),
        };
        for _ in 0..3 {
            self.all.surely(made.clone()).await?;
            let keys = self.new_keys(20);
            let into = |write_as| write(&a, Some("p"), write_as, keys.clone());
            self.all.surely(into(Write::Insert)).await?;
            self.all.surely(into(Write::Upsert)).await?;
            let keys = self.new_keys(3);
            self.all
                .surely(write(&a, Some("p"), Write::Delete, keys))
                .await?;
            let keys = self.new_keys(3);
            self.all
                .surely(write(&a, None, Write::Delete, keys))
                .await?;
            // Rows come while it is dropped.
            let mut acts = self.requests(&[&a], 4);
            for _ in 0..4 {
                let keys = self.new_keys(5);
                acts.push(write(&a, Some("p"), Write::Insert, keys));
            }
            acts.push(dropped.clone());
            acts.rotate_right(3);
            self.all.together(acts).await?;
            // If the rows kept it, so that there can be another one.
            self.all.act(dropped.clone()).await?.ok();
        }
        self.all.surely(made).await?;
        self.all.surely(dropped).await
    }

    async fn used(&mut self) -> Outcome {
        let b = name("b");
        let partition = |partition: &str| (b.clone(), partition.to_owned());
        let (of, p) = partition("q");
        let made = Act::CreatePartition { of, partition: p };
        let (of, p) = partition("q");
        let dropped = Act::DropPartition { of, partition: p };
        let all = &self.all;
        all.by(Rule::LoadNeedsIndex, false, Act::Load(b.clone()))
            .await?;
        all.surely(made).await?;
        all.surely(Act::Index(b.clone())).await?;
        all.by(Rule::LoadNeedsIndex, true, Act::Load(b.clone()))
            .await?;
        let kept = Rule::LoadedIsKept;
        all.by(kept, false, Act::DropIndex(b.clone())).await?;
        all.by(kept, false, dropped.clone()).await?;
        all.surely(Act::Release(b.clone())).await?;
        all.by(kept, true, dropped).await?;
        all.by(kept, true, Act::DropIndex(b.clone())).await
    }

    async fn names(&mut self) -> Outcome {
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let taken = Rule::TakenIsRefused;
        let there = Name::new(OTHER, "a");
        let all = &self.all;
        all.surely(Act::CreateDatabase(OTHER.to_owned())).await?;
        all.surely(alias(&a, "x")).await?;
        all.by(taken, false, create(&name("x"), 1)).await?;
        all.by(taken, false, alias(&a, "b")).await?;
        all.by(taken, false, rename(&a, &b)).await?;
        all.by(taken, false, rename(&b, &name("x"))).await?;
        all.by(Rule::AliasBinds, false, rename(&a, &there)).await?;
        // Within its database it goes, and its alias with it.
        all.by(Rule::AliasBinds, true, rename(&a, &name("y")))
            .await?;
        all.surely(rename(&name("y"), &a)).await?;
        all.surely(alias(&b, "x")).await?;
        all.surely(Act::DropAlias(name("x"))).await?;
        all.by(taken, true, rename(&a, &name("x"))).await?;
        // The name of one that moved away is free.
        all.by(taken, true, rename(&c, &a)).await?;
        all.surely(rename(&a, &c)).await?;
        all.surely(rename(&name("x"), &a)).await?;
        let used = Rule::DatabaseKeptWhileUsed;
        all.surely(rename(&a, &there)).await?;
        all.by(used, false, Act::DropDatabase(OTHER.to_owned()))
            .await?;
        let keys = self.new_keys(30);
        self.all
            .surely(write(&there, None, Write::Upsert, keys))
            .await?;
        self.all.surely(rename(&there, &a)).await
    }

    async fn drops(&mut self) -> Outcome {
        let c = name("c");
        let taken = Rule::TakenIsRefused;
        for shards in [1, 3, 2] {
            // Rows come while it is dropped, and under its name there is another one at once.
            let mut acts = self.requests(&[&c], 8);
            acts.push(Act::Drop(c.clone()));
            acts.rotate_right(4);
            self.all.together(acts).await?;
            self.all.by(taken, true, create(&c, shards)).await?;
            let acts = self.requests(&[&c], 4);
            self.all.together(acts).await?;
        }
        self.all.surely(Act::Drop(c)).await?;
        let (e, w) = (name("e"), name("w"));
        self.all.surely(create(&e, 1)).await?;
        self.all.surely(alias(&e, "w")).await?;
        self.all.surely(Act::Drop(e.clone())).await?;
        // Of an alias of it nothing is seen any more by a client.
        self.all.by(taken, true, alias(&name("b"), "w")).await?;
        self.all.surely(Act::DropAlias(w)).await?;
        let there = Name::new(OTHER, "d");
        self.all.surely(create(&there, 1)).await?;
        self.all.surely(Act::Drop(there)).await?;
        // What is dropped has its entry there still.
        let used = Rule::DatabaseKeptWhileUsed;
        self.all
            .by(used, true, Act::DropDatabase(OTHER.to_owned()))
            .await?;
        // Being loaded does not keep a collection.
        let l = name("l");
        self.all.surely(create(&l, 1)).await?;
        self.all.surely(Act::Index(l.clone())).await?;
        self.all.surely(Act::Load(l.clone())).await?;
        self.all.surely(Act::Drop(l)).await?;
        // It is to be seen which channels have ticks without a collection.
        self.all.quiet().await.map(drop)
    }

    async fn anything(&mut self, rounds: usize) -> Outcome {
        let names: Vec<Name> = ["a", "b", "r", "s"].map(name).to_vec();
        for _ in 0..rounds {
            let n = self.random.random_range(1..8);
            let acts = (0..n).map(|_| self.any(&names)).collect();
            self.all.together(acts).await?;
        }
        // Something has to stay, or there are no ticks to wait for.
        self.all.surely(create(&name("stays"), 1)).await?;
        for name in names {
            self.all.act(Act::Drop(name)).await?.ok();
        }
        Ok(())
    }

    fn any(&mut self, names: &[Name]) -> Act {
        let of = names[self.random.random_range(0..names.len())].clone();
        let partition = ["p", "q"][self.random.random_range(0..2)].to_owned();
        match self.random.random_range(0..20) {
            0 | 1 => create(&of, self.random.random_range(1..=3)),
            2 => Act::Drop(of),
            3 | 4 => Act::CreatePartition { of, partition },
            5 => Act::DropPartition { of, partition },
            6 => {
                let to = names[self.random.random_range(0..names.len())].clone();
                Act::Rename { of, to }
            }
            7..10 => {
                let keys = self.new_keys(5);
                write(&of, Some(&partition), Write::Insert, keys)
            }
            _ => {
                let mut one = self.requests(&[&of], 1);
                one.pop().unwrap_or(Act::Release(of))
            }
        }
    }
}
