//! `sourceConfig.pulsar`.

use cdc_core::source::{PulsarConfig, PulsarLogin};
use milvus_cdc::config::{Config, Queue};

use crate::parse;

fn pulsar(settings: &str) -> Result<Config, String> {
    parse(&format!(
        "sourceConfig: {{pulsar: {{address: 'pulsar+ssl://h:6651', {settings}}}}}"
    ))
}

pub(crate) fn pulsar_of(config: &Config) -> &PulsarConfig {
    match &config.source.queue {
        Queue::Pulsar(pulsar) => pulsar,
        other => panic!("{other:?}"),
    }
}

#[test]
fn pulsar_as_the_go_server_has_it() {
    let text = "sourceConfig: {pulsar: {address: 'pulsar://localhost:6650', webAddress: 'localhost:80', webPort: 80, maxMessageSize: 5242880, tenant: public, namespace: default}}";
    let config = parse(text).unwrap();
    for key in [
        "sourceConfig.pulsar.webAddress",
        "sourceConfig.pulsar.webPort",
    ] {
        assert!(config.ignored.iter().any(|k| k == key), "{key}");
    }
    let least = parse(
        "sourceConfig: {pulsar: {address: 'pulsar://localhost:6650', maxMessageSize: '5242880'}}",
    )
    .unwrap();
    assert_eq!(pulsar_of(&least), pulsar_of(&config));
    let read = pulsar_of(&config);
    assert_eq!(
        (read.tenant.as_str(), read.namespace.as_str()),
        ("public", "default")
    );
    assert_eq!((read.max_message_size, &read.auth), (5_242_880, &None));
}

#[test]
fn pulsar_logins_in_every_form() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "t0k3n\n").unwrap();
    let path = file.path().display();
    let plugin = "org.apache.pulsar.client.impl.auth.AuthenticationToken";
    for (plugin, params) in [
        (plugin, "token:t0k3n".to_owned()),
        ("token", r#"{"token":"t0k3n"}"#.to_owned()),
        (plugin, format!("file://{path}")),
        (plugin, format!("file:{path}")),
        (plugin, format!(r#"{{"file":"{path}"}}"#)),
        (plugin, format!("token:file:{path}")),
    ] {
        let config = pulsar(&format!("authPlugin: '{plugin}', authParams: '{params}'")).unwrap();
        let auth = pulsar_of(&config).auth.as_ref().unwrap();
        assert_eq!(
            (auth.method.as_str(), auth.data.read().unwrap().expose()),
            ("token", "t0k3n"),
            "{params}"
        );
        // A file stays one: it is read again at each login.
        let kept = match &auth.data {
            PulsarLogin::File(path) => path == file.path(),
            PulsarLogin::Fixed(_) => false,
        };
        assert_eq!(kept, params.contains("file"), "{params}");
        assert!(!format!("{config:?}").contains("t0k3n"));
    }
    let config =
        pulsar(r#"authPlugin: basic, authParams: '{"userId":"u","password":"${PW}"}'"#).unwrap();
    let auth = pulsar_of(&config).auth.as_ref().unwrap();
    assert_eq!(auth.data.read().unwrap().expose(), "u:from-env");
    let config = pulsar("authPlugin: 'org.apache.pulsar.client.impl.auth.AuthenticationTls', authParams: 'tlsCertFile:/c,tlsKeyFile:/k', tlsCACertPath: /ca").unwrap();
    let read = pulsar_of(&config);
    assert_eq!(read.auth.as_ref().unwrap().method, "tls");
    assert_eq!(read.tls.client, Some(("/c".into(), "/k".into())));
    assert_eq!(read.tls.ca, Some("/ca".into()));
}

#[test]
fn what_is_wrong_with_pulsar_is_named_and_secrets_are_not_shown() {
    for (settings, part) in [
        (
            "maxMessageSize: many",
            "sourceConfig.pulsar.maxMessageSize: a number of bytes",
        ),
        ("tenant: a/b", "sourceConfig.pulsar.tenant"),
        ("namespace: ''", "sourceConfig.pulsar.namespace"),
        ("topic: x", "sourceConfig.pulsar.topic"),
        (
            "authParams: 'token:hush'",
            "sourceConfig.pulsar.authPlugin: missing",
        ),
        (
            "authPlugin: Kerberos, authParams: hush",
            "sourceConfig.pulsar.authPlugin: one of",
        ),
        (
            "authPlugin: token, authParams: hush",
            "sourceConfig.pulsar.authParams: token:",
        ),
        (
            "authPlugin: token, authParams: 'file:///nowhere/hush-not'",
            "/nowhere",
        ),
        (
            "authPlugin: token, authParams: 12345",
            "sourceConfig.pulsar.authParams: a string",
        ),
        (
            "authPlugin: tls, authParams: 'tlsCertFile:/c'",
            "belong together",
        ),
        ("tlsCertPath: /c", "sourceConfig.pulsar.tlsCertPath"),
    ] {
        let error = pulsar(settings).unwrap_err();
        assert!(error.contains(part), "{part:?} in {error}");
        assert!(
            !error.contains("hush\"") && !error.contains("12345"),
            "{error}"
        );
    }
    for address in ["h:6650", "pulsar://u:hush@h:1", "http://h:1", "pulsar://h"] {
        let error = parse(&format!(
            "sourceConfig: {{pulsar: {{address: '{address}'}}}}"
        ))
        .unwrap_err();
        assert!(
            error.contains("sourceConfig.pulsar.address") && !error.contains("hush"),
            "{error}"
        );
    }
    let text = "sourceConfig: {pulsar: {address: 'pulsar://h:1', tlsCACertPath: /ca}}";
    assert!(parse(text).unwrap_err().contains("pulsar+ssl://"));
}
