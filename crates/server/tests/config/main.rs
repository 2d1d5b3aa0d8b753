//! The configuration: what is accepted, and what is said about the rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod pulsar;
mod store;

#[cfg(feature = "kafka")]
use cdc_core::source::kafka::{KafkaConfig, SaslMechanism};

use cdc_core::tls::{ClientTls, Identity, TlsVersion};
use milvus_cdc::config::{Config, EMBEDDED, Queue};
use milvus_cdc::store::open::StoreConfig;

pub(crate) const SOURCE: &str = "sourceConfig: {natsmq: {address: 'nats://h:4222'}}\n";

pub(crate) fn parse(text: &str) -> Result<Config, String> {
    let environment = |name: &str| (name == "PW").then(|| "from-env".to_owned());
    Config::parse(text, "test.yaml", &environment).map_err(|e| e.to_string())
}

#[test]
fn the_embedded_defaults_are_valid() {
    let config = parse(EMBEDDED).unwrap();
    assert_eq!(
        (
            config.address.as_str(),
            config.max_task_num,
            config.max_name_length
        ),
        ("127.0.0.1:8444", 100, 256)
    );
    assert_eq!(config.memory_budget, 64 * 1024 * 1024);
    assert_eq!(
        config.store,
        StoreConfig::Sqlite("./data/milvus-cdc.db".into())
    );
    let least = parse(SOURCE).unwrap();
    assert_eq!(
        (least.address, least.call_timeout, least.store),
        (config.address, config.call_timeout, config.store)
    );
    assert_eq!(
        least.source.queue,
        Queue::Natsmq {
            address: "nats://h:4222".to_owned()
        }
    );
}

#[test]
fn keys_of_the_go_server_that_mean_nothing_here_are_named() {
    let text = "detectDeadLock: false\nbatchMode: true\nsourceConfig: {readChanLen: 4, defaultPartitionName: _default, natsmq: {address: 'nats://h:1'}}";
    let ignored = parse(text).unwrap().ignored;
    for key in [
        "detectDeadLock",
        "batchMode",
        "sourceConfig.readChanLen",
        "sourceConfig.defaultPartitionName",
    ] {
        assert!(ignored.iter().any(|k| k == key), "{key} in {ignored:?}");
    }
}

#[test]
fn every_error_names_the_key_and_what_is_allowed() {
    let cases: &[(&str, &[&str])] = &[
        ("maxTasks: 5\n", &["maxTasks", "unknown", "maxTaskNum"]),
        (
            "maxTaskNum: many\n",
            &["maxTaskNum", "many", "from 1 to 10000"],
        ),
        ("maxTaskNum: 0\n", &["maxTaskNum", "not 0", "from 1"]),
        ("maxNameLength: -3\n", &["maxNameLength", "-3"]),
        ("memoryBudgetMB: 1\n", &["memoryBudgetMB", "from 4"]),
        ("address: nowhere\n", &["address", "nowhere", "host:port"]),
        ("logLevel: loud\n", &["logLevel", "loud", "info"]),
        (
            "logLevel: 'info,cdc_core=loud'\n",
            &["logLevel", "cdc_core=loud"],
        ),
        ("logFormat: xml\n", &["logFormat", "xml", "text, json"]),
        (
            "target: {callTimeoutMs: 1}\n",
            &["target.callTimeoutMs", "from 100"],
        ),
        (
            "target: {timeout: 1}\n",
            &["target.timeout", "unknown", "callTimeoutMs"],
        ),
        (
            "metaStoreConfig: {storeType: oracle}\n",
            &[
                "metaStoreConfig.storeType",
                "oracle",
                "sqlite, etcd, mysql, postgres",
            ],
        ),
        (
            "metaStoreConfig: {sqlite: {file: x}}\n",
            &["metaStoreConfig.sqlite.file", "path"],
        ),
        ("dryRun: true\n", &["dryRun"]),
    ];
    for (text, parts) in cases {
        let error = parse(&format!("{text}{SOURCE}")).unwrap_err();
        assert!(error.contains("1 error(s)"), "{error}");
        for part in *parts {
            assert!(error.contains(part), "{part:?} in {error}");
        }
    }
}

#[test]
fn all_errors_are_said_at_once() {
    let error = parse(&format!("maxTaskNum: x\nlogFormat: y\n{SOURCE}")).unwrap_err();
    assert!(
        error.contains("maxTaskNum") && error.contains("logFormat") && error.contains("2 error(s)"),
        "{error}"
    );
}

