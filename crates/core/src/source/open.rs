//! From settings to a [`LogSource`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::kafka::KafkaConfig;
use super::{LogSource, SourceError};
use crate::secret::Secret;

/// Which message queue the source Milvus writes to (`mq.type`), and where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum QueueConfig {
    /// `address`: `nats://host:port`. `connect_timeout`: for one attempt to connect, and for one answer.
    Natsmq {
        address: String,
        connect_timeout: Duration,
    },
    /// `path`: `rocksmq.path` of the source. `secondary_dir`: where our own files go; the system's temp folder if `None`.
    Rocksmq {
        path: PathBuf,
        secondary_dir: Option<PathBuf>,
    },
    Kafka(KafkaConfig),
    Pulsar(PulsarConfig),
}

/// Where the Pulsar of the source is, and how it is entered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PulsarConfig {
    /// `pulsar://host:port`, or `pulsar+ssl://host:port` with TLS; several `host:port` with commas between.
    pub address: String,
    pub tenant: String,
    pub namespace: String,
    pub auth: Option<PulsarAuth>,
    pub tls: PulsarTls,
    /// Bytes; the broker's own setting counts if it is larger.
    pub max_message_size: usize,
    /// For one attempt to connect, and for one answer; four times as much where the broker has to load a topic first.
    pub connect_timeout: Duration,
}

/// How the broker is told who we are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PulsarAuth {
    /// Pulsar's name of it: `token`, `basic`, `tls`.
    pub method: String,
    /// The token; `user:password`; nothing with `tls`.
    pub data: Secret,
}

/// PEM files, read for each new connection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PulsarTls {
    /// Whom to trust; the system's certificates if `None`.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Makes the source without waiting for the queue to be up.
///
/// # Errors
/// [`SourceError::Configuration`] if the settings cannot work, or if this build lacks the queue; the feature is named.
pub async fn open_source(config: QueueConfig) -> Result<Arc<dyn LogSource>, SourceError> {
    match config {
        #[cfg(feature = "natsmq")]
        QueueConfig::Natsmq {
            address,
            connect_timeout,
        } => {
            let config = super::natsmq::NatsmqConfig {
                address,
                connect_timeout,
            };
            Ok(Arc::new(
                super::natsmq::NatsmqSource::connect(config).await?,
            ))
        }
        #[cfg(not(feature = "natsmq"))]
        QueueConfig::Natsmq { address, .. } => Err(left_out(address, "natsmq")),
        #[cfg(feature = "rocksmq")]
        QueueConfig::Rocksmq {
            path,
            secondary_dir,
        } => {
            let config = super::rocksmq::RocksmqConfig {
                path,
                secondary_dir,
            };
            Ok(Arc::new(super::rocksmq::RocksmqSource::open(config)))
        }
        #[cfg(not(feature = "rocksmq"))]
        QueueConfig::Rocksmq { path, .. } => Err(left_out(path.display().to_string(), "rocksmq")),
        #[cfg(feature = "pulsar")]
        QueueConfig::Pulsar(config) => Ok(Arc::new(super::pulsar::PulsarSource::new(config)?)),
        #[cfg(not(feature = "pulsar"))]
        QueueConfig::Pulsar(config) => Err(left_out(config.address, "pulsar")),
        #[cfg(feature = "kafka")]
        QueueConfig::Kafka(config) => Ok(Arc::new(super::kafka::KafkaSource::connect(&config)?)),
        #[cfg(not(feature = "kafka"))]
        QueueConfig::Kafka(config) => Err(left_out(config.brokers, "kafka")),
    }
}

#[cfg(not(all(
    feature = "natsmq",
    feature = "rocksmq",
    feature = "kafka",
    feature = "pulsar"
)))]
fn left_out(address: String, feature: &str) -> SourceError {
    SourceError::Configuration {
        address,
        cause: format!("this build has no support for {feature}"),
        hint: format!("build it with the cargo feature `{feature}`"),
    }
}
