//! From a topic to the connection with the broker that has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pulsar::proto::base_command::Type;
use pulsar::proto::command_lookup_topic_response::LookupType;
use pulsar::proto::{BaseCommand, CommandLookupTopic, ServerError};

use super::connection::{Connection, Failure};
use super::pool::{Place, Pool};
use super::wire;
use crate::ids::PChannel;
use crate::source::SourceError;
use crate::source::open::PulsarConfig;

const REDIRECTS: usize = 10;

/// What all readers of one source share: a connection for each broker.
pub(super) struct Link {
    pub(super) config: Arc<PulsarConfig>,
    /// `host:port` of the service.
    service: Vec<String>,
    tls: bool,
    /// Which of them answered last: the others may be down, and each try of one costs its time-out.
    answered: AtomicUsize,
    pool: Pool,
}

impl Link {
    /// # Errors
    /// [`SourceError::Configuration`] if the address is none.
    pub(super) fn new(config: PulsarConfig) -> Result<Self, SourceError> {
        let Some((tls, service)) = split(&config.address) else {
            return Err(SourceError::Configuration {
                address: config.address.clone(),
                cause: "this is no address of a Pulsar broker".to_owned(),
                hint: "it has the form pulsar://host:port, or pulsar+ssl://host:port with TLS"
                    .to_owned(),
            });
        };
        let config = Arc::new(config);
        Ok(Self {
            pool: Pool::new(config.clone(), tls),
            config,
            service,
            tls,
            answered: AtomicUsize::new(0),
        })
    }

    /// How long an answer may take that has the broker load a topic first.
    pub(super) fn long(&self) -> Duration {
        self.config.connect_timeout * 4
    }

    pub(super) fn topic(&self, channel: &PChannel) -> String {
        let PulsarConfig {
            tenant, namespace, ..
        } = &*self.config;
        format!("persistent://{tenant}/{namespace}/{channel}")
    }

    pub(super) fn unreachable(&self, cause: impl ToString) -> SourceError {
        SourceError::Unreachable {
            address: self.config.address.clone(),
            cause: cause.to_string(),
        }
    }

    pub(super) fn unreadable(&self, cause: impl ToString) -> SourceError {
        SourceError::Configuration {
            address: self.config.address.clone(),
            cause: format!("{} cannot be read", cause.to_string()),
            hint: "Milvus writes no such messages; check tenant, namespace and channel names"
                .to_owned(),
        }
    }

    /// What a failure means to whoever reads the channel.
    pub(super) fn error(&self, channel: Option<&PChannel>, failure: Failure) -> SourceError {
        let address = self.config.address.clone();
        match (failure, channel) {
            (Failure::Refused(ServerError::TopicNotFound, _), Some(channel)) => {
                SourceError::NoSuchChannel {
                    channel: channel.clone(),
                    address,
                }
            }
            (
                Failure::Refused(
                    e @ (ServerError::AuthenticationError | ServerError::AuthorizationError),
                    cause,
                ),
                _,
            ) => SourceError::Login {
                address,
                cause: format!("{}: {cause}", e.as_str_name()),
            },
            (Failure::Refused(e, cause), Some(channel)) => {
                self.unreachable(format!("{channel}: {}: {cause}", e.as_str_name()))
            }
            (Failure::Refused(e, cause), None) => {
                self.unreachable(format!("{}: {cause}", e.as_str_name()))
            }
            (Failure::Away(cause), _) => self.unreachable(cause),
        }
    }

    /// A connection with any broker of the service.
    pub(super) async fn base(&self) -> Result<Arc<Connection>, Failure> {
        self.any(None).await
    }

