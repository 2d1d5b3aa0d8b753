//! Fewer and larger writes for HTTP/2.
//!
//! A frame of HTTP/2 has 16 KiB unless the peer takes more, which Milvus does not, and h2 writes and flushes each by
//! itself. Over a fast network the system calls, and the work of TCP for each, cost more than the bytes. Here frames are
//! gathered, and written when there are many or when the connection has nothing more to write.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

/// Bytes that are written at once.
const MANY: usize = 128 << 10;

/// Connects to `http://host:port`.
pub(super) async fn connect(
    endpoint: &Endpoint,
    patience: Duration,
) -> Result<Channel, tonic::transport::Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(patience));
    let connector = tower::service_fn(move |server: Uri| {
        let connecting = http.call(server);
        async move {
            connecting
                .await
                .map(|tcp| TokioIo::new(Gather::new(tcp.into_inner())))
        }
    });
    endpoint.connect_with_connector(connector).await
}

/// A connection that is written to by h2 and nobody else: h2 flushes once more when it has no further frame, and that
/// flush is the one that counts.
#[derive(Debug)]
struct Gather<S> {
    inner: S,
    gathered: Vec<u8>,
    /// How many of these are written already.
    written: usize,
    /// Something was gathered since the last flush.
    more: bool,
}

impl<S> Gather<S> {
    fn new(inner: S) -> Self {
        Self {
            inner,
            gathered: Vec::new(),
            written: 0,
            more: false,
        }
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Writes all that is gathered.
    fn write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            match ready!(Pin::new(&mut self.inner).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        self.gathered.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Makes room for something.
    fn room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.len() >= MANY {
            ready!(self.write_out(cx))?;
        }
        self.more = true;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.room(cx))?;
        let taken = bytes.len().min(MANY);
        self.gathered.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.room(cx))?;
        let mut taken = 0;
        for slice in slices {
            let some = slice.len().min(MANY - taken);
            self.gathered.extend_from_slice(&slice[..some]);
            taken += some;
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.more) {
            // Comes again, at once if there is nothing more to write; if not for that, then for this.
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(self.write_out(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_out(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Whoever reads waits for an answer: nothing flushed stays here, whatever its writer does.
        if !self.more && !self.gathered.is_empty() {
            let _ = self.write_out(cx)?;
        }
        Pin::new(&mut self.inner).poll_read(cx, into)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Keeps what each write has; nothing is ever to be read.
    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<Vec<u8>>>>);

    impl AsyncWrite for Writes {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            // Not all of it: a socket may be full.
            let some = bytes.len().min(100_000);
            self.0.lock().push(bytes[..some].to_vec());
            Poll::Ready(Ok(some))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Writes {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn frames_that_are_flushed_one_by_one_are_written_together() {
        let writes = Writes::default();
        let mut gather = Gather::new(writes.clone());
        let mut all = Vec::new();
        for i in 0..20_u8 {
            let (head, frame) = ([i; 9], vec![i; 16 << 10]);
            let slices = [IoSlice::new(&head), IoSlice::new(&frame)];
            let n = gather.write_vectored(&slices).await.unwrap();
            assert_eq!(n, 9 + (16 << 10));
            gather.flush().await.unwrap();
            all.extend_from_slice(&head);
            all.extend_from_slice(&frame);
        }
        gather.flush().await.unwrap();
        let written = writes.0.lock();
        assert!(written.concat() == all);
        assert!(written.len() <= 6, "{} writes", written.len());
    }

    #[tokio::test]
    async fn what_was_flushed_once_does_not_stay() {
        let writes = Writes::default();
        let mut gather = Gather::new(writes.clone());
        gather.write_all(b"ping").await.unwrap();
        gather.flush().await.unwrap();
        assert!(writes.0.lock().is_empty());
        let _ = gather.read_u8().await;
        assert_eq!(writes.0.lock().concat(), b"ping");
        gather.write_all(b"bye").await.unwrap();
        gather.shutdown().await.unwrap();
        assert_eq!(writes.0.lock().concat(), b"pingbye");
    }
}
