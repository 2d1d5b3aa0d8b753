//! The connections that all readers of one source share: one for each place.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::connection::{Connection, Failure};
use crate::source::open::PulsarConfig;

/// Where a connection leads.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// `host:port`.
    pub(super) address: String,
    /// The broker behind a proxy.
    pub(super) through: Option<String>,
}

type Made = Result<Arc<Connection>, Failure>;
type Making = BoxFuture<'static, Made>;

enum Slot {
    Live(Arc<Connection>),
    /// Only those who wait for it keep it up: when the last one has gone, it ends.
    Making(WeakShared<Making>),
}

impl Slot {
    fn live(&self) -> Option<&Arc<Connection>> {
        match self {
            Slot::Live(connection) if !connection.is_dead() => Some(connection),
            _ => None,
        }
    }

    fn making(&self) -> Option<Shared<Making>> {
        match self {
            Slot::Live(_) => None,
            Slot::Making(making) => making.upgrade(),
        }
    }
}

/// Never locked while something is waited for: a broker that does not answer holds up those who want that very broker,
/// for the time-out of one attempt that they share, and nobody else.
pub(super) struct Pool {
    config: Arc<PulsarConfig>,
    tls: bool,
    places: Arc<Mutex<HashMap<Place, Slot>>>,
}

impl Pool {
    pub(super) fn new(config: Arc<PulsarConfig>, tls: bool) -> Self {
        Self {
            config,
            tls,
            places: Arc::default(),
        }
    }

    /// The connection that is there already.
    pub(super) fn live(&self, place: &Place) -> Option<Arc<Connection>> {
        self.places.lock().get(place)?.live().cloned()
    }

    /// The connection that is there, or the one that is being made, or a new one.
    pub(super) async fn to(&self, place: Place) -> Made {
        let making = {
            let mut places = self.places.lock();
            let slot = places.get(&place);
            if let Some(connection) = slot.and_then(Slot::live) {
                return Ok(connection.clone());
            }
            match slot.and_then(Slot::making) {
                Some(making) => making,
                None => {
                    places.retain(|_, slot| slot.live().is_some() || slot.making().is_some());
                    let making = self.make(place.clone()).shared();
                    if let Some(weak) = making.downgrade() {
                        places.insert(place, Slot::Making(weak));
                    }
                    making
                }
            }
        };
        making.await
    }

    /// A task of its own, which goes on whether or not those who wait for it are being polled.
    fn make(&self, place: Place) -> Making {
        let (config, tls, places) = (self.config.clone(), self.tls, self.places.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let through = place.through.clone();
            let made = Connection::open(&config, &place.address, tls, through).await;
            let mut places = places.lock();
            match &made {
                Ok(connection) => places.insert(place, Slot::Live(connection.clone())),
                // Whoever comes from here on tries again.
                Err(_) => places.remove(&place),
            };
            made
        }));
        let made = task.map(|ended| match ended {
            Ok(made) => made,
            Err(broken) => Err(Failure::Away(format!("connecting broke off: {broken}"))),
        });
        made.boxed()
    }
}
