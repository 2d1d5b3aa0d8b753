//! From settings to a [`LogSource`].

use std::io::Read;
use std::path::{Path, PathBuf};
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
    pub data: PulsarLogin,
}

/// What the broker is shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PulsarLogin {
    Fixed(Secret),
    /// A file with a token, read whenever the broker wants to see it: tokens are renewed while we run.
    File(PathBuf),
}

/// Bytes of a file with a token. A token goes in one frame, and is no more than a few KiB.
const TOKEN_MAX: u64 = 64 * 1024;

impl PulsarLogin {
    /// What it is now. Reads the file, so it is not for a thread that may not wait.
    ///
    /// # Errors
    /// Why there is no token in the file, without anything of what is in it.
    pub fn read(&self) -> Result<Secret, String> {
        match self {
            PulsarLogin::Fixed(secret) => Ok(secret.clone()),
            PulsarLogin::File(path) => {
                read_token(path).map_err(|cause| format!("no token in {}: {cause}", path.display()))
            }
        }
    }
}

fn read_token(path: &Path) -> Result<Secret, String> {
    let said = |e: std::io::Error| e.to_string();
    // A pipe would be waited for, and has nothing to say a second time.
    if !std::fs::metadata(path).map_err(said)?.is_file() {
        return Err("not a file".to_owned());
    }
    let file = std::fs::File::open(path).map_err(said)?;
    let mut content = Vec::new();
    let read = file.take(TOKEN_MAX + 1).read_to_end(&mut content);
    if read.map_err(said)? as u64 > TOKEN_MAX {
        return Err(format!("more than {TOKEN_MAX} bytes"));
    }
    let text = String::from_utf8(content).map_err(|_| "not text".to_owned())?;
    match text.trim() {
        "" => Err("it is empty".to_owned()),
        token => Ok(Secret::new(token)),
    }
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
