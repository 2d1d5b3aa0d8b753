//! `sourceConfig.kafka`: the keys of the Go server, and those for TLS that it lacks.

use std::path::PathBuf;

use cdc_core::secret::Secret;
use cdc_core::source::kafka::{ClientCertificate, KafkaConfig, KafkaSasl, KafkaTls, SaslMechanism};

use super::{Queue, TIMEOUT, resolve_secret};
use crate::fields::Fields;

/// What a reader may fetch ahead when the memory budget is not known yet; [`prefetch`] says it then.
const PREFETCH: usize = 64 << 10;
const TLS_KEYS: [&str; 5] = [
    "tlsCACertPath",
    "tlsCertPath",
    "tlsKeyPath",
    "tlsKeyPassword",
    "tlsVerifyHostname",
];

/// Bytes that one reader may fetch ahead. Twice of it can be there, so sixteen readers have an eighth of the budget on
/// top of it at most.
pub fn prefetch(memory_budget: usize) -> usize {
    memory_budget / 256
}

#[derive(Clone, Copy)]
struct Protocol {
    tls: bool,
    sasl: bool,
}

const PROTOCOLS: &[(&str, Protocol)] = &[
    (
        "PLAINTEXT",
        Protocol {
            tls: false,
            sasl: false,
        },
    ),
    (
        "SSL",
        Protocol {
            tls: true,
            sasl: false,
        },
    ),
    (
        "SASL_PLAINTEXT",
        Protocol {
            tls: false,
            sasl: true,
        },
    ),
    (
        "SASL_SSL",
        Protocol {
            tls: true,
            sasl: true,
        },
    ),
];
const MECHANISMS: &[(&str, SaslMechanism)] = &[
    ("PLAIN", SaslMechanism::Plain),
    ("SCRAM-SHA-256", SaslMechanism::ScramSha256),
    ("SCRAM-SHA-512", SaslMechanism::ScramSha512),
];

pub(super) fn read(kafka: &Fields<'_>, ignored: &mut Vec<String>) -> Option<Queue> {
    let mut config = KafkaConfig {
        brokers: kafka.string("address").unwrap_or_default(),
        tls: None,
        sasl: None,
        timeout: TIMEOUT,
        prefetch: PREFETCH,
    };
    if !config.has_brokers() {
        // Not shown: somebody may have put a password into it.
        kafka.wrong(
            "address",
            "host:port expected, without a login; several with commas between",
        );
    }
    ignored.extend(kafka.accept(&["producer", "consumer"]));
    let protocol = kafka.choice("securityProtocol", PROTOCOLS);
    let username = kafka.string("saslUsername").filter(|u| !u.is_empty());
    let password = kafka.secret("saslPassword").filter(|p| !p.is_empty());
    let mechanism = kafka.choice("saslMechanisms", MECHANISMS);
    let given = kafka.has("securityProtocol");
    // As Milvus has it: a login without a protocol goes over TLS.
    let Protocol { tls, sasl } = protocol.unwrap_or(Protocol {
        tls: username.is_some(),
        sasl: username.is_some(),
    });
    match (sasl, username, password) {
        (true, Some(username), Some(password)) => match resolve_secret(&password) {
            Ok(password) => {
                let mechanism = mechanism.unwrap_or(SaslMechanism::Plain);
                config.sasl = Some(KafkaSasl {
                    mechanism,
                    username,
                    password,
                });
            }
            Err(cause) => kafka.wrong("saslPassword", cause),
        },
        (true, _, _) if given => kafka.wrong(
            "securityProtocol",
            "with SASL needs saslUsername and saslPassword",
        ),
        (true, _, _) => kafka.wrong("saslUsername", "needs saslPassword beside it"),
        (false, Some(_), _) => kafka.wrong(
            "saslUsername",
            "needs securityProtocol SASL_SSL or SASL_PLAINTEXT",
        ),
        (false, None, Some(_)) => kafka.wrong("saslPassword", "needs saslUsername beside it"),
        (false, None, None) => {}
    }
    if tls {
        config.tls = Some(read_tls(kafka));
    } else {
        ignored.extend(kafka.accept(&TLS_KEYS));
    }
    Some(Queue::Kafka(config))
}

fn read_tls(kafka: &Fields<'_>) -> KafkaTls {
    let file = |key: &'static str| {
        let path = kafka.string(key).filter(|p| !p.is_empty())?;
        if let Err(cause) = std::fs::File::open(&path) {
            kafka.wrong(key, format_args!("cannot read {path}: {cause}"));
        }
        Some(PathBuf::from(path))
    };
    let ca = file("tlsCACertPath");
    let key_password = match kafka.secret("tlsKeyPassword") {
        None => Secret::default(),
        Some(given) => resolve_secret(&given).unwrap_or_else(|cause| {
            kafka.wrong("tlsKeyPassword", cause);
            Secret::default()
        }),
    };
    let client = match (file("tlsCertPath"), file("tlsKeyPath")) {
        (Some(certificate), Some(key)) => Some(ClientCertificate {
            certificate,
            key,
            key_password,
        }),
        (None, None) => None,
        (Some(_), None) => {
            kafka.wrong("tlsCertPath", "needs tlsKeyPath beside it");
            None
        }
        (None, Some(_)) => {
            kafka.wrong("tlsKeyPath", "needs tlsCertPath beside it");
            None
        }
    };
    KafkaTls {
        ca,
        client,
        verify_hostname: kafka.boolean("tlsVerifyHostname").unwrap_or(true),
    }
}