    /// A connection with any address of the service, or with the broker behind the proxy there.
    async fn any(&self, through: Option<String>) -> Result<Arc<Connection>, Failure> {
        let place = |address: &String| Place {
            address: address.clone(),
            through: through.clone(),
        };
        let live = |address| self.pool.live(&place(address));
        if let Some(connection) = self.service.iter().find_map(live) {
            return Ok(connection);
        }
        let mut failed = Failure::Away("no address".to_owned());
        let last = self.answered.load(Ordering::Relaxed);
        let all = self.service.iter().enumerate();
        for (n, address) in all.cycle().skip(last).take(self.service.len()) {
            match self.pool.to(place(address)).await {
                Ok(connection) => {
                    self.answered.store(n, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(failure) => failed = failure,
            }
        }
        Err(failed)
    }

    /// The connection with the broker that has this topic.
    pub(super) async fn of(&self, topic: &str) -> Result<Arc<Connection>, Failure> {
        let mut connection = self.base().await?;
        let mut authoritative = false;
        for _ in 0..REDIRECTS {
            let request_id = connection.id();
            let lookup = BaseCommand {
                lookup_topic: Some(CommandLookupTopic {
                    topic: topic.to_owned(),
                    request_id,
                    authoritative: Some(authoritative),
                    ..Default::default()
                }),
                ..wire::command(Type::Lookup)
            };
            let answer = connection.request(request_id, &lookup, self.long()).await?;
            let Some(found) = answer.lookup_topic_response else {
                return Err(Failure::Away("no answer to the look-up".to_owned()));
            };
            if found.response() == LookupType::Failed {
                let cause = found.message.clone().unwrap_or_default();
                return Err(Failure::Refused(found.error(), cause));
            }
            let redirected = found.response() == LookupType::Redirect;
            authoritative = found.authoritative.unwrap_or(false);
            let by_proxy = found.proxy_through_service_url == Some(true);
            let url = if self.tls {
                found.broker_service_url_tls
            } else {
                found.broker_service_url
            };
            let there = url
                .as_deref()
                .and_then(split)
                .and_then(|(_, mut all)| all.pop());
            let Some(address) = there else {
                return Err(Failure::Away(format!(
                    "the broker of {topic} has no address for connections {} TLS",
                    if self.tls { "with" } else { "without" }
                )));
            };
            connection = if by_proxy {
                self.any(Some(address)).await?
            } else {
                let through = None;
                self.pool.to(Place { address, through }).await?
            };
            if !redirected {
                return Ok(connection);
            }
        }
        Err(Failure::Away(format!(
            "{topic}: sent from broker to broker {REDIRECTS} times"
        )))
    }
}

/// Whether `pulsar://` or `pulsar+ssl://`, and each `host:port` behind it.
fn split(address: &str) -> Option<(bool, Vec<String>)> {
    let (tls, hosts) = match address.strip_prefix("pulsar://") {
        Some(hosts) => (false, hosts),
        None => (true, address.strip_prefix("pulsar+ssl://")?),
    };
    let port = if tls { 6651 } else { 6650 };
    let mut all = Vec::new();
    for one in hosts.trim_end_matches('/').split(',') {
        if one.is_empty() || one.contains(['/', '@', ' ']) {
            return None;
        }
        let bare = one.starts_with('[') && one.ends_with(']');
        match one.rsplit_once(':').filter(|_| !bare) {
            None => all.push(format!("{one}:{port}")),
            Some((host, given)) if !host.is_empty() && given.parse::<u16>().is_ok() => {
                all.push(one.to_owned());
            }
            Some(_) => return None,
        }
    }
    Some((tls, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_scheme_hosts_and_ports() {
        let one = |s: &str| vec![s.to_owned()];
        assert_eq!(split("pulsar://h:1"), Some((false, one("h:1"))));
        assert_eq!(split("pulsar://h"), Some((false, one("h:6650"))));
        assert_eq!(
            split("pulsar+ssl://[::1]/"),
            Some((true, one("[::1]:6651")))
        );
        let two = vec!["a:1".to_owned(), "b:2".to_owned()];
        assert_eq!(split("pulsar://a:1,b:2"), Some((false, two)));
        for bad in [
            "h:1",
            "http://h:1",
            "pulsar://",
            "pulsar://u:p@h:1",
            "pulsar://h:x",
            "pulsar://:1",
        ] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
