//! Seeds that failed once, and what was wrong.

use cdc_core::task::Mode;

/// All of them.
pub fn found() -> impl Iterator<Item = (u64, Mode, &'static str)> {
    let of = |mode| move |(seed, what): &(u64, &'static str)| (*seed, mode, *what);
    let plain = FOUND_PLAIN.iter().map(of(Mode::Plain));
    FOUND.iter().map(of(Mode::Replicate)).chain(plain)
}

/// With a target that is a Milvus of its own.
const FOUND_PLAIN: &[(u64, &str)] = &[
    (
        31_014_639,
        "a channel's reader had begun between the halves of an upsert of a collection that joined it, and replayed the delete alone",
    ),
    (
        35_021_516,
        "rows that were sent once more after a rename waited while their partition was dropped, and went to the newer one of its name",
    ),
    (35_051_484, "the same"),
    (
        130_008_286,
        "the place behind which a copy goes on was in the middle of an upsert, on a channel whose ticks stood still: its delete took the row that was copied",
    ),
];

/// Each failed before its fix, in the build that repeats a run call by call.
const FOUND: &[(u64, &str)] = &[
    (
        21,
        "ticks that only wake the target's readers kept the real ones back, without end",
    ),
    (
        71,
        "a partition's drop was tried without end where its collection was gone already",
    ),
    (
        220,
        "a collection that was gone at the start was dropped before the readers began, and its tick showed half an upsert",
    ),
    (
        263,
        "the drop of a partition was forgotten where the source's metadata was older than the partition",
    ),
    (
        1226,
        "a stop ended a reader whose queue had failed for a moment, and waited for it to be through",
    ),
    (
        1615,
        "a drop that had ended was made once more, of the newer collection of its name",
    ),
    (
        1978,
        "a drop that was made as the task ended was still sent, and the next start did not reckon with it",
    ),
    (
        2116,
        "a collection whose rows waited for a later tick was said to be at the source's times",
    ),
    (
        2277,
        "a partition whose creation was not answered was not dropped",
    ),
    (
        3193,
        "a shard's drop took back that the collection was dropped, and its name was never free",
    ),
    (
        3581,
        "a start that was stopped at once vouched for calls of the process before it",
    ),
    (
        3671,
        "a crash was taken for a good end where a task had begun on an empty store",
    ),
    (
        6428,
        "the same, while a call of unknown outcome kept the tick back",
    ),
    (
        8931,
        "a collection that had just joined its channel's reader was stored as one by itself, and sent twice after a stop",
    ),
    (
        27677,
        "a call that waited for F to be on disk was not counted as under way, and a stop took its lane for quiet",
    ),
    (
        35863,
        "a collection whose stream had failed was said to be at its lane's ticks",
    ),
    (
        67012,
        "rows that waited for a tick which was not read any more kept a stop waiting",
    ),
    (
        78356,
        "a database that was made with its first collection was not dropped after a crash",
    ),
    (
        212671,
        "a collection that failed and went on, with no rows since, was joined to a reader whose times were below its rows: a delete hit nothing",
    ),
    (
        319416,
        "a partition that was dropped while the target was asked for its partitions was taken for the newer one of its name, and rows went nowhere",
    ),
    (
        505936,
        "a partition was made once more by another way, which forgot its id, and was not dropped",
    ),
    (
        639282,
        "a collection whose channel was silent for five seconds was still said to be at the source's times, while ticks passed it",
    ),
    (
        20_000_072,
        "a partition was dropped under the old name of its collection, where there was none, and stayed",
    ),
    (
        20_002_666,
        "two collections were being made under one name, and the drop of the one took the other",
    ),
    (
        20_006_855,
        "a collection that was taken off its readers for its name had sent one half of an upsert",
    ),
    (
        36_059_296,
        "a collection joined a reader before a tick had shown what it had raised, and was not said to be raised any more",
    ),
    (
        100_000_004,
        "a collection was to be copied anew, and the source dropped it before: what the target had of it stayed",
    ),
    (
        100_000_007,
        "the same, and it got another name before: what the target had under the old one stayed",
    ),
    (
        100_000_680,
        "a collection that had moved to another database was shown in the old one, and a person's word for it was refused",
    ),
    (
        100_000_564,
        "a collection had another's name for a moment while a page of it was read, and the page was the other's",
    ),
    (
        200_014_002,
        "the target could not be asked for its nodes at the start, and then nothing was thought of one that restarted while rows were copied",
    ),
    (
        220_006_992,
        "a partition's drop was noted again while its collection was forgotten, and was sent to the one that was made anew",
    ),
    (
        240_000_821,
        "a collection's reader waited for a tick behind its drop, the conductor for that reader, and the tick for a reader that had lost its place and that the conductor was to take off",
    ),
];
