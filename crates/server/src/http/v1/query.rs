//! The parameters of a request's address, read as strictly as its body.

use axum::extract::Query;
use axum::http::Uri;

use crate::fields::clip;
use crate::http::problem::Refusal;

/// Largest and usual number of items in one answer.
pub(super) const PAGE_MAX: u64 = 1000;
pub(super) const PAGE: u64 = 100;

/// Which part of a list is asked for.
pub(super) struct Window {
    /// The last item before it.
    pub(super) after: Option<String>,
    pub(super) limit: usize,
}

/// Reads `after` and `limit`; there is no other parameter.
pub(super) fn window(uri: &Uri) -> Result<Window, Refusal> {
    let pairs: Query<Vec<(String, String)>> = Query::try_from_uri(uri)
        .map_err(|_| Refusal::invalid("the parameters of the address cannot be read"))?;
    let (mut after, mut limit) = (None, None);
    for (key, value) in pairs.0 {
        let slot = match key.as_str() {
            "after" => &mut after,
            "limit" => &mut limit,
            other => {
                return Err(Refusal::invalid(format!(
                    "{}: unknown parameter; allowed here: after, limit",
                    clip(other)
                )));
            }
        };
        if slot.replace(value).is_some() {
            return Err(Refusal::invalid(format!("{key}: given twice")));
        }
    }
    let limit = match limit {
        None => PAGE,
        Some(text) => number(&text)
            .filter(|n| (1..=PAGE_MAX).contains(n))
            .ok_or_else(|| {
                Refusal::invalid(format!(
                    "limit: a whole number from 1 to {PAGE_MAX} expected, not {:?}",
                    clip(&text)
                ))
            })?,
    };
    Ok(Window {
        after,
        limit: limit as usize,
    })
}

impl Window {
    /// `after` as a number.
    pub(super) fn after_number(&self) -> Result<Option<u64>, Refusal> {
        let read = |text: &String| {
            number(text).ok_or_else(|| {
                Refusal::invalid(format!(
                    "after: a whole number expected, not {:?}",
                    clip(text)
                ))
            })
        };
        self.after.as_ref().map(read).transpose()
    }
}

/// Digits only: no sign, no space; no larger than ids of Milvus and of the history are, which have a sign bit.
pub(super) fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = digits.then(|| text.parse().ok()).flatten()?;
    i64::try_from(number).is_ok().then_some(number)
}
