//! The readers of what comes from outside, each by itself, for `crates/fuzz`. `Err` holds what would be answered.

use serde_json::{Map, Value};

use crate::fields::{Errors, Fields};
use crate::request::{self, Limits};
use crate::tasks::TaskLimits;

/// The body of `POST /cdc`.
pub fn cdc(limits: &Limits, body: &[u8]) -> Result<(), String> {
    crate::http::read_cdc(limits, body)
}

/// The body of `POST /api/v1/tasks`.
pub fn new_task(limits: &Limits, body: &[u8]) -> Result<(), String> {
    object(body, |data| drop(request::task(data, limits)))
}

/// The body of `PATCH /api/v1/tasks/{id}` for a task made of `current`, the body of a creation.
pub fn patch(limits: &Limits, current: &[u8], body: &[u8]) -> Result<(), String> {
    let of_tasks = TaskLimits {
        max_task_num: 1,
        memory_budget: 1 << 20,
        durable_every: std::time::Duration::from_secs(300),
        call_timeout: std::time::Duration::from_secs(1),
        answer_deadline: std::time::Duration::from_secs(1),
    };
    let mut task = None;
    object(current, |data| task = request::task(data, limits))?;
    let id = cdc_core::ids::TaskId::new("t");
    let task = task.map(|wanted| crate::tasks::task(wanted, id, 0, &of_tasks));
    let current = task.as_ref().map(|task| (&task.spec, &task.given));
    object(body, |data| drop(request::patch(data, limits, current)))
}

/// A task and the places of a collection as a Go server keeps them.
pub fn go_store(limits: &Limits, json: &[u8]) -> Result<(), String> {
    crate::import::read_kept(limits, json)
}

fn object(body: &[u8], read: impl FnOnce(Fields<'_>)) -> Result<(), String> {
    let map: Map<String, Value> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let errors = Errors::default();
    read(Fields::root(&map, &errors));
    errors.check().map_err(|all| all.join("; "))
}