#[test]
fn exactly_one_queue() {
    for (queues, part) in [
        (
            "natsmq: {address: 'nats://h:1'}, rocksmq: {path: /x}",
            "2 given",
        ),
        ("etcd: {rootPath: by-dev}", "0 given"),
        (
            "pulsar: {address: 'pulsar://h:1'}, rocksmq: {path: /x}",
            "2 given",
        ),
        ("kafka: {address: 'h:9092'}, rocksmq: {path: /x}", "2 given"),
        ("natsmq: {address: 'h:4222'}", "sourceConfig.natsmq.address"),
        ("rocksmq: {}", "sourceConfig.rocksmq.path"),
    ] {
        let error = parse(&format!("sourceConfig: {{{queues}}}")).unwrap_err();
        assert!(error.contains(part), "{part:?} in {error}");
    }
    assert!(parse("{}").unwrap_err().contains("sourceConfig: missing"));
}

#[test]
fn secrets_come_from_the_environment_or_a_file_and_are_never_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from-file\n").unwrap();
    let with = |password: &str| {
        parse(&format!(
            "sourceConfig: {{natsmq: {{address: 'nats://h:1'}}, etcd: {{enableAuth: true, username: u, password: '{password}'}}}}"
        ))
    };
    for (reference, value) in [
        ("${PW}", "from-env"),
        (&format!("file:{}", file.path().display()), "from-file"),
        ("plain-pw", "plain-pw"),
    ] {
        let config = with(reference).unwrap();
        assert_eq!(config.source.etcd.login.as_ref().unwrap().1.expose(), value);
        assert!(!format!("{config:?}").contains(value));
    }
    assert!(
        with("${NOT_SET}")
            .unwrap_err()
            .contains("NOT_SET is not set")
    );
    assert!(
        with("file:/nowhere/pw")
            .unwrap_err()
            .contains("/nowhere/pw")
    );
    let error = parse("sourceConfig: {natsmq: {address: 'nats://u:hush@h:1'}, etcd: {password: 12345, address: 'http://u:hush@h:1'}}").unwrap_err();
    assert!(
        !error.contains("hush") && !error.contains("12345"),
        "{error}"
    );
}

#[test]
fn broken_yaml_and_doubled_keys_say_where() {
    assert!(parse("a: [1").unwrap_err().contains("line"));
    assert!(
        parse("maxTaskNum: 1\nmaxTaskNum: 2\n")
            .unwrap_err()
            .contains("duplicate")
    );
    assert!(parse("- 1").unwrap_err().contains("mapping"));
}

#[test]
fn a_named_file_that_is_missing_is_an_error() {
    let error = Config::load(Some(std::path::Path::new("/nowhere/cdc.yaml")))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nowhere/cdc.yaml"), "{error}");
}

#[test]
fn certificates_without_tls_are_named_as_ignored() {
    let text = "sourceConfig: {natsmq: {address: 'nats://h:1'}, etcd: {enableTLS: false, tlsCertPath: c, tlsKeyPath: k, tlsCACertPath: a, tlsMinVersion: 1.3}}";
    let ignored = parse(text).unwrap().ignored;
    for key in [
        "tlsCertPath",
        "tlsKeyPath",
        "tlsCACertPath",
        "tlsMinVersion",
    ] {
        let named = ignored
            .iter()
            .filter(|k| **k == format!("sourceConfig.etcd.{key}"));
        assert_eq!(named.count(), 1, "{key} in {ignored:?}");
    }
}

