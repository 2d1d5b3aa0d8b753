use super::*;
use crate::store::CollectionObject;

const CHANNEL: &str = "dml_0";

fn channel() -> PChannel {
    PChannel::new(CHANNEL)
}

fn at(position: u64, applied: u64, sent: u64) -> Progress {
    Progress {
        position: Position::Natsmq(position),
        after: true,
        applied: Tso(applied),
        sent: Tso(sent),
    }
}

fn task() -> TaskId {
    TaskId::new("t")
}

fn nodes(of: &str) -> Option<Nodes> {
    Some([of.to_owned()].into())
}

fn live(id: i64) -> (CollectionId, CollectionObject) {
    let id = CollectionId(id);
    let object = CollectionObject {
        source: id,
        database: "default".to_owned(),
        name: format!("c{id}"),
        from: None,
        renamed: None,
        renaming: None,
        in_between: false,
        created: Tso(1),
        phase: ObjectPhase::Live,
        target: Some(id),
        target_vchannels: Vec::new(),
        dropped_shards: Vec::new(),
        properties: Default::default(),
    };
    (id, object)
}

/// Puts the notes among `changes` into `stored`, as the store does; gives back the others.
fn apply(stored: &mut TaskProgress, changes: Vec<Change>) -> Vec<Change> {
    let mut others = Vec::new();
    for change in changes {
        match change {
            Change::PutNote {
                collection, note, ..
            } => {
                stored.notes.insert(collection, note);
            }
            other => others.push(other),
        }
    }
    others
}

fn begin(stored: &mut TaskProgress, of: Option<Nodes>) -> (Durable, Vec<Change>) {
    begin_asked(stored, Asked::Told(of))
}

fn begin_asked(stored: &mut TaskProgress, asked: Asked) -> (Durable, Vec<Change>) {
    let begun = Durable::begin(&task(), stored, asked);
    let others = apply(stored, begun.changes);
    (begun.durable, others)
}

fn store(stored: &mut TaskProgress, durable: &mut Durable) {
    let note = durable.note(&task());
    apply(stored, note.into_iter().collect());
}

#[test]
fn the_same_nodes_leave_everything_where_it_is() {
    let mut stored = TaskProgress::default();
    stored.channels.insert(channel(), at(10, 100, 150));
    let (_, changes) = begin(&mut stored, nodes("a"));
    assert_eq!(changes, []);
    stored.channels.insert(channel(), at(20, 200, 250));
    let (mut durable, changes) = begin(&mut stored, nodes("a"));
    assert_eq!(changes, []);
    let known = durable.of(&channel(), CollectionId(1)).unwrap();
    assert_eq!(
        known,
        at(10, 100, 0).into(),
        "it stays where it was first met"
    );
    assert_eq!(durable.note(&task()), None, "nothing has changed since");
}

#[test]
fn other_nodes_send_a_channel_back_with_all_above_in_doubt() {
    let mut stored = TaskProgress::default();
    stored.channels.insert(channel(), at(10, 100, 150));
    let (mut durable, _) = begin(&mut stored, nodes("a"));
    durable.settled(&channel(), at(30, 300, 0).into(), std::iter::empty());
    store(&mut stored, &mut durable);
    stored.channels.insert(channel(), at(50, 500, 550));
    let (_, changes) = begin(&mut stored, nodes("b"));
    let put = |progress| Change::PutChannel {
        task: task(),
        channel: channel(),
        progress,
        clean: false,
    };
    assert_eq!(changes, [put(at(30, 300, 550))]);
    // The crash that comes next finds the new nodes, and the old place.
    stored.channels.insert(channel(), at(30, 300, 550));
    let (_, changes) = begin(&mut stored, nodes("b"));
    assert_eq!(changes, []);
    // A target that does not tell may have restarted at any time.
    stored.channels.insert(channel(), at(60, 600, 650));
    let (_, changes) = begin(&mut stored, None);
    assert_eq!(changes, [put(at(30, 300, 650))]);
    let (_, changes) = begin(&mut stored, None);
    assert_eq!(changes, [put(at(30, 300, 650))]);
}

