//! `task quarantine`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::quarantine::MESSAGE_BYTES;
use serde_json::Value;
use ureq::http::Method;

use super::http::Client;
use super::task::{all, part, path, show};
use super::{Failure, table};
use crate::cli::QuarantineCommand;

pub(super) fn run(client: &Client, command: &QuarantineCommand) -> Result<(), Failure> {
    match command {
        QuarantineCommand::List { id } => {
            let found = all(client, &format!("{}/quarantine", path(id)))?;
            show(client, &Value::Array(found), |found| {
                table::quarantine(found.as_array().map_or(&[], Vec::as_slice))
            });
            Ok(())
        }
        QuarantineCommand::Show { id, key, save } => {
            let bytes = if save.is_some() { MESSAGE_BYTES } else { 0 };
            let found = client.get(&format!("{}?bytes={bytes}", one(id, key)))?;
            if let Some(file) = save {
                let bytes = found["bytes"]
                    .as_str()
                    .and_then(|b| STANDARD.decode(b).ok());
                let bytes = bytes.ok_or_else(|| {
                    let why = found["not_kept"].as_str();
                    let why = why.unwrap_or("this token may only read");
                    Failure::new(7, format!("there are no bytes to save: {why}"))
                })?;
                std::fs::write(file, bytes)
                    .map_err(|e| Failure::new(1, format!("{}: {e}", file.display())))?;
            }
            show(client, &found, table::quarantined);
            Ok(())
        }
        QuarantineCommand::Retry { id, key } => judge(client, id, key, "retry"),
        QuarantineCommand::Drop { id, key } => judge(client, id, key, "drop"),
    }
}

fn one(id: &str, key: &str) -> String {
    format!("{}/quarantine/{}", path(id), part(key))
}

fn judge(client: &Client, id: &str, key: &str, verdict: &str) -> Result<(), Failure> {
    let address = format!("{}/{verdict}", one(id, key));
    let judged = client.ask(Method::POST, &address, None)?;
    show(client, &judged, table::quarantined);
    Ok(())
}
