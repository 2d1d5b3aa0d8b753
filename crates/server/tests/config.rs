//! The configuration: what is accepted, and what is said about the rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use cdc_core::source::kafka::{KafkaConfig, SaslMechanism};
use milvus_cdc::config::{Config, EMBEDDED, Queue};

const SOURCE: &str = "sourceConfig: {natsmq: {address: 'nats://h:4222'}}\n";

fn parse(text: &str) -> Result<Config, String> {
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
    assert_eq!(config.store.to_str(), Some("./data/milvus-cdc.db"));
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
            "metaStoreConfig: {storeType: etcd}\n",
            &["metaStoreConfig.storeType", "etcd", "sqlite"],
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
            "pulsar: {address: 'pulsar://h:6650'}",
            "sourceConfig.pulsar: this queue is not available",
        ),
        ("kafka: {}", "sourceConfig.kafka.address"),
        (
            "natsmq: {address: 'nats://h:1'}, kafka: {address: 'h:9092'}",
            "2 given",
        ),
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
    let with = |tls: bool| {
        parse(&format!(
            "sourceConfig: {{natsmq: {{address: 'nats://h:1'}}, etcd: {{enableTLS: {tls}, tlsCertPath: c, tlsKeyPath: k, tlsCACertPath: a, tlsMinVersion: 1.3}}}}"
        ))
    };
    let ignored = with(false).unwrap().ignored;
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
    assert!(
        with(true)
            .unwrap_err()
            .contains("sourceConfig.etcd.tlsCertPath: not available")
    );
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

fn kafka(keys: &str) -> Result<(KafkaConfig, Vec<String>), String> {
    let config = parse(&format!("sourceConfig: {{kafka: {{{keys}}}}}"))?;
    match config.source.queue {
        Queue::Kafka(kafka) => Ok((kafka, config.ignored)),
        other => panic!("{other:?}"),
    }
}

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
