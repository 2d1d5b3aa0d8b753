//! A Pulsar broker that speaks what a reader needs, and misbehaves as it is told. It keeps the same entries for every
//! topic, in one ledger.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use parking_lot::Mutex;
use prost::Message;
use pulsar::proto::base_command::Type;
use pulsar::proto::command_lookup_topic_response::LookupType;
use pulsar::proto::{
    BaseCommand, CommandAuthChallenge, CommandConnected, CommandConsumerStatsResponse,
    CommandGetLastMessageIdResponse, CommandLookupTopicResponse, CommandMessage, CommandPong,
    CommandSuccess, MessageIdData, MessageMetadata,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

/// For what has to come at all.
pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const LEDGER: u64 = 7;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    None,
    /// A checksum that is not the message's.
    Checksum,
    /// A frame that says that it is longer than any may be.
    Length,
    /// There is none with its number, but one with the next.
    Gap,
}

pub(crate) struct Broker {
    pub(crate) port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    script: Mutex<Script>,
    /// How many connections there have been, and how many there are.
    connections: watch::Sender<(usize, usize)>,
    /// What was shown as a login, one after the other.
    logins: watch::Sender<Vec<String>>,
    /// Counts how often all connections were cut, and how often all were asked to log in again.
    cuts: watch::Sender<usize>,
    challenges: watch::Sender<usize>,
}

