//! `metaStoreConfig`.

use milvus_cdc::store::open::StoreConfig;

use crate::{SOURCE, parse};

fn store(text: &str) -> Result<StoreConfig, String> {
    parse(&format!("metaStoreConfig: {text}\n{SOURCE}")).map(|config| config.store)
}

#[test]
fn the_go_servers_keys_of_a_store_are_read() {
    let both = "etcd: {address: ['http://e:2379'], enableAuth: false, username: root, password: x, enableTLS: false, tlsCertPath: c, tlsKeyPath: k, tlsCACertPath: a, tlsMinVersion: 1.3}, mysqlSourceUrl: 'root:root@tcp(127.0.0.1:3306)/milvuscdc?charset=utf8', rootPath: cdc-by-dev";
    let Ok(StoreConfig::Etcd(etcd)) = store(&format!("{{storeType: etcd, {both}}}")) else {
        panic!("no etcd");
    };
    assert_eq!(etcd.endpoints, ["http://e:2379"]);
    assert_eq!((etcd.root_path.as_str(), etcd.login), ("cdc-by-dev", None));
    assert_eq!(etcd.tls, Default::default());
    let Ok(StoreConfig::Mysql { address, root }) = store(&format!("{{storeType: mysql, {both}}}"))
    else {
        panic!("no mysql");
    };
    assert_eq!(address.to_string(), "mysql root@127.0.0.1:3306/milvuscdc");
    assert_eq!(root, "cdc-by-dev");
    let tls = "{storeType: etcd, etcd: {address: 'e:1', enableTLS: true, tlsCACertPath: a, tlsCertPath: c, tlsKeyPath: k, enableAuth: true, username: u, password: '${PW}'}}";
    let Ok(StoreConfig::Etcd(etcd)) = store(tls) else {
        panic!("no etcd");
    };
    assert_eq!(etcd.endpoints, ["https://e:1"]);
    assert_eq!(etcd.tls.identity, Some(("c".into(), "k".into())));
    assert_eq!(etcd.login.unwrap().1.expose(), "from-env");
    let old = "{storeType: etcd, etcdEndpoints: ['http://old:1'], etcd: {address: 'http://new:1'}}";
    let Ok(StoreConfig::Etcd(etcd)) = store(old) else {
        panic!("no etcd");
    };
    assert_eq!(etcd.endpoints, ["http://old:1"]);
    let url = "{storeType: postgres, postgresSourceUrl: 'postgres://u:${PW}@h:1/d'}";
    let Ok(StoreConfig::Postgres { url, root }) = store(url) else {
        panic!("no postgres");
    };
    assert_eq!(
        (url.expose(), root.as_str()),
        ("postgres://u:from-env@h:1/d", "cdc")
    );
}

#[test]
fn a_store_that_cannot_be_is_named_without_its_password() {
    for (text, parts) in [
        (
            "{storeType: mysql}",
            vec!["mysqlSourceUrl: missing", "tcp(host:port)"],
        ),
        (
            "{storeType: mysql, mysqlSourceUrl: 'u:hunter2@tcp(h:x)/d'}",
            vec!["metaStoreConfig.mysqlSourceUrl", "port"],
        ),
        (
            "{storeType: postgres, postgresSourceUrl: 'u:hunter2@h/d'}",
            vec!["metaStoreConfig.postgresSourceUrl: postgres://"],
        ),
        (
            "{storeType: postgres, postgresSourceUrl: 'postgres://u:hunter2@h:port/d'}",
            vec!["metaStoreConfig.postgresSourceUrl", "port"],
        ),
        (
            "{storeType: mysql, rootPath: 'a/b', mysqlSourceUrl: 'u:hunter2@tcp(h:1)/d'}",
            vec!["metaStoreConfig.rootPath", "a/b", "1 to 40"],
        ),
        (
            "{storeType: etcd, rootPath: '/'}",
            vec!["metaStoreConfig.rootPath"],
        ),
        (
            "{storeType: etcd, etcd: {enableAuth: true, password: hunter2}}",
            vec!["metaStoreConfig.etcd.enableAuth", "username"],
        ),
        (
            "{storeType: etcd, etcd: {enableTLS: true, tlsCertPath: c}}",
            vec!["metaStoreConfig.etcd.tlsKeyPath"],
        ),
        (
            "{secretKey: 'file:/not/there'}",
            vec!["metaStoreConfig.secretKey", "/not/there"],
        ),
    ] {
        let error = store(text).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{part:?} in {error}");
        }
        assert!(!error.contains("hunter2"), "{error}");
    }
}
