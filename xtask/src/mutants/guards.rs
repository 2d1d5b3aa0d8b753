//! The guards, and how each is broken.

pub(super) struct Guard {
    /// What no longer holds.
    pub(super) name: &'static str,
    pub(super) file: &'static str,
    /// Stands in the file exactly once.
    whole: &'static str,
    /// Stands there instead: the same, unless `BROKEN` is true.
    switched: &'static str,
}

impl Guard {
    /// The text with a switch in it; `is_broken`: the expression that says whether it is on.
    pub(super) fn switch(&self, text: &str, is_broken: &str) -> Result<String, String> {
        match text.matches(self.whole).count() {
            1 => {
                let switched = self.switched.replace("BROKEN", is_broken);
                Ok(text.replacen(self.whole, &switched, 1))
            }
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
    switched: &'static str,
) -> Guard {
    Guard {
        name,
        file,
        whole,
        switched,
    }
}

const SENDER: &str = "crates/core/src/lane/sender.rs";
const STATE: &str = "crates/core/src/lane/state.rs";
const HUB: &str = "crates/core/src/target/hub.rs";
const READER: &str = "crates/core/src/pipeline/reader.rs";
const CARRY: &str = "crates/core/src/pipeline/carry.rs";
const STRETCH: &str = "crates/core/src/pipeline/stretch.rs";
const PASSES: &str = "crates/core/src/pipeline/passes.rs";
const EARLY: &str = "crates/core/src/pipeline/early.rs";
const BOOKS: &str = "crates/core/src/pipeline/books.rs";
const MAKING: &str = "crates/core/src/pipeline/making.rs";
const RENAMES: &str = "crates/core/src/pipeline/renames.rs";
const PARTITIONS: &str = "crates/core/src/pipeline/partitions.rs";
const PLAN: &str = "crates/core/src/target/plain/plan.rs";

pub(super) const GUARDS: &[Guard] = &[
    guard(
        "W is on disk before a send",
        READER,
        "if highest <= self.books.lock().sent {",
        "if highest <= self.books.lock().sent || BROKEN {",
    ),
    guard(
        "what is in doubt is known to be",
        CARRY,
        "let in_doubt = ts <= self.in_doubt;",
        "let in_doubt = ts <= self.in_doubt && !BROKEN;",
    ),
    guard(
        "window form: a delete beside an insert in doubt",
        "crates/core/src/pipeline/encoded.rs",
        "push(delete.into(), ts, 0, false, None, None);",
        "if !BROKEN { push(delete.into(), ts, 0, false, None, None); }",
    ),
    guard(
        "a new reader begins above everything ever sent",
        STATE,
        "raised: self.max_sent.max(floor),",
        "raised: if BROKEN { self.last_tick } else { self.max_sent.max(floor) },",
    ),
    guard(
        "F is on disk before a send",
        SENDER,
        "self.reserve(call.max_ts()).await;",
        "if !BROKEN { self.reserve(call.max_ts()).await; }",
    ),
    guard(
        "a lane begins at F",
        HUB,
        "let floor = self.floor(channel);",
        "let floor = if BROKEN { Tso::ZERO } else { self.floor(channel) };",
    ),
    guard(
        "message ids of two runs differ",
        HUB,
        "AtomicI64::new(FIRST_MESSAGE_ID + now.0 as i64)",
        "AtomicI64::new(FIRST_MESSAGE_ID + if BROKEN { 0 } else { now.0 as i64 })",
    ),
    guard(
        "raising is strictly monotone",
        "crates/core/src/route/tsmap.rs",
        "(*source).max(previous.saturating_add(1))",
        "(*source).max(previous.saturating_add(u64::from(!BROKEN)))",
    ),
    guard(
        "a tick is the smallest of those who hold",
        STATE,
        ".map(|e| e.tick)\n            .min();",
        ".map(|e| e.tick)\n            .reduce(|a, b| if BROKEN { a.max(b) } else { a.min(b) });",
    ),
    guard(
        "no tick passes a raised stretch that is not whole",
        STATE,
        "open.map_or(tick, |open| open.min(tick))",
        "open.filter(|_| !BROKEN).map_or(tick, |open| open.min(tick))",
    ),
    guard(
        "a reader's tick counts behind what it pushed",
        STATE,
        "        self.queue\n            .push_back(Item::Mark(Mark::Passed(id, tick, stretches)));",
        "        let passed = Item::Mark(Mark::Passed(id, tick, stretches));\n        if BROKEN { self.queue.push_front(passed); } else { self.queue.push_back(passed); }",
    ),
    guard(
        "a reader lets go behind what it pushed",
        STATE,
        "self.queue.push_back(Item::Mark(release));",
        "if BROKEN { self.apply(release); } else { self.queue.push_back(Item::Mark(release)); }",
    ),
    guard(
        "no tick while a call of unknown outcome may arrive",
        SENDER,
        "let may_tick = Instant::now() >= quiet_until;",
        "let may_tick = Instant::now() >= quiet_until || BROKEN;",
    ),
    guard(
        "no tick while calls of a process before may arrive",
        HUB,
        "own.max(self.earlier_calls_end())",
        "if BROKEN { own } else { own.max(self.earlier_calls_end()) }",
    ),
    guard(
        "rows of a call are above its tick",
        STATE,
        "        if let Some(tick) = call.tick {\n            self.last_tick = tick;",
        "        if BROKEN && may_tick {\n            std::mem::take(&mut call.marks).into_iter().for_each(|mark| self.apply(mark));\n            call.tick = self.due();\n        }\n        if let Some(tick) = call.tick {\n            self.last_tick = tick;",
    ),
    guard(
        "inserts wait for the target's clock",
        SENDER,
        "self.until_near(messages).await?;",
        "if !BROKEN { self.until_near(messages).await?; }",
    ),
    guard(
        "C passes a stretch when all of it is acknowledged",
        BOOKS,
        "if !stretch.open.is_done() {",
        "if !stretch.open.is_done() && !BROKEN {",
    ),
    guard(
        "reading goes on at the first message above the tick",
        BOOKS,
        "Some(first) => (first, false),",
        "Some(_) if BROKEN => (position, true),\n            Some(first) => (first, false),",
    ),
    guard(
        "what another reader has carried is left out",
        CARRY,
        "attached.dropped || attached.after.is_some_and(|after| position <= after)",
        "attached.dropped || (attached.after.is_some_and(|after| position <= after) && !BROKEN)",
    ),
    guard(
        "what is applied is left out",
        CARRY,
        "if before || ts <= self.applied ||",
        "if before || (ts <= self.applied && !BROKEN) ||",
    ),
    guard(
        "what a producer wrote twice is taken once",
        "crates/core/src/pipeline/repeats.rs",
        "return *first < position;",
        "return *first < position && !BROKEN;",
    ),
    guard(
        "a collection is dropped by its id",
        RENAMES,
        "found.filter(|found| Some(found.id) == object.target)",
        "found.filter(|found| Some(found.id) == object.target || BROKEN)",
    ),
    guard(
        "a partition is dropped by its id",
        PARTITIONS,
        "found.iter().find(|(_, id)| Some(*id) == object.target)",
        "found.iter().find(|(name, id)| if BROKEN { *name == object.name } else { Some(*id) == object.target })",
    ),
    guard(
        "a name that an older one has is not taken",
        MAKING,
        "match others.find(|o| self.holds(o, to)) {",
        "match others.find(|o| self.holds(o, to) && !BROKEN) {",
    ),
    guard(
        "a rename is not called again while an earlier call may come",
        RENAMES,
        "&& self.may_become(object, earlier)",
        "&& (self.may_become(object, earlier) && !BROKEN)",
    ),
    guard(
        "what may be made late is not renamed before",
        RENAMES,
        "made.is_some_and(|at| at.elapsed() < LATE)",
        "made.is_some_and(|at| at.elapsed() < LATE && !BROKEN)",
    ),
    guard(
        "plain mode: no row is under way when a collection gets another name",
        RENAMES,
        "        // Rows go by name, and what is under way must not find another collection under it.\n        self.ctx.hub.until_silent(found.id).await;",
        "        if !BROKEN { self.ctx.hub.until_silent(found.id).await; }",
    ),
    guard(
        "the intent is on disk before a partition is made",
        PARTITIONS,
        "self.put_partition(intent).await;",
        "if !BROKEN { self.put_partition(intent).await; }",
    ),
    guard(
        "other nodes are a restart of the target",
        "crates/core/src/pipeline/durable.rs",
        "(nodes.is_none() || durable.nodes != *nodes)",
        "(nodes.is_none() || (durable.nodes != *nodes && !BROKEN))",
    ),
    guard(
        "what follows a refused message waits behind it",
        SENDER,
        "if behind || message.stream.failed() ||",
        "if (behind && !BROKEN) || message.stream.failed() ||",
    ),
    guard(
        "plain mode: a delete behind an insert of its key begins anew",
        PLAN,
        "Ok(keys.each().any(|key| inserted.contains(&key)))",
        "Ok(keys.each().any(|key| inserted.contains(&key)) && !BROKEN)",
    ),
    guard(
        "plain mode: what is inserted since is known to a later delete",
        PLAN,
        "        if let Some(inserted) = &mut self.inserted {\n            inserted.extend",
        "        if let Some(inserted) = self.inserted.as_mut().filter(|_| !BROKEN) {\n            inserted.extend",
    ),
    guard(
        "plain mode: a stretch goes in the order of its times",
        STRETCH,
        "if self.lane.is_plain() {\n            // Stable",
        "if self.lane.is_plain() && !BROKEN {\n            // Stable",
    ),
    guard(
        "plain mode: an upsert is a delete first",
        STRETCH,
        "!p.act.is_delete()",
        "p.act.is_delete() == BROKEN",
    ),
    guard(
        "plain mode: a row that went early comes again behind a delete before it",
        EARLY,
        "if !deleted.hits(&planned) {",
        "if BROKEN || !deleted.hits(&planned) {",
    ),
    guard(
        "plain mode: the same where a tick is between the two",
        EARLY,
        "        if deleted.hits(planned) {",
        "        if deleted.hits(planned) && !BROKEN {",
    ),
    guard(
        "plain mode: a row that went early and is read again is in doubt",
        STRETCH,
        "if self.early.contains_key(&planned.origin.1) {",
        "if self.early.contains_key(&planned.origin.1) && !BROKEN {",
    ),
    guard(
        "plain mode: what is not read again is not given up",
        PASSES,
        "inner.edges.halve(|lane| maps.contains_key(lane))",
        "inner.edges.halve(|lane| BROKEN || maps.contains_key(lane))",
    ),
    guard(
        "plain mode: no rows wait when their partition is dropped",
        PARTITIONS,
        "self.ctx.hub.drop_rows(to.collection, *found).await;",
        "if !BROKEN { self.ctx.hub.drop_rows(to.collection, *found).await; }",
    ),
    guard(
        "a collection joins a reader that has both halves of its upserts",
        "crates/core/src/pipeline/join.rs",
        "whole.is_some_and(|tick| tick <= applied)",
        "BROKEN || whole.is_some_and(|tick| tick <= applied)",
    ),
    guard(
        "it has both halves also of what was sent above the tick",
        "crates/core/src/pipeline/join.rs",
        "Some(inner.edges.tick.max(highest))",
        "Some(if BROKEN { inner.edges.tick } else { inner.edges.tick.max(highest) })",
    ),
    guard(
        "who takes over what another one has sent above the tick sends with the source's times there",
        "crates/core/src/pipeline/join.rs",
        "            natural &= own.edges",
        "            natural &= BROKEN || own.edges",
    ),
    guard(
        "plain mode: what may still arrive is waited for",
        SENDER,
        "self.until_ended().await;",
        "if !BROKEN { self.until_ended().await; }",
    ),
    guard(
        "who holds more than its reserve waits for room",
        "crates/core/src/lane/stream.rs",
        "if own.load(Ordering::Relaxed) <= reserve ||",
        "if BROKEN || own.load(Ordering::Relaxed) <= reserve ||",
    ),
];
