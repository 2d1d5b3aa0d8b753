//! The guards, and how each is broken.

pub(super) struct Guard {
    /// What no longer holds.
    pub(super) name: &'static str,
    pub(super) file: &'static str,
    /// Stands in the file exactly once.
    whole: &'static str,
    broken: &'static str,
}

impl Guard {
    pub(super) fn broken(&self, text: &str) -> Result<String, String> {
        match text.matches(self.whole).count() {
            1 => Ok(text.replacen(self.whole, self.broken, 1)),
            n => Err(format!(
                "{} has {n} times, not once, what guards '{}':\n{}",
                self.file, self.name, self.whole
            )),
        }
    }
}

const fn guard(
    name: &'static str,
    file: &'static str,
    whole: &'static str,
    broken: &'static str,
) -> Guard {
    Guard {
        name,
        file,
        whole,
        broken,
    }
}

const LANE: &str = "crates/core/src/lane/mod.rs";
const STATE: &str = "crates/core/src/lane/state.rs";
const HUB: &str = "crates/core/src/target/hub.rs";
const READER: &str = "crates/core/src/pipeline/reader.rs";
const CARRY: &str = "crates/core/src/pipeline/carry.rs";
const STRETCH: &str = "crates/core/src/pipeline/stretch.rs";
const BOOKS: &str = "crates/core/src/pipeline/books.rs";
const DROPS: &str = "crates/core/src/pipeline/drops.rs";
const OBJECTS: &str = "crates/core/src/pipeline/objects.rs";
const PARTITIONS: &str = "crates/core/src/pipeline/partitions.rs";

pub(super) const GUARDS: &[Guard] = &[
    guard(
        "W is on disk before a send",
        READER,
        "if highest <= self.books.lock().sent {",
        "if highest <= self.books.lock().sent || true {",
    ),
    guard(
        "what is in doubt is known to be",
        CARRY,
        "let in_doubt = ts <= self.in_doubt;",
        "let in_doubt = false;",
    ),
    guard(
        "what is in doubt is raised",
        STRETCH,
        "            && tick >= in_doubt\n",
        "            && tick >= in_doubt.min(tick)\n",
    ),
    guard(
        "window form: a delete beside an insert in doubt",
        STRETCH,
        "push(delete.into(), ts, 0, false, None, None);",
        "drop(delete);",
    ),
    guard(
        "a new reader begins above everything ever sent",
        STATE,
        "raised: self.max_sent.max(floor),",
        "raised: self.last_tick,",
    ),
    guard(
        "F is on disk before a send",
        LANE,
        "        self.reserve(call.max_ts()).await;\n",
        "",
    ),
    guard(
        "a lane begins at F",
        HUB,
        "let floor = self.floor(channel);",
        "let floor = Tso::ZERO;",
    ),
    guard(
        "message ids of two runs differ",
        HUB,
        "AtomicI64::new(FIRST_MESSAGE_ID + now.0 as i64)",
        "AtomicI64::new(FIRST_MESSAGE_ID)",
    ),
    guard(
        "raising is strictly monotone",
        "crates/core/src/route/tsmap.rs",
        "(*source).max(previous.saturating_add(1))",
        "(*source).max(previous)",
    ),
    guard(
        "a tick is the smallest of those who hold",
        STATE,
        "            .map(|e| e.tick)\n            .min();",
        "            .map(|e| e.tick)\n            .max();",
    ),
    guard(
        "no tick passes a raised stretch that is not whole",
        STATE,
        "open.map_or(tick, |open| open.min(tick))",
        "open.map_or(tick, |_| tick)",
    ),
    guard(
        "a reader's tick counts behind what it pushed",
        STATE,
        "            .push_back(Item::Mark(Mark::Passed(id, tick, stretches)));",
        "            .push_front(Item::Mark(Mark::Passed(id, tick, stretches)));",
    ),
    guard(
        "a reader lets go behind what it pushed",
        STATE,
        "            self.queue.push_back(Item::Mark(release));",
        "            self.apply(release);",
    ),
    guard(
        "no tick while a call of unknown outcome may arrive",
        LANE,
        "let may_tick = Instant::now() >= quiet_until;",
        "let may_tick = true;",
    ),
    guard(
        "no tick while calls of a process before may arrive",
        HUB,
        "own.max(self.earlier_calls_end())",
        "own",
    ),
    guard(
        "a tick leads its call",
        LANE,
        "        entries.extend(messages.iter().map(|m| m.bytes.clone()));",
        "        entries.extend(messages.iter().map(|m| m.bytes.clone()));\n        if tick.is_some() { entries.rotate_left(1); }",
    ),
    guard(
        "inserts wait for the target's clock",
        LANE,
        "        self.until_near(messages).await?;\n",
        "",
    ),
    guard(
        "C passes a stretch when all of it is acknowledged",
        BOOKS,
        "if !stretch.open.is_done() {",
        "if false {",
    ),
    guard(
        "reading goes on at the first message above the tick",
        BOOKS,
        "Some(first) => (first, false),",
        "Some(_) => (position, true),",
    ),
    guard(
        "what another reader has carried is left out",
        CARRY,
        "attached.dropped || attached.after.is_some_and(|after| position <= after)",
        "attached.dropped",
    ),
    guard(
        "what is applied is left out",
        CARRY,
        "if before || ts <= self.applied ||",
        "if before ||",
    ),
    guard(
        "what a producer wrote twice is taken once",
        "crates/core/src/pipeline/repeats.rs",
        "return *first < position;",
        "return false;",
    ),
    guard(
        "a collection is dropped by its id",
        DROPS,
        "if let Some(found) = found.filter(|found| Some(found.id) == object.target) {",
        "if let Some(found) = found {",
    ),
    guard(
        "a partition is dropped by its id",
        PARTITIONS,
        "if found.iter().any(|(_, found)| Some(*found) == object.target) {",
        "if found.iter().any(|(name, _)| *name == object.name) {",
    ),
    guard(
        "a partition that is gone leaves a tombstone",
        PARTITIONS,
        "        self.put_partition(PartitionObject {\n            source: id,",
        "        if id.0 > 0 { return Ok(None); }\n        self.put_partition(PartitionObject {\n            source: id,",
    ),
    guard(
        "a collection that is dropped is not made again",
        OBJECTS,
        "            if object.phase == ObjectPhase::Dropped {\n                return Err(Obstacle::Gone);\n            }\n",
        "",
    ),
    guard(
        "a name that an older one has is not taken",
        OBJECTS,
        "        if let Some(holder) = taken {\n            return Err(Obstacle::NameTaken(holder));\n        }\n",
        "        let _ = taken;\n",
    ),
    guard(
        "the intent is on disk before a partition is made",
        PARTITIONS,
        "            self.put_partition(intent).await;\n",
        "            let _ = intent;\n",
    ),
    guard(
        "other nodes are a restart of the target",
        "crates/core/src/pipeline/durable.rs",
        "(nodes.is_none() || durable.nodes != *nodes)",
        "nodes.is_none()",
    ),
    guard(
        "what follows a refused message waits behind it",
        LANE,
        "if behind || message.stream.failed() ||",
        "let _ = behind;\n            if message.stream.failed() ||",
    ),
];
