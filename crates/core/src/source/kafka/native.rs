//! The settings of the client library that follow from the contract.

use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::KafkaConfig;

/// The least and the most a reader fetches ahead, in bytes.
const PREFETCH: (usize, usize) = (4 << 10, 1 << 20);
/// The client would wait a second after it found its queue full: with a queue this small that would be its speed.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(5);
/// One request asks for all channels of a client that have room. One that gets room, or begins, waits for the answer to
/// the request before, and on a source where nothing happens that is this long.
const FETCH_WAIT: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// The largest answer that is taken for one. Not a bound of memory: that is the broker's `message.max.bytes`, for an
/// answer larger than what was asked for holds one batch.
const SANE_ANSWER: usize = 1 << 30;

impl KafkaConfig {
    pub(super) fn native(&self) -> ClientConfig {
        let millis = |d: Duration| d.as_millis().clamp(1, 60_000).to_string();
        let prefetch = self.prefetch.clamp(PREFETCH.0, PREFETCH.1);
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Warning);
        for (key, value) in [
            ("bootstrap.servers", self.brokers.clone()),
            ("client.id", "milvus-cdc".to_owned()),
            // Without one nothing can be assigned. No group is joined and nothing is committed under it.
            ("group.id", "milvus-cdc".to_owned()),
            ("enable.auto.commit", "false".to_owned()),
            ("enable.auto.offset.store", "false".to_owned()),
            ("allow.auto.create.topics", "false".to_owned()),
            ("topic.metadata.propagation.max.ms", "0".to_owned()),
            // Any other value makes the client go on somewhere else without a word.
            ("auto.offset.reset", "error".to_owned()),
            // As Milvus' own readers see the log.
            ("isolation.level", "read_committed".to_owned()),
            ("check.crcs", "true".to_owned()),
            ("fetch.message.max.bytes", prefetch.to_string()),
            (
                "queued.max.messages.kbytes",
                (prefetch >> 10).max(1).to_string(),
            ),
            ("fetch.max.bytes", (16 * prefetch).to_string()),
            // Only its default would be too large for a small fetch.max.bytes; what is read is not bounded by it.
            ("message.max.bytes", prefetch.to_string()),
            ("receive.message.max.bytes", SANE_ANSWER.to_string()),
            ("fetch.queue.backoff.ms", millis(FULL_QUEUE_PAUSE)),
            ("fetch.wait.max.ms", millis(FETCH_WAIT)),
            ("reconnect.backoff.max.ms", millis(RECONNECT_MAX)),
            ("socket.keepalive.enable", "true".to_owned()),
            ("socket.nagle.disable", "true".to_owned()),
            (
                "socket.connection.setup.timeout.ms",
                millis(self.timeout.max(Duration::from_secs(1))),
            ),
            // A broker that is silent for longer while it owes an answer is connected to anew.
            ("socket.timeout.ms", "15000".to_owned()),
        ] {
            config.set(key, value);
        }
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Some(tls) = &self.tls {
            // Our OpenSSL is not the system's and does not know by itself where the system keeps its certificates.
            let ca = tls
                .ca
                .as_ref()
                .map_or("probe".into(), |ca| ca.display().to_string());
            config.set("ssl.ca.location", ca);
            let identification = if tls.verify_hostname { "https" } else { "none" };
            config.set("ssl.endpoint.identification.algorithm", identification);
            if let Some(client) = &tls.client {
                let path = |p: &PathBuf| p.display().to_string();
                config.set("ssl.certificate.location", path(&client.certificate));
                config.set("ssl.key.location", path(&client.key));
                if !client.key_password.is_empty() {
                    config.set("ssl.key.password", client.key_password.expose());
                }
            }
        }
        if let Some(sasl) = &self.sasl {
            config.set("sasl.mechanism", sasl.mechanism.name());
            config.set("sasl.username", &sasl.username);
            config.set("sasl.password", sasl.password.expose());
        }
        config
    }
}
