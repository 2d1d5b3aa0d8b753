//! What a Kafka needs to be reached.

use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// Where the Kafka of the source is, and how to get in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KafkaConfig {
    /// `host:port`, or several with commas between: the brokers to ask first for the others.
    pub brokers: String,
    /// `None`: no TLS.
    pub tls: Option<KafkaTls>,
    /// `None`: no login.
    pub sasl: Option<KafkaSasl>,
    /// For one answer of the brokers, and for one attempt to connect.
    pub timeout: Duration,
    /// Bytes that the client may fetch ahead for one reader, beside what the reader has handed out: between 4 KiB and
    /// 1 MiB. Twice of it can be under way, or one batch of messages that is larger.
    pub prefetch: usize,
}

/// TLS, and what a server or a client has to show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KafkaTls {
    /// Certificates to trust, PEM; those of the system if `None`.
    pub ca: Option<PathBuf>,
    /// Our own certificate.
    pub client: Option<ClientCertificate>,
    /// Whether the certificate has to name the host that was asked for.
    pub verify_hostname: bool,
}

/// A certificate and its key, PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Empty if the key is not encrypted.
    pub key_password: Secret,
}

/// A login.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KafkaSasl {
    pub mechanism: SaslMechanism,
    pub username: String,
    pub password: Secret,
}

/// The ways to log in that need nothing of the operating system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SaslMechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl SaslMechanism {
    /// As Kafka writes it.
    pub fn name(self) -> &'static str {
        match self {
            SaslMechanism::Plain => "PLAIN",
            SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
            SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

impl KafkaConfig {
    /// Its certificates and keys.
    #[cfg(feature = "kafka")]
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let Some(tls) = &self.tls else {
            return Vec::new();
        };
        let own = tls.client.iter().flat_map(|c| [&c.certificate, &c.key]);
        tls.ca.iter().chain(own).cloned().collect()
    }

    /// Whether the address is `host:port`, or several of them with commas between.
    pub fn has_brokers(&self) -> bool {
        self.brokers.split(',').all(|broker| {
            broker.trim().rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && !host.contains(['/', '@', ' '])
                    && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
        })
    }
}
