//! `metaStoreConfig`.

use cdc_core::tls::{Identity, TlsVersion};
use milvus_cdc::store::open::StoreConfig;

use crate::{SOURCE, parse};

/// A certificate and its key, in files.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let issued = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
        let files = Self(tempfile::tempdir().unwrap());
        std::fs::write(files.certificate(), issued.cert.pem()).unwrap();
        std::fs::write(files.key(), issued.signing_key.serialize_pem()).unwrap();
        files
    }

    fn certificate(&self) -> String {
        self.path("c.pem")
    }

    fn key(&self) -> String {
        self.path("k.pem")
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

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
    let files = Files::new();
    let (pem, key) = (files.certificate(), files.key());
    let tls = format!(
        "{{storeType: etcd, etcd: {{address: 'e:1', enableTLS: true, tlsCACertPath: {pem}, tlsCertPath: {pem}, tlsKeyPath: {key}, tlsMinVersion: 1.3, enableAuth: true, username: u, password: '${{PW}}'}}}}"
    );
    let Ok(StoreConfig::Etcd(etcd)) = store(&tls) else {
        panic!("no etcd");
    };
    assert_eq!(etcd.endpoints, ["https://e:1"]);
    let wanted = Identity {
        certificate: pem.clone().into(),
        key: key.clone().into(),
    };
    assert_eq!(etcd.tls.identity, Some(wanted.clone()));
    assert_eq!(etcd.tls.oldest, TlsVersion::V13);
    assert_eq!(etcd.login.unwrap().1.expose(), "from-env");
    let old = "{storeType: etcd, etcdEndpoints: ['http://old:1'], etcd: {address: 'http://new:1'}}";
    let Ok(StoreConfig::Etcd(etcd)) = store(old) else {
        panic!("no etcd");
    };
    assert_eq!(etcd.endpoints, ["http://old:1"]);
    // The address alone switches it on, and its files are not forgotten.
    let https =
        format!("{{storeType: etcd, etcd: {{address: 'https://e:1', tlsCACertPath: {pem}}}}}");
    let Ok(StoreConfig::Etcd(etcd)) = store(&https) else {
        panic!("no etcd");
    };
    assert_eq!(etcd.tls.trusted, Some(pem.clone().into()));
    let mysql = format!(
        "{{storeType: mysql, mysqlSourceUrl: 'u@tcp(h:1)/d?tls=true', mysqlTLSCACertPath: {pem}, mysqlTLSCertPath: {pem}, mysqlTLSKeyPath: {key}}}"
    );
    let Ok(StoreConfig::Mysql { address, .. }) = store(&mysql) else {
        panic!("no mysql");
    };
    assert_eq!(address.files.trusted, Some(pem.into()));
    assert_eq!(address.files.identity, Some(wanted));
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
            "{storeType: etcd, etcd: {enableTLS: true, tlsCACertPath: /nowhere/ca.pem}}",
            vec![
                "metaStoreConfig.etcd.tlsCACertPath",
                "/nowhere/ca.pem",
                "PEM",
            ],
        ),
        (
            "{storeType: etcd, etcd: {address: 'https://h:1', enableTLS: false}}",
            vec!["metaStoreConfig.etcd.enableTLS", "https://"],
        ),
        (
            "{storeType: mysql, mysqlSourceUrl: 'u:hunter2@tcp(h:1)/d?tls=mine'}",
            vec![
                "metaStoreConfig.mysqlSourceUrl",
                "metaStoreConfig.mysqlTLSCACertPath",
            ],
        ),
        (
            "{storeType: mysql, mysqlSourceUrl: 'u:hunter2@tcp(h:1)/d?tls=true', mysqlTLSCACertPath: /nowhere/ca.pem}",
            vec![
                "metaStoreConfig.mysqlTLSCACertPath",
                "/nowhere/ca.pem",
                "PEM",
            ],
        ),
        (
            "{storeType: mysql, mysqlSourceUrl: 'u:hunter2@tcp(h:1)/d?tls=true', mysqlTLSKeyPath: k}",
            vec!["metaStoreConfig.mysqlTLSCertPath"],
        ),
        (
            "{storeType: postgres, postgresSourceUrl: 'postgres://u:hunter2@h:1/d?sslmode=allow'}",
            vec![
                "metaStoreConfig.postgresSourceUrl",
                "sslmode=allow",
                "prefer",
            ],
        ),
        (
            "{storeType: postgres, postgresSourceUrl: 'postgres://u:hunter2@h:1/d?sslpassword=hunter2'}",
            vec!["metaStoreConfig.postgresSourceUrl", "sslpassword"],
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

#[test]
fn files_that_nothing_would_look_at_are_refused() {
    let files = Files::new();
    let (pem, key) = (files.certificate(), files.key());
    for tls in ["", "?tls=skip-verify", "?tls=preferred"] {
        let error = store(&format!(
            "{{storeType: mysql, mysqlSourceUrl: 'u:hunter2@tcp(h:1)/d{tls}', mysqlTLSCACertPath: {pem}}}"
        ))
        .unwrap_err();
        assert!(error.contains("tls=true expected") && error.contains("mysqlTLSCACertPath"));
        assert!(!error.contains("hunter2"), "{error}");
    }
    let own = format!(
        "{{storeType: mysql, mysqlSourceUrl: 'u:hunter2@tcp(h:1)/d', mysqlTLSCertPath: {pem}, mysqlTLSKeyPath: {key}}}"
    );
    let error = store(&own).unwrap_err();
    assert!(error.contains("tls=true") && error.contains("mysqlTLSCertPath"));
}
