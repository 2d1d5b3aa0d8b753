//! A call's way to the twin and back, with what the test made of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::content::Content;
use super::properties::Lack;
use super::rules::Rule;
use super::state::State;
use super::{Fate, Inner, URI};
use crate::target::TargetError;
use crate::target::plain::PlainWriter;

/// One client's connection.
pub(super) struct Session {
    pub(super) inner: Arc<Inner>,
    /// Of each call.
    pub(super) deadline: Duration,
    /// In plain mode.
    pub(super) writer: Option<PlainWriter>,
}

pub(super) fn unknown(call: &'static str) -> TargetError {
    TargetError::Unknown {
        uri: URI.to_owned(),
        call,
        cause: "made to be lost by a test".to_owned(),
    }
}

fn refused(call: &'static str, (code, reason): (i32, String)) -> TargetError {
    TargetError::Refused {
        uri: URI.to_owned(),
        call,
        code,
        reason,
    }
}

pub(super) fn not_found(what: &str) -> (i32, String) {
    (100, format!("collection not found[collection={what}]"))
}

pub(super) const REPLICATE: &str = "ReplicateMessage";
/// The calls that write rows in plain mode.
const ROWS: [&str; 2] = ["Insert", "Delete"];

/// A call on its way. If nobody waits for it any more, it may be carried out all the same ([`Rule::LateCall`]).
///
/// [`Rule::LateCall`]: super::rules::Rule::LateCall
struct OnItsWay<E: FnOnce(&mut State) + Send + 'static> {
    inner: Arc<Inner>,
    until: Instant,
    effect: Option<E>,
    /// Not so for creations and drops, though a real one may be late too: cdc-core does not reckon with that yet.
    outlives: bool,
}

impl<E: FnOnce(&mut State) + Send + 'static> Drop for OnItsWay<E> {
    fn drop(&mut self) {
        let left = self.until.saturating_duration_since(Instant::now());
        let Some(effect) = self.effect.take() else {
            return;
        };
        if self.outlives
            && self.inner.keeps(Rule::LateCall)
            && let Some(by) = self.inner.outlives(left)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let inner = self.inner.clone();
            runtime.spawn(async move {
                tokio::time::sleep(by).await;
                inner.now();
                effect(&mut inner.state.lock());
            });
        }
    }
}

impl Session {
    /// A call with its ways there and back. It is carried out at one instant, or not at all.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        call: &'static str,
        writes: bool,
        effect: impl FnOnce(&mut State) -> Result<T, (i32, String)> + Send + 'static,
    ) -> Result<T, TargetError> {
        let fate = self.inner.fate(call, writes, false);
        let noted = move |state: &mut State| {
            if writes {
                state.note(call);
                state.called.insert(call);
            }
            let answer = match state.lacks.get(call) {
                Some(Lack::Call) => Err((10, "the target has no such call".to_owned())),
                _ => effect(state),
            };
            if writes {
                let (clock, error) = (state.clock.millis(), answer.as_ref().err());
                tracing::trace!(target: "standby", clock, call, ?error);
            }
            answer
        };
        if let Fate::Late(by) = fate {
            return self.later(call, by, noted).await;
        }
        self.carried_out(call, fate, writes, noted).await
    }

    /// One that changes rows: it may arrive late, within its deadline.
    pub(super) async fn write_rows(
        &self,
        call: &'static str,
        within: Duration,
        effect: impl FnOnce(&mut State) -> Result<(), (i32, String)> + Send + 'static,
    ) -> Result<(), TargetError> {
        let fate = self.inner.fate(call, true, true);
        if let Fate::Late(by) = fate {
            return self.later(call, by.min(within), effect).await;
        }
        self.within(call, fate, true, within, effect).await
    }

    /// Its answer is lost, and it is carried out later.
    pub(super) async fn later<T: Send + 'static>(
        &self,
        call: &'static str,
        by: Duration,
        effect: impl FnOnce(&mut State) -> Result<T, (i32, String)> + Send + 'static,
    ) -> Result<T, TargetError> {
        let inner = self.inner.clone();
        tokio::spawn(async move {
            tokio::time::sleep(by).await;
            inner.now();
            let _ = effect(&mut inner.state.lock());
        });
        self.inner.travel().await;
        Err(unknown(call))
    }

    pub(super) async fn carried_out<T: Send + 'static>(
        &self,
        call: &'static str,
        fate: Fate,
        writes: bool,
        effect: impl FnOnce(&mut State) -> Result<T, (i32, String)> + Send + 'static,
    ) -> Result<T, TargetError> {
        self.within(call, fate, writes, self.deadline, effect).await
    }

    async fn within<T: Send + 'static>(
        &self,
        call: &'static str,
        fate: Fate,
        writes: bool,
        deadline: Duration,
        effect: impl FnOnce(&mut State) -> Result<T, (i32, String)> + Send + 'static,
    ) -> Result<T, TargetError> {
        let (tell, told) = oneshot::channel();
        let run = move |state: &mut State| {
            let _ = tell.send(effect(state));
        };
        let mut on_its_way = OnItsWay {
            inner: self.inner.clone(),
            until: Instant::now() + deadline,
            effect: (fate != Fate::Unreachable).then_some(run),
            outlives: call == REPLICATE || ROWS.contains(&call),
        };
        let way = async {
            self.inner.travel().await;
            let Some(run) = on_its_way.effect.take() else {
                return Err(TargetError::Unreachable {
                    uri: URI.to_owned(),
                    call,
                    cause: "made to fail by a test".to_owned(),
                });
            };
            self.inner.now();
            run(&mut self.inner.state.lock());
            self.inner.travel().await;
            if matches!(fate, Fate::Lost | Fate::Partly(_) | Fate::First(_)) {
                return Err(unknown(call));
            }
            // It was told above.
            told.await
                .map_err(|_| unknown(call))?
                .map_err(|why| refused(call, why))
        };
        let result = tokio::time::timeout(deadline, way).await;
        if !writes {
            on_its_way.effect = None;
        }
        match result {
            Ok(result) => result,
            Err(_) => Err(unknown(call)),
        }
    }

    /// A call about one collection; the number it is given is a fresh id.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        call: &'static str,
        database: &str,
        name: &str,
        effect: impl FnOnce(i64, &mut Content) -> Result<T, (i32, String)> + Send + 'static,
    ) -> Result<T, TargetError> {
        let (database, name) = (database.to_owned(), name.to_owned());
        self.call(call, true, move |state| {
            let id = state.id();
            match state.find(&database, &name) {
                Some(content) => effect(id, content),
                None => Err(not_found(&name)),
            }
        })
        .await
    }
}
