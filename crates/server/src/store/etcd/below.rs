//! What another program keeps in the same etcd.

use std::collections::BTreeMap;

use cdc_core::store::StoreError;
use etcd_client::{GetOptions, Txn, TxnOp, TxnOpResponse};

use super::link::{EtcdServer, Link};

/// Keys and values below each prefix, all at one instant. Keys that are not text are left out.
///
/// # Errors
/// etcd cannot be asked.
pub async fn read_below<const N: usize>(
    server: &EtcdServer,
    prefixes: [&str; N],
) -> Result<[BTreeMap<String, Vec<u8>>; N], StoreError> {
    let link = Link::new(server.clone());
    let get = |prefix| TxnOp::get(prefix, Some(GetOptions::new().with_prefix()));
    let answer = link
        .txn(Txn::new().and_then(prefixes.map(get).to_vec()))
        .await?;
    let mut found = [const { BTreeMap::new() }; N];
    for (part, response) in found.iter_mut().zip(answer.op_responses()) {
        let TxnOpResponse::Get(mut response) = response else {
            return Err(StoreError::Unavailable(
                "etcd answered something else".to_owned(),
            ));
        };
        for kv in response.take_kvs() {
            let (key, value) = kv.into_key_value();
            if let Ok(key) = String::from_utf8(key) {
                part.insert(key, value);
            }
        }
    }
    Ok(found)
}