#[test]
fn the_certificates_of_etcd_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let issued = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let certificate = file("c.pem", &issued.cert.pem());
    let key = file("k.pem", &issued.signing_key.serialize_pem());
    let other = rcgen::KeyPair::generate().unwrap();
    let other = file("other.pem", &other.serialize_pem());
    let with = |etcd: &str| {
        parse(&format!(
            "sourceConfig: {{natsmq: {{address: 'nats://h:1'}}, etcd: {{address: 'h:1', enableTLS: true, {etcd}}}}}"
        ))
    };
    let etcd = |text: &str| with(text).unwrap().source.etcd;
    let all = etcd(&format!(
        "tlsCACertPath: {certificate}, tlsCertPath: {certificate}, tlsKeyPath: {key}, tlsMinVersion: 1.3"
    ));
    assert_eq!(all.endpoints, ["https://h:1"]);
    assert_eq!(
        all.tls,
        ClientTls {
            trusted: Some(certificate.clone().into()),
            identity: Some(Identity {
                certificate: certificate.clone().into(),
                key: key.clone().into(),
            }),
            server_name: None,
            oldest: TlsVersion::V13,
        }
    );
    // No certificates: the system's, and no login by certificate. Older versions than 1.2 are not spoken.
    assert_eq!(etcd("tlsMinVersion: 1.0").tls, ClientTls::default());
    assert_eq!(
        etcd("tlsCertPath: '', tlsKeyPath: ''").tls,
        ClientTls::default()
    );
    // https is enough.
    let https = format!(
        "sourceConfig: {{natsmq: {{address: 'nats://h:1'}}, etcd: {{address: 'https://h:1', tlsCACertPath: {certificate}}}}}"
    );
    assert_eq!(
        parse(&https).unwrap().source.etcd.tls.trusted,
        Some(certificate.clone().into())
    );
    for (etcd, parts) in [
        (
            "tlsMinVersion: 1.4".to_owned(),
            vec!["tlsMinVersion", "1.0, 1.1, 1.2, 1.3", "1.4"],
        ),
        (
            "tlsCACertPath: /nowhere/ca.pem".to_owned(),
            vec!["tlsCACertPath", "/nowhere/ca.pem", "PEM file"],
        ),
        (
            format!("tlsCACertPath: {key}"),
            vec!["tlsCACertPath", "no certificate", "PEM file"],
        ),
        (
            format!("tlsCertPath: {certificate}"),
            vec!["tlsKeyPath: missing", "tlsCertPath"],
        ),
        (
            format!("tlsKeyPath: {key}"),
            vec!["tlsCertPath: missing", "tlsKeyPath"],
        ),
        (
            format!("tlsCertPath: {certificate}, tlsKeyPath: {other}"),
            vec![
                "tlsKeyPath",
                "do not belong together",
                "the key of that certificate",
            ],
        ),
        (
            format!("tlsCertPath: {certificate}, tlsKeyPath: {certificate}"),
            vec!["tlsKeyPath", "no private key"],
        ),
        (
            "tlsCACertPath: 5".to_owned(),
            vec!["tlsCACertPath: a string expected, not 5"],
        ),
    ] {
        let error = with(&etcd).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}

#[test]
fn the_paths_below_etcd_have_milvus_defaults() {
    let etcd = parse(SOURCE).unwrap().source.etcd;
    assert_eq!(
        (
            etcd.root_path.as_str(),
            etcd.meta_sub_path.as_str(),
            etcd.kv_sub_path.as_str()
        ),
        ("by-dev", "meta", "kv")
    );
    let text = "sourceConfig: {natsmq: {address: 'nats://h:1'}, etcd: {rootPath: r, metaSubPath: m, kvSubPath: k}}";
    let etcd = parse(text).unwrap().source.etcd;
    assert_eq!(
        (
            etcd.root_path.as_str(),
            etcd.meta_sub_path.as_str(),
            etcd.kv_sub_path.as_str()
        ),
        ("r", "m", "k")
    );
}

#[test]
fn the_old_etcd_keys_replace_the_new_ones_as_in_the_go_server() {
    let text = "sourceConfig: {natsmq: {address: 'nats://h:1'}, etcdAddress: ['old:1'], etcdRootPath: old-root, etcd: {address: 'new:1', metaSubPath: new, enableAuth: true, username: u, password: p}}";
    let config = parse(text).unwrap();
    let etcd = &config.source.etcd;
    assert_eq!(etcd.endpoints, ["http://old:1"]);
    assert_eq!(
        (etcd.root_path.as_str(), etcd.meta_sub_path.as_str()),
        ("old-root", "meta")
    );
    assert!(etcd.login.is_none());
    assert!(
        config.ignored.contains(&"sourceConfig.etcd".to_owned()),
        "{:?}",
        config.ignored
    );

    let text = "sourceConfig: {natsmq: {address: 'nats://h:1'}, etcdAddress: [], etcdRootPath: old-root, etcd: {address: 'new:1'}}";
    let config = parse(text).unwrap();
    assert_eq!(config.source.etcd.endpoints, ["http://new:1"]);
    assert_eq!(config.source.etcd.root_path, "by-dev");
    assert!(
        config
            .ignored
            .contains(&"sourceConfig.etcdRootPath".to_owned()),
        "{:?}",
        config.ignored
    );
}

#[test]
fn etcd_is_reached_in_one_way() {
    let text = "sourceConfig: {natsmq: {address: 'nats://h:1'}, etcd: {address: ['http://a:1', 'https://b:1']}}";
    let error = parse(text).unwrap_err();
    assert!(
        error.contains("sourceConfig.etcd.address: all with https://"),
        "{error}"
    );
    let text = "sourceConfig: {natsmq: {address: 'nats://h:1'}, etcd: {enableTLS: true, address: ['a:1', 'http://b:1']}}";
    assert_eq!(
        parse(text).unwrap().source.etcd.endpoints,
        ["https://a:1", "https://b:1"]
    );
}

