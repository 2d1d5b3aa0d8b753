//! `metaStoreConfig`: which store there is, in the Go server's keys.

use std::path::PathBuf;

use cdc_core::secret::Secret;
use cdc_core::tls::ClientTls;

use crate::config::{endpoints, resolve_secret};
use crate::fields::{Fields, clip};
use crate::store::etcd::EtcdServer;
use crate::store::open::{MysqlAddress, StoreConfig};
use crate::tls_fields;

/// Of the Go server's own configuration file.
const ROOT: &str = "cdc";
const KINDS: [&str; 4] = ["sqlite", "etcd", "mysql", "postgres"];

/// The store, and the key for the secrets in it if one is given.
pub(crate) fn read(top: &Fields<'_>, ignored: &mut Vec<String>) -> (StoreConfig, Option<Secret>) {
    let default = StoreConfig::Sqlite(PathBuf::from("./data/milvus-cdc.db"));
    let Some(store) = top.object("metaStoreConfig") else {
        return (default, None);
    };
    let kind = store
        .string("storeType")
        .unwrap_or_else(|| "sqlite".to_owned());
    let sqlite = read_sqlite(&store);
    let key = store
        .secret("secretKey")
        .and_then(|value| secret(&store, "secretKey", &value))
        .filter(|key| !key.is_empty());
    let root = store.string("rootPath").unwrap_or_else(|| ROOT.to_owned());
    let read = match kind.as_str() {
        "sqlite" => {
            ignored.extend(store.accept(&["rootPath"]));
            sqlite.map_or(default, StoreConfig::Sqlite)
        }
        "etcd" => read_etcd(&store, root, ignored).map_or(default, StoreConfig::Etcd),
        "mysql" => read_mysql(&store, root).unwrap_or(default),
        "postgres" => read_postgres(&store, root).unwrap_or(default),
        other => {
            let allowed = KINDS.join(", ");
            store.wrong(
                "storeType",
                format_args!("one of {allowed} expected, not {:?}", clip(other)),
            );
            default
        }
    };
    // What belongs to the other kinds may stay in the file, as it does in the Go server's.
    for (of, keys) in [
        ("etcd", &["etcd", "etcdEndpoints"][..]),
        ("mysql", &["mysqlSourceUrl"][..]),
        ("mysql", &tls_fields::MYSQL[..]),
        ("postgres", &["postgresSourceUrl"][..]),
    ] {
        if of != kind {
            ignored.extend(store.accept(keys));
        }
    }
    store.finish();
    (read, key)
}

fn read_sqlite(store: &Fields<'_>) -> Option<PathBuf> {
    let sqlite = store.object("sqlite")?;
    let path = sqlite.string("path");
    if path.as_deref() == Some("") {
        sqlite.wrong("path", "the path of a file expected, not \"\"");
    }
    sqlite.finish();
    path.map(PathBuf::from)
}

/// A value that may be `file:PATH`. Never shown.
fn secret(fields: &Fields<'_>, key: &'static str, value: &str) -> Option<Secret> {
    resolve_secret(value)
        .map_err(|cause| fields.wrong(key, cause))
        .ok()
}

/// The first part of the names of our tables.
fn is_table_prefix(root: &str) -> bool {
    (1..=40).contains(&root.len())
        && root
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

fn check_prefix(store: &Fields<'_>, root: String) -> Option<String> {
    if !is_table_prefix(&root) {
        store.wrong(
            "rootPath",
            format_args!(
                "with this storeType the tables' names begin with it: 1 to 40 of a-z, A-Z, 0-9, _ and - expected, not {:?}",
                clip(&root)
            ),
        );
        return None;
    }
    Some(root)
}

fn read_mysql(store: &Fields<'_>, root: String) -> Option<StoreConfig> {
    let root = check_prefix(store, root);
    let Some(given) = store.secret("mysqlSourceUrl").filter(|v| !v.is_empty()) else {
        store.wrong(
            "mysqlSourceUrl",
            "missing; user:password@tcp(host:port)/database expected",
        );
        return None;
    };
    let url = secret(store, "mysqlSourceUrl", &given)?;
    let files = tls_fields::mysql(store);
    match MysqlAddress::parse(url.expose()).and_then(|address| address.with_files(files)) {
        Ok(address) => Some(StoreConfig::Mysql {
            address,
            root: root?,
        }),
        Err(what) => {
            store.wrong("mysqlSourceUrl", what);
            None
        }
    }
}

fn read_postgres(store: &Fields<'_>, root: String) -> Option<StoreConfig> {
    let root = check_prefix(store, root);
    let Some(given) = store.secret("postgresSourceUrl").filter(|v| !v.is_empty()) else {
        store.wrong(
            "postgresSourceUrl",
            "missing; postgres://user:password@host:port/database expected",
        );
        return None;
    };
    let url = secret(store, "postgresSourceUrl", &given)?;
    let known = ["postgres://", "postgresql://"];
    if !known.iter().any(|scheme| url.expose().starts_with(scheme)) {
        store.wrong(
            "postgresSourceUrl",
            "postgres://user:password@host:port/database expected",
        );
        return None;
    }
    if let Err(cause) = crate::store::SqlServer::postgres(url.expose(), "") {
        store.wrong("postgresSourceUrl", cause);
        return None;
    }
    Some(StoreConfig::Postgres { url, root: root? })
}

fn read_etcd(store: &Fields<'_>, root: String, ignored: &mut Vec<String>) -> Option<EtcdServer> {
    if root.trim_matches('/').is_empty() {
        store.wrong("rootPath", "a path expected: all keys are below it");
    }
    let mut server = EtcdServer {
        endpoints: vec!["http://127.0.0.1:2379".to_owned()],
        root_path: root,
        login: None,
        tls: ClientTls::default(),
    };
    // As in the Go server the old key replaces the whole of the new one.
    let old = store
        .get("etcdEndpoints")
        .filter(|v| v.as_array().is_none_or(|list| !list.is_empty()));
    if let Some(old) = old {
        store.accept(&["etcd"]);
        server.endpoints = endpoints(store, "etcdEndpoints", old)?;
        return Some(server);
    }
    let Some(etcd) = store.object("etcd") else {
        return Some(server);
    };
    if let Some(found) = etcd
        .get("address")
        .and_then(|v| endpoints(&etcd, "address", v))
    {
        server.endpoints = found;
    }
    let (username, password) = (etcd.string("username"), etcd.secret("password"));
    if etcd.boolean("enableAuth") == Some(true) {
        match (username, password) {
            (Some(user), Some(given)) => {
                let password = secret(&etcd, "password", &given);
                server.login = password.map(|password| (user, password));
            }
            _ => etcd.wrong("enableAuth", "true needs username and password"),
        }
    }
    let https = server.endpoints.iter().any(|e| e.starts_with("https://"));
    if etcd.boolean("enableTLS").unwrap_or(https) {
        server.tls = tls_fields::etcd(&etcd);
        for endpoint in &mut server.endpoints {
            *endpoint = endpoint.replacen("http://", "https://", 1);
        }
    } else if https {
        // Neither is what was meant for sure, and the address alone decides how to connect.
        etcd.wrong(
            "enableTLS",
            "false contradicts https:// in address; true expected, or http://",
        );
    } else {
        ignored.extend(etcd.accept(&tls_fields::ETCD));
    }
    // Of the Go server's configuration of a source's etcd.
    etcd.accept(&["rootPath", "metaSubPath"]);
    etcd.finish();
    Some(server)
}
