//! A person's answers for collections that wait for one.

use std::time::Duration;

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::TaskId;
use cdc_core::task::{CollectionState, TaskStatus};
use tokio::time::Instant;

use super::{Inner, TaskError, event};
use crate::request::Answer;
use crate::states;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How one collection stands to its answer.
enum Stand {
    Waits,
    /// It may come to wait for this answer.
    NotYet(String),
    /// It will not.
    Never(String),
}

impl Inner {
    /// Hands over a person's answers: all are checked before any is applied. `fresh`: the task was started just now, and
    /// its collections have yet to find out what they wait for.
    pub(super) async fn answer(
        &self,
        id: &TaskId,
        answers: &[Answer],
        fresh: bool,
    ) -> Result<(), TaskError> {
        self.await_questions(id, answers, fresh).await?;
        let mut applied: Vec<String> = Vec::new();
        for answer in answers {
            let label = label(answer);
            let choose =
                self.replication
                    .choose(id, &answer.database, &answer.name, answer.choice.clone());
            let outcome = match tokio::time::timeout(self.limits.answer_deadline, choose).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Problem::new(
                    ErrorClass::Transient,
                    format!(
                        "no confirmation within {} ms, it may or may not be applied",
                        self.limits.answer_deadline.as_millis()
                    ),
                    "",
                )),
            };
            if let Err(problem) = outcome {
                return Err(partly(&applied, &label, problem));
            }
            let text = format!("{label}: {:?}", answer.choice);
            // It is applied, whatever becomes of the line about it.
            if let Err(error) = self.write(vec![event(id, "answered", text)]).await {
                tracing::warn!(task = %id, %error, "an answer is not in the history");
            }
            applied.push(label);
        }
        Ok(())
    }

    async fn await_questions(
        &self,
        id: &TaskId,
        answers: &[Answer],
        fresh: bool,
    ) -> Result<(), TaskError> {
        let deadline = Instant::now() + self.limits.answer_deadline;
        loop {
            let Some(status) = self.replication.status(id) else {
                return Err(not_applied("the task does not run any more".to_owned()));
            };
            let (mut never, mut not_yet) = (Vec::new(), Vec::new());
            for answer in answers {
                match stand(&status, answer, fresh) {
                    Stand::Waits => {}
                    Stand::NotYet(why) => not_yet.push(why),
                    Stand::Never(why) => never.push(why),
                }
            }
            if never.is_empty() && not_yet.is_empty() {
                return Ok(());
            }
            if !never.is_empty() || Instant::now() >= deadline {
                never.append(&mut not_yet);
                return Err(not_applied(never.join("; ")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn stand(status: &TaskStatus, answer: &Answer, fresh: bool) -> Stand {
    let label = label(answer);
    // The same name may be there several times, when it was dropped and created again.
    let named = status.collections.iter().filter(|c| {
        c.database == answer.database
            && c.name == answer.name
            && c.state != CollectionState::Dropped
    });
    let mut found = Stand::NotYet(format!("the task has no collection {label}"));
    for c in named {
        if answer.fits(&c.state) {
            return match answer.collection {
                Some(given) if given != c.source_id => Stand::Never(format!(
                    "the positions given are of collection {given}, {label} is {}",
                    c.source_id
                )),
                _ => Stand::Waits,
            };
        }
        let state = states::name(&c.state);
        found = match (states::answers(&c.state), &c.state) {
            (Some(words), _) => Stand::Never(format!("{label} is {state} and takes {words}")),
            (None, CollectionState::Streaming { .. }) if !fresh => {
                Stand::Never(format!("{label} is {state} and waits for no answer"))
            }
            _ => Stand::NotYet(format!("{label} is {state} and waits for no such answer")),
        };
    }
    found
}

fn label(answer: &Answer) -> String {
    format!("{}.{}", answer.database, answer.name)
}

fn not_applied(why: String) -> TaskError {
    TaskError::Conflict(Problem::new(
        ErrorClass::Conflict,
        format!("no answer was applied: {why}"),
        "see get for the collections' states; the task itself was resumed",
    ))
}

/// An answer did not get through after some did.
fn partly(applied: &[String], label: &str, problem: Problem) -> TaskError {
    let before = match applied {
        [] => String::new(),
        some => format!("applied: {}; ", some.join(", ")),
    };
    let shown = Problem {
        message: format!("{before}not applied: {label}: {}", problem.message),
        hint: "see get for the collections' states; the task itself was resumed".to_owned(),
        ..problem
    };
    match shown.class {
        ErrorClass::Transient => TaskError::Refused(shown),
        _ => TaskError::Conflict(shown),
    }
}