/// The Go server's own file.
const GO_FILE: &str = include_str!("../fixtures/go_cdc.yaml");

#[test]
fn the_go_servers_own_file_is_understood() {
    let config = parse(GO_FILE).unwrap();
    assert_eq!(
        (config.address.as_str(), config.max_task_num),
        ("0.0.0.0:8444", 100)
    );
    let StoreConfig::Etcd(store) = &config.store else {
        panic!("{}", config.store.shown());
    };
    assert_eq!(store.endpoints, ["http://127.0.0.1:2379"]);
    assert_eq!(store.root_path, "cdc-by-dev");
    assert_eq!(config.source.etcd.endpoints, ["http://127.0.0.1:2379"]);
    assert_eq!(pulsar::pulsar_of(&config).max_message_size, 5_242_880);
    assert_eq!(config.access.warnings(&config.address).len(), 2);
    // None of it is refused; what means nothing here is said.
    assert_eq!(
        config.ignored,
        [
            "batchMode",
            "detectDeadLock",
            "metaStoreConfig.etcd.tlsCACertPath",
            "metaStoreConfig.etcd.tlsCertPath",
            "metaStoreConfig.etcd.tlsKeyPath",
            "metaStoreConfig.etcd.tlsMinVersion",
            "metaStoreConfig.mysqlSourceUrl",
            "sourceConfig.defaultPartitionName",
            "sourceConfig.etcd.tlsCACertPath",
            "sourceConfig.etcd.tlsCertPath",
            "sourceConfig.etcd.tlsKeyPath",
            "sourceConfig.etcd.tlsMinVersion",
            "sourceConfig.pulsar.webAddress",
            "sourceConfig.readChanLen"
        ]
    );
}

#[cfg(feature = "kafka")]
fn kafka(keys: &str) -> Result<(KafkaConfig, Vec<String>), String> {
    let config = parse(&format!("sourceConfig: {{kafka: {{{keys}}}}}"))?;
    match config.source.queue {
        Queue::Kafka(kafka) => Ok((kafka, config.ignored)),
        other => panic!("{other:?}"),
    }
}

#[cfg(feature = "kafka")]
#[test]
fn kafka_has_the_keys_of_the_go_server_and_milvus_defaults() {
    let (plain, _) = kafka("address: 'a:9092,b:9093'").unwrap();
    assert_eq!(plain.brokers, "a:9092,b:9093");
    assert!(plain.tls.is_none() && plain.sasl.is_none());

    let (login, _) = kafka("address: 'h:1', saslUsername: u, saslPassword: '${PW}'").unwrap();
    let sasl = login.sasl.clone().unwrap();
    assert_eq!(
        (
            sasl.mechanism,
            sasl.username.as_str(),
            sasl.password.expose()
        ),
        (SaslMechanism::Plain, "u", "from-env")
    );
    assert!(login.tls.as_ref().unwrap().verify_hostname);
    assert!(!format!("{login:?}").contains("from-env"));

    let (login, ignored) = kafka(
        "address: 'h:1', saslUsername: u, saslPassword: p, saslMechanisms: SCRAM-SHA-512, securityProtocol: SASL_PLAINTEXT, tlsCACertPath: /nowhere, consumer: {fetch.wait.max.ms: '1'}",
    )
    .unwrap();
    assert_eq!(login.sasl.unwrap().mechanism, SaslMechanism::ScramSha512);
    assert!(login.tls.is_none());
    assert_eq!(
        ignored,
        [
            "sourceConfig.kafka.consumer",
            "sourceConfig.kafka.tlsCACertPath"
        ]
    );
}

#[cfg(feature = "kafka")]
#[test]
fn kafka_reads_passwords_and_certificates_from_files() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from-file\n").unwrap();
    let path = file.path().display();
    let (config, _) = kafka(&format!(
        "address: 'h:1', securityProtocol: SASL_SSL, saslUsername: u, saslPassword: 'file:{path}', tlsCACertPath: '{path}', tlsCertPath: '{path}', tlsKeyPath: '{path}', tlsKeyPassword: 'file:{path}', tlsVerifyHostname: false"
    ))
    .unwrap();
    assert_eq!(config.sasl.as_ref().unwrap().password.expose(), "from-file");
    let tls = config.tls.as_ref().unwrap();
    assert_eq!(tls.ca.as_deref(), Some(file.path()));
    assert!(!tls.verify_hostname);
    let client = tls.client.as_ref().unwrap();
    assert_eq!(client.key_password.expose(), "from-file");
    assert!(!format!("{config:?}").contains("from-file"));
}

