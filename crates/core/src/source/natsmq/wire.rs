//! As much of the NATS protocol as a reader needs: one connection with one subscription.
//!
//! The client library reads into a buffer that doubles until a message is whole, and copies it each time; it hands each
//! message over through a channel, with strings of its own. A reader pulls, so nothing has to be read before it asks, and
//! a large message is read to where it stays. What is not asked for waits at the server, or in the system's buffers.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Read at once, where messages are small.
const READ: usize = 64 << 10;
/// A message of more is read to memory of its own.
const LARGE: usize = 16 << 10;
/// No line of the protocol is longer: the longest is what the server says of itself.
const LONGEST_LINE: usize = 1 << 20;
/// No message is longer: far above `max_payload` of any server, which is at most 64 MB.
const LONGEST_MESSAGE: usize = 1 << 30;

/// What the subscription brings.
#[derive(Debug, PartialEq)]
pub(super) enum Delivered {
    Message {
        /// Of the stream, and how many more it has for this consumer.
        sequence: u64,
        pending: u64,
        payload: Bytes,
        /// As the server counts it against the bound of a request.
        length: usize,
    },
    Status {
        /// The request it answers.
        subject: String,
        code: u16,
        description: String,
    },
    /// Neither: none of a stream's messages.
    Other,
}

/// What stands before a message.
#[derive(Debug, Default)]
struct Head {
    subject: String,
    /// Sequence and pending, of a stream's message.
    place: Option<(u64, u64)>,
    /// Bytes of the headers, and with them all bytes.
    headers: usize,
    total: usize,
    names: usize,
}

enum Op {
    Delivered(Delivered),
    Ping,
    Pong,
    Info(Bytes),
    Nothing,
}

/// Memory of large messages: used again when nobody needs a message any more, for the system gives memory page by page
/// and empties each. Only while there is more to read.
#[derive(Clone, Default)]
pub(super) struct Spare(Arc<Mutex<VecDeque<Bytes>>>);

impl Spare {
    /// Smaller ones are the allocator's.
    const LEAST: usize = 128 << 10;
    /// How many bytes are held, in use or not.
    const MOST: usize = 32 << 20;

    fn take(&self, need: usize) -> BytesMut {
        let found = {
            let mut all = self.0.lock();
            let fits = |b: &Bytes| (need..=need * 2).contains(&b.len()) && b.is_unique();
            all.iter().position(fits).and_then(|i| all.remove(i))
        };
        match found.map(Bytes::try_into_mut) {
            Some(Ok(mut memory)) => {
                memory.clear();
                memory
            }
            _ => BytesMut::with_capacity(need),
        }
    }

    fn keep(&self, memory: &Bytes) {
        if memory.len() < Self::LEAST {
            return;
        }
        let mut all = self.0.lock();
        all.push_back(memory.clone());
        while all.iter().map(Bytes::len).sum::<usize>() > Self::MOST {
            all.pop_front();
        }
    }

    fn clear(&self) {
        self.0.lock().clear();
    }
}

pub(super) struct Wire {
    tcp: TcpStream,
    spare: Spare,
    read: BytesMut,
    /// A message that is read to memory of its own.
    large: Option<(Head, BytesMut)>,
    out: BytesMut,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    tls_required: bool,
}

/// Who connects.
pub(super) struct Login<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) password: Option<&'a str>,
}

impl Wire {
    /// Connects, and subscribes to one subject. Has no deadline of its own.
    pub(super) async fn open(
        (host, port): (&str, u16),
        login: Login<'_>,
        subject: &str,
        spare: Spare,
    ) -> io::Result<Self> {
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        let mut wire = Self {
            tcp,
            spare,
            read: BytesMut::with_capacity(READ),
            large: None,
            out: BytesMut::new(),
        };
        let info = loop {
            if let Op::Info(info) = wire.op().await? {
                break info;
            }
        };
        let info: Info = serde_json::from_slice(&info)?;
        if info.tls_required {
            return Err(io::Error::other("the server wants TLS"));
        }
        let mut connect = serde_json::json!({
            "name": "milvus-cdc",
            "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": 1,
            "verbose": false,
            "pedantic": false,
            "tls_required": false,
            "echo": true,
            "headers": true,
            "no_responders": true,
        });
        if let Some(user) = login.user {
            connect["user"] = user.into();
            connect["pass"] = login.password.unwrap_or_default().into();
        }
        let begin = format!("CONNECT {connect}\r\nSUB {subject} 1\r\nPING\r\n");
        wire.out.put_slice(begin.as_bytes());
        // A refusal comes instead.
        while !matches!(wire.op().await?, Op::Pong) {}
        Ok(wire)
    }

