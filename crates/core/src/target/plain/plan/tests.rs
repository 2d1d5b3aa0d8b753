use proptest::prelude::*;

use super::super::testing::{delete, insert, message_bytes};
use super::*;
use crate::route::encode::Entry;

fn table(partition_key: bool) -> Arc<Table> {
    Arc::new(Table {
        primary: "pk".to_owned(),
        has_partition_key: partition_key,
        computed: std::collections::BTreeSet::new(),
    })
}

fn read(all: &[Entry]) -> Vec<Message> {
    all.iter()
        .filter_map(|e| Message::read(e).unwrap())
        .collect()
}

fn with(messages: Vec<Message>, table: &Arc<Table>) -> impl Iterator<Item = (Message, Arc<Table>)> {
    messages.into_iter().map(|m| (m, table.clone()))
}

fn planned(all: &[Entry], unknown: &[i64]) -> Vec<String> {
    let table = table(false);
    let steps = plan(with(read(all), &table), |id| unknown.contains(&id));
    let say = |step: Step| match step {
        Step::Delete { at, expr, done } => format!("delete {}: {expr} {done:?}", at.partition),
        Step::Insert {
            at, columns, rows, ..
        } => {
            let keys = keys_in(&columns, "pk").unwrap();
            format!("insert {}: {keys:?} {rows}", at.partition)
        }
    };
    steps.unwrap().into_iter().map(say).collect()
}

#[test]
fn as_few_calls_as_will_do() {
    // Upserts of different keys: one delete and one insert.
    let all = [
        delete(1, "", &[1]),
        insert(2, "p", &[1], 7),
        delete(3, "", &[2]),
        insert(4, "p", &[2], 7),
        insert(5, "p", &[3], 7),
    ];
    assert_eq!(
        planned(&all, &[]),
        ["delete : pk in [1,2] [1, 3]", "insert p: Int([1, 2, 3]) 3"]
    );
    // A key that is deleted behind its insert.
    let all = [
        insert(1, "p", &[1, 2], 7),
        delete(2, "", &[3]),
        delete(3, "", &[2]),
        insert(4, "p", &[2], 8),
    ];
    assert_eq!(
        planned(&all, &[]),
        [
            "delete : pk in [3] [2]",
            "insert p: Int([1, 2]) 2",
            "delete : pk in [2] [3]",
            "insert p: Int([2]) 1"
        ]
    );
    // Rows that may be there.
    let all = [insert(1, "p", &[1], 7), insert(2, "q", &[2], 7)];
    assert_eq!(
        planned(&all, &[2]),
        [
            "delete q: pk in [2] []",
            "insert p: Int([1]) 1",
            "insert q: Int([2]) 1"
        ]
    );
    // Ticks and drops need no call, and a delete of nothing is done.
    assert_eq!(planned(&[message_bytes(1200, 9)], &[]), [""; 0]);
    assert_eq!(planned(&[delete(1, "", &[])], &[]), ["delete :  [1]"]);
}

#[test]
fn deletes_are_cut_and_quoted() {
    let keys: Vec<i64> = (0..25_000).collect();
    let all = expressions(&[Keys::Int(keys)], "pk");
    assert_eq!(all.len(), 3);
    assert!(all[2].starts_with("pk in [20000,20001,"));
    let long = Keys::Str(vec!["x".repeat(600 << 10), "y".repeat(600 << 10)]);
    assert_eq!(expressions(&[long], "pk").len(), 2);
    let odd = Keys::Str(vec!["a\"b\\\n\u{1f}".to_owned(), "ü".to_owned()]);
    let wanted = ["pk in [\"a\\\"b\\\\\\n\u{1f}\",\"ü\"]"];
    assert_eq!(expressions(&[odd], "pk"), wanted);
}

#[test]
fn what_cannot_be_planned_is_said() {
    let other = Arc::new(Table {
        primary: "id".to_owned(),
        ..(*table(false)).clone()
    });
    let one = read(&[insert(1, "p", &[1], 7)]);
    let error = plan(with(one, &other), |_| true).unwrap_err();
    assert_eq!(error, "an insert without its key column id");
}

#[test]
fn a_partition_is_not_named_where_the_target_chooses_it() {
    let table = table(true);
    let all = [insert(1, "_default_3", &[1], 7), delete(2, "", &[9])];
    let steps = plan(with(read(&all), &table), |_| false);
    for step in steps.unwrap() {
        let (Step::Delete { at, .. } | Step::Insert { at, .. }) = step;
        assert_eq!(at.partition, "");
    }
}

#[test]
fn messages_with_other_columns_do_not_become_one() {
    let (a, b) = (insert(1, "p", &[1], 7), insert(2, "p", &[2], 7));
    let mut messages = read(&[a, b]);
    if let Work::Insert { columns, .. } = &mut messages[1].work {
        columns.truncate(1);
    }
    let table = table(false);
    let steps = plan(with(messages, &table), |_| false);
    assert_eq!(steps.unwrap().len(), 2);
}

proptest! {
    /// Whatever the messages: the calls, one after the other, leave what the messages would, copies counted.
    #[test]
    fn the_calls_do_what_the_messages_say(
        messages in prop::collection::vec(
            (any::<bool>(), 0..3usize, prop::collection::vec(0..6i64, 0..4)), 0..30),
    ) {
        use super::super::testing::Rows;
        let partitions = ["", "p", "q"];
        let mut all = Vec::new();
        let mut wanted = Rows::default();
        for (id, (adds, at, keys)) in messages.iter().enumerate() {
            let id = id as i64;
            // An insert always names its partition.
            let at = partitions[if *adds { 1 + at % 2 } else { *at }];
            if *adds {
                wanted.add(at, keys, id);
                all.push(insert(id, at, keys, id));
            } else {
                wanted.remove(at, keys);
                all.push(delete(id, at, keys));
            }
        }
        let table = table(false);
        let steps = plan(with(read(&all), &table), |_| false).unwrap();
        let mut rows = Rows::default();
        let mut done = Vec::new();
        for step in steps {
            done.extend_from_slice(step.done());
            rows.run(&step);
        }
        prop_assert_eq!(rows, wanted);
        done.sort_unstable();
        prop_assert_eq!(done, (0..messages.len() as i64).collect::<Vec<_>>());
    }
}