#[derive(Default)]
struct Script {
    silent: bool,
    forgetful: bool,
    entries: Vec<(&'static str, Fault)>,
    /// Topics that another broker has, by the end of their name.
    elsewhere: HashMap<&'static str, String>,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let served = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = served.clone();
                let mut cuts = state.cuts.subscribe();
                let silent = state.script.lock().silent;
                state.connections.send_modify(|(all, now)| {
                    *all += 1;
                    *now += 1;
                });
                tokio::spawn(async move {
                    tokio::select! {
                        // Ends with the client.
                        _ = serve(stream, port, silent, &state) => {}
                        _ = cuts.changed() => {}
                    }
                    state.connections.send_modify(|(_, now)| *now -= 1);
                });
            }
        });
        Self { port, state }
    }

    /// Takes connections from now on and says nothing to them, or speaks to new ones.
    pub(crate) fn silence(&self, silent: bool) {
        self.state.script.lock().silent = silent;
    }

    /// Does not know the last message of a topic, as after it was loaded.
    pub(crate) fn forgets(&self) {
        self.state.script.lock().forgetful = true;
    }

    pub(crate) fn cut(&self) {
        self.state.cuts.send_modify(|n| *n += 1);
    }

    pub(crate) fn challenge(&self) {
        self.state.challenges.send_modify(|n| *n += 1);
    }

    pub(crate) fn holds(&self, entries: &[(&'static str, Fault)]) {
        self.state.script.lock().entries = entries.to_vec();
    }

    pub(crate) fn elsewhere(&self, topic: &'static str, url: String) {
        self.state.script.lock().elsewhere.insert(topic, url);
    }

    pub(crate) fn url(&self) -> String {
        format!("pulsar://127.0.0.1:{}", self.port)
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.borrow().0
    }

    /// Waits until there have been so many connections.
    pub(crate) async fn connected(&self, n: usize) {
        let mut connections = self.state.connections.subscribe();
        let enough = connections.wait_for(|(all, _)| *all >= n);
        timeout(SOON, enough).await.unwrap().unwrap();
    }

    /// Waits until there is none.
    pub(crate) async fn left(&self) {
        let mut connections = self.state.connections.subscribe();
        let none = connections.wait_for(|(_, now)| *now == 0);
        timeout(SOON, none).await.unwrap().unwrap();
    }

    /// The `n`th login, from 1.
    pub(crate) async fn login(&self, n: usize) -> String {
        let mut logins = self.state.logins.subscribe();
        let enough = logins.wait_for(|all| all.len() >= n);
        timeout(SOON, enough).await.unwrap().unwrap()[n - 1].clone()
    }
}

/// A consumer: the next entry, and how many more it takes.
struct Consumer {
    next: usize,
    permits: u32,
}

async fn serve(mut stream: TcpStream, port: u16, silent: bool, state: &State) -> io::Result<()> {
    if silent {
        while stream.read(&mut [0; 1024]).await? > 0 {}
        return Ok(());
    }
    let mut consumers = HashMap::new();
    let mut challenges = state.challenges.subscribe();
    let mut arrived = BytesMut::new();
    loop {
        tokio::select! {
            read = stream.read_buf(&mut arrived) => if read? == 0 {
                return Ok(());
            },
            _ = challenges.changed() => {
                let challenge = BaseCommand {
                    auth_challenge: Some(CommandAuthChallenge::default()),
                    ..of(Type::AuthChallenge)
                };
                stream.write_all(&framed(&challenge, None)).await?;
            }
        }
        while let Some(total) = arrived.first_chunk::<4>() {
            let total = u32::from_be_bytes(*total) as usize;
            if arrived.len() < total + 4 {
                break;
            }
            let frame = arrived.split_to(total + 4);
            let command = BaseCommand::decode(&frame[8..])?;
            let answers = answer(command, port, &mut consumers, state);
            stream.write_all(&answers).await?;
        }
    }
}

fn answer(
    command: BaseCommand,
    port: u16,
    consumers: &mut HashMap<u64, Consumer>,
    state: &State,
) -> BytesMut {
    let script = state.script.lock();
    let success = |request_id| BaseCommand {
        success: Some(CommandSuccess {
            request_id,
            schema: None,
        }),
        ..of(Type::Success)
    };
    let said = |data: Option<Vec<u8>>| {
        let data = String::from_utf8(data.unwrap_or_default()).unwrap();
        state.logins.send_modify(|all| all.push(data));
    };
    let answer = if let Some(connect) = command.connect {
        said(connect.auth_data);
        BaseCommand {
            connected: Some(CommandConnected {
                server_version: "script".to_owned(),
                ..Default::default()
            }),
            ..of(Type::Connected)
        }
    } else if let Some(response) = command.auth_response {
        said(response.response.and_then(|r| r.auth_data));
        return BytesMut::new();
    } else if command.ping.is_some() {
        BaseCommand {
            pong: Some(CommandPong {}),
            ..of(Type::Pong)
        }
    } else if let Some(lookup) = command.lookup_topic {
        let mut elsewhere = script.elsewhere.iter();
        let there = elsewhere.find(|(topic, _)| lookup.topic.ends_with(**topic));
        let here = format!("pulsar://127.0.0.1:{port}");
        BaseCommand {
            lookup_topic_response: Some(CommandLookupTopicResponse {
                broker_service_url: Some(there.map_or(here, |(_, url)| url.clone())),
                response: Some(LookupType::Connect as i32),
                request_id: lookup.request_id,
                authoritative: Some(true),
                ..Default::default()
            }),
            ..of(Type::LookupResponse)
        }
    } else if let Some(subscribe) = command.subscribe {
        let start = subscribe.start_message_id.unwrap_or_default();
        let earliest = start.ledger_id == u64::MAX;
        let next = if earliest { 0 } else { start.entry_id as usize };
        consumers.insert(subscribe.consumer_id, Consumer { next, permits: 0 });
        success(subscribe.request_id)
    } else if let Some(stats) = command.consumer_stats {
        let next = consumers.get(&stats.consumer_id).map_or(0, |c| c.next);
        BaseCommand {
            consumer_stats_response: Some(CommandConsumerStatsResponse {
                request_id: stats.request_id,
                msg_backlog: Some(script.entries.len().saturating_sub(next) as u64),
                ..Default::default()
            }),
            ..of(Type::ConsumerStatsResponse)
        }
    } else if let Some(last) = command.get_last_message_id {
        let mut last_id = id(script.entries.len() - 1);
        if script.forgetful {
            last_id.entry_id = u64::MAX;
        }
        BaseCommand {
            get_last_message_id_response: Some(CommandGetLastMessageIdResponse {
                last_message_id: last_id,
                request_id: last.request_id,
                ..Default::default()
            }),
            ..of(Type::GetLastMessageIdResponse)
        }
    } else if let Some(close) = command.close_consumer {
        consumers.remove(&close.consumer_id);
        success(close.request_id)
    } else if let Some(flow) = command.flow {
        let mut out = BytesMut::new();
        if let Some(consumer) = consumers.get_mut(&flow.consumer_id) {
            consumer.permits += flow.message_permits;
            while consumer.permits > 0
                && let Some((payload, fault)) = script.entries.get(consumer.next)
            {
                out.unsplit(message(flow.consumer_id, consumer.next, payload, *fault));
                consumer.permits -= 1;
                consumer.next += 1;
            }
        }
        return out;
    } else {
        panic!("not in the script: {command:?}");
    };
    framed(&answer, None)
}

fn of(kind: Type) -> BaseCommand {
    BaseCommand {
        r#type: kind as i32,
        ..Default::default()
    }
}

fn id(entry: usize) -> MessageIdData {
    MessageIdData {
        ledger_id: LEDGER,
        entry_id: entry as u64,
        ..Default::default()
    }
}

fn message(consumer_id: u64, entry: usize, payload: &str, fault: Fault) -> BytesMut {
    let command = BaseCommand {
        message: Some(CommandMessage {
            consumer_id,
            message_id: id(entry + usize::from(fault == Fault::Gap)),
            ..Default::default()
        }),
        ..of(Type::Message)
    };
    let metadata = MessageMetadata::default().encode_to_vec();
    let mut checked = BytesMut::new();
    checked.put_u32(metadata.len() as u32);
    checked.put_slice(&metadata);
    checked.put_slice(payload.as_bytes());
    let wrong = u32::from(fault == Fault::Checksum);
    let mut body = BytesMut::new();
    body.put_u16(0x0e01);
    body.put_u32(crc32c::crc32c(&checked) ^ wrong);
    body.put_slice(&checked);
    let mut frame = framed(&command, Some(&body));
    if fault == Fault::Length {
        frame[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    }
    frame
}

fn framed(command: &BaseCommand, body: Option<&[u8]>) -> BytesMut {
    let (head, body) = (command.encode_to_vec(), body.unwrap_or_default());
    let mut out = BytesMut::new();
    out.put_u32((4 + head.len() + body.len()) as u32);
    out.put_u32(head.len() as u32);
    out.put_slice(&head);
    out.put_slice(body);
    out
}
