//! The ledger as JSON: what `GET /ledger` answers and what is printed at the end.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ledger::Ledger;

/// `calls`: how often which RPC was called; `unknown`: those that are not answered here.
pub fn report(
    ledger: &Ledger,
    calls: &BTreeMap<String, u64>,
    unknown: &BTreeMap<String, u64>,
) -> Value {
    let late = |h: &super::histogram::Histogram| json!({ "count": h.total(), "p50_ms": h.at(0.5), "p99_ms": h.at(0.99), "max_ms": h.at(1.0) });
    json!({
        "counts": ledger.counts(),
        "violations": ledger.counts().violations.total(),
        "violations_in_words": ledger.words(),
        "rows_late": late(ledger.rows_late()),
        "ticks_late": late(ledger.ticks_late()),
        "channels": ledger.channels().collect::<BTreeMap<_, _>>(),
        "rpcs": calls,
        "unknown_rpcs": unknown,
    })
}
