//! Messages that could not be carried, and what a person says of them.

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::quarantine::{Kept, Record};
use cdc_core::task::Verdict;

use super::{TaskError, Tasks, event, promote};
use crate::fields::clip;
use crate::store::Desired;

impl Tasks {
    /// The messages of a task, by their keys. From the store: also of a task that does not run here.
    pub async fn quarantine(&self, id: &str) -> Result<Vec<(String, Record)>, TaskError> {
        let id = self.get(id)?.spec.id;
        let stored = self.inner.store.load(&id).await?;
        Ok(stored.quarantine.into_iter().collect())
    }

    pub async fn quarantined(&self, id: &str, key: &str) -> Result<Record, TaskError> {
        let all = self.quarantine(id).await?;
        let found = all.into_iter().find(|(k, _)| k == key);
        found
            .map(|(_, record)| record)
            .ok_or_else(|| TaskError::NoMessage(clip(key)))
    }

    /// The bytes of a message; `None` if they are not kept.
    pub async fn message(&self, id: &str, record: &Record) -> Result<Option<Vec<u8>>, TaskError> {
        if record.kept != Kept::Whole {
            return Ok(None);
        }
        let id = self.get(id)?.spec.id;
        let message = self.inner.store.message(&id, &record.message()).await?;
        // They may have gone since the record was read.
        let whole = record.size == Some(message.len() as u64);
        Ok(whole.then_some(message))
    }

    /// Tries a message again, or leaves it out. `by`: who says so.
    pub async fn judge(
        &self,
        id: &str,
        key: &str,
        verdict: Verdict,
        by: &str,
    ) -> Result<Record, TaskError> {
        let inner = &self.inner;
        let task = self.get(id)?;
        let record = self.quarantined(id, key).await?;
        if let Some(refusal) = promote::refusal(&task) {
            return Err(refusal);
        }
        if task.desired != Desired::Running {
            return Err(TaskError::Conflict(Problem::new(
                ErrorClass::Conflict,
                format!("task {id} is paused, and none of its messages is at hand"),
                "let it run first",
            )));
        }
        let id = &task.spec.id;
        let judged = inner.replication.judge(id, key, verdict, by);
        let outcome = match tokio::time::timeout(inner.limits.answer_deadline, judged).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Problem::new(
                ErrorClass::Transient,
                format!(
                    "no confirmation within {} ms, it may or may not be applied",
                    inner.limits.answer_deadline.as_millis()
                ),
                "look at the message's state",
            )),
        };
        outcome.map_err(|problem| match problem.class {
            ErrorClass::Conflict => TaskError::Conflict(problem),
            _ => TaskError::Refused(problem),
        })?;
        let (kind, done) = match verdict {
            Verdict::Retry => ("retried", "tried again"),
            Verdict::Drop => ("dropped", "left out"),
        };
        let text = format!(
            "{by}: {}.{}: {key}, message {} of {}, is {done}",
            record.database, record.name, record.position, record.channel
        );
        // It is applied, whatever becomes of the line about it.
        if let Err(error) = inner.write(vec![event(id, kind, text)]).await {
            tracing::warn!(task = %id, %error, "what was said of a message is not in the history");
        }
        self.quarantined(id.as_str(), key).await
    }
}