#[test]
fn one_that_came_later_goes_back_by_itself() {
    let mut stored = TaskProgress::default();
    stored.channels.insert(channel(), at(10, 100, 150));
    stored.collections = [live(1), live(2), live(3)].into();
    let (mut durable, _) = begin(&mut stored, nodes("a"));
    // 2 began at 40 and was joined; 3 still reads by itself.
    durable.goes_alone(&channel(), CollectionId(2), at(40, 400, 0));
    durable.goes_alone(&channel(), CollectionId(3), at(44, 440, 0));
    store(&mut stored, &mut durable);
    stored.channels.insert(channel(), at(50, 500, 550));
    let key = (channel(), CollectionId(3));
    stored.detached.insert(key, at(46, 460, 470));
    let (_, changes) = begin(&mut stored, nodes("b"));
    let alone = |id, progress| Change::PutDetached {
        task: task(),
        channel: channel(),
        collection: CollectionId(id),
        progress,
    };
    let back = Change::PutChannel {
        task: task(),
        channel: channel(),
        progress: at(10, 100, 550),
        clean: false,
    };
    let wanted = [back, alone(2, at(40, 400, 550)), alone(3, at(44, 440, 470))];
    assert_eq!(changes, wanted);
}

#[test]
fn a_round_takes_in_those_it_had_and_no_others() {
    let mut stored = TaskProgress::default();
    stored.channels.insert(channel(), at(10, 100, 150));
    stored.collections = [live(1), live(2)].into();
    let (mut durable, _) = begin(&mut stored, nodes("a"));
    durable.goes_alone(&channel(), CollectionId(1), at(20, 200, 0));
    durable.goes_alone(&channel(), CollectionId(2), at(25, 250, 0));
    durable.settled(
        &channel(),
        at(30, 300, 0).into(),
        [CollectionId(1)].into_iter(),
    );
    let of = |durable: &Durable, id| durable.of(&channel(), CollectionId(id)).unwrap();
    assert_eq!(of(&durable, 1), at(30, 300, 0).into());
    assert_eq!(of(&durable, 2), at(25, 250, 0).into());
    assert_eq!(durable.needed()[&channel()], Position::Natsmq(25));
    // Taken off, it keeps what it has; one without a place of its own has its channel's.
    durable.taken_off(&channel(), CollectionId(2), at(50, 500, 0));
    durable.taken_off(&channel(), CollectionId(1), at(50, 500, 0));
    assert_eq!(of(&durable, 2), at(25, 250, 0).into());
    assert_eq!(of(&durable, 1), at(30, 300, 0).into());
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut stored = TaskProgress::default();
    stored.channels.insert(channel(), at(10, 100, 150));
    stored.collections = [live(1)].into();
    let (mut durable, _) = begin(&mut stored, nodes("a"));
    durable.goes_alone(&channel(), CollectionId(1), at(20, 200, 0));
    store(&mut stored, &mut durable);
    stored.collections.get_mut(&CollectionId(1)).unwrap().phase = ObjectPhase::Dropped;
    stored.channels.clear();
    let (durable, changes) = begin(&mut stored, nodes("b"));
    assert_eq!(changes, []);
    assert_eq!(durable.of(&channel(), CollectionId(1)), None);
}

#[test]
fn a_target_that_cannot_tell_now_is_judged_later() {
    let mut stored = TaskProgress::default();
    stored.channels.insert(channel(), at(10, 100, 150));
    begin(&mut stored, nodes("a"));
    stored.channels.insert(channel(), at(20, 200, 250));
    let (durable, changes) = begin_asked(&mut stored, Asked::NotNow);
    assert_eq!(changes, []);
    assert_eq!(
        durable.nodes,
        nodes("a"),
        "those its places were found with"
    );
    let (_, changes) = begin(&mut stored, nodes("b"));
    assert_eq!(changes.len(), 1);
}

#[test]
fn fewer_nodes_at_one_look_do_not_tell() {
    let told = |of: &[&str]| Asked::Told(Some(of.iter().map(|n| (*n).to_owned()).collect()));
    let mut stored = TaskProgress::default();
    // Nothing to compare it with.
    assert_eq!(told(&["a"]).once(&stored), told(&["a"]));
    begin_asked(&mut stored, told(&["a", "b"]));
    assert_eq!(told(&["a"]).once(&stored), Asked::NotNow);
    for all in [&["a", "b"][..], &["a", "c"], &["a", "b", "c"]] {
        assert_eq!(told(all).once(&stored), told(all));
    }
    assert_eq!(Asked::Told(None).once(&stored), Asked::Told(None));
    assert_eq!(Asked::NotNow.once(&stored), Asked::NotNow);
}
