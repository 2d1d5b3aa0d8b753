//! The configuration: what is accepted, and what is said about the rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use milvus_cdc::config::access::{Open, Role};
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
        (
            "kafka: {address: 'h:9092'}",
            "sourceConfig.kafka: this queue is not available",
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

/// The Go server's own file, and what of it is not available in this version yet. Empty this list as that changes.
const GO_FILE: &str = include_str!("fixtures/go_cdc.yaml");
const NOT_YET: &[&str] = &["metaStoreConfig.storeType", "sourceConfig.pulsar"];

#[test]
fn the_go_servers_own_file_is_understood() {
    match parse(GO_FILE) {
        Ok(config) => {
            assert_eq!(NOT_YET, &[] as &[&str], "this is available now");
            assert_eq!(config.address, "0.0.0.0:8444");
        }
        Err(error) => {
            let wrong: Vec<&str> = error.lines().skip(1).map(str::trim).collect();
            let known = |line: &&str| {
                NOT_YET.iter().any(|key| line.starts_with(key))
                    || line.starts_with("natsmq | rocksmq")
                    || line.starts_with("sourceConfig.natsmq | rocksmq")
            };
            let others: Vec<_> = wrong.iter().filter(|line| !known(line)).collect();
            assert!(others.is_empty(), "{others:?}");
            for key in NOT_YET {
                assert!(
                    wrong.iter().any(|line| line.starts_with(key)),
                    "{key} is available now"
                );
            }
        }
    }
    // With a queue and a store of this version everything else of it is.
    let pulsar = GO_FILE.find("  pulsar:").unwrap();
    let end = GO_FILE.find("maxNameLength").unwrap();
    let natsmq = "  natsmq:\n    address: nats://127.0.0.1:4222\n";
    let text = format!("{}{natsmq}{}", &GO_FILE[..pulsar], &GO_FILE[end..]);
    let config = parse(&text.replacen("storeType: etcd", "storeType: sqlite", 1)).unwrap();
    assert_eq!(
        (config.address.as_str(), config.max_task_num),
        ("0.0.0.0:8444", 100)
    );
    assert_eq!(config.source.etcd.endpoints, ["http://127.0.0.1:2379"]);
    assert_eq!(config.access.warnings(&config.address).len(), 2);
    for key in [
        "detectDeadLock",
        "batchMode",
        "sourceConfig.readChanLen",
        "sourceConfig.etcd.tlsCertPath",
    ] {
        assert!(
            config.ignored.iter().any(|k| k == key),
            "{key} in {:?}",
            config.ignored
        );
    }
}

#[test]
fn security_and_limits_are_checked() {
    let config = parse(&format!(
        "security: {{open: [healthz, docs], tls: {{certFile: c, keyFile: k, clientCAFile: ca}}, tokens: [\
           {{name: ops, token: '${{PW}}-0123456789', role: full}}, {{name: eyes, token: 'sixteen-or-more-', role: read}}]}}\n\
         limits: {{requestsPerSecond: 5, burst: 7, concurrentRequests: 3, connections: 9, eventStreams: 0, bodyBytes: 2048, \
           bodyTimeoutMs: 400, headerTimeoutMs: 500, writeTimeoutMs: 600}}\n{SOURCE}"
    ))
    .unwrap();
    let access = config.access;
    let open: Vec<_> = access.open.into_iter().collect();
    assert_eq!(open, [Open::Healthz, Open::Docs]);
    assert_eq!(access.tls.unwrap().client_ca.unwrap().to_str(), Some("ca"));
    let tokens: Vec<_> = access
        .tokens
        .iter()
        .map(|t| (t.name.as_str(), t.token.expose(), t.role))
        .collect();
    assert_eq!(
        tokens,
        [
            ("ops", "from-env-0123456789", Role::Full),
            ("eyes", "sixteen-or-more-", Role::Read)
        ]
    );
    assert!(!format!("{:?}", access.tokens).contains("from-env"));
    assert_eq!(
        (access.requests_per_second.get(), access.burst.get()),
        (5, 7)
    );
    assert_eq!(
        (
            access.concurrent_requests,
            access.connections,
            access.event_streams
        ),
        (3, 9, 0)
    );
    assert_eq!(
        (access.body.bytes, access.body.timeout.as_millis()),
        (2048, 400)
    );
    assert_eq!(
        (
            access.header_timeout.as_millis(),
            access.write_timeout.as_millis()
        ),
        (500, 600)
    );
    assert_eq!(
        parse(SOURCE).unwrap().access,
        parse(EMBEDDED).unwrap().access
    );

    let token = "token: hush-hush-hush-hush";
    let cases: &[(&str, &str)] = &[
        (
            "security: {tokens: [{name: a}]}",
            "security.tokens[0].token: missing",
        ),
        (
            "security: {tokens: [{token: hush}]}",
            "security.tokens[0].token: at least 16",
        ),
        (
            "security: {tokens: [{token: 5}]}",
            "security.tokens[0].token: a string expected",
        ),
        (
            "security: {tokens: [{token: 'file:/nowhere/t'}]}",
            "/nowhere/t",
        ),
        (
            &format!("security: {{tokens: [{{{token}, name: a}}]}}"),
            "security.tokens[0].role: missing",
        ),
        (
            &format!("security: {{tokens: [{{{token}, name: a, role: admin}}]}}"),
            "one of read, full",
        ),
        (
            &format!("security: {{tokens: [{{{token}, name: 'a b', role: full}}]}}"),
            "security.tokens[0].name",
        ),
        (
            &format!(
                "security: {{tokens: [{{{token}, name: a, role: full}}, {{{token}, name: b, role: full}}]}}"
            ),
            "security.tokens[1].token: two names",
        ),
        (
            "security: {open: [cdc]}",
            "healthz, readyz, metrics, docs expected, not \"cdc\"",
        ),
        (
            "security: {tls: {certFile: c}}",
            "security.tls.certFile: certFile and keyFile",
        ),
        ("security: {token: x}", "security.token: unknown field"),
        ("limits: {burst: 0}", "limits.burst"),
        ("limits: {headerTimeoutMs: 1}", "from 100"),
        ("limits: {requests: 1}", "limits.requests: unknown field"),
    ];
    for (text, part) in cases {
        let error = parse(&format!("{text}\n{SOURCE}")).unwrap_err();
        assert!(
            error.contains(part) && !error.contains("hush"),
            "{part:?} in {error}"
        );
    }
}
