//! From settings to a [`LogSource`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::kafka::KafkaConfig;
use super::{LogSource, SourceError};

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
        #[cfg(feature = "kafka")]
        QueueConfig::Kafka(config) => Ok(Arc::new(super::kafka::KafkaSource::connect(&config)?)),
        #[cfg(not(feature = "kafka"))]
        QueueConfig::Kafka(config) => Err(left_out(config.brokers, "kafka")),
    }
}

#[cfg(not(all(feature = "natsmq", feature = "rocksmq", feature = "kafka")))]
fn left_out(address: String, feature: &str) -> SourceError {
    SourceError::Configuration {
        address,
        cause: format!("this build has no support for {feature}"),
        hint: format!("build it with the cargo feature `{feature}`"),
    }
}
