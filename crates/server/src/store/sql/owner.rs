//! Who may write, as one row: an epoch that grows with every new owner, and a beat that grows while the owner lives.
//!
//! No clock of the database is asked. Whoever wants the store watches the row: if neither the epoch nor the beat
//! changes for the length of the owner's lease, by the watcher's own clock, the owner is gone; and the update that
//! takes over names both, so that an owner that comes back at that moment keeps the store. Every transaction of an
//! owner reads the row with a shared lock: a takeover waits until it is through, and what comes after a takeover
//! finds another epoch.

use cdc_core::store::StoreError;

use super::connection::{Connection, Pool, Row, Value};
use super::dialect::{Database, Dialect, Statement};
use super::writer::unavailable;
use crate::store::owner::{Claim, Taken, Term, boot_time};

/// The row as it was first seen like that.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Seen {
    epoch: i64,
    beat: i64,
    since: std::time::Duration,
}

const ID: [(&str, Value); 1] = [("id", Value::Int(1))];
const COLUMNS: [&str; 5] = ["epoch", "beat", "held", "lease_ms", "name"];

struct Owner {
    epoch: i64,
    beat: i64,
    held: bool,
    lease: std::time::Duration,
    name: String,
}

fn read(row: Option<Row>) -> Result<Owner, StoreError> {
    match row.as_deref() {
        Some(
            [
                Value::Int(epoch),
                Value::Int(beat),
                Value::Int(held),
                Value::Int(lease),
                Value::Text(name),
            ],
        ) => Ok(Owner {
            epoch: *epoch,
            beat: *beat,
            held: *held != 0,
            lease: std::time::Duration::from_millis((*lease).max(0) as u64),
            name: name.clone(),
        }),
        _ => Err(StoreError::Corrupt("no owner row".to_owned())),
    }
}

/// Within a transaction: whether all of these epochs are the owner's. Keeps a takeover out until the transaction ends.
pub(super) async fn check(
    c: &mut Connection,
    d: &Dialect,
    epochs: &[i64],
) -> Result<Result<(), StoreError>, sqlx::Error> {
    let lock = match d.database {
        Database::Mysql => " LOCK IN SHARE MODE",
        Database::Postgres => " FOR SHARE",
        Database::Sqlite => "",
    };
    let rows = c.fetch(&d.select("owner", &COLUMNS, &ID, lock)).await?;
    let owner = match read(rows.into_iter().next()) {
        Ok(owner) => owner,
        Err(error) => return Ok(Err(error)),
    };
    if owner.held && epochs.iter().all(|epoch| *epoch == owner.epoch) {
        return Ok(Ok(()));
    }
    let by = match owner.held {
        true => format!("{} owns it now", owner.name),
        false => "nobody owns it now".to_owned(),
    };
    Ok(Err(StoreError::NotOwner(by)))
}

pub(super) async fn take(
    pool: &Pool,
    d: &Dialect,
    claim: &Claim,
    seen: &parking_lot::Mutex<Option<Seen>>,
) -> Result<Taken, StoreError> {
    let rows = pool
        .fetch(&d.select("owner", &COLUMNS, &ID, ""))
        .await
        .map_err(unavailable)?;
    let now = boot_time();
    let owner = read(rows.into_iter().next())?;
    if owner.held && !is_gone(&owner, now, seen) {
        return Ok(Taken::Theirs(owner.name));
    }
    let epoch = owner.epoch + 1;
    let keys = [
        ID[0].clone(),
        ("epoch", Value::Int(owner.epoch)),
        ("beat", Value::Int(owner.beat)),
    ];
    let set = [
        ("epoch", Value::Int(epoch)),
        ("beat", Value::Int(owner.beat + 1)),
        ("held", Value::Int(1)),
        ("lease_ms", Value::Int(claim.lease.as_millis() as i64)),
        ("name", Value::from(claim.name.as_str())),
    ];
    let hit = pool
        .execute(&d.update("owner", &keys, &set))
        .await
        .map_err(unavailable)?;
    Ok(match hit {
        0 => Taken::Theirs(owner.name),
        _ => Taken::Ours(Term {
            epoch,
            lease: 0,
            name: claim.name.clone(),
            length: claim.lease,
            begun: now,
        }),
    })
}

/// Whether the owner was silent for the length of its lease, and a little for clocks that do not run alike.
fn is_gone(
    owner: &Owner,
    now: std::time::Duration,
    seen: &parking_lot::Mutex<Option<Seen>>,
) -> bool {
    let mut seen = seen.lock();
    match seen.as_ref() {
        Some(s) if (s.epoch, s.beat) == (owner.epoch, owner.beat) => {
            now.saturating_sub(s.since) > owner.lease + owner.lease / 50
        }
        _ => {
            *seen = Some(Seen {
                epoch: owner.epoch,
                beat: owner.beat,
                since: now,
            });
            false
        }
    }
}

fn keys(term: &Term) -> [(&'static str, Value); 3] {
    [
        ID[0].clone(),
        ("epoch", Value::Int(term.epoch)),
        ("held", Value::Int(1)),
    ]
}

pub(super) async fn renew(pool: &Pool, d: &Dialect, term: &Term) -> Result<bool, StoreError> {
    let (name, table) = (d.name("beat"), d.table("owner"));
    let sql =
        format!("UPDATE {table} SET {name} = {name} + 1 WHERE id = ? AND epoch = ? AND held = ?");
    let values = keys(term).into_iter().map(|(_, value)| value).collect();
    let beat: Statement = d.statement(&sql, values);
    Ok(pool.execute(&beat).await.map_err(unavailable)? > 0)
}

pub(super) async fn release(pool: &Pool, d: &Dialect, term: &Term) -> Result<(), StoreError> {
    let set = [("held", Value::Int(0))];
    pool.execute(&d.update("owner", &keys(term), &set))
        .await
        .map_err(unavailable)?;
    Ok(())
}
