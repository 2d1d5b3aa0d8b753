//! Who runs the tasks of a store that several servers share, and for how long it may be sure of that.
//!
//! An owner's term is a number in the store that every write of its names. It lasts for as long as the owner renews
//! its lease. By its own clock the owner counts on its lease only from the moment *before* it asked for it, and
//! begins a call to a target only if all of that call lies within it: so when another one takes over, the last call that
//! replicates has ended, even if its owner was frozen before it left. (Creations, drops and loads have longer deadlines
//! than a lease.)

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use cdc_core::boot::boot_time;
use cdc_core::store::StoreError;
use cdc_core::target::fence::Permit;
use tokio_util::sync::CancellationToken;

use super::Backend;

/// Who wants the store, and how long it may be silent before it has lost it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// For people: where this server is to be found.
    pub name: String,
    pub lease: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Taken {
    Ours(Term),
    /// The owner's name.
    Theirs(String),
}

/// One time of being the owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Term {
    /// Grows with every owner.
    pub epoch: i64,
    /// The lease of an etcd; 0 elsewhere.
    pub lease: i64,
    pub name: String,
    pub length: Duration,
    /// When it was asked for, see [`boot_time`].
    pub begun: Duration,
}

impl Term {
    /// Of a store that nobody else can open.
    pub fn endless(name: &str) -> Self {
        Self {
            epoch: 0,
            lease: 0,
            name: name.to_owned(),
            length: Duration::MAX,
            begun: Duration::ZERO,
        }
    }
}

/// What the owner may still count on.
pub struct Lease {
    /// Milliseconds of [`boot_time`].
    ends: AtomicU64,
    length: Duration,
    over: CancellationToken,
}

impl Lease {
    pub fn new(term: &Term) -> Self {
        let lease = Self {
            ends: AtomicU64::new(0),
            length: term.length,
            over: CancellationToken::new(),
        };
        lease.renewed(term.begun);
        lease
    }

    fn renewed(&self, asked: Duration) {
        let ends = asked.saturating_add(self.length).as_millis();
        let ends = u64::try_from(ends).unwrap_or(u64::MAX);
        self.ends.fetch_max(ends, Ordering::SeqCst);
    }

    fn left(&self) -> Duration {
        let ends = Duration::from_millis(self.ends.load(Ordering::SeqCst));
        ends.saturating_sub(boot_time())
    }

    /// From now on nothing is permitted.
    pub fn end(&self) {
        self.over.cancel();
    }
}

impl Permit for Lease {
    fn check(&self, longest: Duration) -> Result<(), String> {
        let left = self.left();
        if !self.over.is_cancelled() && left > longest {
            return Ok(());
        }
        Err(format!(
            "not sent: this server's lease on the store has {} ms left, the call may take {}",
            left.as_millis(),
            longest.as_millis()
        ))
    }
}

/// Why a term ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Another one has it.
    Taken,
    /// The store could not be told in time that this server is alive.
    Expired(String),
}

/// Renews the lease until that fails for good.
pub async fn keep(backend: &Arc<dyn Backend>, term: &Term, lease: &Lease) -> Ended {
    let every = (term.length / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
    // An answer that takes longer than this is asked for again.
    let deadline = every * 3;
    let mut failing = false;
    loop {
        tokio::time::sleep(every).await;
        let asked = boot_time();
        let answer = match tokio::time::timeout(deadline, backend.renew(term)).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Unavailable(format!(
                "no answer within {} ms",
                deadline.as_millis()
            ))),
        };
        match answer {
            Ok(true) => {
                lease.renewed(asked);
                if std::mem::take(&mut failing) {
                    tracing::info!("the ownership of the store is renewed again");
                }
            }
            Ok(false) => return Ended::Taken,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "the ownership of the store cannot be renewed at the moment");
                }
                if lease.left().is_zero() {
                    return Ended::Expired(error.to_string());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_permitted_only_if_it_ends_within_the_lease() {
        let mut term = Term::endless("a");
        assert!(Lease::new(&term).check(Duration::from_secs(3600)).is_ok());
        term.length = Duration::from_secs(10);
        term.begun = boot_time();
        let lease = Lease::new(&term);
        assert!(lease.check(Duration::from_secs(9)).is_ok());
        let refused = lease.check(Duration::from_secs(11)).unwrap_err();
        assert!(refused.contains("not sent"), "{refused}");
        term.begun = boot_time().saturating_sub(Duration::from_secs(20));
        assert!(Lease::new(&term).check(Duration::ZERO).is_err());
        lease.end();
        assert!(lease.check(Duration::ZERO).is_err());
    }
}