    /// Goes out with the next read.
    pub(super) fn publish(&mut self, subject: &str, reply: &str, payload: &[u8]) {
        let head = format!("PUB {subject} {reply} {}\r\n", payload.len());
        self.out.put_slice(head.as_bytes());
        self.out.put_slice(payload);
        self.out.put_slice(b"\r\n");
    }

    /// The next of the subscription. Nothing is lost if it is dropped.
    pub(super) async fn next(&mut self) -> io::Result<Delivered> {
        loop {
            if let Op::Delivered(delivered) = self.op().await? {
                return Ok(delivered);
            }
        }
    }

    /// The same if it has arrived.
    pub(super) fn try_next(&mut self) -> io::Result<Option<Delivered>> {
        loop {
            match self.try_op()? {
                Some(Op::Delivered(delivered)) => return Ok(Some(delivered)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    async fn op(&mut self) -> io::Result<Op> {
        loop {
            if let Some(op) = self.try_op()? {
                return Ok(op);
            }
            let interest = if self.out.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            self.tcp.ready(interest).await?;
        }
    }

    fn try_op(&mut self) -> io::Result<Option<Op>> {
        loop {
            self.write_out()?;
            if let Some(op) = self.parse()? {
                if matches!(op, Op::Ping) {
                    self.out.put_slice(b"PONG\r\n");
                }
                return Ok(Some(op));
            }
            let read = match &mut self.large {
                Some((head, body)) => {
                    let missing = head.total + 2 - body.len();
                    self.tcp.try_read_buf(&mut body.limit(missing))
                }
                None => {
                    if self.read.capacity() - self.read.len() < READ / 8 {
                        self.read.reserve(READ);
                    }
                    self.tcp.try_read_buf(&mut self.read)
                }
            };
            match read {
                Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    fn write_out(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.tcp.try_write(&self.out) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.out.advance(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The next of what is read; `None`: it is not whole.
    fn parse(&mut self) -> io::Result<Option<Op>> {
        if let Some((head, body)) = self.large.take() {
            if body.len() < head.total + 2 {
                self.large = Some((head, body));
                return Ok(None);
            }
            let body = body.freeze();
            match head.place {
                Some((_, 0)) => self.spare.clear(),
                _ => self.spare.keep(&body),
            }
            return delivered(head, body).map(|d| Some(Op::Delivered(d)));
        }
        let Some(end) = self.read.iter().position(|b| *b == b'\n') else {
            if self.read.len() > LONGEST_LINE {
                return Err(wrong("a line without an end"));
            }
            return Ok(None);
        };
        let line = self.read[..end].strip_suffix(b"\r").unwrap_or_default();
        let Some(head) = head(line)? else {
            let op = match line.split(|b| *b == b' ').next().unwrap_or_default() {
                b"PING" => Op::Ping,
                b"PONG" => Op::Pong,
                b"INFO" => Op::Info(Bytes::copy_from_slice(&line[b"INFO".len()..])),
                b"+OK" => Op::Nothing,
                b"-ERR" => {
                    return Err(io::Error::other(String::from_utf8_lossy(line).into_owned()));
                }
                _ => return Err(wrong("an unknown operation")),
            };
            self.read.advance(end + 1);
            return Ok(Some(op));
        };
        let (begin, need) = (end + 1, head.total + 2);
        if self.read.len() - begin >= need {
            self.read.advance(begin);
            let body = self.read.split_to(need).freeze();
            return delivered(head, body).map(|d| Some(Op::Delivered(d)));
        }
        if need > LARGE {
            let mut body = self.spare.take(need);
            body.put_slice(&self.read[begin..]);
            self.read.clear();
            self.large = Some((head, body));
        } else {
            self.read.reserve(begin + need - self.read.len());
        }
        Ok(None)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.spare.clear();
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not NATS: {what}"))
}

/// `MSG subject sid [reply] total`, or `HMSG subject sid [reply] headers total`; `None`: another operation.
fn head(line: &[u8]) -> io::Result<Option<Head>> {
    let (with_headers, line) = match (line.strip_prefix(b"MSG "), line.strip_prefix(b"HMSG ")) {
        (Some(line), _) => (false, line),
        (_, Some(line)) => (true, line),
        _ => return Ok(None),
    };
    let line = std::str::from_utf8(line).map_err(|_| wrong("a subject"))?;
    let mut words = [""; 5];
    let mut count = 0;
    for word in line.split_ascii_whitespace() {
        *words
            .get_mut(count)
            .ok_or_else(|| wrong("a message's head"))? = word;
        count += 1;
    }
    let sizes = if with_headers { 2 } else { 1 };
    let reply = match count.checked_sub(2 + sizes) {
        Some(0) => "",
        Some(1) => words[2],
        _ => return Err(wrong("a message's head")),
    };
    let size = |word: &str| word.parse::<usize>().map_err(|_| wrong("a message's size"));
    let total = size(words[count - 1])?;
    let headers = if with_headers {
        size(words[count - 2])?
    } else {
        0
    };
    if headers > total || total > LONGEST_MESSAGE {
        return Err(wrong("a message's size"));
    }
    Ok(Some(Head {
        // Only a status is told by it.
        subject: if with_headers {
            words[0].to_owned()
        } else {
            String::new()
        },
        place: place(reply),
        headers,
        total,
        names: words[0].len() + reply.len(),
    }))
}

/// Sequence and pending from the subject to acknowledge on: `$JS.ACK.stream.consumer.delivered.sequence.….time.pending`,
/// in newer servers with domain and account before the stream, and something behind.
fn place(reply: &str) -> Option<(u64, u64)> {
    let mut words = reply.strip_prefix("$JS.ACK.")?.split('.');
    let skip = match words.clone().count() {
        7 => 3,
        9.. => 5,
        _ => return None,
    };
    let sequence = words.nth(skip)?.parse().ok()?;
    let pending = words.nth(2)?.parse().ok()?;
    Some((sequence, pending))
}

/// `body`: headers, payload, and the end of the line.
fn delivered(head: Head, body: Bytes) -> io::Result<Delivered> {
    if body.get(head.total..) != Some(b"\r\n".as_slice()) {
        return Err(wrong("a message without an end"));
    }
    if head.headers > 0 {
        let headers = String::from_utf8_lossy(&body[..head.headers]);
        let line = headers.lines().next().unwrap_or_default();
        let status = line
            .strip_prefix("NATS/1.0")
            .ok_or_else(|| wrong("headers"))?
            .trim();
        let (code, description) = status.split_once(' ').unwrap_or((status, ""));
        // 200 and none at all are a message.
        if let Ok(code) = code.parse()
            && code != 200
        {
            return Ok(Delivered::Status {
                subject: head.subject,
                code,
                description: description.trim().to_ascii_lowercase(),
            });
        }
    }
    Ok(match head.place {
        Some((sequence, pending)) => Delivered::Message {
            sequence,
            pending,
            payload: body.slice(head.headers..head.total),
            length: head.names + head.total,
        },
        None => Delivered::Other,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const ACK: &str = "$JS.ACK.ch.milvus-cdc-1.1.7.1.1700000000000000000.5";

    fn message(sequence: u64, payload: &[u8]) -> Vec<u8> {
        let reply = format!("$JS.ACK.ch.c.1.{sequence}.1.1700000000000000000.5");
        let mut all = format!("MSG ch 1 {reply} {}\r\n", payload.len()).into_bytes();
        all.extend(payload);
        all.extend(b"\r\n");
        all
    }

    /// What a reader gets of a server that writes these pieces.
    async fn read(pieces: Vec<Vec<u8>>) -> Vec<io::Result<Delivered>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let server = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.write_all(b"INFO {\"server_id\":\"x\",\"tls_required\":false}\r\n")
                .await
                .unwrap();
            let mut said = Vec::new();
            while !said.ends_with(b"PING\r\n") {
                tcp.read_buf(&mut said).await.unwrap();
            }
            tcp.write_all(b"PONG\r\n").await.unwrap();
            for piece in pieces {
                tcp.write_all(&piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            said
        };
        let reader = async {
            let login = Login {
                user: None,
                password: None,
            };
            let mut wire = Wire::open(
                ("127.0.0.1", at.port()),
                login,
                "_INBOX.x.*",
                Spare::default(),
            )
            .await
            .unwrap();
            let mut all = Vec::new();
            loop {
                let next = wire.next().await;
                let over = next.is_err();
                all.push(next);
                if over {
                    return all;
                }
            }
        };
        let (said, all) = tokio::join!(server, reader);
        assert!(
            String::from_utf8(said)
                .unwrap()
                .contains("SUB _INBOX.x.* 1\r\n")
        );
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Messages of any sizes, cut anywhere, come whole and in order.
        #[test]
        fn messages_come_whole_however_they_are_cut(
            sizes in proptest::collection::vec(prop_oneof![0..200_usize, 15_000..20_000_usize, 0..300_000_usize], 1..12),
            cut in 1..70_000_usize,
        ) {
            let bodies: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(i, n)| vec![b'a' + i as u8; *n]).collect();
            let all: Vec<u8> = bodies.iter().enumerate().flat_map(|(i, b)| message(i as u64, b)).collect();
            let pieces = all.chunks(cut).map(<[u8]>::to_vec).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut got = runtime.block_on(read(pieces));
            prop_assert!(got.pop().is_some_and(|last| last.is_err()), "the connection ends");
            prop_assert_eq!(got.len(), bodies.len());
            for (i, (got, body)) in got.into_iter().zip(bodies).enumerate() {
                let Ok(Delivered::Message { sequence, pending, payload, .. }) = got else {
                    return Err(TestCaseError::fail("no message"));
                };
                prop_assert_eq!((sequence, pending), (i as u64, 5));
                prop_assert!(payload == body);
            }
        }

        #[test]
        fn any_line_is_read_or_refused(line in proptest::collection::vec(any::<u8>(), 0..80), hmsg in any::<bool>()) {
            let _ = head(&line);
            let begin: &[u8] = if hmsg { b"HMSG " } else { b"MSG " };
            let _ = head(&[begin, &line].concat());
        }
    }

    #[test]
    fn memory_is_used_again_when_its_message_is_gone_and_not_before() {
        let (spare, size) = (Spare::default(), Spare::LEAST);
        let mut first = spare.take(size);
        first.put_bytes(1, size);
        let (at, first) = (first.as_ptr(), first.freeze());
        spare.keep(&first);
        let payload = first.slice(10..size - 10);
        drop(first);
        assert_ne!(spare.take(size).as_ptr(), at, "it is still read");
        assert_eq!(payload[0], 1);
        drop(payload);
        assert_ne!(spare.take(size / 4).as_ptr(), at, "too large");
        let again = spare.take(size);
        assert_eq!((again.as_ptr(), again.len()), (at, 0));
        for _ in 0..3 {
            spare.keep(&Bytes::from(vec![0; Spare::MOST / 2]));
        }
        assert_eq!(spare.0.lock().len(), 2);
    }

    #[test]
    fn the_place_is_found_in_old_and_new_forms() {
        assert_eq!(place(ACK), Some((7, 5)));
        let new = "$JS.ACK._.ACCHASH.ch.milvus-cdc-1.1.7.1.1700000000000000000.5.token";
        assert_eq!(place(new), Some((7, 5)));
        for none in [
            "",
            "_INBOX.x.1",
            "$JS.ACK.ch.c.1.7",
            "$JS.ACK.ch.c.1.x.1.1.5",
        ] {
            assert_eq!(place(none), None);
        }
    }

    #[tokio::test]
    async fn a_status_is_told_and_a_ping_answered() {
        let headers = "NATS/1.0 409 Message Size Exceeds MaxBytes\r\n\r\n";
        let n = headers.len();
        let status = format!("PING\r\nHMSG _INBOX.x.3 1 {n} {n}\r\n{headers}\r\n");
        let plain = "NATS/1.0\r\nk: v\r\n\r\n";
        let (h, t) = (plain.len(), plain.len() + 2);
        let with_headers = format!("HMSG ch 1 {ACK} {h} {t}\r\n{plain}hi\r\n");
        let error = "-ERR 'Slow Consumer'\r\n";
        let got = read(vec![(status + &with_headers + error).into_bytes()]).await;
        let Ok(Delivered::Status {
            subject,
            code,
            description,
        }) = &got[0]
        else {
            panic!("{got:?}")
        };
        assert_eq!(
            (subject.as_str(), *code, description.as_str()),
            ("_INBOX.x.3", 409, "message size exceeds maxbytes")
        );
        assert!(matches!(&got[1], Ok(Delivered::Message { payload, .. }) if *payload == "hi"));
        assert!(
            got[2]
                .as_ref()
                .is_err_and(|e| e.to_string().contains("Slow Consumer"))
        );
    }
}