#[cfg(feature = "kafka")]
#[test]
fn what_is_wrong_with_kafka_names_the_key_and_never_the_password() {
    let cases: &[(&str, &[&str])] = &[
        ("address: h", &["kafka.address", "host:port"]),
        ("address: 'u:hush@h:1'", &["kafka.address"]),
        (
            "address: 'h:1', securityProtocol: TLS",
            &["kafka.securityProtocol", "TLS", "SASL_SSL"],
        ),
        (
            "address: 'h:1', saslUsername: u, saslPassword: hush, saslMechanisms: GSSAPI",
            &["kafka.saslMechanisms", "GSSAPI", "SCRAM-SHA-256"],
        ),
        (
            "address: 'h:1', securityProtocol: SASL_SSL",
            &["kafka.securityProtocol", "saslUsername"],
        ),
        (
            "address: 'h:1', saslUsername: u",
            &["kafka.saslUsername", "saslPassword"],
        ),
        (
            "address: 'h:1', saslPassword: hush",
            &["kafka.saslPassword", "saslUsername"],
        ),
        (
            "address: 'h:1', saslUsername: u, saslPassword: hush, securityProtocol: SSL",
            &["kafka.saslUsername", "SASL_SSL"],
        ),
        (
            "address: 'h:1', saslUsername: u, saslPassword: 'file:/nowhere/pw'",
            &["kafka.saslPassword", "/nowhere/pw"],
        ),
        (
            "address: 'h:1', securityProtocol: SSL, tlsCACertPath: /nowhere/ca",
            &["kafka.tlsCACertPath", "/nowhere/ca"],
        ),
        (
            "address: 'h:1', securityProtocol: SSL, tlsKeyPath: /dev/null",
            &["kafka.tlsKeyPath", "tlsCertPath"],
        ),
        ("address: 'h:1', topic: x", &["kafka.topic", "unknown"]),
    ];
    for (keys, parts) in cases {
        let error = kafka(keys).unwrap_err();
        assert!(error.contains("1 error(s)"), "{keys}: {error}");
        assert!(!error.contains("hush"), "{error}");
        for part in *parts {
            assert!(error.contains(part), "{part:?} in {error}");
        }
    }
}

#[test]
fn where_the_sources_rows_are_read_is_said_with_a_login() {
    let with = |milvus: &str| {
        parse(&format!(
            "sourceConfig: {{natsmq: {{address: 'nats://h:4222'}}, milvus: {milvus}}}"
        ))
    };
    assert_eq!(parse(SOURCE).unwrap().source.milvus, None);
    let login = |milvus: &str| {
        let config = with(milvus).unwrap();
        let read = config.source.milvus.unwrap();
        (read.uri, read.token.expose().to_owned())
    };
    let uri = "http://h:19530".to_owned();
    assert_eq!(
        login("{uri: 'http://H:19530/'}"),
        (uri.clone(), String::new())
    );
    assert_eq!(
        login("{uri: 'http://h:19530', token: 'root:${PW}'}"),
        (uri.clone(), "root:from-env".to_owned())
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "secret\n").unwrap();
    let text = format!(
        "{{uri: 'http://h:19530', username: u, password: 'file:{}'}}",
        file.display()
    );
    assert_eq!(login(&text), (uri, "u:secret".to_owned()));
    for (milvus, part) in [
        ("{}", "sourceConfig.milvus.uri: missing"),
        (
            "{uri: 'http://u:p@h:1'}",
            "sourceConfig.milvus.uri: http://host:port",
        ),
        (
            "{uri: 'http://h:19530', username: u}",
            "sourceConfig.milvus.token: either token, or username and password",
        ),
        (
            "{uri: 'http://h:19530', token: 'file:/nowhere'}",
            "sourceConfig.milvus.token: cannot read /nowhere",
        ),
        (
            "{uri: 'https://h:19530', tlsCACertPath: /nowhere}",
            "sourceConfig.milvus.tlsCACertPath",
        ),
        (
            "{uri: 'http://h:19530', user: u}",
            "sourceConfig.milvus.user",
        ),
    ] {
        let error = with(milvus).unwrap_err();
        assert!(error.contains(part), "{milvus}: {error}");
    }
}
